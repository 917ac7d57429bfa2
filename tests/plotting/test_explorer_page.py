"""The page of the explorer: its sources joined with data."""

import base64
import json
import re

import numpy as np
import pytest

from ddpm_jax.plotting.explorer import page
from ddpm_jax.plotting.explorer.page import SCRIPTS, SOURCES, Page

LOADS = re.compile(r"""(?:\b(?:src|href)\s*=\s*["']?|url\(\s*["']?|@import|import\(|fetch\()\s*(?!#|data:|["'])""")


def data_of(html):
    """The embedded data, as the browser reads it."""
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    return json.loads(text)


def array_of(entry):
    return np.frombuffer(base64.b64decode(entry["base64"]), entry["dtype"]).reshape(entry["shape"])


def test_every_source_is_joined_once():
    assert {file.name for file in SOURCES.glob("*.js")} == set(SCRIPTS)
    html = Page().html()
    for name in (*SCRIPTS, "style.css"):
        assert html.count((SOURCES / name).read_text()) == 1
    assert "/* styles */" not in html
    assert "<!-- elements -->" not in html


def test_the_sources_load_nothing():
    """No address at all, except in what a reader sees: the page must work offline, from a file."""
    html = Page().html()
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", html)
    assert not LOADS.findall(re.sub(r"<a [^>]*>", "", html))
    assert LOADS.findall('<script src="x.js">')
    assert LOADS.findall("fetch(address)")
    assert "default-src 'none'" in html


@pytest.mark.parametrize("dtype", ["uint8", "int32", "float32", "float64"])
def test_arrays_are_embedded_exactly(dtype):
    array = (np.random.default_rng(0).standard_normal((3, 2, 5)) * 50).astype(dtype)
    made = Page()
    made.add("nested", {"entries": [array[::2], "text"]})
    found = data_of(made.html())["nested"]["entries"]
    assert found[0]["dtype"] == dtype
    np.testing.assert_array_equal(array_of(found[0]), array[::2])
    assert found[1] == "text"


def test_data_cannot_end_its_element_or_take_a_mark():
    text = "</script><script>alert(1)</script><!-- elements --> /* scripts */ <!--"
    made = Page()
    made.add("name", text)
    html = made.html()
    assert data_of(html)["name"] == text
    assert html.count("<script") == Page().html().count("<script")


def test_elements_come_before_the_scripts():
    made = Page()
    made.add_elements("<script>const onnxNetworks = 1;</script>")
    html = made.html()
    assert html.index('id="data"') < html.index("const onnxNetworks") < html.index('"use strict"')


def test_not_a_number_is_an_error():
    made = Page()
    made.add("value", float("nan"))
    with pytest.raises(ValueError, match="not JSON compliant"):
        made.html()


def test_the_hash_depends_on_every_source(monkeypatch):
    before = page.sources_sha256()
    monkeypatch.setattr(page, "SCRIPTS", SCRIPTS[:-1])
    assert page.sources_sha256() != before

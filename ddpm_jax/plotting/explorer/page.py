"""Joins the sources of the explorer and its data to one HTML file that needs no other file and no network.

Arrays are embedded as base64 of their little-endian bytes, row by row. The page has a Content Security Policy that forbids
every request to another host.
"""

import base64
import hashlib
import json
import pathlib
from typing import Any

import numpy as np

SOURCES = pathlib.Path(__file__).parent
SCRIPTS = (  # in this order: each uses functions of those before
    "arrays.js",
    "random.js",
    "diffusion.js",
    "samplers.js",
    "elements.js",
    "charts.js",
    "forward.js",
    "single_steps.js",
    "player.js",
    "network.js",
    "chains.js",
    "sketch.js",
    "denoise.js",
    "bound.js",
    "main.js",
)
MAX_BYTES = 15_000_000  # of the file
MARKS = {"styles": "/* styles */", "data": "/* data */", "elements": "<!-- elements -->", "scripts": "/* scripts */"}


class Page:
    """The data of a page, by name; `html` joins them with the sources."""

    def __init__(self) -> None:
        """A page without data."""
        self._data: dict[str, Any] = {}
        self._elements = ""

    def add(self, name: str, value: Any) -> None:
        """Add a value: JSON-compatible, except that it may contain NumPy arrays."""
        self._data[name] = _encoded(value)

    def add_elements(self, elements: str) -> None:
        """Add HTML elements, which come before the scripts of the page."""
        self._elements = elements

    def html(self) -> str:
        """The file's content."""
        data = json.dumps(self._data, separators=(",", ":"), allow_nan=False)
        parts = {
            "styles": _read("style.css"),
            "data": data.replace("<", "\\u003c"),  # nothing may end the element
            "elements": self._elements,
            "scripts": '"use strict";\n(() => {\n' + "\n".join(_read(name) for name in SCRIPTS) + "\n})();",
        }
        text, joined = _read("index.html"), ""
        for name, mark in MARKS.items():  # in their order; data that contains a mark is not searched again
            before, _, text = text.partition(mark)
            joined += before + parts[name]
        return joined + text


def sources_sha256(*others: str) -> str:
    """Hash of the sources of the page, and of other texts that it contains, without its data."""
    names = ("index.html", "style.css", *SCRIPTS)
    return hashlib.sha256("\0".join([*map(_read, names), *others]).encode()).hexdigest()


def _read(name: str) -> str:
    return (SOURCES / name).read_text(encoding="utf-8")


def _encoded(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        little = np.ascontiguousarray(value).astype(value.dtype.newbyteorder("<"))
        return {"dtype": value.dtype.name, "shape": list(value.shape), "base64": base64.b64encode(little.tobytes()).decode()}
    if isinstance(value, dict):
        return {name: _encoded(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_encoded(entry) for entry in value]
    return value

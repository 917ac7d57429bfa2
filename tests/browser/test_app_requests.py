"""Requests to the server of --mode=app: foreign ones, values that no control offers, files of others, Gradio's own routes."""

import contextlib
import http.client
import json
import math
import os
import sys
import tempfile
import urllib.request

import pytest

from ddpm_jax.app.start_images import MISSING
from tests.browser.app_page import SETTINGS, ask, join, status_of
from tests.browser.app_server import MAX_BODY, MAX_UPLOAD


@pytest.fixture
def address(app_address):
    return app_address


def test_it_is_served_with_a_policy(address):
    with urllib.request.urlopen(address) as response:
        policy = response.headers["content-security-policy"]
        text = response.read().decode()
    assert "default-src 'self'" in policy
    assert '"analytics_enabled":false' in text.replace(" ", "")


def test_requests_of_other_pages_are_refused(address):
    host = address.removeprefix("http://").rstrip("/")
    assert status_of(address, Host=host, Origin=f"http://{host}") == 200
    assert status_of(address, Host="evil.example") == 403
    upload = f"{address}gradio_api/upload"
    assert status_of(upload, b"", Origin="http://evil.example") == 403


@pytest.mark.parametrize(
    ("path", "data"),
    [
        ("openapi.json", None),
        ("gradio_api/openapi.json", None),
        ("gradio_api/file=http://127.0.0.1:1/a.png", None),
        ("gradio_api/file=%68ttps://127.0.0.1:1/a.png", None),
        ("gradio_api/proxy=http://127.0.0.1:1/", None),
        ("gradio_api/deep_link?session_hash=a", None),
        ("gradio_api/vibe-code", None),
        ("monitoring", None),
        ("gradio_api/process_recording", {}),
        ("gradio_api/stream/a", {}),
        ("gradio_api/api/generate", {"data": [1, *SETTINGS]}),
        ("gradio_api/run/generate", {"data": [1, *SETTINGS]}),
        ("gradio_api/call/v2/generate", {"data": [1, *SETTINGS]}),
    ],
)
def test_routes_that_the_page_does_not_need_are_closed(address, path, data):
    assert status_of(f"{address}{path}", data) == 404


def test_no_job_runs_beside_the_queue(address):
    """The page sends the events that are not queued to run/predict, where the others are refused."""
    (index,) = (event["id"] for event in config_of(address)["dependencies"] if event["api_name"] == "generate")
    assert status_of(f"{address}gradio_api/run/predict", {"fn_index": index, "data": [1, *SETTINGS]}) == 404


def test_no_folder_of_the_machine_is_in_what_the_server_describes(address, app_folder, repository):
    for path in ("", "config", "gradio_api/info"):
        with urllib.request.urlopen(f"{address}{path}") as response:
            text = response.read().decode()
        for folder in (app_folder.parent, repository, tempfile.gettempdir(), os.path.expanduser("~"), sys.prefix):
            assert str(folder) not in text


def test_files_of_the_machine_are_not_served(address, app_folder, repository):
    for path in (app_folder / "config.json", repository / "README.md", "/etc/passwd", "../../../etc/passwd"):
        assert status_of(f"{address}gradio_api/file={path}") in (403, 404)


def test_large_requests_are_refused(address):
    def upload(size):
        body = b'--a\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n' + b"0" * size + b"\r\n--a--\r\n"
        return status_of(f"{address}gradio_api/upload", body, **{"Content-Type": "multipart/form-data; boundary=a"})

    assert upload(1000) == 200
    assert upload(MAX_UPLOAD + 1000) == 413
    assert upload(5 * MAX_UPLOAD) == 413
    as_text = {"path": "data:image/png;base64," + "0" * MAX_BODY}
    for route in ("call/image_to_image", "run/predict", "queue/join", "component_server"):
        assert status_of(f"{address}gradio_api/{route}", {"data": [as_text, 0.5, 1, *SETTINGS]}) == 413
    chunks = http.client.HTTPConnection(address.removeprefix("http://").rstrip("/"))
    chunks.request("POST", "/gradio_api/call/generate", iter([b"0" * 1000] * 10), {}, encode_chunked=True)
    with contextlib.closing(chunks):
        assert chunks.getresponse().status == 413


def test_the_editor_keeps_no_more_than_a_painting_has(address):
    """Gradio would make a list as long as the request names, in a route that has no other limits."""
    (editor,) = (component["id"] for component in config_of(address)["components"] if component["type"] == "imageeditor")
    fields = {"type": "layer", "id": "a", "component_id": editor, "session_hash": "a", "fn_name": "accept_blobs"}

    def send(index):
        values = (fields | {"index": index}).items()
        parts = [f'Content-Disposition: form-data; name="{name}"\r\n\r\n{value}' for name, value in values]
        parts.append('Content-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n0')
        body = "".join(f"--a\r\n{part}\r\n" for part in parts) + "--a--\r\n"
        headers = {"Content-Type": "multipart/form-data; boundary=a"}
        return status_of(f"{address}gradio_api/component_server", body.encode(), **headers)

    assert send(0) == 200
    assert [send(index) for index in (1_000_000, -1, "first")] == [500] * 3


def test_events_that_the_page_does_not_have(address):
    """As of a page of another run, which was served before: `serve` asserts that no traceback is logged."""
    for route in ("run/predict", "queue/join"):
        assert status_of(f"{address}gradio_api/{route}", {"data": [], "fn_index": 9999, "session_hash": "a"}) == 500
    first = next(event["id"] for event in config_of(address)["dependencies"] if not event["backend_fn"])
    assert join(address, first, [])["output"]["error"] == "the page has no such event: reload it"


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({3: math.nan}, "the number of steps is nan: it must be a number"),
        ({3: "abc"}, "the value of 'Steps' is not valid"),
        ({3: -1}, "Value -1 is less than minimum value 1."),
        ({1: math.nan}, "the value of 'Seed' is not valid"),
        ({1: -1}, "seed is -1: choose 0..4294967295"),
        ({7: None}, "params is None: choose one of ema, raw"),
        ({8: "../4"}, "the checkpoint is '../4': it must be a number"),
        ({8: "3"}, "no checkpoint of step 3"),
    ],
)
def test_values_that_no_control_offers_are_one_line(address, changes, line):
    values = [changes.get(index, value) for index, value in enumerate(SETTINGS)]
    assert ask(address, "generate", [1, *values])["error"].startswith(line)


@pytest.mark.parametrize("meta", [{}, {"meta": {"_type": "gradio.FileData"}}])
def test_files_of_other_places_are_not_read(address, repository, meta):
    picture = str(repository / "docs" / "images" / "app.png")
    for path in ("http://127.0.0.1:1/a.png", "/etc/passwd", picture, "data:image/png;base64,AAAA", "a.png", "\0", None, 3):
        file = {"path": path, "url": picture} | meta
        assert ask(address, "image_to_image", [file, 0.5, 1, *SETTINGS])["error"] == MISSING
        for layers, line in (([], MISSING), ([file], "a value is not valid: reload the page")):
            editor = {"background": file, "layers": layers, "composite": file}
            assert ask(address, "inpaint", [editor, "left", 1, 1, *SETTINGS])["error"] == line


def test_private_events_read_no_files_of_other_places(address, repository):
    """Those of the page that no program is to call, but can."""
    config = config_of(address)
    kinds = {component["id"]: component["type"] for component in config["components"]}
    readers = [
        event
        for event in config["dependencies"]
        if [kinds[index] for index in event["inputs"]] in (["image"], ["uploadbutton"]) and len(event["outputs"]) == 2
    ]
    assert len(readers) == 4  # inpaint, image to image, the ends of interpolate
    for event in readers:
        answer = join(address, event["id"], [{"path": str(repository / "docs" / "images" / "app.png")}])
        assert answer["output"]["data"] == [None, None]


def config_of(address):
    with urllib.request.urlopen(f"{address}config") as response:
        return json.load(response)

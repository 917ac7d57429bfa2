"""Requests to the server of --mode=app: foreign ones, values that no control offers, files of others, Gradio's own routes."""

import json
import math
import os
import sys
import tempfile
import urllib.request

import pytest

from tests.browser.app_page import SETTINGS, ask, join, status_of
from tests.browser.app_server import MAX_UPLOAD


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


def test_large_uploads_are_refused(address):
    def upload(size):
        body = b'--a\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n' + b"0" * size + b"\r\n--a--\r\n"
        return status_of(f"{address}gradio_api/upload", body, **{"Content-Type": "multipart/form-data; boundary=a"})

    assert upload(1000) == 200
    assert upload(MAX_UPLOAD + 1000) == 413


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


def test_files_of_other_places_are_not_read(address):
    for path, line in (("http://127.0.0.1:1/a.png", "files at other addresses are not read"), ("/etc/passwd", "Cannot move")):
        file = {"path": path, "meta": {"_type": "gradio.FileData"}}
        assert line in ask(address, "image_to_image", [file, 0.5, 1, *SETTINGS])["error"]


def test_private_events_read_no_files_of_other_places(address):
    """Those of the page that no program is to call, but can."""
    config = config_of(address)
    kinds = {component["id"]: component["type"] for component in config["components"]}
    readers = [
        event
        for event in config["dependencies"]
        if [kinds[index] for index in event["inputs"]] in (["image"], ["uploadbutton"])
    ]
    assert len(readers) == 4  # inpaint, image to image, the ends of interpolate
    for event in readers:
        file = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
        answer = join(address, event["id"], [file])
        assert not answer["success"]
        assert "Cannot move" in answer["output"]["error"]


def config_of(address):
    with urllib.request.urlopen(f"{address}config") as response:
        return json.load(response)

"""What the tests of the page of --mode=app share: runs, their servers, the page in a browser, requests without it."""

import contextlib
import io
import json
import os
import pathlib
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import numpy as np
from PIL import Image
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

import ddpm_jax
from ddpm_jax.configs import digits

TIMEOUT_S = 120
SETTINGS = ("3", 5, "ddim", 8, "leading", 0.0, 2.0, "ema", "4")  # as on the page, from the top


def train(folder: pathlib.Path, fields: dict) -> pathlib.Path:
    """A run of digits with these fields; returns its folder."""
    config = digits.get_config()
    config.update_from_flattened_dict(fields)
    ddpm_jax.train(config, folder)
    return folder


@contextlib.contextmanager
def serve(folder: pathlib.Path, repository: pathlib.Path, temporary: pathlib.Path, port: str = "") -> Iterator[str]:
    """The address of the page of a run, served by a process of its own, which logs no traceback and leaves no files."""
    log = temporary.with_name(f"{temporary.name}.stderr")
    environment = os.environ | {"PYTHONPATH": f"{repository}:{os.environ.get('PYTHONPATH', '')}", "TMPDIR": str(temporary)}
    command = [sys.executable, "tests/browser/app_server.py", str(folder), port]
    with (
        log.open("w") as stderr,
        subprocess.Popen(command, cwd=repository, env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True) as process,
    ):
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()  # as Ctrl-C
            assert process.wait(TIMEOUT_S) == 0
    for word in ("Traceback", "Warning"):
        assert word not in log.read_text()
    assert list(temporary.iterdir()) == []


class Page:
    def __init__(self, browser, address):
        self.driver = browser.driver
        self.driver.get("about:blank")
        browser.console(), browser.requests()
        browser.resize(1300, 1300)
        self.load(address)

    def load(self, address):
        self.driver.get(address)
        self.until(lambda driver: driver.find_elements(By.ID, "generate-run"))

    def status(self):
        """The status of the tab Generate."""
        return self.driver.find_element(By.CSS_SELECTOR, ".status").text

    def until(self, condition):
        return WebDriverWait(self.driver, TIMEOUT_S).until(condition)

    def shows(self, text):
        self.until(lambda driver: text in driver.find_element(By.TAG_NAME, "body").text)

    def shows_call(self, text):
        boxes = lambda driver: driver.find_elements(By.TAG_NAME, "textarea")  # noqa: E731
        self.until(lambda driver: any(text in (box.get_property("value") or "") for box in boxes(driver)))

    def set_seed(self, seed):
        def typed(driver):
            box = driver.find_element(By.CSS_SELECTOR, "#seed input")
            box.send_keys(Keys.CONTROL + "a" + Keys.NULL, str(seed), Keys.TAB)
            time.sleep(0.3)  # a page that is still loading sets the first value again
            return box.get_property("value") == str(seed)

        self.until(typed)

    def upload(self, selector, path):
        """Choose a file for the input of files that is at or below a selector."""
        name = f"{selector} input[type=file], input{selector}[type=file]"

        def chosen(driver):
            with contextlib.suppress(StaleElementReferenceException):  # the page replaces it when it shows another picture
                (box,) = driver.find_elements(By.CSS_SELECTOR, name)
                box.send_keys(str(path))
                return True

        self.until(chosen)

    def picture(self, name):
        """The pixels of a picture, [H, W, 3]."""
        url = self.until(lambda driver: driver.find_element(By.CSS_SELECTOR, f"#{name} img").get_attribute("src"))
        with urllib.request.urlopen(url) as response, Image.open(response) as image:
            return np.asarray(image.convert("RGB"))

    def has_painted(self, canvas, low, high, part):
        """Whether at least a part of the pixels of a canvas on the screen have colors from `low` to `high`."""
        with Image.open(io.BytesIO(canvas.screenshot_as_png)) as image:
            pixels = np.asarray(image.convert("RGB"))
        return ((pixels >= low) & (pixels <= high)).all(axis=2).mean() >= part

    def open_tab(self, name):
        tabs = self.driver.find_elements(By.CSS_SELECTOR, "button[role=tab]")
        next(tab for tab in tabs if tab.text.strip() == name).click()

    def press(self, name):
        self.until(lambda driver: driver.find_element(By.ID, name).is_displayed())
        self.driver.find_element(By.ID, name).click()


def status_of(address, data=None, **headers):
    """The status of the answer to GET, or to POST of bytes or JSON."""
    if data is not None and not isinstance(data, bytes):
        data, headers = json.dumps(data).encode(), headers | {"Content-Type": "application/json"}
    try:
        with urllib.request.urlopen(urllib.request.Request(address, data, headers)) as response:
            return response.status
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def ask(address, name, values):
    """The answer to a request, without a client that checks it first."""
    url, body = f"{address}gradio_api/call/{name}", json.dumps({"data": values}).encode()
    with urllib.request.urlopen(urllib.request.Request(url, body, {"Content-Type": "application/json"})) as response:
        event = json.load(response)["event_id"]
    with urllib.request.urlopen(f"{url}/{event}") as response:
        return json.loads(response.read().decode().rpartition("data: ")[2])


def join(address, index, values):
    """The answer to an event of the page by its number."""
    body = json.dumps({"data": values, "fn_index": index, "session_hash": "another"}).encode()
    headers = {"Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(f"{address}gradio_api/queue/join", body, headers)):
        pass
    with urllib.request.urlopen(f"{address}gradio_api/queue/data?session_hash=another") as response:
        messages = [json.loads(line.removeprefix(b"data: ")) for line in response if line.startswith(b"data: ")]
    return next(message for message in messages if message["msg"] == "process_completed")

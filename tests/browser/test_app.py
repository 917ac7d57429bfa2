"""The page of --mode=app in a real browser and from a program: results, cancel, the brush, the queue, errors, no requests."""

import json
import math
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
from gradio_client import Client
from PIL import Image
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

import ddpm_jax
from ddpm_jax.app import pictures
from ddpm_jax.configs import digits
from tests.app.test_model import FIELDS
from tests.browser.app_server import ENDLESS

# gradio_client leaves sockets and an event loop to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

TIMEOUT_S = 60
SETTINGS = ("3", 5, "ddim", 8, "leading", 0.0, 2.0, "ema")  # as on the page, from the top
SLOW = (1, "3", ENDLESS, *SETTINGS[2:])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("app") / "run"
    config = digits.get_config()
    config.update_from_flattened_dict(FIELDS)
    ddpm_jax.train(config, folder)
    return folder


@pytest.fixture(scope="module")
def address(folder, repository, tmp_path_factory):
    """The address of the page, served by a process of its own, which logs no traceback and leaves no files."""
    temporary, log = tmp_path_factory.mktemp("temporary"), folder.parent / "stderr"
    environment = os.environ | {"PYTHONPATH": f"{repository}:{os.environ.get('PYTHONPATH', '')}", "TMPDIR": str(temporary)}
    command = [sys.executable, "tests/browser/app_server.py", str(folder)]
    with (
        log.open("w") as stderr,
        subprocess.Popen(command, cwd=repository, env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True) as process,
    ):
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()  # as Ctrl-C
            assert process.wait(TIMEOUT_S) == 0
    assert "Traceback" not in log.read_text()
    assert list(temporary.iterdir()) == []


class Page:
    def __init__(self, browser, address):
        self.driver = browser.driver
        self.driver.get("about:blank")
        browser.console(), browser.requests()
        browser.resize(1300, 1300)
        self.driver.get(address)
        self.until(lambda driver: driver.find_elements(By.ID, "generate-run"))

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

    def open_tab(self, name):
        tabs = self.driver.find_elements(By.CSS_SELECTOR, "button[role=tab]")
        next(tab for tab in tabs if tab.text.strip() == name).click()

    def press(self, name):
        self.until(lambda driver: driver.find_element(By.ID, name).is_displayed())
        self.driver.find_element(By.ID, name).click()


@pytest.fixture
def page(browser, address):
    return Page(browser, address)


def test_generate_shows_images_and_requests_nothing_from_others(browser, page, address):
    page.press("generate-run")
    page.shows("16 images · 8 network evaluations each")
    shown = page.until(lambda driver: driver.find_elements(By.CSS_SELECTOR, ".pixels img"))
    assert page.until(lambda driver: shown[0].get_property("naturalWidth")) == 8 * (4 * 10 + 2)
    page.shows_call("run.sample(16, seed=0, sampler='ddim', num_steps=8")
    requested = [url for url in browser.requests() if url]
    assert requested
    assert [url for url in requested if not url.startswith(address)] == []
    assert [line for line in browser.console() if line.startswith("SEVERE")] == []
    assert "share" not in {button.get_attribute("aria-label") for button in page.driver.find_elements(By.TAG_NAME, "button")}


def test_every_tab_works(page):
    page.open_tab("Compare samplers")
    page.press("compare-run")
    page.shows("at most 20 network evaluations per image")
    page.open_tab("Image to image")
    page.until(lambda driver: driver.find_element(By.ID, "image_to_image-run").is_displayed())
    page.until(lambda driver: [image for image in driver.find_elements(By.CSS_SELECTOR, ".pixels img") if image.is_displayed()])
    page.press("image_to_image-run")
    page.shows("the image, and 4 images")
    page.open_tab("Interpolate")
    page.press("interpolate-run")
    page.shows("9 frames from it to the last")


def test_inpainting_with_the_brush(page):
    """First without painting: an error. Then a stroke across the image, the background of the editor."""
    page.open_tab("Inpaint")
    editor = page.until(lambda driver: driver.find_element(By.ID, "inpaint-editor"))
    page.until(lambda driver: editor.find_elements(By.CSS_SELECTOR, "button[aria-label=Brush]"))
    time.sleep(2)  # the editor shows its background without a sign that it has
    page.press("inpaint-run")
    page.shows("no pixel is painted")
    editor.find_element(By.CSS_SELECTOR, "button[aria-label=Brush]").click()
    canvas = editor.find_element(By.TAG_NAME, "canvas")
    stroke = ActionChains(page.driver).move_to_element_with_offset(canvas, -110, 40).click_and_hold()
    for x, y in ((220, 0), (0, 40), (-220, 0), (0, 40), (220, 0)):
        stroke = stroke.move_by_offset(x, y)
    stroke.release().perform()
    time.sleep(1)
    page.press("inpaint-run")
    page.shows("the image, and 4 images")
    page.shows_call("run.inpaint(images, mask")


def test_cancel_ends_a_job_and_the_next_one_runs(page):
    page.set_seed(ENDLESS)
    page.press("generate-run")
    page.shows("step 1")
    page.press("generate-cancel")
    page.shows("cancelled")
    page.set_seed(1)
    page.press("generate-run")
    page.shows("16 images · 8 network evaluations each")
    page.shows_call("run.sample(16, seed=1,")


def test_a_page_that_is_left_ends_its_job(page, address):
    page.set_seed(ENDLESS)
    page.press("generate-run")
    page.shows("step 1")
    page.driver.get("about:blank")
    job = Client(address, verbose=False).submit(1, *SETTINGS, api_name="/generate")
    assert job.result(TIMEOUT_S)[2].startswith("1 image")


def test_a_program_gets_the_images_of_the_run(address, folder):
    client = Client(address, verbose=False)
    job = client.submit(4, *SETTINGS, api_name="/generate")
    picture, _, status, call = job.result(TIMEOUT_S)
    expected = ddpm_jax.load(folder).sample(4, label=3, seed=5, guidance_scale=2.0).images
    with Image.open(picture) as image:
        np.testing.assert_array_equal(np.asarray(image), pictures.grid(expected))
    assert status.startswith("4 images")
    assert call.endswith(
        "run.sample(4, seed=5, sampler='ddim', num_steps=8, spacing='leading', eta=0.0, guidance_scale=2.0, label=3)"
    )
    assert len(job.outputs()) > 1  # stages came before
    with pytest.raises(Exception, match="nothing is not in the list of choices"):
        client.predict(4, *SETTINGS[:2], "nothing", *SETTINGS[3:], api_name="/generate")


def test_a_second_user_waits(address):
    first, second = (Client(address, verbose=False) for _ in range(2))
    running = first.submit(*SLOW, api_name="/generate")
    while not running.outputs():
        time.sleep(0.05)
    waiting = second.submit(["ddim"], 4, 1, *SETTINGS, api_name="/compare")
    deadline = time.monotonic() + TIMEOUT_S
    while waiting.status().code.name != "IN_QUEUE":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not waiting.done()
    first.predict(api_name="/cancel_generate")
    assert "at most 4 network evaluations" in waiting.result(TIMEOUT_S)[2]


def test_it_is_served_with_a_policy(address):
    with urllib.request.urlopen(address) as response:
        policy = response.headers["content-security-policy"]
        text = response.read().decode()
    assert "default-src 'self'" in policy
    assert '"analytics_enabled":false' in text.replace(" ", "")


def status_of(address, **headers):
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers)) as response:
            return response.status
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def test_requests_of_other_pages_are_refused(address):
    host = address.removeprefix("http://").rstrip("/")
    assert status_of(address, Host=host, Origin=f"http://{host}") == 200
    assert status_of(address, Host="evil.example") == 403
    upload = f"{address}gradio_api/upload"
    assert status_of(upload, Origin="http://evil.example") == 403
    assert status_of(f"{address}openapi.json") == 404


def ask(address, name, values):
    """The answer to a request, without a client that checks it first."""
    url, body = f"{address}gradio_api/call/{name}", json.dumps({"data": values}).encode()
    with urllib.request.urlopen(urllib.request.Request(url, body, {"Content-Type": "application/json"})) as response:
        event = json.load(response)["event_id"]
    with urllib.request.urlopen(f"{url}/{event}") as response:
        return json.loads(response.read().decode().rpartition("data: ")[2])


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({3: math.nan}, "the number of steps is nan: it must be a number"),
        ({3: "abc"}, "the value of 'Steps' is not valid"),
        ({3: -1}, "Value -1 is less than minimum value 1."),
        ({1: math.nan}, "the value of 'Seed' is not valid"),
        ({1: -1}, "seed is -1: choose 0..4294967295"),
        ({7: None}, "params is None: choose one of ema, raw"),
    ],
)
def test_values_that_no_control_offers_are_one_line(address, changes, line):
    values = [changes.get(index, value) for index, value in enumerate(SETTINGS)]
    assert ask(address, "generate", [1, *values])["error"] == line


def test_files_of_other_places_are_not_read(address):
    for path, line in (("http://127.0.0.1:1/a.png", "files at other addresses are not read"), ("/etc/passwd", "Cannot move")):
        file = {"path": path, "meta": {"_type": "gradio.FileData"}}
        assert line in ask(address, "image_to_image", [file, 0.5, 1, *SETTINGS])["error"]

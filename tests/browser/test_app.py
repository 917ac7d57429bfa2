"""The page of --mode=app in a real browser and from a program: results, cancel, the brush, the queue, no requests to others."""

import time

import numpy as np
import pytest
from gradio_client import Client
from PIL import Image
from selenium.webdriver.common.by import By

import ddpm_jax
from ddpm_jax.app import pictures
from ddpm_jax.app.start_images import MISSING
from tests.browser.app_page import SETTINGS, TIMEOUT_S, Page
from tests.browser.app_server import ENDLESS, MAX_UPLOAD, TOO_LARGE

# gradio_client leaves sockets and an event loop to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

SLOW = (1, "3", ENDLESS, *SETTINGS[2:])


@pytest.fixture
def address(app_address):
    return app_address


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
    page.shows("9 frames from its reconstruction to that of the last")


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


def test_two_windows(page, address):
    """The second one waits and shows that, cancels its own job only, and starts at once when the first page is loaded again."""
    page.set_seed(ENDLESS)
    page.press("generate-run")
    page.shows("step 1")
    first = page.driver.current_window_handle
    page.driver.switch_to.new_window("window")
    try:
        page.load(address)
        page.press("generate-run")
        page.shows("waiting for 1 other job")
        page.press("generate-cancel")
        page.shows("cancelled")
        page.press("generate-run")
        page.shows("waiting for 1 other job")
        second = page.driver.current_window_handle
        page.driver.switch_to.window(first)
        step = page.status()
        page.until(lambda driver: page.status() != step)  # it still runs
        page.driver.refresh()
        page.driver.switch_to.window(second)
        page.shows("16 images · 8 network evaluations each")
    finally:
        page.driver.switch_to.window(second)
        page.driver.close()
        page.driver.switch_to.window(first)


def test_errors_are_where_the_job_was_started(page):
    page.set_seed(TOO_LARGE)
    page.press("generate-run")
    page.shows("not possible: there is not enough memory on the device: generate fewer images")
    others = page.driver.find_elements(By.CSS_SELECTOR, ".toast-body, .error")
    assert [element.text for element in others if element.is_displayed()] == []
    page.set_seed(1)
    page.press("generate-run")
    page.shows("16 images · 8 network evaluations each")
    assert "not possible" not in page.driver.find_element(By.TAG_NAME, "body").text


def test_no_image_is_used_that_the_page_does_not_show(page, tmp_path):
    """Gradio removes the image when it refuses a file that is too large."""
    large = tmp_path / "large.png"
    large.write_bytes(bytes(MAX_UPLOAD + 1))
    images = lambda driver: driver.find_elements(By.CSS_SELECTOR, "#image_to_image-image img")  # noqa: E731
    page.open_tab("Image to image")
    page.until(images)
    page.upload("#image_to_image-image", large)
    page.shows("exceed the maximum allowed size")
    page.until(lambda driver: not images(driver))
    page.press("image_to_image-run")
    page.shows(f"not possible: {MISSING}")


def test_a_program_gets_the_images_of_the_run(address, app_folder):
    client = Client(address, verbose=False)
    job = client.submit(4, *SETTINGS, api_name="/generate")
    picture, _, status, call = job.result(TIMEOUT_S)
    expected = ddpm_jax.load(app_folder).sample(4, label=3, seed=5, guidance_scale=2.0).images
    with Image.open(picture) as image:
        np.testing.assert_array_equal(np.asarray(image), pictures.grid(expected))
    assert status.startswith("4 images")
    assert call.endswith(
        "run.sample(4, seed=5, sampler='ddim', num_steps=8, spacing='leading', eta=0.0, guidance_scale=2.0, label=3)"
    )
    assert len(job.outputs()) > 1  # stages came before
    with pytest.raises(Exception, match="nothing is not in the list of choices"):
        client.predict(4, *SETTINGS[:2], "nothing", *SETTINGS[3:], api_name="/generate")


def test_a_second_program_waits(address):
    first, second = (Client(address, verbose=False) for _ in range(2))
    running = first.submit(*SLOW, api_name="/generate")
    until(running.outputs)
    waiting = second.submit(["ddim"], 4, 1, *SETTINGS, api_name="/compare")
    until(waiting.outputs)
    assert waiting.outputs()[0][2] == "waiting for 1 other job"
    assert not waiting.done()
    first.predict(api_name="/cancel_generate")
    assert "at most 4 network evaluations" in waiting.result(TIMEOUT_S)[2]


def until(condition):
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)

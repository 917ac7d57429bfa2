"""Images that the user of the page uploads and paints on: the results are those of `Run`, bit by bit."""

import itertools
import re
import time

import numpy as np
import pytest
from PIL import Image, ImageDraw
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By

import ddpm_jax
from ddpm_jax import data_config
from ddpm_jax.app import pictures
from ddpm_jax.cli import common
from ddpm_jax.configs import from_workdir
from tests.app.test_conditions import CONDITIONAL
from tests.browser.app_page import Page, serve, train

PHOTO = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
UPLOAD = "[data-testid='Upload an image-upload-button']"


@pytest.fixture
def page(browser, app_address):
    return Page(browser, app_address)


@pytest.fixture(scope="module")
def run(app_folder):
    return ddpm_jax.load(app_folder)


def grid(image, generated):
    return pictures.grid(np.concatenate([image[None], generated.images[0]]))


def test_inpainting_with_the_brush(page, run, app_folder):
    """First without painting: an error. Then two rows of three pixels, which alone are generated."""
    page.open_tab("Inpaint")
    editor = page.until(lambda driver: driver.find_element(By.ID, "inpaint-editor"))
    canvas = page.until(lambda driver: editor.find_element(By.TAG_NAME, "canvas"))
    page.until(lambda driver: page.has_painted(canvas, 0, 40, part=0.1))  # the black background of a digit
    page.press("inpaint-run")
    page.shows("no pixel is painted")
    editor.find_element(By.CSS_SELECTOR, "button[aria-label=Brush]").click()
    zoom = int(re.search(r"(\d+)%", editor.text)[1]) / 100
    points = [(68, 68), (172, 68), (172, 96), (68, 96), (68, 124), (172, 124)]  # of the picture, 384 x 384
    at = [(round((x - 192) * zoom), round((y - 192) * zoom)) for x, y in points]
    stroke = ActionChains(page.driver).move_to_element_with_offset(canvas, *at[0]).click_and_hold()
    for (x, y), (next_x, next_y) in itertools.pairwise(at):
        stroke = stroke.move_by_offset(next_x - x, next_y - y)
    stroke.release().perform()
    page.until(lambda driver: page.has_painted(canvas, (210, 60, 20), (240, 110, 70), part=0.05))
    page.press("inpaint-run")
    page.shows("the image, and 4 images")
    page.shows_call("run.inpaint(images, mask")
    layer = Image.new("RGBA", (384, 384))
    ImageDraw.Draw(layer).line(points, fill="red", width=40)
    mask = pictures.read_mask([np.asarray(layer)], (8, 8))
    assert sorted(zip(*np.nonzero(mask), strict=True)) == [(y, x) for y in (1, 2) for x in (1, 2, 3)]
    image = data_config.load_source(from_workdir.get_config(app_folder)).batch(np.array([0]))["image"][0]
    np.testing.assert_array_equal(page.picture("inpaint-picture"), grid(image, run.inpaint(image[None], mask)))


def test_an_upload_to_inpaint_is_read_as_by_the_command_line(page, run, app_folder, tmp_path):
    turned = Image.fromarray(PHOTO)
    turned.getexif()[274] = 6
    turned.save(tmp_path / "a.jpg", exif=turned.getexif())
    page.open_tab("Inpaint")
    page.until(lambda driver: driver.find_element(By.ID, "inpaint-run").is_displayed())
    time.sleep(2)
    page.upload(UPLOAD, tmp_path / "a.jpg")
    time.sleep(2)
    next(label for label in page.driver.find_elements(By.CSS_SELECTOR, "label") if label.text == "left").click()
    page.press("inpaint-run")
    page.shows("the image, and 4 images")
    image = common.read_original(from_workdir.get_config(app_folder), str(tmp_path / "a.jpg"))
    np.testing.assert_array_equal(page.picture("inpaint-picture"), grid(image, run.inpaint(image[None], "left")))


def test_uploads_to_image_to_image(page, run, app_folder, tmp_path):
    """A file that is not an image leaves no other image behind."""
    (tmp_path / "not.png").write_text("hello")
    Image.fromarray(np.concatenate([PHOTO, PHOTO[..., :1]], axis=2)).save(tmp_path / "alpha.png")
    page.open_tab("Image to image")
    page.until(lambda driver: driver.find_elements(By.CSS_SELECTOR, "#image_to_image-image img"))
    page.driver.find_element(By.CSS_SELECTOR, "#image_to_image-image button[aria-label='Remove Image']").click()
    page.until(lambda driver: not driver.find_elements(By.CSS_SELECTOR, "#image_to_image-image img"))
    page.upload("#image_to_image-image", tmp_path / "not.png")
    page.shows("cannot read the image not.png: not an image")
    page.press("image_to_image-run")
    page.shows("the image is missing")
    page.upload("#image_to_image-image", tmp_path / "alpha.png")
    page.until(lambda driver: page.picture("image_to_image-image").shape == (384, 384, 3))
    page.press("image_to_image-run")
    page.shows("the image, and 4 images")
    image = common.read_original(from_workdir.get_config(app_folder), str(tmp_path / "alpha.png"))
    np.testing.assert_array_equal(page.picture("image_to_image-picture"), grid(image, run.image_to_image(image[None])))


def test_loading_an_image_shows_its_class(page):
    page.open_tab("Image to image")
    button = lambda driver: [button for button in driver.find_elements(By.TAG_NAME, "button") if button.text == "Load"]  # noqa: E731
    next(button for button in page.until(button) if button.is_displayed()).click()
    page.shows("class ")


def test_a_model_with_conditions_and_without_classes(browser, repository, tmp_path_factory, tmp_path):
    folder = train(tmp_path_factory.mktemp("conditional") / "run", CONDITIONAL)
    Image.fromarray(PHOTO).save(tmp_path / "a.png")
    with serve(folder, repository, tmp_path_factory.mktemp("temporary")) as address:
        page, run = Page(browser, address), ddpm_jax.load(folder)
        tabs = [tab.text.strip() for tab in page.driver.find_elements(By.CSS_SELECTOR, "button[role=tab]")]
        assert tabs == ["Generate", "Compare samplers"]
        page.press("generate-run")
        page.shows("16 images")
        np.testing.assert_array_equal(page.picture("generate-picture"), pictures.grid(run.sample(16).images))
        page.upload("#condition-image", tmp_path / "a.png")
        page.until(lambda driver: driver.find_elements(By.CSS_SELECTOR, "#condition-image img"))
        time.sleep(2)
        page.press("generate-run")
        page.shows_call("condition=condition")
        condition = common.read_image(str(tmp_path / "a.png"), size=(4, 4), channels=1)
        images = run.sample(16, condition=condition[None], condition_samples=16).images
        np.testing.assert_array_equal(page.picture("generate-picture"), pictures.grid(images))
        np.testing.assert_array_equal(page.picture("generate-predicted"), pictures.grid(condition[None]))
        page.driver.get("about:blank")

"""The page of a network with condition images: recorded chains by condition image, which is shown beside them."""

import base64
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from ddpm_jax import explorer_config, explorer_network
from ddpm_jax.configs import digits
from ddpm_jax.data.condition import downsample
from tests.browser.explorer_page import open_explorer
from tests.interop.exported import random_params

FIELDS = {
    "data.channels": 3,
    "data.condition": "downsample",
    "model.class_conditional": False,
    "model.label_dropout": 0.0,
    "model.name": "tests.small_network:Small",
    "diffusion.num_timesteps": 50,
}
IMAGES, SEEDS = 3, 2


@pytest.fixture(scope="module")
def batch():
    images = np.random.default_rng(0).integers(0, 256, (IMAGES, 8, 8, 3), np.uint8)
    return {"image": images, "label": np.array([1, 0, 1])}


@pytest.fixture(scope="module")
def file(batch, tmp_path_factory):
    config = digits.get_config()
    config.update_from_flattened_dict(FIELDS)
    config.data.num_classes = 2
    config.visualize.update(format="html", num_steps=(2, 4), samplers=("ddim",), num_seeds=SEEDS, num_terms=2)
    params = jax.tree.map(jnp.asarray, random_params(config))
    noise = np.random.default_rng(1).standard_normal((IMAGES, 8, 8, 3), np.float32)
    runtime = explorer_network.find_runtime(config, params)
    text, _ = explorer_config.make_page(config, params, 1, batch, noise, ("cat", "dog"), runtime)
    path = tmp_path_factory.mktemp("page") / "explorer.html"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def page(browser, file):
    open_explorer(browser, file)
    yield browser.driver
    assert (browser.console(), browser.requests()) == ([], [])


def choose(page, element, value):
    script = "const e = document.getElementById(arguments[0]); e.value = arguments[1]; e.dispatchEvent(new Event('change'))"
    page.execute_script(script, element, str(value))


def text_of(page, element):
    return page.execute_script("return document.getElementById(arguments[0]).textContent", element)


def levels_of(page, selector, size):
    """The levels that a canvas or an image shows, uint8 [size, size, 3]."""
    script = """const context = new OffscreenCanvas(8, 8).getContext("2d", {willReadFrequently: true});
    context.drawImage(document.querySelector(arguments[0]), 0, 0);
    return [...context.getImageData(0, 0, arguments[1], arguments[1]).data]"""
    return np.array(page.execute_script(script, selector, size), np.uint8).reshape(size, size, 4)[..., :3]


def test_the_condition_image_is_chosen_and_shown(page, batch):
    """With its original; each chain is the recorded one of this row and seed."""
    assert text_of(page, "chain-kind") == "Condition image"
    options = [option.text for option in page.find_elements(By.CSS_SELECTOR, "#chain-row option")]
    assert options == ["image 1, class dog", "image 2, class cat", "image 3, class dog"]
    small = np.asarray(downsample(jnp.asarray(batch["image"])))
    last = "const {stages} = ddpmExplorer.chains.player; return [...stages.at(-1).x]"
    recorded = "const {data, shape} = ddpmExplorer.page.chains[0].x_t; return [[...data], shape]"
    data, shape = page.execute_script(recorded)
    chains = np.reshape(data, shape)
    assert len(chains) == IMAGES * SEEDS
    choose(page, "chain-steps", 2)
    for row in (2, 0, 1):
        choose(page, "chain-row", row)
        image = page.find_element(By.CSS_SELECTOR, "#chain-player .condition")
        WebDriverWait(page, 20).until(lambda driver, image=image: driver.execute_script("return arguments[0].complete", image))
        assert (image.is_displayed(), image.accessible_name) == (True, f"The condition image of {options[row]}")
        np.testing.assert_array_equal(levels_of(page, "#chain-player .condition", 2), small[row])
        np.testing.assert_array_equal(levels_of(page, "#chain-player .original", 8), batch["image"][row])
        for seed in (1, 0):
            choose(page, "chain-seed", seed)
            np.testing.assert_array_equal(page.execute_script(last), chains[seed * IMAGES + row, -1].ravel())
    caption = page.find_element(By.CSS_SELECTOR, "#chain-player .condition-name").text
    assert caption == "the condition image, 2×2"


def test_the_command_names_the_file_that_the_page_offers(page, batch):
    page.execute_script("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    choose(page, "chain-row", 1)
    link = page.find_element(By.ID, "condition-file")
    assert (link.text, link.get_attribute("download"), link.is_displayed()) == ("condition_2.png", "condition_2.png", True)
    assert "--config.sampling.condition_images=condition_2.png --config.sampling.seed" in text_of(page, "chain-command")
    png = base64.b64decode(link.get_attribute("href").partition(",")[2])
    wanted = np.asarray(downsample(jnp.asarray(batch["image"][1:2])))[0]
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png))), wanted)


def test_the_page_has_everything_else(page):
    """The terms of the bound, and the reason why it has no network; what concerns classes is hidden."""
    assert "Means of 3 images of the split train, each with its condition image." in text_of(page, "bound-state")
    assert text_of(page, "no-network").startswith(
        "A drawing in this page gives no condition image, so the page has no network."
    )
    assert "The network sees xₜ, t and the condition image, and predicts" in text_of(page, "prediction-text")
    shown = {".needs-classes": False, ".needs-conditions": True, "#denoise": False, "#forward-t": True, "#bound-t": True}
    page.execute_script("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    for selector, visible in shown.items():
        assert page.find_element(By.CSS_SELECTOR, selector).is_displayed() == visible, selector


@pytest.mark.parametrize(("width", "columns"), [(400, 2), (1400, 4)])
def test_the_four_pictures_fit_at_any_width(page, browser, width, columns):
    browser.resize(width, 900)
    boxes = page.execute_script(
        """const pictures = document.querySelectorAll("#chain-player .pair :is(canvas, img)");
        const boxes = [...pictures].map((each) => each.getBoundingClientRect());
        return boxes.map(({x, y, width, height}) => [x, y, width, height])"""
    )
    x, y, widths, heights = np.array(boxes).T
    assert len(boxes) == 4
    assert (len(np.unique(x.round())), len(np.unique(y.round()))) == (columns, 4 // columns)
    np.testing.assert_allclose([widths, heights], widths[0], atol=1)
    root = "document.documentElement"
    assert page.execute_script(f"return {root}.scrollWidth - {root}.clientWidth") == 0

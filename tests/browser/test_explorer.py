"""The explorer in a real browser: the same numbers as in JAX, no errors, no requests, usable by keyboard and at any width."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from ddpm_jax import build, data_config, explorer_config, explorer_network
from ddpm_jax.configs import digits
from ddpm_jax.diffusion import gaussian, pixels
from ddpm_jax.diffusion.schedules import make_schedule, respace
from ddpm_jax.diffusion.spacings import spaced_timesteps
from ddpm_jax.samplers import make_sampler, sampler

IMAGES = 4
CHAIN_SECONDS = 5.0  # longest time of 50 steps of the digits' network


@pytest.fixture(scope="module")
def run():
    """config, parameters and images: the network of configs/digits.py with random parameters, none of them zero."""
    config = digits.get_config()
    config.visualize.update(format="html", num_steps=(2, 50), samplers=("ddim",), num_seeds=1, num_terms=2, page_images=IMAGES)
    params = build.build_init(config)(jax.random.key(0)).params
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    leaves = [leaf + 0.05 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    batch = data_config.load_source(config).batch(np.arange(IMAGES))
    return config, jax.tree.unflatten(structure, leaves), batch


@pytest.fixture(scope="module")
def noise():
    return np.random.default_rng(0).standard_normal((IMAGES, 8, 8, 1), np.float32)


@pytest.fixture(scope="module")
def file(run, noise, tmp_path_factory):
    """The page with the network, whose parameters are rounded as if they had no more space."""
    config, params, batch = run
    runtime = explorer_network.find_runtime(config, params)
    assert not runtime.rounds
    runtime = runtime._replace(rounds=True)
    text, _ = explorer_config.make_page(config, params, 1, batch, noise, (), runtime)
    path = tmp_path_factory.mktemp("page") / "explorer.html"
    path.write_text(text, encoding="utf-8")
    assert path.stat().st_size < 15_000_000
    return path


@pytest.fixture(scope="module")
def plain_file(file):
    """The same page without the network."""
    text, reason = file.read_text(encoding="utf-8"), '"noNetwork":"This run has no network in its page."'
    first, last = text.index("<!-- ONNX Runtime"), text.index('<script>\n"use strict"')
    assert text.count('"noNetwork":""') == 1
    path = file.with_name("plain.html")
    path.write_text(text[:first].replace('"noNetwork":""', reason) + text[last:], encoding="utf-8")
    return path


def open_page(browser, path, width=1200, *, dark=False):
    browser.resize(width, 900, dark=dark)
    browser.open(path)
    WebDriverWait(browser.driver, 60).until(lambda driver: driver.execute_script("return globalThis.ddpmExplorer?.ready"))


@pytest.fixture
def page(browser, file):
    """The page, opened by the first test that uses it: starting the network takes seconds."""
    if browser.driver.current_url != file.as_uri():
        open_page(browser, file)
    yield browser.driver
    assert browser.console() == []


def levels_of(browser, selector):
    """The gray levels that a canvas shows."""
    script = """const context = new OffscreenCanvas(8, 8).getContext("2d", {willReadFrequently: true});
    context.drawImage(document.querySelector(arguments[0]), 0, 0);
    return [...context.getImageData(0, 0, 8, 8).data]"""
    return np.array(browser.execute_script(script, selector)).reshape(8, 8, 4)[..., 0]


def set_value(browser, element_id, value, event="input"):
    script = (
        "const e = document.getElementById(arguments[0]); e.value = arguments[1];"
        "e.dispatchEvent(new Event(arguments[2], {bubbles: true}))"
    )
    browser.execute_script(script, element_id, str(value), event)


def text_of(driver, element_id):
    return driver.execute_script("return document.getElementById(arguments[0]).textContent", element_id)


def test_nothing_is_requested(browser, file):
    open_page(browser, file)
    assert browser.requests() == []
    assert browser.console() == []


@pytest.mark.parametrize(("schedule", "name"), [(0, "cosine"), (1, "linear")])
def test_x_t_is_q_sample(page, run, noise, schedule, name):
    """Within one level of 255, for several t and images, by the slider and the menu that a user moves."""
    _, _, batch = run
    x_start, chain = pixels.from_uint8(batch["image"]), make_schedule(name, 1000)
    set_value(page, "schedule", schedule, "change")
    for image in (0, IMAGES - 1):
        page.execute_script(f"document.querySelectorAll('#images input')[{image}].click()")
        for t in (0, 137, 600, 999):
            set_value(page, "forward-t", t)
            wanted = gaussian.q_sample(chain, x_start[image : image + 1], jnp.array([t]), noise[image : image + 1])
            wanted = np.asarray(pixels.to_uint8(wanted))[0, ..., 0].astype(int)
            assert np.abs(levels_of(page, "#x-t") - wanted).max() <= 1
            assert f"signal is {text_of(page, 'signal-scale')}" in page.find_element(
                By.CSS_SELECTOR, "#scales-chart svg"
            ).get_attribute("aria-label")


def test_single_steps_reach_the_noise_of_the_closed_form(page):
    """Their measured scales agree with the formula up to chance: 4 images of 64 pixels, 5 standard deviations."""
    for _ in range(6):
        page.execute_script("document.getElementById('step-100').click()")
    assert text_of(page, "stepped-caption") == "600 single steps"
    for column in ("stepped", "direct"):
        for kind, scale in (("signal", 0.4), ("noise", 0.3)):
            measured, formula = (float(text_of(page, f"{each}-{kind}").replace("−", "-")) for each in (column, "formula"))
            assert measured == pytest.approx(formula, abs=scale)
    assert float(text_of(page, "stepped-noise")) != float(text_of(page, "direct-noise"))
    page.execute_script("document.getElementById('step-all').click()")
    assert text_of(page, "stepped-caption") == "1000 single steps"
    assert not page.find_element(By.ID, "step-1").is_enabled()


def test_the_network_gives_the_output_of_jax(page, browser, run):
    """Within 1e-4, with a class and with the null label."""
    config, params, _ = run
    network = jax.jit(lambda x, t, labels: build.build_denoise_fn(config, portable=True)(params, labels)(x, t))
    x = np.random.default_rng(1).standard_normal((4, 8, 8, 1), np.float32)
    t, labels = np.array([0, 250, 700, 999], np.int32), np.array([3, 0, 9, 10], np.int32)
    wanted = np.asarray(network(x, t, labels))
    assert np.abs(wanted).max() > 0.1
    for i in range(4):
        call = "return [...await ddpmExplorer.network.evaluate(new Float32Array(args[0]), args[1], [args[2]])]"
        found = browser.run(call, x[i].ravel().tolist(), int(t[i]), int(labels[i]))
        np.testing.assert_allclose(np.reshape(found, wanted[i].shape), wanted[i], atol=1e-4)


def test_guidance_is_that_of_the_library(page, browser, run):
    config, params, _ = run
    guided = config.copy_and_resolve_references()
    guided.sampling.guidance_scale = 2.5
    x, labels = np.random.default_rng(4).standard_normal((1, 8, 8, 1), np.float32), jnp.array([3])
    wanted = build.build_guided_denoise_fn(guided, portable=True)(params, labels)(x, jnp.array([400]))
    call = """const options = {label: 3, nullLabel: 10, scale: args[1], channels: 1};
    return [...await ddpmExplorer.guidedNetwork(ddpmExplorer.network, options)(new Float32Array(args[0]), 400)]"""
    outputs = [np.array(browser.run(call, x.ravel().tolist(), scale)) for scale in (2.5, 1)]
    np.testing.assert_allclose(outputs[0], np.asarray(wanted).ravel(), atol=3e-4)  # 2.5 times the error of the network
    assert np.abs(outputs[0] - outputs[1]).max() > 0.01


def test_a_chain_in_the_page_is_that_of_the_library(page, run):
    """20 DDIM steps from t = 600 of a drawing, by the button that a user presses; two levels of 255."""
    config, params, _ = run
    x_t = np.array(
        page.execute_script(
            "const {page, Random, qSample} = ddpmExplorer;"
            "return [...qSample(page.schedules[0], page.imageOf(2), 600, new Random(0).normals(64))]"
        ),
        np.float32,
    ).reshape(1, 8, 8, 1)
    for element, value, event in (
        ("sketch-example", 2, "change"),
        ("try-class", 5, "change"),
        ("try-steps", 20, "change"),
        ("try-t", 600, "input"),  # the last one: it shows that the prediction is new
    ):
        set_value(page, element, value, event)
    player = "ddpmExplorer.denoise.player"
    at_600 = f"const [stage] = {player}.stages; return {player}.stages.length === 1 && stage.t === 600 && [...stage.predXstart]"
    predicted = WebDriverWait(page, 20).until(lambda _: page.execute_script(at_600))
    denoise(page)
    first = page.execute_script(f"return [...{player}.stages[0].predXstart]")
    assert np.abs(np.asarray(pixels.to_uint8(np.array(predicted))).astype(int) - first).max() <= 1
    chain = respace(build.build_schedule(config), spaced_timesteps(601, 20, "trailing"), from_noise=False)
    made = make_sampler("ddim", chain, build.build_parameterization(config))
    network = jax.jit(build.build_denoise_fn(config, portable=True)(params, jnp.array([5])))
    wanted = sampler.run_steps(made, network, sampler.init_state_from(made, jnp.asarray(x_t)), None, first_step=0, count=20)
    found = np.array(page.execute_script("const s = ddpmExplorer.denoise.player.stages; return [...s.at(-1).x]"))
    assert np.abs(found - np.asarray(pixels.to_uint8(wanted.x)).ravel().astype(int)).max() <= 2
    assert np.abs(levels_of(page, "#try-player .x").ravel() - found).max() == 0


def denoise(browser):
    """Press the button, and wait for the image."""
    browser.execute_script("document.getElementById('denoise').click()")
    WebDriverWait(browser, 60).until(lambda _: " steps in " in text_of(browser, "try-state"))


def test_fifty_steps_take_less_than_five_seconds(page):
    """In a worker, so that the page's own timers run on."""
    set_value(page, "try-t", 999)
    set_value(page, "try-steps", 50, "change")
    page.execute_script("window.ticks = 0; window.timer = setInterval(() => window.ticks++, 5)")
    start = time.perf_counter()
    denoise(page)
    assert time.perf_counter() - start < CHAIN_SECONDS
    assert text_of(page, "try-state").startswith("50 steps in ")
    assert page.execute_script("clearInterval(window.timer); return [ddpmExplorer.network.thread, window.ticks > 5]") == [
        "worker",
        True,
    ]


def test_one_chain_at_a_time_and_stop(page):
    set_value(page, "try-t", 999)
    set_value(page, "try-steps", 1000, "change")
    page.execute_script("document.getElementById('denoise').click()")
    assert not page.find_element(By.ID, "denoise").is_enabled()
    assert not page.find_element(By.ID, "generate").is_enabled()
    page.execute_script("document.getElementById('denoise').click()")
    WebDriverWait(page, 20).until(lambda _: page.execute_script("return ddpmExplorer.denoise.player.stages.length") > 5)
    page.execute_script("document.getElementById('try-stop').click()")
    WebDriverWait(page, 20).until(lambda _: text_of(page, "try-state").startswith("Stopped after "))
    count = page.execute_script("return ddpmExplorer.denoise.player.stages.length")
    assert 5 < count < 1000
    assert page.find_element(By.ID, "generate").is_enabled()


def test_a_new_image_is_generated_in_the_page(page):
    set_value(page, "chain-steps", 2, "change")
    page.execute_script("document.getElementById('generate').click()")
    WebDriverWait(page, 20).until(lambda _: "seed 1: 2 steps" in text_of(page, "chain-state"))
    assert page.execute_script("return ddpmExplorer.chains.player.stages.length") == 3
    same = "return document.getElementById('chain-same').hidden"
    assert page.execute_script(same)  # the command generates the recorded image
    set_value(page, "chain-row", 4, "change")
    assert not page.execute_script(same)
    assert text_of(page, "chain-state").startswith("Recorded by ddpm_jax")


def test_the_keyboard_reaches_everything(page):
    """Arrow keys move t, space plays, and a drawing is made with arrow keys and space."""
    set_value(page, "forward-t", 300)
    slider = page.find_element(By.ID, "forward-t")
    before = int(slider.get_attribute("value"))
    slider.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert text_of(page, "forward-t-value") == f"t = {before + 2}"
    assert slider.get_attribute("aria-valuetext") == f"t = {before + 2}"

    set_value(page, "chain-steps", 50, "change")  # 26 stages, which play for seconds
    scrub = page.find_element(By.CSS_SELECTOR, "#chain-player input")
    scrub.send_keys(Keys.ARROW_RIGHT)
    assert page.execute_script("return ddpmExplorer.chains.player.at") == 1
    scrub.send_keys(Keys.SPACE)
    assert page.find_element(By.CSS_SELECTOR, "#chain-player .play").get_attribute("aria-label") == "Pause"
    last = "const p = ddpmExplorer.chains.player; return p.at === p.stages.length - 1"
    WebDriverWait(page, 20).until(lambda _: page.execute_script(last))

    page.execute_script("document.getElementById('sketch-clear').click()")
    sketch = page.find_element(By.ID, "sketch")
    sketch.send_keys(Keys.ARROW_UP, Keys.SPACE, Keys.ARROW_LEFT, Keys.SPACE)
    drawing = np.array(page.execute_script("return [...ddpmExplorer.denoise.sketch.image]")).reshape(8, 8)
    assert np.argwhere(drawing == 1).tolist() == [[3, 3], [3, 4]]
    assert text_of(page, "sketch-state") == "Row 4, column 4, level 255 of 255"
    sketch.send_keys(Keys.BACKSPACE)
    assert page.execute_script("return ddpmExplorer.denoise.sketch.image.filter((x) => x === 1).length") == 1


def test_a_stroke_of_the_mouse_is_drawn(page):
    page.execute_script("document.getElementById('sketch-clear').click()")
    sketch = page.find_element(By.ID, "sketch")
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", sketch)
    ActionChains(page).move_to_element_with_offset(sketch, -60, 0).click_and_hold().move_by_offset(120, 0).release().perform()
    drawing = np.array(page.execute_script("return [...ddpmExplorer.denoise.sketch.image]")).reshape(8, 8)
    assert (drawing[3:5, 2:6] > 0).sum() >= 4
    assert (drawing[[0, 7]] == -1).all()


def test_every_control_and_picture_has_a_name(page):
    page.execute_script("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    controls = page.find_elements(By.CSS_SELECTOR, "button, select, input, progress, canvas[role], svg[role], [tabindex]")
    assert len(controls) > 40
    unnamed = [
        element.get_attribute("outerHTML")[:120]
        for element in controls
        if element.is_displayed() and not element.accessible_name.strip()
    ]
    assert unnamed == []
    assert page.execute_script("return document.querySelectorAll('h1').length") == 1


@pytest.mark.parametrize("width", [400, 1600])
def test_it_is_readable_at_any_width(page, browser, width):
    """Nothing is wider than the window, and no text is smaller than 12 pixels."""
    browser.resize(width, 900)
    page.execute_script("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    root = "document.documentElement"
    assert page.execute_script(f"return [innerWidth, {root}.scrollWidth - {root}.clientWidth]") == [width, 0]
    wide, small = page.execute_script(
        """const shown = (query) => [...document.querySelectorAll(query)].filter((each) => each.getClientRects().length);
        const names = (elements) => elements.map((each) => each.outerHTML.slice(0, 100));
        const beyond = (box) => box.right > innerWidth + 1 || box.left < -1;
        return [
          names(shown("main *, header *, footer *").filter(
            (each) => !each.closest("math, .visually-hidden") && beyond(each.getBoundingClientRect()))),
          names(shown("p, li, td, th, label, button, figcaption, code, text").filter(
            (each) => parseFloat(getComputedStyle(each).fontSize) < 12)),
        ];"""
    )
    assert wide == small == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast_in_both_themes(page, browser, scheme):
    """4.5 to 1 and more, WCAG 2 AA, for every color of text on the panel."""
    browser.resize(1200, 900, dark=scheme == "dark")

    def luminance(selector, name):
        css = page.execute_script("return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]", selector, name)
        channels = np.array([float(x) for x in css[css.index("(") + 1 : -1].split(",")[:3]]) / 255
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    panel = luminance("main > section", "backgroundColor")
    assert (panel > 0.5) == (scheme == "light")
    for selector in ("main p", ".signal", ".noise", "figcaption", "summary", "a"):
        light, dark = sorted((luminance(selector, "color"), panel), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, selector


def test_without_the_network_the_page_states_why_and_plays_recorded_chains(browser, plain_file):
    open_page(browser, plain_file)
    assert text_of(browser.driver, "no-network") == "This run has no network in its page."
    for element, shown in (("no-network", True), ("denoise", False), ("generate", False), ("sketch", False)):
        assert browser.driver.find_element(By.ID, element).is_displayed() == shown
    assert browser.driver.execute_script("return ddpmExplorer.chains.player.stages.length") == 26
    assert browser.console() == []

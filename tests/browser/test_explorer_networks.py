"""Chains of the page against those of the library, step by step, for networks of each kind; and a page of color images."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from ddpm_jax import build, condition_config, explorer_config, explorer_network
from ddpm_jax.configs import digits
from ddpm_jax.diffusion.schedules import respace
from ddpm_jax.diffusion.spacings import spaced_timesteps
from ddpm_jax.interop import export_onnx, onnxruntime_web
from ddpm_jax.samplers import make_sampler
from ddpm_jax.samplers.sampler import per_image_noise
from tests.browser.explorer_page import open_explorer
from tests.interop.exported import random_params

UNCONDITIONAL = {"data.channels": 3, "model.class_conditional": False, "model.label_dropout": 0.0}
CASES = {
    "denoiser": UNCONDITIONAL | {"diffusion.schedule": "linear", "diffusion.variance": "learned_range"},
    "velocity": {
        "diffusion.num_timesteps": 400,
        "diffusion.prediction": "v",
        "diffusion.variance": "fixed_small",
        "diffusion.zero_terminal_snr": True,
        "sampling.guidance_scale": 2.0,
    },
    "start": UNCONDITIONAL
    | {
        "diffusion.num_timesteps": 50,
        "diffusion.schedule": "sigmoid",
        "diffusion.prediction": "x_start",
        "diffusion.clip_denoised": False,
    },
}
LABEL, STEPS = 3, 8
TOLERANCE = 1e-4  # of x and the predicted image at each step, relative to the largest value


def config_of(name):
    config = digits.get_config()
    config.model.name = "tests.small_network:Small"
    config.update_from_flattened_dict(CASES[name])
    config.visualize.update(format="html", num_steps=(2,), samplers=("ddim",), num_seeds=1, num_terms=2, page_images=2)
    return config


@pytest.fixture(scope="module")
def runs():
    """name -> (config, parameters)."""
    configs = {name: config_of(name) for name in CASES}
    return {name: (config, jax.tree.map(jnp.asarray, random_params(config))) for name, config in configs.items()}


@pytest.fixture(scope="module")
def file(runs, tmp_path_factory):
    """The page of the first network, with the others beside it."""
    config, params = runs["denoiser"]
    generator = np.random.default_rng(0)
    images, noise = generator.integers(0, 256, (2, 8, 8, 3), np.uint8), generator.standard_normal((2, 8, 8, 3), np.float32)
    runtime = explorer_network.find_runtime(config, params)
    text, _ = explorer_config.make_page(config, params, 1, {"image": images}, noise, (), runtime)
    models = {}
    for name in list(CASES)[1:]:
        config, params = runs[name]
        network = build.build_denoise_fn(config, portable=True)
        cond = condition_config.example_cond(config, build.build_condition(config))
        models[name] = export_onnx.network_model(network, params, image_shape=build.image_shape(config), cond=cond)
    elements = onnxruntime_web.page_elements(models, onnxruntime_web.RuntimeAssets("", b""))
    found = re.findall(rf'<script [^>]*id="onnx-(?:{"|".join(models)})".*?</script>', elements)
    assert len(found) == len(models)
    path = tmp_path_factory.mktemp("page") / "explorer.html"
    path.write_text(text.replace("<!-- ONNX Runtime", "\n".join(found) + "<!-- ONNX Runtime", 1), encoding="utf-8")
    return path


@pytest.fixture
def page(browser, file):
    open_explorer(browser, file)
    yield browser
    assert (browser.console(), browser.requests()) == ([], [])


CHAIN = """
    const [name, given] = args, e = ddpmExplorer;
    const network = await e.loadNetwork(name);
    const tables = e.makeTables(...["betas", "alphas"].map((table) => Float64Array.from(given[table])), given.betas.keys());
    const random = {normals: () => Float32Array.from(given.noise.shift())}, stages = [];
    await e.runChain({
      ...given,
      denoise: e.guidedNetwork(network, given),
      schedule: {tables},
      x: Float32Array.from(given.x),
      random,
      stop: {},
      onStage: ({t, x, predXstart}) => stages.push([t, [...x], [...predXstart]]),
    });
    return [stages, given.noise.length];
"""


@pytest.mark.parametrize("start", [1.0, 0.6], ids=["noise", "drawing"])
@pytest.mark.parametrize("sampler", ["ancestral", "ddim"])
@pytest.mark.parametrize("name", CASES)
def test_each_step_is_that_of_the_library(page, runs, name, sampler, start):
    """From pure noise and from t = 0.6 T, with the noise that the library draws."""
    config, params = runs[name]
    shape, schedule, diffusion = build.image_shape(config), build.build_schedule(config), config.diffusion
    t = int(start * config.diffusion.num_timesteps) - 1
    chain = respace(schedule, spaced_timesteps(t + 1, STEPS, "trailing"), from_noise=False)
    made = make_sampler(sampler, chain, build.build_parameterization(config))
    labels = jnp.array([LABEL]) if config.model.class_conditional else None
    network = jax.jit(build.build_guided_denoise_fn(config, portable=True)(params, labels))
    keys = jax.random.key(t)[None]
    first = x = per_image_noise(keys, 0, shape)
    wanted, noise, carry = [], [], made.init_carry(x)
    for index in reversed(range(STEPS)):
        if index and sampler == "ancestral":
            noise.append(np.ravel(per_image_noise(keys, STEPS - index, shape)).tolist())
        x_prev, pred_xstart, carry = made.step(network, x, carry, jnp.int32(index), keys)
        wanted.append((int(chain.timesteps[index]), x, pred_xstart))
        x = x_prev
    wanted.append((-1, x, x))
    given = {
        "betas": schedule.betas.tolist(),
        "alphas": schedule.alphas.tolist(),
        "diffusion": {"prediction": diffusion.prediction, "variance": diffusion.variance, "clip": diffusion.clip_denoised},
        "x": np.ravel(first).tolist(),
        "noise": noise,
        "t": t,
        "steps": STEPS,
        "sampler": sampler,
        "channels": shape[-1],
        "label": LABEL if config.model.class_conditional else None,
        "nullLabel": config.data.num_classes if config.model.class_conditional else None,
        "scale": config.sampling.guidance_scale,
    }
    stages, unused = page.run(CHAIN, name, given)
    assert unused == 0
    assert [stage[0] for stage in stages] == [stage[0] for stage in wanted]
    for (_, *found), (_, *arrays) in zip(stages, wanted, strict=True):
        for ours, theirs in zip(found, arrays, strict=True):
            largest = max(1.0, float(np.abs(theirs).max()))
            np.testing.assert_allclose(ours, np.ravel(theirs), atol=TOLERANCE * largest)
    assert np.std(wanted[-1][1]) > 0.1


SET = """const set = (id, value, event) => {
  Object.assign(document.getElementById(id), {value}).dispatchEvent(new Event(event, {bubbles: true}));
};"""


def test_a_page_without_classes_draws_in_color(page):
    """The controls of classes are hidden, the pen has a color, and the chain runs."""
    driver = page.driver
    for element, shown in (("try-class", False), ("chain-row", False), ("guidance", False), ("pen-color", True)):
        assert driver.find_element(By.ID, element).is_displayed() == shown
    driver.execute_script(
        f"""{SET}
        document.getElementById("sketch-clear").click();
        set("pen-color", "#ff8000", "input");
        set("try-steps", "5", "change");
        ddpmExplorer.denoise.sketch.fillPixel(ddpmExplorer.denoise.sketch.pen.color);
        document.getElementById("denoise").click();"""
    )
    image = np.reshape(driver.execute_script("return [...ddpmExplorer.denoise.sketch.image]"), (8, 8, 3))
    np.testing.assert_allclose(image[4, 4], [1, 128 / 127.5 - 1, -1], atol=1e-6)
    assert (image == -1).sum() == 3 * 64 - 2
    state = driver.find_element(By.ID, "try-state")
    WebDriverWait(driver, 20).until(lambda _: state.text.startswith("5 steps in "))
    assert driver.execute_script("return document.getElementById('sketch-example').value") == ""


STAGES = "return ddpmExplorer.denoise.player.stages.length"


def test_a_change_of_t_stops_the_chain_and_shows_the_new_prediction(page):
    driver = page.driver
    driver.execute_script(SET + "set('try-steps', '1000', 'change'); set('try-t', '900', 'input')")
    state = driver.find_element(By.ID, "try-state")
    WebDriverWait(driver, 20).until(lambda _: state.text.startswith("x") and driver.execute_script(STAGES) == 1)
    driver.execute_script("document.getElementById('denoise').click()")
    WebDriverWait(driver, 20).until(lambda _: driver.execute_script(STAGES) > 5)
    driver.execute_script(SET + "set('try-t', '30', 'input')")
    at_30 = "const {stages} = ddpmExplorer.denoise.player; return stages.length === 1 && stages[0].t === 30"
    WebDriverWait(driver, 20).until(lambda _: driver.execute_script(at_30))
    assert driver.find_element(By.ID, "denoise").is_enabled()
    assert not driver.find_element(By.ID, "try-stop").is_enabled()


def test_a_user_who_goes_back_in_a_growing_chain_stays_there(page):
    driver = page.driver
    found = driver.execute_script(
        """const {player} = ddpmExplorer.denoise, {stages} = player;
        const slider = document.querySelector("#try-player input"), at = [];
        const stage = (t) => ({t, x: stages[0].x, predXstart: stages[0].x});
        player.begin(6);
        for (const t of [5, 4, 3]) player.append(stage(t));
        at.push(player.at);
        Object.assign(slider, {value: 1}).dispatchEvent(new Event("input"));
        player.append(stage(2));
        at.push(player.at);
        Object.assign(slider, {value: 5}).dispatchEvent(new Event("input"));
        at.push(player.at);
        player.append(stage(1));
        player.end();
        at.push(player.at);
        return at"""
    )
    assert found == [2, 1, 3, 4]


def test_the_error_of_a_network_is_shown(page):
    """And another chain can be started."""
    driver = page.driver
    driver.execute_script(
        """const {network} = ddpmExplorer;
        ddpmExplorer.evaluate = network.evaluate;
        network.evaluate = async () => { throw new Error("no memory"); };
        document.getElementById("denoise").click();"""
    )
    try:
        for state, button in (("try-state", "denoise"), ("chain-state", "generate")):
            driver.execute_script("document.getElementById(arguments[0]).click()", button)
            text = driver.find_element(By.ID, state)
            WebDriverWait(driver, 20).until(lambda _, text=text: text.text.startswith("The network failed: no memory."))
            assert driver.find_element(By.ID, button).is_enabled()
    finally:
        driver.execute_script("ddpmExplorer.network.evaluate = ddpmExplorer.evaluate")

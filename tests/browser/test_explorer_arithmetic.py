"""The arithmetic of the explorer in a real browser: tables, reverse steps and random numbers, on a page without a network."""

import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import data_config, explorer_config
from ddpm_jax.configs import digits
from ddpm_jax.diffusion import gaussian, schedules
from ddpm_jax.diffusion.parameterization import Parameterization
from ddpm_jax.diffusion.schedules import make_schedule, respace
from ddpm_jax.diffusion.spacings import spaced_timesteps
from ddpm_jax.samplers import make_sampler


@pytest.fixture(scope="module")
def page(browser, tmp_path_factory):
    """Selenium's driver, with a page of the forward process only."""
    config, path = digits.get_config(), tmp_path_factory.mktemp("page") / "explorer.html"
    images = data_config.load_source(config).batch(np.arange(1))["image"]
    made = explorer_config.page_of(config, {"image": images}, np.zeros(images.shape), facts={"Data": "digits"}, names=())
    path.write_text(made.html(), encoding="utf-8")
    browser.open(path)
    assert browser.driver.execute_script("return ddpmExplorer.ready")
    assert browser.console() == browser.requests() == []
    return browser.driver


def test_schedules_of_the_page(page):
    """The tables that the page derives from betas agree with those of the library."""
    names = ["cumprod", "oneMinus", "posteriorVariance", "coef1", "coef2"]
    found = page.execute_script(
        "const t = ddpmExplorer.page.schedules[0].tables; return arguments[0].map((name) => [...t[name]])", names
    )
    ours = schedules.make_schedule("cosine", 1000)
    wanted = (ours.alphas_cumprod, 1 - ours.alphas_cumprod, ours.posterior_variance)
    wanted += (ours.posterior_mean_coef1, ours.posterior_mean_coef2)
    for table, expected in zip(found, wanted, strict=True):
        np.testing.assert_allclose(table, expected, rtol=1e-9, atol=1e-12)


def test_random_numbers_are_normal(page):
    values = np.array(page.execute_script("return [...new ddpmExplorer.Random(5).normals(20001)]"))
    assert abs(values.mean()) < 5 / np.sqrt(20_000)
    assert values.std() == pytest.approx(1, abs=0.03)
    assert np.mean(np.abs(values) < 1) == pytest.approx(0.6827, abs=0.02)
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.04


@pytest.mark.parametrize("prediction", ["eps", "x_start", "v"])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned_range"])
def test_reverse_steps_are_those_of_the_library(page, prediction, variance):
    """The ancestral and the DDIM step of a respaced chain in color; 1e-5 of their size."""
    shape, count = (2, 2, 3), 12
    generator = np.random.default_rng(2)
    x, noise = (generator.standard_normal((1, *shape), np.float32) for _ in range(2))
    output = generator.standard_normal((1, 2, 2, 6 if variance == "learned_range" else 3), np.float32)
    full = make_schedule("linear", 1000)
    chain = respace(full, spaced_timesteps(801, count, "trailing", schedule=None), from_noise=False)
    parameterization = Parameterization(prediction, variance, clip_denoised=True)
    for index in (0, 1, 7, count - 1):
        t = jnp.array([index])
        wanted = {"ancestral": gaussian.p_sample(chain, parameterization, output, x, t, noise)}
        step = make_sampler("ddim", chain, parameterization).step
        wanted["ddim"] = step(lambda x, t: jnp.asarray(output), jnp.asarray(x), (), jnp.int32(index), None)[:2]
        for name, arrays in wanted.items():
            found = page.execute_script(
                """const [name, index, x, output, noise, diffusion] = arguments, e = ddpmExplorer;
                const schedule = e.page.schedules.find((each) => each.label.startsWith("linear"));
                const tables = e.respace(schedule.tables, e.trailingTimesteps(801, 12));
                const random = {normals: () => new Float32Array(noise)};
                const [image, predicted] = [new Float32Array(x), new Float32Array(output)];
                const step = e.reverseStep(name, diffusion, tables, index, image, predicted, 3, random);
                return [[...step.x], [...step.predXstart], [...tables.timesteps]];""",
                name,
                index,
                x.ravel().tolist(),
                output.ravel().tolist(),
                noise.ravel().tolist(),
                {"prediction": prediction, "variance": variance, "clip": True},
            )
            assert found[2] == chain.timesteps.tolist()
            for ours, theirs in zip(found[:2], arrays, strict=True):
                np.testing.assert_allclose(np.reshape(ours, shape), np.asarray(theirs)[0], rtol=1e-4, atol=1e-4)

"""The formulas of docs/how-ddpm-works.md and ddpm-details.md hold, and are those of the code. In float64."""

import importlib.util
import json
import pathlib
import re

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest

from ddpm_jax.diffusion import gaussian, losses
from ddpm_jax.diffusion.parameterization import Parameterization, predict_v, predict_xstart_from_eps
from ddpm_jax.diffusion.schedules import SCHEDULES, make_schedule
from ddpm_jax.diffusion.variances import model_variance

DOCS = pathlib.Path(__file__).resolve().parent.parent / "docs"
PAGE, DETAILS = ((DOCS / name).read_text() for name in ("how-ddpm-works.md", "ddpm-details.md"))
SHAPE = (3, 2, 2, 1)
T = np.array([1, 40, 98])  # of 100; at t=0 the posterior variance is 0

every_schedule = pytest.mark.parametrize("name", SCHEDULES)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def normal(seed):
    return np.random.default_rng(seed).standard_normal(SHAPE)


def at(table):
    return np.asarray(table)[T].reshape(-1, 1, 1, 1)


def predicting(prediction, variance="fixed_small"):
    return Parameterization(prediction, variance, clip_denoised=False)


def squared(error):
    return np.square(error).sum(axis=(1, 2, 3))


@pytest.fixture
def step(x64, name):
    """(schedule, x_t, the estimate of eps, true x_start, true eps) of one step of each of T."""
    schedule = make_schedule(name, 100)
    x_start, eps, estimate = normal(0), normal(1), normal(2)
    return schedule, np.asarray(gaussian.q_sample(schedule, x_start, T, eps)), estimate, x_start, eps


ARRAYS = {  # LaTeX of the page -> Python
    r"\log \tilde\beta_t": "log(beta_tilde)",
    r"\log \beta_t": "log(beta)",
    r"\bar\alpha_{t-1}": "acp_before",
    r"\bar\alpha_t": "acp",
    r"\alpha_t": "alpha",
    r"\tilde\beta_t": "beta_tilde",
    r"\beta_t": "beta",
    r"\sigma_t": "sigma",
    r"\hat\epsilon": "eps",
    r"\epsilon": "eps",
    r"\hat x_{\text{start}}": "image",
    r"x_{\text{start}}": "image",
    r"\hat v": "v",
    "x_{t-1}": "x_before",
    "c_{1,t}": "first",
    "c_{2,t}": "second",
    r"\text{SNR}(t-1)": "snr_before",
    r"\text{SNR}(t)": "snr",
}


def evaluated(formula, values):
    """The value of a LaTeX formula of the page, such as `\\frac{\\beta_t}{2 \\alpha_t}`, with spaces for products."""
    for latex, name in ARRAYS.items():
        formula = formula.replace(latex, name)
    while (inner := re.sub(r"\\frac\{([^{}]*)\}\{([^{}]*)\}", r"((\1)/(\2))", formula)) != formula or (
        inner := re.sub(r"\\sqrt\{([^{}]*)\}", r"sqrt(\1)", formula)
    ) != formula:
        formula = inner
    tokens, product = re.findall(r"[a-z_]+|\d+|[-+/()^]", formula), []
    assert "".join(tokens) == re.sub(r"\s", "", formula), formula
    for token in tokens:
        if product and re.match(r"[\w(]", token) and re.match(r"[\w)]", product[-1]) and product[-1] not in ("sqrt", "log"):
            product.append("*")
        product.append("**" if token == "^" else token)
    return eval("".join(product), {"sqrt": np.sqrt, "log": np.log}, values)


def formulas(name, page=PAGE):
    """The right-hand sides of the equations of a page whose left-hand side this is, without what follows \\qquad."""
    return re.findall(rf"^\$\$\n{re.escape(name)} = ([^$]+?)(?:, \\qquad.*)?\n\$\$$", page, re.MULTILINE)


def rows(head, page):
    """The cells of the table whose first column has this header: first cell -> the others, without dollars."""
    table = re.search(rf"^\| {head} \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", page, re.MULTILINE)[1]
    split = (row.strip("| ").replace("$", "").split(" | ") for row in table.splitlines())
    return {cells[0].strip("`"): cells[1:] for cells in split}


@pytest.fixture
def values(step):
    """The arrays of ARRAYS at each of T."""
    schedule, x_t, _, x_start, eps = step
    acp, before = at(schedule.alphas_cumprod), at(schedule.alphas_cumprod_prev)
    found = {"acp_before": before, "acp": acp, "alpha": at(schedule.alphas), "beta": at(schedule.betas)}
    found |= {"image": x_start, "eps": eps, "x_t": x_t, "v": np.asarray(predict_v(x_start, schedule.level(T), eps))}
    found |= {"first": at(schedule.posterior_mean_coef1), "second": at(schedule.posterior_mean_coef2)}
    found |= {"beta_tilde": at(schedule.posterior_variance), "sigma": np.sqrt(at(schedule.posterior_variance))}
    found |= {"x_before": normal(3), "z": normal(4), "f": 0.3}
    return found | {"snr": acp / (1 - acp), "snr_before": before / (1 - before)}


@every_schedule
def test_formulas_match_the_code(step, values):
    """Each is parsed from the page and computed; 1e-9."""
    schedule, x_t, _, x_start, eps = step
    mean, _, _ = gaussian.p_mean_variance(schedule, predicting("eps", "fixed_small"), eps, x_t, T)
    posterior, _, _ = gaussian.q_posterior_mean_variance(schedule, x_start, x_t, T)
    log_variance = np.log(values["beta"]) * 0.3 + np.log(values["beta_tilde"]) * 0.7
    output = jnp.full(SHAPE, 2 * 0.3 - 1)
    learned, _ = model_variance(schedule, jnp.asarray(x_t), T, variance="learned_range", variance_output=output)
    np.testing.assert_allclose(np.log(learned), log_variance + 0 * x_t, rtol=1e-9)
    chain = gaussian.q_step(schedule, values["x_before"], T, values["z"])
    # DDIM with eta = 1 has the mean of the posterior, if the estimate of eps agrees with that of the image.
    ddim = np.asarray(posterior) + values["sigma"] * values["z"]
    for name, wanted, page in (
        ("x_t", [chain, x_t], PAGE),
        ("c_{1,t}", [values["first"]], PAGE),
        ("c_{2,t}", [values["second"]], PAGE),
        (r"\tilde\beta_t", [values["beta_tilde"]], PAGE),
        (r"\tilde\mu_t", [posterior], PAGE),
        (r"\text{SNR}(t)", [values["snr"]], PAGE),
        (r"\hat x_{\text{start}}", [x_start], PAGE),
        (r"\mu_\theta(x_t, t)", [mean, mean], PAGE),  # in x_start, and DDPM eq. 11
        ("v", [values["v"]], DETAILS),
        (r"\frac{c_{1,t}^2}{2 \tilde\beta_t}", [values["first"] ** 2 / (2 * values["beta_tilde"])], DETAILS),
        (r"\log \Sigma_\theta", [log_variance], DETAILS),
        ("x_{t-1}", [ddim], DETAILS),
    ):
        found = formulas(name, page)
        assert len(found) == len(wanted), name
        for line, value in zip(found, wanted, strict=True):
            np.testing.assert_allclose(evaluated(line, values), value, rtol=1e-9, atol=1e-9, err_msg=line)
    conversions = rows("the network outputs", DETAILS)
    assert set(conversions) == {"eps", "x_start", "v"}
    for prediction, cells in conversions.items():
        for cell, wanted in zip(cells, (x_start, eps), strict=True):
            if cell != "the output":
                np.testing.assert_allclose(evaluated(cell, values), wanted, rtol=1e-9, atol=1e-9, err_msg=prediction)


@every_schedule
def test_the_three_forms_of_a_term_of_the_bound(step, values):
    """The weights in the equations of L_t, times the squared errors in them: DDPM eqs. 8 and 12; 1e-7."""
    schedule, x_t, estimate, x_start, eps = step
    forms = [re.fullmatch(r"(.+?) \\Vert (.+?) - (.+?) \\Vert\^2 \+ \\text\{const\}", line) for line in formulas("L_t")]
    assert [form[2] for form in forms] == [r"\tilde\mu_t", r"x_{\text{start}}", r"\epsilon"]
    mean, _, pred_xstart = gaussian.p_mean_variance(schedule, predicting("eps"), estimate, x_t, T)
    true_mean, _, _ = gaussian.q_posterior_mean_variance(schedule, x_start, x_t, T)
    errors = (np.asarray(true_mean) - mean, x_start - np.asarray(pred_xstart), eps - estimate)
    terms = [evaluated(form[1], values).reshape(-1) * squared(error) for form, error in zip(forms, errors, strict=True)]
    np.testing.assert_allclose(terms[1], terms[0], rtol=1e-7)
    np.testing.assert_allclose(terms[2], terms[0], rtol=1e-7)


@every_schedule
def test_the_mean_in_terms_of_eps(step):
    """DDPM eq. 11 is eq. 7 with eq. 15 in it; 1e-9 relative to terms of up to 1e2."""
    schedule, x_t, estimate, _, _ = step
    mean, _, _ = gaussian.p_mean_variance(schedule, predicting("eps", "fixed_small"), estimate, x_t, T)
    eps_form = (x_t - at(schedule.betas) / at(schedule.sqrt_one_minus_alphas_cumprod) * estimate) / np.sqrt(at(schedule.alphas))
    np.testing.assert_allclose(mean, eps_form, rtol=1e-9, atol=1e-9)


@every_schedule
def test_the_three_errors_are_proportional(step):
    """L_simple = |eps error|^2 = SNR |x_start error|^2 = acp |v error|^2, for any estimate; 1e-9."""
    schedule, x_t, estimate, x_start, eps = step
    acp = schedule.alphas_cumprod[T]
    snr = acp / np.square(schedule.sqrt_one_minus_alphas_cumprod[T])
    pred_xstart = np.asarray(predict_xstart_from_eps(x_t, schedule.level(T), estimate))
    v, v_estimate = (predict_v(image, schedule.level(T), noise) for image, noise in ((x_start, eps), (pred_xstart, estimate)))
    simple = squared(eps - estimate)
    np.testing.assert_allclose(simple, snr * squared(x_start - pred_xstart), rtol=1e-9)
    np.testing.assert_allclose(simple, acp * squared(v - v_estimate), rtol=1e-9)
    loss = losses.training_losses(schedule, predicting("eps"), jnp.asarray(estimate), x_start, x_t, T, eps)
    np.testing.assert_allclose(loss, simple / 4, rtol=1e-5)  # the mean over four pixels, in float32


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@every_schedule
def test_the_weights_of_the_vlb(step, variance):
    """DDPM eqs. 8 and 12: |mean error|^2/(2 s^2) is c1^2/(2 s^2) in x_start and beta^2/(2 s^2 alpha (1-acp)) in eps; 1e-7."""
    schedule, x_t, estimate, x_start, eps = step
    mean, log_variance, pred_xstart = gaussian.p_mean_variance(schedule, predicting("eps", variance), estimate, x_t, T)
    true_mean, _, _ = gaussian.q_posterior_mean_variance(schedule, x_start, x_t, T)
    sigma2 = np.exp(np.asarray(log_variance)).reshape(-1)
    term = squared(np.asarray(true_mean) - mean) / (2 * sigma2)
    in_x_start = schedule.posterior_mean_coef1[T] ** 2 / (2 * sigma2)
    in_eps = schedule.betas[T] ** 2 / (2 * sigma2 * schedule.alphas[T] * np.square(schedule.sqrt_one_minus_alphas_cumprod[T]))
    np.testing.assert_allclose(term, in_x_start * squared(x_start - np.asarray(pred_xstart)), rtol=1e-7)
    np.testing.assert_allclose(term, in_eps * squared(eps - estimate), rtol=1e-7)


@every_schedule
def test_the_weight_of_fixed_small_is_half_the_decrease_of_the_snr(name):
    """2107.00630: c1^2 / (2 beta~) = (SNR_{t-1} - SNR_t) / 2 at every t > 0; 1e-9."""
    schedule = make_schedule(name, 1000)
    snr = 1 / np.square(schedule.sqrt_recipm1_alphas_cumprod)
    weight = schedule.posterior_mean_coef1[1:] ** 2 / (2 * schedule.posterior_variance[1:])
    np.testing.assert_allclose(weight, (snr[:-1] - snr[1:]) / 2, rtol=1e-9)


@every_schedule
def test_the_two_variances_bound_the_true_one(name):
    """Precisions add; and beta~ + c1^2 Cov is beta~ for one image, beta for white noise, where Cov = (1 - acp) I. 1e-9."""
    schedule = make_schedule(name, 1000)
    before = np.square(schedule.sqrt_one_minus_alphas_cumprod[:-1])
    precision = schedule.alphas[1:] / schedule.betas[1:] + 1 / before
    np.testing.assert_allclose(schedule.posterior_variance[1:], 1 / precision, rtol=1e-9)
    white = schedule.posterior_variance + schedule.posterior_mean_coef1**2 * schedule.sqrt_one_minus_alphas_cumprod**2
    np.testing.assert_allclose(white, schedule.betas, rtol=1e-9)


@pytest.fixture(scope="module")
def toy():
    """docs/tutorial_figures.py, which computes the true reverse step of images of one pixel."""
    spec = importlib.util.spec_from_file_location("tutorial_figures", DOCS / "tutorial_figures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("x_t", [0.0, 0.3, -1.2])
def test_the_mean_of_the_true_step_is_the_formula_with_the_mean_image(toy, x_t):
    """E[x_{t-1} | x_t] = c1 E[x_start | x_t] + c2 x_t and the law of total variance, by Bayes' rule on a grid; 1e-6."""
    schedule = make_schedule("cosine", 20)
    for t in (3, 10, 18):
        x, density, mean, variance = toy.true_step(schedule, t, x_t)
        assert np.trapezoid(x * density, x) == pytest.approx(mean, abs=1e-6)
        assert np.trapezoid((x - mean) ** 2 * density, x) == pytest.approx(variance, rel=1e-6)
        assert variance > schedule.posterior_variance[t]


@every_schedule
def test_the_mean_variance_of_the_true_step_is_at_most_beta(name):
    """On average over x_t; at single x_t it may exceed beta, as at 0, where both images are equally probable."""
    schedule, x_t = make_schedule(name, 100), np.linspace(-6, 6, 241)
    for t in (1, 20, 60, 98):
        acp = schedule.alphas_cumprod[t]
        weight = sum(np.exp(-((x_t - np.sqrt(acp) * image) ** 2) / (2 * (1 - acp))) for image in (-1, 1))
        posterior = np.tanh(np.sqrt(acp) * x_t / (1 - acp))  # E[x_start | x_t] of images -1 and 1
        average = ((1 - posterior**2) @ weight) / weight.sum()
        variance = schedule.posterior_variance[t] + schedule.posterior_mean_coef1[t] ** 2 * average
        assert schedule.posterior_variance[t] <= variance <= schedule.betas[t] * (1 + 1e-9)


def test_smaller_true_steps_are_closer_to_a_gaussian(toy):
    """The values of the page: KL from the Gaussian with its mean and variance in the middle of the chain at x_t = 0.05."""
    steps, stated = re.search(r"^\| \$T\$ \|(.*)\|\n.*\n\| KL of one step, nats \|(.*)\|$", PAGE, re.MULTILINE).groups()
    steps, stated = [int(cell) for cell in steps.split("|")], [cell.strip() for cell in stated.split("|")]
    assert steps == [4, 10, 100, 1000, 4000]
    found = [toy.distance_from_gaussian(make_schedule("cosine", count), count // 2 - 1, 0.05) for count in steps]
    assert [f"{value:.1g}" for value in found] == stated


def test_the_distances_in_the_plane(toy, capsys):
    """The table of the page has what the command of its figure prints."""
    plt.close(toy.draw_gaussians())
    printed = re.findall(r": ([\d.]+); from 1,000 points of each: ([\d.]+)$", capsys.readouterr().out, re.MULTILINE)
    assert [tuple(cells[-2:]) for cells in rows("orange is", PAGE).values()] == printed
    assert len(printed) == 4


def test_the_network_of_the_figure(toy):
    """Its shapes are those of the layers of the config, and its number of parameters is that of the page."""
    shapes, num_params = toy.layer_shapes()
    assert f"{num_params:,} parameters" in PAGE
    assert shapes["conv_in"] == shapes["up0_block1"] == (8, 8, 16)
    assert shapes["mid_attn"] == shapes["down1_block0"] == (4, 4, 32)
    assert shapes["conv_out"] == (8, 8, 1)


def test_the_curves_of_the_loss(toy, tmp_path, capsys):
    """All quarters are drawn with their names beside them: a legend would hide a part of a curve."""
    names = ("train/loss", *(f"train/loss_q{quarter}" for quarter in (1, 2, 3, 4)))
    lines = [json.dumps({"step": step} | dict.fromkeys(names, 1 / step)) for step in (1, 2, 4)]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, json.dumps({"step": 4, "eval/loss": 1.0})]))
    figure = toy.draw_loss(tmp_path)
    mean, quarters = figure.axes
    assert [len(mean.lines), len(quarters.lines)] == [1, 4]
    assert all(axes.get_legend() is None for axes in figure.axes)
    plt.close(figure)
    assert "train/loss_q4: 1.000 at step 1, 0.250 at step 4" in capsys.readouterr().out

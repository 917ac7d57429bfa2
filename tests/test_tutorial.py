"""docs/how-ddpm-works.md is correct: its code runs, its tables are the code's output, and its formulas hold. In float64."""

import contextlib
import io
import pathlib
import re
import unicodedata

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import gaussian, losses
from ddpm_jax.diffusion.parameterization import Parameterization, predict_v, predict_xstart_from_eps
from ddpm_jax.diffusion.schedules import SCHEDULES, make_schedule

PAGE = (pathlib.Path(__file__).resolve().parent.parent / "docs" / "how-ddpm-works.md").read_text()
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


def test_tables_are_the_output_of_the_code():
    (block,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(block, "how-ddpm-works.md", "exec"), {})
    rows = {" ".join(re.findall(r"[\d.e-]+", row)) for row in re.findall(r"^\| \d.*\|$", PAGE, re.MULTILINE)}
    printed = out.getvalue().splitlines()
    assert len(printed) == 9
    for line in printed:
        assert line in rows


ARRAYS = {  # notation of the page -> Python, with T for t
    "ᾱ_{t-1}": "acp_before",
    "ᾱ_t": "acp",
    "α_t": "alpha",
    "β̃_t": "beta_tilde",
    "β_t": "beta",
    "ε̂(x_t, t)": "eps",
    "ε̂": "eps",
    "ε": "eps",
    "x̂_start(x_t, t)": "image",
    "x̂_start": "image",
    "x_start": "image",
    "c1_t": "first",
    "c2_t": "second",
    "v̂": "v",
}


def evaluated(formula, values):
    """The value of a formula of the page, such as `β_t sqrt(ᾱ_{t-1}) / (1 - ᾱ_t)`, with spaces for products."""
    formula = unicodedata.normalize("NFD", formula)
    for ours, name in ARRAYS.items():
        formula = formula.replace(unicodedata.normalize("NFD", ours), name)
    tokens, product = re.findall(r"[a-z_]+|\d+|[-+/()]", formula), []
    assert "".join(tokens) == formula.replace(" ", "")
    for token in tokens:
        if product and re.match(r"[\w(]", token) and re.match(r"[\w)]", product[-1]) and product[-1] not in ("sqrt", "log"):
            product.append("*")
        product.append(token)
    return eval("".join(product), {"sqrt": np.sqrt, "log": np.log}, values)


def formulas(name):
    """The right-hand sides of the lines of the page that begin with `name =`, without trailing text."""
    return re.findall(rf"^    {re.escape(name)} *= (.+?)(?:,? {{3,}}.*)?$", PAGE, re.MULTILINE)


def rows(head):
    """The cells of the table whose first column has this header: first cell -> the others, without text."""
    table = re.search(rf"^\| {head} \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", PAGE, re.MULTILINE)[1]
    return {cells[0].strip("`"): cells[1:] for cells in (row.strip("| ").split(" | ") for row in table.splitlines())}


@every_schedule
def test_formulas_match_the_code(step):
    """Each is parsed from the page and computed; 1e-9."""
    schedule, x_t, _, x_start, eps = step
    before = np.append(1.0, schedule.alphas_cumprod)[:-1]
    v = predict_v(x_start, schedule.level(T), eps)
    values = {"acp_before": at(before), "acp": at(schedule.alphas_cumprod), "alpha": at(schedule.alphas)}
    values |= {"beta": at(schedule.betas), "image": x_start, "eps": eps, "x_t": x_t, "v": v}
    values |= {"first": at(schedule.posterior_mean_coef1), "second": at(schedule.posterior_mean_coef2)}
    mean, _, _ = gaussian.p_mean_variance(schedule, predicting("eps", "fixed_small"), eps, x_t, T)
    for name, wanted, number in (
        ("x_t", x_t, 1),
        ("c1_t", values["first"], 1),
        ("c2_t", values["second"], 1),
        ("β̃_t", at(schedule.posterior_variance), 1),
        ("v", v, 1),
        ("μ_θ(x_t, t)", mean, 2),  # in x_start, and DDPM eq. 11
    ):
        assert len(formulas(name)) == number, name
        for line in formulas(name):
            np.testing.assert_allclose(evaluated(line, values), wanted, rtol=1e-9, atol=1e-9, err_msg=line)
    conversions = rows("the network outputs")
    assert set(conversions) == {"eps", "x_start", "v"}
    for prediction, cells in conversions.items():
        for cell, wanted in zip(cells, (x_start, eps), strict=True):
            if cell != "the output":
                got = evaluated(cell.partition(", ")[0], values)
                np.testing.assert_allclose(got, wanted, rtol=1e-9, atol=1e-9, err_msg=prediction)


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


def true_step(schedule, t, x_t):
    """For images -1 and 1 with equal probability: a grid of x_{t-1}, q(x_{t-1} | x_t) on it by Bayes' rule, and its mean and
    variance by the page's formulas."""
    images, x = np.array([-1.0, 1.0]), np.linspace(-8, 8, 40_001)
    acp, prev = schedule.alphas_cumprod[t], schedule.alphas_cumprod[t - 1]
    density = np.exp(-((x_t - np.sqrt(schedule.alphas[t]) * x) ** 2) / (2 * schedule.betas[t])) * sum(
        np.exp(-((x - np.sqrt(prev) * image) ** 2) / (2 * (1 - prev))) for image in images
    )
    of_image = np.exp(-((x_t - np.sqrt(acp) * images) ** 2) / (2 * (1 - acp)))  # q(x_start | x_t)
    estimate = (of_image @ images) / of_image.sum()
    mean = schedule.posterior_mean_coef1[t] * estimate + schedule.posterior_mean_coef2[t] * x_t
    variance = schedule.posterior_variance[t] + schedule.posterior_mean_coef1[t] ** 2 * (1 - estimate**2)
    return x, density / np.trapezoid(density, x), mean, variance


@pytest.mark.parametrize("x_t", [0.0, 0.3, -1.2])
def test_the_mean_of_the_true_step_is_the_formula_with_the_mean_image(x_t):
    """E[x_{t-1} | x_t] = c1 E[x_start | x_t] + c2 x_t and the law of total variance, by Bayes' rule on a grid; 1e-6."""
    schedule = make_schedule("cosine", 20)
    for t in (3, 10, 18):
        x, density, mean, variance = true_step(schedule, t, x_t)
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


def test_smaller_true_steps_are_closer_to_a_gaussian():
    """KL from the Gaussian with its mean and variance in the middle of the chain at x_t = 0.05: the page's values; 15%."""
    divergences = []
    for steps in (10, 100, 1000):
        x, density, mean, variance = true_step(make_schedule("cosine", steps), steps // 2, 0.05)
        log_gaussian = -((x - mean) ** 2) / (2 * variance) - 0.5 * np.log(2 * np.pi * variance)
        log_density = np.log(np.maximum(density, 1e-300))
        divergences.append(np.trapezoid(np.where(density > 1e-300, density * (log_density - log_gaussian), 0.0), x))
    np.testing.assert_allclose(divergences, [1e-3, 1e-6, 5e-10], rtol=0.15)
    assert "1e-3 nats for T = 10, 1e-6 for 100, and 5e-10 for 1000" in re.sub(r"\s+", " ", PAGE)

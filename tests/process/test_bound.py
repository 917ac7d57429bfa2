"""The terms of the variational bound: against the equations in float64 NumPy, and against an entropy that is known."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.process import likelihood
from ddpm_jax.process.schedules import make_schedule

SCHEDULE = make_schedule("linear", 100)
LEVELS = np.arange(256) / 127.5 - 1


@pytest.mark.parametrize("mean", [-1.3, -0.99, 0.002, 0.7, 1.0])
@pytest.mark.parametrize("scale", [0.004, 0.1, 2.0])
def test_the_shares_of_all_levels_add_up_to_one(mean, scale):
    """1e-5 in float32, but for the floor of 1e-12 under each."""
    x = jnp.asarray(LEVELS, jnp.float32)
    log = likelihood.discretized_gaussian_log_likelihood(x, jnp.full(256, mean, jnp.float32), jnp.float32(math.log(scale)))
    assert np.exp(np.asarray(log, np.float64)).sum() == pytest.approx(1, abs=1e-5)


def test_the_share_of_a_level_keeps_its_digits_in_both_tails():
    """Against the error function of the standard library in float64; 2e-4 relative down to 1e-9, then the floor."""
    x = np.float32(LEVELS[[60, 100, 127, 128, 160, 200]])
    for mean, scale in ((0.3, 0.1), (-0.4, 0.15)):
        got = likelihood.discretized_gaussian_log_likelihood(jnp.asarray(x), jnp.full(6, mean), jnp.log(jnp.float32(scale)))
        for value, log in zip(x.astype(float), np.asarray(got), strict=True):
            a, b = (abs(value - mean) + side / 255 for side in (-1, 1))  # the tails are alike
            expected = 0.5 * (math.erfc(a / scale / math.sqrt(2)) - math.erfc(b / scale / math.sqrt(2)))
            if expected > 1e-9:
                assert math.exp(log) == pytest.approx(expected, rel=2e-4)
            else:
                assert math.exp(log) >= 0.999e-12


def network(x_t, t):
    """Wrong on purpose, and differently at each t."""
    return jnp.sin(3 * x_t) + 0.01 * t.astype(jnp.float32)[:, None, None, None]


def numpy_bits(x_start, noise, t, *, prediction, variance, clip):
    """The equations once more, one image, float64."""
    betas = SCHEDULE.betas.astype(np.float64)
    cumprod = np.cumprod(1 - betas)
    previous = np.append(1.0, cumprod[:-1])
    posterior = betas * (1 - previous) / (1 - cumprod)
    x_t = np.sqrt(cumprod[t]) * x_start + np.sqrt(1 - cumprod[t]) * noise
    output = np.sin(3 * x_t) + 0.01 * t
    guess = {
        "eps": (x_t - np.sqrt(1 - cumprod[t]) * output) / np.sqrt(cumprod[t]),
        "x_start": output,
        "v": np.sqrt(cumprod[t]) * x_t - np.sqrt(1 - cumprod[t]) * output,
    }[prediction]
    guess = np.clip(guess, -1, 1) if clip else guess

    def mean_of(x):
        on_x = np.sqrt(previous[t]) * betas[t] / (1 - cumprod[t])
        return on_x * x + np.sqrt(1 - betas[t]) * (1 - previous[t]) / (1 - cumprod[t]) * x_t

    ours = posterior[max(t, 1)] if variance == "fixed_small" or t == 0 else betas[t]
    if t:
        nats = 0.5 * (np.log(ours / posterior[t]) + (posterior[t] + (mean_of(x_start) - mean_of(guess)) ** 2) / ours - 1)
    else:
        scale, mean = np.sqrt(2 * ours), mean_of(guess)
        nats = np.empty(x_start.shape)
        for place, x in np.ndenumerate(x_start):
            above = 1.0 if x > 0.999 else 0.5 * (1 + math.erf((x - mean[place] + 1 / 255) / scale))
            below = 0.0 if x < -0.999 else 0.5 * (1 + math.erf((x - mean[place] - 1 / 255) / scale))
            nats[place] = -np.log(max(above - below, 1e-12))
    return nats.mean() / np.log(2), np.mean((guess - x_start) ** 2)


@pytest.mark.parametrize("prediction", ["eps", "x_start", "v"])
@pytest.mark.parametrize(("variance", "clip"), [("fixed_small", True), ("fixed_large", False)])
def test_terms_are_those_of_the_equations(prediction, variance, clip):
    """2e-3 relative: float32 against float64, where most of a term at small t is the difference of two means."""
    t = np.array([0, 1, 7, 50, 99], np.int32)
    x_start = LEVELS[np.random.default_rng(0).integers(0, 256, (5, 4, 4, 1))].astype(np.float32)
    x_start[0, 0, 0, 0], x_start[0, 1, 0, 0] = -1, 1  # the outer bins
    keys = jax.random.split(jax.random.key(0), 5)
    terms = likelihood.bound_terms(
        SCHEDULE, network, jnp.asarray(x_start), t, keys, prediction=prediction, variance=variance, clip_denoised=clip
    )
    with jax.debug_key_reuse(False):  # the same draw once more, to put it into the equations
        noise = np.asarray(jax.vmap(lambda key: jax.random.normal(key, (4, 4, 1)))(keys), np.float64)
    for i, step in enumerate(t):
        bits, mse = numpy_bits(
            x_start[i].astype(np.float64), noise[i], step, prediction=prediction, variance=variance, clip=clip
        )
        assert terms.bits[i] == pytest.approx(bits, rel=2e-3), step
        assert terms.xstart_mse[i] == pytest.approx(mse, rel=2e-3), step


def test_the_right_guess_costs_nothing_until_the_last_step():
    x_start = jnp.asarray(LEVELS[np.random.default_rng(0).integers(0, 256, (3, 4, 4, 1))], jnp.float32)
    options = {"prediction": "x_start", "variance": "fixed_small", "clip_denoised": True}
    terms = likelihood.bound_terms(
        SCHEDULE, lambda x_t, t: x_start, x_start, np.array([1, 40, 99]), jax.random.split(jax.random.key(0), 3), **options
    )
    np.testing.assert_allclose(terms.bits, 0, atol=1e-6)
    np.testing.assert_array_equal(terms.xstart_mse, 0)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_gaussian_data_and_its_exact_denoiser_give_the_entropy_and_a_known_gap(variance):
    """Values of N(0, .3²) rounded to 256 levels take 7.304 bits each: no bound can be below.

    Above it lies what the fixed variances cost. With V = Var(x_0 | x_t) the term at t is, on average,
    ½ [log σ²/β̃ + (β̃ + coef² V)/σ² - 1]; rounding adds a twelfth of a bin's square to both variances of L_0. 0.04 bits:
    of 8,192 values, L_0 and the spread of the values themselves have standard errors of .011 each. Small variances suit
    data that is a point, and cost .8 bits here; large ones a fifth.
    """
    steps, number, deviation = 1000, 8192, 0.3
    schedule = make_schedule("linear", steps)
    entropy = math.log2(deviation * math.sqrt(2 * math.pi * math.e)) + math.log2(127.5)
    assert entropy == pytest.approx(7.304, abs=1e-3)
    values = deviation * np.random.default_rng(0).standard_normal(number)
    x_start = (np.rint((values + 1) * 127.5) / 127.5 - 1).astype(np.float32).reshape(1, number, 1, 1)

    def denoise(x_t, t):  # E[x_0 | x_t]
        cumprod = jnp.asarray(schedule.alphas_cumprod, jnp.float32)[t][:, None, None, None]
        return x_t * jnp.sqrt(cumprod) * deviation**2 / (cumprod * deviation**2 + 1 - cumprod)

    @jax.jit
    def term(t, key):
        options = {"prediction": "x_start", "variance": variance, "clip_denoised": False}
        return likelihood.bound_terms(schedule, denoise, jnp.asarray(x_start), t[None], key[None], **options).bits[0]

    keys = jax.random.split(jax.random.key(0), steps)
    total = float(jnp.sum(jax.lax.map(lambda pair: term(*pair), (jnp.arange(steps), keys))))
    total += float(likelihood.prior_bits_per_dim(schedule, jnp.asarray(x_start), np.array([steps - 1]))[0])

    betas = schedule.betas.astype(np.float64)
    cumprod = np.cumprod(1 - betas)
    previous = np.append(1.0, cumprod[:-1])
    posterior = betas * (1 - previous) / (1 - cumprod)
    unknown = deviation**2 * (1 - cumprod) / (cumprod * deviation**2 + 1 - cumprod)
    ours = (posterior if variance == "fixed_small" else betas)[1:]
    coefficient = (np.sqrt(previous) * betas / (1 - cumprod))[1:]
    nats = 0.5 * (np.log(ours / posterior[1:]) + (posterior[1:] + coefficient**2 * unknown[1:]) / ours - 1).sum()
    rounding = (2 / 255) ** 2 / 12
    last = posterior[1] + rounding
    nats += 0.5 * (np.log(2 * np.pi * last) + (unknown[0] + rounding) / last) - np.log(2 / 255)
    nats += 0.5 * (cumprod[-1] * deviation**2 - cumprod[-1] - np.log1p(-cumprod[-1]))
    assert total == pytest.approx(nats / np.log(2), abs=0.04)
    assert total > entropy
    assert total < entropy + (1 if variance == "fixed_small" else 0.25)

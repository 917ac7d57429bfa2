"""Filling in: what is known stays, what is missing fits it, and more so with resampling."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact_denoisers import FULL, build, shorten, some_keys

from ddpm_jax.samplers import sampler
from ddpm_jax.samplers.repaint import InpaintingInputs, default_jump_length, repaint, resampling_schedule

CORRELATION = 0.9


def gaussian_denoiser(x_t, t):
    """Exact guess of x_start for images of two pixels, N(0, [[1, .9], [.9, 1]])."""
    cov = np.array([[1.0, CORRELATION], [CORRELATION, 1.0]])
    cumprod = FULL.alphas_cumprod[:, None, None]
    gains = np.sqrt(cumprod) * cov @ np.linalg.inv(cumprod * cov + (1 - cumprod) * np.eye(2))
    gain = jnp.asarray(gains, jnp.float32)[t]
    return jnp.einsum("bij,bj->bi", gain, x_t.reshape(-1, 2)).reshape(x_t.shape)


def fill(sampled, x_start, mask, keys, denoise_fn=gaussian_denoiser):
    @jax.jit
    def run(x_start, keys):
        state = sampler.init_state(sampled, keys, x_start.shape[1:])
        known = InpaintingInputs(x_start, jnp.broadcast_to(jnp.asarray(mask, jnp.float32), (*x_start.shape[:-1], 1)))
        state = state.replace(memory=known)
        return sampler.run_steps(sampled, denoise_fn, state, keys, first_step=0, count=sampled.num_steps).x

    return np.asarray(run(jnp.asarray(x_start, jnp.float32), keys))


def test_the_walk_goes_up_and_down_as_the_algorithm_says():
    assert resampling_schedule(4, 10, 10) == [(3, True), (2, True), (1, True), (0, True)]  # too short for a jump
    assert resampling_schedule(5, 2, 1) == [(entry, True) for entry in (4, 3, 2, 1, 0)]
    path = resampling_schedule(5, 2, 3)
    # 4 entries down to 2, twice back up to 4 in each of two stretches.
    visited = [entry for entry, _ in path]
    assert visited == [4, 3, 2, 3, 4, 3, 2, 3, 4, 3, 2, 1, 0, 1, 2, 1, 0, 1, 2, 1, 0]
    assert sum(down for _, down in path) == 13
    for (entry, down), (following, _) in itertools.pairwise(path):
        assert following == entry + (-1 if down else 1)


@pytest.mark.parametrize("setting", ["ancestral-small", "ddim"])
def test_known_pixels_are_returned_exactly(setting):
    inner = build(setting, shorten(FULL, 10))
    x_start = np.array([[0.25, -0.5], [-1.0, 1.0]], np.float32).reshape(2, 1, 2, 1)
    filled = fill(repaint(inner, jump_length=3, resampling=2), x_start, [[[1], [0]]], some_keys(2))
    np.testing.assert_array_equal(filled[:, 0, 0], x_start[:, 0, 0])
    assert (filled[:, 0, 1] != x_start[:, 0, 1]).all()


def test_what_is_missing_fits_what_is_known_and_resampling_is_why():
    """One pixel of two is known to be 1: the other is N(.9, .19). 3,000 draws: 5 standard errors are .04.

    Straight down, the known pixel is ignored for long: the mean is too small by more than that, and with it the correlation.
    """
    inner = build("ancestral-small", shorten(FULL, 50))
    x_start = np.ones((3000, 1, 2, 1), np.float32)
    keys = some_keys(3000)
    means, variances = [], []
    for resampling in (1, 20):
        other = fill(repaint(inner, jump_length=2, resampling=resampling), x_start, [[[1], [0]]], keys)[:, 0, 1, 0]
        means.append(other.mean())
        variances.append(other.var())
    assert abs(means[1] - CORRELATION) < 0.05
    assert abs(variances[1] - (1 - CORRELATION**2)) < 0.05
    assert abs(means[0] - CORRELATION) > 2 * abs(means[1] - CORRELATION) + 0.05


def filled_law(num_steps, jump_length, known):
    """Mean and variance of the missing pixel beside one that is `known`: every move is affine. ddim, 10 times down."""
    schedule, cov = shorten(FULL, num_steps, "leading"), np.array([[1.0, CORRELATION], [CORRELATION, 1.0]])
    mean, variance = np.zeros(2), np.eye(2)
    for entry, down in resampling_schedule(num_steps, jump_length, 10):
        if not down:
            mean *= np.sqrt(schedule.alphas[entry + 1])
            variance = schedule.alphas[entry + 1] * variance + schedule.betas[entry + 1] * np.eye(2)
            continue
        signal, before = schedule.alphas_cumprod[entry], schedule.alphas_cumprod_prev[entry]
        guess = np.sqrt(signal) * cov @ np.linalg.inv(signal * cov + (1 - signal) * np.eye(2))
        eps = (np.eye(2) - np.sqrt(signal) * guess) / np.sqrt(1 - signal)
        step = np.sqrt(before) * guess + np.sqrt(1 - before) * eps
        mean, variance = step @ mean, step @ variance @ step.T
        mean[0], variance[0], variance[:, 0] = np.sqrt(before) * known, 0.0, 0.0
        variance[0, 0] = 1 - before
    return mean[1], variance[1, 1]


def kl(mean, variance, true_mean, true_variance):
    ratio = variance / true_variance
    return 0.5 * (ratio - 1 - np.log(ratio) + (mean - true_mean) ** 2 / true_variance)


def test_jumps_are_as_long_for_the_chain_as_the_papers():
    """One pixel is known to be .6: the other is N(.54, .19). The default comes within .06 nats of it in chains of any length.

    The paper's 10 steps of 250 were the default of every chain: in 20 steps they miss it by .24 nats, with a mean of .32.
    """
    assert [default_jump_length(steps) for steps in (1, 10, 20, 50, 100, 250, 1000)] == [1, 1, 1, 2, 4, 10, 40]
    truth = (0.6 * CORRELATION, 1 - CORRELATION**2)
    for steps in (10, 20, 50, 100):
        assert kl(*filled_law(steps, default_jump_length(steps), 0.6), *truth) < 0.06
    assert kl(*filled_law(20, 10, 0.6), *truth) > 0.2
    assert filled_law(20, 10, 0.6)[0] < 0.35 < 0.5 < filled_law(20, 1, 0.6)[0]
    assert filled_law(50, 10, 0.6)[0] < 0.47 < 0.51 < filled_law(50, 2, 0.6)[0] < 0.54


def test_the_law_of_what_is_filled_in_is_that_of_the_sampler():
    """3,000 draws by the sampler itself, default jumps: four standard errors, .03 of the mean and .02 of the variance."""
    filled = fill(
        repaint(build("ddim", shorten(FULL, 20, "leading"))), np.full((3000, 1, 2, 1), 0.6), [[[1], [0]]], some_keys(3000)
    )
    mean, variance = filled_law(20, 1, 0.6)
    assert abs(filled[:, 0, 1, 0].mean() - mean) < 0.03
    assert abs(filled[:, 0, 1, 0].var() - variance) < 0.02


def test_nothing_known_is_ordinary_sampling_and_evaluations_are_the_steps_down():
    inner = build("ddim", shorten(FULL, 12))
    keys, shape = some_keys(4), (1, 2, 1)
    plain = sampler.sample(inner, gaussian_denoiser, keys, shape).x
    wrapped = repaint(inner, jump_length=4, resampling=1)
    filled = fill(wrapped, np.zeros((4, *shape)), [[[0], [0]]], keys)
    np.testing.assert_allclose(filled, plain, rtol=1e-5, atol=1e-6)
    assert (wrapped.evaluations, wrapped.num_steps) == (12, 12)
    jumping = repaint(inner, jump_length=4, resampling=3)  # from entries 0 and 4, twice each
    assert (jumping.evaluations, jumping.num_steps) == (12 + 2 * 2 * 4, 12 + 2 * 2 * 4 * 2)


def test_an_image_alone_is_an_image_in_a_batch():
    inner = build("ancestral-small", shorten(FULL, 6))
    sampled, keys = repaint(inner, jump_length=2, resampling=2), some_keys(3)
    x_start = np.linspace(-1, 1, 6).reshape(3, 1, 2, 1)
    together = fill(sampled, x_start, [[[1], [0]]], keys)
    np.testing.assert_allclose(fill(sampled, x_start[1:2], [[[1], [0]]], keys[1:2])[0], together[1], rtol=1e-5)


@pytest.mark.parametrize("setting", ["dpmpp_2m", "unipc", "heun", "ode"])
def test_a_sampler_that_cannot_jump_is_refused(setting):
    with pytest.raises(ValueError, match=r"set sampler=ddim"):
        repaint(build(setting, shorten(FULL, 5)))


@pytest.mark.parametrize("options", [{"jump_length": -1}, {"resampling": 0}])
def test_bad_numbers_are_refused(options):
    with pytest.raises(ValueError, match=r"must be 0 or more and 1 or more"):
        functools.partial(repaint, build("ddim", shorten(FULL, 5)))(**options)

"""Inpainting: known pixels are preserved, missing ones are consistent with them, and more so with resampling."""

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
    """Exact x̂_0 for images of two pixels, N(0, [[1, .9], [.9, 1]])."""
    cov = np.array([[1.0, CORRELATION], [CORRELATION, 1.0]])
    cumprod = FULL.alphas_cumprod[:, None, None]
    gains = np.sqrt(cumprod) * cov @ np.linalg.inv(cumprod * cov + (1 - cumprod) * np.eye(2))
    gain = jnp.asarray(gains, jnp.float32)[t]
    return jnp.einsum("bij,bj->bi", gain, x_t.reshape(-1, 2)).reshape(x_t.shape)


def inpaint(sampled, x_start, mask, keys, denoise_fn=gaussian_denoiser):
    @jax.jit
    def run(x_start, keys):
        state = sampler.init_state(sampled, keys, x_start.shape[1:])
        known = InpaintingInputs(x_start, jnp.broadcast_to(jnp.asarray(mask, jnp.float32), (*x_start.shape[:-1], 1)))
        state = state.replace(carry=known)
        return sampler.run_steps(sampled, denoise_fn, state, keys, first_step=0, count=sampled.num_steps).x

    return np.asarray(run(jnp.asarray(x_start, jnp.float32), keys))


def test_resampling_schedule_follows_the_algorithm():
    assert resampling_schedule(4, 10, 10) == [(3, True), (2, True), (1, True), (0, True)]  # too short for a jump
    assert resampling_schedule(5, 2, 1) == [(index, True) for index in (4, 3, 2, 1, 0)]
    path = resampling_schedule(5, 2, 3)
    # From index 4 down to 2, and twice back up to 4, in each of two segments.
    visited = [index for index, _ in path]
    assert visited == [4, 3, 2, 3, 4, 3, 2, 3, 4, 3, 2, 1, 0, 1, 2, 1, 0, 1, 2, 1, 0]
    assert sum(denoises for _, denoises in path) == 13
    for (index, denoises), (following, _) in itertools.pairwise(path):
        assert following == index + (-1 if denoises else 1)


@pytest.mark.parametrize("setting", ["ancestral-small", "ddim"])
def test_known_pixels_are_returned_exactly(setting):
    inner = build(setting, shorten(FULL, 10))
    x_start = np.array([[0.25, -0.5], [-1.0, 1.0]], np.float32).reshape(2, 1, 2, 1)
    filled = inpaint(repaint(inner, jump_length=3, resampling=2), x_start, [[[1], [0]]], some_keys(2))
    np.testing.assert_array_equal(filled[:, 0, 0], x_start[:, 0, 0])
    assert (filled[:, 0, 1] != x_start[:, 0, 1]).all()


def test_resampling_makes_missing_pixels_consistent_with_known_ones():
    """One pixel of two is known to be 1: the other is N(.9, .19). 3,000 samples: 5 standard errors are .04.

    Without resampling the known pixel has too little influence: the mean is too small by more, and so is the correlation.
    """
    inner = build("ancestral-small", shorten(FULL, 50))
    x_start = np.ones((3000, 1, 2, 1), np.float32)
    keys = some_keys(3000)
    means, variances = [], []
    for resampling in (1, 20):
        other = inpaint(repaint(inner, jump_length=2, resampling=resampling), x_start, [[[1], [0]]], keys)[:, 0, 1, 0]
        means.append(other.mean())
        variances.append(other.var())
    assert abs(means[1] - CORRELATION) < 0.05
    assert abs(variances[1] - (1 - CORRELATION**2)) < 0.05
    assert abs(means[0] - CORRELATION) > 2 * abs(means[1] - CORRELATION) + 0.05


def inpainted_law(num_steps, jump_length, known):
    """Mean and variance of the missing pixel if the other is `known`: every move is affine. ddim, resampling 10."""
    schedule, cov = shorten(FULL, num_steps, "leading"), np.array([[1.0, CORRELATION], [CORRELATION, 1.0]])
    mean, variance = np.zeros(2), np.eye(2)
    for index, denoises in resampling_schedule(num_steps, jump_length, 10):
        if not denoises:
            mean *= np.sqrt(schedule.alphas[index + 1])
            variance = schedule.alphas[index + 1] * variance + schedule.betas[index + 1] * np.eye(2)
            continue
        alpha_bar, alpha_bar_prev = schedule.alphas_cumprod[index], schedule.alphas_cumprod_prev[index]
        x0 = np.sqrt(alpha_bar) * cov @ np.linalg.inv(alpha_bar * cov + (1 - alpha_bar) * np.eye(2))
        eps = (np.eye(2) - np.sqrt(alpha_bar) * x0) / np.sqrt(1 - alpha_bar)
        step = np.sqrt(alpha_bar_prev) * x0 + np.sqrt(1 - alpha_bar_prev) * eps
        mean, variance = step @ mean, step @ variance @ step.T
        mean[0], variance[0], variance[:, 0] = np.sqrt(alpha_bar_prev) * known, 0.0, 0.0
        variance[0, 0] = 1 - alpha_bar_prev
    return mean[1], variance[1, 1]


def kl(mean, variance, true_mean, true_variance):
    ratio = variance / true_variance
    return 0.5 * (ratio - 1 - np.log(ratio) + (mean - true_mean) ** 2 / true_variance)


def test_default_jump_length_scales_with_the_chain():
    """One pixel is known to be .6: the other is N(.54, .19). The default is within .06 nats of it in chains of any length.

    The paper's 10 of 250 steps used in 20 steps is off by .24 nats, with a mean of .32.
    """
    assert [default_jump_length(steps) for steps in (1, 10, 20, 50, 100, 250, 1000)] == [1, 1, 1, 2, 4, 10, 40]
    truth = (0.6 * CORRELATION, 1 - CORRELATION**2)
    for steps in (10, 20, 50, 100):
        assert kl(*inpainted_law(steps, default_jump_length(steps), 0.6), *truth) < 0.06
    assert kl(*inpainted_law(20, 10, 0.6), *truth) > 0.2
    assert inpainted_law(20, 10, 0.6)[0] < 0.35 < 0.5 < inpainted_law(20, 1, 0.6)[0]
    assert inpainted_law(50, 10, 0.6)[0] < 0.47 < 0.51 < inpainted_law(50, 2, 0.6)[0] < 0.54


def test_the_sampler_has_the_predicted_distribution():
    """3,000 samples with default jumps: four standard errors, .03 of the mean and .02 of the variance."""
    filled = inpaint(
        repaint(build("ddim", shorten(FULL, 20, "leading"))), np.full((3000, 1, 2, 1), 0.6), [[[1], [0]]], some_keys(3000)
    )
    mean, variance = inpainted_law(20, 1, 0.6)
    assert abs(filled[:, 0, 1, 0].mean() - mean) < 0.03
    assert abs(filled[:, 0, 1, 0].var() - variance) < 0.02


def test_an_empty_mask_is_ordinary_sampling_and_nfe_counts_denoising_steps():
    inner = build("ddim", shorten(FULL, 12))
    keys, shape = some_keys(4), (1, 2, 1)
    plain = sampler.sample(inner, gaussian_denoiser, keys, shape).x
    wrapped = repaint(inner, jump_length=4, resampling=1)
    filled = inpaint(wrapped, np.zeros((4, *shape)), [[[0], [0]]], keys)
    np.testing.assert_allclose(filled, plain, rtol=1e-5, atol=1e-6)
    assert (wrapped.nfe, wrapped.num_steps) == (12, 12)
    jumping = repaint(inner, jump_length=4, resampling=3)  # from indices 0 and 4, twice each
    assert (jumping.nfe, jumping.num_steps) == (12 + 2 * 2 * 4, 12 + 2 * 2 * 4 * 2)


def test_batch_items_are_independent():
    inner = build("ancestral-small", shorten(FULL, 6))
    sampled, keys = repaint(inner, jump_length=2, resampling=2), some_keys(3)
    x_start = np.linspace(-1, 1, 6).reshape(3, 1, 2, 1)
    together = inpaint(sampled, x_start, [[[1], [0]]], keys)
    np.testing.assert_allclose(inpaint(sampled, x_start[1:2], [[[1], [0]]], keys[1:2])[0], together[1], rtol=1e-5)


@pytest.mark.parametrize("setting", ["dpmpp_2m", "unipc", "heun", "ode"])
def test_unsupported_samplers_are_rejected(setting):
    with pytest.raises(ValueError, match=r"set sampler=ddim"):
        repaint(build(setting, shorten(FULL, 5)))


@pytest.mark.parametrize("options", [{"jump_length": -1}, {"resampling": 0}])
def test_out_of_range_arguments_are_rejected(options):
    with pytest.raises(ValueError, match=r"must be at least 0 and 1"):
        functools.partial(repaint, build("ddim", shorten(FULL, 5)))(**options)

"""The bound over devices: the same numbers on any number of them, exact or by a fair draw of t."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion.parameterization import Parameterization
from ddpm_jax.diffusion.schedules import make_schedule
from ddpm_jax.evaluation.vlb_evaluator import VlbEvaluator
from ddpm_jax.runtime import mesh as meshes

STEPS = 20
SCHEDULE = make_schedule("cosine", STEPS)
IMAGES = np.random.default_rng(0).integers(0, 256, (11, 4, 4, 1), dtype=np.uint8)
LABELS = np.arange(11) % 3


def make_denoise_fn(params, labels):
    return lambda x_t, t: params * x_t + 0.1 * labels.astype(jnp.float32)[:, None, None, None]


def meter(devices=8, batch_size=8, timesteps=0):
    mesh = meshes.make_mesh(jax.devices()[:devices])
    parameterization = Parameterization("eps", "fixed_large", clip_denoised=True)
    return VlbEvaluator(SCHEDULE, parameterization, make_denoise_fn, mesh, timesteps_per_image=timesteps, batch_size=batch_size)


def measure(meter, seed=0, **options):
    batches = list(meter.measure(jnp.float32(0.7), jax.random.key(seed), IMAGES, LABELS, **options))
    return [np.concatenate(column) for column in zip(*batches, strict=True)]


@pytest.fixture(scope="module")
def exact():
    return measure(meter())


def test_every_term_of_every_image_on_any_number_of_devices(exact):
    t, weights, bits, xstart_mse, eps_mse, prior = exact
    assert t.tolist() == [list(range(STEPS))] * 11
    assert (weights == 1).all()
    assert (bits > 0).all()
    assert (prior > 0).all()
    assert len(np.unique(xstart_mse)) == xstart_mse.size
    assert (eps_mse > 0).all()
    for got, want in zip(measure(meter(devices=1, batch_size=5)), exact, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5)


def test_progress_ends_at_the_number_of_images():
    seen = []
    measure(meter(timesteps=4), report=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 11


def test_drawn_timesteps_estimate_the_sum_without_bias(exact):
    """Over 60 seeds, within 4 standard errors of the exact sum, image by image; and not each seed the same."""
    bits = exact[2]
    quick = meter(timesteps=6)
    estimates = []
    for seed in range(60):
        t, weights, some, *_ = measure(quick, seed)
        assert (t[:, :2] == 0).all()
        assert (t[:, 2:] > 0).all()
        estimates.append((weights * some).sum(axis=1))
    mean, error = np.mean(estimates, axis=0), np.std(estimates, axis=0, ddof=1) / np.sqrt(60)
    assert (error > 0).all()
    # The exact sum has noise of its own, from its one draw of x_t at each t.
    one = meter()
    own = np.std([measure(one, seed)[2].sum(axis=1) for seed in range(1, 9)], axis=0, ddof=1)
    assert (np.abs(mean - bits.sum(axis=1)) < 4 * np.hypot(error, own)).all()


def test_drawn_timesteps_are_the_same_on_any_number_of_devices():
    for got, want in zip(measure(meter(devices=1, batch_size=5, timesteps=4)), measure(meter(timesteps=4)), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize("timesteps", [2, 5, 20])
def test_timesteps_that_cannot_be_drawn_are_refused(timesteps):
    with pytest.raises(ValueError, match="take an even number from 4 to below 20"):
        meter(timesteps=timesteps)

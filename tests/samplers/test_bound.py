"""The bound over devices: the same numbers on any number of them, exact or by a fair draw of t."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.process.schedules import make_schedule
from ddpm_jax.runtime import mesh as meshes
from ddpm_jax.samplers.bound import BoundMeter

STEPS = 20
SCHEDULE = make_schedule("cosine", STEPS)
IMAGES = np.random.default_rng(0).integers(0, 256, (11, 4, 4, 1), dtype=np.uint8)
LABELS = np.arange(11) % 3


def make_denoise_fn(params, labels):
    return lambda x_t, t: params * x_t + 0.1 * labels.astype(jnp.float32)[:, None, None, None]


def meter(devices=8, batch_size=8, timesteps=0):
    mesh = meshes.make_mesh(jax.devices()[:devices])
    options = {"prediction": "eps", "variance": "fixed_large", "clip_denoised": True, "batch_size": batch_size}
    return BoundMeter(SCHEDULE, make_denoise_fn, mesh, timesteps_per_image=timesteps, **options)


def measure(meter, seed=0, **options):
    batches = list(meter.measure(jnp.float32(0.7), jax.random.key(seed), IMAGES, LABELS, **options))
    return [np.concatenate(column) for column in zip(*batches, strict=True)]


@pytest.fixture(scope="module")
def exact():
    return measure(meter())


def test_every_term_of_every_image_on_any_number_of_devices(exact):
    t, bits, xstart_mse, prior = exact
    assert t.tolist() == [list(range(STEPS))[::-1]] * 11
    assert (bits > 0).all()
    assert (prior > 0).all()
    assert len(np.unique(xstart_mse)) == xstart_mse.size
    for got, want in zip(measure(meter(devices=1, batch_size=5)), exact, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5)


def test_progress_ends_at_the_number_of_images():
    seen = []
    measure(meter(timesteps=2), report=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 11


def test_drawn_timesteps_estimate_the_sum_without_bias(exact):
    """Over 60 seeds, within 4 standard errors of the exact sum, image by image; and not each seed the same."""
    _, bits, _, _ = exact
    quick = meter(timesteps=4)
    estimates = []
    for seed in range(60):
        t, some, _, _ = measure(quick, seed)
        assert (t // (STEPS // 4) == [3, 2, 1, 0]).all()  # one in each quarter
        estimates.append(STEPS / 4 * some.sum(axis=1))
    mean, error = np.mean(estimates, axis=0), np.std(estimates, axis=0, ddof=1) / np.sqrt(60)
    assert (error > 0).all()
    # The exact sum has noise of its own, from its one draw of x_t at each t.
    own = np.std([measure(meter(), seed)[1].sum(axis=1) for seed in range(1, 9)], axis=0, ddof=1)
    assert (np.abs(mean - bits.sum(axis=1)) < 4 * np.hypot(error, own)).all()


def test_timesteps_that_do_not_divide_the_chain_are_refused():
    with pytest.raises(ValueError, match="must divide the 20"):
        meter(timesteps=3)

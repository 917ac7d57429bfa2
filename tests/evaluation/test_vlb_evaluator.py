"""The bound on any number of devices, exact or estimated from sampled t."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion.parameterization import Parameterization
from ddpm_jax.diffusion.schedules import make_schedule
from ddpm_jax.evaluation import vlb_evaluator
from ddpm_jax.evaluation.vlb_evaluator import VlbEvaluator
from ddpm_jax.runtime import mesh as meshes

STEPS = 20
SCHEDULE = make_schedule("cosine", STEPS)
IMAGES = np.random.default_rng(0).integers(0, 256, (11, 4, 4, 1), dtype=np.uint8)
LABELS = np.arange(11) % 3


def make_denoise_fn(params, labels):
    return lambda x_t, t: params * x_t + 0.1 * labels.astype(jnp.float32)[:, None, None, None]


def make_evaluator(devices=8, batch_size=8, timesteps=0):
    mesh = meshes.make_mesh(jax.devices()[:devices])
    parameterization = Parameterization("eps", "fixed_large", clip_denoised=True)
    return VlbEvaluator(SCHEDULE, parameterization, make_denoise_fn, mesh, timesteps_per_image=timesteps, batch_size=batch_size)


def evaluate(evaluator, seed=0, **options):
    batches = list(evaluator.evaluate(jnp.float32(0.7), jax.random.key(seed), IMAGES, LABELS, **options))
    return [np.concatenate(column) for column in zip(*batches, strict=True)]


@pytest.fixture(scope="module")
def exact():
    return evaluate(make_evaluator())


def test_every_term_of_every_image_on_any_number_of_devices(exact):
    t, weights, bits, xstart_mse, eps_mse, prior = exact
    assert t.tolist() == [list(range(STEPS))] * 11
    assert (weights == 1).all()
    assert (bits > 0).all()
    assert (prior > 0).all()
    assert len(np.unique(xstart_mse)) == xstart_mse.size
    assert (eps_mse > 0).all()
    for got, want in zip(evaluate(make_evaluator(devices=1, batch_size=5)), exact, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize("timesteps", [0, 12])
def test_a_last_chunk_of_fewer_terms_is_computed_once(monkeypatch, timesteps):
    """Chunks of 8: of the 20 terms, and of 12 sampled ones, each is returned once and in order."""
    whole = evaluate(make_evaluator(devices=1, timesteps=timesteps))
    monkeypatch.setattr(vlb_evaluator, "chunk_size", lambda terms, limit: 8)
    for got, want in zip(evaluate(make_evaluator(devices=1, timesteps=timesteps)), whole, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5)


def test_progress_ends_at_the_number_of_images():
    seen = []
    evaluate(make_evaluator(timesteps=4), report=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 11


def test_sampled_timesteps_give_an_unbiased_estimate(exact):
    """Over 60 seeds, each image is within 4 standard errors of the exact sum; the seeds differ."""
    bits = exact[2]
    quick = make_evaluator(timesteps=6)
    estimates = []
    for seed in range(60):
        t, weights, some, *_ = evaluate(quick, seed)
        assert (t[:, :2] == 0).all()
        assert (t[:, 2:] > 0).all()
        estimates.append((weights * some).sum(axis=1))
    mean, error = np.mean(estimates, axis=0), np.std(estimates, axis=0, ddof=1) / np.sqrt(60)
    assert (error > 0).all()
    # The exact sum is noisy too: it has one sample of x_t for each t.
    one = make_evaluator()
    own = np.std([evaluate(one, seed)[2].sum(axis=1) for seed in range(1, 9)], axis=0, ddof=1)
    assert (np.abs(mean - bits.sum(axis=1)) < 4 * np.hypot(error, own)).all()


def test_sampled_timesteps_are_the_same_on_any_number_of_devices():
    for got, want in zip(
        evaluate(make_evaluator(devices=1, batch_size=5, timesteps=4)), evaluate(make_evaluator(timesteps=4)), strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize("timesteps", [2, 5, 20])
def test_invalid_numbers_of_timesteps(timesteps):
    with pytest.raises(ValueError, match="use an even number from 4 to below 20"):
        make_evaluator(timesteps=timesteps)

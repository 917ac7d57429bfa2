"""Recorded chains and terms of the bound are those of the library; and the chains that fit into a page."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import vlb
from ddpm_jax.diffusion.parameterization import Parameterization
from ddpm_jax.diffusion.schedules import make_schedule, respace
from ddpm_jax.diffusion.spacings import spaced_timesteps
from ddpm_jax.evaluation import recorded_chains
from ddpm_jax.evaluation.recorded_chains import plan_chains
from ddpm_jax.runtime.errors import NumericalError
from ddpm_jax.samplers import make_sampler, sampler

FULL = make_schedule("cosine", 100)
PARAMETERIZATION = Parameterization("eps", "fixed_large", clip_denoised=True)
SHAPE = (4, 4, 1)
CASES = [("ancestral", 7), ("ddim", 3)]


@jax.jit
def denoise_fn(x_t, t):
    return jnp.tanh(x_t) * (1 + t[:, None, None, None] / 100)


def keys_of(count):
    return jax.random.split(jax.random.key(3), count)


@pytest.mark.parametrize(("name", "steps", "saved"), [("ancestral", 12, 5), ("ddim", 3, 3), ("heun", 4, 4)])
def test_chains_are_those_of_the_scan(name, steps, saved):
    """x_t and pred_xstart of each stage, and the image; 1e-5, since the scan is compiled as one program."""
    chain = respace(FULL, spaced_timesteps(100, steps, "trailing"))
    made = make_sampler(name, chain, PARAMETERIZATION)
    reported = []
    found = recorded_chains.record_chain(made, denoise_fn, keys_of(2), SHAPE, num_stages=5, report=reported.append)
    stages = np.arange(saved) * steps // saved
    wanted = sampler.sample(made, denoise_fn, keys_of(2), SHAPE, save_steps=stages.tolist())
    np.testing.assert_allclose(found.x_t, wanted.saved_x, atol=1e-5)
    np.testing.assert_allclose(found.pred_xstart, wanted.saved_pred_xstart, atol=1e-5)
    np.testing.assert_allclose(found.images, wanted.x, atol=1e-5)
    assert found.t.tolist() == chain.timesteps[::-1][stages].tolist()
    assert reported == list(range(1, steps + 1))


def test_a_chain_that_diverges_is_an_error():
    made = make_sampler("ddim", respace(FULL, [50, 99]), PARAMETERIZATION)
    with pytest.raises(NumericalError, match="NaN or infinite"):
        recorded_chains.record_chain(made, lambda x_t, t: x_t * jnp.nan, keys_of(1), SHAPE, num_stages=2)


def test_terms_are_those_of_the_bound():
    x_start = np.random.default_rng(0).integers(0, 256, (3, *SHAPE)).astype(np.float32) / 127.5 - 1
    t = np.array([0, 10, 99])
    found = recorded_chains.bound_terms(FULL, PARAMETERIZATION, denoise_fn, x_start, keys_of(3), t, num_levels=256)
    wanted = vlb.scan_vlb_terms(FULL, PARAMETERIZATION, denoise_fn, jnp.asarray(x_start), keys_of(3), first_t=0, count=100)
    assert tuple(found) == wanted._fields
    for name, ours in found.items():
        assert ours.dtype == np.float64
        np.testing.assert_allclose(ours, np.asarray(getattr(wanted, name))[t], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("image_bytes", [64, 784, 3072, 12_288, 196_608, 3_000_000])
@pytest.mark.parametrize("rows", [1, 10, 1000])
def test_planned_chains_fit(image_bytes, rows):
    plan = plan_chains(CASES * 3, image_bytes=image_bytes, num_rows=rows, num_seeds=2, max_bytes=4_000_000)
    size = 2 * image_bytes * (plan.stages + 1) * plan.rows * plan.seeds * len(plan.cases)
    assert size <= 4_000_000 or (plan.rows, plan.seeds, len(plan.cases)) == (1, 1, 1)
    assert 1 <= plan.seeds <= 2
    assert 1 <= plan.rows <= min(rows, 20)


def test_small_images_have_every_chain_and_large_ones_fewer():
    small = plan_chains(CASES, image_bytes=64, num_rows=10, num_seeds=2, max_bytes=4_000_000)
    assert small == (CASES, 10, 2, 25)
    medium = plan_chains(CASES, image_bytes=12_288, num_rows=10, num_seeds=2, max_bytes=4_000_000)
    assert (medium.rows, medium.seeds) == (3, 1)
    many = plan_chains(CASES * 3, image_bytes=12_288, num_rows=10, num_seeds=2, max_bytes=6_000_000)
    assert (many.rows, many.seeds, many.stages, len(many.cases)) == (3, 1, 10, 6)
    large = plan_chains(CASES, image_bytes=196_608, num_rows=10, num_seeds=2, max_bytes=4_000_000)
    assert (large.rows, large.seeds, large.stages, large.cases) == (1, 1, 5, CASES[:1])

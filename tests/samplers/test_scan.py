"""The scan that runs any sampler: equal to a loop, in chunks or at once, alone or in a batch, on one device or two."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact_denoisers import FULL, SHAPE, build, curved, run_loop, shorten, some_keys
from jax.sharding import AxisType

from ddpm_jax.diffusion import pixels
from ddpm_jax.samplers import sampler
from ddpm_jax.samplers.batched import BatchedSampler


@pytest.fixture(scope="module", params=["ancestral-large", "dpmpp_2m_sde", "unipc-3", "heun-churn"])
def chain(request):
    """A sampler of seven steps, keys, and the results of the loop."""
    sampled = build(request.param, shorten(FULL, 7), "v", clip_denoised=True)
    keys = some_keys(3)
    return sampled, keys, run_loop(sampled, curved, keys)


def scan(sampled, keys, save_steps=()):
    return jax.jit(lambda keys: sampler.sample(sampled, curved, keys, SHAPE, save_steps=save_steps))(keys)


def test_scan_equals_the_loop_and_saves_the_requested_steps(chain):
    """Steps in any order, stacked in that order; 1e-4, since `curved` amplifies the last bit."""
    sampled, keys, (xs, pred_xstarts, x) = chain
    save_steps = (6, 0, 3)
    state = scan(sampled, keys, save_steps)
    np.testing.assert_allclose(state.x, x, atol=1e-4)
    assert state.saved_x.shape == state.saved_pred_xstart.shape == (3, 3, *SHAPE)
    np.testing.assert_allclose(state.saved_x, np.swapaxes(xs[list(save_steps)], 0, 1), atol=1e-4)
    np.testing.assert_allclose(state.saved_pred_xstart, np.swapaxes(pred_xstarts[list(save_steps)], 0, 1), atol=1e-4)
    np.testing.assert_array_equal(state.saved_x[:, 1], sampler.per_image_noise(keys, 0, SHAPE))


def test_saving_nothing_needs_no_memory(chain):
    sampled, keys, (_, _, x) = chain
    state = scan(sampled, keys)
    assert state.saved_x.shape == state.saved_pred_xstart.shape == (3, 0, *SHAPE)
    np.testing.assert_allclose(state.x, x, atol=1e-4)


def test_chunks_equal_the_whole_chain(chain):
    """Steps 0-2, 3-5 by one compilation with a traced first step, then 6; saved steps are in different chunks."""
    sampled, keys, _ = chain
    traces = []

    @functools.partial(jax.jit, static_argnames="count")
    def chunk(state, keys, first_step, count):
        traces.append(count)
        return sampler.run_steps(sampled, curved, state, keys, first_step=first_step, count=count, save_steps=(1, 4, 6))

    state = jax.jit(lambda keys: sampler.init_state(sampled, keys, SHAPE, num_saved=3))(keys)
    for first_step, count in ((0, 3), (3, 3), (6, 1)):
        state = chunk(state, keys, jnp.int32(first_step), count=count)
    assert traces == [3, 1]
    for got, want in zip(jax.tree.leaves(state), jax.tree.leaves(scan(sampled, keys, (1, 4, 6))), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-4)


def test_a_last_chunk_ends_with_the_chain(chain):
    """Chunks of four of seven steps, by one compilation: the eighth is not taken."""
    sampled, keys, _ = chain

    @jax.jit
    def chunk(state, keys, first_step):
        return sampler.run_steps(sampled, curved, state, keys, first_step=first_step, count=4, save_steps=(1, 4, 6))

    state = jax.jit(lambda keys: sampler.init_state(sampled, keys, SHAPE, num_saved=3))(keys)
    for first_step in (0, 4):
        state = chunk(state, keys, jnp.int32(first_step))
    for got, want in zip(jax.tree.leaves(state), jax.tree.leaves(scan(sampled, keys, (1, 4, 6))), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-4)


def test_an_image_depends_only_on_its_own_key(chain):
    sampled, keys, _ = chain
    np.testing.assert_allclose(scan(sampled, keys[1:2]).x, scan(sampled, keys).x[1:2], atol=1e-4)


@pytest.mark.parametrize("setting", ["unipc", "dpmpp_2m_sde", "heun-churn", "ode"])
def test_carry_and_inner_loops_work_in_the_batched_sampler(setting):
    """Levels of the images of the plain scan, generated on two devices in chunks: the carry is sharded like x."""
    sampled = build(setting, shorten(FULL, 20, "karras"), "v", clip_denoised=True)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    made = BatchedSampler(sampled, lambda params, labels: gentle, mesh, image_shape=SHAPE, batch_size=4)
    made.chunk_size = 4
    (batch,) = made.generate({}, jax.random.key(0), num_images=4)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(0), jnp.arange(4))
    state = jax.jit(lambda keys: sampler.sample(sampled, gentle, keys, SHAPE))(keys)
    np.testing.assert_array_equal(batch.images, pixels.to_uint8(state.x))


def gentle(x_t, t):
    """As `curved`, but with slopes of at most 1: it does not amplify the last bit."""
    return jnp.sin(x_t + 0.002 * t.astype(jnp.float32)[:, None, None, None])

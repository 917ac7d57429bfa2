"""Sharded training of a network that suits no mesh: prime widths, layers in one array, a kernel with two uses, in bfloat16.

With micro-batches, recomputed layers, dropout, Muon and several averages; and resumed on another number of devices.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import losses
from ddpm_jax.diffusion.parameterization import Parameterization
from ddpm_jax.diffusion.schedules import make_schedule
from ddpm_jax.runtime.checkpoint import CheckpointManager
from ddpm_jax.runtime.mesh import batch_sharding, make_mesh, replicated, training_mesh
from ddpm_jax.training import device_grads, fsdp
from ddpm_jax.training.ema_tracker import EmaTracker
from ddpm_jax.training.optimizer import make_optimizer
from ddpm_jax.training.state import TrainState, create_state
from ddpm_jax.training.step import train_step

B, WIDTH, RATE = 48, 127, np.float32(1e-3)
MESHES = {"8": (8, 8), "2 x 4": (8, 4), "3": (3, 3), "replicated": (8, 1)}  # devices, those of a copy
AVERAGING = EmaTracker(extra_decays=(0.9, 0.99), power_sigma_rel=(0.1,))


class Layer(nn.Module):
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, h, time):
        update = nn.Dense(WIDTH, dtype=self.dtype, name="dense")(nn.LayerNorm(name="norm")(h) + time)
        return h + nn.Dropout(0.1, deterministic=False)(nn.tanh(update)), None


class Odd(nn.Module):
    dtype: jnp.dtype = jnp.bfloat16

    @nn.compact
    def __call__(self, x, t):
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (64, WIDTH))
        time = nn.Dense(WIDTH, dtype=self.dtype, name="time")(t[:, None] / 100)
        layers = nn.scan(
            nn.remat(Layer),
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            length=3,
            in_axes=nn.broadcast,
        )
        h = x.reshape(-1, 64).astype(self.dtype) @ kernel.astype(self.dtype)
        h, _ = layers(self.dtype, name="layers")(h.astype(jnp.float32), time)
        return (h.astype(self.dtype) @ kernel.T.astype(self.dtype)).astype(jnp.float32).reshape(x.shape)


def mesh_of(name):
    devices, size = MESHES[name]
    return training_mesh(make_mesh(jax.devices()[:devices]), fsdp=size)


@functools.cache
def compiled(name, dtype=jnp.bfloat16):
    """The step on a mesh, and the state at step 0."""
    mesh, network = mesh_of(name), Odd(dtype)
    optimizer = make_optimizer("muon", clip_norm=0.5, skip_nonfinite=2)

    def apply(params, x_t, t, cond, dropout_key):
        return network.apply({"params": params}, x_t, t.astype(jnp.float32), rngs={"dropout": dropout_key})

    def create(key):
        def init(key):
            return network.init({"params": key, "dropout": key}, jnp.zeros((1, 8, 8, 1)), jnp.zeros(1))["params"]

        return create_state(init, optimizer, key, averaging=AVERAGING)

    step = functools.partial(
        train_step,
        apply_fn=apply,
        schedule=make_schedule("cosine", 100),
        optimizer=optimizer,
        parameterization=Parameterization("eps", "fixed_large", clip_denoised=True),
        loss_fn=losses.make_loss("simple"),
        ema_decay=0.99,
        random_flip=True,
        averaging=AVERAGING,
        accumulation_steps=2,
        skip_nonfinite=2,
        **device_grads.train_step_options(mesh),
    )
    with jax.debug_key_reuse(False):  # `create` uses a key for parameters and dropout
        shardings = fsdp.state_sharding(mesh, jax.eval_shape(create, jax.random.key(1)))
        state = jax.jit(create, out_shardings=shardings)(jax.random.key(1))
    jitted = jax.jit(step, out_shardings=(shardings, replicated(mesh)))
    return jitted.lower(state, batch_of(0, mesh), jax.random.key(0), RATE).compile(), state


def batch_of(step, mesh):
    images = np.random.default_rng(step).integers(0, 256, (B, 8, 8, 1)).astype(np.uint8)
    return {"image": jax.device_put(images, batch_sharding(mesh))}


def run(name, steps, state=None, **options):
    """Losses of these steps, and the state after them."""
    program, start = compiled(name, **options)
    state, found, mesh = start if state is None else state, [], mesh_of(name)
    for number in steps:
        state, metrics = program(state, batch_of(number, mesh), jax.device_put(jax.random.key(0), replicated(mesh)), RATE)
        found.append(float(metrics["loss"]))
    return found, state


@functools.cache
def start_of(name):
    return run(name, range(3))


def shardings_of(name):
    return fsdp.tree_sharding(mesh_of(name), compiled(name)[1].params)


@pytest.mark.parametrize("name", ["8", "2 x 4", "3"])
def test_losses_and_parameters_are_those_of_replicated_training(name):
    """Up to the rounding of gradients to bfloat16: the updates of those near 0, which Adam makes as large as all others."""
    found, state = start_of(name)
    expected, other = start_of("replicated")
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    leaves = jax.tree.leaves((state.params, other.params, compiled("replicated")[1].params, shardings_of(name)))
    count = len(leaves) // 4
    for leaf, want, start, sharding in zip(*(leaves[i : i + count] for i in range(0, 4 * count, count)), strict=True):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
        assert np.linalg.norm(leaf - np.asarray(want)) <= 0.2 * np.linalg.norm(want - np.asarray(start))
    assert not all(sharding.is_fully_replicated for sharding in leaves[-count:])


def test_in_float32_losses_are_equal_to_1e_6():
    found, _ = run("3", range(3), dtype=jnp.float32)
    expected, _ = run("replicated", range(3), dtype=jnp.float32)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_run_on_8_devices_is_resumed_on_3(tmp_path):
    """From the bits of its checkpoint, and with the losses of an uninterrupted run."""
    _, state = start_of("8")
    with CheckpointManager(tmp_path, max_to_keep=1) as checkpoints:
        checkpoints.save(3, state.fields(), wait=True)
        fields, _ = checkpoints.restore(fsdp.abstract_state(mesh_of("3"), state).fields())
    restored = TrainState.from_fields(fields)
    for got, want in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(got, want)
    resumed, _ = run("3", range(3, 6), restored)
    expected, _ = run("8", range(3, 6), state)
    np.testing.assert_allclose(resumed, expected, rtol=2e-3)

"""What the layers for training on accelerators have in common with those of other platforms."""

import functools
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.models import group_norm, layers, tpu_upsampling, training_layers
from ddpm_jax.models.hashed_dropout import HashedDropout
from ddpm_jax.models.unet import UNet
from ddpm_jax.runtime import mesh as meshes


def mesh_of(platform):
    return types.SimpleNamespace(devices=np.array([types.SimpleNamespace(platform=platform)]))


def test_training_on_accelerators_has_its_own_layers():
    own_norm, own_block = UNet(norm_fn=group_norm.linen_norm), UNet(block_class=training_layers.GpuResidualBlock)
    fast = UNet(norm_fn=group_norm.training_norm, block_class=training_layers.GpuResidualBlock)
    assert training_layers.for_training(UNet(), mesh_of("gpu")) == fast
    assert training_layers.for_training(own_norm, mesh_of("gpu")) == own_norm
    assert training_layers.for_training(own_block, mesh_of("gpu")) == fast
    on_tpus = UNet(dropout_class=HashedDropout, upsample_conv_fn=tpu_upsampling.upsample_conv)
    assert training_layers.for_training(UNet(), mesh_of("tpu")) == on_tpus
    own_conv = UNet(upsample_conv_fn=jax.lax.conv_general_dilated)
    assert training_layers.for_training(own_conv, mesh_of("tpu")).upsample_conv_fn is jax.lax.conv_general_dilated
    assert training_layers.for_training(UNet(), meshes.make_mesh()) == UNet()
    for platform in ("tpu", "gpu"):
        assert training_layers.for_training(nn.Dense(3), mesh_of(platform)) == nn.Dense(3)


def random_params(network, *inputs):
    """Parameters of a network, none of whose layers are 0."""
    shapes, generator = jax.eval_shape(network.init, jax.random.key(1), *inputs), np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(0.3 * generator.normal(size=leaf.shape), jnp.float32), shapes)


def test_a_network_for_training_on_accelerators_has_the_same_gradient():
    """With dropout, whose mask has the same bits. Tolerance: float32 rounding, relative to the largest number of each array."""
    plain = UNet(1, 8, (1,), 1, (8,), dropout=0.5, norm_fn=group_norm.linen_norm, remat=True)
    fast = plain.clone(norm_fn=group_norm.training_norm, block_class=training_layers.GpuResidualBlock)
    x, t = jax.random.normal(jax.random.key(0), (2, 8, 8, 1)), jnp.array([3, 700])
    params = random_params(plain, x, t)
    assert jax.tree.map(jnp.shape, random_params(fast, x, t)) == jax.tree.map(jnp.shape, params)

    def gradient(network):
        def loss(params):
            output = network.apply(params, x, t, deterministic=False, rngs={"dropout": jax.random.key(2)})
            return jnp.mean((output - x) ** 2)

        return jax.jit(jax.value_and_grad(loss))(params)

    for got, want in zip(*(jax.tree.leaves(gradient(network)) for network in (fast, plain)), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max() + 1e-7)


def block_gradients(kind, options, dtype, features=8):
    """Outputs of 16 residual blocks with dropout, and the gradients of their parameters, of x and of the time embedding."""
    block = kind(features, 4, 0.5, dtype=dtype, norm_fn=group_norm.linen_norm, name="block", **options)

    def of_block(key):
        x, temb = jax.random.normal(key, (4, 4, 4, 8)).astype(dtype), jax.random.normal(jax.random.fold_in(key, 1), (4, 6))
        leaves, tree = jax.tree.flatten(
            jax.eval_shape(functools.partial(block.init, deterministic=True), key, x, temb)["params"]
        )
        drawn = [0.3 * jax.random.normal(jax.random.fold_in(key, n), leaf.shape) for n, leaf in enumerate(leaves, 2)]

        def apply(params, x, temb):
            prepared = kind.prepare(temb.astype(dtype), {"block": params, "conv_in": {"kernel": 0}})
            return block.apply({"params": params}, x, prepared, False, rngs={"dropout": key})

        y, vjp = jax.vjp(apply, jax.tree.unflatten(tree, drawn), x, temb)
        return y, *vjp(jnp.cos(3 * y))

    gradients = jax.jit(jax.vmap(of_block))(jax.random.split(jax.random.key(0), 16))
    return [np.float32(leaf) for leaf in jax.tree.leaves(gradients)]


def relative_errors(got, want):
    return np.array([np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(got, want, strict=True)])


BLOCKS = [
    {"options": {}},
    {"options": {"resample": "up"}, "features": 12},
    {"options": {"scale_shift": True, "resample": "down"}, "features": 12},
]


@pytest.mark.parametrize("case", BLOCKS)
def test_residual_blocks_for_gpus_are_residual_blocks(case):
    """In float32 to its rounding; in bfloat16 they are as near to float32 as the others."""
    plain, fast = layers.ResidualBlock, training_layers.GpuResidualBlock
    want = block_gradients(plain, dtype=jnp.float32, **case)
    assert relative_errors(block_gradients(fast, dtype=jnp.float32, **case), want).max() < 1e-5
    rounding = relative_errors(block_gradients(plain, dtype=jnp.bfloat16, **case), want)
    ours = relative_errors(block_gradients(fast, dtype=jnp.bfloat16, **case), want)
    assert (ours < 1.2 * rounding).all()

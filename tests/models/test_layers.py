"""What the layers for training on accelerators have in common with those of other platforms."""

import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.models import group_norm, layers
from ddpm_jax.models.unet import UNet
from ddpm_jax.runtime import mesh as meshes


def mesh_of(platform):
    return types.SimpleNamespace(devices=np.array([types.SimpleNamespace(platform=platform)]))


def test_training_on_accelerators_has_its_own_norm_and_dropout():
    own = UNet(norm_fn=group_norm.linen_norm)
    assert layers.for_training(UNet(), mesh_of("gpu")) == UNet(norm_fn=group_norm.training_norm)
    assert layers.for_training(own, mesh_of("gpu")) == own
    assert layers.for_training(UNet(), mesh_of("tpu")) == UNet(dropout_class=layers.StoredDropout)
    assert layers.for_training(UNet(), meshes.make_mesh()) == UNet()
    assert layers.for_training(nn.Dense(3), mesh_of("tpu")) == nn.Dense(3)


def test_a_network_for_training_on_accelerators_has_the_same_gradient():
    """With dropout, whose mask has the same bits. Tolerance: float32 rounding, relative to the largest number of each array."""
    plain = UNet(1, 8, (1,), 1, (8,), dropout=0.5, norm_fn=group_norm.linen_norm)
    fast = plain.clone(norm_fn=group_norm.training_norm, dropout_class=layers.StoredDropout)
    x, t = jax.random.normal(jax.random.key(0), (2, 8, 8, 1)), jnp.array([3, 700])
    shapes = jax.eval_shape(plain.init, jax.random.key(1), x, t)
    assert jax.eval_shape(fast.init, jax.random.key(1), x, t) == shapes
    generator = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: jnp.asarray(0.3 * generator.normal(size=leaf.shape), jnp.float32), shapes)

    def gradient(network):
        def loss(params):
            output = network.apply(params, x, t, deterministic=False, rngs={"dropout": jax.random.key(2)})
            return jnp.mean((output - x) ** 2)

        return jax.jit(jax.value_and_grad(loss))(params)

    for got, want in zip(*(jax.tree.leaves(gradient(network)) for network in (fast, plain)), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max() + 1e-7)


def test_stored_dropout_is_dropout():
    """The same bits, the gradient included; the identity if deterministic or with rate 0."""
    x = jax.random.normal(jax.random.key(0), (4, 50)).at[0].set(jnp.nan)

    def drop(kind, rate=0.3, deterministic=False):
        apply = lambda x: kind(rate).apply({}, x, deterministic, rngs={"dropout": jax.random.key(1)})  # noqa: E731
        y, vjp = jax.vjp(apply, x)
        return y, *vjp(x)

    for options in ({}, {"deterministic": True}, {"rate": 0.0}):
        for got, want in zip(drop(layers.StoredDropout, **options), drop(nn.Dropout, **options), strict=True):
            np.testing.assert_array_equal(got, want)
    text = jax.jit(lambda x: drop(layers.StoredDropout)).lower(x).as_text()
    assert text.count("stablehlo.optimization_barrier") == 1

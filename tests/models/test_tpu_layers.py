"""Layers in the forms for TPUs: the same network, with sums that are at least as exact."""

import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.models import group_norm as norms
from ddpm_jax.models import tpu_layers
from ddpm_jax.models.layers import ResidualBlock, dense
from ddpm_jax.models.unet import UNet


class Network(nn.Module):
    """A convolution, a dense layer on pixels, one without a bias, and one on vectors."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        x = nn.swish(nn.Conv(8, (3, 3), dtype=self.dtype)(x))
        x = dense(8, dtype=self.dtype)(x).reshape(x.shape[0], -1, 8)
        x = nn.Dense(4, use_bias=False, dtype=self.dtype)(nn.swish(x))
        return nn.Dense(3, dtype=self.dtype)(x[:, 0]).astype(jnp.float32)


def gradient(apply, params, x):
    def loss(params):
        return jnp.mean(jnp.square(apply({"params": params}, x) - 1))

    return jax.jit(jax.value_and_grad(loss))(params)


@pytest.fixture(scope="module")
def inputs():
    generator = np.random.default_rng(0)
    x = jnp.asarray(generator.normal(size=(4, 6, 8, 2)), jnp.float32)
    shapes = jax.eval_shape(Network(jnp.float32).init, jax.random.key(0), x)["params"]
    return jax.tree.map(lambda leaf: jnp.asarray(generator.normal(size=leaf.shape) * 0.5, jnp.float32), shapes), x


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-6), (jnp.bfloat16, 2e-2)])
def test_a_network_has_the_same_output_and_gradient(inputs, dtype, tolerance):
    """Tolerance: rounding, relative to the largest gradient of each array."""
    network = Network(dtype)
    wrapped = tpu_layers.for_tpus(network.apply)
    (loss, grads), (want_loss, want) = (gradient(apply, *inputs) for apply in (wrapped, network.apply))
    assert loss == pytest.approx(float(want_loss), rel=tolerance)
    assert jax.tree.structure(grads) == jax.tree.structure(want)
    for (path, got), expected in zip(jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(want), strict=True):
        assert got.dtype == jnp.float32
        bound = tolerance * np.abs(expected).max()
        np.testing.assert_allclose(got, expected, rtol=0, atol=bound, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize("shape", [(5, 3), (2, 48, 3), (2, 16, 5, 3), (2, 7, 5, 3), (2, 96, 4, 3)])
def test_sums_are_those_of_float64(shape):
    """The numbers are bfloat16, and are added in float32. A sum in bfloat16 would err by 1e-2."""
    x = jnp.asarray(np.random.default_rng(1).uniform(size=shape), jnp.bfloat16)
    got = tpu_layers.channel_sums(x)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, np.float64(x).reshape(-1, 3).sum(0), rtol=1e-6)


def test_pixels_are_not_flattened():
    """By layers whose matrix product is that of `layers.dense`; others keep theirs."""
    x = jnp.ones((2, 4, 4, 3))

    def products(layer):
        params = layer.init(jax.random.key(0), x)
        text = jax.jit(tpu_layers.for_tpus(layer.apply)).lower(params, x).as_text()
        return [line for line in text.splitlines() if "stablehlo.dot_general" in line]

    (line,) = products(dense(8))
    assert "(tensor<2x4x4x3xf32>, tensor<3x8xf32>)" in line

    def halved(*args, **options):
        return jax.lax.dot_general(args[0].reshape(-1, 3), args[1], (((1,), (0,)), ((), ())), **options).reshape(2, 4, 4, 8) / 2

    (line,) = products(nn.Dense(8, dot_general=halved))
    assert "(tensor<32x3xf32>, tensor<3x8xf32>)" in line


def test_norms_of_concatenations_sum_each_part(monkeypatch):
    """In the decoder, and in a block of the encoder that widens; not those with a norm of the user's choice."""
    channels = []

    def norm_of_parts(x, *args, size, **options):
        channels.append((x.shape[-1], size))
        return norms.group_norm(x, *args, **options)

    monkeypatch.setattr(tpu_layers, "norm_of_parts", norm_of_parts)
    found = [(8, 8), (32, 16), (24, 8), (24, 8), (16, 8)]
    for options, want in (({}, found), ({"norm_fn": norms.linen_norm}, [])):
        network = UNet(1, 8, (1, 2), 1, (), mid_attention=False, **options)
        x, t = jnp.ones((2, 8, 8, 1)), jnp.ones(2)
        params = jax.eval_shape(network.init, jax.random.key(0), x, t)
        output = jax.eval_shape(tpu_layers.for_tpus(network.apply), params, x, t)
        assert output.shape == x.shape
        assert channels == want
        channels.clear()


@pytest.mark.parametrize(("channels", "features", "want"), [(24, 16, 8), (24, 22, 24), (20, 10, 10)])
def test_widths_with_many_parts_are_summed_as_a_whole(monkeypatch, channels, features, want):
    sizes = []
    monkeypatch.setattr(tpu_layers, "norm_of_parts", lambda x, *args, size, **options: sizes.append(size) or x)
    block, x, temb = ResidualBlock(features, groups=2), jnp.ones((1, 2, 2, channels)), jnp.ones((1, 4))
    params = jax.eval_shape(lambda: block.init(jax.random.key(0), x, temb, True))
    jax.eval_shape(lambda params: tpu_layers.for_tpus(block.apply)(params, x, temb, True), params)
    assert sizes == [want]


def test_only_tpus_with_whole_parameters_have_their_own_layers():
    def mesh_of(platform, *axes):
        devices = np.array([types.SimpleNamespace(platform=platform)])
        return types.SimpleNamespace(devices=devices, axis_names=axes)

    apply = Network(jnp.float32).apply
    assert tpu_layers.for_mesh(apply, mesh_of("tpu", "data")) is not apply
    assert tpu_layers.for_mesh(apply, mesh_of("tpu", "data", "fsdp")) is apply
    assert all(tpu_layers.for_mesh(apply, mesh_of(platform, "data")) is apply for platform in ("cpu", "gpu"))

"""Gradients of bfloat16 layers are summed over the devices in float32, and are otherwise those of the network as it is."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from ddpm_jax.models import grad_sums, training_layers
from ddpm_jax.models.unet import UNet
from ddpm_jax.runtime import mesh as meshes

B = 16
NETWORK = functools.partial(UNet, out_channels=1, ch=8, ch_mult=(1,), num_res_blocks=1, attn_resolutions=(8,), norm_groups=2)


@pytest.fixture(scope="module")
def mesh():
    return meshes.make_mesh(jax.devices()[:2])


@pytest.fixture(scope="module")
def inputs(mesh):
    """(params, x, t, dropout key) of a network that is not 0: replicated, and sharded over two devices."""
    random, rows = np.random.default_rng(0), NamedSharding(mesh, PartitionSpec("data"))
    x = jnp.asarray(random.normal(size=(B, 8, 8, 1)), jnp.float32)
    params = NETWORK(dropout=0.0).init(jax.random.key(0), x[:2], jnp.zeros(2), None)["params"]
    params = jax.tree.map(lambda leaf: jnp.asarray(random.normal(size=leaf.shape) * 0.2, jnp.float32), params)
    t = jnp.arange(B, dtype=jnp.float32) * 50
    return jax.device_put(params, meshes.replicated(mesh)), jax.device_put(x, rows), jax.device_put(t, rows), jax.random.key(5)


def gradient_fn(wrap, **options):
    network = NETWORK(dtype=jnp.bfloat16, **options)
    apply = wrap(network.apply)

    def loss(params, x, t, key):
        output = apply({"params": params}, x, t, None, deterministic=False, rngs={"dropout": key})
        return jnp.mean(jnp.square(output - x))

    return jax.jit(jax.value_and_grad(loss))


def sums(fn, *inputs):
    """Type of each sum over devices in the program as it is handed to XLA."""
    text = fn.lower(*inputs).as_text()
    return re.findall(r'"stablehlo\.all_reduce".*?\}\) : \(tensor<(?:\d+x)*(\w+)>', text, re.DOTALL)


def test_sums_are_of_float32_and_change_nothing_else(mesh, inputs):
    """With dropout, whose mask is drawn for all examples, and remat. All differs by the rounding of bfloat16 only."""
    options = {"dropout": 0.1, "remat": True}
    wrapped = gradient_fn(functools.partial(grad_sums.in_float32, mesh=mesh), **options)
    plain = gradient_fn(lambda apply: apply, **options)
    types = sums(wrapped, *inputs)
    layers = [name for name in jax.tree_util.tree_leaves_with_path(inputs[0]) if "norm" not in str(name[0])]
    assert set(types) == {"f32"}
    assert len(types) >= len(layers)
    assert sums(plain, *inputs) == []  # XLA adds its own, later
    (loss, grads), (expected, wanted) = wrapped(*inputs), plain(*inputs)
    assert loss == pytest.approx(float(expected), rel=2e-3)
    for (path, got), want in zip(jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(wanted), strict=True):
        assert got.dtype == jnp.float32
        size = np.linalg.norm(want)
        assert np.linalg.norm(got - want) <= 0.02 * size + 1e-6, (jax.tree_util.keystr(path), size)


def test_blocks_for_gpus_also_sum_in_float32(mesh, inputs):
    """Their layers are applied to parameters of several layers."""
    wrap = functools.partial(grad_sums.in_float32, mesh=mesh)
    types = sums(gradient_fn(wrap, dropout=0.1, remat=True, block_class=training_layers.GpuResidualBlock), *inputs)
    layers = [name for name in jax.tree_util.tree_leaves_with_path(inputs[0]) if "norm" not in str(name[0])]
    assert set(types) == {"f32"}
    # Of 5 projections, one kernel and no bias; no bias of 5 convolutions before a norm; 2 shortcuts share a bias with another.
    assert len(types) >= len(layers) - 4 - 5 - 5 - 2


def test_the_sum_is_that_of_the_gradients_of_each_device(mesh, inputs):
    """A layer by itself: the gradients of the devices, which are bfloat16, added in float32."""
    layer = nn.Dense(8, dtype=jnp.bfloat16)
    _, x, *_ = inputs
    x = x.reshape(B, -1)
    params = {"kernel": jnp.asarray(np.random.default_rng(1).normal(size=(64, 8)), jnp.float32), "bias": jnp.zeros(8)}

    def loss(params, x, apply=layer.apply):
        return jnp.sum(jnp.square(apply({"params": params}, x).astype(jnp.float32)))

    got = jax.jit(jax.grad(functools.partial(loss, apply=grad_sums.in_float32(layer.apply, mesh))))(params, x)
    each = jax.jit(jax.vmap(jax.grad(loss), in_axes=(None, 0)))(params, np.asarray(x).reshape(2, -1, 64))
    for name, leaf in each.items():
        assert np.array_equal(leaf.astype(jnp.bfloat16), leaf)  # rounded
        np.testing.assert_allclose(got[name], np.sum(np.asarray(leaf, np.float64), axis=0), rtol=1e-5, atol=1e-4)
        assert not np.array_equal(got[name].astype(jnp.bfloat16), got[name])


def test_the_gradient_of_a_class_embedding_adds_up_examples_in_float32():
    network, arguments = NETWORK(dtype=jnp.bfloat16, num_classes=3), (jnp.zeros((4, 8, 8, 1)), jnp.zeros(4), jnp.zeros(4, int))
    params = jax.eval_shape(network.init, jax.random.key(0), *arguments)
    program = jax.make_jaxpr(jax.grad(lambda params: jnp.sum(network.apply(params, *arguments))))(params)
    assert re.findall(r":(\w+)\[3,32\] = scatter-add", str(program)) == ["f32"]


def test_layers_without_an_axis_of_examples_are_left_as_they_are(mesh):
    """A constant, an odd number of rows, and one image without a batch."""
    constants = {"row": jnp.ones(4), "rows": jnp.ones((3, 4)), "image": jnp.ones((8, 8, 4))}
    for name, x in constants.items():
        layer = nn.Conv(2, (3, 3), dtype=jnp.bfloat16) if name == "image" else nn.Dense(2, dtype=jnp.bfloat16)
        params = layer.init(jax.random.key(0), x)
        np.testing.assert_array_equal(grad_sums.in_float32(layer.apply, mesh)(params, x), layer.apply(params, x))


def test_only_several_accelerators_need_it(mesh):
    class Device:
        platform, process_index, slice_index = "tpu", 0, 0

    def of(*shape, platform="tpu"):
        devices = np.empty(shape, object)
        for index in np.ndindex(*shape):
            devices[index] = type("", (Device,), {"platform": platform})()
        return type("", (), {"devices": devices, "size": devices.size, "axis_names": ("data", "fsdp")[: len(shape)]})()

    assert grad_sums.is_useful(of(8))
    assert grad_sums.is_useful(of(2, platform="gpu"))
    assert not grad_sums.is_useful(of(1))
    assert grad_sums.is_useful(of(2, 4))
    assert not grad_sums.is_useful(mesh)

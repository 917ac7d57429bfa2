"""bfloat16 networks whose parameters are sharded: they are gathered in bfloat16, and gradients are summed in float32.

XLA for CPUs sums in float32 anyway; here the CPUs run the program of accelerators.
"""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.models import grad_sums
from ddpm_jax.runtime import mesh as meshes
from ddpm_jax.training import fsdp

B = 16


class Network(nn.Module):
    """Two layers of bfloat16, of which the second is computed again in the backward pass, and a norm of float32."""

    @nn.compact
    def __call__(self, x):
        h = nn.LayerNorm(name="norm")(nn.Dense(64, dtype=jnp.bfloat16, name="first")(x))
        return nn.remat(nn.Dense)(16, dtype=jnp.bfloat16, name="second")(h)


class Stack(nn.Module):
    """Layers whose parameters are one array."""

    @nn.compact
    def __call__(self, x):
        def layer(module, h, _):
            return nn.Dense(64, dtype=jnp.bfloat16, name="layer")(h), None

        return nn.scan(layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)(
            self, x.astype(jnp.bfloat16), None
        )[0]


@pytest.fixture(params=[(1, 4), (2, 2)], ids=["fsdp", "both"])
def mesh(request, monkeypatch):
    monkeypatch.setattr(grad_sums, "is_useful", lambda mesh: True)
    data, size = request.param
    return meshes.training_mesh(meshes.make_mesh(jax.devices()[:4]), data=data, fsdp=size)


def arguments(mesh, network):
    """Sharded parameters, and a batch over all devices."""
    random = np.random.default_rng(0)
    x = random.normal(size=(B, 64)).astype(np.float32)
    params = jax.tree.map(
        lambda leaf: random.normal(size=leaf.shape).astype(np.float32) / 8, network.init(jax.random.key(0), x)["params"]
    )
    return jax.device_put(params, fsdp.tree_sharding(mesh, params)), jax.device_put(x, meshes.batch_sharding(mesh))


def gradient_fn(network, mesh=None):
    """(params, x) -> gradients of a sum over the examples, as in `fsdp.shard_loss` if there is a mesh."""
    apply = network.apply if mesh is None else fsdp.for_mesh(network.apply, mesh)

    def loss(params, x, key=None):
        return jnp.sum(jnp.square(apply({"params": params}, x).astype(jnp.float32))), ()

    return jax.grad(loss if mesh is None else fsdp.shard_loss(loss, mesh), has_aux=True)


def types(operation, text):
    """Element types of what is handed to each of these collectives."""
    return re.findall(rf'"stablehlo\.{operation}".*?: \(tensor<(?:\d+x)*(\w+)>', text, re.DOTALL)


def test_parameters_are_gathered_in_bfloat16_and_gradients_scattered_in_float32(mesh):
    network = Network()
    params, x = arguments(mesh, network)
    text = jax.jit(lambda params, x: gradient_fn(network, mesh)(params, x, None)).lower(params, x).as_text()
    assert types("all_gather", text) == ["bf16"] * 2  # each kernel once, also that of the second layer
    assert types("reduce_scatter", text) == ["f32"] * 2
    assert set(types("all_reduce", text)) == {"f32"}


class Detached(nn.Module):
    """A layer whose module is made with other parameters, as in `training_layers.GpuResidualBlock`: a kernel and a new bias."""

    @nn.compact
    def __call__(self, x):
        if self.is_initializing():
            return nn.Dense(64, dtype=jnp.bfloat16, name="layer")(x)
        params = self.variables["params"]["layer"]
        layer = nn.Dense(64, dtype=jnp.bfloat16, name="other", parent=None)
        return layer.apply({"params": {"kernel": params["kernel"], "bias": 2 * params["bias"]}}, x)


def test_an_array_has_its_copies_wherever_a_layer_uses_it(mesh):
    """The sum of the new bias is of float32, too."""
    network = Detached()
    params, x = arguments(mesh, network)
    text = jax.jit(lambda params, x: gradient_fn(network, mesh)(params, x, None)).lower(params, x).as_text()
    assert types("all_gather", text) == ["bf16"]
    assert types("reduce_scatter", text) == ["f32"]
    assert set(types("all_reduce", text)) == {"f32"}


def test_gradients_are_the_sum_of_those_of_each_device(mesh):
    """A layer by itself: the gradients of each device are bfloat16, their sum is not."""
    network = nn.Dense(64, dtype=jnp.bfloat16)
    params, x = arguments(mesh, network)
    got, _ = jax.jit(lambda params, x: gradient_fn(network, mesh)(params, x, None))(params, x)
    alone, rows = jax.device_put((params, np.asarray(x).reshape(4, -1, 64)), jax.devices()[0])
    each, _ = jax.jit(jax.vmap(gradient_fn(network), in_axes=(None, 0)))(alone, rows)
    for name, leaf in each.items():
        assert np.array_equal(leaf.astype(jnp.bfloat16), leaf), name
        assert not np.array_equal(got[name].astype(jnp.bfloat16), got[name]), name
        np.testing.assert_allclose(got[name], np.sum(np.asarray(leaf, np.float64), axis=0), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    "network", [Network(), Stack(), Detached()], ids=["norm and remat", "parameters of nn.scan", "detached"]
)
def test_the_gradients_are_those_of_the_network_on_one_device(mesh, network):
    """Up to the rounding of bfloat16; sharded like the parameters. Layers in nn.scan have no copies."""
    params, x = arguments(mesh, network)
    got, _ = jax.jit(lambda params, x: gradient_fn(network, mesh)(params, x, None))(params, x)
    expected, _ = jax.jit(gradient_fn(network))(*jax.device_put((params, x), jax.devices()[0]))
    for found, wanted in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert found.sharding.is_equivalent_to(fsdp.leaf_sharding(mesh, found.shape), found.ndim)
        assert np.linalg.norm(np.asarray(found) - wanted) <= 0.01 * np.linalg.norm(wanted)

"""Gradients of networks in bfloat16: each device's own, summed in float32, of sharded parameters that are gathered in bfloat16.

XLA for CPUs sums in float32 anyway; here the CPUs run the program of accelerators.
"""

import functools
import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.models import training_layers
from ddpm_jax.models.group_norm import training_norm
from ddpm_jax.models.unet import UNet
from ddpm_jax.runtime import mesh as meshes
from ddpm_jax.training import device_grads, fsdp, grad_groups

B, WIDTH = 16, 64
BF16 = jnp.bfloat16
MESHES = {"replicated": (4, 1), "fsdp": (1, 4), "both": (2, 2)}


class Remat(nn.Module):
    """Layers of which one is computed again in the backward pass, with dropout, and a norm in float32."""

    @nn.compact
    def __call__(self, x):
        h = nn.LayerNorm(name="norm")(nn.Dense(WIDTH, dtype=BF16, name="first")(x))
        h = nn.Dropout(0.25, deterministic=False)(h)
        return nn.remat(nn.Dense)(WIDTH, dtype=BF16, name="second")(h)


class Scanned(nn.Module):
    """Layers whose parameters are one array."""

    @nn.compact
    def __call__(self, x):
        layer = nn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True, "dropout": True}, length=2)
        return layer(name="layers")(x.astype(BF16), None)[0]


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.Dropout(0.25, deterministic=False)(nn.tanh(nn.Dense(WIDTH, dtype=BF16)(x))), None


class Concatenated(nn.Module):
    """A kernel that is made of two, and a bias of two, as in `training_layers.GpuResidualBlock`."""

    @nn.compact
    def __call__(self, x):
        kernels = [self.param(name, nn.initializers.lecun_normal(), (WIDTH, WIDTH)) for name in ("first", "second")]
        bias = self.param("bias", nn.initializers.normal(), (2 * WIDTH,))
        layer = nn.Dense(2 * WIDTH, dtype=BF16, parent=None)
        return layer.apply({"params": {"kernel": jnp.concatenate(kernels, axis=-1), "bias": 2 * bias}}, x)


class Tied(nn.Module):
    """A kernel that is used twice, once transposed."""

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (WIDTH, WIDTH))
        return nn.tanh(x.astype(BF16) @ kernel.astype(BF16)) @ kernel.T.astype(BF16)


class Attention(nn.Module):
    """A layer of Flax with kernels of three axes, and a rank of examples that it does not have first."""

    @nn.compact
    def __call__(self, x):
        tokens = x.reshape(-1, 8, 8)
        return nn.MultiHeadDotProductAttention(4, dtype=BF16, qkv_features=WIDTH, out_features=32)(tokens).reshape(-1, 8 * 32)


class Random(nn.Module):
    """Random numbers for each example, drawn in several ways, and a gain that they have in common."""

    @nn.compact
    def __call__(self, x):
        keys = [self.make_rng("dropout") for _ in range(4)]
        x = nn.Dense(WIDTH, dtype=BF16)(x)
        x = x + jax.random.normal(keys[0], (3, *x.shape)).sum(0)
        each = jax.vmap(lambda key: jax.random.uniform(key, (WIDTH,)))(jax.random.split(keys[1], x.shape[0]))
        once = jax.checkpoint(lambda x: x * jax.random.bernoulli(keys[2], 0.5, (1, WIDTH)))
        return once(x) * each * jax.random.randint(keys[3], (1, 1), 1, 100)


NETWORKS = {kind.__name__: kind() for kind in (Remat, Scanned, Concatenated, Tied, Attention, Random)}


@pytest.fixture(params=MESHES)
def mesh(request):
    return mesh_of(request.param)


def mesh_of(name):
    data, size = MESHES[name]
    return meshes.training_mesh(meshes.make_mesh(jax.devices()[:4]), data=data, fsdp=size)


@functools.cache
def arguments(name, mesh):
    """Parameters as the mesh requires, a batch over all devices, and a key."""
    random = np.random.default_rng(0)
    x = random.normal(size=(B, WIDTH)).astype(np.float32)
    shapes = jax.eval_shape(NETWORKS[name].init, {"params": jax.random.key(0), "dropout": jax.random.key(0)}, x)["params"]
    params = jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype(np.float32) / 8, shapes)
    params = jax.device_put(params, fsdp.tree_sharding(mesh, params))
    return params, jax.device_put({"x": x}, meshes.batch_sharding(mesh)), jax.random.key(3)


def loss_and_grads_of(apply):
    """(params, examples, key) -> mean of a loss, gradients, losses; as in `train_step`."""

    def loss(params, examples, key):
        output = apply(params, examples["x"], key).astype(jnp.float32)
        values = jnp.sum(jnp.square(output - 1), axis=tuple(range(1, output.ndim)))
        return jnp.mean(values), values

    def loss_and_grads(params, examples, key, transform=lambda loss: loss):
        (mean, values), grads = jax.value_and_grad(transform(loss), has_aux=True)(params, examples, key)
        return mean, grads, values

    return loss_and_grads


def network_fn(name):
    return loss_and_grads_of(lambda params, x, key: NETWORKS[name].apply({"params": params}, x, rngs={"dropout": key}))


@functools.cache
def lowered(name, mesh):
    return jax.jit(device_grads.sum_over_devices(network_fn(name), mesh)).lower(*arguments(name, mesh))


@functools.cache
def compiled(name, mesh):
    return lowered(name, mesh).compile()


def sent(operation, text):
    """Element type and shape of what is handed to each of these collectives."""
    found = re.findall(rf'"stablehlo\.{operation}".*?: \(tensor<((?:\d+x)*)(\w+)>', text, re.DOTALL)
    return [(kind, tuple(map(int, shape.split("x")[:-1]))) for shape, kind in found]


def sizes(tree):
    return sorted(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", NETWORKS)
def test_each_gradient_is_summed_once_and_in_float32(name, mesh):
    """The sums over devices of the program, and those of the compiled one: XLA adds none."""
    params, *_ = arguments(name, mesh)
    text = lowered(name, mesh).as_text()
    sharded = [leaf for leaf in jax.tree.leaves(params) if not leaf.sharding.is_fully_replicated]
    scattered, summed = sent("reduce_scatter", text), sent("all_reduce", text)
    assert {kind for kind, _ in scattered + summed} == {"f32"}
    assert sorted(math.prod(shape) for _, shape in scattered) == sizes(sharded)
    whole = [leaf for leaf in jax.tree.leaves(params) if leaf.sharding.is_fully_replicated]
    parts = [leaf.addressable_data(0) for leaf in sharded] if mesh.shape["data"] > 1 else []
    assert sorted(math.prod(shape) for _, shape in summed) == sorted([*sizes(whole), *sizes(parts), 1])  # and the loss
    pattern = r"= (.*?) (all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
    found = re.findall(pattern, compiled(name, mesh).as_text())
    assert {kind for _, kind in found} <= {"all-reduce", "reduce-scatter"}
    shapes = [shape for types, _ in found for shape in re.findall(r"\w+\[[\d,]*\]", types)]
    assert all(shape.startswith("f32") for shape in shapes)
    assert len(shapes) == len(scattered) + len(summed)


GATHERED = {  # in bfloat16, in float32; of 64 x 64 and more
    "Remat": (2, 0),
    "Scanned": (1, 0),
    "Concatenated": (2, 0),
    "Tied": (0, 1),  # the gradients of its two uses are added in float32
    "Attention": (1, 0),
    "Random": (1, 0),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_each_parameter_is_gathered_once_in_the_type_in_which_it_is_used(name):
    mesh = mesh_of("both")
    kinds = [kind for kind, _ in sent("all_gather", lowered(name, mesh).as_text())]
    assert (kinds.count("bf16"), kinds.count("f32")) == GATHERED[name]
    text = lowered(name, mesh_of("replicated")).as_text()
    assert "all_gather" not in text


@pytest.mark.parametrize("name", NETWORKS)
def test_the_results_are_those_of_one_device(name, mesh):
    """With the same random numbers. Gradients differ by the rounding of bfloat16; one device sums those of biases in it."""
    mean, grads, values = compiled(name, mesh)(*arguments(name, mesh))
    expected, wanted, want_values = jax.jit(network_fn(name))(*jax.device_put(arguments(name, mesh), jax.devices()[0]))
    assert mean == pytest.approx(float(expected), rel=1e-5)
    np.testing.assert_allclose(values, want_values, rtol=1e-5)
    largest = max(map(np.linalg.norm, jax.tree.leaves(wanted)))  # that of the keys' bias is 0 up to rounding
    for found, want in zip(jax.tree.leaves(grads), jax.tree.leaves(wanted), strict=True):
        assert found.dtype == jnp.float32
        assert found.sharding.is_equivalent_to(fsdp.leaf_sharding(mesh, found.shape), found.ndim)
        assert np.linalg.norm(found - np.asarray(want)) <= 0.05 * np.linalg.norm(want) + 1e-4 * largest


def test_a_gradient_is_the_sum_of_those_of_each_device(mesh):
    """Those of one layer are bfloat16, their sum is not."""
    params, examples, key = arguments("Concatenated", mesh)
    _, got, _ = compiled("Concatenated", mesh)(params, examples, key)
    alone, rows = jax.device_put((params, examples["x"].reshape(4, -1, WIDTH)), jax.devices()[0])
    each = jax.jit(jax.vmap(network_fn("Concatenated"), in_axes=(None, {"x": 0}, None)))(alone, {"x": rows}, key)[1]
    for name in ("first", "second"):
        assert np.array_equal(each[name].astype(BF16), each[name])
        assert not np.array_equal(np.asarray(4 * got[name]).astype(BF16), 4 * got[name])
        np.testing.assert_allclose(got[name], np.mean(np.asarray(each[name], np.float64), axis=0), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("remat", [False, True])
def test_all_gradients_of_the_u_net_on_gpus_are_summed_in_float32(remat):
    """Its blocks have a kernel that is made of those of all blocks. Only what it adds to each other is gathered in float32."""
    mesh = mesh_of("fsdp")
    network = UNet(
        out_channels=1, ch=32, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(), dropout=0.1, dtype=BF16, remat=remat,
        norm_fn=training_norm, block_class=training_layers.GpuResidualBlock,
    )  # fmt: skip
    x = jax.ShapeDtypeStruct((B, 4, 4, 1), jnp.float32, sharding=meshes.batch_sharding(mesh))
    params = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 4, 4, 1)), jnp.zeros(1))["params"]
    specs = fsdp.tree_sharding(mesh, params)
    params = jax.tree.map(lambda leaf, spec: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=spec), params, specs)

    def apply(params, x, key):
        return network.apply({"params": params}, x, x[:, 0, 0, 0], deterministic=False, rngs={"dropout": key})

    fn = device_grads.sum_over_devices(loss_and_grads_of(apply), mesh)
    text = jax.jit(fn).lower(params, {"x": x}, jax.random.key(0)).as_text()
    sharded = [spec for spec in jax.tree.leaves(specs) if not spec.is_fully_replicated]
    assert [kind for kind, _ in sent("all_gather", text)] == ["bf16"] * len(sharded)
    assert [kind for kind, _ in sent("reduce_scatter", text)] == ["f32"] * len(sharded)
    assert {kind for kind, _ in sent("all_reduce", text)} == {"f32"}


def test_gpus_sum_vectors_of_gradients(monkeypatch):
    """Those from which they update the parameters (`grad_groups`)."""
    mesh, name = mesh_of("replicated"), "Attention"
    _, expected, _ = compiled(name, mesh)(*arguments(name, mesh))
    monkeypatch.setattr(grad_groups, "is_useful", lambda mesh: True)
    monkeypatch.setattr(grad_groups, "GROUP_SIZE", 4)
    grouped = jax.jit(device_grads.sum_over_devices(network_fn(name), mesh)).lower(*arguments(name, mesh))
    leaves = jax.tree.leaves(expected)
    found = sent("all_reduce", grouped.as_text())
    assert len(leaves) == 8
    assert len(found) == 3  # two vectors and the loss
    assert sum(math.prod(shape) for _, shape in found) == sum(leaf.size for leaf in leaves) + 1
    _, grads, _ = grouped.compile()(*arguments(name, mesh))
    for got, want in zip(jax.tree.leaves(grads), leaves, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7)


def test_a_training_step_on_accelerators_or_with_a_sharded_state_uses_it():
    class Device:
        process_index, slice_index = 0, 0

    def of(*shape, platform="tpu"):
        devices = np.empty(shape, object)
        for index in np.ndindex(*shape):
            devices[index] = type("", (Device,), {"platform": platform})()
        return type("", (), {"devices": devices, "size": devices.size, "axis_names": ("data", "fsdp")[: len(shape)]})()

    assert device_grads.is_useful(of(8))
    assert device_grads.is_useful(of(2, platform="gpu"))
    assert device_grads.is_useful(of(2, 4))
    assert device_grads.is_useful(of(2, 4, platform="cpu"))
    for alone in (of(1), of(1, platform="gpu"), of(8, platform="cpu")):
        assert device_grads.train_step_options(alone) == {}

"""What networks and training get on a CPU, on other platforms, and with a JAX that lacks the required APIs."""

import ast
import functools
import importlib
import logging
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import build, compiler_config, cpu
from ddpm_jax.configs import digits
from ddpm_jax.models import group_norm, layers
from ddpm_jax.models.unet import UNet
from ddpm_jax.runtime import mesh as meshes

PLAIN = {
    "conv_fn": jax.lax.conv_general_dilated,
    "upsample_conv_fn": layers.upsample_conv,
    "norm_fn": layers.group_norm,
}
FAMILIES = ("jax.interpreters", "jax.extend", "jax.experimental.layout")  # not a stable API


def borrowed_names() -> list[str]:
    """What cpu/conv.py imports from them: modules, and names of modules."""
    source = importlib.resources.files(cpu).joinpath("conv.py").read_text()
    modules, names = {}, set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module.startswith(FAMILIES):
            modules |= {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            names.add(f"{modules[node.value.id]}.{node.attr}")
    return sorted(names | set(modules.values()))


@pytest.fixture
def without(monkeypatch):
    """A function that removes a name from JAX, as if conv.py had never been imported."""

    def remove(name):
        module, _, attribute = name.rpartition(".")
        monkeypatch.delattr(importlib.import_module(module), attribute)
        if name in sys.modules:
            monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.delitem(sys.modules, "ddpm_jax.cpu.conv", raising=False)
        monkeypatch.delattr(cpu, "conv", raising=False)
        cpu._layer_functions.cache_clear()

    yield remove
    cpu._layer_functions.cache_clear()


def tiny_config():
    config = digits.get_config()
    config.model.update(ch=8, ch_mult=(1,), attn_resolutions=(), mid_attention=False)
    config.train.batch_size = 8
    return config


def test_borrowed_names_are_found():
    assert {"jax.interpreters.mlir", "jax.interpreters.mlir.lower_fun", "jax.extend.core.Primitive"} < set(borrowed_names())


@functools.partial(jax.jit, static_argnums=0)  # equal networks share one compilation
def descend(model, params, batch):
    """Loss and parameters after a gradient descent step."""
    x, t, labels = batch
    loss = lambda params: jnp.mean((model.apply({"params": params}, x, t, labels) - x) ** 2)  # noqa: E731
    value, grads = jax.value_and_grad(loss)(params)
    return value, jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)


@pytest.mark.parametrize("name", borrowed_names())
def test_without_any_borrowed_name_the_network_uses_the_reference_and_trains(name, without, caplog):
    without(name)
    with caplog.at_level(logging.WARNING):
        model = build.build_model(tiny_config())
        build.build_model(tiny_config())
    assert [record.name for record in caplog.records] == ["ddpm_jax.cpu"]
    assert name.rpartition(".")[2] in caplog.text
    assert model == model.clone(**PLAIN)
    batch = jax.random.normal(jax.random.key(0), (2, 8, 8, 1)), jnp.array([3, 700]), jnp.array([0, 1])
    shapes = jax.eval_shape(model.init, jax.random.key(1), *batch)["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: 0.1 * rng.normal(size=leaf.shape).astype(np.float32), shapes)
    losses = []
    for _ in range(3):
        loss, params = descend(model, params, batch)
        losses.append(loss)
    assert losses[2] < losses[1] < losses[0]


@pytest.mark.slow
def test_the_program_trains_without_a_borrowed_name_and_warns_once(repository, compiled_fast, tmp_path):
    """In a fresh process, as with a JAX that lacks it."""
    code = """
import runpy, sys
import jax.interpreters.mlir
del jax.interpreters.mlir.register_lowering
sys.argv = ["main.py", *sys.argv[1:]]
runpy.run_path("main.py", run_name="__main__")
"""
    fields = (
        "model.unet.ch=8",
        "model.unet.ch_mult=(1,)",
        "model.unet.attn_resolutions=()",
        "train.num_steps=1",
        "train.sample_every=0",
    )
    fields = [f"--config.{field}" for field in (*fields, "train.trackers=()", "train.batch_size=8")]
    result = subprocess.run(
        [sys.executable, "-c", code, "--config=configs/digits.py", f"--workdir={tmp_path}", *fields],
        cwd=repository,
        env=os.environ | {"XLA_FLAGS": compiled_fast},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("without the faster layers") == 1
    assert [folder.name for folder in (tmp_path / "checkpoints").iterdir()] == ["1"]


def primitives(jaxpr):
    """The names of all operations, with those inside of others."""
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for parameter in jax.tree.leaves(equation.params, is_leaf=lambda value: hasattr(value, "jaxpr")):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                yield from primitives(inner)


def test_a_network_for_the_cpu_matches_the_reference():
    """Same parameters; outputs within 1e-5 of the largest. Every layer is replaced: no reference is left in the program."""
    options = {"ch": 64, "ch_mult": (1, 1), "num_res_blocks": 0, "attn_resolutions": (), "mid_attention": False}
    plain = UNet(out_channels=1, norm_fn=group_norm.linen_norm, **options)
    fast = plain.clone(**cpu.layer_functions(upsample_conv=layers.upsample_conv, norm=group_norm.linen_norm))
    x, t = jax.random.normal(jax.random.key(0), (2, 8, 8, 1)), jnp.array([3, 700])
    shapes = jax.eval_shape(plain.init, jax.random.key(1), x, t)
    assert jax.eval_shape(fast.init, jax.random.key(1), x, t) == shapes
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: 0.05 * rng.normal(size=leaf.shape).astype(np.float32), shapes)
    want, got = jax.jit(plain.apply)(params, x, t), jax.jit(fast.apply)(params, x, t)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())
    programs = [list(primitives(jax.make_jaxpr(model.apply)(params, x, t).jaxpr)) for model in (plain, fast)]
    # Four blocks of two convolutions and two norms; the last norm; one upsampling. The first and last convolutions are narrow.
    assert [program.count("conv_3x3") for program in programs] == [0, 8]
    assert [program.count("platform_index") for program in programs] == [0, 10]


def test_other_platforms_get_nothing(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert cpu.layer_functions(upsample_conv=layers.upsample_conv, norm=layers.group_norm) == {}
    assert build.build_model(tiny_config()).conv_fn is jax.lax.conv_general_dilated
    assert cpu.init_compiler_options() is None
    assert cpu.inception_group_size() is None


@pytest.mark.parametrize(("platform", "deterministic", "expected"), [
    ("gpu", True, {"xla_gpu_deterministic_ops": True}), ("gpu", False, None), ("cpu", True, None), ("tpu", True, None),
])  # fmt: skip
def test_only_gpus_need_an_option_for_deterministic_steps(monkeypatch, platform, deterministic, expected):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    config = tiny_config()
    config.train.deterministic = deterministic
    assert compiler_config.train_step_options(config) == expected


@pytest.mark.parametrize(("dropout", "names"), [(0.0, {"unroll", "shard_grad_fn"}), (0.1, {"unroll"})])
def test_gradients_are_averaged_by_devices_if_the_network_is_deterministic(dropout, names):
    model = UNet(dropout=dropout)
    assert cpu.train_step_options(meshes.make_mesh(), stochastic=model.stochastic).keys() == names


def test_networks_are_equal_when_built_twice():
    """Their functions too; otherwise JAX would trace a program again for each."""
    assert build.build_model(tiny_config()) == build.build_model(tiny_config())

"""Compilation for real GPUs and TPUs, none of which is present. `make test-plan` installs the compilers and runs it."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from ddpm_jax.planning import compile_step, targets
from ddpm_jax.runtime import mesh as meshes

TINY = {"model.unet.ch": 8, "model.unet.ch_mult": "(1,)", "model.unet.attn_resolutions": "()", "train.batch_size": 8}
TINY |= {"sampling.num_steps": 4, "sampling.batch_size": 4}


@pytest.fixture(scope="module")
def planned(tmp_path_factory, repository):
    """(target, *flags) -> the JSON of the command."""

    def run(target, *flags):
        output = tmp_path_factory.mktemp("plan")
        fields = [f"--config.{field}={value}" for field, value in TINY.items()]
        line = [sys.executable, "main.py", "plan", target, "--config=digits", *fields, f"--output={output}", *flags]
        done = subprocess.run(
            [*line, "--compilation_cache="], capture_output=True, text=True, cwd=repository, timeout=800, check=False
        )
        assert done.returncode == 0, done.stderr
        return json.loads((output / f"plan_{target.replace(':', '_')}.json").read_text())

    return run


@pytest.fixture(scope="module")
def on_cpu(planned):
    """The plan for two CPUs."""
    return planned("cpux2")["training"]


def test_a_step_for_two_gpus(planned, on_cpu):
    plan = planned("h100x2", "--sampling")
    training = plan["training"]
    assert training["images"] == on_cpu["images"] == 4
    assert training["memory"]["parameters"] == on_cpu["memory"]["parameters"]
    assert training["memory"]["fits"]
    assert training["kernels"] > 100
    assert training["flops"] == pytest.approx(on_cpu["flops"], rel=0.25)  # the CPU has convolutions of other forms
    assert sum(row["bytes"] for row in training["collectives"]) >= 0.9 * training["memory"]["parameters"]
    kinds = {row["kind"] for row in training["kinds"]}
    assert {"convolutions and matrix products", "normalization", "optimizer and EMA", "collectives"} <= kinds
    assert training["seconds"]["sum_of_rooflines"] > 0
    assert plan["sampling"]["kernels"] > plan["sampling"]["steps"]


def test_sharded_parameters_are_gathered_in_bfloat16_and_gradients_scattered_in_float32(planned):
    training = planned("h100x2", "--config.mesh.fsdp=2", "--config.model.dtype=bfloat16")["training"]
    sent = {row["operation"]: row["bytes"] for row in training["collectives"]}
    assert sent["reduce-scatter"] == pytest.approx(4 * sent["all-gather"], rel=0.05)  # a whole gradient, half of a parameter


def test_a_step_for_a_slice_of_tpus(planned, on_cpu):
    training = planned("v5e:2x2", "--config.train.batch_size=16")["training"]
    assert training["images"] == 4
    assert training["seconds"]["compiler"] > training["seconds"]["roofline"]
    assert training["compiler"]["flops"] > 0
    assert sum(row["bytes"] for row in training["collectives"]) >= 0.9 * training["memory"]["parameters"]


@pytest.mark.parametrize("name", ["l4", "a100", "h200", "b200", "v4:2x2x1", "v5p:2x2x1", "v6e:2x2"])
def test_the_compilers_know_each_machine(name):
    target = targets.parse_target(name)
    devices = targets.devices_of(target)
    assert len(devices) == target.num_devices
    assert {device.platform for device in devices} <= {target.chip.platform, "cuda"}


def test_a_slice_that_does_not_exist_is_one_line():
    with pytest.raises(targets.UnavailableError, match=r"target=v5e:3x7") as error:
        targets.devices_of(targets.parse_target("v5e:3x7"))
    assert "\n" not in str(error.value)


def test_a_program_that_is_too_large_for_a_tpu_is_one_line():
    everywhere = meshes.replicated(meshes.make_mesh(targets.devices_of(targets.parse_target("v5e:1x1"))))
    x = jax.ShapeDtypeStruct((4 * 2**30,), jnp.bfloat16, sharding=everywhere)
    compiled, line = compile_step._compile(jax.jit(lambda x: (x + 1, x * 2, x - 3), out_shardings=everywhere).lower(x))
    assert compiled is None
    assert "Ran out of memory on HBM" in line
    assert "\n" not in line

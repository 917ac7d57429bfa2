"""The training step and the sampler are compiled for a CPU, and their costs agree with what is known of them."""

import jax
import numpy as np
import pytest

from ddpm_jax import build
from ddpm_jax.configs import digits, superres_fashion
from ddpm_jax.planning import analysis, compile_step, console, report
from ddpm_jax.planning.targets import GIB, parse_target
from ddpm_jax.runtime import mesh as meshes
from ddpm_jax.runtime import rng
from ddpm_jax.runtime.errors import InvalidArgumentError, UnavailableError

FIELDS = {
    "model.unet.ch": 8,
    "model.unet.ch_mult": (1,),
    "model.unet.attn_resolutions": (),
    "train.batch_size": 16,
    "sampling.num_steps": 4,
    "sampling.batch_size": 8,
}


@pytest.fixture(scope="module")
def config():
    config = digits.get_config()
    config.update_from_flattened_dict(FIELDS)
    return config


@pytest.fixture(scope="module")
def found(config):
    return compile_step.plan_training(config, parse_target("cpux2"))


def test_the_step_is_planned_with_the_arguments_that_training_passes(config):
    mesh = meshes.make_mesh(jax.devices()[:2])
    planned = compile_step.abstract_arguments(config, mesh)
    state = jax.eval_shape(build.build_init(config), rng.purpose_key(0, "init"))
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), planned.state) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), state
    )
    assert {leaf.sharding for leaf in jax.tree.leaves((planned.state, planned.key))} == {meshes.replicated(mesh)}
    assert {leaf.sharding for leaf in planned.batch.values()} == {meshes.batch_sharding(mesh)}
    assert {name: (leaf.shape, leaf.dtype) for name, leaf in planned.batch.items()} == {
        "image": ((16, 8, 8, 1), np.uint8),
        "label": ((16,), np.int32),
    }


def test_the_mesh_of_the_config_spreads_the_state(config):
    config = config.copy_and_resolve_references()
    config.mesh.fsdp = 2
    config.model.unet.ch = 32
    target = parse_target("cpux2")
    mesh = compile_step.training_mesh(config, target)
    assert dict(mesh.shape) == {"data": 1, "fsdp": 2}
    planned = compile_step.abstract_arguments(config, mesh)
    sizes = analysis.state_bytes(planned.state)
    whole = 4 * sum(leaf.size for leaf in jax.tree.leaves(planned.state.params))
    assert 0.5 * whole <= sizes["parameters"] == sizes["ema"] < 0.6 * whole
    assert planned.batch["image"].sharding == meshes.batch_sharding(mesh)
    config.mesh.fsdp = 3
    with pytest.raises(InvalidArgumentError, match="does not divide the number of devices"):
        compile_step.training_mesh(config, target)


def test_memory_is_that_of_the_state_and_the_batch(found, config):
    params = jax.eval_shape(build.build_init(config), rng.purpose_key(0, "init")).params
    size = sum(4 * leaf.size for leaf in jax.tree.leaves(params))
    assert found["state"]["parameters"] == found["state"]["ema"] == size
    assert 2 * size <= found["state"]["optimizer"] <= 2 * size + 1000  # two moments and counters
    images = 8  # of 16 on two devices
    rest = found["memory"]["arguments"] - sum(found["state"].values())
    assert images * (8 * 8 + 4) <= rest <= images * (8 * 8 + 4) + 100  # the key, the step, the learning rate
    assert found["images"] == images


def test_flops_are_those_of_xla(found):
    counted = sum(row["kernels"] * row["flops"] for row in found["operations"])
    elementwise = 0.25  # at most, of so narrow a network
    assert (1 - elementwise) * found["compiler"]["flops"] <= counted <= found["compiler"]["flops"]


def test_gradients_are_summed_once_for_all_devices(found, config):
    (collective,) = found["collectives"]
    assert collective["operation"] == "all-reduce"
    assert found["state"]["parameters"] <= collective["bytes"] <= 1.1 * found["state"]["parameters"]


def test_a_batch_that_does_not_divide_over_the_devices_is_named(config):
    with pytest.raises(InvalidArgumentError, match="`batch_size` is 16"):
        compile_step.plan_training(config, parse_target("cpux3"))


def test_the_sampler_is_planned(config):
    found = compile_step.plan_sampling(config, parse_target("cpu"))
    assert (found["images"], found["steps"]) == (8, 4)
    assert found["state"]["parameters"] < found["memory"]["arguments"]
    summary = report.summarize(found, parse_target("cpu"), "float32")
    assert summary["flops"] >= 4 * 8 * 1e5  # a network evaluation of 8 images in each of 4 steps
    assert summary["memory"]["fits"]


def test_the_batch_of_the_sampler_grows_with_the_devices(config, monkeypatch):
    monkeypatch.setattr(compile_step, "_compile", lambda lowered: (None, str(lowered.in_avals)))
    config = config.copy_and_resolve_references()
    config.sampling.batch_size = 0
    found = compile_step.plan_sampling(config, parse_target("cpux2"))["does_not_fit"]
    assert f"float32[{meshes.IMAGES_PER_DEVICE},8,8,1]" in found


def test_the_report_of_a_cpu_has_no_time(found):
    summary = report.summarize(found, parse_target("cpux2"), "float32")
    assert set(summary["seconds"].values()) == {None}
    text = console.text(summary, parse_target("cpux2"), title="digits on cpux2", unit="step", steps=10)
    assert "no estimate of the time" in text
    assert "all-reduce a step" in text
    assert console.picture(summary, title="cpux2").ndim == 3


def test_estimates_of_an_accelerator_follow_from_its_speed(found):
    target = parse_target("h100x2")
    summary = report.summarize(found, target, "bfloat16")
    flops, bytes = summary["flops"], summary["bytes"]
    assert summary["seconds"]["roofline"] == pytest.approx(max(flops / 989e12, bytes / 3350e9, 3e-6))
    # Each kernel of so small a network takes as long as a launch.
    assert summary["seconds"]["sum_of_rooflines"] == pytest.approx(summary["kernels"] * 3e-6)
    assert sum(row["seconds"] for row in summary["kinds"]) == pytest.approx(summary["seconds"]["sum_of_rooflines"])
    assert sum(row["kernels"] for row in summary["kinds"]) == summary["kernels"]
    text = console.text(summary, target, title="digits on h100x2", unit="step", steps=1000)
    assert "estimate:" in text
    assert "for 1,000 steps;" in text


@pytest.mark.parametrize(("scale", "unit", "peak"), [(1e6, "MiB", "2.575"), (1e7, "MiB", "25.7"), (1e9, "GiB", "2.515")])
def test_memory_has_the_unit_of_its_size(scale, unit, peak):
    memory = {"parameters": 1.2 * scale, "temporaries": 1.5 * scale, "peak": 2.7 * scale, "limit": 16 * GIB, "fits": True}
    text = console.memory_text({"memory": memory, "images": 8})
    assert f"| memory per device | {unit} |" in text
    assert f"| peak | {peak} |" in text


def test_images_that_fit_are_estimated_from_the_temporaries():
    memory = {"parameters": 1 * GIB, "temporaries": 5 * GIB, "peak": 9 * GIB, "limit": 8 * GIB}
    # 4 GiB beside the temporaries and 1 GiB of gradients are fixed: 3 GiB are free, and 8 images take 4 GiB.
    assert report.images_that_fit({"memory": memory, "images": 8}) == 6
    assert report.images_that_fit({"memory": memory | {"temporaries": 1 * GIB}, "images": 8}) is None  # only gradients
    text = console.memory_text({"memory": memory | {"temporaries": 0.0, "fits": False}, "images": 8})
    assert text.endswith("\ndoes not fit into the 8.0 GiB that a program can use, with 8 images per device\n")


def test_a_missing_assembler_is_one_line_with_the_command():
    class Lowered:
        def compile(self):
            raise jax.errors.JaxRuntimeError("UNAVAILABLE: No PTX compilation provider is available. Neither ptxas/nvlink")

    with pytest.raises(UnavailableError, match=r"needs ptxas, .*: pip install nvidia-cuda-nvcc-cu12 \(the extra plan-cuda\)"):
        compile_step._compile(Lowered())


def test_a_program_that_the_compiler_rejects_is_reported():
    target = parse_target("v5e:2x2")
    summary = report.summarize({"state": {"parameters": 2.0**30}, "does_not_fit": "out of memory"}, target, "float32")
    text = console.text(summary, target, title="digits", unit="step", steps=1)
    assert "does not fit into 15.8 GiB that a program can use; the compiler: out of memory" in text
    assert console.picture(summary, title="v5e").ndim == 3


@pytest.mark.parametrize("sampling", [False, True])
def test_condition_images_are_arguments_of_what_is_planned(sampling):
    """As in configs/superres_fashion.py: of the images themselves, so that a batch has no field for them."""
    config = superres_fashion.get_config()
    fields = {
        "model.name": "tests.small_network:Small",
        "train.batch_size": 4,
        "sampling.batch_size": 4,
        "sampling.num_steps": 2,
    }
    config.update_from_flattened_dict(fields)
    plan = (compile_step.plan_sampling if sampling else compile_step.plan_training)(config, parse_target("cpux2"))
    assert plan["images"] == 2
    assert plan["memory"]["peak"] > 0
    assert any(row["flops"] for row in plan["operations"])

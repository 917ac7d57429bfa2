"""The machines of --target."""

import re

import jax
import pytest

from ddpm_jax.planning import targets
from ddpm_jax.planning.targets import parse_target
from ddpm_jax.runtime import device_flops
from ddpm_jax.runtime.errors import InvalidArgumentError, UnavailableError


@pytest.mark.parametrize(
    ("text", "platform", "devices", "topology"),
    [
        ("h100", "gpu", 1, ""),
        ("H100x8", "gpu", 8, ""),
        ("a100x16", "gpu", 16, ""),
        ("b200x8", "gpu", 8, ""),
        ("l4", "gpu", 1, ""),
        ("v5e:2x4", "tpu", 8, "2x4"),
        ("v4:2x2x2", "tpu", 8, "2x2x2"),
        ("cpu", "cpu", 1, ""),
        ("cpux8", "cpu", 8, ""),
    ],
)
def test_targets_are_parsed(text, platform, devices, topology):
    target = parse_target(text)
    assert (target.chip.platform, target.num_devices, target.topology) == (platform, devices, topology)
    assert target.memory > 2**30


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        *((text, "write h100 or h100x8") for text in ("h1000", "h100:2x4", "h100x0", "h100x")),
        *((text, "write v5e:2x4 for a slice") for text in ("v5e", "v5ex8", "v5e-8", "v5e:8", "v5e:0x4", "v5e:2x2x2")),
        ("v4:2x4", "write v4:2x2x2 for a slice"),
        ("cpu8", "write cpu or cpux8"),
        *((text, "v5e:2x4 for a slice, .* h200 or h200x8, b200") for text in ("", "tpu", "b100", "v5litepod-8")),
    ],
)
def test_wrong_targets_are_named_with_right_ones(text, advice):
    with pytest.raises(InvalidArgumentError, match=f"`target={text}` is not a known machine: .*{advice}"):
        parse_target(text)


@pytest.mark.parametrize("name", targets.CHIPS)
def test_the_peak_of_each_accelerator_is_in_the_one_table_of_peaks(name):
    chip = targets.CHIPS[name]
    assert (chip.peak is None) == (chip.platform == "cpu")
    assert chip.platform == "cpu" or chip.peak_flops("float32") <= chip.peak == device_flops.PEAK_FLOPS[chip.kind]


@pytest.mark.parametrize(
    ("name", "packages", "extra"),
    [("h100", "'jax[cuda12-local]=={}' nvidia-cuda-nvcc-cu12", "plan-cuda"), ("v5e:2x4", "'jax[tpu]=={}'", "plan-tpu")],
)
def test_a_missing_compiler_is_one_line_with_the_command(monkeypatch, name, packages, extra):
    monkeypatch.setattr(targets.importlib.util, "find_spec", lambda module: None)
    with pytest.raises(UnavailableError) as error:
        targets.check_installed(parse_target(name))
    assert f": pip install {packages.format(jax.__version__)} (the extra {extra})" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("installed", "name", "line"),
    [
        ("0.0.30", "v5e:2x4", "libtpu 0.0.42, but 0.0.30 is"),
        ("0.0.420", "v5e:2x4", "libtpu 0.0.42, but 0.0.420 is"),
        ("0.9.1", "h100", "jax-cuda12-plugin 0.10.2, but 0.9.1 is"),
        ("0.0.42.1", "v5e:2x4", ""),
        ("0.10.2", "h100", ""),
    ],
)
def test_another_version_of_a_compiler_than_jax_requires_is_refused(monkeypatch, installed, name, line):
    requires = (
        "numpy>=2.0",
        'libtpu==0.0.42.*; extra == "tpu"',
        'jax-cuda12-plugin[with-cuda]<=0.10.2,>=0.10.2; extra == "cuda12"',
    )
    monkeypatch.setattr(targets.importlib.util, "find_spec", lambda module: "found")
    monkeypatch.setattr(targets.importlib.metadata, "requires", lambda package: requires)
    monkeypatch.setattr(targets.importlib.metadata, "version", lambda package: installed)
    if not line:
        targets.check_installed(parse_target(name))
        return
    with pytest.raises(UnavailableError, match=rf"needs {line} installed: pip install 'jax\[.*\(the extra plan-") as error:
        targets.check_installed(parse_target(name))
    assert "\n" not in str(error.value)


def test_the_versions_that_this_jax_requires_are_read(monkeypatch):
    monkeypatch.setattr(targets.importlib.metadata, "version", lambda package: "1")  # neither is installed for the tests
    assert targets._versions("jax-cuda12-plugin")[1] == jax.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", targets._versions("libtpu")[1])


def test_cpu_devices_are_those_of_jax():
    assert targets.devices_of(parse_target("cpux2")) == jax.devices("cpu")[:2]
    with pytest.raises(UnavailableError, match="CPU devices"):
        targets.devices_of(parse_target("cpux1000"))


def test_a_gpu_is_described_to_its_compiler():
    text = targets.gpu_description(parse_target("l4"))
    assert "cuda_compute_capability { major: 8 minor: 9 }" in text
    assert "threads_per_core_limit: 1536\n" in text
    assert f"device_memory_size: {24 * 10**9}\n" in text
    text = targets.gpu_description(parse_target("h100"))
    assert "cuda_compute_capability { major: 9 minor: 0 }" in text
    assert "threads_per_core_limit: 2048\n" in text

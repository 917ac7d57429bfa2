"""CPU settings: set where they help, never over the user's, and never for a jaxlib that may not support them."""

import os
import subprocess
import sys

import pytest
from jaxlib import version

from ddpm_jax.cpu import compiler

FLAG = "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution"


@pytest.mark.parametrize(
    ("before", "width", "known", "after"),
    [
        ("", 128, True, FLAG),
        ("--xla_other=1", 64, True, f"--xla_other=1 {FLAG}"),
        ("", 32, True, ""),
        ("--xla_cpu_experimental_ynn_fusion_type=dot", 128, True, "--xla_cpu_experimental_ynn_fusion_type=dot"),
        ("", 128, False, ""),
    ],
)
def test_the_flag_is_set_where_it_helps(before, width, known, after, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", before)
    monkeypatch.setattr(version, "__version__", compiler._VERSIONS_WITH_FLAG[0] if known else "99.0")
    compiler.set_xla_flags(width)
    assert os.environ["XLA_FLAGS"] == after


def test_xla_accepts_the_flag(repository):
    """In a fresh process: XLA would abort it at an unknown flag."""
    code = "from ddpm_jax.cpu import compiler; compiler.set_xla_flags(128); import jax; jax.numpy.ones(1) + 1"
    result = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("batch_size", "cores", "devices"),
    [
        (64, 1, 1),
        (64, 2, 2),
        (64, 16, 2),  # 32 images each
        (128, 3, 2),  # 3 does not divide it
        (128, 4, 4),
        (96, 8, 3),
        (8, 8, 1),
        (0, 8, 1),
    ],
)
def test_devices_divide_the_batch_into_large_enough_parts(batch_size, cores, devices):
    assert compiler.num_cpu_devices(batch_size, cores) == devices


@pytest.mark.parametrize(
    ("width", "variables", "devices"),
    [
        (16, {}, "7"),
        (64, {}, "1"),
        (16, {"XLA_FLAGS": "--xla_force_host_platform_device_count=3"}, "3"),
        (16, {"JAX_NUM_CPU_DEVICES": "5"}, "5"),
    ],
)
def test_narrow_networks_get_a_device_per_core_unless_set_by_the_user(width, variables, devices, repository):
    """In a fresh process, as if it had seven cores."""
    code = f"""
from ddpm_jax.cpu import compiler
compiler.available_cpus = lambda: 7
compiler.set_num_devices({width}, 7 * compiler.MIN_IMAGES_PER_DEVICE)
import jax; print(len(jax.devices()))
"""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | variables
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=repository, env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == [devices]


def test_available_cpus_respects_affinity(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0: {2, 5}}[process], raising=False)
    assert compiler.available_cpus() == 2
    monkeypatch.delattr(os, "sched_getaffinity")  # as on macOS
    assert compiler.available_cpus() == 7
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert compiler.available_cpus() == 1

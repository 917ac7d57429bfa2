"""The flags for the CPU: for wide networks, never over a person's own, never for a jaxlib that may not know them."""

import os
import subprocess
import sys

import pytest
from jaxlib import version

from ddpm_jax.runtime import compiler

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
    monkeypatch.setattr(version, "__version__", compiler._KNOWN_TO[0] if known else "99.0")
    compiler.set_cpu_flags(width)
    assert os.environ["XLA_FLAGS"] == after


def test_xla_takes_the_flag(repository):
    """In a fresh process: XLA would end it over a flag that it does not know."""
    code = "from ddpm_jax.runtime import compiler; compiler.set_cpu_flags(128); import jax; jax.numpy.ones(1) + 1"
    result = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr

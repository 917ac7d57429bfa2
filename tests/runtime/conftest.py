"""Fixtures for tests in child processes."""

import os
import pathlib
import socket

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def child_environment():
    """environment(devices) for a child process that imports ddpm_jax and uses the CPU."""

    def environment(devices: int = 1) -> dict[str, str]:
        return os.environ | {
            "PYTHONPATH": str(REPOSITORY),
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        }

    return environment


@pytest.fixture
def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]

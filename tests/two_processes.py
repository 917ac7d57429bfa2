"""Runs a program in two processes of one job. The fixture `two` is in `tests/conftest.py`."""

import json
import os
import pathlib
import socket
import sys

from tests import preloaded

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
BEGIN = """
import json, logging, os, pathlib, signal, sys
import jax
from ddpm_jax.runtime import distributed, errors, mesh, shared_workdir
from ddpm_jax.runtime.preemption import GracefulShutdown
port, me, folder = sys.argv[1], int(sys.argv[2]), pathlib.Path(sys.argv[3])
distributed.initialize_distributed("127.0.0.1:" + port, 2, me)
shared_workdir.SHARED_FS_TIMEOUT_S = 0.5
def error_of(work):
    try:
        work()
    except Exception as error:
        return [type(error).__name__, str(error)]
def fails(*errors):
    with distributed.raise_on_all_processes():
        if errors[me]:
            raise errors[me]
def write(**results):
    (folder / str(me)).write_text(json.dumps(results))
"""


def run(code, folder, devices=2):
    """The values that each process has given to `write`, and the exit codes. `devices` are those of each process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "PYTHONPATH": str(REPOSITORY),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    lines = [[sys.executable, "-c", BEGIN + code, str(port), str(index), folder] for index in range(2)]
    children = [preloaded.Process(line, env=environment) for line in lines]
    codes = [child.wait(timeout=120) for child in children]
    return [json.loads(file.read_text()) if file.exists() else None for file in (folder / "0", folder / "1")], codes

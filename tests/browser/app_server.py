"""Serves the page of the run in a folder, as --mode=app does; images of two seeds are never done, or fail."""

import sys
import time

import jax
import numpy as np

from ddpm_jax.app import server
from ddpm_jax.app.model import Model
from ddpm_jax.app.view import View
from ddpm_jax.cli import common
from ddpm_jax.configs import from_workdir

ENDLESS = 999_999
TOO_LARGE = 999_998  # for the device
MAX_UPLOAD = 2**21
MAX_BODY = 2**20


class SlowModel(Model):
    """A model whose images of one seed take until they are cancelled, and those of another one need too much memory."""

    def generate(self, settings, num_images, emit, condition=None):
        if settings.seed == TOO_LARGE:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes.\nBufferAssignment: ...")
        if settings.seed != ENDLESS:
            return super().generate(settings, num_images, emit, condition)
        for step in range(1_000_000):
            emit(View(np.zeros((8, 8, 3), np.uint8), None, f"step {step}"))
            time.sleep(0.02)
        raise AssertionError("it was not cancelled")


def main(folder: str, port: str) -> None:
    server.MAX_UPLOAD, server.MAX_BODY = MAX_UPLOAD, MAX_BODY
    config = from_workdir.get_config(folder)
    model = SlowModel(config, *common.open_run(config, folder, ""))
    print_address = lambda address: print(address, flush=True)  # noqa: E731
    server.serve(model, host="127.0.0.1", port=int(port) if port else None, browser=False, started=print_address)


if __name__ == "__main__":
    main(*sys.argv[1:])

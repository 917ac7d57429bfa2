"""--mode=app: a page in the browser to generate and edit images with a trained network.

The page is above the Python interface, which is above this folder; so it is imported by name.
"""

import gc
import importlib
import importlib.util
import socket

import jax
from ml_collections import ConfigDict

from ddpm_jax.cli import common
from ddpm_jax.runtime import distributed
from ddpm_jax.runtime.errors import UnavailableError
from ddpm_jax.user_messages import UsageError

HOST = "127.0.0.1"


@distributed.distributed_main()
def run(config: ConfigDict, folder: str, *, host: str = "", port: str = "", browser: bool = False) -> int:
    """Serve the page of a run, with the settings of config.sampling and config.edit at first, until Ctrl-C.

    Raises:
      ExpectedError: there is no checkpoint, a package is missing, or the port cannot be used.
    """
    number = check_port(port)
    if jax.process_count() > 1:
        raise UsageError("the page runs in one process: leave out --num_processes")
    if importlib.util.find_spec("gradio") is None:
        raise UnavailableError("the page needs a package that is not installed: pip install 'gradio>=6.31' (the extra app)")
    host = host.strip("[]") or HOST
    check_address(host, number)  # before the parameters are restored
    run_folder, mesh = common.open_run(config, folder, "")
    server, model, origin = (importlib.import_module(f"ddpm_jax.app.{name}") for name in ("server", "model", "origin"))
    page = model.Model(config, run_folder, mesh)

    def started(address: str) -> None:
        if host not in origin.LOCAL:
            print(f"warning: everyone who can reach {host} can use the page")
        print(f"the page is at {address} (Ctrl-C stops it)", flush=True)

    server.serve(page, host=host, port=number, browser=browser, started=started)
    gc.freeze()  # else the interpreter searches all modules for garbage at its end, which takes seconds
    return 0


def check_port(port: str) -> int | None:
    """The number of a port, 1..65535; None for any.

    Raises:
      UsageError: it is not one.
    """
    if not port:
        return None
    if not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise UsageError(f"--port is {port!r}: it must be a number from 1 to 65535")
    return int(port)


def check_address(host: str, port: int | None) -> None:
    """Check that a server can listen there; port None: on some port.

    Raises:
      UnavailableError: the port is in use, or the address does not exist.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)[0]
        socket.create_server(address[:2], family=family).close()
    except OSError as error:
        where = f"{host}:{port}" if port else host
        raise UnavailableError(f"the page cannot be served on {where}: choose another `port` or `host`") from error

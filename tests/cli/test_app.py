"""--mode=app without a page: its flags, and errors in one line. tests/browser/test_app.py tests the page."""

import importlib.util
import socket

import pytest

from ddpm_jax.cli import app, modes
from ddpm_jax.runtime.errors import UnavailableError
from ddpm_jax.user_messages import UsageError

NETWORK = "tests.small_network:Small"
TRAINED = {}


def test_the_short_form():
    assert modes.expand_short_form(["ddpm-jax", "app", "runs/a", "--port=8000"]) == [
        "ddpm-jax",
        "--workdir=runs/a",
        "--mode=app",
        "--port=8000",
    ]
    assert modes.expand_short_form(["ddpm-jax", "app", "--browser", "--workdir=runs/a"]) == [
        "ddpm-jax",
        "--mode=app",
        "--browser",
        "--workdir=runs/a",
    ]


def test_ports():
    assert app.check_port("") is None
    assert app.check_port("8000") == 8000
    for port in ("80 00", "-1", "0", "65536", "http"):
        with pytest.raises(UsageError, match="it must be a number from 1 to 65535"):
            app.check_port(port)


def test_a_port_in_use_and_addresses_of_other_machines_are_one_line():
    app.check_address("127.0.0.1", None)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for host, number in (("127.0.0.1", port), ("0.0.0.0", port), ("192.0.2.1", None), ("a b", None)):
            where = f"{host}:{number}" if number else host
            with pytest.raises(
                UnavailableError, match=f"^the page cannot be served on {where}: choose another `port` or `host`$"
            ):
                app.check_address(host, number)
    app.check_address("localhost", port)


def test_a_missing_package_is_one_line(trained, tiny_config, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gradio" else found(name))
    with pytest.raises(UnavailableError, match=r"not installed: pip install 'gradio>=6.31' \(the extra app\)$"):
        app.run(tiny_config(TRAINED), str(trained))

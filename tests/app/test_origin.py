"""Requests of other pages are refused: by Origin, and by Host where a name points to this machine."""

import socket

import pytest

from ddpm_jax.app.origin import Origins


def fault(host, address, origin=None):
    headers = [(b"accept", b"*/*"), (b"host", address.encode())]
    return Origins(host).fault(headers + ([(b"origin", origin.encode())] if origin is not None else []))


@pytest.mark.parametrize("address", ["127.0.0.1:7860", "localhost:8000", "LOCALHOST", "[::1]:7860"])
def test_local_names(address):
    assert fault("127.0.0.1", address) == ""
    assert fault("127.0.0.1", address, f"http://{address}") == ""


@pytest.mark.parametrize(
    "address", ["", "evil.example:7860", "127.0.0.1.evil.example", "127.0.0.1@evil.example", "[", "192.168.1.5"]
)
def test_other_names(address):
    assert "start it with --host" in fault("127.0.0.1", address)


def test_an_address_of_the_machine():
    assert fault("192.168.1.5", "192.168.1.5:7860") == ""
    assert fault("gpu.example", "gpu.example:7860", "https://gpu.example:7860") == ""
    assert fault("0.0.0.0", "192.168.1.5:7860") == ""
    assert fault("::", "[fe80::1]:7860") == ""
    assert fault("0.0.0.0", f"{socket.gethostname()}:7860") == ""
    assert fault("0.0.0.0", "evil.example:7860") != ""


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "", "http://127.0.0.1:8000", "http://localhost:7860"])
def test_other_origins(origin):
    assert "Origin is" in fault("127.0.0.1", "127.0.0.1:7860", origin)

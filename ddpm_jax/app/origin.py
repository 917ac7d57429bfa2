"""Which requests the server of the page answers: those of its own page and of programs, not those of other web pages.

A web page of another server can send requests to this one from the user's browser: directly, with its own address as Origin,
or under a name of its own that it lets point to this machine, which is then in Host (DNS rebinding).
"""

import ipaddress
import socket
import urllib.parse
from collections.abc import Iterable

LOCAL = ("127.0.0.1", "localhost", "::1")
ALL_ADDRESSES = ("0.0.0.0", "::")


class Origins:
    """The names of a server that listens on `host`."""

    def __init__(self, host: str):
        self._host = host
        own = () if host in LOCAL else (socket.gethostname(), socket.getfqdn())
        self._names = {name.lower() for name in (*LOCAL, host, *own)}

    def fault(self, headers: Iterable[tuple[bytes, bytes]]) -> str:
        """Why a request with these headers, of lower-case names, is not answered; "" if it is."""
        found = {name: value.decode("latin-1").lower() for name, value in headers if name in (b"host", b"origin")}
        address = found.get(b"host", "")
        if not self._is_own(_hostname(f"//{address}")):
            return (
                f"the page is not served under this name: open it by its address, or start it with --host. Host is {address!r}"
            )
        origin = found.get(b"origin")
        if origin is not None and origin.partition("://")[2] != address:
            return f"requests of other pages are not answered. Origin is {origin!r}"
        return ""

    def _is_own(self, name: str) -> bool:
        if name in self._names:
            return True
        if self._host not in ALL_ADDRESSES:
            return False
        try:
            ipaddress.ip_address(name)  # which no name server can redirect
        except ValueError:
            return False
        return True


def _hostname(url: str) -> str:
    try:
        return urllib.parse.urlsplit(url).hostname or ""
    except ValueError:
        return ""

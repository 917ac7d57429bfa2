"""The notice of a preemption that the metadata server of Google Cloud gives a spot or preemptible machine, TPU VMs included.

The machine has 30 s from it. Whether the operating system then also sends SIGTERM to the program depends on how it was
started. https://cloud.google.com/compute/docs/instances/create-use-spot#detect-preemption
"""

import http.client
import logging
import os
import pathlib
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable

from ddpm_jax.runtime.errors import error_line

logger = logging.getLogger(__name__)

HOST = "metadata.google.internal"
WAIT_S = 60  # the server answers a request after a change, or after this time
RETRY_S = 5.0
MAX_FAILURES = 5  # in a row, after which the server is not asked again
_PRODUCT = pathlib.Path("/sys/class/dmi/id/product_name")


def metadata_host() -> str:
    """HOST[:PORT] of the metadata server: GCE_METADATA_HOST, or Google's on a machine of Google Cloud; elsewhere ""."""
    if host := os.environ.get("GCE_METADATA_HOST"):
        return host
    try:
        return HOST if "Google" in _PRODUCT.read_text(encoding="utf-8") else ""
    except OSError:
        return ""


class PreemptionNotice:
    """Calls `callback` once, from a thread of its own, when this machine is to be preempted. Use as a context manager.

    Does nothing on machines without such a server, and gives up on one that does not answer.
    """

    def __init__(self, callback: Callable[[], None]) -> None:
        self._callback, self._stopped = callback, threading.Event()

    def __enter__(self) -> "PreemptionNotice":
        if host := metadata_host():
            # A daemon: its request may take WAIT_S longer than the program.
            threading.Thread(target=self._watch, args=(host,), name="preemption-notice", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()

    def _watch(self, host: str) -> None:
        options, failures = "", 0  # the first request is answered at once
        while not self._stopped.is_set():
            started = time.monotonic()
            try:
                preempted = _read(f"http://{host}/computeMetadata/v1/instance/preempted{options}") == "TRUE"
            except (OSError, ValueError, http.client.HTTPException) as error:
                failures += 1
                if failures == MAX_FAILURES:
                    reason = error_line(error, kind=True)
                    logger.warning(
                        f"the metadata server at {host} does not answer ({reason}): only SIGTERM can stop this program then"
                    )
                    return
                self._stopped.wait(RETRY_S)
                continue
            if preempted and not self._stopped.is_set():
                logger.info(f"the metadata server at {host} announces that this machine is preempted: stopping")
                self._callback()
                return
            if options:  # a server that does not wait for a change is not asked all the time
                self._stopped.wait(max(0.0, RETRY_S - (time.monotonic() - started)))
            options, failures = f"?wait_for_change=true&timeout_sec={WAIT_S}", 0


def _read(url: str) -> str:
    request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
    # Without the proxies of the environment: the server is part of this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=WAIT_S + 10) as response:
        answer = response.read(100).decode().strip()
    if answer not in ("TRUE", "FALSE"):
        raise ValueError(f"the answer is {answer!r}, neither TRUE nor FALSE")
    return answer

"""One file from the network: whole and with the right hash, or not at all."""

import contextlib
import hashlib
import http.client
import logging
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ddpm_jax.runtime.atomic import open_atomic
from ddpm_jax.runtime.errors import UnavailableError, error_line

logger = logging.getLogger(__name__)

BLOCK = 1 << 20  # bytes read at once
TIMEOUT_S = 30  # seconds without a byte


def download(
    url: str,
    file: Path,
    *,
    sha256: str,
    size: int,
    title: str,
    progress: Callable[[int, str], Any] | None = None,
) -> None:
    """Fetch `url`. What arrives becomes `file` only when it is whole and has the right hash.

    Args:
      url: where it is.
      file: where to put it; its folder is made.
      sha256: 64 hexadecimal digits that it must have.
      size: its bytes, for those servers that do not say.
      title: what messages call it.
      progress: makes a progress bar out of a total and its unit: a context with `update(done)`.

    Raises:
      UnavailableError: no network, no room, or something else arrived; says how to do it by hand.
    """
    by_hand = f"fetch {url} on another machine and put it at {file}"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        logger.info(f"downloading the {title} ({size / 1e6:,.0f} MB, once) to {file}")
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer, open_atomic(file, shared=True) as out:
            total = int(answer.headers.get("Content-Length") or 0)
            bar = progress(max(1, (total or size) // 10**6), "MB") if progress else contextlib.nullcontext()
            digest, done = hashlib.sha256(), 0
            with bar:
                while block := answer.read(BLOCK):
                    out.write(block)
                    digest.update(block)
                    done += len(block)
                    if progress:
                        bar.update(done / 1e6)
            if total and done < total:
                raise UnavailableError(
                    f"the download of the {title} ended after {done:,} of {total:,} bytes: try again, or {by_hand}"
                )
            if digest.hexdigest() != sha256:
                raise UnavailableError(
                    f"what came from {url} is not the {title}: SHA-256 {digest.hexdigest()[:8]}.., not {sha256[:8]}..; "
                    f"{by_hand}"
                )
    except urllib.error.URLError as error:
        raise UnavailableError(
            f"the {title} are not here and cannot be downloaded ({error_line(error.reason)}): {by_hand}"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        raise UnavailableError(f"the {title} cannot be downloaded to {file.parent} ({error_line(error)}): {by_hand}") from error

"""Downloads a file atomically and checks its hash."""

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
TIMEOUT_S = 30  # seconds without received data


def download(
    url: str, file: Path, *, sha256: str, size: int, title: str, progress: Callable[[int, str], Any] | None = None
) -> None:
    """Downloads `url` to `file`. The file appears only when the download is complete and its hash matches.

    Args:
      file: destination; its folder is created.
      sha256: expected hash, 64 hexadecimal digits.
      size: bytes, used if the server sends no Content-Length.
      title: name of the file in messages.
      progress: (total, unit) -> a context manager with `update(done)`, the progress bar.

    Raises:
      UnavailableError: no network, no disk space, or wrong content; the message explains the manual download.
    """
    by_hand = f"download {url} on another machine and copy it to {file}"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        logger.info(f"downloading the {title} ({size / 1e6:,.0f} MB, once) to {file}")
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response, open_atomic(file, shared=True) as out:
            total = int(response.headers.get("Content-Length") or 0)
            bar = progress(max(1, (total or size) // 10**6), "MB") if progress else contextlib.nullcontext()
            digest, done = hashlib.sha256(), 0
            with bar:
                while block := response.read(BLOCK):
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
                    f"the content of {url} is not the {title}: SHA-256 {digest.hexdigest()[:8]}.., not {sha256[:8]}..; "
                    f"{by_hand}"
                )
    except urllib.error.URLError as error:
        raise UnavailableError(
            f"the {title} are missing and cannot be downloaded ({error_line(error.reason)}): {by_hand}"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        raise UnavailableError(f"the {title} cannot be downloaded to {file.parent} ({error_line(error)}): {by_hand}") from error

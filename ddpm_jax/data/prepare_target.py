"""The settings of a preparation, and its target folder: what is in it, and who may write to it."""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ddpm_jax.data import decode, prepared
from ddpm_jax.data.crop import CROPS
from ddpm_jax.data.folder_listing import one_line
from ddpm_jax.data.source import ImageSize, height_width
from ddpm_jax.runtime.errors import ConflictError, FileAccessError, InvalidArgumentError, InvalidDataError


@dataclasses.dataclass(frozen=True)
class Settings:
    """What determines the result, apart from the files.

    Attributes:
      image_size: (H, W) of the images, or one number for both.
      channels: 1 (gray) or 3 (RGB).
      crop: a key of `crop.CROPS`.
      background: color behind transparent pixels, a name or #rrggbb.
      levels: (black, white) of gray files of more than 8 bits; () to detect one range for all of them.
    """

    image_size: ImageSize
    channels: int = 3
    crop: str = "center"
    background: str = "white"
    levels: Sequence[float] = ()

    def check(self) -> None:
        """Raises InvalidArgumentError if one is invalid."""
        height_width(self.image_size)
        decode.parse_background(self.background)
        if self.crop not in CROPS:
            raise InvalidArgumentError(f"`crop` is {self.crop!r}: choose one of {', '.join(CROPS)}")


def plan_of(folder: str, found: Sequence[str], settings: Settings) -> dict[str, Any]:
    """What an unfinished or finished set must agree in to be continued or kept."""
    digest = hashlib.sha256()
    for path in found:
        with contextlib.suppress(OSError):  # a dangling link is a broken file
            about = os.stat(os.path.join(folder, path))
            digest.update(repr((path, about.st_size, about.st_mtime_ns)).encode("utf-8", "surrogateescape"))
    fields = dataclasses.asdict(settings) | {"image_size": list(height_width(settings.image_size))}
    return fields | {"levels": list(settings.levels), "files": len(found), "listing": digest.hexdigest()}


def check_target(root: pathlib.Path, plan: Mapping[str, Any]) -> dict[str, Any] | None:
    """The description of the finished set in `root`; None for a new or unfinished one. Raises ConflictError for another."""
    if (root / prepared.DESCRIPTION).exists():
        about = prepared.read_description(str(root))
        if (old := about["plan"]) == plan:
            return about
        raise ConflictError(f"{root} contains another prepared set ({_difference(old, plan)}): choose another `to`")
    if (root / prepared.PLAN).exists():
        try:
            old = json.loads((root / prepared.PLAN).read_text(encoding="utf-8"))["plan"]
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidDataError(f"{root / prepared.PLAN} is damaged: remove {root}") from error
        if old != plan:
            raise ConflictError(
                f"{root} contains an unfinished set of other images or settings ({_difference(old, plan)}): choose another "
                f"`to`, or remove {root}"
            )
        return None
    if other := [entry.name for entry in root.iterdir() if not entry.name.startswith(".")]:
        raise ConflictError(f"{root} is not empty ({one_line(other[0])}): choose another `to`")
    return None


def _difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    names = [name for name in new if old.get(name) != new[name] and name != "listing"]
    return "; ".join(f"{name}: {old.get(name)} there, {new[name]} here" for name in names) or "the images have changed"


@contextlib.contextmanager
def only_process(root: pathlib.Path) -> Iterator[None]:
    """Admits one process of this machine at a time. The lock ends with its process.

    Raises:
      ConflictError: another process has it.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(ImportError):
            import fcntl

            try:
                file = stack.enter_context(open(root / ".prepare.lock", "a"))
            except OSError as error:
                raise FileAccessError(f"cannot write to {root}: {error.strerror}; choose another `to`") from error
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ConflictError(
                    f"another process prepares {root} right now: wait for it, or choose another `to`"
                ) from error
        yield

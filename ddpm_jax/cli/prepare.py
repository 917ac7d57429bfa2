"""--mode=prepare: decode, crop and resize a folder of images once, for fast training. Needs neither a config nor JAX."""

import os
import re
from collections.abc import Mapping

from ddpm_jax.data import prepare as preparation
from ddpm_jax.data.prepare_target import Settings
from ddpm_jax.runtime.errors import ExpectedError
from ddpm_jax.runtime.progress import Progress
from ddpm_jax.user_messages import UsageError

FLAG_OF = {"folder": "from", "image_size": "size"}  # arguments of the library whose flags have other names


def run(
    source: str,
    target: str,
    size: str,
    crop: str = "",
    channels: str = "",
    background: str = "",
    levels: str = "",
    on_decode_error: str = "",
    num_threads: str = "",
) -> int:
    """Prepare a set, and print how to train on it. The arguments are the flags, "" for a default; `source` is --from.

    Raises:
      ExpectedError: a flag is invalid, or a file cannot be read or written.
    """
    settings = Settings(
        image_size=parse_size(size),
        channels=parse_count("channels", channels) or 3,
        crop=crop or "center",
        background=background or "white",
        levels=parse_levels(levels),
    )
    threads = parse_count("num_threads", num_threads) or None
    progress: list[Progress] = []

    def report(done: int, total: int) -> None:
        if not progress:
            progress.append(Progress(total))
        progress[0].update(done)

    try:
        about = preparation.prepare(
            source, target, settings, on_decode_error=on_decode_error or "error", num_threads=threads, report=report
        )
    except ExpectedError as error:
        raise with_flags(error) from error
    finally:
        for line in progress:
            line.__exit__()
    print(summary(os.path.abspath(os.path.expanduser(target)), about))
    return 0


def parse_size(text: str) -> tuple[int, int]:
    """(H, W) of 64, which is a square, or of 64x96, height x width. Raises UsageError for anything else."""
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if not match or not all(int(side or 1) for side in match.groups()):
        raise UsageError(f"--size is {text!r}: give the side of a square, such as 64, or height x width, such as 64x96")
    return int(match[1]), int(match[2] or match[1])


def parse_levels(text: str) -> tuple[float, ...]:
    """(black, white) of the text 0,4095, with or without parentheses; () of "". Raises UsageError for anything else."""
    if not text:
        return ()
    try:
        black, white = (float(part) for part in text.strip("() ").split(","))
    except ValueError:
        black = white = 0.0
    if not black < white:
        raise UsageError(f"--levels is {text!r}: give the black and white levels of gray files, such as 0,4095")
    return black, white


def parse_count(name: str, text: str) -> int:
    """The value of the flag `name`; 0 if it is not given. Raises UsageError unless it is a positive integer."""
    if text and not (text.isdecimal() and int(text)):
        raise UsageError(f"--{name} is {text!r}: it must be an integer above 0")
    return int(text or 0)


def with_flags(error: ExpectedError) -> ExpectedError:
    """The same error, with the flags of this mode instead of the arguments in backquotes."""

    def flag(match: re.Match[str]) -> str:
        value = "" if match[2] is None else "=" + match[2].strip("'")
        return f"--{FLAG_OF.get(match[1], match[1])}{value}"

    return type(error)(re.sub(r"`(\w+)(?:=([^`]*))?`", flag, str(error)))


def summary(target: str, about: Mapping) -> str:
    """What was prepared, and the flags of a training that reads it."""
    height, width, channels = about["image_shape"]
    parts = ", ".join(f"{part['count']:,} images of {name}" for name, part in about["splits"].items())
    classes = len(about["class_names"])
    size = str(height) if height == width else f"'({height},{width})'"
    lines = [
        f"{target}: {parts}, {height}x{width}x{channels}, {f'{classes} classes' if classes else 'no classes'}",
        f"train on it with --config.data.name=prepared --config.data.data_dir={target} --config.data.image_size={size} "
        f"--config.data.channels={channels} --config.data.num_classes={classes}",
    ]
    if about["broken"]:
        lines.insert(
            1, f"{about['broken']:,} files cannot be read and were left out: {os.path.join(target, preparation.BROKEN)}"
        )
    return "\n".join(lines)

"""Files of figures that contain a stamp: the command that made them, and a hash of the program's sources.

A PNG file has them as texts, an animated WebP as Exif data.
"""

import pathlib

import numpy as np
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo


def read_stamp(path: pathlib.Path) -> dict[str, str]:
    """The values "command" and "sources" of a file; empty if it has none."""
    with Image.open(path) as image:
        exif, info = image.getexif(), image.info
    if ExifTags.Base.Software in exif:
        return {"command": exif[ExifTags.Base.ImageDescription], "sources": exif[ExifTags.Base.Software]}
    return {"command": info["Command"], "sources": info["Sources"]} if "Command" in info else {}


def save(source: pathlib.Path, target: pathlib.Path, stamp: dict[str, str]) -> int:
    """Copies a figure as a lossless PNG of minimal size that contains its command; returns the size in bytes."""
    with Image.open(source) as image:
        picture = image.convert("RGB")
    pixels = np.asarray(picture)
    if (pixels == pixels[..., :1]).all():
        picture = picture.convert("L")
    elif picture.getcolors(256):
        picture = picture.quantize(256, dither=Image.Dither.NONE)
        if (np.asarray(picture.convert("RGB")) != pixels).any():  # quantize merges similar colors
            picture = Image.fromarray(pixels)
    info = PngInfo()
    info.add_text("Command", stamp["command"])
    info.add_text("Sources", stamp["sources"])
    picture.save(partial := target.with_name(target.name + ".partial"), format="PNG", optimize=True, pnginfo=info)
    partial.replace(target)
    return target.stat().st_size


def save_animation(source: pathlib.Path, target: pathlib.Path, stamp: dict[str, str]) -> int:
    """Copies an animated WebP and adds a chunk with its command; returns the size in bytes."""
    exif = Image.Exif()
    exif.update({ExifTags.Base.ImageDescription: stamp["command"], ExifTags.Base.Software: stamp["sources"]})
    payload = exif.tobytes().removeprefix(b"Exif\0\0")
    content = bytearray(source.read_bytes())
    content[20] |= 0x08  # the flag of the header, VP8X, that such a chunk follows
    content += b"EXIF" + len(payload).to_bytes(4, "little") + payload + b"\0" * (len(payload) % 2)
    content[4:8] = (len(content) - 8).to_bytes(4, "little")
    target.write_bytes(content)
    return len(content)

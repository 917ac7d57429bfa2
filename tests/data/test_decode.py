"""Decoding of common image files, compared with the meaning of their pixels."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.data import decode
from ddpm_jax.data.source import center_crop_and_resize

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)
GRAY = NOISE[..., 0]
ALPHA = NOISE[..., 1].copy()
ALPHA[0], ALPHA[1] = 0, 255  # also fully transparent and fully opaque rows
DEEP = RNG.integers(0, 65536, (8, 8), dtype=np.uint16)
DEEP[0] = [0, 128, 129, 257, 32768, 65406, 65407, 65535]  # 128 / 257 rounds to 0, 129 / 257 to 1
DEEP_ROUNDED = np.floor(DEEP / 257 + 0.5)  # 65535 / 255 = 257, so no quotient is a tie
BACKGROUND = (10, 200, 90)


def save(path, image=NOISE, **options):
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(path, **options)


def flat(level):
    return np.full((8, 8, 3), level, np.uint8)


def png(path, depth, color_type, rows, *chunks):
    """A PNG of 8 pixels' width without Pillow, which writes no 16-bit color: `rows` as stored in the file."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 8, len(rows), depth, color_type, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    parts = [chunk(b"IHDR", header), *(chunk(*part) for part in chunks), chunk(b"IDAT", data), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def over(color, alpha, background=BACKGROUND):
    """Alpha blending in floating point. color [8, 8, 1 or 3], alpha [8, 8] 0..255."""
    share = alpha[..., None] / 255
    return color * share + np.array(background) * (1 - share)


def palette(**options):
    """Eight colors, and the options to save them."""
    picture = Image.frombytes("P", (8, 8), (GRAY // 32).tobytes())
    picture.putpalette(NOISE[0].tobytes())
    return picture, options


PALETTE = NOISE[0][GRAY // 32].astype(float)  # the content of `palette`
ENTRY_ALPHA = np.array([255, 0, 128, 255, 7, 255, 200, 255], np.uint8)
NOT_ENTRY_2 = np.where(GRAY // 32 == 2, 0, 255)
INK = np.dstack([NOISE, ALPHA])
FLOATS = RNG.random((8, 8)).astype(np.float32)
GRAY_ALPHA, COLOR_ALPHA = np.stack([GRAY, ALPHA], -1), np.dstack([NOISE, ALPHA])
EXACT = {"lossless": True, "exact": True}  # for WebP, which otherwise changes fully transparent colors


def cmyk(ink):
    return Image.frombytes("CMYK", (8, 8), ink.tobytes())


def paper(ink):
    """RGB of the inks c, m, y and k, 0..255."""
    return (255.0 - ink[..., :3]) * (255.0 - ink[..., 3:]) / 255


def keyed(color):
    """NOISE with this color replaced by the background."""
    return np.where((color == NOISE).all(-1, keepdims=True), BACKGROUND, NOISE)


@pytest.mark.parametrize(
    ("name", "picture", "options", "expected", "tolerance"),  # expected [8, 8, 1 or 3]; tolerance in levels
    [
        ("1.png", Image.fromarray(GRAY > 99), {}, (GRAY > 99)[..., None] * 255, 0),
        ("L.png", GRAY, {}, GRAY[..., None], 0),
        ("L key.png", GRAY, {"transparency": int(GRAY[2, 3])}, over(GRAY[..., None], (GRAY[2, 3] != GRAY) * 255), 0),
        ("LA.png", GRAY_ALPHA, {}, over(GRAY[..., None], ALPHA), 1),
        ("LA.webp", GRAY_ALPHA, EXACT, over(GRAY[..., None], ALPHA), 1),
        ("P.png", *palette(), PALETTE, 0),
        ("P.gif", *palette(), PALETTE, 0),
        ("P entry.png", *palette(transparency=2), over(PALETTE, NOT_ENTRY_2), 0),
        ("P entry.gif", *palette(transparency=2), over(PALETTE, NOT_ENTRY_2), 0),
        ("P alphas.png", *palette(transparency=bytes(ENTRY_ALPHA)), over(PALETTE, ENTRY_ALPHA[GRAY // 32]), 1),
        ("RGB.png", NOISE, {}, NOISE, 0),
        ("RGB.bmp", NOISE, {}, NOISE, 0),
        ("RGB.tif", NOISE, {}, NOISE, 0),
        ("RGB.webp", NOISE, EXACT, NOISE, 0),
        ("RGB.jpg", flat(77), {"quality": 95}, flat(77), 1),
        ("RGB key.png", NOISE, {"transparency": tuple(NOISE[3, 4].tolist())}, keyed(NOISE[3, 4]), 0),
        ("RGBA.png", COLOR_ALPHA, {}, over(NOISE, ALPHA), 1),
        ("RGBA.webp", COLOR_ALPHA, EXACT, over(NOISE, ALPHA), 1),
        ("CMYK.tif", cmyk(INK), {}, paper(INK), 1),
        ("CMYK.jpg", cmyk(INK[:1, :1].repeat(8, 0).repeat(8, 1)), {"quality": 100}, paper(INK[:1, :1]), 2),
        ("YCbCr.jpg", Image.fromarray(flat(77)).convert("YCbCr"), {"quality": 95}, flat(77), 1),
        ("I;16.png", DEEP, {}, DEEP_ROUNDED[..., None], 0),
        ("I;16.tif", DEEP, {}, DEEP_ROUNDED[..., None], 0),
        ("I;16B.tif", Image.frombytes("I;16B", (8, 8), DEEP.astype(">u2").tobytes()), {}, DEEP_ROUNDED[..., None], 0),
        ("I.tif", DEEP.astype(np.int32), {}, DEEP_ROUNDED[..., None], 0),
        ("F to one.tif", FLOATS, {}, np.floor(FLOATS.astype(float)[..., None] * 255 + 0.5), 0),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_mode_of_pillow(tmp_path, name, picture, options, expected, tolerance):
    save(tmp_path / name, picture, **options)
    color = center_crop_and_resize(decode.read_image(str(tmp_path / name), BACKGROUND), 8, 3).astype(float)
    # Rounding to levels is half a level, plus `tolerance` for Pillow's integer blending.
    np.testing.assert_allclose(color, np.broadcast_to(expected, (8, 8, 3)), atol=max(tolerance, 1e-9))
    gray = center_crop_and_resize(decode.read_image(str(tmp_path / name), BACKGROUND), 8, 1)[..., 0]
    np.testing.assert_allclose(gray, color @ [0.299, 0.587, 0.114], atol=0.51)


@pytest.mark.parametrize("color_type", [0, 2, 4, 6])
def test_16_bits_in_png(tmp_path, color_type):
    """Gray, RGB, and both with alpha, as cameras and renderers write them."""
    count = {0: 1, 2: 3, 4: 2, 6: 4}[color_type]
    values = np.random.default_rng(1).integers(0, 65536, (8, 8, count))
    values[0] = 65535
    key = [(b"tRNS", struct.pack(">H", values[3, 3, 0]))] if color_type == 0 else []
    png(tmp_path / "x.png", 16, color_type, values.reshape(8, -1).astype(">u2"), *key)
    alpha = values[..., -1] / 257 if color_type >= 4 else np.full((8, 8), 255)
    if key:
        alpha = (values[..., 0] != values[3, 3, 0]) * 255
    expected = over(values[..., : 3 if count > 2 else 1] / 257, alpha)
    image = center_crop_and_resize(decode.read_image(str(tmp_path / "x.png"), BACKGROUND), 8, 3)
    assert (image[0] == 255).all()
    # High bytes are up to a level below v / 257, in color and in alpha, plus rounding.
    np.testing.assert_allclose(image, np.broadcast_to(expected, image.shape), atol=0.51 if color_type == 0 else 2.5)


UPRIGHT = {  # EXIF orientation -> transform from the stored to the upright image (EXIF 2.3, tag 0x0112)
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),  # clockwise
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("kind", ["png", "webp", "tif"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_applied_once(tmp_path, kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = EXACT if kind == "webp" else {}
    save(tmp_path / f"x.{kind}", NOISE, exif=exif, **options)
    np.testing.assert_array_equal(decode.read_image(str(tmp_path / f"x.{kind}"), BACKGROUND), UPRIGHT[orientation](NOISE))


def test_a_rotated_photograph(tmp_path):
    """A JPEG stored rotated, 32 wide: upright it has a white top third; the square is cropped from the upright image."""
    stored = np.zeros((16, 32, 3), np.uint8)
    stored[:, :12] = 255  # by orientation 6, the left is the top of the upright image
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / "x.jpg", stored, exif=exif, quality=95)
    image = center_crop_and_resize(decode.read_image(str(tmp_path / "x.jpg"), BACKGROUND), 16, 3)
    assert (image[:3] > 250).all()  # rows 8..23 of 32 remain, of which 8..11 are white
    assert (image[5:] < 5).all()


def test_damaged_exif_metadata_does_not_matter(tmp_path):
    save(tmp_path / "x.png", NOISE, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x09garbage")
    np.testing.assert_array_equal(decode.read_image(str(tmp_path / "x.png"), BACKGROUND), NOISE)


@pytest.mark.parametrize("kind", ["gif", "webp", "png"])
def test_the_first_frame_of_an_animation(tmp_path, kind):
    frames = [Image.fromarray(flat(level)) for level in (60, 120, 180)]
    options = EXACT if kind == "webp" else {}
    frames[0].save(tmp_path / f"x.{kind}", save_all=True, append_images=frames[1:], **options)
    with Image.open(tmp_path / f"x.{kind}") as picture:
        assert picture.n_frames == 3
    np.testing.assert_array_equal(decode.read_image(str(tmp_path / f"x.{kind}"), BACKGROUND), flat(60))


def test_float_levels_use_the_given_range(tmp_path):
    save(tmp_path / "F.tif", DEEP.astype(np.float32))
    read = decode.read_image(str(tmp_path / "F.tif"), BACKGROUND, (0, 65535))
    np.testing.assert_array_equal(read, DEEP_ROUNDED)
    # Without a range: the one detected for the file alone, by the rule for sets.
    np.testing.assert_array_equal(decode.read_image(str(tmp_path / "F.tif"), BACKGROUND), DEEP_ROUNDED)
    save(tmp_path / "negative.tif", np.array([[-9, 9]], np.int32))
    with pytest.raises(decode.ImageDecodeError, match=r"`levels=\(-9,9\)`"):
        decode.read_image(str(tmp_path / "negative.tif"), BACKGROUND)

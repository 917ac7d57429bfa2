"""Grids, strips and PNG files: every pixel is in its place."""

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.plotting import image_grid
from ddpm_jax.plotting.image_grid import BACKGROUND, GAP, LONGEST_SIDE, VISIBLE_HEIGHT


def images(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 255, shape, dtype=np.uint8)  # below 255, the background


def tiles(picture, size, factor):
    """The grid cells of an image, without enlargement: uint8 [rows, columns, size, size, C]."""
    small = picture[::factor, ::factor]
    pitch = size + GAP
    rows, columns = (small.shape[0] - GAP) // pitch, (small.shape[1] - GAP) // pitch
    inner = small[GAP:, GAP:].reshape(rows, pitch, columns, pitch, -1).swapaxes(1, 2)
    return inner[:, :, :size, :size]


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_is_laid_out_row_by_row(channels):
    """Each cell of the grid is its image; gaps and empty cells are background."""
    shown = images(7, 64, 64, channels)
    picture = image_grid.grid(shown, columns=3)
    assert picture.dtype == np.uint8
    assert picture.shape == (3 * 66 + 2, 3 * 66 + 2, channels)
    cells = tiles(picture, 64, 1).reshape(9, 64, 64, channels)
    np.testing.assert_array_equal(cells[:7], shown)
    assert (cells[7:] == BACKGROUND).all()
    assert (picture != BACKGROUND).sum() == shown.size  # no image pixel elsewhere


@pytest.mark.parametrize(("number", "columns"), [(1, 1), (2, 2), (4, 2), (5, 3), (9, 3), (10, 4), (100, 10)])
def test_a_grid_is_nearly_square_by_default(number, columns):
    picture = image_grid.grid(images(number, 64, 64, 1))
    assert picture.shape[1] == columns * 66 + 2
    assert picture.shape[0] == -(-number // columns) * 66 + 2


def test_a_row_is_no_longer_than_the_number_of_images():
    assert image_grid.grid(images(3, 64, 64, 1), columns=10).shape == (68, 3 * 66 + 2, 1)


@pytest.mark.parametrize(("size", "factor"), [(8, 8), (28, 2), (32, 2), (64, 1), (100, 1), (256, 1)])
def test_small_images_are_enlarged_by_an_integer_factor(size, factor):
    """Every pixel becomes a block of factor x factor equal ones, so that images have a visible height."""
    shown = images(4, size, size, 3)
    picture = image_grid.grid(shown)
    assert picture.shape == (factor * (2 * (size + GAP) + GAP),) * 2 + (3,)
    small = picture[::factor, ::factor]
    np.testing.assert_array_equal(picture, small.repeat(factor, axis=0).repeat(factor, axis=1))
    np.testing.assert_array_equal(tiles(picture, size, factor).reshape(shown.shape), shown)
    assert factor * size >= VISIBLE_HEIGHT * 3 / 4


def test_a_large_grid_is_enlarged_less():
    """10,000 images of 8 pixels: a factor of four is the limit. 600 in a row: not enlarged, and none omitted."""
    assert image_grid.grid(images(10_000, 8, 8, 1), columns=100).shape == (4008, 4008, 1)
    assert LONGEST_SIDE == 4096
    assert image_grid.grid(images(600, 8, 8, 1), columns=600).shape == (12, 6002, 1)


def test_images_with_labels_are_in_rows_of_one_class():
    shown, labels = images(6, 64, 64, 1), np.array([0, 1, 2, 0, 1, 2])
    picture = image_grid.grid_of_classes(shown, labels)
    np.testing.assert_array_equal(picture, image_grid.grid(shown[[0, 3, 1, 4, 2, 5]], columns=2))
    # No labels, too few images per class, or one class.
    for others in (None, np.array([0, 1, 2, 0, 1, 1]), np.zeros(6, int), np.arange(6)):
        np.testing.assert_array_equal(image_grid.grid_of_classes(shown, others), image_grid.grid(shown))


@pytest.mark.parametrize("number", [1, 7, 20, 24, 64, 100, 101, 999, 50_000])
@pytest.mark.parametrize("num_classes", [0, 2, 3, 7, 10, 13, 37, 102, 1000])
def test_grids_of_any_size_are_limited_balanced_and_not_elongated(number, num_classes):
    """At most 100 images without duplicates, aspect ratio at most 2.5 (few images: 4), equal class counts up to one."""
    labels = np.arange(number) % num_classes if num_classes else None
    plan = image_grid.plan_grid(number, labels)
    shown = plan.cells[plan.cells >= 0]
    assert len(np.unique(shown)) == len(shown) <= image_grid.MAX_IMAGES
    assert len(shown) >= min(number, 50)
    assert shown.max() < number
    assert max(plan.cells.shape) <= (4 if number < 25 else 2.5) * min(plan.cells.shape)
    assert max(plan.cells.shape) <= 20
    if labels is not None:
        counts = np.bincount(labels[shown], minlength=num_classes)
        wanted = min(num_classes, number, 100)
        assert np.sum(counts > 0) == wanted
        assert np.ptp(counts[counts > 0]) <= 1
    for row, label in zip(plan.cells, plan.row_classes, strict=bool(plan.row_classes)):
        assert set(labels[row[row >= 0]]) == {label}


def test_a_very_large_grid_shows_the_first_hundred():
    """50,000 images at 256x256 would need 10 GB."""
    many = np.broadcast_to(np.zeros((1, 256, 256, 3), np.uint8), (50_000, 256, 256, 3))
    assert image_grid.grid(many).shape == (10 * 258 + 2, 10 * 258 + 2, 3)


def test_class_names_are_next_to_their_rows():
    shown, labels = images(4, 64, 64, 3), np.array([0, 1, 0, 1])
    bare = image_grid.grid_of_classes(shown, labels)
    named = image_grid.grid_of_classes(shown, labels, ("daisy", "rose"))
    margin = named.shape[1] - bare.shape[1]
    np.testing.assert_array_equal(named[:, margin:], bare)
    ink = (named[:, :margin] < 128).any(axis=(1, 2))
    assert ink[:68].any()  # a name in each of the two rows of 66 pixels
    assert ink[68:].any()
    assert not np.array_equal(named, image_grid.grid_of_classes(shown, labels, ("daisy", "tulip")))
    assert image_grid.readable_name(("daisy", "\u83ca", "x" * 90), 1) == "1"  # the font lacks the letter
    assert len(image_grid.readable_name(("daisy", "rose", "x" * 90), 2)) <= image_grid.LONGEST_NAME
    assert image_grid.readable_name((), 7) == "7"


def test_a_strip_has_a_row_per_chain_and_its_steps_from_left_to_right():
    stages = images(3, 5, 16, 16, 3)
    picture = image_grid.strip(stages)
    np.testing.assert_array_equal(tiles(picture, 16, 4), stages)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_png_round_trip_is_lossless(tmp_path, channels, mode):
    picture = images(20, 30, channels)
    file = tmp_path / "picture.png"
    image_grid.save_png(file, picture)
    with Image.open(file) as read:
        assert (read.format, read.mode, read.size) == ("PNG", mode, (30, 20))
        np.testing.assert_array_equal(np.asarray(read).reshape(picture.shape), picture)
    np.testing.assert_array_equal(image_grid.read_png(file), picture)
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]


def test_png_writes_are_atomic(tmp_path, monkeypatch):
    """If writing fails halfway, the previous file is intact."""
    file = tmp_path / "picture.png"
    before = images(20, 30, 3)
    image_grid.save_png(file, before)

    def cut_off(self, target, **options):
        target.write(b"\x89PNG")
        raise OSError("no space left on device")

    monkeypatch.setattr(Image.Image, "save", cut_off)
    with pytest.raises(OSError, match="no space"):
        image_grid.save_png(file, images(20, 30, 3, seed=1))
    with Image.open(file) as read:
        np.testing.assert_array_equal(np.asarray(read), before)

"""Film strips: images exact to the pixel, curves aligned with their columns. Warnings are errors."""

import numpy as np
import pytest

from ddpm_jax.plotting import filmstrip
from ddpm_jax.plotting.filmstrip import Curve, Panel, sheet

COLUMN_T = (-1, 24, 49, 74, 99)
LABELS = ("image", *(f"$t={t}$" for t in COLUMN_T[1:]))


def plain_images(rows, count, size, channels=3):
    """uint8 [rows, count, size, size, C], each image in one color that no text or line has."""
    number = np.arange(rows * count, dtype=np.uint8)
    colors = np.stack([255 - 0 * number, 0 * number, 60 + 4 * number], axis=-1)[:, :channels]
    return np.broadcast_to(colors.reshape(rows, count, 1, 1, channels), (rows, count, size, size, channels))


def boxes(picture, rows):
    """(top, left, bottom, right) of each image, int [R, S, 4]; each must be a full rectangle."""
    found = np.empty((*rows.shape[:2], 4), int)
    for row, images in enumerate(rows):
        for column, image in enumerate(images):
            y, x = np.nonzero((picture == image[0, 0]).all(axis=-1))
            found[row, column] = y.min(), x.min(), y.max() + 1, x.max() + 1
            assert len(y) == (y.max() + 1 - y.min()) * (x.max() + 1 - x.min())
    return found


@pytest.mark.parametrize(("size", "factor"), [(8, 14), (28, 4), (32, 4), (64, 2), (128, 1), (256, 1)])
def test_images_are_in_rows_and_columns_and_enlarged_by_an_integer_factor(size, factor):
    rows = plain_images(2, 5, size)
    picture = sheet(rows, title="Two rows", column_labels=LABELS)
    assert picture.dtype == np.uint8
    assert picture.shape[2] == 3
    found = boxes(picture, rows)
    assert (found[..., 2:] - found[..., :2] == factor * size).all()
    assert (found[..., 0] == found[:, :1, 0]).all()  # one top per row
    assert (found[..., 1] == found[:1, :, 1]).all()  # one left per column
    assert len(set(np.diff(found[0, :, 1]))) == 1
    assert found[1, 0, 0] > found[0, 0, 2]
    top, left, bottom, right = found[0, 0, 0], found[0, 0, 1], found[-1, -1, 2], found[-1, -1, 3]
    for beside in (picture[top:bottom, left - 1], picture[top:bottom, right], picture[bottom, left:right]):
        assert (beside == 255).all()  # gray is between images only


@pytest.mark.parametrize("channels", [1, 3])
def test_every_pixel_of_an_image_is_a_block(channels):
    rows = np.random.default_rng(0).integers(0, 256, (1, 5, 8, 8, channels), dtype=np.uint8)
    where = boxes(sheet(plain_images(1, 5, 8), title="", column_labels=LABELS), plain_images(1, 5, 8))
    picture = sheet(rows, title="", column_labels=LABELS)
    for (top, left, bottom, right), image in zip(where[0], rows[0], strict=True):
        block = picture[top:bottom, left:right]
        np.testing.assert_array_equal(block, np.broadcast_to(image.repeat(14, axis=0).repeat(14, axis=1), block.shape))


def test_groups_of_rows_are_separated():
    rows = plain_images(4, 5, 8)
    tops = boxes(sheet(rows, title="", column_labels=LABELS, row_labels=list("abcd"), group=2), rows)[:, 0, 0]
    within, between = np.diff(tops)[[0, 2]], np.diff(tops)[1]
    assert within[0] == within[1] < between


@pytest.mark.parametrize("column_t", [COLUMN_T, (-1, 3, 20, 50, 99)], ids=["even", "uneven"])
def test_a_curve_is_aligned_with_the_columns_of_its_t(column_t):
    """A peak at the t of a column is within a pixel of the center of that column."""
    rows, t = plain_images(1, 5, 32), np.arange(100)
    for column in range(1, 5):
        panel = Panel("A peak", t, [Curve((t == column_t[column]).astype(float), color="#00ff00")])
        picture = sheet(rows, title="", column_labels=LABELS, column_t=column_t, panels=[panel])
        green = (picture[..., 1] > 200) & (picture[..., 0] < 60) & (picture[..., 2] < 60)
        top = np.nonzero(green.any(axis=1))[0][0]
        _, left, bottom, right = boxes(picture, rows)[0, column]
        assert top > bottom
        assert np.nonzero(green[top])[0].mean() == pytest.approx((left + right - 1) / 2, abs=1)


def test_curves_with_gaps_bundles_and_a_log_axis_are_drawn():
    """Values that are not finite, or on a log axis not positive, are omitted silently."""
    t = np.arange(100)
    values = np.geomspace(1, 1e-9, 100)
    values[[3, 50, 98, 99]] = np.nan, np.inf, -1, 0
    panels = [
        Panel(r"$\mathrm{KL}(q\|p)$", t, [Curve(np.stack([values, 2 * values], axis=1), "two")], log=True, legend="lower left"),
        Panel(
            "", t, [Curve(np.append(values[:-1], -np.inf), "one", filmstrip.SIGNAL), Curve(-values, "other", filmstrip.NOISE)]
        ),
        Panel("nothing to see", t, [Curve(np.full(100, np.nan))]),
    ]
    options = {"title": "Three", "column_labels": LABELS, "column_t": COLUMN_T}
    rows = plain_images(1, 5, 8)
    picture = sheet(rows, panels=panels, **options)
    assert picture.shape[0] > sheet(rows, panels=panels[:1], **options).shape[0]
    np.testing.assert_array_equal(picture, sheet(rows, panels=panels, **options))  # deterministic


def test_a_gap_on_a_log_axis_is_a_gap():
    """Zeros in the middle of a curve draw no line to the bottom of the axis."""
    rows, t, heights = plain_images(1, 5, 8), np.arange(100), []
    for middle in (1.0, 0.0):
        values = np.where(abs(t - 50) < 10, middle, np.linspace(1, 2, 100))
        panel = Panel("", t, [Curve(values, color="#00ff00")], log=True)
        picture = sheet(rows, title="", column_labels=LABELS, column_t=COLUMN_T, panels=[panel])
        green = (picture[..., 1] > 200) & (picture[..., 0] < 60)
        across = np.nonzero(green.any(axis=0))[0]
        assert (np.diff(across).max() > 1) == (middle == 0)
        heights.append(np.ptp(np.nonzero(green.any(axis=1))[0]))
    assert heights[0] == pytest.approx(heights[1], abs=2)


def test_long_labels_are_shrunk():
    """A title of 150 letters and labels of 30 leave the margins white."""
    rows, words = plain_images(2, 5, 8), "words of thirty letters or so"
    title, labels, spans = 5 * words, [words] * 5, [(0, 1, words), (3, 4, words)]
    beside = {"row_labels": labels[:2], "end_labels": labels[:2], "notes": [title]}
    picture = sheet(rows, title=title, column_labels=labels, spans=spans, **beside)
    for margin in (picture[:, :3], picture[:, -3:], picture[:3], picture[-3:]):
        assert (margin == 255).all()
    labels_alone = sheet(rows, title="", column_labels=["", words, "", "", ""])
    left, right = boxes(picture, rows)[0, 1, [1, 3]] - boxes(picture, rows)[0, 0, 1] + boxes(labels_alone, rows)[0, 0, 1]
    inked = np.nonzero((labels_alone < 200).all(axis=-1).any(axis=0))[0]
    assert left - 3 <= inked.min() < inked.max() <= right + 3  # a label is above its own column


def test_all_labels_are_drawn():
    """Title, column and row labels, end labels, notes and arrows each add ink between the same images."""
    rows = plain_images(2, 5, 8)
    bare = {"title": "", "column_labels": [""] * 5}

    def ink(**words):
        return (sheet(rows, **(bare | words)) < 128).all(axis=-1).sum()

    nothing = ink()
    assert ink(title="Title") > nothing
    assert ink(column_labels=LABELS) > nothing
    assert ink(row_labels=["a", "b"]) > nothing
    assert ink(spans=[(0, 1, "forward")]) > nothing
    assert ink(end_labels=["c", "d"]) > nothing
    assert ink(notes=["Each row has one noise."]) > nothing


def test_notes_are_at_the_bottom_and_end_labels_on_the_right():
    """Below the panels' axes and right of the last column: no overlap with an image or a curve."""
    rows, t = plain_images(2, 5, 8), np.arange(100)
    options = {"title": "", "column_labels": [""] * 5, "column_t": COLUMN_T, "panels": [Panel("", t, [Curve(t / 99)])]}
    bare = sheet(rows, **options)
    noted = sheet(rows, notes=["one", "two"], **options)
    assert noted.shape[0] > bare.shape[0]
    np.testing.assert_allclose(noted[: len(bare) - 20].astype(int), bare[:-20], atol=1)  # lines have other subpixel positions
    labelled = sheet(rows, end_labels=["first", "second"], **options)
    right = boxes(labelled, rows)[0, -1, 3]
    np.testing.assert_allclose(labelled[:, :right].astype(int), bare[:, :right], atol=1)
    assert (labelled[:, right + 2 :] < 128).any()
    assert (labelled[:, -3:] == 255).all()


def test_end_labels_have_one_size(monkeypatch):
    sizes = []
    draw = filmstrip._Page.draw

    def record(page):
        sizes.append({text.get_size() for text in page.figure.texts if text.get_text().startswith("class ")})
        return draw(page)

    monkeypatch.setattr(filmstrip._Page, "draw", record)
    rows = plain_images(2, 5, 16)
    for labels in (("class 0", "class 1"), ("class daisy", "class of a very long name")):
        sheet(rows, title="", column_labels=LABELS, end_labels=labels)
    assert [len(found) for found in sizes] == [1, 1]
    assert max(sizes[1]) < max(sizes[0])

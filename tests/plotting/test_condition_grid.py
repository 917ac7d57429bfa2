"""The grid of conditions, samples and originals: what is in which cell."""

import numpy as np

from ddpm_jax.plotting import condition_grid, image_grid

BLANK = image_grid.BACKGROUND


def cells(picture, columns, size=4):
    """The level of the center of each cell, row by row."""
    factor = picture.shape[1] // (columns * (size + image_grid.GAP) + image_grid.GAP)
    pitch = factor * (size + image_grid.GAP)
    start = factor * (image_grid.GAP + size // 2)
    return picture[start::pitch, start::pitch, 0][:, :columns].tolist()


def constant(levels, size, channels=1):
    return np.broadcast_to(np.array(levels, np.uint8)[:, None, None, None], (len(levels), size, size, channels)).copy()


def test_condition_sample_original():
    images, conditions, originals = constant([1, 2, 3], 4), constant([11, 12, 13], 2), constant([21, 22, 23], 4)
    picture = condition_grid.draw(images, conditions, originals)
    assert cells(picture, 3) == [[11, 1, 21], [12, 2, 22], [13, 3, 23]]


def test_samples_of_one_condition_are_in_one_row():
    picture = condition_grid.draw(constant([1, 2, 3], 4), constant([11, 11, 13], 2))
    assert cells(picture, 3) == [[11, 1, 2], [13, 3, BLANK]]


def test_many_images_are_in_several_columns():
    levels = list(range(1, 61))
    picture = condition_grid.draw(constant(levels, 4), constant(levels, 2))
    rows = cells(picture, 14)
    assert rows[0] == [1, 1, BLANK, 2, 2, BLANK, 3, 3, BLANK, 4, 4, BLANK, 5, 5]
    assert len(rows) == 10  # 48 of 60 images, five in a row
    assert rows[-1][-5:] == [BLANK] * 5


def test_pixels_of_conditions_are_enlarged_and_converted():
    condition = np.array([[[255, 0, 0], [0, 0, 255]]], np.uint8)
    np.testing.assert_array_equal(condition_grid.shown(condition, (2, 4, 3))[:, ::2], np.stack([condition[0]] * 2))
    assert condition_grid.shown(condition, (2, 4, 1))[0, :, 0].tolist() == [76, 76, 29, 29]
    assert condition_grid.shown(condition[..., :1], (2, 4, 3))[0, 0].tolist() == [255, 255, 255]

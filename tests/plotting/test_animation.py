"""Animations: layout, durations and files. tests/cli/test_visualize.py compares their content with the chains."""

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.plotting import animation


def part(number, height, channels, *, frames=2, rows=1, **options):
    images = np.random.default_rng(0).integers(0, 256, (frames, rows, number, height, height, channels), dtype=np.uint8)
    return animation.Part(images, np.arange(frames), "reverse: ddim in 50 steps", **options)


@pytest.mark.parametrize(("number", "size"), [(1, (420, 182)), (8, (8 * 116 - 4 + 24, 182)), (9, (5 * 116 + 20, 304))])
def test_images_are_in_bands_of_at_most_eight(number, size):
    drawn = animation.draw([part(number, 8, 1)], 100, 1.0)
    assert drawn.frames[0].size == size
    assert drawn.frames[0].mode == "L"
    assert drawn.lossless


def test_a_color_animation_is_lossless_if_its_images_are_enlarged(tmp_path):
    for height, lossless in ((16, True), (112, False)):
        drawn = animation.draw([part(2, height, 3)], 100, 1.0)
        assert drawn.lossless == lossless
        size = animation.save(tmp_path / "chain.webp", drawn)
        assert size == (tmp_path / "chain.webp").stat().st_size
        with Image.open(tmp_path / "chain.webp") as picture:
            assert picture.info["loop"] == 0
            assert (np.asarray(picture.convert("RGB")) == np.asarray(drawn.frames[0])).all() == lossless


def test_the_bar_and_the_labels_follow_the_part():
    """A bar of full width at T - 1, none without t; labels below the second part only, in the width of an image."""
    labels = ["class 0", "class " + "long " * 20]
    first, second = part(2, 8, 1), part(2, 8, 1, image_labels=labels)
    second.t[:] = (99, -1)
    frames = [np.asarray(frame) for frame in animation.draw([first, second], 100, 1.0).frames]
    dark = [(frame[41, 12:408] == 34).mean() for frame in frames]  # a row of the bar
    assert dark[2] == 1
    assert dark[3] == 0
    assert 0 < dark[0] < dark[1] < 0.05
    assert (frames[0][172:] == 255).all()
    below = frames[2][176:192]
    assert (below < 255).any()
    assert (below[:, : (420 - 228) // 2] == 255).all()
    assert (below[:, -(420 - 228) // 2 :] == 255).all()


def test_durations_are_multiples_of_ten_with_rests():
    durations = animation.frame_ms([41, 41], 8.0)
    assert sum(durations) == 8000
    assert all(each % 10 == 0 for each in durations)
    assert durations[0] > 800
    assert durations[40] > 480
    assert durations[-1] > 1600
    assert min(animation.frame_ms([200, 200], animation.min_seconds(400))) >= 20


def test_a_webp_of_digits_is_smaller_than_a_gif(tmp_path):
    """Noise in all frames, which compresses worst."""
    drawn = animation.draw([part(4, 8, 1, frames=41), part(4, 8, 1, frames=41)], 1000, 8.0)
    assert animation.save(tmp_path / "chain.webp", drawn) < 100_000 < animation.save(tmp_path / "chain.gif", drawn)

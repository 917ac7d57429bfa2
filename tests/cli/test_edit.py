"""inpaint, image_to_image and interpolate: output, what is kept of the input images, and errors."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ddpm_jax import build
from ddpm_jax.cli import image_to_image, inpaint, interpolate, train
from ddpm_jax.configs import digits
from ddpm_jax.data.digits import load_digits
from ddpm_jax.runtime.errors import ConflictError, ExpectedError

NETWORK = "tests.small_network:Small"

FIELDS = {
    "model.class_conditional": True,
    "diffusion.clip_denoised": False,  # clipping is not invertible
    "edit.num_images": 2,
    "edit.samples_per_image": 3,
    "sampling.batch_size": 8,
}
MODES = {"inpaint": inpaint, "image_to_image": image_to_image, "interpolate": interpolate}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("trained")


@pytest.fixture
def edit(folder, tiny_config, tmp_path):
    """(mode, fields) -> arrays of images.npz, from a tiny class-conditional run."""
    if not (folder / "config.json").exists():
        train.run(tiny_config(FIELDS), str(folder))

    calls = itertools.count()

    def run(mode, changes=None):
        out = tmp_path / f"out{next(calls)}"
        assert MODES[mode].run(tiny_config(FIELDS | (changes or {})), str(folder), output=str(out)) == 0
        with Image.open(out / f"{mode}.png") as picture:
            assert min(picture.size) > 64
        with np.load(out / "images.npz") as arrays:
            return dict(arrays)

    return run


@pytest.fixture
def originals():
    return load_digits("train").batch(np.arange(2))["image"]


@pytest.fixture
def files(tmp_path, originals):
    """The same images as files: one unchanged, the other larger, in color and not square."""
    small, large = tmp_path / "small.png", tmp_path / "large.png"
    Image.fromarray(originals[0, ..., 0]).save(small)
    wide = np.pad(originals[1, ..., 0].repeat(8, axis=0).repeat(8, axis=1), ((0, 0), (10, 10)))
    Image.fromarray(wide).convert("RGB").save(large)
    return str(small), str(large)


def test_inpainting_keeps_the_known_pixels(edit, originals, files):
    generated = edit("inpaint", {"edit.mask": "left", "edit.jump_length": 2, "edit.resampling": 2})
    images, missing = generated["images"], generated["missing"]
    assert images.shape == (2, 3, 8, 8, 1)
    assert missing.tolist() == [[True] * 4 + [False] * 4] * 8
    np.testing.assert_array_equal(generated["originals"], originals)
    np.testing.assert_array_equal(images[:, :, ~missing], np.repeat(originals[:, None], 3, axis=1)[:, :, ~missing])
    assert not np.array_equal(images[0, 0], images[0, 1])  # variants
    other = edit("inpaint", {"edit.mask": "left", "edit.jump_length": 2, "edit.resampling": 1})["images"]
    assert not np.array_equal(images, other)
    from_files = edit(
        "inpaint",
        {"edit.mask": "left", "edit.jump_length": 2, "edit.resampling": 2, "edit.images": files, "sampling.label": 0},
    )
    np.testing.assert_array_equal(from_files["originals"][0], originals[0])
    assert from_files["images"].shape == images.shape


def test_a_mask_file_is_white_where_pixels_are_generated(edit, tmp_path, tiny_config, monkeypatch):
    mask = np.zeros((8, 8), np.uint8)
    mask[2:5, 1:7] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    np.testing.assert_array_equal(edit("inpaint", {"edit.mask": str(tmp_path / "mask.png")})["missing"], mask > 0)
    monkeypatch.setenv("HOME", str(tmp_path))
    np.testing.assert_array_equal(inpaint.read_mask(tiny_config({"edit.mask": "~/mask.png"}))[..., 0], mask > 0)
    masks = {name: inpaint.read_mask(tiny_config({"edit.mask": name}))[..., 0] for name in inpaint.NAMED_MASKS}
    assert np.array_equal(masks["right"], ~masks["left"])
    assert np.array_equal(masks["bottom"], ~masks["top"])
    assert masks["center"].sum() == 16
    assert masks["center"][2:6, 2:6].all()


def test_strength_determines_how_much_of_an_image_is_kept(edit, originals):
    """With a barely trained network, a small strength stays closest to the input."""
    distances = []
    for strength in (0.25, 1.0):
        generated = edit("image_to_image", {"edit.strength": strength})["images"]
        assert generated.shape == (2, 3, 8, 8, 1)
        distances.append(np.abs(generated.astype(float) - originals[:, None]).mean())
    assert distances[0] < 0.5 * distances[1]


def test_strength_one_keeps_nothing_of_an_image():
    """Black and white inputs have the same initial state. With 2 leading steps under cosine, 70% of the signal would remain."""
    config = digits.get_config()
    config.diffusion.schedule = "cosine"
    config.sampling.update(num_steps=2, spacing="leading")
    keys, images = jax.random.split(jax.random.key(0), 2), [jnp.full((2, 8, 8, 1), level) for level in (-1.0, 1.0)]
    for strength, kept in ((1.0, 0.0), (0.99, 1.0)):
        init_fn = image_to_image.make_init_fn(build.build_sampler(config, strength=strength), strength)
        black, white = (np.asarray(init_fn(keys, x_start).x) for x_start in images)
        assert (np.abs(white - black) > 0.5).all() == bool(kept)
        assert (black == white).all() != bool(kept)


def test_an_interpolation_starts_and_ends_with_the_input_images(edit, originals, files, capsys):
    generated = edit("interpolate", {"edit.num_frames": 4, "sampling.num_steps": 20, "edit.inversion_iters": 8})
    assert generated["images"].shape == (1, 4, 8, 8, 1)
    ends = generated["images"][0, [0, -1]].astype(float)
    assert np.sqrt(np.mean((ends - originals) ** 2)) < 3  # of 255
    assert not np.array_equal(generated["images"][0, 1], generated["images"][0, 2])
    assert "reconstruction RMSE" in capsys.readouterr().out


def test_the_default_folder_is_named_after_the_options(folder, edit, tiny_config):
    edit("inpaint")
    for mode, ending in (
        ("inpaint", "mask_center-jump_1-resampling_10-3_variants"),
        ("image_to_image", "strength_0.5-3_variants"),
        ("interpolate", "turns_3-9_frames"),
    ):
        assert MODES[mode].run(tiny_config(FIELDS), str(folder)) == 0
        name = f"{mode}-step_6-ddim-4-seed_0-{ending}-train_0-2_images"
        assert {file.name for file in (folder / "samples" / name).iterdir()} == {"images.npz", f"{mode}.png", "manifest.json"}


def test_other_options_never_overwrite_a_result(folder, edit, tiny_config, tmp_path):
    """Each set of options has its own folder; the same call reuses its folder."""
    edit("image_to_image")

    def run(changes, output=""):
        assert image_to_image.run(tiny_config(FIELDS | changes), str(folder), output=output) == 0
        return set((folder / "samples").glob("image_to_image-*/images.npz"))

    before = run({})
    assert run({}) == before
    kept = {file: file.read_bytes() for file in before}
    for changes in ({"edit.start_index": 3}, {"edit.samples_per_image": 2}, {"edit.split": "test"}, {"sampling.label": 4}):
        after = run(changes)
        assert len(after) == len(before) + 1, changes
        before = after
    assert all(file.read_bytes() == data for file, data in kept.items())
    run({}, str(tmp_path / "mine"))
    with pytest.raises(ConflictError, match=r"edit\.samples_per_image was 3, now 2"):
        run({"edit.samples_per_image": 2}, str(tmp_path / "mine"))


def test_errors_are_one_line(folder, edit, tiny_config, tmp_path):
    edit("inpaint")
    Image.new("L", (8, 8)).save(tmp_path / "black.png")
    (tmp_path / "words.png").write_text("no picture")

    def refused(mode, match, changes):
        with pytest.raises(ExpectedError, match=match) as caught:
            MODES[mode].run(tiny_config(FIELDS | changes), str(folder))
        assert "\n" not in str(caught.value)

    refused("inpaint", r"is all black", {"edit.mask": str(tmp_path / "black.png")})
    refused("inpaint", r"config.edit.mask is 'middle': not a file or one of center, left", {"edit.mask": "middle"})
    refused("inpaint", r"only the samplers ancestral and ddim support: set sampler=ddim", {"sampling.sampler": "unipc"})
    refused("inpaint", r"config\.edit\.resampling is 0", {"edit.resampling": 0})
    refused("image_to_image", r"config\.edit\.strength is 0", {"edit.strength": 0.0})
    refused("image_to_image", r"cannot read the image .*not an image", {"edit.images": (str(tmp_path / "words.png"),)})
    refused(
        "image_to_image",
        r"ask for images up to 1797, but the last one of digits all is 1796",
        {"edit.start_index": 1796, "edit.split": "all"},
    )
    refused("image_to_image", r"config\.sampling\.label is missing", {"edit.images": (str(tmp_path / "black.png"),)})
    refused("interpolate", r"needs ddim with eta 0", {"sampling.ddim.eta": 0.5})
    refused("interpolate", r"set config\.edit\.num_images=2", {"edit.num_images": 1})
    refused("interpolate", r"config\.edit\.num_frames is 1", {"edit.num_frames": 1})

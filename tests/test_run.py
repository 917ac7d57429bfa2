"""`ddpm_jax.Run`: each method gives the bytes of its mode, compiles once, and raises errors that name its arguments."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddpm_jax
from ddpm_jax import build
from ddpm_jax.cli import image_to_image, inpaint, interpolate, sample
from ddpm_jax.configs import digits
from ddpm_jax.data.digits import load_digits
from tests.test_api import TINY


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    ddpm_jax.train(make_config(), folder)
    return folder


@pytest.fixture(scope="module")
def run(folder):
    return ddpm_jax.load(folder)


@pytest.fixture(scope="module")
def data():
    """Three images of the data set, and their labels."""
    batch = load_digits("train").batch(np.arange(3))
    return batch["image"], batch["label"]


def make_config(fields=None):
    config = digits.get_config()
    config.update_from_flattened_dict(TINY | (fields or {}))
    return config


@pytest.fixture
def by_mode(folder, tmp_path):
    """(mode, fields) -> arrays of images.npz that the mode writes."""
    calls = itertools.count()

    def run(mode, fields):
        out = tmp_path / f"out{next(calls)}"
        assert mode.run(make_config(fields), str(folder), output=str(out)) == 0
        with np.load(out / "images.npz") as arrays:
            return dict(arrays)

    return run


def test_samples_are_those_of_the_command_line(run, by_mode, capfd):
    fields = {
        "sampling.num_images": 5,
        "sampling.sampler": "unipc",
        "sampling.unipc.order": 3,
        "sampling.label": 3,
        "sampling.guidance_scale": 2.0,
        "sampling.seed": 7,
    }
    samples = run.sample(5, sampler="unipc", order=3, label="3", guidance_scale=2, seed=7)
    assert capfd.readouterr() == ("", "")
    written = by_mode(sample, fields)
    np.testing.assert_array_equal(samples.images, written["arr_0"])
    np.testing.assert_array_equal(samples.labels, written["labels"])
    assert samples.images.dtype == np.uint8
    assert run.sample(5, label=3, num_steps=3).images.shape == (5, 8, 8, 1)
    np.testing.assert_array_equal(run.sample(5).images, by_mode(sample, {"sampling.num_images": 5})["arr_0"])


def test_labels_one_by_one(run):
    mixed = run.sample(4, label=[1, 1, 2, 2])
    assert mixed.labels.tolist() == [1, 1, 2, 2]
    np.testing.assert_array_equal(mixed.images[:2], run.sample(4, label=1).images[:2])
    np.testing.assert_array_equal(mixed.images[2:], run.sample(4, label=np.int64(2)).images[2:])


def test_inpainting_is_that_of_the_command_line(run, by_mode, data):
    images, labels = data
    fields = {"edit.num_images": 3, "edit.samples_per_image": 2, "edit.mask": "left", "edit.resampling": 2}
    written = by_mode(inpaint, fields)
    found = run.inpaint(images, "left", label=labels, samples_per_image=2, resampling=2)
    np.testing.assert_array_equal(found.images, written["images"])
    np.testing.assert_array_equal(found.labels, labels)
    mask = np.broadcast_to(written["missing"], (3, 8, 8))
    for given in (mask[0], mask):
        again = run.inpaint(images, given, label=labels, samples_per_image=2, resampling=2)
        np.testing.assert_array_equal(again.images, written["images"])
    # A mask for each image.
    mask = np.stack([mask[0], ~mask[0], mask[0]])
    other = run.inpaint(images, mask, label=labels, samples_per_image=2, resampling=2).images
    np.testing.assert_array_equal(other[1][:, ~mask[1]], np.repeat(images[1:2], 2, axis=0)[:, ~mask[1]])


def test_image_to_image_is_that_of_the_command_line(run, by_mode, data):
    images, labels = data
    written = by_mode(image_to_image, {"edit.num_images": 3, "edit.samples_per_image": 2, "edit.strength": 0.75})
    found = run.image_to_image(images, strength=0.75, samples_per_image=2, label=labels)
    np.testing.assert_array_equal(found.images, written["images"])


def test_interpolation_is_that_of_the_command_line(run, by_mode, data):
    images, labels = data
    written = by_mode(interpolate, {"edit.num_images": 2, "edit.num_frames": 5})
    found = run.interpolate(images[0], images[1], num_frames=5, label=labels[:2])
    np.testing.assert_array_equal(found.images, written["images"][0])
    assert found.labels.tolist() == [*labels[:1].repeat(2), *labels[1:2].repeat(3)]
    np.testing.assert_array_equal(run.invert(images[:2], label=labels[:2]), written["latents"])


def test_bits_per_dim_are_those_of_the_evaluation(run, folder, tmp_path):
    held_out = load_digits("test").batch(np.arange(6))
    measured = run.bits_per_dim(held_out["image"], label=held_out["label"])
    (row,) = ddpm_jax.evaluate(run, metrics="bits_per_dim", output=tmp_path)
    assert (measured.mean, measured.standard_error) == (row["bits/dim"], row["stderr"])
    assert measured.per_image.shape == (6,)
    few = run.bits_per_dim(held_out["image"], label=held_out["label"], vlb_num_timesteps=6)
    assert few.mean != measured.mean


def test_a_trajectory_has_the_images_of_sample(run):
    found = run.trajectory(3, steps=3, label=4)
    np.testing.assert_array_equal(found.images, run.sample(3, label=4).images)
    assert found.steps.tolist() == [0, 2, 3]
    assert found.timesteps.tolist() == [15, 5, 0]  # of 4 leading steps in 20
    assert found.x_t.shape == found.pred_xstart.shape == (3, 3, 8, 8, 1)
    one = run.trajectory(3, steps=[2], label=4)
    np.testing.assert_allclose(one.x_t[:, 0], found.x_t[:, 1], atol=1e-6)
    # pred_xstart is that of the network at x_t.
    again = run.denoise(one.x_t[:, 0], int(one.timesteps[0]), label=4)
    np.testing.assert_allclose(again.x_start, one.pred_xstart[:, 0], atol=1e-5)


def test_denoise_gives_consistent_estimates(run, data):
    """x_t = alpha x_start + sigma eps and v = alpha eps - sigma x_start, without clipping."""
    images, labels = data
    t = jnp.array([0, 7, 19])
    key = jax.random.key(0)
    x_start = jnp.asarray(images) / 127.5 - 1
    level = run.schedule.level(t)
    alpha, sigma = (part[:, None, None, None] for part in (level.alpha, level.sigma))
    x_t = alpha * x_start + sigma * jax.random.normal(key, x_start.shape)
    found = run.denoise(x_t, t, label=labels)
    output = build.build_model(make_config()).apply({"params": run.params}, x_t, run.parameterization.network_time(t), labels)
    np.testing.assert_allclose(found.eps, output, atol=1e-5)  # the network predicts eps
    unclipped = (x_t - sigma * found.eps) / alpha
    np.testing.assert_allclose(found.x_start, jnp.clip(unclipped, -1, 1), atol=1e-4)
    np.testing.assert_allclose(found.v, alpha * found.eps - sigma * unclipped, atol=1e-4)
    loss = lambda x: run.denoise(x, 7, label=3).eps.sum()  # noqa: E731
    assert jax.jit(jax.grad(loss))(x_t).shape == x_t.shape
    assert not np.array_equal(run.denoise(x_t, t).eps, found.eps)  # no class


@pytest.fixture
def num_traces():
    """() -> the number of functions that JAX has traced since the start of the test."""
    count = 0

    def listen(event, duration, **_):
        nonlocal count
        count += event == "/jax/core/compile/jaxpr_trace_duration"

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield lambda: count
    jax.monitoring.unregister_event_duration_listener(listen)


def test_calls_with_the_same_settings_compile_once(folder, data, num_traces):
    images, run = data[0], ddpm_jax.load(folder)
    calls = [
        lambda seed: run.sample(4, num_steps=2, seed=seed, label=seed),
        lambda seed: run.trajectory(4, num_steps=2, steps=[0], seed=seed),
        lambda seed: run.inpaint(images, num_steps=2, resampling=1, samples_per_image=1, seed=seed),
        lambda seed: run.image_to_image(images, num_steps=2, samples_per_image=1, seed=seed),
        lambda seed: run.interpolate(images[seed], images[0], num_steps=2, num_frames=3),
        lambda seed: run.bits_per_dim(images, seed=seed),
        lambda seed: run.denoise(images / 127.5 - 1, seed),
    ]
    for call in calls:
        before = num_traces()
        call(1)
        assert num_traces() > before, "the first call traces: the counter works"
        call(2)
        before = num_traces()
        call(1)
        call(2)
        assert num_traces() == before


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda run, x: run.sample(0), "num_images is 0: it must be above 0"),
        (lambda run, x: run.sample(4, num_steps=1000), "num_steps is 1000, but the chain has only 20 steps"),
        (lambda run, x: run.sample(4, num_step=3), "num_step is neither an argument .*did you mean 'num_steps'"),
        (lambda run, x: run.sample(4, num_steps="3"), "num_steps is '3', but must be of the type int"),
        (lambda run, x: run.sample(4, sampler="dim"), "sampler is 'dim': choose one of ancestral, ddim"),
        (lambda run, x: run.sample(4, sampler=3), "sampler is 3: it must be a name"),
        (lambda run, x: run.sample(4, sampler="unipc", order=9), "order is 9: unipc has the orders 1, 2 and 3"),
        (lambda run, x: run.sample(4, sampler="unipc", eta=1.0), "eta is neither .* sampler unipc .its options: order"),
        (lambda run, x: run.sample(4, eta=-1.0), "eta is -1"),
        (lambda run, x: run.sample(4, label="ten"), "label is 'ten': the classes are 0, 1"),
        (lambda run, x: run.sample(4, label=10), "label is 10: the classes are 0..9"),
        (lambda run, x: run.sample(4, label=[1, 2]), "label has dtype int64 and shape .2.: it must be one label, or 4"),
        (lambda run, x: run.sample(4, label=[1, 2, 3, 10]), "label contains 10: the classes are 0..9"),
        (lambda run, x: run.sample(4, guidance_scale=-1), "guidance_scale is -1"),
        (lambda run, x: run.sample(4, seed=-1), "seed is -1: it must be an integer from 0"),
        (lambda run, x: run.trajectory(4, steps=9), "steps is 9: it must be a number of steps from 1 to 4"),
        (lambda run, x: run.trajectory(4, steps=[4]), r"steps is \[4\]: the steps of this call are 0..3"),
        (lambda run, x: run.denoise(x, 3), r"x_t is uint8 of shape \[3, 8, 8, 1\]: it must be floating \[B, 8, 8, 1\]"),
        (lambda run, x: run.denoise(x / 255, 20), "t contains 20: it must be in 0..19"),
        (lambda run, x: run.denoise(x / 255, [1, 2]), r"t is int32 of shape \[2\]: it must be an int, or 3 of them"),
        (lambda run, x: run.inpaint(x / 255), r"images has dtype float64 .* must be uint8 \[N, 8, 8, 1\]"),
        (lambda run, x: run.inpaint(x[0]), r"images has dtype uint8 and shape \[8, 8, 1\]"),
        (lambda run, x: run.inpaint(x, "middle"), "mask is 'middle': choose one of center, left"),
        (lambda run, x: run.inpaint(x, np.zeros((8, 8), bool)), "mask is all False"),
        (
            lambda run, x: run.inpaint(x, np.zeros((8, 8))),
            r"mask has dtype float64 .*: it must be bool \[8, 8\], or \[3, 8, 8\]",
        ),
        (lambda run, x: run.inpaint(x, resampling=0), "resampling is 0: it must be above 0"),
        (lambda run, x: run.inpaint(x, sampler="heun"), "sampler: inpainting also adds noise"),
        (lambda run, x: run.inpaint(x, num_images=3), "num_images is not an argument here: use samples_per_image"),
        (lambda run, x: run.image_to_image(x, strength=2.0), "strength is 2: it must be above 0 and at most 1"),
        (lambda run, x: run.invert(x, inversion_iters=0), "inversion_iters is 0: it must be above 0"),
        (lambda run, x: run.interpolate(x, x), r"a has dtype uint8 and shape \[3, 8, 8, 1\]: it must be uint8 \[8, 8, 1\]"),
        (lambda run, x: run.interpolate(x[0], x[1], num_frames=1), "num_frames is 1: it includes both ends"),
        (lambda run, x: run.bits_per_dim(x, vlb_num_timesteps=3), "vlb_num_timesteps: 3 timesteps per image"),
    ],
)
def test_errors_name_the_argument(run, data, call, message):
    with pytest.raises(ValueError, match=message) as found:
        call(run, data[0])
    text = str(found.value)
    assert "\n" not in text
    assert not any(name in text for name in ("--", "config.sampling", "config.edit", "config.evaluation"))


def test_a_model_without_classes(tmp_path):
    config = make_config({"model.class_conditional": False, "model.label_dropout": 0.0, "train.num_steps": 1})
    ddpm_jax.train(config, tmp_path / "run")
    run = ddpm_jax.load(tmp_path / "run")
    assert run.sample(2).labels is None
    assert run.denoise(np.zeros((2, 8, 8, 1), np.float32), 3).x_start.shape == (2, 8, 8, 1)
    for call in (lambda: run.sample(2, label=3), lambda: run.sample(2, label=[3, 4])):
        with pytest.raises(ValueError, match=r"label is (set|given), but"):
            call()


def test_a_model_that_needs_a_class(tmp_path, data):
    ddpm_jax.train(make_config({"model.label_dropout": 0.0, "train.num_steps": 1}), tmp_path / "run")
    run = ddpm_jax.load(tmp_path / "run")
    for call in (lambda: run.bits_per_dim(data[0]), lambda: run.image_to_image(data[0]), lambda: run.denoise(data[0] / 255, 3)):
        with pytest.raises(ValueError, match="label is missing: this model needs a class"):
            call()
    assert run.image_to_image(data[0], label="3", samples_per_image=1).labels.tolist() == [3, 3, 3]

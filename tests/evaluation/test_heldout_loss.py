"""The loss of held-out images: fixed t and noise, on any number of devices, compiled once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.data.source import ArraySource
from ddpm_jax.diffusion.losses import make_loss
from ddpm_jax.diffusion.parameterization import Parameterization
from ddpm_jax.diffusion.schedules import make_schedule
from ddpm_jax.evaluation.heldout_loss import HeldoutLoss, read_evenly, stratified_timesteps
from ddpm_jax.runtime import mesh as meshes

SCHEDULE = make_schedule("cosine", 50)
IMAGES = np.random.default_rng(0).integers(0, 256, (203, 4, 4, 1), dtype=np.uint8)
LABELS = (np.arange(203) % 3).astype(np.int32)
TRACES = []


def make_denoise_fn(params, cond):
    TRACES.append(None)
    shift = 0.0 if cond is None else 0.1 * cond.astype(jnp.float32)[:, None, None, None]
    return lambda x_t, t: params * x_t + shift


def make(devices=8, batch_size=64, cond=None, prediction="eps"):
    return HeldoutLoss(
        IMAGES,
        cond,
        schedule=SCHEDULE,
        parameterization=Parameterization(prediction, "fixed_large", clip_denoised=True),
        loss_fn=make_loss("simple"),
        make_denoise_fn=make_denoise_fn,
        mesh=meshes.make_mesh(jax.devices()[:devices]),
        batch_size=batch_size,
    )


def test_the_loss_of_a_network_without_output_is_the_variance_of_the_target():
    """With prediction eps the target is standard normal noise; with x_start it is the image."""
    values = np.square(IMAGES / 127.5 - 1).mean()
    assert make()(jnp.float32(0)) == pytest.approx(1, abs=4 * np.sqrt(2 / IMAGES.size))
    assert make(prediction="x_start")(jnp.float32(0)) == pytest.approx(values, rel=1e-5)


def test_it_is_a_function_of_the_parameters_only():
    loss = make(cond=LABELS)
    first, other, again = (loss(jnp.float32(x)) for x in (0.3, 0.5, 0.3))
    assert first == again != other
    assert make(cond=None)(jnp.float32(0.3)) != first
    for devices, batch_size in ((1, 64), (8, 32), (2, 500)):
        assert make(devices, batch_size, LABELS)(jnp.float32(0.3)) == pytest.approx(first, rel=1e-6)


def test_it_is_traced_once():
    loss = make()
    TRACES.clear()
    for x in (0.1, 0.2, 0.3):
        loss(jnp.float32(x))
    assert len(TRACES) == 1


@pytest.mark.parametrize(("number", "steps"), [(1, 10), (10, 10), (25, 10), (7, 1000), (1000, 7)])
def test_timesteps_cover_the_chain_evenly(number, steps):
    t = stratified_timesteps(number, steps)
    assert t.dtype == np.int32
    assert (t.min() >= 0, t.max() < steps) == (True, True)
    counts = np.histogram(t, bins=min(number, steps), range=(0, steps))[0]
    assert counts.max() - counts.min() <= 1
    if number > 9:
        assert np.any(np.diff(t) < 0)  # not in the order of the images


def test_images_are_spread_over_the_set():
    source = ArraySource(IMAGES, LABELS, num_classes=3, name="a", split="test")
    batch = read_evenly(source, 5)
    images, labels = batch["image"], batch["label"]
    rows = [0, 40, 81, 121, 162]
    np.testing.assert_array_equal(images, IMAGES[rows])
    np.testing.assert_array_equal(labels, LABELS[rows])
    assert len(read_evenly(source, 1000)["image"]) == len(IMAGES)

"""Training losses: closed forms, invariances, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.process import diffusion, losses
from ddpm_jax.process.schedules import make_schedule

SHAPE = (4, 4, 4, 3)
T = np.array([0, 3, 50, 99], np.int32)  # of 100


@pytest.fixture(scope="module")
def schedule():
    return make_schedule("linear", 100)


@pytest.fixture(scope="module")
def batch(schedule):
    """x_start, x_t, t, noise."""
    generator = np.random.default_rng(0)
    x_start = generator.uniform(-1, 1, SHAPE).astype(np.float32)
    noise = generator.standard_normal(SHAPE).astype(np.float32)
    return x_start, diffusion.q_sample(schedule, x_start, T, noise), T, noise


def target(schedule, batch, prediction):
    """What the network should say, from x_t by the inverse conversions in float64 NumPy."""
    x_start, _, t, noise = batch
    signal = np.sqrt(schedule.alphas_cumprod[t])[:, None, None, None]
    spread = schedule.sqrt_one_minus_alphas_cumprod[t][:, None, None, None]
    return {"eps": noise, "x_start": x_start, "v": signal * noise - spread * x_start}[prediction].astype(np.float32)


def test_every_prediction_has_a_target():
    assert set(losses.TARGETS) == set(diffusion.PREDICTIONS)


@pytest.mark.parametrize("prediction", diffusion.PREDICTIONS)
def test_loss_is_the_mean_square_of_the_error(schedule, batch, prediction):
    """An error of 0, .5, 1 and -2 in every pixel costs 0, .25, 1 and 4; 1e-5."""
    error = np.array([0, 0.5, 1, -2], np.float32)
    output = target(schedule, batch, prediction) + error[:, None, None, None]
    loss = losses.training_losses(schedule, output, *batch, prediction=prediction)
    assert loss.shape == (4,)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, error**2, rtol=1e-5, atol=1e-10)


@pytest.mark.parametrize("prediction", diffusion.PREDICTIONS)
def test_loss_is_a_mean_over_pixels_and_channels(schedule, batch, prediction):
    """One wrong number out of 4 x 4 x 3 costs a 48th of its square; 1e-5."""
    output = target(schedule, batch, prediction)
    output[:, 2, 1, 0] += 3
    loss = losses.training_losses(schedule, output, *batch, prediction=prediction, loss="simple")
    np.testing.assert_allclose(loss, np.full(4, 9 / 48), rtol=1e-5)


def test_predictions_weigh_one_error_in_x_start_as_the_header_says(schedule, batch):
    """The same guess of x_start, said as eps, costs acp / (1 - acp) times as much; said as v, 1 / (1 - acp). 1e-3."""
    x_start, x_t, t, _ = batch
    guess = x_start + 0.1
    eps = diffusion.predict_eps_from_xstart(schedule, x_t, t, guess)
    outputs = {"x_start": guess, "eps": eps, "v": diffusion.predict_v(schedule, guess, t, eps)}
    cost = {name: losses.training_losses(schedule, output, *batch, prediction=name) for name, output in outputs.items()}
    cumprod = schedule.alphas_cumprod[t]
    np.testing.assert_allclose(cost["x_start"], np.full(4, 0.01), rtol=1e-3)
    np.testing.assert_allclose(cost["eps"], 0.01 * cumprod / (1 - cumprod), rtol=1e-3)
    np.testing.assert_allclose(cost["v"], 0.01 / (1 - cumprod), rtol=1e-3)


@pytest.mark.parametrize("prediction", diffusion.PREDICTIONS)
def test_item_alone_equals_item_in_a_batch(schedule, batch, prediction):
    output = np.random.default_rng(1).standard_normal(SHAPE).astype(np.float32)
    whole = losses.training_losses(schedule, output, *batch, prediction=prediction)
    for item in range(4):
        alone = [array[item : item + 1] for array in (output, *batch)]
        loss = losses.training_losses(schedule, *alone, prediction=prediction)
        np.testing.assert_allclose(loss[0], whole[item], rtol=1e-6)  # the order of the sum may differ


@pytest.mark.parametrize("prediction", diffusion.PREDICTIONS)
def test_loss_of_a_half_precision_network_is_summed_in_float32(schedule, batch, prediction):
    """The loss of bfloat16 numbers is that of the same numbers in float32, in and out of jit; 1e-6."""
    output = jnp.asarray(np.random.default_rng(2).standard_normal(SHAPE), jnp.bfloat16)
    loss = functools.partial(losses.training_losses, prediction=prediction)
    expected = loss(schedule, output.astype(jnp.float32), *batch)
    for result in (loss(schedule, output, *batch), jax.jit(loss)(schedule, output, *batch)):
        assert result.dtype == jnp.float32
        np.testing.assert_allclose(result, expected, rtol=1e-6)


def test_loss_is_float32_under_x64_too(schedule, batch):
    with jax.enable_x64(True):
        arrays = [jnp.asarray(array, jnp.float64) for array in (batch[0], batch[1], batch[3])]
        loss = losses.training_losses(schedule, arrays[0], *arrays[:2], T, arrays[2], prediction="v")
    assert loss.dtype == jnp.float32


def test_gradient_points_at_the_target(schedule, batch):
    """d loss / d output = 2 (output - target) / 48; 1e-6."""
    output = np.random.default_rng(3).standard_normal(SHAPE).astype(np.float32)
    gradient = jax.grad(lambda guess: losses.training_losses(schedule, guess, *batch, prediction="v").sum())(output)
    np.testing.assert_allclose(gradient, 2 * (output - target(schedule, batch, "v")) / 48, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prediction": "noise"}, "'noise'.*eps, x_start, v"),
        ({"prediction": "eps", "loss": "l1"}, "'l1'.*simple"),
    ],
)
def test_unknown_options_are_refused(schedule, batch, options, message):
    with pytest.raises(ValueError, match=message):
        losses.training_losses(schedule, batch[3], *batch, **options)


@pytest.mark.parametrize("position", range(5))
@pytest.mark.parametrize("prediction", diffusion.PREDICTIONS)
def test_an_array_of_another_shape_is_refused(schedule, batch, position, prediction):
    arguments = [batch[3], *batch]
    arguments[position] = arguments[position][:3]
    with pytest.raises(ValueError, match="shape"):
        losses.training_losses(schedule, *arguments, prediction=prediction)


def test_images_in_bytes_are_refused(schedule, batch):
    x_start, x_t, t, noise = batch
    with pytest.raises(ValueError, match="x_start is uint8"):
        losses.training_losses(schedule, noise, x_start.astype(np.uint8), x_t, t, noise, prediction="eps")

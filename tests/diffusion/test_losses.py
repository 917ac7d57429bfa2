"""Training losses: closed forms, invariances, and invalid combinations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import gaussian, likelihood, loss_weighting, losses
from ddpm_jax.diffusion.parameterization import PREDICTIONS, Parameterization, predict_eps_from_xstart, predict_v
from ddpm_jax.diffusion.schedules import make_schedule

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
    return x_start, gaussian.q_sample(schedule, x_start, T, noise), T, noise


def predicting(prediction="eps", variance="fixed_small", *, clip_denoised=False):
    return Parameterization(prediction, variance, clip_denoised)


def target(schedule, batch, prediction):
    """The target of the network, from x_t by the inverse conversions in float64 NumPy."""
    x_start, _, t, noise = batch
    signal = np.sqrt(schedule.alphas_cumprod[t])[:, None, None, None]
    spread = schedule.sqrt_one_minus_alphas_cumprod[t][:, None, None, None]
    return {"eps": noise, "x_start": x_start, "v": signal * noise - spread * x_start}[prediction].astype(np.float32)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_loss_is_the_mean_square_of_the_error(schedule, batch, prediction):
    """An error of 0, .5, 1 and -2 in every pixel costs 0, .25, 1 and 4; 1e-5."""
    error = np.array([0, 0.5, 1, -2], np.float32)
    output = target(schedule, batch, prediction) + error[:, None, None, None]
    loss = losses.training_losses(schedule, predicting(prediction), output, *batch)
    assert loss.shape == (4,)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, error**2, rtol=1e-5, atol=1e-10)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_loss_is_a_mean_over_pixels_and_channels(schedule, batch, prediction):
    """One error in 4 x 4 x 3 values costs a 48th of its square; 1e-5."""
    output = target(schedule, batch, prediction)
    output[:, 2, 1, 0] += 3
    loss = losses.training_losses(schedule, predicting(prediction), output, *batch, loss="simple")
    np.testing.assert_allclose(loss, np.full(4, 9 / 48), rtol=1e-5)


def test_predictions_weight_an_error_in_x_start_as_documented(schedule, batch):
    """The same x̂_0 costs acp / (1 - acp) times as much as eps, and 1 / (1 - acp) times as v. 1e-3."""
    x_start, x_t, t, _ = batch
    pred_xstart = x_start + 0.1
    eps = predict_eps_from_xstart(x_t, schedule.level(t), pred_xstart)
    outputs = {"x_start": pred_xstart, "eps": eps, "v": predict_v(pred_xstart, schedule.level(t), eps)}
    cost = {name: losses.training_losses(schedule, predicting(name), output, *batch) for name, output in outputs.items()}
    cumprod = schedule.alphas_cumprod[t]
    np.testing.assert_allclose(cost["x_start"], np.full(4, 0.01), rtol=1e-3)
    np.testing.assert_allclose(cost["eps"], 0.01 * cumprod / (1 - cumprod), rtol=1e-3)
    np.testing.assert_allclose(cost["v"], 0.01 / (1 - cumprod), rtol=1e-3)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_batch_items_are_independent(schedule, batch, prediction):
    output = np.random.default_rng(1).standard_normal(SHAPE).astype(np.float32)
    whole = losses.training_losses(schedule, predicting(prediction), output, *batch)
    for item in range(4):
        alone = [array[item : item + 1] for array in (output, *batch)]
        loss = losses.training_losses(schedule, predicting(prediction), *alone)
        np.testing.assert_allclose(loss[0], whole[item], rtol=1e-6)  # the order of the sum may differ


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_loss_of_a_half_precision_network_is_summed_in_float32(schedule, batch, prediction):
    """The loss of bfloat16 values is that of the same values in float32, in and out of jit; 1e-6."""
    output = jnp.asarray(np.random.default_rng(2).standard_normal(SHAPE), jnp.bfloat16)
    loss = functools.partial(losses.training_losses, schedule, predicting(prediction))
    expected = loss(output.astype(jnp.float32), *batch)
    for result in (loss(output, *batch), jax.jit(loss)(output, *batch)):
        assert result.dtype == jnp.float32
        np.testing.assert_allclose(result, expected, rtol=1e-6)


def test_loss_is_float32_under_x64(schedule, batch):
    with jax.enable_x64(True):
        arrays = [jnp.asarray(array, jnp.float64) for array in (batch[0], batch[1], batch[3])]
        loss = losses.training_losses(schedule, predicting("v"), arrays[0], *arrays[:2], T, arrays[2])
    assert loss.dtype == jnp.float32


def test_gradient_points_at_the_target(schedule, batch):
    """d loss / d output = 2 (output - target) / 48; 1e-6."""
    output = np.random.default_rng(3).standard_normal(SHAPE).astype(np.float32)
    gradient = jax.grad(lambda v: losses.training_losses(schedule, predicting("v"), v, *batch).sum())(output)
    np.testing.assert_allclose(gradient, 2 * (output - target(schedule, batch, "v")) / 48, rtol=1e-5, atol=1e-6)


# Losses with the bound in them.


def learned(batch, seed=4):
    """Any output for a learned variance."""
    generator = np.random.default_rng(seed)
    output = batch[3] + 0.1 * generator.standard_normal(SHAPE).astype(np.float32)
    return np.concatenate([output, generator.uniform(-1, 1, SHAPE).astype(np.float32)], axis=-1)


def loss_of(schedule, batch, name, variance="learned_range", prediction="eps", **options):
    return lambda output: losses.training_losses(
        schedule, predicting(prediction, variance), output, *batch, loss=name, **options
    )


def test_losses_are_sums_of_their_terms(schedule, batch):
    """T = 100: vlb has 100 times the term, hybrid a tenth of it, and both are unclipped. 1e-6."""
    output, (x_start, x_t, t, _) = learned(batch), batch
    bits, clipped = (
        likelihood.vb_terms(schedule, predicting("eps", "learned_range", clip_denoised=clip), output, x_start, x_t, t).bits
        for clip in (False, True)
    )
    assert (bits != clipped).any()
    simple = losses.training_losses(schedule, predicting("eps"), output[..., :3], *batch)
    expected = {"vlb": 100 * bits, "vlb_mean": bits, "hybrid": simple + 0.1 * bits, "hybrid_mean": simple + bits}
    for name, value in expected.items():
        result = loss_of(schedule, batch, name)(output)
        assert result.dtype == jnp.float32
        np.testing.assert_allclose(result, value, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_hybrid_trains_the_mean_by_simple_and_the_variance_by_the_bound(schedule, batch, prediction):
    """Each half of the output gets the gradient of its own term: 1e-6, and 1e-6 of the largest slope of a variance."""
    output = learned(batch)

    def gradient(loss):
        return np.split(np.asarray(jax.jit(jax.grad(lambda output: loss(output).sum()))(output)), 2, axis=-1)

    of_mean, of_variance = gradient(loss_of(schedule, batch, "hybrid", prediction=prediction))
    simple = functools.partial(losses.training_losses, schedule, predicting(prediction))
    of_simple, nothing = gradient(lambda output: simple(output[..., :3], *batch))
    of_mean_in_bound, of_bound = gradient(loss_of(schedule, batch, "vlb", prediction=prediction))
    np.testing.assert_allclose(of_mean, of_simple, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(1000 * of_variance, of_bound, rtol=1e-4, atol=1e-6 * np.abs(of_bound).max())
    assert (nothing == 0).all()
    assert (of_mean_in_bound != 0).any(axis=(1, 2, 3)).all()
    assert (of_bound[1:] != 0).all()


def test_the_bound_is_minimal_at_the_optimal_variance(schedule, batch):
    """Its slope in the variance output is 0 where σ² = β̃ + c1² (x_0 - x̂_0)², and changes sign there."""
    x_start, x_t, _, _ = batch
    t = np.full(4, 50, np.int32)
    low, high = np.exp(schedule.posterior_log_variance_clipped[50]), schedule.betas[50]
    right = 2 * np.log(0.5 * (low + high) / low) / np.log(high / low) - 1  # halfway between the two variances
    error = np.sqrt(0.5 * (high - low)) / schedule.posterior_mean_coef1[50]

    def slope(v):
        output = np.concatenate([x_start + error, np.full(SHAPE, v)], axis=-1).astype(np.float32)
        loss = loss_of(schedule, (x_start, x_t, t, x_start), "vlb", prediction="x_start")
        return np.asarray(jax.grad(lambda output: loss(output).sum())(output))[..., 3:]

    off = slope(right + 0.3)
    assert (off > 0).all()
    assert (slope(right - 0.3) < 0).all()
    assert np.abs(slope(right)).max() < 2e-3 * off.max()


@pytest.mark.parametrize("name", ["vlb", "hybrid"])
def test_half_precision_outputs_make_float32_losses(schedule, batch, name):
    output = jnp.asarray(learned(batch), jnp.bfloat16)
    loss = loss_of(schedule, batch, name)
    result = jax.jit(loss)(output)
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, loss(output.astype(jnp.float32)), rtol=1e-5)


def test_weighting_applies_only_to_the_simple_part_of_hybrid(schedule, batch):
    """1e-5."""
    output, weighting = learned(batch), loss_weighting.make_weighting("min_snr_gamma")
    plain = losses.training_losses(schedule, predicting("eps"), output[..., :3], *batch)
    weighted = losses.training_losses(schedule, predicting("eps"), output[..., :3], *batch, weighting=weighting)
    assert (plain[:2] > 1.5 * weighted[:2]).all()
    both = [loss_of(schedule, batch, "hybrid", weighting=choice)(output) for choice in (None, weighting)]
    np.testing.assert_allclose(both[0] - both[1], plain - weighted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_vlb_of_a_fixed_variance_is_a_weighted_square(schedule, batch, variance):
    """At t > 0, with the posterior's own variance: T c1² / (2 β̃ ln 2) times the error in x_start. 1e-5."""
    x_start, _, t, _ = batch
    values = loss_of(schedule, batch, "vlb", variance, "x_start")(x_start + 0.2)[1:]
    ratio, log_variance = 1.0, schedule.posterior_log_variance_clipped[t[1:]]
    if variance == "fixed_large":
        log_variance = np.log(schedule.betas[t[1:]])
        ratio = schedule.posterior_variance[t[1:]] / schedule.betas[t[1:]]
    nats = 0.5 * (ratio - 1 - np.log(ratio) + schedule.posterior_mean_coef1[t[1:]] ** 2 * 0.04 / np.exp(log_variance))
    np.testing.assert_allclose(values, 100 * nats / np.log(2), rtol=1e-5)


SNR = loss_weighting.make_weighting("snr")


@pytest.mark.parametrize(
    ("parameterization", "options", "message"),
    [
        (predicting("eps"), {"loss": "l1"}, r"'l1'.*simple, vlb, vlb_mean, hybrid, hybrid_mean$"),
        (predicting("eps", "learned_range"), {}, r"does not train .* learned_range: choose the loss hybrid or vlb$"),
        (
            predicting("eps", "fixed_large"),
            {"loss": "hybrid"},
            r"hybrid needs a learned variance: choose the variance learned_range, or the loss simple$",
        ),
        (predicting("eps", "fixed_small"), {"loss": "vlb", "weighting": SNR}, r"uses the weights of the bound"),
        (predicting("eps", "learned_range"), {"loss": "vlb"}, r"twice the channels"),
    ],
)
def test_invalid_combinations_are_rejected_in_one_line(schedule, batch, parameterization, options, message):
    with pytest.raises(ValueError, match=message) as error:
        losses.training_losses(schedule, parameterization, batch[3], *batch, **options)
    assert "\n" not in str(error.value)


def test_invalid_combinations_at_zero_terminal_snr_are_rejected(batch):
    pure, x = make_schedule("linear", 100, zero_terminal_snr=True), batch[0]
    x_t = gaussian.q_sample(pure, x, T, batch[3])

    def loss(prediction, **options):
        return losses.training_losses(pure, predicting(prediction), x, x, x_t, T, batch[3], **options)

    with pytest.raises(ValueError, match=r"^a chain with zero terminal SNR needs the prediction x_start or v, not eps$"):
        loss("eps")
    for name in ("snr", "min_snr_gamma", "p2"):
        with pytest.raises(ValueError, match=r"not be trained: wrap it in loss_weighting\.trained_at_zero_snr$"):
            loss("v", weighting=loss_weighting.make_weighting(name))
        weighting = loss_weighting.trained_at_zero_snr(loss_weighting.make_weighting(name))
        assert np.isfinite(loss("v", weighting=weighting)).all()
        with pytest.raises(ValueError, match="not be trained"):
            jax.jit(lambda: loss("v", weighting=loss_weighting.make_weighting("snr")))()
    assert np.isfinite(loss("v")).all()
    assert np.isfinite(loss("x_start", loss="vlb")).all()


@pytest.mark.parametrize("position", range(5))
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_mismatched_shapes_are_rejected(schedule, batch, position, prediction):
    arguments = [batch[3], *batch]
    arguments[position] = arguments[position][:3]
    with pytest.raises(ValueError, match="shape"):
        losses.training_losses(schedule, predicting(prediction), *arguments)


def test_uint8_images_are_rejected(schedule, batch):
    x_start, x_t, t, noise = batch
    with pytest.raises(ValueError, match="x_start is uint8"):
        losses.training_losses(schedule, predicting("eps"), noise, x_start.astype(np.uint8), x_t, t, noise)

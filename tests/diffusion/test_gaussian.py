"""The diffusion process: forward, reverse, conversions, and invalid arguments."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import gaussian, parameterization
from ddpm_jax.diffusion.parameterization import PREDICTIONS, Parameterization, predict_eps_from_xstart
from ddpm_jax.diffusion.schedules import SCHEDULES, make_schedule, respace, schedule_from_betas
from ddpm_jax.diffusion.spacings import spaced_timesteps
from ddpm_jax.diffusion.variances import model_variance

SHAPE = (5, 4, 4, 3)
T = np.array([0, 1, 20, 250, 499], np.int32)  # of 500
VARIANCES = ("fixed_small", "fixed_large")


def images(seed, shape=SHAPE, dtype=np.float32):
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(dtype)


def standard_normal(seed, shape=SHAPE, dtype=np.float32):
    return np.random.default_rng(1000 + seed).standard_normal(shape).astype(dtype)


def output_for(schedule, x_start, t, noise, prediction):
    """The output of a network that knows the image."""
    return PREDICTIONS[prediction].target(x_start, schedule.level(t), noise)


def predicting(prediction="eps", variance="fixed_small", *, clip_denoised=True):
    return Parameterization(prediction, variance, clip_denoised)


# Forward.


@pytest.mark.parametrize("name", SCHEDULES)
def test_iterated_q_step_equals_q_sample(name):
    """q_step is linear in its two inputs, so its scales, iterated, must be those of q_sample. 1e-10 in float64."""
    with jax.enable_x64(True):
        schedule = make_schedule(name, 100)
        one, none = jnp.ones((1, 1)), jnp.zeros((1, 1))
        signal, variance = one, none
        for step in range(100):
            t = jnp.array([step])
            signal = gaussian.q_step(schedule, signal, t, none)
            variance = jnp.square(gaussian.q_step(schedule, jnp.sqrt(variance), t, none))
            variance = variance + jnp.square(gaussian.q_step(schedule, none, t, one))
            np.testing.assert_allclose(signal, gaussian.q_sample(schedule, one, t, none), rtol=1e-10)
            np.testing.assert_allclose(variance, jnp.square(gaussian.q_sample(schedule, none, t, one)), rtol=1e-10)
            mean, marginal, log_marginal = gaussian.q_mean_variance(schedule, one, t)
            np.testing.assert_allclose(signal, mean, rtol=1e-10)
            np.testing.assert_allclose(variance, marginal, rtol=1e-10)
            np.testing.assert_allclose(np.log(variance), log_marginal, rtol=1e-10)


@pytest.mark.parametrize("kept", [None, "trailing", "quadratic"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_posterior_is_bayes_product_of_two_gaussians(name, kept):
    """q(x_{t-1} | x_0) q(x_t | x_{t-1}), both from the functions above, multiplied and normalized. 1e-10 in float64."""
    with jax.enable_x64(True):
        schedule = make_schedule(name, 500)
        if kept:
            schedule = respace(schedule, spaced_timesteps(500, 40, kept))
        t = jnp.arange(1, schedule.num_timesteps)
        x_start, x_t = (jnp.asarray(draw(1, (len(t), 2, 2, 1), np.float64)) for draw in (images, standard_normal))
        prior_mean, prior_variance, _ = gaussian.q_mean_variance(schedule, x_start, t - 1)
        ones, zeros = jnp.ones_like(x_t), jnp.zeros_like(x_t)
        slope = gaussian.q_step(schedule, ones, t, zeros)
        noise_variance = jnp.square(gaussian.q_step(schedule, zeros, t, ones))
        precision = 1 / prior_variance + slope**2 / noise_variance
        expected = (prior_mean / prior_variance + slope * x_t / noise_variance) / precision

        mean, variance, log_variance = gaussian.q_posterior_mean_variance(schedule, x_start, x_t, t)
        assert mean.dtype == variance.dtype == jnp.float64
        assert variance.shape == log_variance.shape == (len(t), 1, 1, 1)
        np.testing.assert_allclose(mean, expected, rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(variance * ones, 1 / precision, rtol=1e-10)
        np.testing.assert_allclose(log_variance * ones, -jnp.log(precision), rtol=1e-10)


def test_posterior_at_the_first_step_is_the_image():
    schedule = make_schedule("linear", 500)
    x_start, x_t, t = images(1), standard_normal(1), np.zeros(5, np.int32)
    mean, variance, log_variance = gaussian.q_posterior_mean_variance(schedule, x_start, x_t, t)
    np.testing.assert_array_equal(mean, x_start)
    assert (np.asarray(variance) == 0).all()
    np.testing.assert_allclose(log_variance, np.log(schedule.posterior_variance[1]), rtol=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
def test_respaced_chain_has_the_same_q_sample(name):
    schedule = make_schedule(name, 1000)
    kept = spaced_timesteps(1000, 5, "quadratic")
    short = respace(schedule, kept)
    x_start, noise = images(2), standard_normal(2)
    expected = gaussian.q_sample(schedule, x_start, kept, noise)
    np.testing.assert_allclose(gaussian.q_sample(short, x_start, np.arange(5), noise), expected, rtol=1e-6, atol=1e-6)


# Reverse.


def test_v_prediction_works_at_zero_terminal_snr():
    """At zero SNR, x_t = eps and v = -x_start: the image is determined by the network alone."""
    schedule = schedule_from_betas(np.array([0.1, 0.5, 1.0]))
    x_start, noise, t = images(6), standard_normal(6), np.full(5, 2, np.int32)
    x_t = gaussian.q_sample(schedule, x_start, t, noise)
    np.testing.assert_array_equal(x_t, noise)
    for prediction, output in (("v", -x_start), ("x_start", x_start)):
        step = gaussian.p_sample(schedule, predicting(prediction, "fixed_large"), output, x_t, t, noise)
        np.testing.assert_array_equal(step[1], x_start)
        assert np.isfinite(step[0]).all()


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_reverse_step_of_a_perfect_network_is_the_posterior(prediction, variance, clip):
    """1e-5 times the scale of the conversion."""
    schedule = make_schedule("linear", 500)
    x_start, noise = images(8), standard_normal(8)
    x_t = gaussian.q_sample(schedule, x_start, T, noise)
    output = output_for(schedule, x_start, T, noise, prediction)
    reading = predicting(prediction, variance, clip_denoised=clip)
    mean, log_variance, pred_xstart = gaussian.p_mean_variance(schedule, reading, output, x_t, T)
    scale = schedule.sqrt_recip_alphas_cumprod[T].max()  # 160
    expected, _, _ = gaussian.q_posterior_mean_variance(schedule, x_start, x_t, T)
    np.testing.assert_allclose(pred_xstart, x_start, atol=1e-5 * scale)
    np.testing.assert_allclose(mean, expected, atol=1e-5)
    _, expected_log = model_variance(schedule, x_t, T, variance=variance)
    np.testing.assert_array_equal(log_variance, expected_log)


@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(("name", "steps"), [("linear", 500), ("cosine", 1), ("cosine", 1000), ("sigmoid", 10)])
def test_last_step_of_a_perfect_network_is_the_image(name, steps, prediction, variance):
    """At t=0, for any noise. Exact for the prediction x_start; else 1e-6 times the scale of the conversion."""
    schedule = make_schedule(name, steps)
    x_start, noise, t = images(9), standard_normal(9), np.zeros(5, np.int32)
    x_t = gaussian.q_sample(schedule, x_start, t, noise)
    output = output_for(schedule, x_start, t, noise, prediction)
    offered = np.full(SHAPE, np.nan, np.float32)
    x_prev, pred_xstart = gaussian.p_sample(schedule, predicting(prediction, variance), output, x_t, t, offered)
    tolerance = 0 if prediction == "x_start" else 1e-6 * schedule.sqrt_recip_alphas_cumprod[0]
    np.testing.assert_allclose(x_prev, x_start, rtol=0, atol=tolerance)
    np.testing.assert_array_equal(x_prev, pred_xstart)


@pytest.mark.parametrize("variance", VARIANCES)
def test_noise_is_added_at_every_step_but_the_last(variance):
    """p_sample = mean + exp(log_variance / 2) noise for t > 0. 1e-6."""
    schedule = make_schedule("linear", 500)
    x_t, output, noise = standard_normal(10), standard_normal(11), standard_normal(12)
    reading = predicting("eps", variance)
    mean, log_variance, _ = gaussian.p_mean_variance(schedule, reading, output, x_t, T)
    x_prev, _ = gaussian.p_sample(schedule, reading, output, x_t, T, noise)
    deviation = np.sqrt(schedule.posterior_variance if variance == "fixed_small" else schedule.betas)[T]
    deviation[0] = 0
    np.testing.assert_allclose(x_prev - mean, deviation[:, None, None, None] * noise, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(np.exp(0.5 * log_variance).ravel()[1:], deviation[1:], rtol=1e-5)


def test_pred_xstart_is_clipped_before_the_mean():
    schedule = make_schedule("cosine", 500)
    x_t, output = standard_normal(13), 50 * images(14)
    clipped_mean, _, clipped = gaussian.p_mean_variance(schedule, predicting("x_start"), output, x_t, T)
    _, _, raw = gaussian.p_mean_variance(schedule, predicting("x_start", clip_denoised=False), output, x_t, T)
    np.testing.assert_array_equal(raw, output)
    np.testing.assert_array_equal(clipped, np.clip(output, -1, 1))
    expected, _, _ = gaussian.q_posterior_mean_variance(schedule, clipped, x_t, T)
    np.testing.assert_array_equal(clipped_mean, expected)


@pytest.mark.parametrize("name", SCHEDULES)
def test_reverse_chain_of_a_perfect_network_ends_in_the_image(name):
    """The exact eps, from pure noise in 25 steps: every step moves toward the only image. 1e-5."""
    schedule = respace(make_schedule(name, 100), spaced_timesteps(100, 25, "trailing"))
    x_start, x_t = images(15), jnp.asarray(standard_normal(15))
    step = jax.jit(functools.partial(gaussian.p_sample, schedule, predicting("eps")))
    for index in reversed(range(25)):
        t = np.full(5, index, np.int32)
        eps = predict_eps_from_xstart(x_t, schedule.level(t), x_start)
        x_t, _ = step(eps, x_t, t, standard_normal(100 + index))
    np.testing.assert_allclose(x_t, x_start, atol=1e-5)


# A learned variance.


def learned_output(seed, shape=SHAPE):
    """A prediction, and a variance output that exceeds [-1, 1]."""
    return standard_normal(seed, shape), 1.5 * images(seed, shape)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_learned_variance_does_not_change_the_mean(prediction):
    """p_mean_variance and p_sample with both outputs, against the prediction alone and the variance alone."""
    schedule, x_t, noise = make_schedule("linear", 500), standard_normal(41), standard_normal(42)
    output, v = learned_output(43)
    both = np.concatenate([output, v], axis=-1)
    reading = predicting(prediction, "learned_range")
    mean, log_variance, pred_xstart = gaussian.p_mean_variance(schedule, reading, both, x_t, T)
    expected_mean, _, expected = gaussian.p_mean_variance(schedule, predicting(prediction), output, x_t, T)
    np.testing.assert_array_equal(mean, expected_mean)
    np.testing.assert_array_equal(pred_xstart, expected)
    _, expected_log = model_variance(schedule, x_t, T, variance="learned_range", variance_output=v)
    np.testing.assert_array_equal(log_variance, expected_log)
    x_prev, _ = gaussian.p_sample(schedule, reading, both, x_t, T, noise)
    np.testing.assert_array_equal(x_prev[0], mean[0])  # no noise at t=0
    np.testing.assert_allclose((x_prev - mean)[1:], (np.exp(0.5 * log_variance) * noise)[1:], rtol=1e-3, atol=1e-6)


def test_half_precision_variance_output_is_cast_to_float32():
    schedule, x_t = make_schedule("linear", 500), standard_normal(44)
    both = jnp.asarray(np.concatenate(learned_output(45), axis=-1), jnp.bfloat16)
    reading = predicting("eps", "learned_range")
    half = gaussian.p_mean_variance(schedule, reading, both, x_t, T)
    full = gaussian.p_mean_variance(schedule, reading, both.astype(jnp.float32), x_t, T)
    for ours, theirs in zip(half, full, strict=True):
        assert ours.dtype == jnp.float32
        np.testing.assert_array_equal(ours, theirs)


def test_wrong_number_of_output_channels_is_rejected():
    schedule, x = make_schedule("linear", 500), images(46)
    both = np.concatenate([x, x], axis=-1)
    for bad in (x, both[:4], np.concatenate([both, x], axis=-1), both[..., 0]):
        with pytest.raises(ValueError, match=r"^model_output has shape [^\n]* must have twice the channels of x_t$"):
            gaussian.p_mean_variance(schedule, predicting("eps", "learned_range"), bad, x, T)
    with pytest.raises(ValueError, match="must be the same"):
        gaussian.p_mean_variance(schedule, predicting("eps", "fixed_large"), both, x, T)
    with pytest.raises(ValueError, match="needs the network's variance_output"):
        model_variance(schedule, x, T, variance="learned_range")


def test_eps_is_rejected_at_zero_terminal_snr():
    schedule, x = make_schedule("linear", 500, zero_terminal_snr=True), images(47)
    with pytest.raises(ValueError, match=r"^a chain with zero terminal SNR needs the prediction x_start or v, not eps$"):
        gaussian.p_mean_variance(schedule, predicting("eps"), x, x, T)


# Batches, types and jit.


def every_function(schedule, x, y, t, noise):
    """One result of each public function of images x and y, as a flat dict."""
    level = schedule.level(t)
    large = {kind: predicting(kind, "fixed_large") for kind in PREDICTIONS}
    return {
        "q_mean_variance": gaussian.q_mean_variance(schedule, x, t),
        "q_step": gaussian.q_step(schedule, x, t, noise),
        "q_sample": gaussian.q_sample(schedule, x, t, noise),
        "q_posterior": gaussian.q_posterior_mean_variance(schedule, x, y, t),
        "xstart_from_eps": parameterization.predict_xstart_from_eps(y, level, x),
        "eps_from_xstart": parameterization.predict_eps_from_xstart(y, level, x),
        "v": parameterization.predict_v(x, level, noise),
        "xstart_from_v": parameterization.predict_xstart_from_v(y, level, x),
        "eps_from_v": parameterization.predict_eps_from_v(y, level, x),
        "velocities": [one.velocity(x.astype(jnp.float32), y.astype(jnp.float32), level) for one in large.values()],
        "variances": [model_variance(schedule, x, t, variance=variance) for variance in VARIANCES],
        "p_mean_variance": [gaussian.p_mean_variance(schedule, one, x, y, t) for one in large.values()],
        "p_sample": gaussian.p_sample(schedule, large["eps"], x, y, t, noise),
    }


def test_batch_items_are_independent():
    schedule = make_schedule("linear", 500)
    arrays = (images(16), standard_normal(16), T, standard_normal(17))
    whole = every_function(schedule, *arrays)
    for item in range(5):
        alone = every_function(schedule, *(array[item : item + 1] for array in arrays))
        jax.tree.map(lambda one, all_: np.testing.assert_array_equal(one[0], all_[item]), alone, whole)  # noqa: B023


@pytest.mark.parametrize("shape", [(5,), (5, 3), SHAPE])
def test_any_rank(shape):
    schedule = make_schedule("linear", 500)
    result = every_function(schedule, images(18, shape), standard_normal(18, shape), T, standard_normal(19, shape))
    assert result["q_sample"].shape == shape
    assert result["variances"][0][0].shape == (5,) + (1,) * (len(shape) - 1)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_results_are_float32_with_and_without_jit(dtype):
    schedule = make_schedule("cosine", 500)
    arrays = [jnp.asarray(array, dtype) for array in (images(20), standard_normal(20))]
    results = [
        every_function(schedule, *arrays, T, standard_normal(21)),
        jax.jit(functools.partial(every_function, schedule))(*arrays, T, standard_normal(21)),  # tables as constants
        jax.jit(every_function)(schedule, *arrays, T, standard_normal(21)),  # tables as arguments
    ]
    assert {leaf.dtype for leaf in jax.tree.leaves(results)} == {jnp.dtype(jnp.float32)}
    assert "f64" not in str(jax.make_jaxpr(functools.partial(every_function, schedule))(*arrays, T, standard_normal(21)))
    for result in results[1:]:  # XLA may fuse: a few ulps of values up to 1e4 at the end of cosine
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-3), result, results[0])


def test_t_out_of_range_gives_nan_for_its_image_only():
    schedule = make_schedule("linear", 500)
    noised = gaussian.q_sample(schedule, images(22), np.array([-1, 0, 499, 500, 7], np.int32), standard_normal(22))
    assert np.isnan(noised).all(axis=(1, 2, 3)).tolist() == [True, False, False, True, False]
    assert np.isfinite(noised[jnp.array([1, 2, 4])]).all()


# Invalid arguments.


X_START = predicting("x_start")
CALLS = {
    "q_mean_variance": lambda s, x, y, t: gaussian.q_mean_variance(s, x, t),
    "q_step": lambda s, x, y, t: gaussian.q_step(s, x, t, y),
    "q_sample": lambda s, x, y, t: gaussian.q_sample(s, x, t, y),
    "q_posterior_mean_variance": lambda s, x, y, t: gaussian.q_posterior_mean_variance(s, x, y, t),
    "predict_xstart_from_eps": lambda s, x, y, t: parameterization.predict_xstart_from_eps(x, s.level(t), y),
    "predict_eps_from_xstart": lambda s, x, y, t: parameterization.predict_eps_from_xstart(x, s.level(t), y),
    "predict_v": lambda s, x, y, t: parameterization.predict_v(x, s.level(t), y),
    "predict_xstart_from_v": lambda s, x, y, t: parameterization.predict_xstart_from_v(x, s.level(t), y),
    "predict_eps_from_v": lambda s, x, y, t: parameterization.predict_eps_from_v(x, s.level(t), y),
    "predict_x0": lambda s, x, y, t: X_START.predict_x0(y, x, s.level(t)),
    "model_variance": lambda s, x, y, t: model_variance(s, x, t, variance="fixed_small"),
    "p_mean_variance": lambda s, x, y, t: gaussian.p_mean_variance(s, X_START, y, x, t),
    "p_sample": lambda s, x, y, t: gaussian.p_sample(s, X_START, x, x, t, y),
}


@pytest.mark.parametrize("name", CALLS)
def test_shapes_and_types_are_checked(name):
    """With one-line messages, also while tracing."""
    schedule, x, call = make_schedule("linear", 500), images(25), CALLS[name]
    call(schedule, x, x, T)  # valid
    bad_ts = [T[:4], T[:, None], np.int32(3), T.astype(np.float32)]
    for bad_t in bad_ts:
        for run in (call, jax.jit(functools.partial(call, schedule))):
            arguments = (schedule, x, x, bad_t) if run is call else (x, x, bad_t)
            with pytest.raises(ValueError, match=r"^(t is|level has shape) ") as error:
                run(*arguments)
            assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="scale images"):
        call(schedule, x.astype(np.int32), x.astype(np.int32), T)
    if name not in ("q_mean_variance", "model_variance"):  # the functions of two arrays
        for bad_x in (x[:4], x[..., :1], x[..., 0]):
            with pytest.raises(ValueError, match=r"^\w+ has shape [^\n]* must be the same$"):
                call(schedule, x, bad_x, T)

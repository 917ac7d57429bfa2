"""Terms of the bound: closed forms, an integral, an independent computation, and required properties."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import gaussian, likelihood
from ddpm_jax.diffusion.parameterization import PREDICTIONS, Parameterization, predict_v
from ddpm_jax.diffusion.schedules import SCHEDULES, make_schedule, respace, schedule_from_betas
from ddpm_jax.diffusion.spacings import spaced_timesteps
from ddpm_jax.diffusion.variances import VARIANCES

SHAPE = (3, 4, 4, 2)
T = np.array([0, 40, 99], np.int32)  # of 100


def images(seed=0, dtype=np.float64):
    return np.random.default_rng(seed).uniform(-1, 1, SHAPE).astype(dtype)


@pytest.mark.parametrize(
    ("mean1", "std1", "mean2", "std2"),
    [(0.0, 1.0, 0.0, 1.0), (0.7, 0.3, -0.2, 1.1), (-2.0, 1.5, 0.0, 1.0), (0.1, 1.0, 0.0, 3.0)],
)
def test_normal_kl_equals_its_integral(mean1, std1, mean2, std2):
    """∫ p log(p / q) by the trapezoidal rule over 12 standard deviations; 1e-10."""
    x = np.linspace(mean1 - 12 * std1, mean1 + 12 * std1, 20_001)
    log_p = -0.5 * ((x - mean1) / std1) ** 2 - np.log(std1 * np.sqrt(2 * np.pi))
    log_q = -0.5 * ((x - mean2) / std2) ** 2 - np.log(std2 * np.sqrt(2 * np.pi))
    expected = np.trapezoid(np.exp(log_p) * (log_p - log_q), x)
    with jax.enable_x64(True):
        kl = likelihood.normal_kl(mean1, 2 * np.log(std1), mean2, 2 * np.log(std2))
    np.testing.assert_allclose(kl, expected, rtol=1e-10, atol=1e-12)


def test_normal_kl_is_elementwise_and_broadcasts():
    kl = likelihood.normal_kl(jnp.zeros((2, 3)), jnp.zeros((2, 1)), jnp.ones((2, 3)), 0.0)
    np.testing.assert_allclose(kl, np.full((2, 3), 0.5), rtol=1e-6)
    assert likelihood.normal_kl(0.0, -jnp.inf, 0.0, 0.0) == jnp.inf


def test_normal_kl_of_nearly_equal_gaussians_does_not_cancel():
    """log variances d apart cost d²/4; in float32, with d = 1e-3, 1 - d + ... would cancel completely. 1e-3."""
    d = jnp.float32(1e-3)
    np.testing.assert_allclose(likelihood.normal_kl(jnp.float32(0), d, jnp.float32(0), jnp.float32(0)), 1e-6 / 4, rtol=1e-3)


@pytest.mark.parametrize("name", SCHEDULES)
def test_prior_bits_per_dim_against_a_loop_in_float64(name):
    """½ [ᾱ x² - ᾱ - log(1 - ᾱ)] / log 2, averaged over all pixels; relative 1e-9."""
    schedule, x_start = make_schedule(name, 100), images()
    with jax.enable_x64(True):
        bits = likelihood.prior_bits_per_dim(schedule, x_start, T)
    assert bits.dtype == jnp.float64
    expected = []
    for image, t in zip(x_start, T, strict=True):
        cumprod = schedule.alphas_cumprod[t]
        rest = -cumprod - np.log1p(-cumprod)
        expected.append(np.mean([0.5 * (cumprod * x * x + rest) / np.log(2) for x in image.ravel()]))
    np.testing.assert_allclose(bits, expected, rtol=1e-9)


def test_prior_bits_per_dim_in_float32_matches_float64():
    """As in training, traced; 1e-4. At the noise end the naive formula would be off by 100%."""
    schedule = make_schedule("linear", 1000)
    t = np.array([0, 400, 999], np.int32)
    with jax.enable_x64(True):
        exact = np.asarray(likelihood.prior_bits_per_dim(schedule, images(), t))
    bits = jax.jit(likelihood.prior_bits_per_dim)(schedule, images(dtype=np.float32), t)
    assert bits.dtype == jnp.float32
    np.testing.assert_allclose(bits, exact, rtol=1e-4)
    assert 0 < exact[2] < 1e-4  # Ho et al. 2020, section 4: L_T is about 1e-5 bits per dimension


@pytest.mark.parametrize("name", SCHEDULES)
def test_prior_bits_per_dim_decreases_with_t(name):
    """Noise cannot add information about x_0: from t to t + 1 the distance to N(0, I) decreases."""
    schedule = make_schedule(name, 100)
    x_start = np.broadcast_to(images()[:1], (100, *SHAPE[1:]))
    with jax.enable_x64(True):
        bits = likelihood.prior_bits_per_dim(schedule, x_start, np.arange(100))
    assert (np.diff(bits) < 0).all()


def test_prior_bits_per_dim_is_zero_at_zero_terminal_snr():
    schedule = schedule_from_betas([0.1, 0.5, 1.0])
    bits = likelihood.prior_bits_per_dim(schedule, images(dtype=np.float32), np.full(3, 2, np.int32))
    np.testing.assert_array_equal(bits, np.zeros(3, np.float32))


def test_invalid_arguments_are_rejected():
    schedule = make_schedule("linear", 100)
    with pytest.raises(ValueError, match="x_start is uint8"):
        likelihood.prior_bits_per_dim(schedule, np.zeros(SHAPE, np.uint8), T)
    with pytest.raises(ValueError, match="one integer for each"):
        likelihood.prior_bits_per_dim(schedule, images(dtype=np.float32), T[:2])


# The decoder.

LEVELS = (np.arange(256, dtype=np.float32) / np.float32(127.5) - 1)[:, None]


def plain_level(x, mean, std):
    """log P of one level by (17), one Python float at a time; differences of small tails, without cancellation."""

    def tail(z):
        return 0.5 * math.erfc(z / math.sqrt(2))

    low, high = (x - 1 / 255 - mean) / std, (x + 1 / 255 - mean) / std
    if x < -0.999:
        probability = tail(-high)
    elif x > 0.999:
        probability = tail(low)
    elif low > 0:
        probability = tail(low) - tail(high)
    else:
        probability = tail(-high) - tail(-low)
    return math.log(max(probability, 1e-12))


@pytest.mark.parametrize(("mean", "std"), [(0.0, 0.005), (0.3, 0.01), (-0.97, 0.05), (1.0, 0.02), (-1.3, 0.4), (0.5, 3.0)])
def test_decoder_against_a_loop_in_float64(mean, std):
    """Every level in float32: 2e-5, or, if std is far wider than a bin, 1e-6 std of probability; the sum is 1, 1e-5."""
    log_p = likelihood.discretized_gaussian_log_likelihood(
        jnp.asarray(LEVELS), jnp.full((256, 1), mean), jnp.full((1, 1), 2 * np.log(std))
    )
    assert log_p.dtype == jnp.float32
    expected = [plain_level(float(x), mean, std) for x in LEVELS[:, 0]]
    np.testing.assert_allclose(log_p[:, 0], expected, rtol=2e-5, atol=2e-5 * max(1, 10 * std))
    assert np.exp(np.asarray(log_p, np.float64)).sum() == pytest.approx(1, abs=1e-5)


def test_decoder_is_symmetric_and_clipped_at_the_minimum():
    x, mean = jnp.asarray(LEVELS), jnp.full((256, 1), 0.25)
    log_p = likelihood.discretized_gaussian_log_likelihood(x, mean, jnp.full((1, 1), -8.0))
    np.testing.assert_allclose(
        log_p, likelihood.discretized_gaussian_log_likelihood(-x, -mean, jnp.full((1, 1), -8.0)), rtol=1e-6
    )
    assert float(log_p.min()) == pytest.approx(math.log(1e-12), rel=1e-6)
    assert (log_p <= 0).all()
    point = likelihood.discretized_gaussian_log_likelihood(x, x, jnp.full((1, 1), -60.0))
    np.testing.assert_allclose(point, np.zeros((256, 1)), atol=1e-6)


def test_decoder_gradient_matches_finite_differences():
    """d log P / d(mean, log variance) against central differences in float64, 1e-6; 0 at the minimum, never NaN."""
    x = LEVELS[[0, 3, 120, 131, 255]].astype(np.float64)
    mean, log_variance = x + np.array([[0.01], [-0.004], [0.0], [0.02], [-0.03]]), np.full((5, 1), -9.0)
    with jax.enable_x64(True):

        def total(mean, log_variance):
            return likelihood.discretized_gaussian_log_likelihood(x, mean, log_variance).sum()

        slopes = jax.jit(jax.grad(total, (0, 1)))(mean, log_variance)
        decoder = jax.jit(likelihood.discretized_gaussian_log_likelihood)
        for argument in range(2):
            slope = slopes[argument][:, 0]
            steps = [(mean + h * (argument == 0), log_variance + h * (argument == 1)) for h in (1e-6, -1e-6)]
            high, low = (decoder(x, *step)[:, 0] for step in steps)
            np.testing.assert_allclose(slope, (high - low) / 2e-6, rtol=1e-6, atol=1e-6)
    far = jax.jit(
        jax.grad(
            lambda mean: likelihood.discretized_gaussian_log_likelihood(jnp.asarray(LEVELS), mean, jnp.full((1, 1), -9.0)).sum()
        )
    )
    np.testing.assert_array_equal(far(jnp.full((256, 1), 5.0)), np.zeros((256, 1)))


# Terms.

TERM_SHAPE = (6, 3, 2, 2)


def plain_terms(schedule, output, x_start, x_t, t, prediction, variance, clip):
    """(14) and (15) of one image from the textbook formulas in float64, without the functions under test."""
    betas = np.asarray(schedule.betas)
    cumprod = np.cumprod(1 - betas)
    previous = np.append(1.0, cumprod[:-1])
    posterior = betas * (1 - previous) / (1 - cumprod)
    clipped = np.append(posterior[1], posterior[1:])
    if variance == "learned_range":
        output, v = np.split(output, 2, axis=-1)
        log_variance = (v + 1) / 2 * np.log(betas[t]) + (1 - v) / 2 * np.log(clipped[t])
    else:
        chosen = clipped if variance == "fixed_small" else np.append(posterior[1], betas[1:])
        log_variance = np.full(x_start.shape, np.log(chosen[t]))
    a, b = np.sqrt(cumprod[t]), np.sqrt(1 - cumprod[t])
    pred_xstart = {"eps": (x_t - b * output) / a, "x_start": output, "v": a * x_t - b * output}[prediction]
    pred_xstart = np.clip(pred_xstart, -1, 1) if clip else pred_xstart
    c1, c2 = np.sqrt(previous[t]) * betas[t] / (1 - cumprod[t]), np.sqrt(1 - betas[t]) * (1 - previous[t]) / (1 - cumprod[t])
    true_mean, mean = c1 * x_start + c2 * x_t, c1 * pred_xstart + c2 * x_t
    if t == 0:
        levels = zip(x_start.ravel(), mean.ravel(), np.exp(0.5 * log_variance).ravel(), strict=True)
        nats = -np.mean([plain_level(*level) for level in levels])
    else:
        ratio = clipped[t] / np.exp(log_variance)
        nats = np.mean(0.5 * (ratio - 1 - np.log(ratio) + (true_mean - mean) ** 2 / np.exp(log_variance)))
    mse = np.mean((x_start - pred_xstart) ** 2)
    eps = (x_t - a * pred_xstart) / b
    return nats / np.log(2), mse, np.mean((eps - (x_t - a * x_start) / b) ** 2)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize(("prediction", "variance"), list(itertools.product(PREDICTIONS, VARIANCES)))
@pytest.mark.parametrize(("name", "kept"), [("linear", None), ("cosine", 25)])
def test_terms_against_an_independent_computation(name, kept, prediction, variance, clip):
    """Each field, 1e-7 in float64 (where the textbook's 1 - ᾱ loses digits); 1e-5 of a bit in float32."""
    schedule = make_schedule(name, 500)
    if kept:
        schedule = respace(schedule, spaced_timesteps(500, kept, "trailing"))
    t = np.array([0, 0, 1, 2, schedule.num_timesteps // 2, schedule.num_timesteps - 1], np.int32)
    generator = np.random.default_rng(7)
    x_start = generator.integers(0, 256, TERM_SHAPE) / 127.5 - 1
    x_start[0, 0], x_start[0, 1] = -1, 1
    noise = generator.standard_normal(TERM_SHAPE)
    with jax.enable_x64(True):
        x_t = np.asarray(gaussian.q_sample(schedule, x_start, t, noise))
        truth = {"eps": noise, "x_start": x_start, "v": np.asarray(predict_v(x_start, schedule.level(t), noise))}
        output = truth[prediction] + 0.1 * generator.standard_normal(TERM_SHAPE)
        if variance == "learned_range":
            output = np.concatenate([output, generator.uniform(-1.2, 1.2, TERM_SHAPE)], axis=-1)
        run = functools.partial(likelihood.vb_terms, schedule, Parameterization(prediction, variance, clip_denoised=clip))
        terms = run(output, x_start, x_t, t)
    batch = zip(output, x_start, x_t, t, strict=True)
    expected = [plain_terms(schedule, *image, prediction, variance, clip) for image in batch]
    for ours, plain in zip(terms, zip(*expected, strict=True), strict=True):
        assert ours.shape == (6,)
        assert ours.dtype == jnp.float64
        np.testing.assert_allclose(ours, plain, rtol=1e-7)
    with jax.enable_x64(True):  # the reference gets the same arrays, rounded to float32
        rounded = [np.asarray(array, np.float32) for array in (output, x_start, x_t)]
        exact = run(*(array.astype(np.float64) for array in rounded), t)
    single = run(*rounded, t)
    assert single.bits.dtype == jnp.float32
    np.testing.assert_allclose(single.bits, exact.bits, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("variance", VARIANCES)
def test_a_network_that_knows_the_image_costs_only_the_variance(variance):
    """For t > 0: 0 with the posterior's variance; ½ (r - 1 - log r), r = β̃/β, with β_t, for any image.

    1e-4: logs of variances are float32.
    """
    schedule, t = make_schedule("linear", 100), np.array([1, 40, 99], np.int32)
    x_start, noise = (np.random.default_rng(seed).standard_normal(SHAPE).astype(np.float32) for seed in range(2))
    x_t = gaussian.q_sample(schedule, x_start, t, noise)
    output = x_start
    if variance == "learned_range":  # where -1 is the posterior's variance and 1 is β_t
        output = np.concatenate([x_start, -np.ones_like(x_start)], -1)
    parameterization = Parameterization("x_start", variance, clip_denoised=False)
    terms = likelihood.vb_terms(schedule, parameterization, output, x_start, x_t, t)
    ratio = schedule.posterior_variance[t] / schedule.betas[t]
    expected = 0.5 * (ratio - 1 - np.log(ratio)) / np.log(2) if variance == "fixed_large" else np.zeros(3)
    np.testing.assert_allclose(terms.bits, expected, rtol=1e-4, atol=1e-9)
    np.testing.assert_array_equal(terms.xstart_mse, np.zeros(3))


def test_t_out_of_range_gives_nan_for_its_image_only():
    schedule, x = make_schedule("linear", 100), images(dtype=np.float32)
    parameterization = Parameterization("x_start", "fixed_small", clip_denoised=True)
    bits = likelihood.vb_terms(schedule, parameterization, x, x, x, np.array([-1, 5, 100], np.int32)).bits
    assert np.isnan(bits).tolist() == [True, False, True]


def test_mismatched_shapes_are_rejected():
    schedule, x = make_schedule("linear", 100), images(dtype=np.float32)
    parameterization = Parameterization("eps", "learned_range", clip_denoised=True)
    with pytest.raises(ValueError, match=r"^model_output has shape [^\n]*learned_range[^\n]*twice the channels[^\n]*$"):
        likelihood.vb_terms(schedule, parameterization, x, x, x, T)
    with pytest.raises(ValueError, match="must be the same"):
        likelihood.vb_terms(schedule, parameterization, np.concatenate([x, x], -1), x, x[..., :1], T)


@pytest.mark.parametrize("num_levels", [256, 4096, 65536])
def test_the_probabilities_of_all_levels_add_up_to_one(num_levels):
    """float32: each is off by up to 1e-4 of itself where 65,536 bins are narrow."""
    levels = jnp.linspace(-1, 1, num_levels)[None]
    for mean, std in ((0.1, 0.05), (0.95, 0.2), (-1.5, 0.5)):
        log_variance = jnp.full((1, 1), 2 * np.log(std), jnp.float32)
        found = likelihood.discretized_gaussian_log_likelihood(
            levels, jnp.full_like(levels, mean), log_variance, half_bin=1 / (num_levels - 1)
        )
        assert float(np.exp(np.asarray(found, np.float64)).sum()) == pytest.approx(1, abs=1e-3)

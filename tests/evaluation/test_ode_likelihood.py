"""ODE likelihood of Gaussian data, where it is known in closed form, and the evaluator on several devices.

The exact denoiser is known at each timestep and interpolated linearly in between.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact_denoisers import COV, FULL, MEAN, MIX, SHAPE, D, gaussian_denoiser, some_keys

from ddpm_jax.diffusion.parameterization import Parameterization
from ddpm_jax.diffusion.schedules import make_schedule, respace
from ddpm_jax.evaluation import ode_likelihood
from ddpm_jax.evaluation.ode_likelihood import OdeLogLikelihood, dequantize, ode_log_likelihood
from ddpm_jax.evaluation.ode_likelihood_evaluator import OdeLikelihoodEvaluator
from ddpm_jax.runtime import mesh as meshes
from ddpm_jax.runtime.errors import NumericalError

IMAGES = (MEAN + np.random.default_rng(0).standard_normal((6, D)) @ MIX.T).reshape(6, *SHAPE)
PURE_NOISE = make_schedule("cosine", 1000, zero_terminal_snr=True)
VARIANCES, AXES = np.linalg.eigh(COV)


def smooth(denoise_fn, last=999):
    """Extend a denoiser from integer t to any t by linear interpolation."""

    def between(x_t, t):
        below = jnp.floor(t).astype(jnp.int32)
        fraction = (t - below)[:, None, None, None]
        return (1 - fraction) * denoise_fn(x_t, below) + fraction * denoise_fn(x_t, jnp.minimum(below + 1, last))

    return between


def data_density(schedule, images):
    """log density per dimension of the data with noise σ_0, in nats."""
    z, variance = (images.reshape(-1, D) - MEAN) @ AXES, VARIANCES + ode_likelihood.start_sigma(schedule) ** 2
    return -0.5 * (z**2 / variance + np.log(2 * np.pi * variance)).mean(axis=1)


def closed_form_log_density(schedule, images):
    """(27) for the exact denoiser: along each axis of the data, x̄ - m grows as sqrt(variance + σ²). The final density
    is N(0, I), not that of the noised data."""
    first, last = schedule.sqrt_recipm1_alphas_cumprod[[0, -1]] ** 2
    growth = np.sqrt((VARIANCES + last) / (VARIANCES + first))
    x_last = schedule.sqrt_alphas_cumprod[-1] * (MEAN @ AXES + (images.reshape(-1, D) - MEAN) @ AXES * growth)
    volume = np.log(schedule.sqrt_alphas_cumprod[-1] * growth)
    return (-0.5 * (x_last**2 + np.log(2 * np.pi)) + volume).mean(axis=1)


def predicting(prediction="v", variance="fixed_small"):
    return Parameterization(prediction, variance, clip_denoised=True)


def densities(
    schedule, images, prediction="v", variance="fixed_small", dtype=jnp.float32, keys=None, denoise_fn=None, **options
):
    if denoise_fn is None:
        denoise_fn = smooth(gaussian_denoiser(schedule, MEAN, COV, prediction))
    one = functools.partial(
        ode_log_likelihood, schedule, predicting(prediction, variance), denoise_fn, **({"probes": 0} | options)
    )
    keys = some_keys(len(images)) if keys is None else keys
    return OdeLogLikelihood(*map(np.asarray, jax.jit(jax.vmap(one))(jnp.asarray(images, dtype), keys)))


@functools.cache
def exact(prediction):
    """Densities of IMAGES with the exact trace; under v with a second half of the channels that must not matter."""
    denoise_fn = smooth(gaussian_denoiser(FULL, MEAN, COV, prediction))
    if prediction != "v":
        return densities(FULL, IMAGES, prediction, denoise_fn=denoise_fn)

    def doubled(x_t, t):
        return jnp.concatenate([denoise_fn(x_t, t), 7 * x_t], axis=-1)

    return densities(FULL, IMAGES, prediction, denoise_fn=doubled, variance="learned_range")


# The density of one image.


@pytest.mark.parametrize("prediction", ["eps", "x_start", "v"])
def test_gaussian_data_in_closed_form(prediction):
    """float32 and tolerances of 1e-5: within 2e-4 nats per dimension of the exact ODE, and within 0.005 of the data density:
    the linear schedule ends at sqrt(ᾱ) = 0.006, while sampling starts from N(0, I)."""
    got = exact(prediction)
    assert got.success.all()
    np.testing.assert_allclose(got.nats, closed_form_log_density(FULL, IMAGES), atol=2e-4)
    np.testing.assert_allclose(got.nats, data_density(FULL, IMAGES), atol=5e-3)


def test_with_zero_terminal_snr_it_is_the_data_density():
    """Within 1e-4 nats per dimension: no signal is left at T-1."""
    np.testing.assert_allclose(densities(PURE_NOISE, IMAGES).nats, data_density(PURE_NOISE, IMAGES), atol=1e-4)


def test_smaller_tolerances_reduce_the_error():
    """From a tolerance of 1e-3 to 1e-5 the error falls more than tenfold; in float64 at 1e-7 it is below 2e-5 nats per
    dimension, due to the linear interpolation. Smaller tolerances take more evaluations."""
    loose = densities(FULL, IMAGES, rtol=1e-3, atol=1e-3)
    with jax.enable_x64(True):
        tight = densities(FULL, IMAGES, dtype=jnp.float64, rtol=1e-7, atol=1e-7)
    assert tight.nats.dtype == np.float64
    want = closed_form_log_density(FULL, IMAGES)
    errors = [np.abs(found.nats - want).max() for found in (loose, exact("v"), tight)]
    assert errors[1] < errors[0] / 10
    assert errors[2] < 2e-5
    assert (loose.evaluations < exact("v").evaluations).all()
    assert (exact("v").evaluations < tight.evaluations).all()


def test_hutchinsons_estimates_average_to_the_exact_trace():
    """256 keys with two probes each, for one image: unbiased within 4 standard errors."""
    image = np.broadcast_to(IMAGES[:1], (256, *SHAPE))
    found = densities(FULL, image, keys=some_keys(256, seed=1), probes=2).nats.astype(np.float64)
    error = found.std(ddof=1) / 16
    assert error > 1e-3  # the data's pixels are correlated
    assert abs(found.mean() - exact("v").nats[0]) < 4 * error


def test_an_image_is_independent_of_its_batch_and_its_evaluations_are_counted():
    """In float64: the same steps and 1e-12 nats, although the images of the batch take different numbers of steps; the counter
    of the denoiser agrees. A smooth denoiser is needed: with kinks the steps would depend on rounding."""
    calls = []

    def wavy(x_t, t):
        return jnp.sin(2 * x_t + 0.01 * t[:, None, None, None])

    def counting(x_t, t):
        jax.debug.callback(lambda: calls.append(1))
        return wavy(x_t, t)

    with jax.enable_x64(True):
        together = densities(FULL, IMAGES, dtype=jnp.float64, denoise_fn=wavy)
        few, many = int(np.argmin(together.evaluations)), int(np.argmax(together.evaluations))
        assert together.evaluations[few] < together.evaluations[many]
        one = functools.partial(ode_log_likelihood, FULL, predicting(), counting, probes=0)
        alone = jax.jit(one)
        for i in (few, many):
            calls.clear()
            found = alone(jnp.asarray(IMAGES[i], jnp.float64), jax.random.key(0))
            jax.effects_barrier()
            np.testing.assert_allclose(found.nats, together.nats[i], rtol=0, atol=1e-12)
            assert found.evaluations == together.evaluations[i] == len(calls)


def test_a_solver_that_does_not_finish_reports_it():
    found = densities(FULL, IMAGES[:2], max_steps=3)
    assert not found.success.any()
    assert np.isnan(found.nats).all()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"probes": -1}, r"probes is -1"),
        ({"rtol": 0.0}, r"rtol = 0 "),
        ({"atol": float("nan")}, r"atol = nan"),
        ({"max_steps": 0}, r"max_steps is 0"),
        ({"schedule": PURE_NOISE, "parameterization": predicting("eps")}, r"zero terminal SNR"),
        ({"schedule": respace(FULL, [3])}, r"a chain of 1 step has only one noise level"),
        ({"x": jnp.zeros(SHAPE, jnp.uint8)}, r"uint8"),
        ({"x": jnp.zeros((1, *SHAPE))}, r"one image"),
    ],
)
def test_invalid_arguments(change, match):
    options = {"schedule": FULL, "parameterization": predicting(), "x": jnp.zeros(SHAPE), "probes": 1} | change
    with pytest.raises(ValueError, match=match):
        ode_log_likelihood(denoise_fn=lambda x_t, t: x_t, key=jax.random.key(0), **options)


# Levels.


def test_dequantized_levels_stay_in_their_bins():
    levels = np.tile(np.arange(256, dtype=np.uint8), (32, 1))
    y = np.asarray(dequantize(jnp.asarray(levels), some_keys(32)))
    assert y.dtype == np.float32
    np.testing.assert_array_equal(np.floor((y.astype(np.float64) + 1) * 128), levels)
    u = (y.astype(np.float64) + 1) * 128 - levels
    assert abs(u.mean() - 0.5) < 4 / np.sqrt(12 * u.size)
    np.testing.assert_allclose(u.var(), 1 / 12, rtol=0.05)
    np.testing.assert_allclose((y + 1) / 2, (u + 255 * (levels / 255)) / 256, atol=1e-6)  # the other form of the definition


def test_equally_probable_levels_take_eight_bits():
    """A density of 1/2 on [-1, 1) is 8 bits; a density of 1 over the width of one level is 0 bits."""
    np.testing.assert_allclose(ode_likelihood.bits_per_dim(np.log([0.5, 128.0])), [8, 0], atol=1e-12)


# The evaluator.

LEVELS = np.random.default_rng(3).integers(0, 256, (11, *SHAPE), dtype=np.uint8)


def make_denoise_fn(params, labels):
    denoise_fn = smooth(gaussian_denoiser(FULL, MEAN, COV, "v"))
    return lambda x_t, t: params * denoise_fn(x_t, t) + 0.1 * labels.astype(jnp.float32)[:, None, None, None]


def make_evaluator(devices=8, batch_size=8, **options):
    mesh = meshes.make_mesh(jax.devices()[:devices])
    return OdeLikelihoodEvaluator(FULL, predicting(), make_denoise_fn, mesh, batch_size=batch_size, **options)


def evaluate(evaluator, levels=LEVELS, labels=None, seed=0, **options):
    labels = np.zeros(len(levels)) if labels is None else labels
    batches = list(evaluator.evaluate(jnp.float32(1.0), jax.random.key(seed), levels, labels, **options))
    return [np.concatenate(column) for column in zip(*batches, strict=True)]


@pytest.fixture(scope="module")
def eight():
    return make_evaluator()


def test_bits_on_any_number_of_devices(eight):
    """1e-4 bits between 8 devices and 1; an image depends on its index, not on the images before it."""
    labels = np.arange(11) % 3
    bits, prior_bits, evaluations = evaluate(eight, labels=labels)
    assert bits.shape == prior_bits.shape == evaluations.shape == (11,)
    assert bits.dtype == np.float64
    for got, want in zip(
        evaluate(make_evaluator(devices=1, batch_size=4), labels=labels), (bits, prior_bits, evaluations), strict=True
    ):
        np.testing.assert_allclose(got, want, atol=1e-4)
    later = evaluate(eight, LEVELS[7:], labels[7:], first_image=7)
    np.testing.assert_allclose(later[0], bits[7:], atol=1e-6)
    assert np.abs(evaluate(eight, LEVELS[:8], labels[:8], seed=1)[0] - bits[:8]).min() > 1e-4  # different u and z
    assert np.abs(evaluate(eight, LEVELS[:8], labels[:8] + 1)[0] - bits[:8]).min() > 1e-4  # each label is used for its image


def test_bits_of_dequantized_images():
    """Exact trace: 7 - log2 of the density in closed form, to 3e-4 bits; and the start noise level."""
    evaluator, seen = make_evaluator(devices=2, probes=0), []
    assert evaluator.start_sigma == pytest.approx(0.01, rel=1e-4)
    bits, _, _ = evaluate(evaluator, report=seen.append)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(0), jnp.arange(11))
    y = np.asarray(dequantize(jnp.asarray(LEVELS), keys), np.float64)
    np.testing.assert_allclose(bits, 7 - closed_form_log_density(FULL, y) / np.log(2), atol=3e-4)
    assert seen == [8, 11]


def test_an_unfinished_image_is_a_one_line_error():
    with pytest.raises(
        NumericalError, match=r"^the ODE of image 5 was not solved within 2 steps at rtol 1e-05 .*: set `rtol` to a larger"
    ) as caught:
        evaluate(make_evaluator(devices=1, batch_size=1, max_steps=2), LEVELS[:1], first_image=5)
    assert "\n" not in str(caught.value)


def test_invalid_arguments_are_found_before_compilation():
    with pytest.raises(ValueError, match=r"probes is -2"):
        make_evaluator(probes=-2)


def test_dequantization_of_16_bits():
    """Bits per dimension of a uniform density over [-1, 1), log p = -log 2, are log2 of the number of levels."""
    keys = some_keys(2)
    levels = jnp.array([[0, 100, 65535], [3, 5000, 40]], jnp.uint16)
    y = np.asarray(dequantize(levels, keys, 65536), np.float64)
    assert np.all((y + 1) * 32768 >= np.asarray(levels) - 0.01)
    assert np.all((y + 1) * 32768 <= np.asarray(levels) + 1.01)
    np.testing.assert_array_equal(dequantize(levels + 100, keys, 256, 100.0)[1, 2], dequantize(levels, keys, 256)[1, 2])
    for num_levels in (256, 4096, 65536):
        assert ode_likelihood.bits_per_dim(np.float64(-np.log(2)), num_levels) == pytest.approx(np.log2(num_levels))

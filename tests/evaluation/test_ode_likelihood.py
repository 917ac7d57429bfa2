"""The flow's density against that of Gaussian data, where the flow is known in closed form; and the driver over devices.

The exact denoiser is known at each timestep. Between two it is the straight line through both, as smooth a network as any.
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
    """Of a denoiser at whole t, one at any t."""

    def between(x_t, t):
        below = jnp.floor(t).astype(jnp.int32)
        share = (t - below)[:, None, None, None]
        return (1 - share) * denoise_fn(x_t, below) + share * denoise_fn(x_t, jnp.minimum(below + 1, last))

    return between


def data_density(schedule, images):
    """log density per dimension of the data with noise σ_0, in nats."""
    z, variance = (images.reshape(-1, D) - MEAN) @ AXES, VARIANCES + ode_likelihood.start_sigma(schedule) ** 2
    return -0.5 * (z**2 / variance + np.log(2 * np.pi * variance)).mean(axis=1)


def flow_density_in_closed_form(schedule, images):
    """What (27) is for the exact denoiser: along each axis of the data, x̄ - m grows as sqrt(variance + σ²); and at the end
    the density is that of N(0, I), not of what noise makes of the data there."""
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
def test_gaussian_data_have_their_density(prediction):
    """float32 and tolerances of 1e-5: within 2e-4 nats per dimension of the exact flow. Of the data themselves within .005:
    a linear chain ends with sqrt(ᾱ) = .006 of the image left, and begins sampling as if there were none."""
    got = exact(prediction)
    assert got.finished.all()
    np.testing.assert_allclose(got.nats, flow_density_in_closed_form(FULL, IMAGES), atol=2e-4)
    np.testing.assert_allclose(got.nats, data_density(FULL, IMAGES), atol=5e-3)


def test_from_pure_noise_it_is_the_density_of_the_data():
    """A chain that ends in pure noise leaves nothing of the image: within 1e-4 nats per dimension."""
    np.testing.assert_allclose(densities(PURE_NOISE, IMAGES).nats, data_density(PURE_NOISE, IMAGES), atol=1e-4)


def test_smaller_tolerances_come_closer():
    """The error of 1e-3 falls more than tenfold to 1e-5, and in float64 at 1e-7 it is below 2e-5 nats per dimension; what is
    left there is the denoiser's straight lines. Smaller tolerances take more evaluations."""
    loose = densities(FULL, IMAGES, rtol=1e-3, atol=1e-3)
    with jax.enable_x64(True):
        tight = densities(FULL, IMAGES, dtype=jnp.float64, rtol=1e-7, atol=1e-7)
    assert tight.nats.dtype == np.float64
    want = flow_density_in_closed_form(FULL, IMAGES)
    errors = [np.abs(found.nats - want).max() for found in (loose, exact("v"), tight)]
    assert errors[1] < errors[0] / 10
    assert errors[2] < 2e-5
    assert (loose.evaluations < exact("v").evaluations).all()
    assert (exact("v").evaluations < tight.evaluations).all()


def test_hutchinsons_estimates_average_to_the_exact_trace():
    """256 keys, two probes each, at one image: unbiased, within 4 standard errors."""
    image = np.broadcast_to(IMAGES[:1], (256, *SHAPE))
    found = densities(FULL, image, keys=some_keys(256, seed=1), probes=2).nats.astype(np.float64)
    error = found.std(ddof=1) / 16
    assert error > 1e-3  # the data's pixels are correlated
    assert abs(found.mean() - exact("v").nats[0]) < 4 * error


def test_an_image_alone_is_the_same_as_in_a_batch_and_its_evaluations_are_counted():
    """In float64: the same steps and 1e-12 nats, though the images of the batch take different numbers of steps; and as many
    evaluations as a denoiser counts. The denoiser is smooth: kinks would make the steps depend on the last digit."""
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


def test_a_solver_that_gives_up_says_so():
    found = densities(FULL, IMAGES[:2], max_steps=3)
    assert not found.finished.any()
    assert np.isnan(found.nats).all()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"probes": -1}, r"probes is -1"),
        ({"rtol": 0.0}, r"rtol = 0 "),
        ({"atol": float("nan")}, r"atol = nan"),
        ({"max_steps": 0}, r"max_steps is 0"),
        ({"schedule": PURE_NOISE, "parameterization": predicting("eps")}, r"zero terminal SNR"),
        ({"schedule": respace(FULL, [3])}, r"a chain of 1 step has no flow"),
        ({"x": jnp.zeros(SHAPE, jnp.uint8)}, r"uint8"),
        ({"x": jnp.zeros((1, *SHAPE))}, r"one image"),
    ],
)
def test_what_makes_no_sense_is_refused(change, says):
    options = {"schedule": FULL, "parameterization": predicting(), "x": jnp.zeros(SHAPE), "probes": 1} | change
    with pytest.raises(ValueError, match=says):
        ode_log_likelihood(denoise_fn=lambda x_t, t: x_t, key=jax.random.key(0), **options)


# Levels.


def test_dequantised_levels_stay_within_themselves():
    levels = np.tile(np.arange(256, dtype=np.uint8), (32, 1))
    y = np.asarray(dequantize(jnp.asarray(levels), some_keys(32)))
    assert y.dtype == np.float32
    np.testing.assert_array_equal(np.floor((y.astype(np.float64) + 1) * 128), levels)
    u = (y.astype(np.float64) + 1) * 128 - levels
    assert abs(u.mean() - 0.5) < 4 / np.sqrt(12 * u.size)
    np.testing.assert_allclose(u.var(), 1 / 12, rtol=0.05)
    np.testing.assert_allclose((y + 1) / 2, (u + 255 * (levels / 255)) / 256, atol=1e-6)  # the convention's other spelling


def test_equally_probable_levels_take_eight_bits():
    """A density of 1/2 on [-1, 1) is 8 bits; one of a single level's width and height none."""
    np.testing.assert_allclose(ode_likelihood.bits_per_dim(np.log([0.5, 128.0])), [8, 0], atol=1e-12)


# Over devices.

LEVELS = np.random.default_rng(3).integers(0, 256, (11, *SHAPE), dtype=np.uint8)


def make_denoise_fn(params, labels):
    denoise_fn = smooth(gaussian_denoiser(FULL, MEAN, COV, "v"))
    return lambda x_t, t: params * denoise_fn(x_t, t) + 0.1 * labels.astype(jnp.float32)[:, None, None, None]


def meter(devices=8, batch_size=8, **options):
    mesh = meshes.make_mesh(jax.devices()[:devices])
    return OdeLikelihoodEvaluator(FULL, predicting(), make_denoise_fn, mesh, batch_size=batch_size, **options)


def measure(meter, levels=LEVELS, labels=None, seed=0, **options):
    labels = np.zeros(len(levels)) if labels is None else labels
    batches = list(meter.measure(jnp.float32(1.0), jax.random.key(seed), levels, labels, **options))
    return [np.concatenate(column) for column in zip(*batches, strict=True)]


@pytest.fixture(scope="module")
def eight():
    return meter()


def test_images_have_their_bits_on_any_number_of_devices(eight):
    """1e-4 bits between 8 devices and 1; the same image at the same index, whatever stands before it."""
    labels = np.arange(11) % 3
    bits, prior_bits, evaluations = measure(eight, labels=labels)
    assert bits.shape == prior_bits.shape == evaluations.shape == (11,)
    assert bits.dtype == np.float64
    for got, want in zip(measure(meter(devices=1, batch_size=4), labels=labels), (bits, prior_bits, evaluations), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-4)
    later = measure(eight, LEVELS[7:], labels[7:], first_image=7)
    np.testing.assert_allclose(later[0], bits[7:], atol=1e-6)
    assert np.abs(measure(eight, LEVELS[:8], labels[:8], seed=1)[0] - bits[:8]).min() > 1e-4  # other u and z
    assert np.abs(measure(eight, LEVELS[:8], labels[:8] + 1)[0] - bits[:8]).min() > 1e-4  # each label reaches its image


def test_bits_are_those_of_the_dequantised_levels():
    """Exact trace: 7 - log2 of the closed form's density, to 3e-4 bits; and the noise level it is taken at."""
    exact_meter, seen = meter(devices=2, probes=0), []
    assert exact_meter.start_sigma == pytest.approx(0.01, rel=1e-4)
    bits, _, _ = measure(exact_meter, report=seen.append)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(0), jnp.arange(11))
    y = np.asarray(dequantize(jnp.asarray(LEVELS), keys), np.float64)
    np.testing.assert_allclose(bits, 7 - flow_density_in_closed_form(FULL, y) / np.log(2), atol=3e-4)
    assert seen == [8, 11]


def test_an_image_that_does_not_end_stops_with_one_line():
    with pytest.raises(
        NumericalError, match=r"^the flow of image 5 did not end within 2 steps at rtol 1e-05 .*: set `rtol` to a larger"
    ) as caught:
        measure(meter(devices=1, batch_size=1, max_steps=2), LEVELS[:1], first_image=5)
    assert "\n" not in str(caught.value)


def test_wrong_settings_are_refused_before_anything_runs():
    with pytest.raises(ValueError, match=r"probes is -2"):
        meter(probes=-2)

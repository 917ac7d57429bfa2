"""Parity with openai/improved-diffusion, from golden/improved_diffusion.npz; the script beside that file made it.

The reference ran in float64. Ours runs in float32 as in use: 1e-5 relative, or 2e-5 absolute (bits) where the decoder
integrates a wide Gaussian over bins; with float64 arithmetic it agrees to 1e-9.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import gaussian, likelihood, losses, vlb
from ddpm_jax.diffusion.parameterization import Parameterization
from ddpm_jax.diffusion.schedules import make_schedule
from ddpm_jax.diffusion.variances import VARIANCES

STEPS = {"linear": 1000, "cosine": 200}
CASES = list(itertools.product(STEPS, ("eps", "x_start"), VARIANCES))


@pytest.fixture(scope="module")
def golden(repository):
    with np.load(repository / "tests" / "golden" / "improved_diffusion.npz") as file:
        return dict(file)


def images(golden):
    """Bit-identical to the script's; compiled code may round the quotient differently."""
    return golden["levels"].astype(np.float32) / np.float32(127.5) - 1


def model_output(golden, name, prediction, variance):
    output = golden[f"{name}/{prediction}/output"]
    return np.concatenate([output, golden["variance_output"]], -1) if variance == "learned_range" else output


def terms(golden, name, prediction, variance, clip, dtype, decoder="exact"):
    schedule, t = make_schedule(name, STEPS[name]), golden[f"{name}/t"]
    x_start = images(golden).astype(dtype)
    x_t = gaussian.q_sample(schedule, x_start, t, golden["noise"].astype(dtype))
    output = model_output(golden, name, prediction, variance).astype(dtype)
    parameterization = Parameterization(prediction, variance, clip_denoised=clip)
    return likelihood.vb_terms(schedule, parameterization, output, x_start, x_t, t, decoder=decoder)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize(("name", "prediction", "variance"), CASES)
def test_terms_of_the_bound(golden, name, prediction, variance, clip):
    expected = golden[f"{name}/{prediction}/{variance}/{'clip' if clip else 'free'}/bits"]
    bits = terms(golden, name, prediction, variance, clip, np.float32).bits
    assert bits.dtype == jnp.float32
    np.testing.assert_allclose(bits, expected, rtol=1e-5, atol=2e-5)
    with jax.enable_x64(True):
        bits = terms(golden, name, prediction, variance, clip, np.float64).bits
        assert bits.dtype == jnp.float64
        np.testing.assert_allclose(bits, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("name", "prediction", "variance"), CASES)
def test_tanh_decoder_matches(golden, name, prediction, variance):
    """Tolerances as above. Only L_0 differs from the exact decoder's, for all images at t = 0."""
    key, t = f"{name}/{prediction}/{variance}/clip", golden[f"{name}/t"]
    exact, approximate = golden[f"{key}/bits"], golden[f"{key}/tanh_bits"]
    bits = terms(golden, name, prediction, variance, True, np.float32, "tanh").bits
    np.testing.assert_allclose(bits, approximate, rtol=1e-5, atol=2e-5)
    with jax.enable_x64(True):
        bits = terms(golden, name, prediction, variance, True, np.float64, "tanh").bits
        np.testing.assert_allclose(bits, approximate, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(exact[t > 0], approximate[t > 0])
    assert (approximate != exact)[:3].all()


def test_whole_bound_of_a_chain(golden):
    """Every field of calc_bpd_loop, 1e-5; with a formula as the network and the reference's noise."""
    schedule, noise = make_schedule("cosine", 12), golden["loop/noise"]
    x_start = images(golden)[:2]
    parameterization = Parameterization("eps", "fixed_large", clip_denoised=True)

    @jax.jit
    @jax.vmap
    def row(ts, noise):
        x_t = gaussian.q_sample(schedule, x_start, ts, noise)
        return likelihood.vb_terms(schedule, parameterization, 0.8 * x_t + 0.02 * ts[0], x_start, x_t, ts)

    rows = row(np.repeat(np.arange(12)[:, None], 2, axis=1), noise)
    prior = vlb.prior_bpd(schedule, x_start)
    for ours, theirs in (("bits", "vb"), ("xstart_mse", "xstart_mse"), ("eps_mse", "mse")):
        expected = golden[f"loop/{theirs}"][:, ::-1].T  # t descends from T-1
        np.testing.assert_allclose(getattr(rows, ours), expected, rtol=1e-5, atol=1e-6, err_msg=ours)
    np.testing.assert_allclose(prior, golden["loop/prior_bpd"], rtol=1e-5)
    assert np.mean(prior + np.sum(rows.bits, axis=0)) == pytest.approx(golden["loop/total_bpd"].mean(), rel=1e-5)


NAMES = {"mse": "hybrid_mean", "rescaled_mse": "hybrid", "kl": "vlb_mean", "rescaled_kl": "vlb"}


@pytest.mark.parametrize("theirs", NAMES)
@pytest.mark.parametrize(("name", "prediction", "variance"), CASES)
def test_training_losses(golden, name, prediction, variance, theirs):
    """1e-5 in float32; without a learned variance its two MSE losses are simple."""
    schedule, t, x_start = make_schedule(name, STEPS[name]), golden[f"{name}/t"], images(golden)
    loss = "simple" if "mse" in theirs and variance != "learned_range" else NAMES[theirs]
    x_t = gaussian.q_sample(schedule, x_start, t, golden["noise"])
    output = model_output(golden, name, prediction, variance)
    parameterization = Parameterization(prediction, variance, clip_denoised=True)
    values = losses.training_losses(schedule, parameterization, output, x_start, x_t, t, golden["noise"], loss=loss)
    scale = STEPS[name] if theirs == "rescaled_kl" else 1
    np.testing.assert_allclose(values, golden[f"{name}/{prediction}/{variance}/{theirs}"], rtol=1e-5, atol=2e-5 * scale)

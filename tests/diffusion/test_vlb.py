"""The whole bound: against the entropy of Gaussian data, for any split of the work, and its fast estimate.

For pixels x ~ N(0, v) the exact network is known: E[x_0 | x_t] = a x_t, a = v sqrt(ᾱ) / (ᾱ v + 1 - ᾱ), with mean squared
error v (1 - ᾱ) / (ᾱ v + 1 - ᾱ), and so are all terms of the bound.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from ddpm_jax.diffusion import vlb
from ddpm_jax.diffusion.likelihood import VlbTerms
from ddpm_jax.diffusion.parameterization import Parameterization
from ddpm_jax.diffusion.schedules import make_schedule, respace, schedule_from_betas
from ddpm_jax.diffusion.spacings import spaced_timesteps

V = 0.04  # variance of the pixels: 256 levels reach to 5 deviations
X_START = Parameterization("x_start", "fixed_small", clip_denoised=False)
LEARNED = Parameterization("x_start", "learned_range", clip_denoised=False)


def exact_network(schedule, v=V, learned=None):
    """denoise_fn for a chain that is not respaced; `learned` [K] is the output for a learned variance."""
    cumprod = schedule.alphas_cumprod
    gain = v * np.sqrt(cumprod) / (cumprod * v + 1 - cumprod)

    def denoise_fn(x_t, t):
        pred_xstart = jnp.asarray(gain, x_t.dtype)[t].reshape(-1, 1, 1, 1) * x_t
        if learned is None:
            return pred_xstart
        return jnp.concatenate([pred_xstart, jnp.zeros_like(x_t) + jnp.asarray(learned, x_t.dtype)[t].reshape(-1, 1, 1, 1)], -1)

    return denoise_fn


def exact_error(schedule, v=V):
    """Mean squared error of the exact network, [K]."""
    return v * (1 - schedule.alphas_cumprod) / (schedule.alphas_cumprod * v + 1 - schedule.alphas_cumprod)


def all_terms(schedule, denoise_fn, x_start, key, parameterization=X_START):
    keys = image_keys(key, np.arange(len(x_start)))
    scan = jax.jit(
        functools.partial(vlb.scan_vlb_terms, schedule, parameterization, denoise_fn, first_t=0, count=schedule.num_timesteps)
    )
    return scan(jnp.asarray(x_start), keys)


def gaussian_images(number, size, v, seed=0):
    return np.random.default_rng(seed).normal(0, math.sqrt(v), (number, size, size, 1)).astype(np.float32)


def density_bits(mse, variance):
    """-log2 of a Gaussian's density, from the mean squared distance to its mean."""
    return 0.5 * np.log2(2 * np.pi * variance) + mse / (2 * variance * np.log(2))


prior_bpd = jax.jit(vlb.prior_bpd, static_argnums=0)


@jax.jit
def image_keys(key, indices):
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, indices)


# Gaussian data.


def test_exact_network_with_the_optimal_variance_reaches_the_entropy():
    """The true reverse step of Gaussian data is Gaussian, so with its mean and variance the bound is tight for any T: the
    entropy plus L_T. The density replaces the decoder's bins. Five standard errors of 1e4 pixels.
    """
    v = 0.6
    schedule = make_schedule("linear", 50)
    posterior = np.exp(schedule.posterior_log_variance_clipped)
    right = schedule.posterior_variance + schedule.posterior_mean_coef1**2 * exact_error(schedule, v)
    right[0] = exact_error(schedule, v)[0]
    learned = 2 * np.log(right / posterior) / np.log(schedule.betas / posterior) - 1
    assert (np.abs(learned[1:]) < 1).all()  # it is between the paper's two extremes
    x_start = gaussian_images(160, 8, v)
    terms = all_terms(schedule, exact_network(schedule, v, learned), x_start, jax.random.key(0), LEARNED)
    prior = np.asarray(prior_bpd(schedule, x_start), np.float64)
    steps = np.asarray(terms.bits, np.float64)[1:].sum(axis=0)
    total = prior + steps + density_bits(np.asarray(terms.xstart_mse, np.float64)[0], right[0])
    # Subtracting each image's own log density leaves only the variance from the noise in x_t.
    excess = total - density_bits(np.square(x_start.astype(np.float64)).mean(axis=(1, 2, 3)), v)
    standard_error = excess.std(ddof=1) / math.sqrt(len(excess))
    assert standard_error < 0.03
    last = schedule.alphas_cumprod[-1] * v + 1 - schedule.alphas_cumprod[-1]
    prior_gap = 0.5 * (last - 1 - np.log(last)) / np.log(2)  # of N(0, 1) as the distribution of x_T
    assert abs(excess.mean() - prior_gap) < 5 * standard_error


def refined_schedule(num_timesteps):
    """From noise of deviation .01 (a level is .0078) to a signal of .01, in equal steps of log SNR."""
    cumprod = 1 / (1 + np.exp(np.linspace(math.log(1e-4), math.log(1e4), num_timesteps)))
    return schedule_from_betas(1 - cumprod / np.append(1.0, cumprod[:-1]))


def test_the_gap_to_the_entropy_decreases_with_the_number_of_steps():
    """With the posterior's variance a chain of T steps between the same ends loses bits; four times as many steps reduce
    the loss to at most two thirds. The decoder has the variance β_0, which is optimal here.

    Density: the gap to the Gaussian's entropy against its closed form. Levels: the gap to the entropy of the rounded
    Gaussian, against the same number. Five standard errors (.013 bits at the finest, where the gap is .09).
    """
    levels = np.arange(256) / 127.5 - 1
    edges = np.concatenate([[-np.inf], (levels[1:] + levels[:-1]) / 2, [np.inf]])
    mass = np.diff([0.5 * math.erfc(-edge / math.sqrt(2 * V)) for edge in edges])
    smooth = gaussian_images(100, 8, V)
    index = np.clip(np.round((smooth + 1) * 127.5), 0, 255).astype(int)
    x_start = np.concatenate([smooth, levels[index].astype(np.float32)])
    own_density = density_bits(np.square(smooth.astype(np.float64)).mean(axis=(1, 2, 3)), V)
    own_levels = -np.log2(mass[index]).mean(axis=(1, 2, 3))
    gaps = []
    for num_timesteps in (24, 96, 384):
        schedule = refined_schedule(num_timesteps)
        learned = np.append(1.0, np.full(num_timesteps - 1, -1.0))
        network = exact_network(schedule, learned=learned)
        terms = all_terms(schedule, network, x_start, jax.random.key(1), LEARNED)
        prior = np.asarray(prior_bpd(schedule, x_start), np.float64)
        bits, error = (np.asarray(field, np.float64) for field in (terms.bits, terms.xstart_mse))
        m, cumprod = exact_error(schedule), schedule.alphas_cumprod
        np.testing.assert_allclose(error[:, :100].mean(axis=1), m, rtol=5 * math.sqrt(2 / smooth.size))
        step = 0.5 * schedule.posterior_mean_coef1**2 * m / np.exp(schedule.posterior_log_variance_clipped) / np.log(2)
        expected_prior = 0.5 * (cumprod[-1] * V - cumprod[-1] - np.log1p(-cumprod[-1])) / np.log(2)
        expected = expected_prior + step[1:].sum() + density_bits(m[0], schedule.betas[0]) - density_bits(V, V)
        continuous = prior + bits[1:].sum(axis=0) + density_bits(error[0], schedule.betas[0])
        discrete = prior + bits.sum(axis=0)
        for excess in (continuous[:100] - own_density, discrete[100:] - own_levels):
            standard_error = excess.std(ddof=1) / 10
            gaps.append(excess.mean())
            assert abs(gaps[-1] - expected) < 5 * standard_error
    assert standard_error < 0.015
    for of_one_kind in (gaps[::2], gaps[1::2]):
        assert of_one_kind[0] > 1.5 * of_one_kind[1] > 2.25 * of_one_kind[2] > 0


# Splitting the work.


@pytest.fixture(scope="module")
def small():
    """A chain of 12 of 48 steps, 8 images, their keys, and a network that uses both arguments."""
    schedule = respace(make_schedule("cosine", 48), spaced_timesteps(48, 12, "trailing"))
    x_start = np.random.default_rng(3).integers(0, 256, (8, 4, 4, 1)).astype(np.float32) / np.float32(127.5) - 1
    keys = image_keys(jax.random.key(5), np.arange(8))

    def denoise_fn(x_t, t):
        return jnp.tanh(x_t) * (0.5 + t.astype(jnp.float32) / 96).reshape(-1, 1, 1, 1)

    return schedule, denoise_fn, jnp.asarray(x_start), keys


def assert_terms_close(actual, expected, rtol=1e-6):
    for ours, theirs in zip(actual, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=1e-9)


@pytest.fixture(scope="module")
def whole(small):
    schedule, denoise_fn, x_start, keys = small
    return jax.jit(functools.partial(vlb.scan_vlb_terms, schedule, X_START, denoise_fn, first_t=0, count=12))(x_start, keys)


def test_scan_equals_a_loop_over_t(small, whole):
    """And the network gets the t of the training chain. 1e-6: compiled sums may be rounded differently."""
    schedule, denoise_fn, x_start, keys = small
    seen = []

    def watched(x_t, t):
        seen.append(np.asarray(t).tolist())
        return denoise_fn(x_t, t)

    mixed = np.array([0, 5, 11, 0, 5, 11, 7, 7])
    terms = vlb.vlb_terms(schedule, X_START, watched, x_start, mixed, keys)
    assert seen == [(4 * mixed + 3).tolist()]
    assert_terms_close(terms, [np.asarray(field)[mixed, np.arange(8)] for field in whole])


def test_ranges_with_any_first_t_share_one_compilation(small, whole):
    schedule, denoise_fn, x_start, keys = small
    traces = []

    def scan(x_start, keys, first_t):
        traces.append(first_t)
        return vlb.scan_vlb_terms(schedule, X_START, denoise_fn, x_start, keys, first_t=first_t, count=4)

    scan = jax.jit(scan)
    parts = [scan(x_start, keys, jnp.int32(first)) for first in (0, 4, 8)]
    assert len(traces) == 1
    assert_terms_close([jnp.concatenate(fields) for fields in zip(*parts, strict=True)], whole)
    beyond = scan(x_start, keys, jnp.int32(10))
    assert_terms_close([field[:2] for field in beyond], [field[10:] for field in whole])
    assert np.isnan(beyond.bits[2:]).all()


def test_terms_of_an_image_do_not_depend_on_batch_or_device(small, whole):
    """Three of the images alone; and one image on each of 8 devices under shard_map. 1e-6."""
    schedule, denoise_fn, x_start, keys = small
    some = jnp.array([6, 1, 3])
    scan = jax.jit(functools.partial(vlb.scan_vlb_terms, schedule, X_START, denoise_fn, first_t=0, count=12))
    alone = scan(x_start[some], keys[some])
    assert_terms_close(alone, [field[:, some] for field in whole])

    def on_device(x_start, key_data, first_t):
        keys = jax.random.wrap_key_data(key_data)
        return vlb.scan_vlb_terms(schedule, X_START, denoise_fn, x_start, keys, first_t=first_t, count=12)

    mesh = Mesh(np.array(jax.devices()), ("data",))
    spread = jax.shard_map(on_device, mesh=mesh, in_specs=(P("data"), P("data"), P()), out_specs=P(None, "data"))
    assert_terms_close(jax.jit(spread)(x_start, jax.random.key_data(keys), jnp.int32(0)), whole)


def test_noise_is_independent_between_t_and_images(small):
    schedule, _, x_start, keys = small
    seen = []

    def watched(x_t, t):
        seen.append(np.asarray(x_t))
        return x_t

    for t in (4, 5):
        vlb.vlb_terms(schedule, X_START, watched, 0 * x_start, jnp.full(8, t), keys)
    noise = np.concatenate(seen).reshape(16, -1)
    correlation = np.corrcoef(noise) - np.eye(16)
    assert np.abs(correlation).max() < 0.9


# Summaries.


def test_coding_curve_by_hand():
    """Two images, three steps: the rate is a plain sum; RMSE is of the mean over the images, times 127.5."""
    bits = np.array([[2.0, 3.0], [0.5, 0.25], [0.125, 0.375]], np.float32)
    error = np.array([[1e-4, 3e-4], [1e-2, 1e-2], [0.25, 0.75]], np.float32)
    terms, prior = VlbTerms(bits, error, error), np.array([0.5, 0.25], np.float32)
    rate, rmse = vlb.rate_distortion_curve(prior, terms)
    np.testing.assert_array_equal(rate, [1.0, 0.625, 0.375])
    np.testing.assert_allclose(rmse, 127.5 * np.sqrt([2e-4, 1e-2, 0.5]), rtol=1e-6)


def test_coding_curve_of_gaussian_data_respects_the_shannon_limit():
    """Shannon: no code has error D on Gaussian pixels below a rate of ½ log2(v / D); neither has the paper's curve."""
    schedule = make_schedule("cosine", 64)
    x_start = gaussian_images(256, 8, V)
    terms = all_terms(schedule, exact_network(schedule), x_start, jax.random.key(2))
    rate, rmse = vlb.rate_distortion_curve(np.asarray(prior_bpd(schedule, x_start)), terms)
    limit = 0.5 * np.log2(V / np.square(rmse / 127.5))
    assert (np.diff(rate) < 0).all()
    assert (rate > limit - 0.04).all()  # rmse is known to 1 %
    assert rate[-1] < 1e-3
    assert rmse[-1] == pytest.approx(127.5 * math.sqrt(V), rel=0.05)


# The fast estimate.

FAST_IMAGES, FAST_STEPS = 12, 40


@pytest.fixture(scope="module")
def fast():
    """Quantized images, the chain, and the exact bound of these images: expectation over x_t in closed form, and for the
    decoder by Gauss-Hermite quadrature in float64.
    """
    schedule = make_schedule("cosine", FAST_STEPS)
    levels = np.round((gaussian_images(FAST_IMAGES, 4, V) + 1) * 127.5).clip(0, 255)
    x_start = (levels / np.float32(127.5) - 1).astype(np.float32)
    x = x_start.astype(np.float64)
    cumprod = schedule.alphas_cumprod
    gain = V * np.sqrt(cumprod) / (cumprod * V + 1 - cumprod)
    error = (1 - gain * np.sqrt(cumprod)) ** 2 * np.square(x).mean() + gain**2 * (1 - cumprod)
    variance = np.exp(schedule.posterior_log_variance_clipped)
    steps = 0.5 * schedule.posterior_mean_coef1**2 * error / variance / np.log(2)
    nodes, node_weights = np.polynomial.hermite_e.hermegauss(200)
    pred_xstart = gain[0] * (np.sqrt(cumprod[0]) * x[..., None] + np.sqrt(1 - cumprod[0]) * nodes)
    tail = np.vectorize(lambda z: 0.5 * math.erfc(z / math.sqrt(2)))
    distance = np.abs(x[..., None] - pred_xstart)
    probability = tail((distance - 1 / 255) / np.sqrt(variance[0])) - tail((distance + 1 / 255) / np.sqrt(variance[0]))
    decoder = -(np.log2(np.maximum(probability, 1e-12)) @ (node_weights / node_weights.sum())).mean()
    prior = np.asarray(prior_bpd(schedule, x_start), np.float64).mean()
    return schedule, x_start, prior + steps[1:].sum() + decoder


def estimates(schedule, x_start, num_strata, repeats):
    """Estimates from `repeats` different root keys: the bound and its standard error."""
    denoise_fn = exact_network(schedule)

    @jax.jit
    @jax.vmap
    def run(root):
        keys = image_keys(root, np.arange(len(x_start)))
        t, weights = vlb.sample_timesteps(schedule, keys, num_strata)
        return vlb.scan_sampled_vlb_terms(schedule, X_START, denoise_fn, x_start, t, keys), weights

    terms, weights = jax.device_get(run(jax.random.split(jax.random.key(11), repeats)))
    bits = np.asarray(prior_bpd(schedule, x_start)).mean() + (terms.bits * weights).sum(axis=1, dtype=np.float64).mean(axis=1)
    return bits, np.array([vlb.sampling_error(*each) for each in zip(terms.bits, weights, strict=True)])


@pytest.mark.parametrize("num_strata", [2, 5])
def test_fast_estimate_is_unbiased_with_a_correct_standard_error(fast, num_strata):
    """600 estimates: their mean is the exact bound within four standard errors; the mean of the squared standard errors is
    their variance, within 25% (a variance of 600 is known to 6%).
    """
    schedule, x_start, exact = fast
    bits, stated = estimates(schedule, x_start, num_strata, 600)
    assert abs(bits.mean() - exact) < 4 * bits.std(ddof=1) / math.sqrt(600)
    assert np.mean(np.square(stated)) == pytest.approx(bits.var(ddof=1), rel=0.25)
    assert 0.9 < np.mean(np.abs(bits - exact) < 2 * stated) < 0.99


@pytest.mark.parametrize("num_timesteps", [2, 3, 1000])
def test_proposal_is_a_distribution_over_all_t_but_the_first(num_timesteps):
    p = vlb.timestep_proposal(make_schedule("cosine", num_timesteps))
    assert p.shape == (num_timesteps,)
    assert p[0] == 0
    assert p.sum() == pytest.approx(1, abs=1e-12)
    assert (p[1:] >= 0.1 / num_timesteps).all()


def test_sampled_weights_are_unbiased_for_any_function_of_t():
    """Σ w f(t) over 20,000 images, for an f without smoothness; four standard errors. And each t can occur."""
    schedule = make_schedule("linear", 30)
    f = np.random.default_rng(4).uniform(0, 1, 30)
    keys = jax.random.split(jax.random.key(7), 20_000)
    t, weights = map(np.asarray, jax.jit(vlb.sample_timesteps, static_argnums=(0, 2))(schedule, keys, 4))
    assert t.shape == weights.shape == (8, 20_000)
    assert (t[:2] == 0).all()
    assert (t[2:] > 0).all()
    assert set(t.ravel()) == set(range(30))
    sums = (weights * f[t]).sum(axis=0)
    assert abs(sums.mean() - f.sum()) < 4 * sums.std() / math.sqrt(20_000)
    p = vlb.timestep_proposal(schedule)  # stratified: rows 2s and 2s + 1 are in part s - 1 of the mass of p
    fraction = (np.cumsum(p) - 1e-6)[t[2:]] * 3
    assert (fraction >= np.repeat([0, 1, 2], 2)[:, None]).all()


def test_rows_have_independent_noise_and_can_be_split(fast):
    schedule, x_start, _ = fast
    keys = image_keys(jax.random.key(5), np.arange(FAST_IMAGES))
    t, _ = jax.jit(vlb.sample_timesteps, static_argnums=(0, 2))(schedule, keys, 3)
    run = jax.jit(functools.partial(vlb.scan_sampled_vlb_terms, schedule, X_START, exact_network(schedule)))
    terms = run(x_start, t, keys)
    assert (terms.xstart_mse[0] != terms.xstart_mse[1]).all()  # t=0 twice
    parts = [run(x_start, t[row : row + 2], keys, first_row=jnp.int32(row)) for row in (0, 2, 4)]
    assert_terms_close([jnp.concatenate(fields) for fields in zip(*parts, strict=True)], terms)


def test_a_chain_of_one_step_has_only_the_decoder_term():
    schedule = schedule_from_betas([0.3])
    keys = jax.random.split(jax.random.key(0), 3)
    t, weights = vlb.sample_timesteps(schedule, keys, 1)
    assert (t == 0).all()
    assert weights.tolist() == [[0.5] * 3] * 2
    error = vlb.sampling_error(np.array([[1.0, 2.0, 3.0], [1.5, 2.0, 2.5]]), np.asarray(weights))
    assert error == pytest.approx(math.sqrt(0.25**2 + 0.25**2) / 3)


def test_invalid_arguments_are_rejected(small):
    schedule, denoise_fn, x_start, keys = small
    for num_strata in (1, 0):
        with pytest.raises(ValueError, match=r"^a chain of 12 steps[^\n]*2 or more$"):
            vlb.sample_timesteps(schedule, keys, num_strata)
    with pytest.raises(ValueError, match="x_start is uint8"):
        vlb.vlb_terms(schedule, X_START, denoise_fn, x_start.astype(jnp.uint8), jnp.zeros(8, jnp.int32), keys)

"""Samplers against the equations of their papers in float64 NumPy, and against each other where they are equal."""

import jax.numpy as jnp
import numpy as np
import pytest
from exact_denoisers import FULL, SHAPE, build, curved, make, run_loop, shorten, some_keys

from ddpm_jax.diffusion.parameterization import PREDICTIONS
from ddpm_jax.diffusion.schedules import make_schedule, respace, schedule_from_betas
from ddpm_jax.samplers import dpmpp, multistep, sampler, unipc


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_ancestral_equals_algorithm_2(variance):
    """DDPM's algorithm 2 with equations 7 and 11, in float64 NumPy from betas alone; 1e-4 over 25 steps."""
    betas = np.linspace(0.01, 0.3, 25)
    keys = some_keys(3)
    sampled = make("ancestral", schedule_from_betas(betas), "eps", variance)

    def network(x, t):
        return 0.5 * x + 0.02 * t

    x = np.asarray(sampler.per_image_noise(keys, 0, SHAPE), np.float64)
    want = []
    for t in reversed(range(25)):
        want.append(x)
        alpha_bar, alpha_bar_prev = np.prod(1 - betas[: t + 1]), np.prod(1 - betas[:t])
        sigma_squared = betas[t] if variance == "fixed_large" else betas[t] * (1 - alpha_bar_prev) / (1 - alpha_bar)
        z = np.asarray(sampler.per_image_noise(keys, 25 - t, SHAPE), np.float64) if t > 0 else 0.0
        x = (x - betas[t] / np.sqrt(1 - alpha_bar) * network(x, t)) / np.sqrt(1 - betas[t]) + np.sqrt(sigma_squared) * z
    xs, _, got = run_loop(sampled, lambda x_t, t: network(x_t, t.astype(jnp.float32)[:, None, None, None]), keys)
    np.testing.assert_allclose(xs, want, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(got, x, rtol=1e-4, atol=1e-4)


def test_ddim_equals_equation_12():
    """In float64 NumPy from cumulative products alone, at the steps 2, 9, 24 of 25 and eta = .7; 1e-4."""
    betas, eta = np.linspace(0.01, 0.3, 25), 0.7
    keys, steps = some_keys(3), [2, 9, 24]
    schedule = respace(schedule_from_betas(betas), steps)
    sampled = make("ddim", schedule, "eps", eta=eta)

    def network(x, t):
        return 0.5 * x + 0.02 * t

    x = np.asarray(sampler.per_image_noise(keys, 0, SHAPE), np.float64)
    for i, (t, previous) in enumerate([(24, 9), (9, 2), (2, -1)]):
        alpha_bar, alpha_bar_prev = np.prod(1 - betas[: t + 1]), np.prod(1 - betas[: previous + 1])
        eps = network(x, t)
        sigma = eta * np.sqrt((1 - alpha_bar_prev) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_prev))
        pred_xstart = (x - np.sqrt(1 - alpha_bar) * eps) / np.sqrt(alpha_bar)
        z = np.asarray(sampler.per_image_noise(keys, i + 1, SHAPE), np.float64)
        x = np.sqrt(alpha_bar_prev) * pred_xstart + np.sqrt(1 - alpha_bar_prev - sigma**2) * eps + sigma * z
    _, _, got = run_loop(sampled, lambda x_t, t: network(x_t, t.astype(jnp.float32)[:, None, None, None]), keys)
    np.testing.assert_allclose(got, x, rtol=1e-4, atol=1e-4)


def edm_sampler(denoise, round_sigma, sigmas, noise, *, churn, churn_min, churn_max, churn_noise):
    """EDM 2206.00364, algorithm 2, with t = sigma: [B, ...] at the sigmas t_0 > ... > t_{N-1} and t_N = 0.

    noise [N + 1, B, ...]: first the one of x_0, then epsilon_i of each step. round_sigma as in its section 5 for discrete-time
    networks.
    """
    steps = len(sigmas)
    t = np.append(sigmas, 0.0)
    x = t[0] * noise[0]
    for i in range(steps):
        gamma = min(churn / steps, np.sqrt(2) - 1) if churn_min <= t[i] <= churn_max else 0.0
        t_hat = round_sigma(t[i] + gamma * t[i])
        x_hat = x + np.sqrt(t_hat**2 - t[i] ** 2) * churn_noise * noise[i + 1]
        d = (x_hat - denoise(x_hat, t_hat)) / t_hat
        x = x_hat + (t[i + 1] - t_hat) * d
        if t[i + 1] != 0:
            d_prime = (x - denoise(x, t[i + 1])) / t[i + 1]
            x = x_hat + (t[i + 1] - t_hat) * (d / 2 + d_prime / 2)
    return x


@pytest.mark.parametrize("churn", [0.0, 3.0, 40.0])
@pytest.mark.parametrize("spacing", ["karras", "trailing"])
def test_heun_equals_edm_algorithm_2(churn, spacing):
    """In terms of the VP model: x = x_edm / sqrt(1 + sigma^2), t from sigma; 1e-5 of the largest value. At churn 40 gamma is
    at its bound, sqrt(2) - 1.
    """
    schedule, keys = shorten(FULL, 8, spacing), some_keys(3)
    options = {"churn": churn, "churn_min": 0.1, "churn_max": 30.0, "churn_noise": 1.01}
    sigma_of_t = np.sqrt((1 - np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))) / np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))

    def network(x_t, t):
        return jnp.sin(x_t + 0.002 * t.astype(jnp.float32)[:, None, None, None])

    def denoise(x, sigma):
        t = np.argmin(np.abs(sigma_of_t - sigma))
        assert abs(sigma_of_t[t] / sigma - 1) < 1e-9  # only at timesteps of training
        return np.sin(x / np.sqrt(1 + sigma**2) + 0.002 * t)

    def round_sigma(sigma):
        return sigma_of_t[np.argmin(np.abs(sigma_of_t - sigma))]

    noise = np.array([sampler.per_image_noise(keys, i, SHAPE) for i in range(9)], np.float64)
    first = sigma_of_t[999]
    noise[0] *= np.sqrt(1 + first**2) / first  # ours starts at variance 1 in x, theirs at sigma^2 in x_edm
    want = edm_sampler(denoise, round_sigma, sigma_of_t[schedule.timesteps[::-1]], noise, **options)
    sampled = make("heun", schedule, trained=FULL, **options)
    assert sampled.nfe == 15
    _, _, got = run_loop(sampled, network, keys)
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())


def assert_equal_chains(one, other):
    """Every x_t and pred_xstart of two samplers with the same keys: 1e-4 of the largest value."""
    for got, want in zip(run_loop(other, curved, some_keys(3)), run_loop(one, curved, some_keys(3)), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4 * np.abs(want).max())


@pytest.mark.parametrize("clip_denoised", [True, False])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ddim_with_eta_one_equals_ancestral_with_fixed_small(prediction, clip_denoised):
    """DDIM 2010.02502, section 4.1; the same keys give the same noise."""
    schedule = shorten(FULL, 10, "quadratic")
    one = build("ancestral-small", schedule, prediction, clip_denoised)
    assert_equal_chains(one, build("ddim-full", schedule, prediction, clip_denoised))


@pytest.mark.parametrize(("first_order", "second_order"), [("ddim", "dpmpp_2m"), ("ancestral-small", "dpmpp_2m_sde")])
def test_two_steps_of_dpm_solver_are_first_order(first_order, second_order):
    """No extrapolation in the first, lower order in the last: DDIM with eta 0 and 1 (2211.01095, section 4)."""
    schedule = shorten(FULL, 2)
    assert_equal_chains(build(first_order, schedule), build(second_order, schedule))


@pytest.mark.parametrize("weights", [*(2, 3), "2M"])
@pytest.mark.parametrize("spacing", ["leading", "linspace"])
def test_a_long_step_is_exact_if_x0_is_linear_in_alpha(weights, spacing):
    """For N(m, I) the flow is x_t = alpha m + z and x̂_0 = m + alpha z: the long step of these spacings to t=0 is exact; 1e-12.

    And it is bounded: with 50 steps, it adds less than once the last change of x̂_0, while h / 2h' is 1.7.
    """
    for steps in (5, 10, 50):
        schedule = shorten(FULL, steps, spacing)
        if weights == "2M":
            table = dpmpp.second_order_coefficients(schedule, noise=False)
        else:
            table, _ = unipc.predictor_corrector(schedule, weights)
        assert multistep.is_long_step(schedule).tolist() == [False, True] + (steps - 2) * [False]
        alpha, m, z = schedule.sqrt_alphas_cumprod, 0.7, -1.3
        x0 = (m + alpha * z)[1 : 1 + table.x0.shape[1]]
        np.testing.assert_allclose(table.x[1] * (alpha[1] * m + z) + table.x0[1] @ x0, alpha[0] * m + z, atol=1e-12)
    lengths = -np.diff(multistep.log_signal_to_noise(schedule))
    assert 0 < multistep.alpha_linear_extrapolation(schedule)[1] < 1 < 1.6 < lengths[0] / (2 * lengths[1])


@pytest.mark.parametrize("spacing", ["leading", "linspace"])
def test_a_long_step_with_noise_preserves_the_variance(spacing):
    """For data N(m, I), from x_k and x_{k+1} of the forward process, Cov = alpha_{k+1} / alpha_k; 1e-12.

    x̂_0 without extrapolation would reduce it.
    """
    for steps in (5, 10, 50):
        schedule = shorten(FULL, steps, spacing)
        alpha, table = schedule.sqrt_alphas_cumprod, dpmpp.second_order_coefficients(schedule, noise=True)
        newest, previous = table.x[1] + table.x0[1, 0] * alpha[1], table.x0[1, 1] * alpha[2]
        covariance = alpha[2] / alpha[1]
        variance = newest**2 + previous**2 + 2 * newest * previous * covariance + table.noise[1] ** 2
        np.testing.assert_allclose(variance, 1, atol=1e-12)
        first_order = table.x[1] + table.x0[1].sum() * alpha[1]
        assert first_order**2 + table.noise[1] ** 2 < 1 - 1e-5


def test_orders_decrease_toward_a_long_step_as_toward_the_end():
    """Up to the step before the last two, order-3 UniPC equals that of a chain that ends where the long step starts; 1e-12."""
    schedule = shorten(FULL, 10, "leading")
    before, _ = unipc.predictor_corrector(respace(FULL, schedule.timesteps[1:]), 3)
    whole, _ = unipc.predictor_corrector(schedule, 3)
    np.testing.assert_allclose(whole.x0[3:], before.x0[2:], atol=1e-12)
    assert whole.x0[2, 2] == 0 != whole.x0[3, 2]


@pytest.mark.parametrize(
    ("schedule", "spacing", "uneven", "alpha_linear"),
    [
        ("linear", "trailing", [], []),
        ("linear", "leading", [1], [1, 2]),  # to t=0, and the step before it
        ("cosine", "trailing", [8], [8]),  # after the step from 999, which is 8 of 12 in log SNR
        ("cosine", "linspace", [1, 8], [1, 2, 8]),
    ],
)
def test_uneven_steps_are_detected(schedule, spacing, uneven, alpha_linear):
    chain = shorten(make_schedule(schedule, 1000), 10, spacing)
    assert np.flatnonzero(multistep.is_uneven_step(chain)).tolist() == uneven
    assert np.flatnonzero(multistep.is_alpha_linear_step(chain)).tolist() == alpha_linear


@pytest.mark.parametrize("weights", [*(2, 3), "2M"])
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_a_step_after_a_longer_one_is_exact_if_x0_is_linear_in_alpha(weights, zero_terminal_snr):
    """As above, for the second step of the cosine schedule: 1e-12. h / 2h' would add a tenth of the required change."""
    chain = make_schedule("cosine", 1000, zero_terminal_snr=zero_terminal_snr)
    for steps in (5, 10, 50):
        schedule = shorten(chain, steps)
        if weights == "2M":
            table = dpmpp.second_order_coefficients(schedule, noise=False)
        else:
            table, _ = unipc.predictor_corrector(schedule, weights)
        k, alpha, m, z = steps - 2, schedule.sqrt_alphas_cumprod, 0.7, -1.3
        x0 = (m + alpha * z)[k : k + table.x0.shape[1]]
        got = table.x[k] * (alpha[k] * m + z) + table.x0[k, : len(x0)] @ x0
        np.testing.assert_allclose(got, alpha[k - 1] * m + z, atol=1e-12)
        assert (table.x0[k, len(x0) :] == 0).all()
        assert 0.3 < multistep.alpha_linear_extrapolation(schedule)[k] < 0.6


def test_log_snr_samplers_support_zero_terminal_snr():
    """At zero terminal SNR the samplers that step in log SNR take the first step by DDIM's formula and stay finite."""
    betas = np.linspace(0.01, 0.3, 25)
    schedule = schedule_from_betas(np.append(betas, 1.0))
    network = lambda x_t, t: jnp.sin(x_t)  # noqa: E731
    xs = {}
    for name in ("ddim", "dpmpp_2m", "dpmpp_2m_sde", "unipc", "ancestral"):
        chain, _, x = run_loop(make(name, schedule, "v"), network, some_keys(3))
        assert np.isfinite(x).all()
        xs[name] = np.append(chain, x[None], axis=0)
    for name in ("dpmpp_2m", "unipc"):
        np.testing.assert_allclose(xs[name][1], xs["ddim"][1], atol=1e-6)
        np.testing.assert_allclose(xs[name][-1], xs["ddim"][-1], atol=0.3)  # different order, same image
    np.testing.assert_allclose(xs["dpmpp_2m_sde"][1], xs["ancestral"][1], atol=1e-6)

"""Runge-Kutta coefficients against the order conditions, and stages at timesteps of the training chain."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact_denoisers import FULL, shorten, some_keys

from ddpm_jax.diffusion.parameterization import Parameterization
from ddpm_jax.diffusion.schedules import make_schedule, respace
from ddpm_jax.diffusion.spacings import SPACINGS
from ddpm_jax.samplers import sampler
from ddpm_jax.samplers.heun import heun
from ddpm_jax.samplers.rk4 import rk4, tableau_between
from ddpm_jax.samplers.runge_kutta import fourth_order_coefficients, heun_tableau, schedule_indices, third_order_coefficients

PREDICT_X0 = Parameterization("x_start", "fixed_small", clip_denoised=False).denoise


def conditions(a, b):
    """One sum for each rooted tree of up to four nodes, and its required value: Butcher's conditions of order 1; 2; 3; 4."""
    c = a.sum(axis=1)
    return [
        [(b.sum(), 1)],
        [(b @ c, 1 / 2)],
        [(b @ c**2, 1 / 3), (b @ a @ c, 1 / 6)],
        [(b @ c**3, 1 / 4), ((b * c) @ a @ c, 1 / 8), (b @ a @ c**2, 1 / 12), (b @ a @ a @ c, 1 / 24)],
    ]


def order_of(a, b):
    order = 0
    for level in conditions(a, b):
        if not all(abs(got - want) < 1e-12 for got, want in level):
            break
        order += 1
    return order


@pytest.mark.parametrize("shift", [-0.11, 0.0, 0.06, 0.11])
def test_coefficients_have_their_order_for_any_stages(shift):
    for c2, c3 in ((1 / 3 + shift, 2 / 3), (1 / 3, 2 / 3 + shift), (1 / 3 + shift, 2 / 3 - shift)):
        a, b = fourth_order_coefficients(c2, c3)
        np.testing.assert_allclose(a.sum(axis=1), [0, c2, c3, 1], atol=1e-12)
        assert order_of(a, b) == 4
    a, b = third_order_coefficients(1 / 2 + shift)
    np.testing.assert_allclose(a.sum(axis=1), [0, 1 / 2 + shift, 1], atol=1e-12)
    assert order_of(a, b) == 3
    step = heun_tableau(np.array([2.0, 3.0]), 1, 0)
    assert order_of(-step.a, -step.b) == 2


def test_known_methods_are_special_cases():
    a, b = fourth_order_coefficients(1 / 3, 2 / 3)
    np.testing.assert_allclose(b, [1 / 8, 3 / 8, 3 / 8, 1 / 8], atol=1e-12)
    np.testing.assert_allclose(a, [[0, 0, 0, 0], [1 / 3, 0, 0, 0], [-1 / 3, 1, 0, 0], [1, -1, 1, 0]], atol=1e-12)
    a, b = third_order_coefficients(1 / 2)
    np.testing.assert_allclose(b, [1 / 6, 2 / 3, 1 / 6], atol=1e-12)
    np.testing.assert_allclose(a, [[0, 0, 0], [1 / 2, 0, 0], [-1, 2, 0]], atol=1e-12)


def tableaus_of(indices):
    """The tableaus of `ode` between these indices, the last step first."""
    sigmas = FULL.sqrt_recipm1_alphas_cumprod
    return [tableau_between(sigmas, start, end) for end, start in itertools.pairwise(indices)]


def test_rk4_uses_the_highest_order_that_the_timesteps_allow():
    """Stages are at descending timesteps between both ends, and the coefficients match them."""
    sigmas = FULL.sqrt_recipm1_alphas_cumprod
    for step in tableaus_of([0, 1, 3, 6, 20, 300, 999]):
        h = sigmas[step.stages[-1]] - sigmas[step.stages[0]]
        assert (np.diff(step.stages) < 0).all()
        np.testing.assert_allclose(step.a.sum(axis=1), sigmas[list(step.stages)] - sigmas[step.stages[0]], atol=1e-9)
        np.testing.assert_allclose(step.b.sum(), h, rtol=1e-9)
        assert order_of(step.a / h, step.b / h) == len(step.stages)
        assert max(np.abs(step.a).max(), np.abs(step.b).max()) <= 3 * abs(h)
    assert [len(step.stages) for step in tableaus_of([0, 1, 3, 6, 20, 300, 999])] == [2, 3, 4, 4, 4, 4]


def record_calls(sampled):
    """The timesteps of all network evaluations, in order."""
    calls = []

    def network(x_t, t):
        calls.append(int(t[0]))
        return x_t

    x = sampler.per_image_noise(some_keys(1), 0, (1, 1, 1))
    with jax.disable_jit():
        for i in range(sampled.num_steps):
            x, _, _ = sampled.step(network, x, (), jnp.int32(sampled.num_steps - 1 - i), some_keys(1))
    return calls


@pytest.mark.parametrize("spacing", SPACINGS)
def test_nfe_counts_evaluations_at_timesteps_of_training(spacing):
    schedule = shorten(FULL, 4, spacing)
    by_heun = heun(schedule, PREDICT_X0)
    calls = record_calls(by_heun)
    assert by_heun.nfe == len(calls) == 7
    assert sorted(set(calls)) == schedule.timesteps.tolist()
    exact = rk4(schedule, PREDICT_X0, trained=FULL)
    calls = record_calls(exact)
    assert exact.nfe == len(calls) == (13 if schedule.timesteps[0] == 0 else 17)
    assert calls == sorted(calls, reverse=True)  # of two equal ones, one ends a step and the other starts the next
    assert calls[-1] == 0
    assert set(schedule.timesteps.tolist()) <= set(calls)


def test_churn_steps_up_to_a_timestep_before_it_steps_down():
    """S_churn / N = 0.4, within S_min .. S_max only: the network is evaluated at the sigma nearest to 1.4 times the step's."""
    schedule = shorten(FULL, 5, "karras")  # sigma 0.01, 0.5, 6.4, 37 and 157
    sampled = heun(schedule, PREDICT_X0, trained=FULL, churn=2.0, churn_min=0.1, churn_max=50.0)
    calls, sigmas = record_calls(sampled), FULL.sqrt_recipm1_alphas_cumprod
    own = schedule.timesteps[::-1]
    assert calls[0] == own[0]
    assert calls[1::2] == own[1:].tolist()
    np.testing.assert_allclose(sigmas[calls[2:-1:2]] / sigmas[own[1:-1]], 1.4, rtol=0.01)
    assert calls[-1] == own[-1] == 0


def test_a_chain_that_is_not_a_respacing_is_rejected():
    schedule = shorten(FULL, 5)
    np.testing.assert_array_equal(schedule_indices(schedule, FULL), schedule.timesteps)
    np.testing.assert_array_equal(schedule_indices(respace(schedule, [1, 3]), schedule), [1, 3])
    for other in (make_schedule("cosine", 1000), make_schedule("linear", 500)):
        with pytest.raises(ValueError, match="not a respacing"):
            schedule_indices(schedule, other)

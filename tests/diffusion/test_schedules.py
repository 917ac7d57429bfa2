"""Noise schedules against a plain loop, published values and the definition of respacing."""

import dataclasses
import fractions
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import schedules, spacings

CHAINS = [  # every schedule at every valid length
    *[("linear", steps) for steps in (21, 250, 1000, 4000)],
    *[(name, steps) for name in ("cosine", "sigmoid") for steps in (1, 2, 10, 250, 1000, 4000)],
]
TABLES = [field.name for field in dataclasses.fields(schedules.NoiseSchedule) if field.name != "train_timesteps"]


def plain_betas(name, steps):
    """The definition of each schedule, one Python float at a time."""

    def cosine(u):
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2

    def sigmoid(u):
        low, here, high = (1 / (1 + math.exp(-w)) for w in (-3, 6 * u - 3, 3))
        return (high - here) / (high - low)

    if name == "linear":
        return [(1e-4 + (0.02 - 1e-4) * t / (steps - 1)) * 1000 / steps for t in range(steps)]
    alpha_bar = {"cosine": cosine, "sigmoid": sigmoid}[name]
    return [min(1 - alpha_bar((t + 1) / steps) / alpha_bar(t / steps), 0.999) for t in range(steps)]


def plain_tables(betas):
    """Every table from the textbook formulas, one Python float at a time."""
    tables = {name: [] for name in TABLES}
    previous = 1.0
    for t, beta in enumerate(betas):
        current = previous * (1 - beta)
        variance = beta * (1 - previous) / (1 - current)
        row = {
            "betas": beta,
            "alphas": 1 - beta,
            "alphas_cumprod": current,
            "alphas_cumprod_prev": previous,
            "sqrt_alphas_cumprod": math.sqrt(current),
            "sqrt_one_minus_alphas_cumprod": math.sqrt(1 - current),
            "sqrt_recip_alphas_cumprod": math.sqrt(1 / current),
            "sqrt_recipm1_alphas_cumprod": math.sqrt(1 / current - 1),
            "posterior_variance": variance,
            "posterior_log_variance_clipped": math.log(variance) if t else None,
            "posterior_mean_coef1": math.sqrt(previous) * beta / (1 - current),
            "posterior_mean_coef2": math.sqrt(1 - beta) * (1 - previous) / (1 - current),
            "timesteps": t,
        }
        for name, value in row.items():
            tables[name].append(value)
        previous = current
    clipped = tables["posterior_log_variance_clipped"]
    clipped[0] = clipped[1] if len(clipped) > 1 else math.log(betas[0])
    return tables


@pytest.mark.parametrize(("name", "steps"), CHAINS)
def test_tables_match_a_plain_loop(name, steps):
    schedule = schedules.make_schedule(name, steps)
    expected = plain_tables(plain_betas(name, steps))
    assert schedule.num_timesteps == schedule.train_timesteps == steps
    for table in TABLES:
        np.testing.assert_allclose(getattr(schedule, table), expected[table], rtol=1e-6, atol=0, err_msg=table)


@pytest.mark.parametrize(("name", "steps"), CHAINS)
def test_tables_are_finite_float64_and_read_only(name, steps):
    schedule = schedules.make_schedule(name, steps)
    for table in TABLES:
        values = getattr(schedule, table)
        assert isinstance(values, np.ndarray)
        assert values.dtype == (np.int32 if table == "timesteps" else np.float64), table
        assert values.shape == (steps,)
        assert np.isfinite(values).all(), table
        assert not values.flags.writeable, table
    assert (schedule.betas > 0).all()
    assert (schedule.betas < 1).all()
    assert (np.diff(schedule.alphas_cumprod) < 0).all()


def test_published_values():
    linear = schedules.make_schedule("linear", 1000)
    assert linear.betas[0] == pytest.approx(1e-4, rel=1e-12)
    assert linear.betas[-1] == pytest.approx(0.02, rel=1e-12)
    assert linear.alphas_cumprod[-1] == pytest.approx(4.0e-5, rel=0.02)  # two digits are published
    cosine = schedules.make_schedule("cosine", 1000)
    assert cosine.sqrt_recip_alphas_cumprod[-1] == pytest.approx(20291, abs=0.5)
    assert cosine.betas[-1] == 0.999
    sigmoid = schedules.make_schedule("sigmoid", 1000)
    assert sigmoid.alphas_cumprod[499] == pytest.approx(0.5, rel=1e-12)  # symmetric about the middle
    np.testing.assert_allclose(sigmoid.alphas_cumprod[:499] + sigmoid.alphas_cumprod[998:499:-1], 1, rtol=1e-12)


def test_linear_terminal_noise_does_not_depend_on_length():
    ends = [-math.log(schedules.make_schedule("linear", steps).alphas_cumprod[-1]) for steps in (250, 1000, 4000)]
    np.testing.assert_allclose(ends, ends[1], rtol=0.03)  # the integral of beta, up to its discretization


def test_linear_options_are_used():
    schedule = schedules.make_schedule("linear", 500, beta_start=2e-4, beta_end=0.01)
    np.testing.assert_allclose(schedule.betas[[0, -1]], [4e-4, 0.02], rtol=1e-12)


def test_noise_variance_does_not_cancel():
    schedule = schedules.make_schedule("linear", 4000)
    signal = fractions.Fraction(1)
    for t, beta in enumerate(schedule.betas[:40].tolist()):
        signal *= 1 - fractions.Fraction(beta)
        exact = float(1 - signal)  # float64 rounds once here; 1 - float(signal) is off by 1e-12
        assert schedule.sqrt_one_minus_alphas_cumprod[t] ** 2 == pytest.approx(exact, rel=1e-14, abs=0)


def test_zero_terminal_snr_raises_no_warning():
    schedule = schedules.schedule_from_betas(np.array([0.1, 0.5, 1.0]))
    assert schedule.alphas_cumprod[-1] == 0
    assert schedule.sqrt_one_minus_alphas_cumprod[-1] == 1
    assert np.isinf(schedule.sqrt_recip_alphas_cumprod[-1])
    assert np.isfinite(schedule.posterior_mean_coef1).all()


@pytest.mark.parametrize("name", schedules.SCHEDULES)
@pytest.mark.parametrize("steps", [25, 1000])
def test_zero_terminal_snr_shifts_and_scales_the_signal(name, steps):
    """Signal scales keep the first, end in 0, and are an affine function of the original, 1e-12; all else by (1)-(4)."""
    plain = schedules.make_schedule(name, steps)
    pure = schedules.make_schedule(name, steps, zero_terminal_snr=True)
    old, new = plain.sqrt_alphas_cumprod, pure.sqrt_alphas_cumprod
    assert new[-1] == 0
    np.testing.assert_allclose(new[0], old[0], rtol=1e-14)
    np.testing.assert_allclose(new, (old - old[-1]) * old[0] / (old[0] - old[-1]), rtol=1e-12, atol=1e-15)
    assert pure.betas[-1] == 1
    assert ((pure.betas > 0) & (pure.betas <= 1)).all()
    np.testing.assert_allclose(pure.sqrt_one_minus_alphas_cumprod**2 + new**2, np.ones(steps), rtol=1e-12)
    assert pure.has_zero_terminal_snr
    assert not plain.has_zero_terminal_snr
    again = schedules.with_zero_terminal_snr(pure)
    np.testing.assert_allclose(again.betas, pure.betas, rtol=1e-9)
    finite = [table for table in TABLES if not table.startswith("sqrt_recip")]
    assert all(np.isfinite(getattr(pure, table)).all() for table in finite)


def test_zero_terminal_snr_must_be_sampled_from_the_last_timestep():
    pure = schedules.make_schedule("linear", 1000, zero_terminal_snr=True)
    for spacing in ("trailing", "linspace"):
        short = schedules.respace(pure, spacings.spaced_timesteps(1000, 10, spacing))
        assert short.has_zero_terminal_snr
        assert short.betas[-1] == 1
    for spacing in ("leading", "quadratic"):
        with pytest.raises(ValueError, match=r"^a chain with zero terminal SNR must be sampled from .* 999, .*trailing$"):
            schedules.respace(pure, spacings.spaced_timesteps(1000, 10, spacing))


def test_zero_terminal_snr_needs_two_steps():
    for name in ("cosine", "sigmoid"):
        with pytest.raises(ValueError, match=r"^a chain of 1 step [^\n]*set num_timesteps to 2 or more$"):
            schedules.make_schedule(name, 1, zero_terminal_snr=True)


def test_terminal_snr_of_a_traced_schedule_is_unknown():
    pure = schedules.make_schedule("linear", 100, zero_terminal_snr=True)
    seen = []
    jax.jit(lambda schedule: seen.append(schedule.has_zero_terminal_snr))(pure)
    assert seen == [False]


def test_schedule_is_a_pytree_that_keeps_float64():
    schedule = schedules.respace(schedules.make_schedule("cosine", 100), [3, 50, 99])
    leaves, structure = jax.tree.flatten(schedule)
    back = jax.tree.unflatten(structure, leaves)
    assert back.train_timesteps == 100
    for table in TABLES:
        assert getattr(back, table) is getattr(schedule, table)


def test_schedule_passes_through_jit_as_an_argument():
    schedule = schedules.make_schedule("linear", 50)
    steps, total = jax.jit(lambda s: (s.num_timesteps, jnp.sum(s.betas)))(schedule)
    assert steps == 50
    assert total.dtype == jnp.float32
    assert float(total) == pytest.approx(schedule.betas.sum(), rel=1e-5)


@pytest.mark.parametrize(
    ("name", "steps", "options", "message"),
    [
        ("cosin", 1000, {}, "linear, cosine, sigmoid"),
        ("cosine", 0, {}, "at least 1"),
        ("linear", -3, {}, "at least 1"),
        ("linear", 1, {}, "num_timesteps above 20"),
        ("linear", 10, {}, "num_timesteps above 20"),
        ("linear", 20, {}, "num_timesteps above 20"),  # beta = 1 exactly: zero SNR
        ("linear", 1000, {"beta_end": 1.5}, "below 1"),
        ("linear", 1000, {"beta_start": 0.0}, "beta_start"),
        ("linear", 1000, {"beta_start": 0.03}, "beta_start"),
    ],
)
def test_invalid_schedules_are_rejected_in_one_line(name, steps, options, message):
    with pytest.raises(ValueError, match=message) as error:
        schedules.make_schedule(name, steps, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("betas", [[], [[0.1]], [0.0, 0.1], [0.1, 1.1], [0.1, float("nan")]])
def test_invalid_betas_are_rejected(betas):
    with pytest.raises(ValueError, match="betas must"):
        schedules.schedule_from_betas(np.array(betas))


# Respacing.


@pytest.mark.parametrize(("name", "steps"), CHAINS)
def test_respacing_to_every_timestep_changes_nothing(name, steps):
    schedule = schedules.make_schedule(name, steps)
    same = schedules.respace(schedule, np.arange(steps))
    for table in TABLES:
        np.testing.assert_array_equal(getattr(same, table), getattr(schedule, table), err_msg=table)


@pytest.mark.parametrize("spacing", spacings.SPACINGS)
@pytest.mark.parametrize("name", schedules.SCHEDULES)
@pytest.mark.parametrize("num_steps", [2, 37])
def test_respaced_chain_has_the_same_marginals(name, spacing, num_steps):
    schedule = schedules.make_schedule(name, 1000)
    kept = spacings.spaced_timesteps(1000, num_steps, spacing, schedule=schedule)
    short = schedules.respace(schedule, kept)
    assert short.num_timesteps == num_steps
    assert short.train_timesteps == 1000
    np.testing.assert_array_equal(short.timesteps, kept)
    assert short.timesteps.dtype == np.int32
    for table in ("alphas_cumprod", "sqrt_one_minus_alphas_cumprod", "sqrt_recipm1_alphas_cumprod"):
        np.testing.assert_allclose(getattr(short, table), getattr(schedule, table)[kept], rtol=1e-12, err_msg=table)
    kept_cumprod = schedule.alphas_cumprod[kept]
    np.testing.assert_allclose(short.betas, 1 - kept_cumprod / np.append(1, kept_cumprod[:-1]), rtol=1e-9)


def test_respacing_twice_keeps_the_networks_timesteps():
    once = schedules.respace(schedules.make_schedule("cosine", 100), np.arange(9, 100, 10))
    twice = schedules.respace(once, [1, 4, 9])
    at_once = schedules.respace(schedules.make_schedule("cosine", 100), [19, 49, 99])
    np.testing.assert_array_equal(twice.timesteps, [19, 49, 99])
    assert twice.train_timesteps == 100
    np.testing.assert_allclose(twice.betas, at_once.betas, rtol=1e-12)


@pytest.mark.parametrize(
    ("timesteps", "message"),
    [
        ([], "at least one integer"),
        ([0.0, 5.0], "at least one integer"),
        ([[0, 5]], "at least one integer"),
        ([-1, 5], "0..9"),
        ([0, 10], "0..9"),
        ([5, 2], "ascending"),
        ([2, 2, 5], "ascending"),
    ],
)
def test_invalid_respacing_is_rejected(timesteps, message):
    with pytest.raises(ValueError, match=message):
        schedules.respace(schedules.make_schedule("cosine", 10), timesteps)

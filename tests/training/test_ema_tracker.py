"""Averages of several lengths: their weights in closed form, and post-hoc reconstruction of other lengths."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.training import ema, posthoc_ema
from ddpm_jax.training.ema_tracker import EmaTracker, power_name

STDS = (0.05, 0.10)
STEPS = 400


def weights_of(std, steps):
    """The weight of the parameters of step k = 1..steps, by (30): float64."""
    gamma, k = ema.power_gamma(std), np.arange(1, steps + 1)
    return (k / steps) ** (gamma + 1) - ((k - 1) / steps) ** (gamma + 1)


@pytest.fixture(scope="module")
def averaging():
    return EmaTracker(extra_decays=(0.9, 0.99), power_sigma_rel=(*STDS, 0.2))


@pytest.fixture(scope="module")
def update(averaging):
    return jax.jit(averaging.update)


def run(averaging, update, trajectory, averages=None, first=0):
    """The averages after training steps with these parameters, [n, ...], the first being step `first` + 1."""
    averages = averaging.init(jnp.full(trajectory.shape[1:], 1e6, jnp.float32)) if averages is None else averages
    for step, params in enumerate(trajectory, first):
        averages = update(averages, jnp.asarray(params, jnp.float32), jnp.int32(step))
    return averages


# The profiles.


def test_std_and_gamma_are_inverse():
    """EDM2's published γ of .05 and .10, to the digits given; (32) to 1e-12; the largest std is the mean over the run."""
    assert round(ema.power_gamma(0.05), 2) == 16.97
    assert round(ema.power_gamma(0.10), 2) == 6.94
    for std in (0.001, 0.02, 0.05, 0.1, 0.2, 0.28):
        gamma = ema.power_gamma(std)
        np.testing.assert_allclose(np.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2), std, rtol=1e-9)
    np.testing.assert_allclose(ema.power_gamma(ema.MAX_STD), 0, atol=1e-9)


@pytest.mark.parametrize("std", [0.05, 0.1, 0.25])
def test_std_is_the_standard_deviation_of_the_profile(std):
    """Numerically, over a million steps: 1e-5."""
    k, weights = np.arange(1, 10**6 + 1) / 10**6, weights_of(std, 10**6)
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-12)
    np.testing.assert_allclose(np.sqrt(weights @ k**2 - (weights @ k) ** 2), std, rtol=1e-5)


def test_one_minus_beta_is_accurate_for_beta_near_one():
    """float32, relative 1e-6, up to 10 million steps; 1 - beta of a float32 beta would be off by percents."""
    steps = np.array([0, 1, 9, 999, 10**6, 10**7], np.int32)
    gamma = ema.power_gamma(0.05)
    got = jax.vmap(lambda step: ema.power_one_minus_beta(step, gamma))(steps)
    assert got.dtype == jnp.float32
    n = steps.astype(np.longdouble) + 1
    with np.errstate(divide="ignore"):
        want = -np.expm1((gamma + 1) * np.log1p(-1 / n))
    np.testing.assert_allclose(got, want.astype(float), rtol=1e-6)
    assert got[0] == 1


@pytest.mark.parametrize("power", [0, 1, 3])
def test_averages_of_powers_of_time_match_the_closed_form(averaging, update, power):
    """params(k) = (k/n)^p: the sum of (30) to 1e-5 for float32, and (γ+1)/(γ+1+p) of the continuum to (γ+2) p / n."""
    trajectory = (np.arange(1, STEPS + 1) / STEPS)[:, None] ** power
    averages = run(averaging, update, trajectory)
    for std in averaging.power_sigma_rel:
        got, gamma = float(averages[power_name(std)][0]), ema.power_gamma(std)
        np.testing.assert_allclose(got, weights_of(std, STEPS) @ trajectory[:, 0], rtol=1e-5)
        np.testing.assert_allclose(got, (gamma + 1) / (gamma + 1 + power), atol=(gamma + 2) * power / STEPS + 1e-5)


def test_power_averages_ignore_their_initial_value(averaging, update):
    trajectory = np.random.default_rng(0).standard_normal((50, 3))
    averages = run(averaging, update, trajectory)
    for std in averaging.power_sigma_rel:  # that began at 1e6
        np.testing.assert_allclose(averages[power_name(std)], weights_of(std, 50) @ trajectory, atol=1e-5)
    one = jnp.full(3, 1e6, jnp.float32)
    single = jax.jit(lambda average, params, step: ema.update_ema(average, params, ema.ema_decay(step, 0.99)))
    for step, params in enumerate(trajectory):
        one = single(one, jnp.asarray(params, jnp.float32), jnp.int32(step))
    np.testing.assert_allclose(averages["decay_0.99"], one, rtol=1e-6)


def test_resumed_averages_are_bit_identical(averaging, update):
    trajectory = np.random.default_rng(1).standard_normal((40, 5))
    whole = run(averaging, update, trajectory)
    half = jax.device_get(run(averaging, update, trajectory[:17]))
    resumed = run(averaging, update, trajectory[17:], jax.tree.map(jnp.asarray, half), first=17)
    assert set(resumed) == set(averaging.names)
    for name in averaging.names:
        np.testing.assert_array_equal(resumed[name], whole[name])


def test_averages_do_not_share_buffers(averaging):
    params = jnp.zeros(3)
    averages = averaging.init(params)
    assert len({leaf.unsafe_buffer_pointer() for leaf in (params, *averages.values())}) == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"extra_decays": (1.0,)}, r"decay 1 .* in \[0, 1\)"),
        ({"extra_decays": (-0.1,)}, r"in \[0, 1\)"),
        ({"extra_decays": (float("nan"),)}, r"decay nan"),
        ({"power_sigma_rel": (0.0,)}, r"above 0"),
        ({"power_sigma_rel": (0.3,)}, r"at most 0\.2886"),
        ({"extra_decays": (0.9, 0.9)}, r"duplicate average"),
    ],
)
def test_invalid_lengths_are_rejected(options, message):
    with pytest.raises(ValueError, match=message):
        EmaTracker(**options)


def test_averages_of_another_run_are_rejected(averaging):
    with pytest.raises(ValueError, match=r"the averages are decay_0\.5, not"):
        averaging.update({"decay_0.5": jnp.zeros(3)}, jnp.zeros(3), jnp.int32(0))


# After training.


def some_snapshots(every=20, steps=STEPS):
    kept = np.repeat(np.arange(every, steps + 1, every), len(STDS))
    return kept, np.tile(STDS, len(kept) // len(STDS))


@pytest.fixture(scope="module")
def random_walk():
    """A random walk that starts at 30: parameters of 64 networks."""
    return 30 + np.cumsum(np.random.default_rng(2).standard_normal((STEPS, 64)), axis=0)


def test_inner_products_are_integrals():
    """Against sums of 400,000 rectangles, 1e-4."""
    steps, stds = np.array([100, 250, 400, 400]), np.array([0.05, 0.2, 0.1, 0.05])
    gammas = np.array([ema.power_gamma(std) for std in stds])
    tau = (np.arange(400_000) + 0.5) / 1000
    profiles = [np.where(tau < n, (g + 1) / n * np.minimum(tau / n, 1) ** g, 0) for n, g in zip(steps, gammas, strict=True)]
    want = np.array([[a @ b / 1000 for a in profiles] for b in profiles])
    got = posthoc_ema.inner_products(steps, gammas, steps, gammas)
    np.testing.assert_allclose(got, want, rtol=1e-4)
    np.testing.assert_array_equal(got, got.T)


@pytest.mark.parametrize("unit_sum", [True, False])
def test_a_profile_of_a_snapshot_is_recovered(unit_sum):
    steps, stds = some_snapshots()
    for target_step, target_std in ((STEPS, 0.05), (STEPS, 0.10), (200, 0.10)):
        made = posthoc_ema.solve_posthoc_weights(steps, stds, target_step=target_step, target_std=target_std, unit_sum=unit_sum)
        want = (steps == target_step) & (stds == target_std)
        np.testing.assert_allclose(made.weights, want, atol=1e-9)
        assert made.profile_error < 1e-6


def test_other_lengths_are_close_to_tracked_ones(random_walk):
    """Over a random walk, from two averages at 20 steps of a run: RMS error relative to the distance between the average and
    the last parameters, below EDM2's profile error; and never worse than without the constraint."""
    steps, stds = some_snapshots()
    snapshots = [weights_of(std, n) @ random_walk[:n] for n, std in zip(steps, stds, strict=True)]
    for std, limit in ((0.03, 0.01), (0.07, 1e-3), (0.15, 1e-3), (0.2, 2e-3)):
        want = weights_of(std, STEPS) @ random_walk
        errors = []
        for unit_sum in (True, False):
            made = posthoc_ema.solve_posthoc_weights(steps, stds, target_step=STEPS, target_std=std, unit_sum=unit_sum)
            got = posthoc_ema.combine_snapshots(made.weights, snapshots)
            errors.append(np.sqrt(np.mean((got - want) ** 2) / np.mean((random_walk[-1] - want) ** 2)))
            assert made.amplification < 12
        assert errors[0] < limit
        assert errors[0] < 1.1 * errors[1]


def test_more_snapshots_reduce_the_profile_error():
    errors = []
    for every in (100, 50, 25, 10):
        steps, stds = some_snapshots(every)
        errors.append(posthoc_ema.solve_posthoc_weights(steps, stds, target_step=STEPS, target_std=0.15).profile_error)
    assert all(later < earlier / 2 for earlier, later in itertools.pairwise(errors))
    assert errors[-1] < 2e-3


def test_the_weights_minimize_the_profile_error():
    """EDM2's: no change of them is better. With the constraint: no change that keeps the sum, which is 1 to 1e-9."""
    steps, stds = some_snapshots(50)
    gammas = np.array([ema.power_gamma(std) for std in stds])
    target = np.array([STEPS]), np.array([ema.power_gamma(0.15)])
    gram = posthoc_ema.inner_products(steps, gammas, steps, gammas)
    overlap = posthoc_ema.inner_products(steps, gammas, *target)[:, 0]

    def slope(unit_sum):
        made = posthoc_ema.solve_posthoc_weights(steps, stds, target_step=STEPS, target_std=0.15, unit_sum=unit_sum)
        return made, (gram @ made.weights - overlap) / np.abs(overlap).max()

    free, gradient = slope(unit_sum=False)
    np.testing.assert_allclose(gradient, 0, atol=1e-9)
    assert abs(free.weights.sum() - 1) > 1e-5
    bound, gradient = slope(unit_sum=True)
    np.testing.assert_allclose(bound.weights.sum(), 1, atol=1e-9)
    np.testing.assert_allclose(gradient - gradient.mean(), 0, atol=1e-9)
    assert free.profile_error <= bound.profile_error


def test_an_untracked_average_is_reconstructed(averaging, update, random_walk):
    """float32 snapshots from the jitted update, as a tree: an untracked average of .07; 3e-3 of its lag."""
    averages, steps, stds, snapshots = None, [], [], []
    for first in range(0, STEPS, 40):
        averages = run(averaging, update, random_walk[first : first + 40], averages, first)
        for std in STDS:
            steps, stds = [*steps, first + 40], [*stds, std]
            snapshots.append({"layer": jax.device_get(averages[power_name(std)])})
    made = posthoc_ema.solve_posthoc_weights(steps, stds, target_step=STEPS, target_std=0.07)
    got, want = posthoc_ema.combine_snapshots(made.weights, iter(snapshots))["layer"], weights_of(0.07, STEPS) @ random_walk
    assert got.dtype == np.float32
    assert np.sqrt(np.mean((got - want) ** 2) / np.mean((random_walk[-1] - want) ** 2)) < 3e-3
    # .2 was tracked too: its reconstruction is within .03 of its lag.
    made = posthoc_ema.solve_posthoc_weights(steps, stds, target_step=STEPS, target_std=0.2)
    lag = np.abs(random_walk[-1] - averages["power_0.2"]).max()
    np.testing.assert_allclose(
        posthoc_ema.combine_snapshots(made.weights, snapshots)["layer"], averages["power_0.2"], atol=0.03 * lag
    )


def test_duplicate_snapshots_are_harmless():
    steps, stds = some_snapshots()
    once = posthoc_ema.solve_posthoc_weights(steps, stds, target_step=STEPS, target_std=0.15)
    twice = posthoc_ema.solve_posthoc_weights(np.tile(steps, 2), np.tile(stds, 2), target_step=STEPS, target_std=0.15)
    np.testing.assert_allclose(twice.weights[: len(steps)] + twice.weights[len(steps) :], once.weights, atol=1e-6)


@pytest.mark.parametrize(
    ("steps", "stds", "target", "message"),
    [
        ([], [], (10, 0.1), r"0 steps"),
        ([10], [0.05, 0.1], (10, 0.1), r"1 steps and 2"),
        ([10, 0], [0.05, 0.1], (10, 0.1), r"from step 1"),
        ([10, 20], [0.05, 0.1], (21, 0.1), r"average at step 21"),
        ([10, 20], [0.05, 0.1], (20, 0.5), r"0\.5 of an average"),
    ],
)
def test_invalid_targets_are_rejected(steps, stds, target, message):
    with pytest.raises(ValueError, match=message):
        posthoc_ema.solve_posthoc_weights(steps, stds, target_step=target[0], target_std=target[1])


def test_combining_needs_one_weight_per_snapshot():
    with pytest.raises(ValueError, match=r"shorter"):
        posthoc_ema.combine_snapshots(np.ones(2), [np.ones(3)])
    with pytest.raises(ValueError, match=r"at least one snapshot"):
        posthoc_ema.combine_snapshots(np.ones(0), [])

"""Timestep samplers: distributions, weights, and a loss history that does not depend on how it is computed."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ddpm_jax.diffusion import timestep_sampling

T = 12


@pytest.fixture(scope="module")
def second_moment():
    return timestep_sampling.make_timestep_sampler("second_moment", T)


@pytest.fixture(scope="module")
def jitted(second_moment):
    return jax.jit(second_moment.draw, static_argnums=2), jax.jit(second_moment.update)


def filled(second_moment, scale):
    """A full history of losses of the size scale [T]."""
    rows = np.asarray(scale, np.float32)[:, None] * np.linspace(0.5, 1.5, timestep_sampling.HISTORY, dtype=np.float32)
    return timestep_sampling.LossHistory(jnp.asarray(rows), jnp.full(T, timestep_sampling.HISTORY, jnp.int32))


def test_uniform_is_randint():
    sampler = timestep_sampling.make_timestep_sampler("uniform", 1000)
    t, weights = sampler.draw((), jax.random.key(3), 64)
    np.testing.assert_array_equal(t, jax.random.randint(jax.random.key(3), (64,), 0, 1000))
    assert t.dtype == jnp.int32
    np.testing.assert_array_equal(weights, np.ones(64, np.float32))
    assert sampler.init() == sampler.update(sampler.init(), t, weights) == ()


@pytest.mark.parametrize(("num_timesteps", "batch_size"), [(12, 5), (5, 12), (1000, 64), (7, 7), (1, 3), (4, 1)])
def test_low_discrepancy_stratifies_a_batch(num_timesteps, batch_size):
    """Any range of consecutive t has a number of images proportional to its length, within one."""
    sampler = timestep_sampling.make_timestep_sampler("low_discrepancy", num_timesteps)
    for seed in range(5):
        t, weights = map(np.asarray, sampler.draw((), jax.random.key(seed), batch_size))
        assert t.dtype == np.int32
        assert t.shape == weights.shape == (batch_size,)
        assert (weights == 1).all()
        below = np.searchsorted(np.sort(t), np.arange(num_timesteps + 1))
        expected = np.arange(num_timesteps + 1) * batch_size / num_timesteps
        excess = below - expected
        assert excess.max() - excess.min() < 1 + 1e-9
        assert set(t) <= set(range(num_timesteps))


@pytest.mark.parametrize(("num_timesteps", "batch_size"), [(12, 5), (5, 12)])
def test_low_discrepancy_is_uniform_for_each_image(num_timesteps, batch_size):
    """Over all T B offsets each image has each t exactly B times."""
    sampler = timestep_sampling.make_timestep_sampler("low_discrepancy", num_timesteps)
    grid = num_timesteps * batch_size
    with pytest.MonkeyPatch.context() as patch:
        samples = []
        for offset in range(grid):
            patch.setattr(jax.random, "randint", lambda *_, offset=offset: jnp.int32(offset))
            samples.append(np.asarray(sampler.draw((), None, batch_size)[0]))
    for image in np.stack(samples, axis=1):
        assert collections.Counter(image.tolist()) == dict.fromkeys(range(num_timesteps), batch_size)


def test_low_discrepancy_rejects_too_large_grids():
    sampler = timestep_sampling.make_timestep_sampler("low_discrepancy", 2**20)
    with pytest.raises(ValueError, match="too many for low_discrepancy"):
        sampler.draw((), jax.random.key(0), 2**11)


def test_second_moment_is_uniform_until_every_t_is_full(second_moment, jitted):
    """11 of 12 t with a full history do not suffice."""
    draw, _ = jitted
    full = filled(second_moment, 1.0 + np.arange(T))
    state = full._replace(counts=np.where(np.arange(T) == T - 1, timestep_sampling.HISTORY - 1, full.counts))
    np.testing.assert_allclose(timestep_sampling.second_moment_probabilities(state), np.full(T, 1 / T), rtol=1e-6)
    _, weights = draw(state, jax.random.key(0), 64)
    np.testing.assert_allclose(weights, np.ones(64), rtol=1e-6)
    assert np.ptp(timestep_sampling.second_moment_probabilities(full)) > 0.05


def test_second_moment_frequencies_match_its_weights(second_moment, jitted):
    """60,000 samples: frequencies within five standard errors, and w = 1 / (T p), so that Σ w f / B has the mean of f."""
    draw, _ = jitted
    scale = np.array([100.0, 30, 10, 5, 2, 1, 0.5, 0.2, 0.1, 0.05, 0.01, 0.0])
    state = filled(second_moment, scale)
    p = np.asarray(timestep_sampling.second_moment_probabilities(state), np.float64)
    expected = 0.999 * scale / scale.sum() + 0.001 / T
    np.testing.assert_allclose(p, expected, rtol=1e-5)
    t, weights = map(np.asarray, draw(state, jax.random.key(1), 60_000))
    frequency = np.bincount(t, minlength=T) / 60_000
    assert (np.abs(frequency - p) < 5 * np.sqrt(p / 60_000)).all()
    assert frequency[-1] > 0  # from the uniform part alone
    np.testing.assert_allclose(weights, 1 / (T * p[t]), rtol=1e-5)
    f = np.linspace(1, 2, T) * scale
    sums = weights * f[t]
    assert abs(sums.mean() - f.mean()) < 4 * sums.std() / np.sqrt(60_000)


def test_all_losses_zero_means_uniform(second_moment):
    probabilities = timestep_sampling.second_moment_probabilities(filled(second_moment, np.zeros(T)))
    np.testing.assert_allclose(probabilities, np.full(T, 1 / T), rtol=1e-6)


def test_history_has_the_last_ten_losses_of_each_t(second_moment, jitted):
    """Against a queue filled one by one: batches in which a t occurs never, once, and more than ten times."""
    _, update = jitted
    generator = np.random.default_rng(0)
    state = second_moment.init()
    queues = [collections.deque(maxlen=timestep_sampling.HISTORY) for _ in range(T)]
    for _ in range(12):
        t = generator.choice(T, 40, p=np.append(0.5, np.full(T - 1, 0.5 / (T - 1))))
        losses = generator.exponential(1, 40).astype(np.float32)
        state = update(state, jnp.asarray(t), jnp.asarray(losses))
        for index, loss in zip(t, losses, strict=True):
            queues[index].append(loss)
        for row, count, queue in zip(np.asarray(state.losses), np.asarray(state.counts), queues, strict=True):
            assert sorted(row[: min(count, timestep_sampling.HISTORY)].tolist()) == sorted(float(loss) for loss in queue)
    assert int(state.counts.sum()) == 12 * 40


def test_parity_with_improved_diffusion(repository):
    """Its probabilities after each of 20 batches, 1e-5, before and after every t is full."""
    with np.load(repository / "tests" / "golden" / "improved_diffusion.npz") as golden:
        ts, losses, expected = (golden[f"resample/{name}"] for name in ("t", "losses", "p"))
    sampler = timestep_sampling.make_timestep_sampler("second_moment", 6)
    update = jax.jit(sampler.update)
    state, ready = sampler.init(), []
    for number in range(20):
        state = update(state, ts[number], losses[number])
        p = timestep_sampling.second_moment_probabilities(state)
        np.testing.assert_allclose(p, expected[number], rtol=1e-5)
        ready.append(bool((state.counts >= timestep_sampling.HISTORY).all()))
    assert 0 < sum(ready) < 20


def test_update_and_draw_are_the_same_on_any_number_of_devices(second_moment, jitted):
    """Bit-identical with the losses sharded over 8 devices and on one."""
    draw, update = jitted
    generator = np.random.default_rng(2)
    t, losses = generator.integers(0, T, 64).astype(np.int32), generator.exponential(1, 64).astype(np.float32)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    spread, everywhere = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    one = eight = second_moment.init()
    eight = jax.device_put(eight, everywhere)
    on_mesh = jax.jit(second_moment.update, out_shardings=everywhere)
    for _ in range(3):
        one = update(one, t, losses)
        eight = on_mesh(eight, jax.device_put(t, spread), jax.device_put(losses, spread))
    jax.tree.map(np.testing.assert_array_equal, one, eight)
    draw_on_mesh = jax.jit(second_moment.draw, static_argnums=2, out_shardings=spread)
    key = jax.random.key(0)
    for ours, theirs in zip(draw(one, key, 64), draw_on_mesh(eight, jax.device_put(key, everywhere), 64), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("name", timestep_sampling.TIMESTEP_SAMPLERS)
def test_a_restored_state_is_bit_identical(name):
    """State -> plain arrays -> state, halfway: later samples and states are those of an uninterrupted run."""
    sampler = timestep_sampling.make_timestep_sampler(name, 4)

    @jax.jit
    def one(state, step):
        t, weights = sampler.draw(state, jax.random.fold_in(jax.random.key(1), step), 32)
        return sampler.update(state, t, weights * (1.0 + t)), t

    def go(state, first, last):
        for step in range(first, last):
            state, t = one(state, step)
        return state, t

    middle, _ = go(sampler.init(), 0, 3)
    leaves, structure = jax.tree.flatten(middle)
    restored = jax.tree.unflatten(structure, [jnp.asarray(np.array(leaf)) for leaf in leaves])
    jax.tree.map(np.testing.assert_array_equal, go(restored, 3, 5), go(middle, 3, 5))


@pytest.mark.parametrize(
    ("name", "num_timesteps", "message"), [("importance", 4, "second_moment, or module:function"), ("uniform", 0, "1 step$")]
)
def test_invalid_arguments_are_rejected(name, num_timesteps, message):
    with pytest.raises(ValueError, match=message):
        timestep_sampling.make_timestep_sampler(name, num_timesteps)

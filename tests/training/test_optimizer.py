"""Adam, warm-up and clipping against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax.training.optimizer import make_optimizer, warmup_schedule

PARAMS = {"w": jnp.zeros((2, 3)), "b": jnp.zeros(3)}


def gradients(seed, scale=1.0):
    generator = np.random.default_rng(seed)
    return {name: jnp.asarray(scale * generator.standard_normal(p.shape), jnp.float32) for name, p in PARAMS.items()}


def updates_for(optimizer, sequence):
    """The updates for a sequence of gradients."""
    update, state, results = jax.jit(optimizer.update), optimizer.init(PARAMS), []
    for grads in sequence:
        updates, state = update(grads, state, PARAMS)
        results.append(updates)
    return results


def adam(sequence, learning_rates, b1=0.9, b2=0.999, eps=1e-8):
    """Kingma and Ba 1412.6980, algorithm 1, in float64 NumPy, for one array."""
    first, second, results = 0.0, 0.0, []
    for step, (g, learning_rate) in enumerate(zip(sequence, learning_rates, strict=True), start=1):
        g = np.asarray(g, np.float64)
        first, second = b1 * first + (1 - b1) * g, b2 * second + (1 - b2) * g**2
        results.append(-learning_rate * (first / (1 - b1**step)) / (np.sqrt(second / (1 - b2**step)) + eps))
    return results


def test_warm_up_is_linear_then_constant():
    """float32: 1e-6."""
    schedule = warmup_schedule(2e-4, 5)
    rates = [float(schedule(step)) for step in (0, 1, 2, 3, 4, 5, 6, 1000)]
    np.testing.assert_allclose(rates, 2e-4 * np.array([0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1]), rtol=1e-6)


def test_without_warm_up_the_first_step_has_the_full_rate():
    schedule = warmup_schedule(2e-4, 0)
    np.testing.assert_allclose([float(schedule(step)) for step in (0, 1, 1000)], 2e-4, rtol=1e-6)


@pytest.mark.parametrize("warmup", [0, 1, 4])
def test_the_first_step_of_adam_is_the_sign_of_the_gradient(warmup):
    """-lr g / (|g| + eps): half a step where g = eps. The division by sqrt(1 - b2) costs float32 up to 1e-4."""
    grads = {"w": jnp.array([[1e3, -1.0, 1e-3], [1e-8, -1e-8, 0.0]]), "b": jnp.zeros(3)}
    (update,) = updates_for(make_optimizer("adam", 1e-2, warmup_steps=warmup), [grads])
    rate = 1e-2 / max(warmup, 1)
    np.testing.assert_allclose(update["w"], -rate * np.array([[1, -1, 1], [0.5, -0.5, 0]]), rtol=1e-4)
    np.testing.assert_array_equal(update["b"], 0)


def test_updates_are_adams_with_the_warm_up_schedule():
    """Six different gradients, three steps of warm-up; float32 powers of b2 near 1: 1e-4."""
    sequence = [gradients(seed) for seed in range(6)]
    rates = 1e-3 * np.array([1 / 3, 2 / 3, 1, 1, 1, 1])
    got = updates_for(make_optimizer("adam", 1e-3, warmup_steps=3), sequence)
    for name in PARAMS:
        want = adam([grads[name] for grads in sequence], rates)
        np.testing.assert_allclose([update[name] for update in got], want, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize(("scale", "clipped"), [(1e-2, False), (1e3, True)])
def test_large_gradients_are_clipped_before_adam(scale, clipped):
    """Adam's first moment after one step is a tenth of its gradient; 1e-5."""
    grads, optimizer = gradients(0, scale), make_optimizer("adam", 1e-3, clip_norm=1.0)
    assert (optax.tree.norm(grads) > 1.0) == clipped
    _, state = optimizer.update(grads, optimizer.init(PARAMS), PARAMS)
    seen = jax.tree.map(lambda m: m / 0.1, optax.tree_utils.tree_get(state, "mu"))
    assert optax.tree.norm(seen) <= 1.0 + 1e-5
    factor = 1 / optax.tree.norm(grads) if clipped else 1.0
    for name in PARAMS:
        np.testing.assert_allclose(seen[name], factor * grads[name], rtol=1e-5)


def test_clipping_uses_the_global_norm():
    """Two arrays of norm 1 each have a global norm above 1, so both shrink by sqrt(2); 1e-5."""
    grads = {"w": jnp.zeros((2, 3)).at[0, 0].set(1.0), "b": jnp.zeros(3).at[1].set(1.0)}
    optimizer = make_optimizer("adam", 1e-3, clip_norm=1.0)
    _, state = optimizer.update(grads, optimizer.init(PARAMS), PARAMS)
    seen = optax.tree_utils.tree_get(state, "mu")
    np.testing.assert_allclose([seen["w"][0, 0], seen["b"][1]], 0.1 / np.sqrt(2), rtol=1e-5)


def test_clip_norm_zero_disables_clipping():
    grads, optimizer = gradients(0, 1e3), make_optimizer("adam", 1e-3)
    _, state = optimizer.update(grads, optimizer.init(PARAMS), PARAMS)
    np.testing.assert_allclose(optax.tree_utils.tree_get(state, "mu")["w"], 0.1 * grads["w"], rtol=1e-5)


@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
def test_clipping_does_not_change_the_state_structure(clip_norm):
    """With clipping on and off: bit-identical to optax's chain without clipping, in a state of one structure."""
    optimizer = make_optimizer("adam", 1e-3, warmup_steps=2, clip_norm=clip_norm)
    assert jax.tree.structure(optimizer.init(PARAMS)) == jax.tree.structure(make_optimizer("adam", 1.0).init(PARAMS))
    clip = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
    plain = optax.chain(*clip, optax.adam(warmup_schedule(1e-3, 2), b1=0.9, b2=0.999, eps=1e-8))
    sequence = [gradients(seed, scale) for seed, scale in enumerate((1.0, 100.0, 1e-3, 5.0))]
    for got, want in zip(updates_for(optimizer, sequence), updates_for(plain, sequence), strict=True):
        for name in PARAMS:
            np.testing.assert_array_equal(got[name], want[name])

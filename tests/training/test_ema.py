"""The exponential moving average against its closed form, and its warm-up."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.training import ema

STEPS = 30


def tree(seed):
    generator = np.random.default_rng(seed)
    return {"a": generator.standard_normal((3, 2)).astype(np.float32), "b": [generator.standard_normal(4).astype(np.float32)]}


def assert_trees_close(got, want, rtol):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99])
def test_average_approaches_constant_params_geometrically(decay):
    """After n updates, params + decay^n (start - params); 1e-5 for n float32 roundings."""
    start, params = tree(0), tree(1)
    average = start
    for _ in range(STEPS):
        average = ema.update_ema(average, params, decay)
    assert_trees_close(average, jax.tree.map(lambda s, p: p + decay**STEPS * (s - p), start, params), 1e-5)


@pytest.mark.parametrize("decay", [0.5, 0.99])
def test_weights_decay_with_age(decay):
    """decay^n start + (1 - decay) sum_k decay^(n - k) params_k, k = 1..n; 1e-5 for n float32 roundings."""
    start = tree(0)
    average, params = start, [tree(k) for k in range(1, STEPS + 1)]
    for new in params:
        average = ema.update_ema(average, new, decay)
    weights = [(1 - decay) * decay ** (STEPS - k) for k in range(1, STEPS + 1)]
    want = jax.tree.map(lambda s, *ps: decay**STEPS * s + sum(w * p for w, p in zip(weights, ps, strict=True)), start, *params)
    assert_trees_close(average, want, 1e-5)


@pytest.mark.parametrize(
    ("step", "want"),
    [(0, 1 / 10), (1, 2 / 11), (8, 1 / 2), (890, 0.99), (89_990, 0.9999), (10**6, 0.9999)],
)
def test_decay_warms_up(step, want):
    """min(.9999, (1 + n) / (10 + n)), float32: 1e-6. At n = 8 the average spans two steps, at 890 a hundred."""
    decay = ema.ema_decay(jnp.int32(step), 0.9999)
    assert decay.dtype == jnp.float32
    np.testing.assert_allclose(decay, want, rtol=1e-6)


def test_a_short_decay_is_never_exceeded():
    decays = jax.vmap(lambda step: ema.ema_decay(step, 0.5))(jnp.arange(100))
    assert jnp.all(jnp.diff(decays) >= 0)
    np.testing.assert_array_equal(decays[8:], 0.5)
    assert jnp.all(decays[:8] < 0.5)

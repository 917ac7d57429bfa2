"""Learning-rate schedules and their warm-up against closed forms."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import build
from ddpm_jax.configs import digits
from ddpm_jax.training.learning_rate import SCHEDULES, make_learning_rate

RATE, STEPS = 2e-4, 1000


def rates(name, steps, **options):
    schedule = make_learning_rate(name, RATE, STEPS, **options)
    return np.array([schedule(step) for step in steps], np.float64) / RATE


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("constant", {}, {0: 1, 500: 1, 999: 1, 5000: 1}),
        ("cosine", {}, {0: 1, 250: (1 + math.sqrt(0.5)) / 2, 500: 0.5, 999: math.sin(math.pi / 2000) ** 2, 1000: 0, 5000: 0}),
        ("cosine", {"final_fraction": 0.1}, {0: 1, 500: 0.55, 1000: 0.1, 5000: 0.1}),
        ("cosine", {"final_fraction": 1.0}, {0: 1, 500: 1, 1000: 1}),
        ("linear", {}, {0: 1, 250: 0.75, 500: 0.5, 999: 0.001, 1000: 0, 5000: 0}),
        ("linear", {"final_fraction": 0.1}, {0: 1, 500: 0.55, 1000: 0.1, 5000: 0.1}),
        ("inverse_sqrt", {"t_ref": 100.0}, {0: 1, 100: 1, 101: 100 / math.sqrt(10100), 400: 0.5, 900: 1 / 3, 10_000: 0.1}),
        ("cooldown", {}, {0: 1, 500: 1, 800: 1, 801: 0.995, 900: 0.5, 999: 0.005, 1000: 0, 5000: 0}),
        ("cooldown", {"fraction": 1.0}, {0: 1, 500: 0.5, 999: 0.001}),
    ],
)
def test_curves(name, options, expected):
    """Closed forms at both ends and in between; the rate is rounded to float32: 1e-6."""
    np.testing.assert_allclose(rates(name, expected, **options), list(expected.values()), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", SCHEDULES)
def test_warm_up_multiplies_the_schedule(name):
    """Step s of 5 has (s + 1) / 5 of the rate, and from step 4 on all of it; float32: 1e-6."""
    steps = [0, 1, 2, 3, 4, 5, 6, 900]
    factors = np.array([0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1])
    np.testing.assert_allclose(rates(name, steps, warmup_steps=5), factors * rates(name, steps), rtol=1e-6)
    np.testing.assert_array_equal(rates(name, steps, warmup_steps=0), rates(name, steps))
    assert {type(make_learning_rate(name, RATE, STEPS, warmup_steps=5)(step)) for step in steps} == {np.float32}


@pytest.mark.parametrize(("rate", "warmup_steps"), [(2e-3, 100), (1e-3, 500), (3e-4, 7)])
def test_warm_up_has_the_bits_of_the_same_formula_inside_a_compiled_step(rate, warmup_steps):
    compiled = jax.jit(lambda step: rate * jnp.minimum(1.0, (step + 1) / warmup_steps))
    schedule = make_learning_rate("constant", rate, STEPS, warmup_steps=warmup_steps)
    for step in range(warmup_steps + 2):
        assert schedule(step) == compiled(jnp.int32(step)), step


def test_optaxs_cosine_is_ours():
    """A function (learning_rate, num_steps, **options) -> step -> rate; optax computes in float32: 1e-5."""
    theirs = rates("optax:cosine_decay_schedule", [0, 1, 500, 900, 1000], alpha=0.1)
    np.testing.assert_allclose(theirs, rates("cosine", [0, 1, 500, 900, 1000], final_fraction=0.1), rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cosine", {"final_fraction": 1.5}, r"^`final_fraction` is 1.5, out of cosine's range: it must be from 0 to 1$"),
        ("linear", {"final_fraction": -0.1}, r"^`final_fraction` is -0.1, out of linear's range: it must be from 0 to 1$"),
        ("inverse_sqrt", {"t_ref": 0.0}, r"^`t_ref` is 0.0, out of inverse_sqrt's range: it must be above 0$"),
        ("cooldown", {"fraction": 0.0}, r"^`fraction` is 0.0, out of cooldown's range: it must be above 0 and at most 1$"),
        ("step", {}, "unknown learning-rate schedule 'step': choose one of constant, cosine, linear, inverse_sqrt, cooldown"),
        ("cosine", {"alpha": 0.1}, "the learning-rate schedule cosine has no option 'alpha': it has final_fraction"),
        ("optax:cosine_decay_schedule", {"alpha": -1.0}, "cosine_decay_schedule is -.* at step 999: it must be finite, 0 or"),
    ],
)
def test_mistakes_are_named(name, options, message):
    with pytest.raises(ValueError, match=message):
        make_learning_rate(name, RATE, STEPS, **options)


def test_the_length_is_that_of_the_training():
    config = digits.get_config()
    config.train.num_steps = 10
    config.optimizer.update({"schedule": "linear", "warmup_steps": 0})
    schedule = build.build_learning_rate(config)
    np.testing.assert_allclose([schedule(0), schedule(5), schedule(9)], [2e-3, 1e-3, 2e-4], rtol=1e-6)

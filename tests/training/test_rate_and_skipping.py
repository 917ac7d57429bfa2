"""The training step with other learning rates, which compile nothing, and with gradients that are not finite."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import build
from ddpm_jax.configs import digits
from ddpm_jax.diffusion import losses
from ddpm_jax.diffusion.parameterization import Parameterization
from ddpm_jax.diffusion.schedules import make_schedule
from ddpm_jax.diffusion.timestep_sampling import make_timestep_sampler
from ddpm_jax.runtime.mesh import make_mesh
from ddpm_jax.training.ema_tracker import EmaTracker
from ddpm_jax.training.optimizer import make_optimizer
from ddpm_jax.training.state import create_state
from ddpm_jax.training.step import train_step

SAMPLER = make_timestep_sampler("second_moment", 100)
AVERAGING = EmaTracker(extra_decays=(0.5,))
BATCH = {"image": np.random.default_rng(0).integers(0, 256, (16, 4, 4, 1)).astype(np.uint8)}


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def assert_same(got, want):
    for a, b in zip(leaves(got), leaves(want), strict=True):
        np.testing.assert_array_equal(a, b)


def run(poisoned_steps, steps, *, skip_nonfinite, name="adam"):
    """States before and after each step, and the metrics; the gradients of some steps are NaN."""

    def apply_fn(params, x_t, t, cond, dropout_key):
        return x_t * params["scale"] + params["kernel"].sum() * 0.01

    def step(state, batch, key, learning_rate):
        def poisoned(*args):
            return apply_fn(*args) * jnp.where(jnp.isin(state.step, jnp.array([-1, *poisoned_steps])), jnp.nan, 1.0)

        return train_step(
            state,
            batch,
            key,
            learning_rate,
            apply_fn=poisoned,
            schedule=make_schedule("cosine", 100),
            parameterization=Parameterization("eps", "fixed_large", clip_denoised=True),
            optimizer=optimizer,
            loss_fn=losses.make_loss("simple"),
            ema_decay=0.99,
            random_flip=False,
            skip_nonfinite=skip_nonfinite,
            timestep_sampler=SAMPLER,
            averaging=AVERAGING,
        )

    optimizer = make_optimizer(name, clip_norm=1.0, skip_nonfinite=skip_nonfinite)
    init = lambda key: {"scale": jnp.ones(()), "kernel": jax.random.normal(key, (8, 8))}  # noqa: E731
    create = functools.partial(create_state, init, optimizer, averaging=AVERAGING)
    state, compiled = create(jax.random.key(0), timestep_sampler_state=SAMPLER.init()), jax.jit(step)
    states, metrics = [state], []
    for _ in range(steps):
        state, measured = compiled(state, BATCH, jax.random.key(1), np.float32(1e-2))
        states.append(state)
        metrics.append(jax.device_get(measured))
    return states, metrics


@pytest.mark.parametrize("name", ["adam", "muon"])
def test_a_skipped_step_changes_only_the_counters_and_the_averages(name):
    """Gradients 1 and 2 are NaN: parameters, moments and the history of losses are kept; the step advances."""
    states, metrics = run((1, 2), 4, skip_nonfinite=2, name=name)
    for before, after in ((states[1], states[2]), (states[2], states[3])):
        assert_same(after.params, before.params)
        assert_same(after.opt_state.inner_state, before.opt_state.inner_state)
        assert_same(after.timestep_sampler_state, before.timestep_sampler_state)
        assert int(after.step) == int(before.step) + 1
    for decay, average in ((0.99, lambda state: state.ema_params), (0.5, lambda state: state.averages["decay_0.5"])):
        used = min(decay, 2 / 11)
        for got, old, new in zip(*map(leaves, (average(states[2]), average(states[1]), states[1].params)), strict=True):
            np.testing.assert_allclose(got, used * old + (1 - used) * new, rtol=1e-6)
    assert [bool(row["skipped"]) for row in metrics] == [False, True, True, False]
    assert [int(row["skipped_in_a_row"]) for row in metrics] == [0, 1, 2, 0]
    assert [int(row["skipped_steps"]) for row in metrics] == [0, 1, 2, 2]
    assert not np.isfinite(metrics[1]["loss"])
    assert all(np.isfinite(leaf).all() for leaf in leaves(states[-1]))
    assert any((a != b).any() for a, b in zip(leaves(states[4].params), leaves(states[3].params), strict=True))


def test_one_more_in_a_row_is_not_skipped():
    states, metrics = run((1, 2, 3), 4, skip_nonfinite=2)
    assert [bool(row["skipped"]) for row in metrics] == [False, True, True, False]
    assert not np.isfinite(metrics[3]["grad_norm"])
    assert not all(np.isfinite(leaf).all() for leaf in leaves(states[4].params))


def test_without_skipping_a_gradient_is_applied_as_it_is():
    states, metrics = run((1,), 2, skip_nonfinite=0)
    assert "skipped" not in metrics[1]
    assert not np.isfinite(leaves(states[2].params)[0]).all()


def test_skipping_does_not_change_finite_steps():
    """On and off: 1e-6, since XLA fuses the operations of the optimizer in another way."""
    with_skipping, _ = run((), 3, skip_nonfinite=2)
    without, _ = run((), 3, skip_nonfinite=0)
    for got, want in zip(leaves(with_skipping[-1]), leaves(without[-1]), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-7)


# Learning rates.


def tiny(**optimizer):
    config = digits.get_config()
    config.model.unet.update(ch=8, ch_mult=(1,), attn_resolutions=())
    config.train.batch_size = 8
    config.optimizer.update(optimizer)
    return config


def lowered(config):
    """The training step as it is handed to XLA."""
    mesh = make_mesh(jax.devices()[:1])
    state = jax.eval_shape(build.build_init(config), jax.random.key(0))
    batch = {"image": np.zeros((8, 8, 8, 1), np.uint8), "label": np.zeros(8, np.int32)}
    rate = build.build_learning_rate(config)(0)
    return jax.jit(build.build_train_step(config, mesh)).lower(state, batch, jax.random.key(0), rate).as_text()


def test_the_compiled_step_does_not_depend_on_the_learning_rate():
    """Equal programs, so the compilation cache has it; another option of the optimizer is another program."""
    step = lowered(tiny())
    assert lowered(tiny(learning_rate=1e-4, warmup_steps=7, schedule="cosine")) == step
    longer = tiny(schedule="cooldown", warmup_steps=0)
    longer.train.num_steps = 10
    assert lowered(longer) == step
    changed = tiny()
    changed.optimizer.adam.b1 = 0.8
    assert lowered(changed) != step


def test_another_rate_compiles_nothing_and_scales_the_update():
    """SGD: the change of the parameters is proportional to the rate, up to the rounding of the parameters."""
    config = tiny(name="sgd", warmup_steps=3)
    step = jax.jit(build.build_train_step(config, make_mesh(jax.devices()[:1])))
    state = jax.jit(build.build_init(config))(jax.random.key(0))
    batch = {"image": np.full((8, 8, 8, 1), 200, np.uint8), "label": np.zeros(8, np.int32)}
    changes = []
    for rate, other in ((1.0, "constant"), (0.5, "cosine")):
        schedule = build.build_learning_rate(tiny(learning_rate=rate, schedule=other, warmup_steps=1))
        after, _ = step(state, batch, jax.random.key(1), schedule(0))
        changes.append(
            np.concatenate([leaf.ravel() for leaf in leaves(jax.tree.map(jnp.subtract, after.params, state.params))])
        )
    assert step._cache_size() == 1
    assert np.abs(changes[0]).max() > 1e-2
    np.testing.assert_allclose(changes[1], 0.5 * changes[0], atol=1e-6)

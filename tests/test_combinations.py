"""The table of combinations: every cell trains a step and samples, or is rejected with a one-line error.

Run op by op, with a network of one matrix, so that all cells share the same few compiled operations.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax import build, config_validation
from ddpm_jax.configs import defaults, digits
from ddpm_jax.diffusion import loss_weighting, losses, schedules, timestep_sampling
from ddpm_jax.diffusion.parameterization import PREDICTIONS
from ddpm_jax.diffusion.variances import VARIANCES
from ddpm_jax.samplers import SAMPLERS, sampler
from ddpm_jax.training.state import create_state
from ddpm_jax.training.step import train_step
from ddpm_jax.user_messages import UsageError

SHAPE = (2, 2, 1)
TABLE = list(itertools.product((False, True), PREDICTIONS, VARIANCES, losses.LOSSES, loss_weighting.WEIGHTINGS))


@pytest.fixture(scope="module", autouse=True)
def _no_key_reuse_checks():
    """Op by op they take a third of the time; tests of the step and of the samplers check the same keys."""
    with jax.debug_key_reuse(False):
        yield


def make_config(zero=False, prediction="v", variance="fixed_large", loss="simple", weighting="simple", config=None, **process):
    """A config of digits with these fields; `config` is changed, if given, which is faster than a new one."""
    config = digits.get_config() if config is None else config
    config.diffusion.update(
        num_timesteps=40,
        zero_terminal_snr=zero,
        prediction=prediction,
        variance=variance,
        loss=loss,
        weighting=weighting,
        **process,
    )
    config.sampling.update(num_steps=4, spacing="trailing")
    return config


def makes_sense(zero, prediction, variance, loss, weighting):
    """An independent definition of the valid combinations."""
    learned, bound_alone = variance == "learned_range", loss.startswith("vlb")
    if loss == "simple" and learned:
        return False  # the variance would not be trained
    if loss.startswith("hybrid") and not learned:
        return False  # the bound needs a learned variance
    if bound_alone and weighting != "simple":
        return False  # the VLB has its own weights
    return not zero or prediction != "eps"


def error_of(config):
    """The error of check_config, or None."""
    try:
        config_validation.check_config(config)
    except UsageError as error:
        return str(error)
    return None


@pytest.mark.parametrize("schedule", schedules.SCHEDULES)
def test_exactly_the_invalid_combinations_are_rejected_in_one_line(schedule):
    config = digits.get_config()
    for cell in TABLE:
        why = error_of(make_config(*cell, config=config, schedule=schedule))
        assert (why is None) == makes_sense(*cell), f"{cell}: {why}"
        assert why is None or (why.startswith("config.diffusion: ") and "\n" not in why)


def linear(params, x_t):
    return (x_t.reshape(len(x_t), -1) @ params).reshape(*x_t.shape[:-1], -1)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_valid_combinations_train(prediction):
    """The loss is finite and every output has a gradient, including a learned variance."""
    batch = {"image": jnp.asarray(np.random.default_rng(0).integers(0, 256, (8, *SHAPE)), jnp.uint8)}
    config, count = digits.get_config(), 0
    for cell in TABLE:
        if cell[1] != prediction or not makes_sense(*cell):
            continue
        make_config(*cell, config=config)
        channels = build.build_model(config).out_channels
        params = jnp.full((4, 4 * channels), 0.1)
        optimizer = optax.sgd(1.0)
        state, metrics = train_step(
            create_state(lambda _, params=params: params, optimizer, jax.random.key(0)),
            batch,
            jax.random.key(1),
            1.0,
            apply_fn=lambda params, x_t, t, labels, key: linear(params, x_t),
            schedule=build.build_schedule(config),
            optimizer=optimizer,
            parameterization=build.build_parameterization(config),
            loss_fn=build.build_loss(config),
            ema_decay=0.5,
            random_flip=False,
        )
        gradient = np.asarray(params - state.params).reshape(4, 4, channels)
        assert np.isfinite(gradient).all(), cell
        assert np.isfinite(metrics["loss"]), cell
        assert (np.abs(gradient).max(axis=(0, 1)) > 0).all(), cell
        count += 1
    assert count == {"eps": 30, "x_start": 60, "v": 60}[prediction]


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_samples_every_trained_parameterization(name):
    """Images are finite, and independent of a learned variance; or the combination is rejected."""
    config, keys = digits.get_config(), jax.random.split(jax.random.key(0), 2)
    for zero, prediction, variance in itertools.product((False, True), PREDICTIONS, VARIANCES):
        make_config(zero, prediction, variance, "vlb", config=config)
        config.sampling.sampler = name
        if zero and (prediction == "eps" or name in ("heun", "ode")):
            with pytest.raises(UsageError, match=r"zero terminal SNR"):
                build.build_sampler(config)
            continue
        channels = build.build_model(config).out_channels
        params = 0.1 * jnp.ones((4, 4 * channels))
        made, samples = build.build_sampler(config), []
        state = sampler.init_state(made, keys, SHAPE)
        if made.extra_nfe and (prediction, variance) not in (("eps", "learned_range"), ("v", "fixed_small")):
            continue  # inner loops are recompiled each time; these samplers use x_start only

        def network(x_t, t, params=params):
            return linear(params, x_t)

        for index in range(made.num_steps)[::-1]:
            x, _, carry = made.step(lambda x, t, params=params: linear(params, x), state.x, state.carry, jnp.int32(index), keys)
            state = state.replace(x=x, carry=carry)
            samples.append(x)
        assert samples[-1].shape == (2, *SHAPE)
        assert np.isfinite(samples).all()


@pytest.mark.parametrize("name", timestep_sampling.TIMESTEP_SAMPLERS)
def test_every_timestep_sampler_can_be_configured(name):
    """The name selects the timestep sampler, and num_timesteps the range: detected by properties that only one of them has."""
    config = make_config(timestep_sampler=name)
    config_validation.check_config(config)
    made, batch, steps = build.build_timestep_sampler(config), 80, config.diffusion.num_timesteps
    state = made.init()
    t, weights = made.draw(state, jax.random.key(0), batch)
    assert t.dtype == jnp.int32
    assert 0 <= t.min() < 5
    assert steps - 5 <= t.max() < steps
    np.testing.assert_allclose(weights, 1, rtol=1e-5)  # uniform without a history
    counts = np.bincount(np.asarray(t), minlength=steps)
    assert (counts == batch // steps).all() == (name == "low_discrepancy")  # each t occurs exactly B/T times

    # Losses of 1 at t=0 and .1 elsewhere, ten times each: only second_moment then prefers t=0, with a smaller weight.
    every = jnp.repeat(jnp.arange(steps, dtype=jnp.int32), timestep_sampling.HISTORY)
    t, weights = made.draw(made.update(state, every, jnp.where(every == 0, 1.0, 0.1)), jax.random.key(1), 400)
    at_0 = np.asarray(t) == 0
    if name == "second_moment":
        p_0 = 1 / (1 + 0.1 * (steps - 1))  # p(t) is proportional to the root mean square
        assert at_0.mean() == pytest.approx(p_0, abs=4 * np.sqrt(p_0 / 400))
        np.testing.assert_allclose(weights[at_0], 1 / (steps * p_0), rtol=0.01)
    else:
        assert at_0.mean() == pytest.approx(1 / steps, abs=4 * np.sqrt(1 / steps / 400))
        np.testing.assert_allclose(weights, 1)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"diffusion.weighting": "min_snr_gamma", "diffusion.min_snr_gamma.gamma": -1.0}, "gamma of the weighting min_snr_gam"),
        ({"diffusion.weighting": "min"}, "choose one of simple, snr"),
        ({"diffusion.timestep_sampler": "magic"}, "choose one of uniform, low_discrepancy"),
        ({"model.unet.num_heads": 3}, "^config.model.unet.num_heads is 3, which does not divide the width"),
        ({"model.label_dropout": 0.1, "model.class_conditional": False}, "class_conditional is False"),
        ({"model.name": "transformer"}, "^config.model.name is 'transformer': choose one of unet, or module:function"),
        (
            {"optimizer.name": "adamm"},
            "^config.optimizer.name is 'adamm': choose one of adam, adamw, lion, muon, sgd, or module:function",
        ),
        ({"optimizer.adam.b1": 1.0}, "^config.optimizer.adam.b1 is 1.0, out of adam's range: it must be"),
        ({"diffusion.schedule": "cosine", "diffusion.cosine.max_beta": 1.0}, "max_beta is 1.0: it must be above 0 and below 1"),
    ],
)
def test_invalid_choices_and_options_are_rejected(fields, match):
    config = make_config()
    config.update_from_flattened_dict(fields)
    with pytest.raises(UsageError, match=match) as caught:
        config_validation.check_config(config)
    assert "\n" not in str(caught.value)


def test_guidance_needs_a_model_trained_with_label_dropout():
    config = make_config()
    config.sampling.guidance_scale = 2.0
    config_validation.check_config(config)
    config.model.label_dropout = 0.0
    with pytest.raises(UsageError, match=r"label_dropout above 0"):
        config_validation.check_config(config)


def test_every_model_field_reaches_the_network():
    config = defaults.get_config()
    config.model.class_conditional = True
    others = {"class_conditional": False, "label_dropout": 0.1, "dtype": "bfloat16"}
    unet = {"ch": 64, "ch_mult": (1, 2), "num_res_blocks": 1, "attn_resolutions": (8,), "mid_attention": False}
    unet |= {"dropout": 0.2, "num_heads": 2, "head_channels": 64, "scale_shift": True, "remat": True, "norm_groups": 16}
    unet |= {"norm_epsilon": 1e-5, "downsample_padding": "symmetric", "time_embedding": "iddpm", "time_scale": 4.0}
    unet |= {"resblock_updown": True, "cond_resize": "nearest"}
    assert unet.keys() == set(config.model.unet)
    assert {*others, "name", "unet", "options"} == set(config.model)
    for field, value in (others | {f"unet.{name}": value for name, value in unet.items()}).items():
        changed = config.copy_and_resolve_references()
        changed.update_from_flattened_dict({f"model.{field}": value})
        assert build.build_model(changed) != build.build_model(config), field

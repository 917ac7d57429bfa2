"""Invalid numbers in a config are rejected before anything runs, with a line that names the field and its range."""

import math

import pytest
from ml_collections import ConfigDict

from ddpm_jax import build, config_validation
from ddpm_jax.configs import defaults
from ddpm_jax.samplers.guidance import guided_timesteps
from ddpm_jax.user_messages import UsageError


def make_config(changes):
    config = defaults.get_config()
    config.model.update(class_conditional=True, label_dropout=0.1)
    config.update_from_flattened_dict(changes)
    return config


def error_of(changes):
    with pytest.raises(UsageError) as caught:
        config_validation.check_config(make_config(changes))
    assert "\n" not in str(caught.value)
    return str(caught.value)


FLOATS = sorted(field for field, x in config_validation.numbers(defaults.get_config()) if isinstance(x, float))


def test_every_float_is_found():
    """Also those in lists, but no booleans."""
    assert {"optimizer.learning_rate", "sampling.guidance_interval", "diffusion.p2.k", "edit.strength"} <= set(FLOATS)
    assert "data.random_flip" not in dict(config_validation.numbers(defaults.get_config()))
    assert [x for field, x in config_validation.numbers(ConfigDict({"a": {"b": (1, 2.5)}, "c": True})) if field == "a.b"] == [
        1,
        2.5,
    ]


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("field", sorted({*FLOATS, "ema.extra_decays", "ema.power_sigma_rel"} - {"sampling.heun.churn_max"}))
def test_infinity_is_rejected(field, value):
    """A learning rate of inf trained to NaN; a guidance scale of inf made black images."""
    message = error_of({field: (value, value) if field in config_validation.LISTS else value})
    assert message.startswith(f"config.{field} is {value}: it must be a finite number")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer.learning_rate": math.inf}, "config.optimizer.learning_rate is inf: it must be a finite number, above 0"),
        ({"optimizer.learning_rate": 0.0}, "config.optimizer.learning_rate is 0.0: it must be above 0"),
        ({"optimizer.clip_norm": -1.0}, "config.optimizer.clip_norm is -1.0: it must be 0 (no clipping) or more"),
        ({"model.unet.dropout": 1.0}, "config.model.unet.dropout is 1.0: it must be at least 0 and below 1"),
        ({"sampling.guidance_scale": -1.0}, "config.sampling.guidance_scale is -1.0: it must be 0 or more"),
        ({"sampling.guidance_rescale": 1.5}, "config.sampling.guidance_rescale is 1.5: it must be from 0 to 1"),
        ({"evaluation.ode_tolerance": 1.0}, "config.evaluation.ode_tolerance is 1.0: it must be above 0 and below 1"),
        ({"evaluation.hutchinson_samples": -2}, "config.evaluation.hutchinson_samples is -2: it must be 0 or more"),
    ],
)
def test_numbers_out_of_range_are_rejected_with_their_range(changes, message):
    assert error_of(changes) == message


@pytest.mark.parametrize("field", ["seed", "sampling.seed"])
def test_seeds_have_32_bits(field):
    """JAX keeps the lowest 32 bits of a seed: 1 and 2**32 + 1 made the same images, and -1 those of 2**32 - 1."""
    for seed in (0, 2**31, 2**32 - 1):
        config_validation.check_config(make_config({field: seed}))
    for seed in (-1, 2**32, 2**32 + 1, 12345678901234567890123):
        assert error_of({field: seed}) == f"config.{field} is {seed}: it must be an integer from 0 to 4294967295"


@pytest.mark.parametrize("pair", [(1.0,), (), (0.1, 0.2, 0.3), (0.5, 0.25), (-0.1, 0.5)])
def test_the_guided_interval_is_two_numbers_in_ascending_order(pair):
    field = "sampling.guidance_interval"
    message = error_of({field: pair})
    assert message.startswith(f"config.{field} is {pair}: it must be two numbers ")
    assert "the lower one first, such as (" in message
    assert "Guidance" not in message


def test_the_guided_interval_is_a_part_of_the_chain():
    assert "from 0 to 1" in error_of({"sampling.guidance_interval": (0.0, 5.0)})
    guided = {"sampling.guidance_scale": 2.0, "sampling.guidance_interval": (0.5001, 0.5002)}
    message = error_of(guided)
    assert message == (
        "config.sampling: guidance_interval is (0.5001, 0.5002): none of the 1000 timesteps is in it; make it wider"
    )
    assert guided_timesteps((0.25, 0.5), 1000) == (250, 499)
    config_validation.check_config(make_config({"sampling.guidance_interval": (0.0, 1.0)}))


def test_churn_may_have_no_upper_bound():
    """EDM's S_max is infinite if noise is added at all noise levels above S_min."""
    changes = {
        "sampling.sampler": "heun",
        "sampling.heun.churn": 10.0,
        "sampling.heun.churn_min": 0.05,
        "sampling.heun.churn_max": math.inf,
    }
    config_validation.check_config(make_config(changes))
    build.build_sampler(make_config(changes))


def test_more_steps_than_the_chain_has_are_an_error():
    short = {"diffusion.schedule": "cosine", "diffusion.num_timesteps": 10}
    message = error_of(short)
    assert message.startswith(
        "config.sampling.num_steps is 50, but the chain has only 10 steps, config.diffusion.num_timesteps"
    )
    config_validation.check_config(make_config(short | {"sampling.num_steps": 10}))  # the advice works


def test_advice_about_a_short_linear_schedule_works():
    """The advice once named beta_end, which is not a field."""
    short = {"diffusion.num_timesteps": 10, "sampling.num_steps": 10}
    message = error_of(short)
    assert message.endswith("set num_timesteps above 20, or schedule to cosine or sigmoid")
    for taken in ({"diffusion.num_timesteps": 21}, {"diffusion.schedule": "cosine"}, {"diffusion.schedule": "sigmoid"}):
        config_validation.check_config(make_config(short | taken))


def test_advice_about_zero_terminal_snr_works():
    zero = {"diffusion.zero_terminal_snr": True}
    assert error_of(zero).endswith("needs the prediction x_start or v, not eps")
    config = make_config(zero | {"diffusion.prediction": "v"})
    config_validation.check_config(config)
    with pytest.raises(UsageError, match=r"set spacing=trailing$"):
        build.build_sampler(config)
    config.sampling.spacing = "trailing"
    build.build_sampler(config)


def test_advice_about_a_learned_variance_works():
    assert "choose the loss hybrid or vlb" in error_of({"diffusion.variance": "learned_range"})
    for loss in ("hybrid", "vlb"):
        config_validation.check_config(make_config({"diffusion.variance": "learned_range", "diffusion.loss": loss}))
    assert "choose the variance learned_range, or the loss simple" in error_of({"diffusion.loss": "hybrid"})


def test_attention_in_the_middle_has_its_own_heads():
    """Without attention, num_heads is not checked."""
    changes = {"model.unet.num_heads": 3, "model.unet.attn_resolutions": ()}
    assert "does not divide the width" in error_of(changes)
    config_validation.check_config(make_config(changes | {"model.unet.mid_attention": False}))

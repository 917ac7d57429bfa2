"""A part of the user's own that returns something wrong ends in one line before the first step, which names the field."""

import sys

import pytest

from ddpm_jax import build, config_validation, network_check
from ddpm_jax.cli import train
from ddpm_jax.configs import digits
from ddpm_jax.runtime.errors import NumericalError
from ddpm_jax.user_messages import UsageError

HEADER = """
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ddpm_jax.diffusion.timestep_sampling import TimestepSampler
from ddpm_jax.samplers.sampler import Sampler
"""
NETWORK = """
class part(nn.Module):
    out_channels: int
    num_classes: int = 0

    @nn.compact
    def __call__(self, x_t, time, cond, *, deterministic=True):
        y = nn.Conv(self.out_channels, (3, 3))(x_t)
        return y
"""
TIMESTEPS = """
def part(T):
    def draw(state, key, batch_size):
        return jax.random.randint(key, (batch_size,), 0, T), jnp.ones(batch_size)

    return TimestepSampler(init=lambda: jnp.zeros(3), draw=draw, update=lambda state, t, losses: state)
"""
SAMPLER = """
def part(schedule, predict_x0):
    def step(denoise_fn, x_t, carry, index, keys):
        pred_xstart = predict_x0(denoise_fn, x_t, schedule.level(jnp.full(x_t.shape[:1], index, jnp.int32)))
        return x_t, pred_xstart, carry

    return Sampler(schedule=schedule, step=step)
"""
LOSS = """
def part(schedule, parameterization, model_output, x_start, x_t, t, noise):
    return jnp.mean(jnp.square(model_output - noise), axis=(1, 2, 3))
"""
OPTIMIZER = """
def part(learning_rate):
    return optax.sgd(learning_rate)
"""
WEIGHTING = "def part(snr): return jnp.minimum(snr, 5.0)"
SCHEDULE = "def part(learning_rate, num_steps): return lambda step: learning_rate"
VALID = {
    "model.name": NETWORK,
    "diffusion.loss": LOSS,
    "diffusion.weighting": WEIGHTING,
    "diffusion.timestep_sampler": TIMESTEPS,
    "optimizer.name": OPTIMIZER,
    "optimizer.schedule": SCHEDULE,
    "sampling.sampler": SAMPLER,
}
INVALID = [  # field, text of the valid part, what replaces it, error
    ("model.name", ", *, deterministic=True", "", r"has no argument deterministic: __call__\(self, x_t, .*\) is required"),
    ("model.name", "deterministic=True", "deterministic", "has no default of the argument deterministic"),
    ("model.name", "nn.Conv(self.out_channels, (3, 3))(x_t)", "x_t", "has no parameters: nothing in it can be trained"),
    ("model.name", "nn.Conv(", "nn.BatchNorm(False)(x_t) + nn.Conv(", "has the variables batch_stats, but only params are"),
    ("model.name", "Conv(self.out_channels", "Conv(5", r"returns float32 \[2, 8, 8, 5\]: float32 \[2, 8, 8, 1\], .*required"),
    ("model.name", "return y", "return y.mean()", r"returns float32 \[\]: float32 \[2, 8, 8, 1\], \[B, H, W, out_channels\]"),
    ("model.name", "return y", "return y.astype(jnp.bfloat16)", r"returns bfloat16 \[2, 8, 8, 1\]: float32"),
    ("model.name", "return y", "return y, time", r"returns the tuple \(float32 \[2, 8, 8, 1\], int32 \[2\]\)"),
    ("model.name", "return y", "return x_t @ y", r"fails: TypeError: dot_general .* \(line 18 of .*broken\.py\)"),
    ("diffusion.loss", ", axis=(1, 2, 3)", "", r"returns float32 \[\]: float32 \[2\], one value per image, is required"),
    ("diffusion.loss", "jnp.mean(", "(lambda x, axis: x)(", r"returns float32 \[2, 8, 8, 1\]: float32 \[2\]"),
    ("diffusion.loss", "return ", "", r"returns None: float32 \[2\]"),
    (
        "diffusion.weighting",
        "jnp.minimum(snr, 5.0)",
        "jnp.sum(snr)",
        r"returns float32 \[\]: float32 \[2\], one weight per SNR",
    ),
    (
        "diffusion.weighting",
        "jnp.minimum(snr, 5.0)",
        "5.0 if snr > 5 else snr",
        r"fails: ValueError: The truth value .* \(line 10 of",
    ),
    ("diffusion.weighting", "jnp.minimum(snr, 5.0)", "jnp.log(1e-4 - snr)", r"is nan at t=0, where the SNR is .*, and not"),
    ("diffusion.timestep_sampler", "return TimestepSampler", "return dict", "is a dict: a TimestepSampler is required"),
    (
        "diffusion.timestep_sampler",
        ", jnp.ones(batch_size)",
        "",
        r"draw.* returns int32 \[2\]: the tuple \(int32 \[2\], float32",
    ),
    ("diffusion.timestep_sampler", "0, T)", "0, T) / T", r"draw.* returns the tuple \(float32 \[2\], float32 \[2\]\)"),
    (
        "diffusion.timestep_sampler",
        "losses: state",
        "losses: losses",
        r"update.* returns float32 \[2\]: float32 \[3\], a state",
    ),
    ("optimizer.name", "optax.sgd(learning_rate)", "3", "is an int: a GradientTransformation is required"),
    ("optimizer.name", "optax.sgd(learning_rate)", "optax.sgd", "is a function: a GradientTransformation is required"),
    (
        "optimizer.name",
        "return optax.sgd(learning_rate)",
        "return optax.GradientTransformation(lambda params: (), lambda grads, state, params: (0.0, state))",
        r"update.* returns float32 \[\]: a dict of \d+ arrays, an update of each parameter, is required",
    ),
    ("optimizer.schedule", "lambda step: learning_rate", "learning_rate", "fails: TypeError: 'float' object is not callable"),
    ("optimizer.schedule", "lambda step: learning_rate", "lambda step: None", "a function of the step that returns a number"),
    ("sampling.sampler", "return Sampler(schedule=schedule, step=step)", "return step", "is a function: a Sampler is required"),
    ("sampling.sampler", "x_t, pred_xstart, carry\n", "x_t\n", r"returns float32 \[2, 8, 8, 1\]: the tuple \(x_prev, pred_xst"),
    (
        "sampling.sampler",
        "return x_t, pred",
        "return x_t[0], pred",
        r"returns float32 \[8, 8, 1\]: float32 \[2, 8, 8, 1\], x_prev",
    ),
    (
        "sampling.sampler",
        "pred_xstart, carry\n",
        "pred_xstart, index\n",
        r"returns int32 \[\]: the tuple \(\), the carry, is req",
    ),
    ("sampling.sampler", "return x_t, pred", "return x_t @ 3, pred", r"fails: .* \(line 14 of .*broken\.py\)"),
]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The current folder, from which broken.py is imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "broken", raising=False)
    return tmp_path


def config_with(field, source, folder):
    (folder / "broken.py").write_text(HEADER + source + "\n")
    config = digits.get_config()
    config.update_from_flattened_dict({field: "broken:part", "train.trackers": (), "sampling.num_steps": 3})
    return config


@pytest.mark.parametrize("field", VALID)
def test_valid_parts_pass(field, folder):
    config = config_with(field, VALID[field], folder)
    config_validation.check_config(config)
    network_check.check_network(config)
    build.build_sampler(config)


@pytest.mark.parametrize(("field", "old", "new", "message"), INVALID)
def test_invalid_parts_are_one_line_before_training(field, old, new, message, folder):
    assert old in VALID[field]
    config = config_with(field, VALID[field].replace(old, new), folder)
    with pytest.raises(UsageError, match=message) as caught:
        train.run(config, "run")
    assert str(caught.value).startswith(f"config.{field}: ")
    assert "\n" not in str(caught.value)
    assert not (folder / "run" / "config.json").exists()


SMALL = {
    "model.name": "tests.small_network:Small",
    "train.num_steps": 4,
    "train.batch_size": 8,
    "train.sample_every": 0,
}


@pytest.mark.parametrize(
    ("field", "old", "new", "message"),
    [
        (
            "diffusion.timestep_sampler",
            "0, T)",
            "T - 1, T + 1)",
            r"`timestep_sampler` returned \d of 8 t outside 0..T-1 for step 1",
        ),
        ("diffusion.timestep_sampler", "0, T)", "-1, 0)", r"`timestep_sampler` returned 8 of 8 t outside 0..T-1 for step 1;"),
        (
            "diffusion.timestep_sampler",
            "jnp.ones(batch_size)",
            "jnp.full(batch_size, jnp.nan)",
            "`timestep_sampler` returned weights that are not finite for step 1; no checkpoint was saved yet. Correct it",
        ),
        ("diffusion.loss", "return ", "return jnp.nan * ", "loss is not finite at step 1.*, or correct .*broken:part"),
    ],
)
def test_a_value_that_is_not_finite_names_its_part(field, old, new, message, folder):
    config = config_with(field, VALID[field].replace(old, new), folder)
    config.update_from_flattened_dict(SMALL)
    with pytest.raises(NumericalError, match=message):
        train.run(config, "run")

"""What --format=onnx needs without its packages: the noise of a step as an argument, and what is refused."""

import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import build
from ddpm_jax.interop import export_onnx, onnx_model
from ddpm_jax.interop.program_inputs import Tensor
from ddpm_jax.runtime.errors import InvalidArgumentError, UnavailableError
from ddpm_jax.samplers.sampler import GivenNoise, Sampler, per_image_noise
from tests.interop.exported import make_config

SHAPE = (2, 2, 1)


def make_sampler(name="ancestral"):
    config = make_config({"sampling.sampler": name, "sampling.num_steps": 4})
    return build.build_sampler(config)


def zeros(params, labels):
    return lambda x_t, t: jnp.zeros_like(x_t)


def test_a_step_with_given_noise_is_the_step_of_the_keys():
    sampler, keys = make_sampler(), jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(jax.random.key(1), (3, *SHAPE))
    given = GivenNoise(per_image_noise(keys, 2, SHAPE))
    wanted, found = (sampler.step(zeros(None, None), x, (), jnp.int32(2), each) for each in (keys, given))
    np.testing.assert_array_equal(found[0], wanted[0])
    assert given.draws == 1


def with_step(step, **options):
    return Sampler(schedule=make_sampler().schedule, step=step, **options)


def twice(denoise_fn, x_t, carry, index, keys):
    return x_t + per_image_noise(keys, 1, SHAPE) + per_image_noise(keys, 2, SHAPE), x_t, carry


def by_its_own_key(denoise_fn, x_t, carry, index, keys):
    return x_t + jax.vmap(lambda key: jax.random.normal(key, SHAPE))(keys), x_t, carry


def plain(denoise_fn, x_t, carry, index, keys):
    return x_t, x_t, carry


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        (with_step(twice), "a step draws noise 2 times instead of once"),
        (with_step(by_its_own_key), "a step must take its noise from `per_image_noise`"),
        (with_step(plain, init_carry=lambda x: jnp.float32(0)), "its carry is not one array per image"),
    ],
    ids=["two draws", "keys", "carry"],
)
def test_samplers_that_onnx_cannot_run_are_refused(sampler, message):
    with pytest.raises(InvalidArgumentError, match=f"the sampler cannot be exported to ONNX: {message}"):
        export_onnx.step_model(zeros, sampler, {}, image_shape=SHAPE)


def test_a_missing_package_is_named_with_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(UnavailableError, match=re.escape("jax2onnx cannot be imported")) as error:
        onnx_model.to_onnx(jnp.sin, [Tensor("x", "float32", ("b",))], ["y"])
    assert str(error.value).endswith("pip install jax2onnx onnx onnxruntime (the extra onnx)")
    assert "\n" not in str(error.value)

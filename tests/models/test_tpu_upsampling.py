"""Upsampling and a convolution in one: outputs and gradients against the two."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.models import layers, tpu_upsampling

NHWC = ("NHWC", "HWIO", "NHWC")


def evaluate(form, dtype):
    """y, dx and dkernel, float32."""
    generator = np.random.default_rng(0)
    shapes = ((2, 5, 4, 3), (3, 3, 3, 6), (2, 10, 8, 6))
    x, kernel, dy = (jnp.asarray(generator.normal(size=shape), dtype) for shape in shapes)
    y, vjp = jax.vjp(lambda x, kernel: form(x, kernel, (1, 1), "SAME", dimension_numbers=NHWC), x, kernel)
    return [np.asarray(array, np.float32) for array in (y, *vjp(dy))]


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 2e-2)])
def test_one_convolution_is_upsampling_and_a_convolution(dtype, tolerance):
    """Tolerance: rounding, relative to the largest number of each array of the two in float32."""
    want = evaluate(layers.upsample_conv, jnp.float32)
    for got, expected in zip(evaluate(tpu_upsampling.upsample_conv, dtype), want, strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * np.abs(expected).max())

"""Group norm in one pass: outputs, gradients and statistics against float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.models import group_norm as norms
from ddpm_jax.models import tpu_layers

EPSILON = 1e-6
LINEN_ONE_PASS = functools.partial(norms.linen_norm, fast_variance=True)  # on TPUs
ONE_PASS = [norms.one_pass_norm, norms.training_norm, LINEN_ONE_PASS, functools.partial(tpu_layers.norm_of_parts, size=4)]


def example(shape, mean=0.0, dtype=jnp.float32):
    generator = np.random.default_rng(0)
    x, dy = mean + generator.normal(size=shape), generator.normal(size=shape)
    scale, bias = generator.normal(size=(2, shape[-1]))
    return jnp.asarray(x, dtype), *(jnp.asarray(value, jnp.float32) for value in (scale, bias, dy))


def in_float64(x, scale, bias, dy, groups):
    """y, dx, dscale and dbias, from the definition: dx is the projection of dy onto what a group norm lets through."""
    x, scale, bias, dy = (np.float64(value) for value in (x, scale, bias, dy))
    grouped = (*x.shape[:3], groups, -1)
    axes, dy_scaled = (1, 2, 4), (dy * scale).reshape(grouped)
    values = x.reshape(grouped)
    std = np.sqrt(values.var(axis=axes, keepdims=True) + EPSILON)
    normalized = (values - values.mean(axis=axes, keepdims=True)) / std
    centered = dy_scaled - dy_scaled.mean(axis=axes, keepdims=True)
    dx = (centered - normalized * (dy_scaled * normalized).mean(axis=axes, keepdims=True)) / std
    normalized = normalized.reshape(x.shape)
    return normalized * scale + bias, dx.reshape(x.shape), (dy * normalized).sum((0, 1, 2)), dy.sum((0, 1, 2))


@functools.partial(jax.jit, static_argnums=(0, 5))
def evaluate(form, x, scale, bias, dy, groups):
    """y, dx, dscale and dbias."""

    def function(x, scale, bias):
        return form(x, scale, bias, groups=groups, epsilon=EPSILON)

    y, vjp = jax.vjp(function, x, scale, bias)
    return y, *vjp(dy)


def errors(got, want):
    """The largest error of each array, divided by its largest value."""
    return [np.abs(np.float64(a) - b).max() / np.abs(b).max() for a, b in zip(got, want, strict=True)]


@pytest.mark.parametrize("form", ONE_PASS)
@pytest.mark.parametrize(("shape", "groups"), [((2, 4, 4, 12), 4), ((3, 2, 6, 8), 8), ((1, 4, 4, 8), 1)])
def test_output_and_gradients_match_float64(form, shape, groups):
    arrays = example(shape, mean=1.0)
    assert max(errors(evaluate(form, *arrays, groups), in_float64(*arrays, groups))) < 2e-6


@pytest.mark.parametrize("form", ONE_PASS)
@pytest.mark.parametrize("mean", [10.0, 100.0])
def test_large_means_cost_a_bfloat16_network_no_digits(form, mean):
    """Means of 10 and 100 standard deviations, where float32 has errors of 1e-7 mean^2 of the variance. The exact norm of the
    values before their rounding to bfloat16 differs by over ten times as much as the one pass errs after it."""
    exact, *rest = example((2, 8, 8, 16), mean)
    rounded = exact.astype(jnp.bfloat16)
    want = in_float64(rounded, *rest, 4)
    rounding = np.abs(in_float64(exact, *rest, 4)[0] - want[0]).max()
    got = evaluate(form, rounded, *rest, 4)
    assert got[1].dtype == jnp.bfloat16
    ours = np.abs(np.float64(got[0]) - want[0]).max()
    assert ours < rounding / 10
    assert errors(got, want)[0] < 2e-7 * mean**2


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_constant_images_have_finite_gradients(dtype):
    """Their variance can be below 0 by rounding."""
    x, scale, bias, dy = example((1, 4, 4, 8))
    for form in ONE_PASS:
        got = evaluate(form, jnp.full_like(x, 7.3, dtype), scale, bias, dy, 4)
        assert all(np.isfinite(np.float32(value)).all() for value in got)


def test_cpus_keep_the_bits_of_linen():
    """With the gradient, in both types."""
    for dtype in (jnp.float32, jnp.bfloat16):
        arrays = example((2, 4, 4, 8), dtype=dtype)
        forms = (norms.group_norm, norms.linen_norm)
        for a, b in zip(*(evaluate(form, *arrays, 4) for form in forms), strict=True):
            np.testing.assert_array_equal(a, b)


def test_accelerators_take_one_pass():
    """GPUs one whose sums over the channels of a group are slices, TPUs Linen's, CPUs two."""
    arrays = example((2, 4, 4, 8), dtype=jnp.bfloat16)[:3]

    def operations(form, platform):
        lowered = (
            jax.jit(functools.partial(form, groups=4, epsilon=EPSILON)).trace(*arrays).lower(lowering_platforms=(platform,))
        )
        return {name: lowered.as_text().count(f"stablehlo.{name}") for name in ("slice", "reduce", "subtract", "maximum")}

    assert operations(norms.group_norm, "cpu") == operations(norms.linen_norm, "cpu")
    assert operations(norms.group_norm, "tpu") == operations(LINEN_ONE_PASS, "tpu") != operations(norms.linen_norm, "tpu")
    assert operations(norms.group_norm, "cuda")["slice"] == 4


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("shape", [(3, 4, 4, 12), (2, 3, 3, 12), (1, 4, 4, 264)])
def test_norm_swish_is_their_composition(shape, dtype):
    """Outputs and all gradients against JAX's derivatives in float64: with an offset, a scale and a shift of each image."""
    generator, rows = np.random.default_rng(1), (shape[0], shape[-1])
    x, scale, bias, dy = example(shape, mean=1.0, dtype=dtype)
    modulation = [jnp.asarray(generator.normal(size=rows), jnp.float32) for _ in range(3)]

    def composed(x, scale, bias, offset, scale_by, shift):
        values = (x + offset[:, None, None]).reshape(*shape[:3], 4, -1)
        mean, var = (moment(values, axis=(1, 2, 4), keepdims=True) for moment in (jnp.mean, jnp.var))
        normalized = ((values - mean) / jnp.sqrt(var + EPSILON)).reshape(shape)
        y = normalized * (scale[None] * scale_by)[:, None, None] + (bias[None] * scale_by + shift)[:, None, None]
        return y / (1 + jnp.exp(-y))

    def fused(x, scale, bias, offset, scale_by, shift):
        arrays = {"offset": offset, "scale_by": scale_by, "shift": shift}
        return norms.norm_swish(x, scale, bias, groups=4, epsilon=EPSILON, **arrays)

    got, vjp = jax.vjp(jax.jit(fused), x, scale, bias, *modulation)
    with jax.enable_x64(True):
        want, vjp64 = jax.vjp(composed, *(jnp.asarray(np.float64(array)) for array in (x, scale, bias, *modulation)))
        want = [np.asarray(array) for array in (want, *vjp64(jnp.asarray(np.float64(dy))))]
    assert max(errors((got, *vjp(dy)), want)) < (5e-6 if dtype == jnp.float32 else 4e-3)


def test_networks_for_sampling_have_forward_derivatives():
    """The ODE likelihood linearizes them."""
    x, scale, bias, dy = example((1, 4, 4, 8))
    _, tangent = jax.jvp(lambda x: norms.one_pass_norm(x, scale, bias, groups=4, epsilon=EPSILON), (x,), (dy,))
    _, vjp = jax.vjp(lambda x: norms.training_norm(x, scale, bias, groups=4, epsilon=EPSILON), x)
    np.testing.assert_allclose(jnp.vdot(tangent, dy), jnp.vdot(vjp(dy)[0], dy), rtol=1e-4)

"""The CPU's group norm against the reference."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import cpu
from ddpm_jax.cpu.group_norm import group_norm
from ddpm_jax.models import layers


@pytest.mark.parametrize(("shape", "groups"), [((2, 4, 4, 128), 32), ((3, 8, 8, 16), 4), ((2, 2, 4, 384), 32)])
def test_output_and_gradients_match_the_reference(shape, groups):
    """Within 1e-5 of the largest value; the mean of x equals its standard deviation, which costs the fast variance digits."""
    keys = jax.random.split(jax.random.key(0), 4)
    x = 1 + jax.random.normal(keys[0], shape)
    scale, bias = (jax.random.normal(key, shape[-1:]) for key in keys[1:3])
    weights = jax.random.normal(keys[3], shape)

    def plain(x, scale, bias):
        return nn.GroupNorm(groups, epsilon=1e-6).apply({"params": {"scale": scale, "bias": bias}}, x)

    def form(x, scale, bias):
        return group_norm(x, scale, bias, groups=groups, epsilon=1e-6, reference=layers.group_norm)

    def everything(norm):
        return jax.jit(lambda *args: (norm(*args), jax.vjp(norm, *args)[1](weights)))(x, scale, bias)

    for got, want in zip(jax.tree.leaves(everything(form)), jax.tree.leaves(everything(plain)), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_other_platforms_use_the_reference():
    """Which has no matmul. bfloat16 uses it on all platforms: the fast variance would cancel."""
    norm_fn = cpu.layer_functions(upsample_conv=layers.upsample_conv, norm=layers.group_norm)["norm_fn"]
    for dtype, platform, dots in ((jnp.float32, "cpu", 2), (jnp.float32, "tpu", 0), (jnp.bfloat16, "cpu", 0)):
        x = jnp.ones((2, 4, 4, 16), dtype)
        norm = layers.Norm(4, dtype, norm_fn)
        params = norm.init(jax.random.key(0), x)
        assert jax.tree.map(jnp.shape, params) == {"params": {"group_norm": {"bias": (16,), "scale": (16,)}}}
        text = jax.jit(norm.apply).trace(params, x).lower(lowering_platforms=(platform,)).as_text()
        assert text.count("stablehlo.dot_general") == dots

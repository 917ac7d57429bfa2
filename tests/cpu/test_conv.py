"""The CPU's 3x3 convolutions against the reference: outputs, gradients, forward mode, and when they are used."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.cpu import conv
from ddpm_jax.models import layers
from ddpm_jax.runtime import mesh as meshes


def plain_upsample_conv(x, kernel):
    return layers.upsample_conv(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


FORMS = {
    "winograd": (conv.convolve, conv._conv),
    "upsampling": (functools.partial(conv.upsample_conv, reference=layers.upsample_conv), plain_upsample_conv),
}
# [H, W, C, O] as in the published networks, including single pixels and odd sizes.
SHAPES = {"winograd": [(4, 8, 128, 64), (3, 4, 64, 96)], "upsampling": [(4, 4, 32, 48), (1, 3, 8, 8)]}
CASES = [(name, shape) for name in FORMS for shape in SHAPES[name]]


def arrays(shape, dtype=jnp.float32):
    height, width, channels, features = shape
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = [(2, height, width, channels), (3, 3, channels, features)] * 2
    return [jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True)]


def assert_near(got, want):
    """Within 1e-5 of the largest value, the order of rounding errors of sums with so many terms."""
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_outputs_and_derivatives_match_the_reference(name, shape):
    x, kernel, dx, dkernel = arrays(shape)

    def everything(convolution):
        def run(x, kernel, dx, dkernel):
            out, tangent = jax.jvp(convolution, (x, kernel), (dx, dkernel))
            weights = jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape)
            return out, tangent, jax.vjp(convolution, x, kernel)[1](weights)

        return jax.jit(run)(x, kernel, dx, dkernel)

    form, plain = FORMS[name]
    assert_near(everything(form), everything(plain))


@pytest.mark.parametrize("name", FORMS)
def test_vmap_and_higher_derivatives_match_the_reference(name):
    x, kernel, dx, dkernel = arrays(SHAPES[name][1])
    form, plain = FORMS[name]

    def everything(convolution):
        def loss(x, kernel):
            return jnp.sum(jnp.sin(convolution(x[None], kernel) / 30))  # about one radian

        def jvp(x, dx):  # as the ODE likelihood: forward mode, vmapped over images and probes
            return jax.vmap(jax.linearize(lambda x: convolution(x[None], kernel), x)[1])(jnp.stack([dx, 2 * dx]))

        def run(x, kernel, dx, dkernel):
            gradient = jax.grad(loss, (0, 1))
            curvature = jax.jvp(gradient, (x[0], kernel), (dx[0], dkernel))[1]
            by_filters = jax.vmap(convolution, (None, 0))(x, jnp.stack([kernel, dkernel]))
            return jax.vmap(jvp)(x, dx), jax.vmap(gradient, (0, None))(x, kernel), curvature, by_filters

        return jax.jit(run)(x, kernel, dx, dkernel)

    assert_near(everything(form), everything(plain))


@pytest.mark.parametrize("name", FORMS)
def test_lowering_for_another_platform_uses_the_reference(name):
    x, kernel, _, _ = arrays(SHAPES[name][0])
    form, plain = FORMS[name]

    def gradients(convolution):
        return jax.jit(jax.grad(lambda x, kernel: jnp.sum(convolution(x, kernel) ** 2), (0, 1)))

    def convolutions(function, platform):
        text = function.trace(x, kernel).lower(lowering_platforms=(platform,)).as_text()
        return text.count("stablehlo.convolution")

    for platform in ("cuda", "tpu"):
        assert convolutions(gradients(form), platform) == convolutions(gradients(plain), platform) == 3
    assert convolutions(gradients(form), "cpu") > 3


@pytest.mark.parametrize("name", FORMS)
def test_convolutions_work_on_sharded_images(name):
    form, plain = FORMS[name]
    x, kernel, _, _ = arrays(SHAPES[name][0])
    mesh = meshes.make_mesh(jax.devices()[:2])
    everywhere, split = meshes.replicated(mesh), meshes.batch_sharding(mesh)

    def gradients(convolution):
        return jax.grad(lambda x, kernel: jnp.sum(jnp.sin(convolution(x, kernel) / 30)), (0, 1))

    def of_own_images(x, kernel):
        by_x, by_kernel = gradients(form)(x, jax.lax.pcast(kernel, meshes.DATA_AXIS, to="varying"))
        return by_x, jax.lax.psum(by_kernel, meshes.DATA_AXIS)

    specs = (split.spec, everywhere.spec)
    by_xla = jax.jit(gradients(form), in_shardings=(split, everywhere), out_shardings=(split, everywhere))
    by_hand = jax.jit(jax.shard_map(of_own_images, mesh=mesh, in_specs=specs, out_specs=specs))
    want = jax.jit(gradients(plain))(x, kernel)
    x, kernel = jax.device_put(x, split), jax.device_put(kernel, everywhere)
    for shared in (by_xla, by_hand):
        assert "all-gather" not in shared.lower(x, kernel).compile().as_text()
        assert_near(shared(x, kernel), want)


@pytest.mark.parametrize("name", FORMS)
def test_bfloat16_and_narrow_images_use_the_reference(name):
    form, plain = FORMS[name]
    x, kernel, _, _ = arrays(SHAPES[name][0], jnp.bfloat16)
    assert jnp.array_equal(form(x, kernel), plain(x, kernel))
    if name == "winograd":
        for shape in ((4, 8, 16, 128), (4, 6, 64, 64)):
            x, kernel, _, _ = arrays(shape)
            assert jnp.array_equal(form(x, kernel), plain(x, kernel))


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize(
    "option",
    [
        {"rhs_dilation": (2, 2)},
        {"lhs_dilation": (2, 1)},
        {"feature_group_count": 2},
        {"batch_group_count": 2},
        {"precision": "highest"},
        {"preferred_element_type": jnp.bfloat16},
        {"padding": "VALID"},
        {"padding": ((1, 1), (1, 1))},
        {"dimension_numbers": ("NCHW", "OIHW", "NCHW")},
        {"something_new": 1},
    ],
)
def test_unsupported_options_are_rejected(name, option):
    """They used to be ignored: a dilation of 2 gave the result without dilation."""
    x, kernel, _, _ = arrays((4, 4, 64, 64))
    with pytest.raises(ValueError, match=f"do not support {next(iter(option))}="):
        FORMS[name][0](x, kernel, **option)


def test_upsampling_rejects_strides_and_other_kernel_sizes():
    x, kernel, _, _ = arrays((4, 4, 4, 4))
    form, _ = FORMS["upsampling"]
    with pytest.raises(ValueError, match=r"not \(2, 2\)"):
        form(x, kernel, (2, 2))
    with pytest.raises(ValueError, match=r"and \(1, 1\)"):
        form(x, kernel[1:2, 1:2])

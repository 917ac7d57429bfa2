"""The U-Net against the published networks and its documented properties."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.models import make_network
from ddpm_jax.models.layers import Downsample, Norm, ResidualBlock, SelfAttention, Upsample, timestep_embedding
from ddpm_jax.models.unet import UNet

TINY = {"out_channels": 1, "ch": 16, "ch_mult": (1, 2), "num_res_blocks": 1, "attn_resolutions": (4,), "dropout": 0.5}


def tiny(**changes):
    return UNet(**(TINY | changes))


def inputs(batch=3, size=8, channels=1, seed=0):
    x = np.random.default_rng(seed).standard_normal((batch, size, size, channels)).astype(np.float32)
    return x, np.arange(batch, dtype=np.int32) * 400


@functools.partial(jax.jit, static_argnums=0)  # once for all tests of the same network
def init(model, x, t, labels=None):
    return model.init(jax.random.key(1), x, t, labels)["params"]


@functools.partial(jax.jit, static_argnums=0)
def apply(model, params, x, t, labels=None):
    return model.apply({"params": params}, x, t, labels)


def randomise(shapes, scale=0.3):
    """Random nonzero parameters: a network after init outputs 0, which would hide any fault."""
    rng = np.random.default_rng(2)  # JAX would compile for each shape
    return jax.tree.map(lambda leaf: (scale * rng.standard_normal(leaf.shape)).astype(np.float32), shapes)


def random_params(model, x, t, cond=None, scale=0.3):
    """As `randomise`, of a network whose initial parameters are not compiled; for one image, so that JAX traces it once."""
    return randomise(init.eval_shape(model, *jax.tree.map(lambda array: array[:1], (x, t, cond))), scale)


def random_layer(layer, *args):
    return randomise(jax.eval_shape(lambda: layer.init(jax.random.key(0), *args)))


def test_networks_without_attention_are_possible():
    """Ho's has attention in the middle whatever attn_resolutions is; mid_attention=False removes it."""
    for changes, count in (({}, 1), ({"mid_attention": False}, 0)):
        model = tiny(attn_resolutions=(), **changes)
        shapes = jax.eval_shape(functools.partial(model.init, jax.random.key(0)), *inputs())["params"]
        assert len([name for name in shapes if name.endswith("attn")]) == count
    assert tiny(mid_attention=True) == tiny()


def test_attention_is_at_the_papers_resolutions():
    shapes = init.eval_shape(UNet(), *inputs(1, 32, 3))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 35_746_307  # test_configs.py has the other networks
    attention = {name for name in shapes if name.endswith("attn")}
    assert attention == {"down1_block0_attn", "down1_block1_attn", "mid_attn"} | {f"up1_block{i}_attn" for i in range(3)}


def test_output_is_zero_after_init_and_nonzero_for_random_parameters():
    x, t = inputs()
    model = tiny()
    params = init(model, x, t)
    assert np.all(apply(model, params, x, t) == 0)
    assert np.std(apply(model, random_params(model, x, t), x, t)) > 1e-2


def test_batch_items_are_independent():
    x, t = inputs()
    model = tiny()
    params = random_params(model, x, t)
    whole = apply(model, params, x, t)
    alone = apply(model, params, x[1:2], t[1:2])
    np.testing.assert_allclose(alone, whole[1:2], rtol=1e-4, atol=1e-4)


def test_outputs_depend_on_time_and_differ_between_neighbors_in_bfloat16():
    x, _ = inputs(batch=2)
    x = np.stack([x[0], x[0]])
    model = tiny(dtype=jnp.bfloat16)
    params = random_params(model, x, np.zeros(2, np.int32))
    out = apply(model, params, x, jnp.array([995, 996], jnp.int32))
    assert not jnp.array_equal(out[0], out[1])


def test_bfloat16_is_close_to_float32_and_returns_float32():
    x, t = inputs()
    params = random_params(tiny(), x, t, scale=0.1)
    exact = apply(tiny(), params, x, t)
    rough = apply(tiny(dtype=jnp.bfloat16), params, x, t)
    assert rough.dtype == jnp.float32
    assert 0 < jnp.max(jnp.abs(rough - exact)) < 0.05 * jnp.max(jnp.abs(exact))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(init.eval_shape(tiny(dtype=jnp.bfloat16), x, t)))


def test_rematerialization_does_not_change_gradients():
    x, t = inputs()
    small = {"ch_mult": (1,), "attn_resolutions": ()}  # with attention in the middle
    params = random_params(tiny(**small), x, t, scale=0.1)

    def gradient(remat):
        model = tiny(remat=remat, **small)

        def loss(p):
            out = model.apply({"params": p}, x, t, deterministic=False, rngs={"dropout": jax.random.key(3)})
            return jnp.mean(out**2)

        return jax.jit(jax.grad(loss))

    with_remat = gradient(True)
    plain, remat = gradient(False)(params), with_remat(params)
    assert jax.tree.structure(plain) == jax.tree.structure(remat)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(remat), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    assert "remat" in str(with_remat.trace(params).jaxpr)


def test_dropout_is_active_only_in_training():
    x, t = inputs()
    model = tiny()
    params = random_params(model, x, t)

    @jax.jit
    def trained(seed):
        return model.apply({"params": params}, x, t, deterministic=False, rngs={"dropout": jax.random.key(seed)})

    assert not jnp.array_equal(trained(0), trained(1))
    assert jnp.array_equal(apply(model, params, x, t), apply(model, params, x, t))


def test_labels_change_the_output_of_a_conditional_network():
    x, t = inputs(batch=2)
    x, t = np.stack([x[0], x[0]]), np.array([5, 5], np.int32)
    model = tiny(num_classes=10)
    params = random_params(model, x, t, jnp.array([0, 1]))
    out = apply(model, params, x, t, jnp.array([0, 1]))
    assert not jnp.allclose(out[0], out[1])
    with pytest.raises(ValueError, match="got no labels"):
        apply(model, params, x, t)
    with pytest.raises(ValueError, match="got labels"):
        init(tiny(), x, t, jnp.array([0, 1]))


def test_invalid_shapes_are_rejected():
    x, t = inputs(size=6)
    with pytest.raises(ValueError, match="divisible by 4"):
        init(tiny(ch_mult=(1, 2, 2)), x, t)
    x, _ = inputs()
    with pytest.raises(ValueError, match="one time per image"):
        init(tiny(), x, jnp.zeros((1,), jnp.int32))


def test_timestep_embedding_is_sines_then_cosines_of_geometric_frequencies():
    t = jnp.array([0, 1, 999], jnp.int32)
    got = timestep_embedding(t, 8)
    frequencies = 10000.0 ** (-np.arange(4) / 3)
    want = np.concatenate([np.sin(np.outer(t, frequencies)), np.cos(np.outer(t, frequencies))], axis=1)
    np.testing.assert_allclose(got, want, atol=1e-4)
    with pytest.raises(ValueError, match="even width"):
        timestep_embedding(t, 7)


@pytest.mark.parametrize("kind", ["ddpm", "iddpm"])
@pytest.mark.parametrize("width", [16, 128])  # of configs/digits.py and cifar10.py
def test_4000_times_differ_after_rounding_to_bfloat16(kind, width):
    """The layer behind the embedding computes in `dtype`; T = 4000 is given to the network as times 0.25 apart."""
    t = jnp.arange(4000) / 4
    rounded = np.asarray(timestep_embedding(t, width, kind).astype(jnp.bfloat16), np.float32)
    assert len(np.unique(rounded, axis=0)) == 4000
    assert len(np.unique(np.asarray(t.astype(jnp.bfloat16)))) < 4000  # rounding the times themselves would not do


def test_the_embedding_of_improved_diffusion_is_cosines_then_sines_of_other_frequencies():
    t = jnp.array([0, 1, 999], jnp.int32)
    angles = np.outer(t, 10000.0 ** (-np.arange(4) / 4))
    want = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    np.testing.assert_allclose(timestep_embedding(t, 8, "iddpm"), want, atol=1e-4)


def test_defaults_of_the_options_of_published_networks_are_hos():
    ho = {"norm_epsilon": 1e-6, "downsample_padding": "same", "time_embedding": "ddpm", "resblock_updown": False}
    assert UNet(**ho, norm_groups=32, head_channels=0).groups == UNet().groups == 32
    assert UNet(**ho) == UNet()


OPTIONS = {
    "norm_epsilon": 0.1,
    "norm_groups": 8,
    "downsample_padding": "symmetric",
    "time_embedding": "iddpm",
    "time_scale": 4.0,
    "head_channels": 8,
}


@pytest.mark.parametrize("option", OPTIONS)
def test_options_change_the_output_and_no_parameter(option):
    x, t = inputs()
    model, other = tiny(), tiny(**{option: OPTIONS[option]})
    other.check((8, 8, 1))
    params = random_params(model, x, t)
    assert jax.tree.map(np.shape, random_params(other, x, t)) == jax.tree.map(np.shape, params)
    assert np.max(np.abs(apply(other, params, x, t) - apply(model, params, x, t))) > 1e-3


def test_the_time_is_scaled():
    x, t = inputs()
    params = random_params(tiny(), x, t)
    np.testing.assert_array_equal(apply(tiny(time_scale=4.0), params, x, t), apply(tiny(), params, x, 4 * t))


def test_head_channels_are_the_width_of_each_head():
    x, t = inputs(batch=1)
    by_width, by_number = tiny(head_channels=8, attn_resolutions=()), tiny(num_heads=4, attn_resolutions=())
    params = random_params(by_width, x, t)  # the middle attention has 32 channels
    np.testing.assert_array_equal(apply(by_width, params, x, t), apply(by_number, params, x, t))


def test_resampling_in_residual_blocks():
    """With identity convolutions, the block is R(x) + swish(norm(R(swish(norm(x))))), R the resampling."""
    x, _ = inputs(size=4, channels=8)
    temb = jnp.ones((3, 5))
    copy = {"kernel": jnp.zeros((3, 3, 8, 8)).at[1, 1].set(jnp.eye(8)), "bias": jnp.zeros(8)}

    def pool(x):
        return (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4

    def repeat(x):
        return np.repeat(np.repeat(x, 2, axis=1), 2, axis=2)

    for direction, resample in (("down", pool), ("up", repeat)):
        layer = ResidualBlock(8, groups=2, resample=direction)
        params = random_layer(layer, x, temb, True)
        zero = {"kernel": jnp.zeros((5, 8)), "bias": jnp.zeros(8)}
        p = params["params"] | {"conv1": copy, "conv2": copy, "temb_proj": zero}
        h = resample(jax.nn.swish(Norm(groups=2).apply({"params": p["norm1"]}, x)))
        h = jax.nn.swish(Norm(groups=2).apply({"params": p["norm2"]}, jnp.asarray(h)))
        got = layer.apply({"params": p}, x, temb, True)
        np.testing.assert_allclose(got, resample(x) + h, rtol=1e-4, atol=1e-4)


def test_a_network_that_resamples_in_residual_blocks():
    x, t = inputs(batch=1)
    model = tiny(resblock_updown=True)
    params = random_params(model, x, t)
    assert set(params["down0_downsample"]) == {"norm1", "conv1", "temb_proj", "norm2", "conv2"} == set(params["up1_upsample"])
    assert apply.eval_shape(model, params, x, t).shape == x.shape


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"downsample_padding": "valid"}, "`downsample_padding` is 'valid': it must be same or symmetric"),
        ({"time_embedding": "fourier"}, "`time_embedding` is 'fourier': it must be ddpm or iddpm"),
        ({"norm_epsilon": 0.0}, "`norm_epsilon` is 0.0: it must be above 0 and below 1"),
        ({"time_scale": 0.0}, "`time_scale` is 0.0: it must be above 0"),
        ({"norm_groups": 5}, "`norm_groups` is 5: it must be a divisor of ch=16, or 0"),
        ({"head_channels": 8, "num_heads": 2}, "`head_channels` is 8: it must be 0, or above 0 with num_heads=1"),
        ({"head_channels": 5}, "`head_channels` is 5, which does not divide the width of every attention"),
    ],
)
def test_invalid_options_are_named(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        tiny(**changes).check((8, 8, 1))


def test_attention_is_permutation_equivariant():
    """Attention has no positional encoding: permuted pixels give permuted outputs."""
    x, _ = inputs(size=4, channels=16)
    layer = SelfAttention(groups=4)
    params = random_layer(layer, x)
    order = np.random.default_rng(0).permutation(16)
    flat = x.reshape(3, 16, 16)
    out = layer.apply(params, x).reshape(3, 16, 16)
    shuffled = layer.apply(params, flat[:, order].reshape(x.shape)).reshape(3, 16, 16)
    np.testing.assert_allclose(shuffled, out[:, order], rtol=1e-4, atol=1e-4)


def test_heads_are_independent():
    """Each of four heads is single-head attention over its own channels: q, k, v are split, values concatenated."""
    x, _ = inputs(size=4, channels=16)
    layer = SelfAttention(groups=4, heads=4)
    params = random_layer(layer, x)
    p = params["params"]
    norm = Norm(groups=4).apply({"params": p["norm"]}, x).reshape(3, 16, 16)
    q, k, v = (np.asarray(norm @ p[name]["kernel"] + p[name]["bias"][None, None], np.float64) for name in "qkv")
    heads = []
    for head in range(4):
        own = slice(4 * head, 4 * head + 4)
        scores = np.exp(q[..., own] @ k[..., own].swapaxes(1, 2) / 2)  # 4 channels: scale 1/2
        heads.append(scores / scores.sum(axis=-1, keepdims=True) @ v[..., own])
    out = np.concatenate(heads, axis=-1) @ np.asarray(p["proj_out"]["kernel"]) + np.asarray(p["proj_out"]["bias"])
    np.testing.assert_allclose(layer.apply(params, x), x + out.reshape(x.shape), rtol=1e-4, atol=1e-4)


def test_time_scales_and_shifts_the_second_norm():
    """With identity convolutions, the block is x + swish(norm(swish(norm(x))) (1 + scale) + shift)."""
    x, _ = inputs(size=4, channels=8)
    temb = jnp.ones((3, 5))
    layer = ResidualBlock(8, groups=2, scale_shift=True)
    params = random_layer(layer, x, temb, True)
    copy = {"kernel": jnp.zeros((3, 3, 8, 8)).at[1, 1].set(jnp.eye(8)), "bias": jnp.zeros(8)}
    p = params["params"] | {"conv1": copy, "conv2": copy}
    projected = jax.nn.swish(temb) @ p["temb_proj"]["kernel"] + p["temb_proj"]["bias"][None]
    scale, shift = projected[:, None, None, :8], projected[:, None, None, 8:]
    h = jax.nn.swish(Norm(groups=2).apply({"params": p["norm1"]}, x))
    h = jax.nn.swish(Norm(groups=2).apply({"params": p["norm2"]}, h) * (1 + scale) + shift)
    np.testing.assert_allclose(layer.apply({"params": p}, x, temb, True), x + h, rtol=1e-4, atol=1e-4)


def test_downsampling_and_upsampling():
    x, _ = inputs(size=4, channels=2)
    kernel = jnp.zeros((3, 3, 2, 2)).at[1, 1].set(jnp.eye(2))  # with the identity convolution only resampling remains
    params = {"params": {"conv": {"kernel": kernel, "bias": jnp.zeros(2)}}}
    np.testing.assert_array_equal(Upsample().apply(params, x), np.repeat(np.repeat(x, 2, axis=1), 2, axis=2))
    # 'SAME' at stride 2 pads (0, 1): output 0 is centered on pixel 1, not on pixel 0.
    np.testing.assert_array_equal(Downsample().apply(params, x), x[:, 1::2, 1::2])
    np.testing.assert_array_equal(Downsample(padding="symmetric").apply(params, x), x[:, ::2, ::2])


# Condition images.


def test_a_condition_image_is_more_channels_of_the_input():
    """The output is that of an unconditional network of the same parameters that gets the enlarged image as channels."""
    x, t = inputs(size=8, channels=1)
    small = inputs(size=2, channels=2, seed=3)[0]
    model, plain = tiny(out_channels=1, cond_channels=2, cond_resize="nearest"), tiny(out_channels=1)
    params = random_params(model, x, t, {"image": small})
    enlarged = small.repeat(4, axis=1).repeat(4, axis=2)
    expected = apply(plain, params, np.concatenate([x, enlarged], axis=-1), t)
    np.testing.assert_allclose(apply(model, params, x, t, {"image": small}), expected, rtol=1e-4, atol=1e-4)


def test_the_noise_level_and_the_label_of_a_condition_matter():
    x, t = inputs(size=8, channels=1)
    model = tiny(out_channels=1, num_classes=3, cond_channels=1, cond_noise_level=True)
    cond = {"image": x, "label": np.zeros(3, np.int32), "noise_level": np.zeros(3, np.float32)}
    params = random_params(model, x, t, cond)
    outputs = [
        np.asarray(apply(model, params, x, t, cond | change))
        for change in ({}, {"label": np.ones(3, np.int32)}, {"noise_level": np.full(3, 0.1, np.float32)}, {"image": -x})
    ]
    assert all(np.abs(other - outputs[0]).max() > 1e-3 for other in outputs[1:])


@pytest.mark.parametrize(
    ("fields", "cond", "message"),
    [
        ({"cond_channels": 1}, None, "cond_channels=1 got no images"),
        ({}, {"image": jnp.zeros((3, 2, 2, 1))}, "cond_channels=0 got images"),
        ({"cond_channels": 2}, {"image": jnp.zeros((3, 2, 2, 1))}, r"\[B, h, w, 2\] is required"),
        ({"cond_channels": 1, "num_classes": 3}, {"image": jnp.zeros((3, 2, 2, 1))}, "num_classes=3 got no labels"),
        ({"cond_channels": 1, "cond_noise_level": True}, {"image": jnp.zeros((3, 2, 2, 1))}, "got no noise_levels"),
    ],
)
def test_conditions_must_match_the_network(fields, cond, message):
    x, t = inputs(size=8, channels=1)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: tiny(**fields).init(jax.random.key(0), x, t, cond))


def test_unknown_resize():
    with pytest.raises(ValueError, match="`cond_resize` is 'cubic': choose one of bicubic, bilinear, nearest"):
        tiny(cond_resize="cubic").check((8, 8, 1))


class OnlyClasses(nn.Module):
    out_channels: int
    num_classes: int = 0


def test_networks_without_condition_images_are_found():
    with pytest.raises(ValueError, match="OnlyClasses has no parameter 'cond_channels'"):
        make_network(f"{__name__}:OnlyClasses", out_channels=3, cond_channels=3)

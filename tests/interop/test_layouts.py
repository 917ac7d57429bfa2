"""The tables of arrays, against the networks of improved-diffusion, guided-diffusion and diffusers (tests/golden)."""

import json
import pathlib

import numpy as np
import pytest

from ddpm_jax.interop import array_table, diffusers_layout, openai_layout
from ddpm_jax.models.unet import UNet
from ddpm_jax.runtime.errors import InvalidArgumentError, InvalidDataError
from tests.interop.networks import output, relative_error, shapes_of, their_shapes
from tests.interop.random_state import random_inputs, random_state

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
OPENAI = {"norm_groups": 32, "norm_epsilon": 1e-5, "downsample_padding": "symmetric", "time_embedding": "iddpm"}
TINY = {"ch": 32, "ch_mult": (1, 2), "num_res_blocks": 1, "attn_resolutions": (4,)}
SMALLEST = UNet(ch=8, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(4,))
NETWORKS = {
    "improved_tiny": UNet(3, **TINY, **OPENAI, num_heads=4),
    "improved_tiny_classes": UNet(6, **TINY, **OPENAI, num_heads=4, scale_shift=True, num_classes=10),
    "guided_tiny": UNet(6, **TINY, **OPENAI, head_channels=16, scale_shift=True, num_classes=10, resblock_updown=True),
    "guided_tiny_new_order": UNet(6, **TINY, **OPENAI, num_heads=4, scale_shift=True),
    "tiny_ho": UNet(3, **TINY, norm_groups=8),
    "tiny_defaults": UNet(3, **TINY, **OPENAI, head_channels=8, scale_shift=True, num_classes=10),
}


def table_of(name, network, shapes):
    if name.startswith("tiny"):
        return diffusers_layout.table(network, shapes)
    return openai_layout.table(network, shapes, new_attention_order=name.endswith("new_order"))


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_equal_those_of_the_other_program(name):
    """Within 1e-5, relative, in float32; and each array is used, and comes back bit for bit."""
    network = NETWORKS[name]
    shapes = shapes_of(network, 8)
    table = table_of(name, network, shapes)
    state = random_state(their_shapes(table, shapes))
    if name.startswith("tiny"):
        theirs = json.loads(str(np.load(GOLDEN / "diffusers_networks.npz")[f"{name}_shapes"]))
        assert {key: list(value.shape) for key, value in state.items()} == theirs
    params = array_table.to_ours(table, shapes, dict(state), "file")
    assert {key: value.shape for key, value in params.items()} == shapes
    back = dict(array_table.to_theirs(table, params))
    assert back.keys() == state.keys()
    assert all(np.array_equal(back[key], state[key]) for key in state)
    x_t, t = random_inputs(8)
    golden = np.load(GOLDEN / ("diffusers_networks.npz" if name.startswith("tiny") else "openai_networks.npz"))[name]
    found = output(network, params, x_t, t, [1, 7] if network.num_classes else None)
    assert relative_error(found, golden) < 1e-5


def test_the_order_of_qkv_matters():
    network = NETWORKS["guided_tiny_new_order"]
    shapes = shapes_of(network, 8)
    per_head, joint = (openai_layout.table(network, shapes, new_attention_order=order) for order in (False, True))
    state = random_state(their_shapes(joint, shapes))
    a, b = (array_table.to_ours(table, shapes, dict(state), "file") for table in (per_head, joint))
    differing = [name for name in a if not np.array_equal(a[name], b[name])]
    assert {name.split("/")[1] for name in differing} == {"q", "k", "v"}
    one_head = network.clone(num_heads=1)
    a, b = (openai_layout.table(one_head, shapes, new_attention_order=order) for order in (False, True))
    assert a == b


def test_old_names_of_attentions():
    names = {"mid_block.attentions.0.query.weight": 1, "up_blocks.0.attentions.1.proj_attn.bias": 2, "conv_in.weight": 3}
    assert diffusers_layout.current_names(names) == {
        "mid_block.attentions.0.to_q.weight": 1,
        "up_blocks.0.attentions.1.to_out.0.bias": 2,
        "conv_in.weight": 3,
    }


def smallest_state():
    shapes = shapes_of(SMALLEST, 8)
    table = diffusers_layout.table(SMALLEST, shapes)
    return table, shapes, random_state(their_shapes(table, shapes))


def test_half_precision_becomes_float32():
    table, shapes, state = smallest_state()
    params = array_table.to_ours(table, shapes, {name: array.astype(np.float16) for name, array in state.items()}, "file")
    assert {array.dtype for array in params.values()} == {np.dtype(np.float32)}


def test_missing_unknown_and_misshaped_arrays_are_all_named():
    table, shapes, state = smallest_state()
    del state["conv_in.weight"], state["conv_in.bias"]
    state["extra.one"] = state["extra.two"] = np.zeros(3, np.float32)
    state["conv_out.weight"] = state["conv_out.weight"][:2]
    with pytest.raises(InvalidDataError) as error:
        array_table.to_ours(table, shapes, state, "weights.bin")
    for part in (
        "weights.bin does not hold the weights of the network of the config",
        "2 arrays are missing: conv_in.bias, conv_in.weight",
        "2 arrays are not in this network: extra.one, extra.two",
        "1 arrays are of another shape: conv_out.weight [2, 8, 3, 3] instead of [3, 8, 3, 3]",
    ):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_rejected(value):
    table, shapes, state = smallest_state()
    state["conv_out.weight"][0, 1, 1, 1] = value
    with pytest.raises(InvalidDataError, match=r"the array conv_out\.weight holds NaN or infinity"):
        array_table.to_ours(table, shapes, state, "file")


def test_numbers_too_large_for_float32_are_rejected():
    table, shapes, state = smallest_state()
    state = {name: array.astype(np.float64) for name, array in state.items()}
    state["conv_out.weight"][0, 1, 1, 1] = 1e39
    with pytest.raises(InvalidDataError, match=r"the array conv_out\.weight holds numbers too large for float32"):
        array_table.to_ours(table, shapes, state, "file")


def test_arrays_of_integers_are_rejected():
    table, shapes, state = smallest_state()
    state["conv_out.bias"] = np.ones(3, np.int8)
    with pytest.raises(InvalidDataError, match=r"the array conv_out\.bias has the type int8"):
        array_table.to_ours(table, shapes, state, "file")


def test_networks_that_the_others_do_not_have_are_rejected():
    with pytest.raises(InvalidArgumentError, match="`resblock_updown` is True"):
        diffusers_layout.table(SMALLEST.clone(resblock_updown=True), {})
    with pytest.raises(InvalidArgumentError, match="`mid_attention` is False"):
        openai_layout.table(SMALLEST.clone(mid_attention=False), {})

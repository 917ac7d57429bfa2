"""Names of the arrays of improved-diffusion's and guided-diffusion's `UNetModel` for the parameters of our U-Net.

    theirs                                              ours
    input_blocks.0.0                                    conv_in
    time_embed.0, .2; label_emb; out.0, .2              temb_dense0, temb_dense1; class_embed; norm_out, conv_out
    input_blocks.I.0, .1   I = 1 + L (n + 1) + N        downL_blockN, downL_blockN_attn
    input_blocks.I.0.op    I = (L + 1)(n + 1)           downL_downsample/conv
    middle_block.0, .1, .2                              mid_block0, mid_attn, mid_block1
    output_blocks.I.0, .1  I = (levels-1-L)(n+1) + N    upL_blockN, upL_blockN_attn
    output_blocks.I.J.conv  the last block of a level   upL_upsample/conv       J = 2 after an attention, else 1

with n residual blocks per level. With resblock_updown (guided-diffusion) the resampling is a residual block at the same
place. qkv is one 1x1 convolution [3 C, C, 1] whose rows are (head, q k v, channel), or (q k v, head, channel) in networks
with guided-diffusion's use_new_attention_order, such as its ImageNet 64 one. No array shows which.
"""

import re

from ddpm_jax.interop import array_table
from ddpm_jax.interop.array_table import Entry, Shapes
from ddpm_jax.models.unet import UNet
from ddpm_jax.runtime.errors import InvalidArgumentError

_BLOCK = {
    "norm1/group_norm": "in_layers.0",
    "conv1": "in_layers.2",
    "temb_proj": "emb_layers.1",
    "norm2/group_norm": "out_layers.0",
    "conv2": "out_layers.3",
    "shortcut": "skip_connection",
}
_ATTENTION = {"norm/group_norm": "norm", "proj_out": "proj_out"}
_FIXED = {
    "conv_in": "input_blocks.0.0",
    "norm_out/group_norm": "out.0",
    "conv_out": "out.2",
    "temb_dense0": "time_embed.0",
    "temb_dense1": "time_embed.2",
    "class_embed": "label_emb",
}
_WEIGHTS = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}


def table(network: UNet, shapes: Shapes, *, new_attention_order: bool = False) -> list[Entry]:
    """The arrays of `UNetModel` for our network.

    Args:
      network: the U-Net.
      shapes: of its parameters, flat.
      new_attention_order: whether the rows of qkv are in guided-diffusion's new order.

    Raises:
      InvalidArgumentError: the network has no attention in the middle, which theirs always has.
    """
    if not network.mid_attention:
        raise InvalidArgumentError("`mid_attention` is False: the networks of improved- and guided-diffusion have it")
    entries = []
    for name, shape in shapes.items():
        module, _, kind = name.rpartition("/")
        block, _, inner = module.partition("/")
        if block.endswith("attn"):
            layout = array_table.layout_of(name, shape, array_table.POINTWISE_1D)
            if inner in ("q", "k", "v"):
                if inner == "q":  # its entry holds all three
                    ours = tuple(f"{block}/{part}/{kind}" for part in "qkv")
                    heads = 1 if new_attention_order else network.heads(shape[-1])
                    entries.append(Entry(f"{_place(network, shapes, block)}.qkv.{_WEIGHTS[kind]}", ours, layout, heads))
                continue
        else:
            dense = array_table.POINTWISE_2D if inner == "shortcut" else array_table.DENSE
            layout = array_table.layout_of(name, shape, dense)
        entries.append(Entry(f"{_module(network, shapes, module)}.{_WEIGHTS[kind]}", (name,), layout))
    return entries


def _module(network: UNet, shapes: Shapes, name: str) -> str:
    """Their module for one of ours."""
    if name in _FIXED:
        return _FIXED[name]
    block, _, inner = name.partition("/")
    place = _place(network, shapes, block)
    if block.endswith("_attn"):
        return f"{place}.{_ATTENTION[inner]}"
    if inner == "conv":  # strided, or after upsampling
        return f"{place}.{'op' if block.startswith('down') else 'conv'}"
    return f"{place}.{_BLOCK[inner]}"


def _place(network: UNet, shapes: Shapes, block: str) -> str:
    """Their module for one of our blocks, attentions and resampling layers."""
    if block.startswith("mid_"):
        return f"middle_block.{['mid_block0', 'mid_attn', 'mid_block1'].index(block)}"
    found = re.fullmatch(r"(down|up)(\d+)_(?:block(\d+)(_attn)?|(?:down|up)sample)", block)
    assert found, f"{block} is not a block of the U-Net"
    direction, level, number, attention = found[1], int(found[2]), found[3], bool(found[4])
    per_level = network.num_res_blocks + 1
    if direction == "down":
        index = 1 + level * per_level + (int(number) if number else network.num_res_blocks)
        return f"input_blocks.{index}.{int(attention)}"
    first = (len(network.ch_mult) - 1 - level) * per_level
    if number:
        return f"output_blocks.{first + int(number)}.{int(attention)}"
    last = f"up{level}_block{network.num_res_blocks}_attn"
    return f"output_blocks.{first + network.num_res_blocks}.{2 if any(name.startswith(last) for name in shapes) else 1}"

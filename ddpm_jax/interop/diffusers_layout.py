"""Names of the arrays of diffusers' `UNet2DModel` for the parameters of our U-Net.

    theirs                                              ours
    conv_in, conv_norm_out, conv_out                    conv_in, norm_out/group_norm, conv_out
    time_embedding.linear_1, .linear_2                  temb_dense0, temb_dense1
    class_embedding                                     class_embed
    down_blocks.L.resnets.N, .attentions.N              downL_blockN, downL_blockN_attn
    down_blocks.L.downsamplers.0.conv                   downL_downsample/conv
    mid_block.resnets.0, .attentions.0, .resnets.1      mid_block0, mid_attn, mid_block1
    up_blocks.(levels - 1 - L).resnets.N, ...           upL_blockN, ..., upL_upsample/conv

They count the levels of the decoder from the deepest one, we by resolution. With resnet_time_scale_shift=scale_shift their
attention in the middle has a group norm, as ours, only if attn_norm_num_groups is set.
"""

import re
from collections.abc import Mapping

from ddpm_jax.interop import array_table
from ddpm_jax.interop.array_table import Entry, Shapes
from ddpm_jax.models.unet import UNet
from ddpm_jax.runtime.errors import InvalidArgumentError

_RESNET = {
    "norm1/group_norm": "norm1",
    "conv1": "conv1",
    "temb_proj": "time_emb_proj",
    "norm2/group_norm": "norm2",
    "conv2": "conv2",
    "shortcut": "conv_shortcut",
}
_ATTENTION = {"norm/group_norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
_FIXED = {
    "conv_in": "conv_in",
    "norm_out/group_norm": "conv_norm_out",
    "conv_out": "conv_out",
    "temb_dense0": "time_embedding.linear_1",
    "temb_dense1": "time_embedding.linear_2",
    "class_embed": "class_embedding",
}
_WEIGHTS = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}
# Names of attentions in files written before diffusers 0.17.
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def table(network: UNet, shapes: Shapes) -> list[Entry]:
    """The arrays of `UNet2DModel` for our network.

    Args:
      network: the U-Net.
      shapes: of its parameters, flat.

    Raises:
      InvalidArgumentError: the network resamples in residual blocks, which this layout does not have.
    """
    if network.resblock_updown:
        raise InvalidArgumentError("`resblock_updown` is True: diffusers' UNet2DModel is read and written without it")
    levels, entries = len(network.ch_mult), []
    for name, shape in shapes.items():
        module, _, kind = name.rpartition("/")
        # The shortcut is a 1x1 convolution there; other dense layers are dense there too.
        dense = array_table.POINTWISE_2D if module.endswith("/shortcut") else array_table.DENSE
        layout = array_table.layout_of(name, shape, dense)
        entries.append(Entry(f"{_module(module, levels)}.{_WEIGHTS[kind]}", (name,), layout))
    return entries


def _module(name: str, levels: int) -> str:
    """Their module for one of ours."""
    if name in _FIXED:
        return _FIXED[name]
    block, _, inner = name.partition("/")
    if found := re.fullmatch(r"mid_(block([01])|attn)", block):
        return f"mid_block.resnets.{found[2]}.{_RESNET[inner]}" if found[2] else f"mid_block.attentions.0.{_ATTENTION[inner]}"
    found = re.fullmatch(r"(down|up)(\d+)_(?:block(\d+)(_attn)?|(?:down|up)sample)", block)
    assert found, f"{name} is not a module of the U-Net"
    direction, level, number, attention = found[1], int(found[2]), found[3], found[4]
    where = f"{direction}_blocks.{level if direction == 'down' else levels - 1 - level}"
    if number is None:
        return f"{where}.{direction}samplers.0.{inner}"
    return f"{where}.attentions.{number}.{_ATTENTION[inner]}" if attention else f"{where}.resnets.{number}.{_RESNET[inner]}"


def current_names(state: Mapping[str, object]) -> dict[str, object]:
    """The same arrays, with the names that attentions have since diffusers 0.17."""
    return {
        re.sub(
            r"(\.attentions\.\d+\.)(query|key|value|proj_attn)\.", lambda match: f"{match[1]}{_OLD_ATTENTION[match[2]]}.", name
        ): array
        for name, array in state.items()
    }

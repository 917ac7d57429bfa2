"""Names of operations become layers and kinds."""

import re

import pytest

from ddpm_jax.planning import hlo_costs, hlo_text, layers

STACKS = """HloModule jit_step, is_scheduled=true

FileNames
1 "/a/ddpm_jax/training/step.py"
2 "/a/ddpm_jax/training/ema.py"
3 "/a/site-packages/optax/transforms/_clipping.py"
4 "/a/ddpm_jax/training/grad_groups.py"

FunctionNames
1 "train_step"
2 "update_ema"
3 "clip_by_global_norm.<locals>.update_fn"
4 "norm"

FileLocations
1 {file_name_id=1 function_name_id=1 line=1 end_line=1 column=1 end_column=2}
2 {file_name_id=2 function_name_id=2 line=1 end_line=1 column=1 end_column=2}
3 {file_name_id=3 function_name_id=3 line=1 end_line=1 column=1 end_column=2}
4 {file_name_id=4 function_name_id=4 line=1 end_line=1 column=1 end_column=2}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}
3 {file_location_id=3 parent_frame_id=2}
4 {file_location_id=4 parent_frame_id=1}
5 {file_location_id=4 parent_frame_id=3}

%fused_ema (a: f32[4]) -> f32[4] {
  %a = f32[4]{0} parameter(0)
  ROOT %add.1 = f32[4]{0} add(%a, %a), metadata={op_name="jit(step)/add" stack_frame_id=2}
}

ENTRY %main (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  %copy.1 = f32[4]{0} copy(%p), metadata={op_name="jit(step)/jvp(UNet)/conv_in/add"}
  %norm = f32[4]{0} multiply(%copy.1, %copy.1), metadata={op_name="jit(step)/mul" stack_frame_id=3}
  %noise = f32[4]{0} add(%norm, %norm), metadata={op_name="jit(step)/jit(_normal)/add" stack_frame_id=1}
  ROOT %fusion.1 = f32[4]{0} fusion(%noise), kind=kLoop, calls=%fused_ema
}
"""


@pytest.mark.parametrize("frame", [4, 5])  # called by the step, and by the optimizer
def test_norms_are_one_kind_wherever_they_are_called(frame):
    module = hlo_text.parse(STACKS.replace("stack_frame_id=3", f"stack_frame_id={frame}"))
    kinds = {kernel.instruction.name: layers.describe(module, kernel)[0] for kernel in hlo_costs.kernels(module)}
    assert kinds["norm"] == "norms of gradients and parameters, clipping"


def test_what_is_outside_of_the_network_is_named_by_its_functions():
    module = hlo_text.parse(STACKS)
    assert module.frames[3] == ("_clipping.py:clip_by_global_norm.<locals>.update_fn", "step.py:train_step")
    kinds = {kernel.instruction.name: layers.describe(module, kernel)[0] for kernel in hlo_costs.kernels(module)}
    assert kinds == {
        "copy.1": layers.COPIES,
        "norm": "norms of gradients and parameters, clipping",
        "noise": "random numbers",
        "fusion.1": "optimizer and EMA",
    }


# Instructions without a name are the compiler's: a product between a layer and a cast, copies, and one far from all others.
UNNAMED = """HloModule jit_step, is_scheduled=true

ENTRY %main (p: f32[4,4], q: f32[4,4]) -> (f32[4,4], f32[4,4]) {
  %p = f32[4,4]{1,0} parameter(0)
  %q = f32[4,4]{1,0} parameter(1)
  %cast.1 = f32[4,4]{1,0} negate(%p), metadata={op_name="jit(step)/convert"}
  %dot.1 = f32[4,4]{1,0} dot(%cast.1, %p), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %copy.1 = f32[4,4]{0,1} copy(%dot.1)
  %add.1 = f32[4,4]{1,0} add(%copy.1, %p), metadata={op_name="jit(step)/transpose(jvp(UNet))/conv_in/add"}
  %copy.2 = f32[4,4]{1,0} copy(%q)
  ROOT %tuple.1 = (f32[4,4]{1,0}, f32[4,4]{1,0}) tuple(%add.1, %copy.2)
}
"""


def test_an_operation_of_the_compiler_is_named_after_its_neighbors():
    module = hlo_text.parse(UNNAMED)
    found = {kernel.instruction.name: layers.describe(module, kernel) for kernel in hlo_costs.kernels(module)}
    assert found["copy.1"] == (layers.COPIES, "conv_in (gradient)")
    assert found["dot.1"] == ("convolutions and matrix products", "jit(step)/convert")
    module = hlo_text.parse(re.sub(r", metadata=\{.*?\}", "", UNNAMED))
    found = {kernel.instruction.name: layers.describe(module, kernel) for kernel in hlo_costs.kernels(module)}
    assert found["dot.1"][1] == "dot of the compiler"


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("jit(step)/jvp(UNet)/down0_block1/conv1/conv_general_dilated", "down0_block1/conv1"),
        ("jit(step)/transpose(jvp(UNet))/up0_block0/norm1/group_norm/GroupNorm/mul", "up0_block0/norm1/group_norm/GroupNorm"),
        ("jit(step)/jvp(UNet)/down0_block0/dropout/jit(_bernoulli)/jit(_uniform)/add", "down0_block0/dropout"),
        ("jit(advance)/jit(shard_map)/while/body/closed_call/UNet/conv_in/dot", "UNet/conv_in"),
        ("jit(step)/jvp(UNet)/norm_out/group_norm/branch_0_fun/dot_general", "norm_out/group_norm"),
        ("jit(step)/jvp(UNet)/up1_upsample/conv/shard_map/conv/add", "up1_upsample/conv"),
        ("jit(step)/add", ""),
        ("", ""),
    ],
)
def test_layers(name, layer):
    assert layers.layer_of(name) == layer


@pytest.mark.parametrize(
    ("name", "has_flops", "kind"),
    [
        ("jit(step)/jvp(UNet)/conv_in/conv_general_dilated", True, "convolutions and matrix products"),
        ("jit(step)/jvp(UNet)/mid_attn/q/dot_general", True, "matrix products of attention"),
        ("jit(step)/jvp(UNet)/mid_attn/norm/group_norm/dot_general", True, "normalization"),
        ("jit(step)/jvp(UNet)/norm_out/group_norm/dot_general", True, "normalization"),
        ("jit(step)/jvp(UNet)/mid_attn/reduce_max", False, "attention"),
        ("jit(step)/jvp(UNet)/up0_block0/norm1/group_norm/GroupNorm/mul", False, "normalization"),
        ("jit(step)/jvp(UNet)/up0_block0/dropout/jit(_bernoulli)/lt", False, "dropout"),
        ("jit(step)/jvp(UNet)/up0_block0/jit(silu)/mul", False, "activations, sums and concatenations"),
    ],
)
def test_kinds_in_the_network(name, has_flops, kind):
    assert layers.kind_of(name, layers.layer_of(name), (), {"add"}, has_flops=has_flops) == kind


def test_casts_of_sharded_parameters_are_not_activations():
    """The network is called by a function of the same file."""
    name = "jit(step)/shard_map/jvp()/convert_element_type"
    frames = ("device_grads.py:_gather", "device_grads.py:_on_device.<locals>.on_device", "step.py:step")
    assert layers.kind_of(name, "", frames, {"convert"}, has_flops=False) == "casts of parameters"
    frames = ("unet.py:__call__", *frames[1:])
    assert layers.kind_of(name, "", frames, {"convert"}, has_flops=False) == "activations, sums and concatenations"


def test_matrix_products_of_an_optimizer_are_its_own():
    frames = ("_muon.py:_newton_schulz_iterator", "_muon.py:scale_by_muon.<locals>.update_fn", "step.py:train_step")
    assert layers.kind_of("jit(step)/while/body/dot_general", "", frames, {"dot"}, has_flops=True) == "optimizer and EMA"
    assert layers.kind_of("jit(step)/dot_general", "", frames[2:], {"dot"}, has_flops=True).startswith("convolutions")

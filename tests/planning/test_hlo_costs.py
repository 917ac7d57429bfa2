"""FLOPs, bytes, launches and collectives of small HLO texts whose costs are known, and of programs that XLA counts itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.planning import hlo_costs, hlo_text

LOOP = """HloModule jit_f, is_scheduled=true, entry_computation_layout={(f32[8,16]{1,0})->f32[8,16]{1,0}}

%fused_add (param_0.1: f32[8,16], param_1.2: f32[100,8,16]) -> f32[8,16] {
  %param_0.1 = f32[8,16]{1,0} parameter(0)
  %param_1.2 = f32[100,8,16]{2,1,0} parameter(1)
  %c = s32[] constant(0)
  %slice.1 = f32[1,8,16]{2,1,0} dynamic-slice(%param_1.2, %c, %c, %c), dynamic_slice_sizes={1,8,16}
  %bitcast.1 = f32[8,16]{1,0} bitcast(%slice.1)
  ROOT %add.1 = f32[8,16]{1,0} add(%param_0.1, %bitcast.1), metadata={op_name="jit(f)/while/body/add"}
}

%body (arg: (s32[], f32[8,16], f32[100,8,16])) -> (s32[], f32[8,16], f32[100,8,16]) {
  %arg = (s32[], f32[8,16]{1,0}, /*index=2*/f32[100,8,16]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%arg), index=0
  %x = f32[8,16]{1,0} get-tuple-element(%arg), index=1
  %table = f32[100,8,16]{2,1,0} get-tuple-element(%arg), index=2
  %fusion.1 = f32[8,16]{1,0} fusion(%x, %table), kind=kLoop, calls=%fused_add, metadata={op_name="jit(f)/while/body/add"}
  ROOT %tuple.1 = (s32[], f32[8,16]{1,0}, f32[100,8,16]{2,1,0}) tuple(%i, %fusion.1, %table)
}

%condition (arg.1: (s32[], f32[8,16], f32[100,8,16])) -> pred[] {
  %arg.1 = (s32[], f32[8,16]{1,0}, f32[100,8,16]{2,1,0}) parameter(0)
  ROOT %true = pred[] constant(true)
}

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add.2 = f32[] add(%a, %b)
}

ENTRY %main.1 (p: (s32[], f32[8,16], f32[100,8,16])) -> f32[8,16] {
  %p = (s32[], f32[8,16]{1,0}, f32[100,8,16]{2,1,0}) parameter(0)
  %while.1 = (s32[], f32[8,16]{1,0}, f32[100,8,16]{2,1,0}) while(%p), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"25"}}
  %y = f32[8,16]{1,0} get-tuple-element(%while.1), index=1
  %start = f32[8,16]{1,0} all-reduce-start(%y), channel_id=1, replica_groups={{0,1}}, to_apply=%sum
  ROOT %done = f32[8,16]{1,0} all-reduce-done(%start)
}
"""


def cudnn(target: str, result: str, operands: str) -> str:
    """A library call of a convolution of 4 images of 8x8 pixels and 3 channels to 5 channels."""
    head = "HloModule jit_g\n\nENTRY %main (x: f32[1], y: f32[1]) -> f32[1] {\n"
    first, second = operands.split()
    return head + (
        f"  %x = {first}{{3,2,1,0}} parameter(0)\n  %y = {second}{{3,2,1,0}} parameter(1)\n"
        f"  ROOT %conv = ({result}{{3,2,1,0}}, u8[100]{{0}}) custom-call(%x, %y), window={{size=3x3 pad=1_1x1_1}}, "
        f'dim_labels=b01f_o01i->b01f, custom_call_target="{target}"\n}}\n'
    )


def test_loops_are_counted_by_their_iterations_and_sliced_operands_by_their_slices():
    module = hlo_text.parse(LOOP)
    fusion, all_reduce = hlo_costs.kernels(module)
    assert (fusion.instruction.name, fusion.repeats, fusion.flops) == ("fusion.1", 25, 0)
    assert fusion.bytes == 3 * 8 * 16 * 4  # x, one row of the table, the result
    assert fusion.main.op_name == "jit(f)/while/body/add"
    assert all_reduce.instruction.opcode == "all-reduce-start"
    (collective,) = hlo_costs.collectives(module)
    assert (collective.opcode, collective.repeats, collective.bytes) == ("all-reduce", 1, 8 * 16 * 4)


SQUARES = """HloModule jit_h, is_scheduled=true

%fused (v: f32[100], w: f32[100]) -> (f32[10], f32[10]) {
  %v = f32[100]{0} parameter(0)
  %w = f32[100]{0} parameter(1)
  %first = f32[10]{0} slice(%v), slice={[20:30]}
  %square = f32[100]{0} multiply(%v, %v)
  %second = f32[10]{0} slice(%square), slice={[20:30]}
  %half = bf16[100]{0} convert(%w)
  %third = bf16[5]{0} slice(%half), slice={[0:5]}
  %fourth = bf16[5]{0} slice(%half), slice={[5:10]}
  %both = bf16[10]{0} concatenate(%third, %fourth), dimensions={0}
  %sum = f32[10]{0} add(%second, %both)
  ROOT %two = (f32[10]{0}, f32[10]{0}) tuple(%first, %sum)
}

ENTRY %main (a: f32[100], b: f32[100]) -> (f32[10], f32[10]) {
  %a = f32[100]{0} parameter(0)
  %b = f32[100]{0} parameter(1)
  ROOT %fusion.2 = (f32[10]{0}, f32[10]{0}) fusion(%a, %b), kind=kLoop, calls=%fused
}
"""


def test_a_slice_of_a_square_reads_a_slice():
    """As Adam does of a vector of gradients: of the vector and of its square the same elements, which are read once."""
    (fusion,) = hlo_costs.kernels(hlo_text.parse(SQUARES))
    assert fusion.bytes == 4 * (10 + 10) + 4 * (10 + 10)
    reduced = SQUARES.replace("multiply(%v, %v)", "sort(%v), dimensions={0}")
    (fusion,) = hlo_costs.kernels(hlo_text.parse(reduced))
    assert fusion.bytes == 4 * (100 + 10) + 4 * (10 + 10)


@pytest.mark.parametrize(
    ("target", "result", "operands"),
    [
        ("__cudnn$convForward", "f32[4,8,8,5]", "f32[4,8,8,3] f32[5,3,3,3]"),
        ("__cudnn$convBackwardInput", "f32[4,8,8,3]", "f32[4,8,8,5] f32[5,3,3,3]"),
        ("__cudnn$convBackwardFilter", "f32[5,3,3,3]", "f32[4,8,8,3] f32[4,8,8,5]"),
    ],
)
def test_a_library_call_of_a_convolution_counts_as_the_convolution(target, result, operands):
    (kernel,) = hlo_costs.kernels(hlo_text.parse(cudnn(target, result, operands)))
    inside = 2 * 7 + 8  # of 3 x 8 positions of the kernel along one side, two are padding
    assert kernel.flops == 2 * 4 * inside**2 * 3 * 5


def test_of_two_branches_the_longer_one_is_counted():
    text = """HloModule jit_g

%nothing (a: f32[4]) -> f32[4] {
  ROOT %a = f32[4]{0} parameter(0)
}

%twice (b: f32[4]) -> f32[4] {
  %b = f32[4]{0} parameter(0)
  %sum.1 = f32[4]{0} add(%b, %b)
  ROOT %sum.2 = f32[4]{0} add(%sum.1, %sum.1)
}

ENTRY %main (i: s32[], x: f32[4]) -> f32[4] {
  %i = s32[] parameter(0)
  %x = f32[4]{0} parameter(1)
  ROOT %cond = f32[4]{0} conditional(%i, %x, %x), branch_computations={%nothing, %twice}
}
"""
    assert [kernel.instruction.name for kernel in hlo_costs.kernels(hlo_text.parse(text))] == ["sum.1", "sum.2"]


def test_a_cublas_call_counts_as_the_matrix_product():
    text = (
        "HloModule jit_g\n\nENTRY %main (x: bf16[2,8,64], y: bf16[2,16,64]) -> bf16[2,8,16] {\n"
        "  %x = bf16[2,8,64]{2,1,0} parameter(0)\n  %y = bf16[2,16,64]{2,1,0} parameter(1)\n"
        "  ROOT %gemm = (bf16[2,8,16]{2,1,0}, s8[4096]{0}) custom-call(%x, %y), "
        'custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":{"dot_dimension_numbers":'
        '{"lhs_contracting_dimensions":["2"],"rhs_contracting_dimensions":["2"]}}}\n}\n'
    )
    (kernel,) = hlo_costs.kernels(hlo_text.parse(text))
    assert kernel.flops == 2 * 2 * 8 * 16 * 64


@pytest.mark.parametrize(
    "options",
    [
        {"stride": 1, "padding": "SAME"},
        {"stride": 2, "padding": ((0, 1), (0, 1))},
        {"stride": 1, "padding": "VALID", "groups": 2},
    ],
    ids=["same", "strided", "grouped"],
)
def test_flops_of_convolutions_and_their_gradients_are_those_of_xla(options):
    groups = options.get("groups", 1)

    def loss(x, kernel):
        y = jax.lax.conv_general_dilated(
            x,
            kernel,
            (options["stride"],) * 2,
            options["padding"],
            feature_group_count=groups,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return jnp.sum(y * y)

    x, kernel = jnp.ones((2, 8, 8, 4)), jnp.ones((3, 3, 4 // groups, 6))
    lowered = jax.jit(jax.grad(loss, (0, 1))).lower(x, kernel)
    module = hlo_text.parse(lowered.compile().as_text())
    counted = sum(kernel.repeats * kernel.flops for kernel in hlo_costs.kernels(module))
    elementwise = 3 * 2 * 8 * 8 * 6  # at most: the square, its sum and their gradients
    assert counted <= lowered.cost_analysis()["flops"] <= counted + elementwise


def test_flops_of_matrix_products_are_those_of_xla():
    lowered = jax.jit(lambda a, b: jnp.einsum("bij,bkj->bik", a, b)).lower(np.ones((3, 8, 16)), np.ones((3, 4, 16)))
    counted = sum(kernel.flops for kernel in hlo_costs.kernels(hlo_text.parse(lowered.compile().as_text())))
    assert counted == 2 * 3 * 8 * 16 * 4


@pytest.mark.parametrize(
    ("text", "bytes"), [("bf16[3,4]", 24), ("f8e4m3fn[3]", 3), ("pred[]", 1), ("s4[6]", 3), ("f32[0]", 0), ("c64[2]", 16)]
)
def test_bytes_of_arrays(text, bytes):
    name, _, rest = text.partition("[")
    shape = tuple(int(each) for each in rest.rstrip("]").split(",") if each)
    assert hlo_text.Array(name, shape).bytes == bytes

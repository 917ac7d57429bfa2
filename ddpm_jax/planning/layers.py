"""Which layer of the network, or part of the training step, an operation of a compiled program comes from.

The names are those that JAX gives its operations, such as jit(step)/transpose(jvp(UNet))/down0_block1/conv1/dot_general; what
is outside of the network is recognized by the Python functions that made it.
"""

import functools
import itertools
import re
from collections.abc import Collection

from ddpm_jax.planning.hlo_costs import Kernel
from ddpm_jax.planning.hlo_text import Instruction, Module

COPIES = "copies, transposes and slices"
OTHER = "other"
MAX_DISTANCE = 4  # instructions between an operation of the compiler and one of the program
_TRANSFORMATION = re.compile(
    r"(jit|jvp|transpose|vmap|pjit|remat|checkpoint|shard_map)(\(.*\))?|"
    r"while|body|cond|branch_\d+_fun|closed_call|rematted_computation|custom_vjp_call|.*<(locals|lambda)>.*"
)
# Parts of a path in the network -> kind; the first that is found counts.
_IN_NETWORK = (
    (r"dropout", "dropout"),
    (r"norm|GroupNorm|LayerNorm|BatchNorm", "normalization"),
    (r"attn|attention", "attention"),
    (r"temb|class_embed|embed", "time and class embedding"),
    (r"upsample|downsample|conv|shortcut|dense", "biases and reshapes of convolutions and dense layers"),
)
# Function, or file and function, of the Python program -> kind; the first that is found in the stack counts.
_IN_STEP = (
    (r":clip|:tree_norm|:global_norm|:tree_sum|^grad_groups\.py:norm", "norms of gradients and parameters, clipping"),
    (r"^(ema|ema_tracker|optimizer|update|transform|_combining|numerics)\.py:|\bupdate_fn\b", "optimizer and EMA"),
)
_RANDOM = re.compile(r"threefry|random|_bernoulli|_uniform|_normal|_randint|permutation|choice")
_MOVES = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast"}
_MOVES |= {"copy", "copy-start", "transpose", "reshape", "slice"}


def describe(module: Module, kernel: Kernel) -> tuple[str, str]:
    """Kind of operation, such as convolution, and where it is from: down0_block1/conv1 (gradient), or a function.

    An operation that the compiler has made is from where the nearest operation is that reads its result or that it reads; if
    the compiler has made these too, it has the name of its own kind in the compiler.
    """
    opcodes = {part.opcode for part in module.inside(kernel.instruction)}
    name, frames = kernel.main.op_name, module.frames.get(kernel.main.frame, ())
    layer = layer_of(name)
    kind = kind_of(name, layer, frames, opcodes, has_flops=kernel.flops > 0)
    if not name:
        name, layer, frames = _nearest(module, kernel.instruction)
    if not name:
        return kind, f"{kernel.main.opcode} of the compiler"
    network = re.search(r"jvp\((\w+)\)", name)
    where = layer
    if not layer and network:
        where = f"{network[1]}/{name.rpartition('/')[2]}"
    elif not layer and name:
        where = frames[0].partition(":")[2].partition(".<locals>")[0] if frames else name
    return kind, f"{where} (gradient)" if where and "transpose(" in name else where


def _nearest(module: Module, instruction: Instruction) -> tuple[str, str, tuple[str, ...]]:
    """Name, layer and frames of the nearest operation with a name; in the network if one as near is. "" and () without one."""
    neighbors, seen, reached = _neighbors(module), {instruction.name}, [instruction]
    for _ in range(MAX_DISTANCE):
        reached = [other for each in reached for other in neighbors[each.name] if other.name not in seen]
        seen |= {each.name for each in reached}
        named = [(each.op_name, layer_of(each.op_name), module.frames.get(each.frame, ())) for each in reached if each.op_name]
        if named:
            return next((found for found in named if found[1]), named[0])
    return "", "", ()


@functools.lru_cache(maxsize=1)
def _neighbors(module: Module) -> dict[str, list[Instruction]]:
    """Name of an instruction -> those that read it, then those that it reads."""
    readers: dict[str, list[Instruction]] = {}
    read: dict[str, list[Instruction]] = {}
    for instructions in module.computations.values():
        by_name = {each.name: each for each in instructions}
        for each in instructions:
            read[each.name] = [by_name[operand] for operand in each.operands if operand in by_name]
            for operand in read[each.name]:
                readers.setdefault(operand.name, []).append(each)
    return {name: readers.get(name, []) + operands for name, operands in read.items()}


def layer_of(op_name: str) -> str:
    """The path of the module in the network: without transformations, functions and the operation at the end.

    A layer that `models.tpu_layers` replaces has its name twice.
    """
    parts = [part for part in op_name.split("/")[:-1] if not _TRANSFORMATION.fullmatch(part)]
    return "/".join(part for part, _ in itertools.groupby(parts))


def kind_of(op_name: str, layer: str, frames: Collection[str], opcodes: Collection[str], *, has_flops: bool) -> str:
    """The kind of an operation.

    Args:
      op_name: its name in the Python program; "" if unknown.
      layer: of `layer_of`.
      frames: functions of the Python program, the innermost first.
      opcodes: of all HLO instructions in it.
      has_flops: whether it contains a convolution or a matrix product.
    """
    if any(opcode.startswith(("all-", "reduce-scatter", "collective")) for opcode in opcodes):
        return "collectives"
    if set(opcodes) <= _MOVES | (set() if op_name else {"concatenate"}):  # without a name: gradients, for one all-reduce
        return COPIES
    of_step = next((kind for pattern, kind in _IN_STEP if any(re.search(pattern, frame) for frame in frames)), "")
    is_product = has_flops and not re.search(_IN_NETWORK[1][0], layer)  # norms use matrix products for sums
    if is_product and (layer or not of_step):  # Muon multiplies matrices, too
        attention = re.search(_IN_NETWORK[2][0], layer)
        return "matrix products of attention" if attention else "convolutions and matrix products"
    for pattern, kind in _IN_NETWORK if layer else ():
        if re.search(pattern, layer):
            return kind
    if of_step:
        return of_step
    if _RANDOM.search(op_name):
        return "random numbers"
    if op_name.startswith("state.") or next(iter(frames), "").startswith("device_grads.py:"):
        return "casts of parameters"
    if layer or "jvp(" in op_name:
        return "activations, sums and concatenations"
    return "loss, noise and the rest of the step" if op_name else OTHER

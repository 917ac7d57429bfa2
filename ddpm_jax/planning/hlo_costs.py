"""What a compiled program runs: its kernels with their FLOPs and bytes, and its collectives.

FLOPs are those of convolutions and matrix products, counted as XLA's HloCostAnalysis does: padding and the zeros of a dilation
are left out. Bytes are what each kernel reads and writes if nothing stays in a cache.
"""

import dataclasses
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping

from ddpm_jax.planning.hlo_text import Array, Instruction, Module

# They launch nothing: names, views and control. The start of an asynchronous operation counts, its end does not.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "add-dependency", "partition-id"}
_FREE |= {"replica-id", "opt-barrier", "domain", "async-update", "async-done", "send-done", "recv-done", "copy-done"}
_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")
_FREE |= {f"{name}-done" for name in _COLLECTIVES}
_SLICES = ("dynamic-slice", "slice", "gather")
_ELEMENTWISE = {
    "add",
    "subtract",
    "multiply",
    "divide",
    "power",
    "negate",
    "abs",
    "sqrt",
    "rsqrt",
    "convert",
    "bitcast",
    "select",
}
_CUSTOM_FREE = ("Sharding", "SPMDFullToShardShape", "SPMDShardToFullShape", "AllocateBuffer", "xla.gpu.ext")
_ROLES = {  # custom call -> (input, kernel, output) of the convolution, as numbers of operands; -1 is the result
    "__cudnn$convForward": (0, 1, -1),
    "__cudnn$convBiasActivationForward": (0, 1, -1),
    "__cudnn$convForwardGraph": (0, 1, -1),
    "__cudnn$convBackwardInput": (-1, 1, 0),
    "__cudnn$convBackwardFilter": (0, -1, 1),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Kernel:
    """An operation that is launched.

    Attributes:
      instruction: in the module.
      repeats: number of launches per call of the program: iterations of the loops around it.
      flops: of one launch.
      bytes: read and written by one launch.
      main: the instruction inside that costs the most FLOPs, or the last: it names the operation.
      cycles: estimate of the compiler for one launch; only a TPU's has one.
    """

    instruction: Instruction
    repeats: int
    flops: float
    bytes: float
    main: Instruction
    cycles: float | None


@dataclasses.dataclass(frozen=True, eq=False)
class Collective:
    """A collective: its operation, such as all-reduce, launches per call, and bytes of its results of one launch."""

    opcode: str
    repeats: int
    bytes: float


def kernels(module: Module, computation: str = "", repeats: int = 1) -> Iterator[Kernel]:
    """The kernels of a computation, by default the entry, and of the loops in it and its longest branches; also collectives."""
    for each in module.computations[computation or module.entry]:
        if each.opcode in ("while", "call", "conditional", "async-start"):
            inner = [list(kernels(module, name, repeats * each.trips)) for name in each.called]
            for found in [max(inner, key=len)] if each.opcode == "conditional" else inner:
                yield from found
        elif not _is_free(each):
            parts = list(module.inside(each))
            costs = [flops(module, part) for part in parts]
            main = parts[costs.index(max(costs))] if any(costs) else _named([*parts, each])
            yield Kernel(each, repeats, sum(costs), traffic(module, each), main, estimated_cycles(each))


def collectives(module: Module) -> list[Collective]:
    """The collectives that one call runs."""
    found = []
    for kernel in kernels(module):
        opcode = kernel.instruction.opcode.removesuffix("-start")
        if opcode in _COLLECTIVES:
            arrays = [array for name in kernel.instruction.operands for array in module.instructions[name].arrays]
            found.append(Collective(opcode, kernel.repeats, sum(array.bytes for array in arrays)))
    return found


def _named(instructions: list[Instruction]) -> Instruction:
    """The last instruction that has the name of an operation of the program."""
    return next((each for each in reversed(instructions) if each.op_name), instructions[-1])


def _is_free(instruction: Instruction) -> bool:
    if instruction.opcode == "custom-call":
        return instruction.attribute("custom_call_target").startswith(_CUSTOM_FREE)
    return instruction.opcode in _FREE


def estimated_cycles(instruction: Instruction) -> float | None:
    """The estimate of a TPU's compiler; None for other compilers."""
    found = re.search(r'"estimated_cycles":\s*"?(\d+)', instruction.attributes)
    return float(found[1]) if found else None


def flops(module: Module, instruction: Instruction) -> float:
    """FLOPs of a convolution or a matrix product, also as a library call; 0 for all other instructions."""
    opcode, target = instruction.opcode, ""
    if opcode == "custom-call":
        target = instruction.attribute("custom_call_target")
    if opcode == "convolution" or target in _ROLES:
        roles = _ROLES.get(target, (0, 1, -1))
        operands = [module.instructions[name].arrays[0] for name in instruction.operands[:2]]
        arrays = [instruction.arrays[0] if role == -1 else operands[role] for role in roles]
        return _convolution_flops(instruction, *arrays)
    if opcode == "dot" or target.startswith("__cublas$"):
        left = module.instructions[instruction.operands[0]].arrays[0]
        return 2.0 * instruction.arrays[0].size * math.prod(left.shape[dim] for dim in _contracted(instruction))
    return 0.0


def _contracted(instruction: Instruction) -> list[int]:
    """The dimensions of the left operand that a matrix product sums over."""
    text = instruction.attribute("lhs_contracting_dims").strip("{}")
    if not text:  # cuBLAS: in the JSON of its settings
        found = re.search(r'"lhs_contracting_dimensions":\s*(\[[^\]]*\])', instruction.attributes)
        return [int(each) for each in json.loads(found[1])] if found else []
    return [int(each) for each in text.split(",")]


def _convolution_flops(instruction: Instruction, image: Array, kernel: Array, output: Array) -> float:
    image_labels, rest = instruction.attribute("dim_labels").split("_", 1)
    kernel_labels, output_labels = rest.split("->")
    window = dict(re.findall(r"(\w+)=([\w.x-]+)", _window(instruction)))
    spatial = sorted(label for label in image_labels if label.isdigit())
    count = 1
    for number, label in enumerate(spatial):
        pads = _numbers(window.get("pad", ""), number, "0_0").split("_")
        count *= valid_positions(
            image.shape[image_labels.index(label)],
            kernel.shape[kernel_labels.index(label)],
            output.shape[output_labels.index(label)],
            low=int(pads[0]),
            stride=int(_numbers(window.get("stride", ""), number, "1")),
            image_dilation=int(_numbers(window.get("lhs_dilate", ""), number, "1")),
            kernel_dilation=int(_numbers(window.get("rhs_dilate", ""), number, "1")),
        )
    groups = int(instruction.attribute("batch_group_count") or 1)
    batch = image.shape[image_labels.index("b")] // groups
    return 2.0 * count * batch * kernel.shape[kernel_labels.index("i")] * kernel.shape[kernel_labels.index("o")]


def _window(instruction: Instruction) -> str:
    found = re.search(r"window=\{([^}]*)\}", instruction.attributes)
    return found[1] if found else ""


def _numbers(text: str, number: int, default: str) -> str:
    """3x3 -> the entry of a spatial dimension."""
    return text.split("x")[number] if text else default


def valid_positions(
    image: int, kernel: int, output: int, *, low: int, stride: int = 1, image_dilation: int = 1, kernel_dilation: int = 1
) -> int:
    """Pairs of an output and a kernel position, along one dimension, that read a pixel, not padding or a zero of a dilation."""
    count = 0
    for position, tap in itertools.product(range(output), range(kernel)):
        place = position * stride + tap * kernel_dilation - low
        count += place % image_dilation == 0 and 0 <= place // image_dilation < image
    return count


def traffic(module: Module, instruction: Instruction) -> float:
    """Bytes that one launch reads and writes; of an operand that a fusion only slices, the slices."""
    written = sum(array.bytes for array in instruction.arrays)
    arrays = [module.instructions[name].arrays for name in instruction.operands]
    sizes = [sum(array.bytes for array in each) for each in arrays]
    if instruction.opcode == "fusion":
        sizes = [min(size, limit) for size, limit in zip(sizes, _limits(module, instruction), strict=True)]
    elif instruction.opcode in _SLICES:
        sizes = [min(size, written) for size in sizes]
    elif instruction.opcode.removesuffix("-start") in _COLLECTIVES or instruction.opcode.endswith("-start"):
        written = min(written, sum(sizes))  # the results of a start repeat its operands
    return written + sum(sizes)


def _limits(module: Module, fusion: Instruction) -> list[float]:
    """For each operand of a fusion: the bytes of the slices that it reads, or infinity if it reads it in another way."""
    body = module.computations[fusion.called[0]]
    users: dict[str, list[Instruction]] = {}
    for each in body:
        for name in each.operands:
            users.setdefault(name, []).append(each)
    parameters = {int(each.inner): each.name for each in body if each.opcode == "parameter"}
    return [_sliced(module, users, parameters[number]) for number in range(len(fusion.operands))]


def _sliced(module: Module, users: Mapping[str, list[Instruction]], parameter: str) -> float:
    """Bytes of the different slices of a parameter; infinity if more of it is read.

    A slice of its square, say, is also a slice of it: a fusion computes only the elements that it needs.
    """
    slices, names = {}, [parameter]
    for name in names:  # grows
        if not users.get(name):
            return math.inf  # the result, or unused
        for each in users[name]:
            if each.opcode in _SLICES and each.operands[0] == name:
                slices[each.attribute("slice"), each.operands[1:]] = each.arrays[0].size
            elif each.opcode in _ELEMENTWISE and each.arrays[0].size == module.instructions[parameter].arrays[0].size:
                names += [each.name] if each.name not in names else []
            else:
                return math.inf
    array = module.instructions[parameter].arrays[0]
    return sum(slices.values()) * array.bytes / max(array.size, 1)

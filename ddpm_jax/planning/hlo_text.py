"""Reads the text of a compiled HLO module (`jax.stages.Compiled.as_text`): computations, instructions, shapes.

Only the fields that `hlo_costs` needs are read. The syntax: openxla.org/xla/operation_semantics and hlo_parser.cc.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "bf16": 2, "token": 0, "opaque": 0}  # others have their bits in their names
_HEAD = re.compile(r"^(ENTRY )?%?([\w.$-]+) (?:\(.*)?\{$")
_NAME = re.compile(r"^\s+(ROOT )?%?([\w.$-]+) = ")
_ARRAY = re.compile(r"([a-z]+\d*[a-z0-9]*)\[([^\]]*)\]")
_CALLING = "calls|to_apply|body|condition|called_computations|branch_computations|true_computation|false_computation"
_CALLED = re.compile(rf"\b(?:{_CALLING})=(?:\{{([^}}]*)\}}|%?([\w.$-]+))")
_OP_NAME = re.compile(r'metadata=\{[^}]*?op_name="((?:[^"\\]|\\.)*)"')
_FRAME = re.compile(r"metadata=\{[^}]*?stack_frame_id=(\d+)")
_TRIPS = re.compile(r'"known_trip_count":\s*\{\s*"n":\s*"(\d+)"')


class Array(NamedTuple):
    """Element type, such as bf16, and dimensions."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> float:
        """Bytes without padding."""
        if self.dtype in BYTES:
            return BYTES[self.dtype] * self.size
        bits = re.search(r"\d+", self.dtype)
        return int(bits[0]) / 8 * self.size if bits else 0


@dataclasses.dataclass(frozen=True, eq=False)
class Instruction:
    """One line of a computation.

    Attributes:
      name: without %.
      opcode: such as fusion or custom-call.
      arrays: its results; several for a tuple.
      operands: names of the instructions that it reads.
      inner: the text between the parentheses: of a parameter its number.
      attributes: the text after the operands.
      is_root: whether it is the result of its computation.
    """

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    inner: str
    attributes: str
    is_root: bool

    @property
    def op_name(self) -> str:
        """The operation in the Python program, such as jit(step)/jvp(UNet)/conv_in/conv_general_dilated; "" if unknown."""
        found = _OP_NAME.search(self.attributes)
        return found[1] if found else ""

    @property
    def frame(self) -> int:
        """Number of the stack frame in the Python program (`Module.frames`); 0 if unknown."""
        found = _FRAME.search(self.attributes)
        return int(found[1]) if found else 0

    @property
    def called(self) -> tuple[str, ...]:
        """Names of the computations that it calls."""
        names: list[str] = []
        for several, one in _CALLED.findall(self.attributes):
            names += [name.strip().lstrip("%") for name in several.split(",")] if several else [one]
        return tuple(name for name in names if name)

    @property
    def trips(self) -> int:
        """Iterations of a while loop; 1 if the compiler does not know them."""
        found = _TRIPS.search(self.attributes)
        return int(found[1]) if found else 1

    def attribute(self, name: str) -> str:
        """The value of an attribute without spaces in it; "" if it is absent."""
        found = re.search(rf'(?:^|[ ,]){name}=(\{{[^}}]*\}}|"[^"]*"|[^\s,]+)', self.attributes)
        return found[1].strip('"') if found else ""


@dataclasses.dataclass(frozen=True, eq=False)
class Module:
    """A module.

    Attributes:
      computations: name -> its instructions in order: of a scheduled module, the order in which they run.
      entry: name of the computation that runs.
      frames: number of a stack frame -> file.py:function of the Python program, the innermost first.
    """

    computations: Mapping[str, tuple[Instruction, ...]]
    entry: str
    frames: Mapping[int, tuple[str, ...]]

    @functools.cached_property
    def instructions(self) -> Mapping[str, Instruction]:
        """Name -> instruction; names are unique in a module."""
        return {each.name: each for instructions in self.computations.values() for each in instructions}

    def inside(self, instruction: Instruction) -> Iterator[Instruction]:
        """The instructions of a fusion and of the fusions in it, or the instruction itself."""
        if instruction.opcode != "fusion":
            yield instruction
            return
        for name in instruction.called:
            for each in self.computations[name]:
                yield from self.inside(each)


def parse(text: str) -> Module:
    """Read a module.

    Raises:
      ValueError: it has no entry computation.
    """
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if current is None:
            if head := _HEAD.match(line):
                current = computations.setdefault(head[2], [])
                entry = head[2] if head[1] else entry
        elif line.startswith("}"):
            current = None
        elif (found := _instruction(line)) is not None:
            current.append(found)
    if not entry:
        raise ValueError("the text has no ENTRY computation")
    return Module({name: tuple(each) for name, each in computations.items()}, entry, _frames(text))


def _instruction(line: str) -> Instruction | None:
    head = _NAME.match(line)
    if head is None:
        return None
    rest = re.sub(r"/\*.*?\*/", "", line[head.end() :])
    end = _closing(rest, 0) if rest.startswith("(") else rest.index(" ")
    arrays = tuple(Array(dtype, _shape(dims)) for dtype, dims in _ARRAY.findall(rest[:end]))
    opcode, _, rest = rest[end:].strip().partition("(")
    end = _closing(rest, 1)
    operands = tuple(re.findall(r"%([\w.$-]+)", rest[:end]))
    return Instruction(head[2], opcode, arrays, operands, rest[: end - 1], rest[end:], bool(head[1]))


def _closing(text: str, depth: int) -> int:
    """The index after the parenthesis that closes `depth` open ones."""
    for index, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return index + 1
    return len(text)


def _shape(text: str) -> tuple[int, ...]:
    """16,<=8 -> (16, 8): a dimension with a bound has its largest size."""
    return tuple(int(each.lstrip("<=")) for each in text.split(",") if each.strip())


def _frames(text: str) -> dict[int, tuple[str, ...]]:
    """file.py:function of each stack frame, from the tables at the head of a module."""
    tables: dict[str, dict[int, str]] = {"FileNames": {}, "FunctionNames": {}, "FileLocations": {}, "StackFrames": {}}
    current: dict[int, str] | None = None
    for line in text.splitlines():
        if line in tables:
            current = tables[line]
        elif current is not None and (match := re.match(r"(\d+) (.*)", line)):
            current[int(match[1])] = match[2].strip('"')
        elif line.startswith(("ENTRY", "%")):
            break
    locations = {}
    for number, row in tables["FileLocations"].items():
        file = tables["FileNames"].get(_field(row, "file_name_id"), "").rpartition("/")[2]
        locations[number] = f"{file}:{tables['FunctionNames'].get(_field(row, 'function_name_id'), '')}"
    rows = tables["StackFrames"]
    # The text has the number of the parent plus 1: that of the outermost frame, which has none, is 1.
    parents = {number: _field(row, "parent_frame_id") - 1 for number, row in rows.items()}
    names = {number: locations.get(_field(row, "file_location_id"), "") for number, row in rows.items()}
    found: dict[int, tuple[str, ...]] = {0: ()}
    for number in sorted(rows):  # a parent comes before its children
        found[number] = (names[number], *found.get(parents[number], ()))
    return found


def _field(row: str, name: str) -> int:
    found = re.search(rf"{name}=(\d+)", row)
    return int(found[1]) if found else 0

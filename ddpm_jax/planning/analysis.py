"""Memory, FLOPs, bytes, kernels and collectives of a compiled program, as JSON-serializable dictionaries."""

from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from ddpm_jax.planning import hlo_costs, hlo_text, layers
from ddpm_jax.runtime.errors import UnavailableError
from ddpm_jax.training.state import TrainState


def state_bytes(state: TrainState) -> dict[str, float]:
    """Bytes of the parts of a training state on one device.

    Args:
      state: of jax.ShapeDtypeStruct with shardings, so that a sharded state counts its shards.
    """
    averages = (state.ema_params, state.averages)
    parts = {"parameters": state.params, "ema": averages, "optimizer": state.opt_state}
    return {name: tree_bytes(part) for name, part in parts.items()}


def tree_bytes(tree: Any) -> float:
    """Bytes on one device of a pytree of jax.ShapeDtypeStruct."""
    return float(sum(map(_shard_bytes, jax.tree.leaves(tree))))


def _shard_bytes(leaf: jax.ShapeDtypeStruct) -> float:
    shape = leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)
    return float(np.prod(shape, dtype=np.int64) * np.dtype(leaf.dtype).itemsize)


def analyze(compiled: jax.stages.Compiled, *, images: int) -> dict[str, Any]:
    """What one call of the program costs on one device.

    Args:
      compiled: for any platform.
      images: images that one device gets per call.

    Returns:
      "images"; "memory": bytes of the compiler's memory analysis; "compiler": its own FLOPs and bytes, if it has any;
      "operations": rows as of `operations`; "collectives": rows of operation, number and bytes.

    Raises:
      UnavailableError: the compiler returns no text or no memory analysis.
    """
    module = hlo_text.parse(_required(compiled.as_text(), "text"))
    return {
        "images": images,
        "memory": memory(compiled),
        "compiler": compiler_costs(compiled),
        "operations": operations(module, hlo_costs.kernels(module)),
        "collectives": collectives(hlo_costs.collectives(module)),
    }


def memory(compiled: jax.stages.Compiled) -> dict[str, float]:
    """Bytes on one device: arguments, outputs that are not written over arguments, temporaries, code, and the peak."""
    stats = _required(compiled.memory_analysis(), "memory analysis")
    found = {
        "arguments": stats.argument_size_in_bytes,
        "outputs": stats.output_size_in_bytes - stats.alias_size_in_bytes,
        "temporaries": stats.temp_size_in_bytes,
        "code": stats.generated_code_size_in_bytes,
    }
    return {name: float(size) for name, size in found.items()} | {"peak": float(sum(found.values()))}


def _required(value: Any, what: str) -> Any:
    if value is None:
        raise UnavailableError(f"the compiler returns no {what} of its program")
    return value


def compiler_costs(compiled: jax.stages.Compiled) -> dict[str, float]:
    """FLOPs and bytes of the compiler's own cost analysis; {} if it has none, as that of GPUs."""
    try:
        costs = compiled.cost_analysis() or {}
    except (NotImplementedError, jax.errors.JaxRuntimeError):
        return {}
    names = {"flops": "flops", "bytes": "bytes accessed"}
    return {name: float(costs[key]) for name, key in names.items() if costs.get(key, 0) > 0}


def operations(module: hlo_text.Module, kernels: Iterable[hlo_costs.Kernel]) -> list[dict[str, Any]]:
    """The launches of one call: those of the same kind, layer and costs in one row, which has the costs of one launch."""
    rows: dict[tuple, dict[str, Any]] = {}
    for kernel in kernels:
        kind, layer = layers.describe(module, kernel)
        costs = {"flops": kernel.flops, "bytes": kernel.bytes, "cycles": kernel.cycles or 0.0}
        row = rows.setdefault((kind, layer, *costs.values()), {"kind": kind, "layer": layer, "kernels": 0} | costs)
        row["kernels"] += kernel.repeats
    return list(rows.values())


def collectives(found: Iterable[hlo_costs.Collective]) -> list[dict[str, Any]]:
    """Number and bytes of each operation."""
    rows: dict[str, dict[str, Any]] = {}
    for each in found:
        row = rows.setdefault(each.opcode, {"operation": each.opcode, "count": 0, "bytes": 0.0})
        row["count"] += each.repeats
        row["bytes"] += each.repeats * each.bytes
    return list(rows.values())

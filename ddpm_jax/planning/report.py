"""Estimates from what a compilation found: does it fit, how long does it take, where does the time go.

The roofline (Williams et al. 2009): a kernel takes at least the time of its FLOPs at peak speed and of its bytes at full
bandwidth, and on a GPU that of a launch. The sum over the kernels bounds the step from below, except for bytes that stay in a
cache.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ddpm_jax.planning.targets import Target

SUMS = ("kernels", "flops", "bytes", "cycles", "seconds")  # columns of the operations of one call


@dataclasses.dataclass(frozen=True)
class Speed:
    """What limits a device: FLOP/s and bytes/s, None if unknown; cycles/s of a TPU's compiler; seconds of a launch."""

    flops: float | None
    bytes: float | None
    cycles: float | None
    launch: float

    @classmethod
    def of(cls, target: Target, dtype: str) -> "Speed":
        """The speed of one device of a target, for products of a dtype."""
        return cls(target.chip.peak_flops(dtype), target.chip.bandwidth, target.chip.clock, target.chip.launch)

    def roofline(self, flops: float, bytes: float) -> float | None:
        """The least seconds for these FLOPs and bytes in one launch; None if the speed is unknown."""
        if self.flops is None or self.bytes is None:
            return None
        return max(flops / self.flops, bytes / self.bytes, self.launch)


def summarize(found: Mapping[str, Any], target: Target, dtype: str) -> dict[str, Any]:
    """The report of one program.

    Args:
      found: of `compile_step.plan_training` or `plan_sampling`.
      target: the machine.
      dtype: of the model.

    Returns:
      JSON-serializable: "memory", per device, with "limit" and "fits"; and, unless the program does not fit, "images",
      "kernels", "flops" and "bytes" of one call on one device, "collectives", "operations", "kinds" and "seconds": estimates by
      their method.
    """
    if "does_not_fit" in found:
        return {"memory": {"limit": target.memory, "fits": False, "message": found["does_not_fit"]} | found.get("state", {})}
    speed, rows = Speed.of(target, dtype), []
    for row in found["operations"]:
        number, least = row["kernels"], speed.roofline(row["flops"], row["bytes"])
        sums = {column: number * row[column] for column in ("flops", "bytes", "cycles")}
        rows.append({"kind": row["kind"], "layer": row["layer"], "kernels": number} | sums)
        rows[-1]["seconds"] = None if least is None else number * least
    (total,) = grouped(rows, ()) or [dict.fromkeys(SUMS, 0.0)]
    seconds = {"roofline": speed.roofline(total["flops"], total["bytes"]), "sum_of_rooflines": total["seconds"]}
    seconds["compiler"] = total["cycles"] / speed.cycles if speed.cycles and total["cycles"] else None
    state = found.get("state", {})
    memory = state | {"other_arguments": max(0.0, found["memory"]["arguments"] - sum(state.values()))} | found["memory"]
    memory |= {"limit": target.memory, "fits": memory["peak"] <= target.memory}
    return {
        "images": found["images"],
        "steps": found.get("steps", 1),
        "process": found.get("process", {}),
        "memory": memory,
        "kernels": int(total["kernels"]),
        "flops": total["flops"],
        "bytes": total["bytes"],
        "compiler": found["compiler"],
        "intensity": total["flops"] / max(total["bytes"], 1.0),
        "ridge": speed.flops / speed.bytes if speed.flops and speed.bytes else None,
        "seconds": seconds,
        "collectives": found["collectives"],
        "kinds": grouped(rows, ("kind",)),
        "operations": grouped(rows, ("kind", "layer")),
    }


def cost(row: Mapping[str, Any]) -> float:
    """What operations are ordered by: cycles if the compiler has estimated them, else the roofline, else FLOPs and bytes."""
    return row["cycles"] or row["seconds"] or row["flops"] / 100 + row["bytes"]


def grouped(rows: Iterable[Mapping[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    """Sums over the rows that agree in the columns `names`, the most expensive first."""
    found: dict[tuple, dict[str, Any]] = {}
    for row in rows:
        key = {name: row[name] for name in names}
        group = found.setdefault(tuple(key.values()), key | dict.fromkeys(SUMS, 0))
        for column in SUMS:
            group[column] = None if row[column] is None else group[column] + row[column]
    return sorted(found.values(), key=cost, reverse=True)


def best_seconds(summary: Mapping[str, Any]) -> float | None:
    """The estimate to use: the compiler's if it has one, else the sum of rooflines."""
    seconds = summary["seconds"]
    return seconds["compiler"] or seconds["sum_of_rooflines"]


def images_that_fit(summary: Mapping[str, Any]) -> int | None:
    """An estimate: images per device whose temporaries fit, if these grow with the images, except for the gradients.

    None if there are hardly more temporaries than gradients, so that their growth is not known.
    """
    memory, images = summary["memory"], summary["images"]
    gradients = min(memory.get("parameters", 0.0), memory["temporaries"])
    if memory["temporaries"] <= 1.1 * gradients:
        return None
    free = memory["limit"] - (memory["peak"] - memory["temporaries"]) - gradients
    return max(0, int(free / ((memory["temporaries"] - gradients) / images)))

"""Estimates from what a compilation found: does it fit, how long does it take, where does the time go.

The roofline (Williams et al. 2009): a kernel takes at least the time of its FLOPs at peak speed and of its bytes at full
bandwidth. The sum over the kernels bounds the step from below, except for bytes that stay in a cache.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from ddpm_jax.planning.targets import Target


@dataclasses.dataclass(frozen=True)
class Speed:
    """What limits a device: FLOP/s and bytes/s, each None if unknown, and cycles/s of a TPU's compiler."""

    flops: float | None
    bytes: float | None
    cycles: float | None

    @classmethod
    def of(cls, target: Target, dtype: str) -> "Speed":
        """The speed of one device of a target, for products of a dtype."""
        return cls(target.chip.peak_flops(dtype), target.chip.bandwidth, target.chip.clock)

    def roofline(self, flops: float, bytes: float) -> float | None:
        """The least seconds for these FLOPs and bytes; None if the speed is unknown."""
        if self.flops is None or self.bytes is None:
            return None
        return max(flops / self.flops, bytes / self.bytes)


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
    speed, rows = Speed.of(target, dtype), [dict(row) for row in found["operations"]]
    for row in rows:
        row["seconds"] = speed.roofline(row["flops"], row["bytes"])
    total = {column: sum(row[column] for row in rows) for column in ("kernels", "flops", "bytes", "cycles")}
    seconds = {"roofline": speed.roofline(total["flops"], total["bytes"])}
    seconds["sum_of_rooflines"] = None if seconds["roofline"] is None else sum(row["seconds"] for row in rows)
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
        "kinds": by_kind(rows),
        "operations": sorted(rows, key=cost, reverse=True),
    }


def cost(row: Mapping[str, Any]) -> float:
    """What operations are ordered by: cycles if the compiler has estimated them, else the roofline, else FLOPs and bytes."""
    return row["cycles"] or row["seconds"] or row["flops"] / 100 + row["bytes"]


def by_kind(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Sums over the rows of each kind, the most expensive first."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        kind = found.setdefault(
            row["kind"], {"kind": row["kind"]} | dict.fromkeys(("kernels", "flops", "bytes", "cycles"), 0.0)
        )
        for column in ("kernels", "flops", "bytes", "cycles"):
            kind[column] += row[column]
        kind["seconds"] = None if row["seconds"] is None else kind.get("seconds", 0.0) + row["seconds"]
    return sorted(found.values(), key=cost, reverse=True)


def best_seconds(summary: Mapping[str, Any]) -> float | None:
    """The estimate to use: the compiler's if it has one, else the sum of rooflines."""
    seconds = summary["seconds"]
    return seconds["compiler"] or seconds["sum_of_rooflines"]


def images_that_fit(summary: Mapping[str, Any]) -> int:
    """An estimate: images per device whose temporaries fit, if these grow with the images, except for the gradients."""
    memory, images = summary["memory"], summary["images"]
    gradients = min(memory.get("parameters", 0.0), memory["temporaries"])
    free = memory["limit"] - (memory["peak"] - memory["temporaries"]) - gradients
    return max(0, int(free / max((memory["temporaries"] - gradients) / images, 1.0)))

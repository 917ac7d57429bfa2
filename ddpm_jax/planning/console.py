"""The text and the picture of a report of `planning.report`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ddpm_jax.evaluation.tables import markdown_table
from ddpm_jax.planning import report
from ddpm_jax.planning.targets import GIB, Target
from ddpm_jax.plotting import bars
from ddpm_jax.runtime.progress import format_duration

TOP = 10  # operations that are listed
NEAR = 20  # the picture shows the limit if the peak is at least this fraction of it; else no bar would be visible
MEMORY = {  # part of the memory -> words
    "parameters": "parameters",
    "ema": "EMA",
    "optimizer": "optimizer state",
    "other_arguments": "batch and other arguments",
    "temporaries": "activations and temporaries",
    "outputs": "outputs",
    "code": "code",
}
METHODS = {
    "roofline": "all FLOPs at peak speed, or all bytes at full bandwidth",
    "sum_of_rooflines": "the same for each kernel, at least a launch, summed",
    "compiler": "cycles that the compiler estimates",
}


def text(summary: Mapping[str, Any], target: Target, *, title: str, unit: str, steps: int) -> str:
    """The report as Markdown.

    Args:
      summary: from `report.summarize`.
      target: the machine.
      title: what was compiled.
      unit: what one call is, such as "training step".
      steps: number of calls in all.
    """
    parts = [f"## {title}\n", memory_text(summary)]
    if "kinds" in summary:
        launches = "kernels" if target.chip.platform == "gpu" else "operations"
        parts += [cost_text(summary, target, unit=unit, steps=steps, launches=launches), operations_text(summary, launches)]
    return "\n".join(parts)


def memory_text(summary: Mapping[str, Any]) -> str:
    """The table of the memory of one device, and whether the program fits."""
    memory = summary["memory"]
    unit, size, digits = _memory_unit(memory)
    parts = MEMORY | {"peak": "peak"}
    rows = [
        {"memory per device": words, unit: f"{memory[part] / size:,.{digits}f}"}
        for part, words in parts.items()
        if memory.get(part)
    ]
    limit = f"{memory['limit'] / GIB:.1f} GiB that a program can use"
    if "peak" not in memory:
        return markdown_table(rows) + f"\ndoes not fit into {limit}; the compiler: {memory['message']}\n"
    verdict = f"fits into the {limit}" if memory["fits"] else f"does not fit into the {limit}"
    most = report.images_that_fit(summary)
    estimate = "" if most is None else f"; estimate: up to {most:,} fit"
    return markdown_table(rows) + f"\n{verdict}, with {summary['images']:,} images per device{estimate}\n"


def cost_text(summary: Mapping[str, Any], target: Target, *, unit: str, steps: int, launches: str) -> str:
    """FLOPs, bytes, collectives, and estimates of the time."""
    images, seconds = summary["images"], summary["seconds"]
    rows = [
        {"per device": "GFLOP an image: convolutions and matrix products", "": summary["flops"] / images / 1e9},
        {"per device": "MB an image, read and written by kernels", "": summary["bytes"] / images / 1e6},
    ]
    for name, scale, words in (("flops", 1e9, "GFLOP an image"), ("bytes", 1e6, "MB an image")):
        if name in summary["compiler"]:
            rows.append(
                {"per device": f"{words}, as the compiler counts, a loop once", "": summary["compiler"][name] / images / scale}
            )
    words = (
        "FLOP per byte" if summary["ridge"] is None else f"FLOP per byte; above {summary['ridge']:.0f}, FLOPs limit the speed"
    )
    rows.append({"per device": words, "": summary["intensity"]})
    rows.append({"per device": f"{launches} a {unit}", "": summary["kernels"]})
    for each in summary["collectives"]:
        rows.append({"per device": f"{each['operation']} a {unit}, MB", "": f"{each['count']:,}: {each['bytes'] / 1e6:,.1f}"})
    for name, words in METHODS.items():
        if seconds[name] is not None:
            rows.append({"per device": f"ms a {unit}, estimate: {words}", "": seconds[name] * 1e3})
    best = report.best_seconds(summary)
    if best is None:
        return markdown_table(rows) + "\nno estimate of the time: the speed of a CPU is not in the table of machines\n"
    count = images * target.num_devices / best
    line = (
        f"estimate: {_rate(1 / best)} {unit}s/s, {count:,.0f} images/s, {format_duration(best * steps)} for {steps:,} {unit}s"
    )
    return markdown_table(rows) + f"\n{line}; a real device is slower\n"


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def operations_text(summary: Mapping[str, Any], launches: str) -> str:
    """Where launches, FLOPs, bytes and time go: by kind, and the most expensive operations."""
    whole = sum(map(report.cost, summary["kinds"])) or 1.0
    kinds = [{"kind": row["kind"], **_columns(row, whole, launches)} for row in summary["kinds"]]
    top = [
        {"operation": row["layer"], "kind": row["kind"], **_columns(row, whole, launches)}
        for row in summary["operations"][:TOP]
    ]
    return f"{markdown_table(kinds)}\nmost expensive operations:\n\n{markdown_table(top)}"


def _columns(row: Mapping[str, Any], whole: float, launches: str) -> dict[str, Any]:
    found = {launches: int(row["kernels"]), "GFLOP": row["flops"] / 1e9, "MB": row["bytes"] / 1e6}
    if row["seconds"] is not None:
        found["ms at the roofline"] = row["seconds"] * 1e3
    if row["cycles"]:
        found["cycles"] = int(row["cycles"])
    return found | {"share": f"{100 * report.cost(row) / whole:.0f}%"}


def picture(summary: Mapping[str, Any], *, title: str) -> np.ndarray:
    """Memory against the limit, and the time of each kind of operation: uint8 [H, W, 3]."""
    memory = summary["memory"]
    unit, size, _ = _memory_unit(memory)
    values = [(words, memory[part] / size) for part, words in (MEMORY | {"peak": "peak"}).items() if memory.get(part)]
    available = f"{memory['limit'] / GIB:.1f} GiB available to a program"
    is_near = max(value for _, value in values) * size > memory["limit"] / NEAR
    charts = [
        bars.Bars(f"{title}: memory per device", unit, values, limit=(memory["limit"] / size, available))
        if is_near
        else bars.Bars(f"{title}: memory per device, of {available}", unit, values)
    ]
    if "kinds" in summary:
        unit, scale, column = _time_unit(summary["kinds"])
        rows = sorted(summary["kinds"], key=lambda row: row[column] or 0.0, reverse=True)
        values = [(row["kind"], (row[column] or 0.0) * scale) for row in rows[:12]]
        charts.append(bars.Bars("memory traffic" if column == "bytes" else "where the time goes (estimate)", unit, values))
    return bars.draw(charts)


def _time_unit(kinds: Sequence[Mapping[str, Any]]) -> tuple[str, float, str]:
    if any(row["cycles"] for row in kinds):
        return "million cycles of the compiler's estimate", 1e-6, "cycles"
    if any(row["seconds"] for row in kinds):
        return "ms at the roofline of each kernel", 1e3, "seconds"
    return "MB read and written", 1e-6, "bytes"


def _memory_unit(memory: Mapping[str, Any]) -> tuple[str, float, int]:
    """Name and bytes of the unit in which the memory is shown, and decimal places."""
    largest = max(memory.get(part, 0.0) for part in (*MEMORY, "peak"))
    return ("GiB", GIB, 3) if largest >= GIB else ("MiB", 2**20, 1 if largest >= 10 * 2**20 else 3)

"""--mode=plan: memory, speed and cost of a training on a machine that need not be present: an estimate.

The training step is compiled for the machine; nothing runs, and no device is opened.
"""

import functools
import json
import math
import operator
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from ddpm_jax import choices, config_validation, network_check
from ddpm_jax.cli import common
from ddpm_jax.compilation_cache import folder_of
from ddpm_jax.evaluation import manifest
from ddpm_jax.planning import compile_step, console, report, targets
from ddpm_jax.planning.plan_cache import PlanCache, compiler_flags, digest, own_sources
from ddpm_jax.planning.targets import Target
from ddpm_jax.planning.worker import run_in_process
from ddpm_jax.plotting import image_grid
from ddpm_jax.runtime import mesh as meshes
from ddpm_jax.runtime import paths, storage
from ddpm_jax.runtime.atomic import write_atomically
from ddpm_jax.runtime.registry import is_custom

HOST_DEVICES = 8  # at most; `mesh.fsdp` should not exceed the devices of one host
FOLDER = "plans"  # in the workdir, or in the current folder
NOT_READ = ("evaluation", "edit", "export", "visualize", "seed")  # sections on which no compiled program depends
NOT_READ_OF_DATA = ("data_dir", "cache_dir", "in_memory", "num_threads", "num_workers", "prefetch", "on_decode_error")
READ_OF_TRAIN = ("batch_size", "frozen", "deterministic")
# The process that compiles opens no accelerator, and its compilers do not log that they find none.
CPU_ONLY = {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}


def run(
    config: ConfigDict, *, folder: str, target: str, suggest: bool, sampling: bool, output: str, compilation_cache: str | None
) -> int:
    """Compile the training step for `target`, print the report, and write plan_TARGET.json and plan_TARGET.png.

    Args:
      config: resolved.
      folder: a workdir, in which the files are written by default; "" for the current folder.
      target: the machine (`targets.parse_target`).
      suggest: if it does not fit, compile again with less memory (`suggestions`).
      sampling: compile a chunk of the sampler as well.
      output: folder of the files.
      compilation_cache: its folder, as of `compilation_cache.folder_of`, keeps what was found in plans/; "" to keep nothing.

    Raises:
      ExpectedError: a field or the target is invalid, or the compiler of the target is missing.
    """
    config_validation.check_config(config)
    network_check.check_network(config)
    machine = targets.parse_target(target)
    meshes.check_batch_size(config.train.batch_size, machine.num_devices, config.optimizer.accumulation_steps)
    targets.check_installed(machine)
    check_folder(config, machine, folder, output)  # before minutes of compilation
    kept = folder_of(compilation_cache, folder)
    cache = PlanCache(paths.expand(kept) / FOLDER if kept else None)
    summary = summarized(config, machine, cache)
    texts = [console.text(summary, machine, title=f"{config.data.name} on {target}", unit="step", steps=config.train.num_steps)]
    plan: dict[str, Any] = {"target": target, "devices": machine.num_devices, "training": summary}
    if suggest and not summary["memory"]["fits"]:
        plan["suggestions"] = list(suggestions(config, machine, cache, summary))
        texts.append(suggestions_text(plan["suggestions"]))
    if sampling:
        plan["sampling"] = summarized(config, machine, cache, sampling=True)
        title = f"{config.sampling.sampler} on {target}: {plan['sampling'].get('steps')} steps of a batch"
        steps = -(-config.sampling.num_steps // plan["sampling"].get("steps", 1))
        texts.append(console.text(plan["sampling"], machine, title=title, unit="chunk", steps=steps))
    print("\n".join(texts))
    write(config, machine, plan, folder, output)
    return 0


def identity_of(config: ConfigDict, machine: Target) -> dict[str, Any]:
    """What the compiled programs depend on, beside the versions."""
    fields = config.to_dict()
    sections = {name: value for name, value in fields.items() if name not in NOT_READ}
    sections["data"] = {name: value for name, value in fields["data"].items() if name not in NOT_READ_OF_DATA}
    sections["train"] = {name: fields["train"][name] for name in READ_OF_TRAIN}
    return {"mode": "plan", "target": machine.name, "config": sections, "custom": choices.custom_modules(config)}


def compiled_from(config: ConfigDict, machine: Target) -> dict[str, Any]:
    """All on which a compiled program depends beside the versions: `identity_of`, and what this computer and its user add."""
    own = [config[choice.section][choice.field] for choice in choices.CHOICES]
    cpus = {"cpus": os.cpu_count()} if machine.chip.platform == "cpu" else {}
    found = {"flags": compiler_flags(os.environ), "sources": own_sources(filter(is_custom, own))}
    return identity_of(config, machine) | found | cpus


def summarized(config: ConfigDict, machine: Target, cache: PlanCache, *, sampling: bool = False) -> dict[str, Any]:
    """The summary of the training step or, with `sampling`, of a chunk of the sampler; from the cache if it is there."""
    name = "the sampler" if sampling else "the training step"
    key = digest(compiled_from(config, machine) | {"sampling": sampling})
    found = cache.get(key)
    if found is None:
        label = f"compiling {name} for {machine.name}"
        found = run_in_process(compile_step.plan, config, machine, sampling, environment=CPU_ONLY, label=label)
        cache.put(key, found)
    return report.summarize(found, machine, config.model.dtype)


def suggestions(config: ConfigDict, machine: Target, cache: PlanCache, summary: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What makes the step fit: each change compiled by itself, whether it fits, and its images/s; if none does, all of them."""
    images = config.train.batch_size // machine.num_devices
    estimate = report.images_that_fit(summary) if "peak" in summary["memory"] else None
    fewer = images // 2 if estimate is None else min(images // 2, estimate)
    micro = images // config.optimizer.accumulation_steps
    parts = next((number for number in range(2, micro) if micro % number == 0 and images // number <= fewer), micro)
    changes: list[dict[str, Any]] = [{"optimizer.accumulation_steps": parts * config.optimizer.accumulation_steps}]
    if "remat" in choices.options_of(config, choices.NETWORK):
        changes.append({f"{choices.section_of(config, choices.NETWORK)}.remat": True})
    changes.append({"model.dtype": "bfloat16"})
    if (copies := math.gcd(machine.num_devices, HOST_DEVICES)) > 1:
        changes.append({"mesh.data": -1, "mesh.fsdp": copies})
    together, compiled, fits = functools.reduce(operator.or_, changes), [config.to_dict()], False
    for change in [*changes, together]:
        other = config.copy_and_resolve_references()
        other.update_from_flattened_dict(change)
        if (fits and change is together) or other.to_dict() in compiled:
            continue
        compiled.append(other.to_dict())
        found = summarized(other, machine, cache)
        seconds = report.best_seconds(found) if found["memory"]["fits"] else None
        fits |= found["memory"]["fits"]
        yield {
            "change": change,
            "fits": found["memory"]["fits"],
            "peak": found["memory"].get("peak"),
            "images_per_s": None if seconds is None else config.train.batch_size / seconds,
        }


def suggestions_text(rows: list[dict[str, Any]]) -> str:
    """One line for each change."""
    lines = []
    for row in rows:
        flags = " ".join(f"--config.{field}={value}" for field, value in row["change"].items())
        size = "" if row["peak"] is None else f", {row['peak'] / targets.GIB:.1f} GiB"
        size += "" if row["images_per_s"] is None else f", estimate: {row['images_per_s']:,.0f} images/s"
        lines.append(f"with {flags} it {'fits' if row['fits'] else 'does not fit'}{size}\n")
    if not any(row["fits"] for row in rows):
        lines.append("none of them fits: choose a lower train.batch_size, more devices, or ones with more memory\n")
    return "".join(lines)


def check_folder(config: ConfigDict, machine: Target, folder: str, output: str) -> None:
    """Check that `write` can write. A folder given by `output` is created, that of `default_folder` is not.

    Raises:
      FileAccessError, ConflictError: as `write`.
    """
    if output:
        return manifest.check_output(identity_of(config, machine), output)
    parent = default_folder(config, machine, folder)
    while not (storage.is_remote(parent) or parent.exists()):
        parent = parent.parent
    try:
        storage.check_writable(parent)
    except OSError as error:
        raise paths.cannot_write(parent, error) from error


def default_folder(config: ConfigDict, machine: Target, folder: str) -> pathlib.Path:
    """Where `write` writes without `output`: in plans/ of the workdir, or in plans/ of the current folder."""
    name, target = config.data.name.replace(":", "_"), machine.name.replace(":", "_")
    parent = paths.expand(folder) if folder else pathlib.Path(os.getcwd())
    return parent / FOLDER / f"{name}-{target}-{digest(identity_of(config, machine))[:8]}"


def write(config: ConfigDict, machine: Target, plan: dict[str, Any], folder: str, output: str) -> None:
    """Write the JSON file and the picture.

    Raises:
      FileAccessError, ConflictError: the folder cannot be written, or holds the plan of another config.
    """
    name = f"plan_{machine.name.replace(':', '_')}"
    identity = identity_of(config, machine)
    target = manifest.claim(
        identity, names=(f"{name}.json", f"{name}.png"), default=default_folder(config, machine, folder), output=output
    )
    write_atomically(target / f"{name}.json", json.dumps(plan | {"program": common.provenance()}, indent=2) + "\n")
    image_grid.save_png(target / f"{name}.png", console.picture(plan["training"], title=machine.name))
    print(f"wrote {name}.json and {name}.png to {target}")

"""--mode=compute_stats: save the statistics of a data set, as a reference for evaluations.

They cover the whole split: each image once, without flips, as uint8 at the resolution of the model.
"""

import pathlib
from typing import Any

from ml_collections import ConfigDict

from ddpm_jax import config_validation, evaluation_config, shared_first_reading
from ddpm_jax.evaluation.reference import measure_reference
from ddpm_jax.metrics import reference_stats
from ddpm_jax.runtime import distributed, paths, workdir
from ddpm_jax.runtime import mesh as meshes
from ddpm_jax.runtime.errors import ExpectedError
from ddpm_jax.user_messages import UserError


@distributed.distributed_main()
def run(config: ConfigDict, folder: str, *, output: str = "") -> int:
    """Write the statistics of config.evaluation.split to a file, by default eval/reference.npz in the workdir.

    A file with statistics of another data set or of other features is not overwritten.
    """
    with distributed.raise_on_all_processes():
        config_validation.check_config(config)
    shared_first_reading.read_parts(config, evaluation_config.compared_split(config))
    with distributed.raise_on_all_processes():
        target = paths.output_path(output, workdir.evaluation_folder(folder) / "reference.npz")
        if distributed.is_primary_process():
            paths.make_output_folder(target.parent)
        collector = evaluation_config.build_collector(config, meshes.make_mesh())
        identity = evaluation_config.reference_identity(config, collector.extractor)
        check_replaceable(target, identity)
        source = evaluation_config.load_compared(config)
    made = measure_reference(source, collector, identity, spatial=collector.extractor.name == "inception")
    with distributed.raise_on_all_processes():
        if distributed.is_primary_process():
            reference_stats.save(target, made)
            kept = f", with features of {len(made.features):,} of them" if len(made.features) < len(source) else ""
            print(f"wrote statistics of {len(source):,} images of {source.name} {source.split}{kept} to {target}")
    return 0


def check_replaceable(target: pathlib.Path, wanted: dict[str, Any]) -> None:
    """Raise a UserError if `target` exists, unless it holds statistics with the same settings as `wanted`."""
    if target.is_dir():
        raise UserError(f"--output={target} is a folder: name a file, such as --output={target / 'reference.npz'}")
    if not target.exists():
        return
    advice = "choose another --output, or remove the file first"
    try:
        held = reference_stats.load(target).provenance
        if held is None:
            raise UserError(f"{target} holds statistics of unknown origin")
        reference_stats.check_matches(target, held, wanted)
    except ExpectedError as error:
        raise UserError(f"{error}; it was not overwritten: {advice}") from error

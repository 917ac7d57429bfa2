"""--mode=compute_stats: statistics of a data set's real images, in a file that evaluations and other runs compare with.

The whole split, each image once, not flipped, as uint8 at the model's resolution.
"""

import pathlib
from typing import Any

from ml_collections import ConfigDict

from ddpm_jax import config_validation, evaluation_config
from ddpm_jax.evaluation.reference import measure_reference
from ddpm_jax.metrics import reference_stats
from ddpm_jax.runtime import distributed, paths, workdir
from ddpm_jax.runtime import mesh as meshes
from ddpm_jax.runtime.errors import ExpectedError
from ddpm_jax.user_messages import UserError


@distributed.distributed_main()
def run(config: ConfigDict, folder: str, *, output: str = "", defaults: ConfigDict | None = None) -> int:
    """Write statistics of the images to compare with into a file, by default the workdir's eval/reference.npz.

    A file that holds statistics of another set or other features is not replaced.
    """
    with distributed.raise_on_all_processes():
        config_validation.check_config(config)
        target = paths.output_path(output, workdir.evaluation_folder(folder) / "reference.npz")
        if distributed.is_primary_process():
            paths.make_output_parent(target)
        collector = evaluation_config.build_collector(config, meshes.make_mesh())
        identity = evaluation_config.reference_identity(config, collector.extractor)
        check_replaceable(target, identity)
        source = evaluation_config.load_compared(config)
    made = measure_reference(source, collector, identity)
    with distributed.raise_on_all_processes():
        if distributed.is_primary_process():
            reference_stats.save(target, made)
            kept = f", with the features of {len(made.features):,}" if len(made.features) < len(source) else ""
            print(f"statistics of {len(source):,} images of {source.name} {source.split}{kept} in {target}")
    return 0


def check_replaceable(target: pathlib.Path, wanted: dict[str, Any]) -> None:
    """Raises a UserError where `target` is a file, unless it holds statistics of what is `wanted`."""
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
        raise UserError(f"{error}; it is not replaced: {advice}") from error

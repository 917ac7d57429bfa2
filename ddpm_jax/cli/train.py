"""--mode=train: train a model, or resume from the latest checkpoint of the workdir.

A run is a function of its config. If it is killed at any time and rerun, the result is bit-identical: the state comes from the
checkpoint, and the data and noise of step n depend on (seed, n) only.
"""

import contextlib
import functools
import logging
import pathlib
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from clu import parameter_overview
from ml_collections import ConfigDict

from ddpm_jax import (
    build,
    choices,
    compiler_config,
    config_validation,
    cpu,
    data_config,
    network_check,
    sampling_config,
    shared_first_reading,
    training_config,
)
from ddpm_jax.cli import common
from ddpm_jax.data import device_prefetch, identity, pipeline
from ddpm_jax.runtime import (
    config_changes,
    device_flops,
    distributed,
    profiling,
    rng,
    run_record,
    shared_workdir,
    versions,
    workdir,
)
from ddpm_jax.runtime import mesh as meshes
from ddpm_jax.runtime.atomic import write_atomically
from ddpm_jax.runtime.checkpoint import CheckpointManager
from ddpm_jax.runtime.metric_logger import TrainLogger
from ddpm_jax.runtime.preemption import GracefulShutdown
from ddpm_jax.runtime.trackers import TrackerGroup, jsonl, run_name
from ddpm_jax.training import fsdp
from ddpm_jax.training.best_step import BestCheckpoint
from ddpm_jax.training.delayed_log import DelayedMetricLogger
from ddpm_jax.training.state import TrainState

logger = logging.getLogger(__name__)

PARAMETERS = "parameters.txt"  # in the workdir


@distributed.distributed_main()
def run(config: ConfigDict, folder: str, *, profile: str = "") -> int:
    """Train to config.train.num_steps. Returns the exit code: 0, or 128 + signal after SIGTERM or Ctrl-C."""
    stopped_by = train(config, folder, profile=profile).stopped_by
    return 128 + stopped_by if stopped_by else 0


class Training(NamedTuple):
    """The end of a training.

    Attributes:
      run_folder: the absolute path of the workdir.
      step: number of steps done, which are saved.
      complete: whether these are all steps.
      stopped_by: the signal that stopped it, SIGTERM or SIGINT, perhaps in the last step or after it; 0 for none.
    """

    run_folder: pathlib.Path
    step: int
    complete: bool
    stopped_by: int


def train(config: ConfigDict, folder: str, *, profile: str = "") -> Training:
    """Train to config.train.num_steps, or resume. After an error the last good checkpoint is kept.

    Args:
      config: resolved; `data_config.complete` changes it.
      folder: workdir; created if missing.
      profile: FIRST:LAST, the steps to trace, or "".

    Raises:
      ExpectedError: a field is invalid, the workdir holds another run or is in use, or a file cannot be read or written.
    """
    started = time.monotonic()
    mesh = meshes.make_mesh()
    with distributed.raise_on_all_processes():
        config_validation.check_config(config)
        network_check.check_network(config)
        training_config.check_params_are_trained(config)
        training_config.kept_score(config)  # raises
        profiled_steps = profiling.parse_steps(profile)
        meshes.check_batch(config.train.batch_size, mesh, config.optimizer.accumulation_steps)
        meshes.training_mesh(mesh, **config.mesh)  # raises
    run_folder = shared_workdir.prepare_workdir(folder, config.to_dict(), write=True)
    with shared_workdir.hold_workdir(run_folder) as check_held:
        with distributed.raise_on_all_processes():
            run_record.check_config(run_folder, config.to_dict(), resume=True)
        return _train(config, run_folder, mesh, started, profiled_steps, check_held)


def _train(
    config: ConfigDict,
    run_folder: pathlib.Path,
    mesh: jax.sharding.Mesh,
    started: float,
    profiled_steps: range,
    check_held: Callable[[], None],
) -> Training:
    """The part of `train` that holds the lock of the workdir; `check_held` is called before each save."""
    is_writer = distributed.is_primary_process()
    train_mesh = meshes.training_mesh(mesh, **config.mesh)
    shared_first_reading.read_parts(config)
    with distributed.raise_on_all_processes():
        source = data_config.load_source(config)
        data_config.check_trained_on(run_folder, identity.identity_of(source), config.model.class_conditional)
        data_config.complete(config, identity.identity_of(source))
        build.build_batched_sampler(config, mesh)  # find invalid fields of config.sampling now
        tracker = TrackerGroup(config.train.trackers if is_writer else (), run_folder, fallback_file=jsonl.METRICS)
    evaluate = training_config.build_evaluation(config, mesh, run_folder, source) if config.train.eval_every else None

    with CheckpointManager(
        workdir.checkpoint_folder(run_folder), max_to_keep=config.train.max_to_keep, keep_period=config.train.keep_period
    ) as checkpoints:
        with common.name_changed_files(config, run_folder, None):
            state, start_step, source_weights = initial_state(config, checkpoints, train_mesh, source.class_names)
        logger.info(write_parameters(run_folder, state.params, is_writer))
        devices = f"{mesh.size} {jax.devices()[0].platform} device(s){meshes.describe(train_mesh)}"
        logger.info(f"{len(source):,} images of {source.name}, {devices}, {run_folder}")
        if start_step:
            logger.info(resume_line(config, run_folder, start_step))
        tracker.start(config.to_dict(), run_name(run_folder), start_step)
        with (
            GracefulShutdown(distributed.PreemptionSync(mesh) if jax.process_count() > 1 else None) as interrupt,
            TrainLogger(
                run_folder,
                total_steps=config.train.num_steps,
                start_step=start_step,
                batch_size=config.train.batch_size,
                is_writer=is_writer,
                tracker=tracker,
            ) as logbook,
        ):
            grids = training_config.SampleGrids(config, mesh, run_folder, logbook, source.class_names)
            learning_rate = build.build_learning_rate(config)
            log = DelayedMetricLogger(
                logbook,
                checkpoints,
                log_every=config.train.log_every,
                batch_size=config.train.batch_size,
                learning_rate=learning_rate,
                remedies=training_config.remedies(config),
            )
            scores = BestCheckpoint(training_config.kept_score(config), run_folder, checkpoints) if evaluate else None
            everywhere = meshes.replicated(train_mesh)
            train_step = jax.jit(
                build.build_train_step(config, train_mesh),
                donate_argnums=0,
                out_shardings=(fsdp.state_sharding(train_mesh, state), everywhere),
                compiler_options=compiler_config.train_step_options(config),
            )
            key = jax.jit(functools.partial(rng.purpose_key, config.seed, "train"), out_shardings=everywhere)()
            batches = device_prefetch.prefetch_to_device(
                pipeline.batches(
                    source,
                    batch_size=config.train.batch_size,
                    seed=config.seed,
                    start_step=start_step,
                    process_index=meshes.process_position(mesh, jax.process_index()),
                    process_count=jax.process_count(),
                    num_threads=config.data.num_threads,
                    prefetch=config.data.prefetch,
                    num_workers=config.data.num_workers,
                ),
                meshes.batch_sharding(train_mesh),
            )

            def save(step: int, state: TrainState, *, wait: bool = False) -> None:
                log.flush()  # first, so that a non-finite state is never saved
                logbook.sync()
                check_held()
                checkpoints.save(step, state.fields(), wait=wait)

            # A run that was killed between a checkpoint and its grid or evaluation makes them now.
            has_grid, has_scores = finished_outputs(run_folder, start_step)
            peak = device_flops.peak_flops(mesh.devices.flat[0]) if is_writer else None
            traced = profiled_steps if is_writer else range(0)
            with contextlib.closing(batches), profiling.profiling(run_folder / "profile", traced) as trace:
                for step in range(start_step, config.train.num_steps):
                    stop = interrupt.check()
                    if step > start_step and (stop or is_due(step, config.train.checkpoint_every)):
                        save(step, state)
                    if stop:
                        break
                    # After the checkpoint, so that no step is lost if the sampler or an evaluation fails or is killed.
                    if is_due(step, config.train.sample_every) and (step > start_step or not has_grid):
                        log.flush()
                        with logbook.pause():
                            grids.save(state)
                    if is_due(step, config.train.eval_every) and (step > start_step or not has_scores):
                        log.flush()
                        with logbook.pause():
                            values = evaluate(state)
                            logbook.log_scalars(step, values)
                            is_best = scores.update(step, values)
                        if is_best:
                            save(step, state)
                    trace(step)
                    batch = next(batches)
                    if step == start_step and peak:
                        flops = device_flops.step_flops(
                            train_step, state, batch, key, learning_rate(step), repeats=config.optimizer.accumulation_steps
                        )
                        if flops:
                            logbook.set_step_cost(flops / (peak * mesh.size))
                    state, metrics = train_step(state, batch, key, learning_rate(step))
                    log.add(step + 1, metrics)
                    if step == start_step:
                        log.flush()  # a step with a non-finite loss must not be recorded
                        with distributed.raise_on_all_processes():
                            if is_writer:
                                record_start(config, run_folder, start_step, mesh, **source_weights)
                                workdir.write_data_identity(run_folder, identity.identity_of(source))
                                table = (run_folder / PARAMETERS).read_text(encoding="utf-8")
                                logbook.log_text(start_step, "parameters", f"```\n{table}```")
                        logger.info(f"first step done {time.monotonic() - started:.1f} s after the start")
            log.flush()
            step = int(state.step)
            if step > start_step:  # else there is nothing to save
                save(step, state, wait=True)
            ending = f"done: {step:,} steps; generate images with: {sampling_config.sample_command(run_folder)}"
            complete = step == config.train.num_steps
            if not interrupt.check_last():
                if config.train.sample_every:
                    with logbook.pause():
                        ending = grids.save_last(state)
                if evaluate:
                    with logbook.pause():
                        values = evaluate(state)
                        logbook.log_scalars(step, values)
                        scores.update(step, values)
                logger.info(ending)
                # Now only Ctrl-C matters: to the program that called this. There is nothing left to stop.
                return Training(run_folder, step, complete, signal.SIGINT if interrupt.check_last() == signal.SIGINT else 0)
            stopped_by = interrupt.agreed or 0
            saved = f"step {step:,} is saved" if step else "no step was done, so nothing is saved"
            action = "for its image grid and evaluation" if complete else "to resume" if step else "to start"
            if not (run_folder / "config.json").exists():  # it is written with the first step; --workdir alone is not enough
                saved, action = "no step was done, so nothing is saved, not even the config", "with its --config, to start"
            logger.info(f"stopped by {signal.Signals(stopped_by).name}: {saved}; run the same command again {action}")
            return Training(run_folder, step, complete, stopped_by)


def resume_line(config: ConfigDict, run_folder: pathlib.Path, step: int) -> str:
    """The log line of a resume: the step, and each changed config field and package version."""
    fields = config.to_dict()
    changed = run_record.resume_changes(run_folder, fields, step)
    changed |= run_record.version_changes(run_folder, versions.program_versions() | choices.custom_modules(config), step)
    return f"resuming at step {step:,}" + (f"; changed: {config_changes.describe(changed)}" if changed else "")


def record_start(
    config: ConfigDict, run_folder: pathlib.Path, step: int, mesh: jax.sharding.Mesh, **source_weights: Any
) -> None:
    """Write config.json, and append to history.jsonl that training started at `step`. Called after the first step."""
    fields, facts = config.to_dict(), versions.start_facts()
    facts["versions"] |= choices.custom_modules(config)
    run_record.record_start(
        run_folder,
        fields,
        step,
        changed=run_record.resume_changes(run_folder, fields, step),
        devices=f"{mesh.size} {mesh.devices.flat[0].device_kind}",
        processes=jax.process_count(),
        **source_weights,
        **facts,
    )


def initial_state(
    config: ConfigDict, checkpoints: CheckpointManager, mesh: jax.sharding.Mesh, class_names: Sequence[str]
) -> tuple[TrainState, int, dict[str, Any]]:
    """The latest readable checkpoint or the initial state, sharded as the mesh requires; its step; fields for the history."""
    init, key = build.build_init(config), rng.purpose_key(config.seed, "init")
    abstract = fsdp.abstract_state(mesh, jax.eval_shape(init, key))
    if checkpoints.latest_step() is None:
        shardings = fsdp.state_sharding(mesh, abstract)
        make = jax.jit(init, out_shardings=shardings, compiler_options=cpu.init_compiler_options())
        if not config.train.init_from:
            return make(key), 0, {}
        start = training_config.load_initial_weights(config, abstract.params, class_names)
        logger.info(start.line)
        return make(key, fsdp.put(mesh, start.taken)), 0, {"init_from": start.record}
    fields, step = checkpoints.restore(abstract.fields())
    return TrainState.from_fields(fields), step, {}


def finished_outputs(run_folder: pathlib.Path, step: int) -> tuple[bool, bool]:
    """Whether the image grid and the scores of a step have been written; both True at step 0, which has neither."""
    done = (True, True)
    with distributed.raise_on_all_processes():
        if step and distributed.is_primary_process():
            rows = [row for row in jsonl.read_metrics(run_folder) if row["step"] == step]
            has_scores = any(tag.startswith("eval/") for row in rows for tag in row)
            done = (training_config.grid_file(run_folder, step).exists(), has_scores)
    has_grid, has_scores = distributed.broadcast_ints(list(map(int, done)))
    return bool(has_grid), bool(has_scores)


def is_due(step: int, every: int) -> bool:
    """Whether an action with this period (0: never) is due after `step` steps."""
    return bool(every) and step % every == 0


def write_parameters(run_folder: pathlib.Path, params: Any, is_writer: bool) -> str:
    """Write the table of all parameters to parameters.txt in the workdir; return a log line with their number."""
    file = run_folder / PARAMETERS
    with distributed.raise_on_all_processes():
        if is_writer:
            write_atomically(file, parameter_overview.get_parameter_overview(params, include_stats=False) + "\n")
    return f"{sum(leaf.size for leaf in jax.tree.leaves(params)):,} parameters, listed in {file}"

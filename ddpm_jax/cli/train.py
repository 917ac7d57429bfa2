"""--mode=train: train a model, or go on where the workdir's newest checkpoint stands.

What a run computes is a function of its config alone. Killed at any instant and started again, it ends with the same
bits: the state is the checkpoint's, and data and noise of step n follow from (seed, n).
"""

import contextlib
import datetime
import functools
import logging
import math
import pathlib
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from clu import parameter_overview
from ml_collections import ConfigDict

from ddpm_jax import build, config_validation, cpu, data_config
from ddpm_jax.cli import load_params
from ddpm_jax.cli.pictures import Pictures, parameter_count, sample_command
from ddpm_jax.data import identity, pipeline
from ddpm_jax.runtime import config_changes, distributed, rng, run_record, versions, workdir
from ddpm_jax.runtime import mesh as meshes
from ddpm_jax.runtime.atomic import write_atomically
from ddpm_jax.runtime.checkpoint import CheckpointManager
from ddpm_jax.runtime.metric_logger import TrainLogger
from ddpm_jax.runtime.preemption import GracefulShutdown
from ddpm_jax.samplers.batched import NonFiniteSamples
from ddpm_jax.training import optimizer as optimizers
from ddpm_jax.training.state import TrainState
from ddpm_jax.user_messages import UsageError, UserError

logger = logging.getLogger(__name__)


@distributed.distributed_main()
def run(config: ConfigDict, folder: str, *, profile: str = "", defaults: ConfigDict | None = None) -> int:
    """Train to config.train.num_steps; the exit code: 0, or 128 + signal after SIGTERM or Ctrl-C.

    Args:
      config: resolved.
      folder: workdir, made if need be.
      profile: FIRST:LAST, the steps to trace, or "".
      defaults: values of fields that the workdir's config is too old to have.

    Raises:
      UserError, UsageError: what the person can mend; the last good checkpoint stays.
    """
    started = time.monotonic()
    mesh = meshes.make_mesh()
    with distributed.raise_on_all_processes():
        config_validation.check_config(config)
        load_params.check_kept(config)
        profiled_steps = parse_profile(profile)
        meshes.check_batch(config.train.batch_size, mesh, config.optimizer.accumulation_steps)
    run_folder = distributed.prepare_workdir(folder, config.to_dict(), write=True)
    with distributed.hold_workdir(run_folder) as check_held:
        with distributed.raise_on_all_processes():
            run_record.check_resume(run_folder, config.to_dict(), build.as_dict(defaults))
        options = {"started": started, "profiled_steps": profiled_steps, "check_held": check_held}
        return _train(config, run_folder, mesh, defaults=defaults, **options)


def _train(
    config: ConfigDict,
    run_folder: pathlib.Path,
    mesh: jax.sharding.Mesh,
    *,
    defaults: ConfigDict | None,
    started: float,
    profiled_steps: range,
    check_held: Callable[[], None],
) -> int:
    """As `run`, once the workdir is there, held and of this config; `check_held` comes before each save."""
    is_writer = distributed.is_primary_process()
    evaluation = None
    with distributed.raise_on_all_processes():
        source = build.build_source(config)
        check_data(run_folder, identity.identity_of(source), config.model.class_conditional)
        data_config.complete(config, identity.identity_of(source))
        build.build_batched_sampler(config, mesh)  # so that a wrong field of config.sampling is found now
    if config.train.eval_every:
        from ddpm_jax.cli import evaluate  # half a second of import that other runs need not pay

        evaluation = evaluate.PeriodicEvaluator(config, mesh)

    with CheckpointManager(
        workdir.checkpoint_folder(run_folder),
        max_to_keep=config.train.max_to_keep,
        keep_period=config.train.keep_period,
    ) as checkpoints:
        state, start_step = initial_state(config, checkpoints, mesh)
        logger.info(write_parameters(run_folder, state.params, is_writer))
        logger.info(f"{len(source):,} images of {source.name}, {mesh.size} {jax.devices()[0].platform} device(s), {run_folder}")
        if start_step:
            logger.info(resume_line(config, run_folder, start_step, defaults))
        with (
            GracefulShutdown(distributed.PreemptionSync(mesh) if jax.process_count() > 1 else None) as interrupt,
            TrainLogger(
                run_folder,
                total_steps=config.train.num_steps,
                start_step=start_step,
                batch_size=config.train.batch_size,
                is_writer=is_writer,
                tensorboard=config.train.tensorboard,
            ) as logbook,
        ):
            pictures = Pictures(config, mesh, run_folder, logbook, source.class_names)
            log = DelayedMetricLogger(config, logbook, start_step, checkpoints)
            everywhere = meshes.replicated(mesh)
            train_step = jax.jit(build.build_train_step(config, mesh), donate_argnums=0, out_shardings=everywhere)
            key = jax.jit(functools.partial(rng.purpose_key, config.seed, "train"), out_shardings=everywhere)()
            batches = pipeline.prefetch_to_device(
                pipeline.batches(
                    source,
                    batch_size=config.train.batch_size,
                    seed=config.seed,
                    start_step=start_step,
                    process_index=jax.process_index(),
                    process_count=jax.process_count(),
                    num_threads=config.data.num_threads,
                    prefetch=config.data.prefetch,
                ),
                meshes.batch_sharding(mesh),
            )
            with contextlib.closing(batches), profiling(run_folder, profiled_steps if is_writer else range(0)) as trace:
                for step in range(start_step, config.train.num_steps):
                    stop = interrupt.check()
                    if step > start_step:
                        due = DueActions(config, step)
                        if due.picture:
                            log.flush()
                            with logbook.pause():
                                pictures.along_the_way(state)
                        if due.evaluation:
                            log.flush()
                            with logbook.pause():
                                score(config, evaluation, state, logbook)
                        if due.checkpoint or stop:
                            log.flush()  # nothing unsound is ever saved
                            check_held()
                            checkpoints.save(step, state.fields())
                    if stop:
                        break
                    trace(step)
                    batch = next(batches)
                    state, metrics = train_step(state, batch, key)
                    log.add(step + 1, metrics)
                    if step == start_step:
                        log.flush()  # a step whose loss is not finite is not one to record
                        with distributed.raise_on_all_processes():
                            if is_writer:
                                record_start(config, run_folder, start_step, mesh, defaults)
                                workdir.write_data_identity(run_folder, identity.identity_of(source))
                        logger.info(f"first step done {time.monotonic() - started:.1f} s after the start of the program")
            log.flush()
            step = int(state.step)
            if step > start_step:  # else there is nothing new, and no record of a step
                check_held()
                # Before the last picture, which may take as long as the training did.
                checkpoints.save(step, state.fields(), wait=True)
            ending = f"done: {step:,} steps; make pictures with: {sample_command(run_folder)}"
            if step == config.train.num_steps and config.train.sample_every:
                with logbook.pause():
                    ending = pictures.last(state)
            if step == config.train.num_steps and evaluation:
                with logbook.pause():
                    score(config, evaluation, state, logbook)
            if interrupt.agreed and step < config.train.num_steps:
                name = signal.Signals(interrupt.agreed).name
                saved = f"step {step:,} is saved" if step else "before the first step, so nothing is saved"
                logger.info(f"stopped by {name}: {saved}; run the same command again to resume")
                return interrupt.exit_code
            logger.info(ending)
    return 0


def check_data(run_folder: pathlib.Path, new: identity.Identity, has_classes: bool) -> None:
    """Compare the set with the one that the run was trained on so far.

    Raises:
      UserError: a class-conditional run was trained on other classes.
    """
    old = workdir.read_data_identity(run_folder) if run_record.latest_saved_step(run_folder) is not None else None
    if old is None:
        return
    classes = identity.class_changes(old, new)
    if has_classes and classes:
        raise UserError(
            f"{run_folder} was trained on other classes than {new['name']} has: {classes}. Put them back, or choose another "
            "--workdir for a new run"
        )
    if changed := identity.content_changes(old, new):
        changed += f"; classes {classes}" if classes else ""  # which this model does not use
        logger.warning(
            f"warning: {new['name']} has changed since the run was trained on it: {changed}; training continues with these"
        )


def resume_line(config: ConfigDict, run_folder: pathlib.Path, step: int, defaults: ConfigDict | None) -> str:
    """What a user is to know of a resume: the step, and each field and version that differs from those of the run so far."""
    changed = run_record.resume_changes(run_folder, config.to_dict(), step, build.as_dict(defaults))
    changed |= run_record.version_changes(run_folder, versions.program_versions(), step)
    return f"resuming at step {step:,}" + (f"; changed: {config_changes.describe(changed)}" if changed else "")


def record_start(
    config: ConfigDict, run_folder: pathlib.Path, step: int, mesh: jax.sharding.Mesh, defaults: ConfigDict | None
) -> None:
    """Write config.json, and the line of history.jsonl for a training that began at `step` and has taken a step."""
    fields = config.to_dict()
    run_record.record_start(
        run_folder,
        fields,
        step,
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        changed=run_record.resume_changes(run_folder, fields, step, build.as_dict(defaults)),
        versions=versions.program_versions(),
        commit=versions.program_commit(),
        devices=f"{mesh.size} {mesh.devices.flat[0].device_kind}",
        processes=jax.process_count(),
        host=socket.gethostname(),
        command=sys.argv,
    )


def initial_state(config: ConfigDict, checkpoints: CheckpointManager, mesh: jax.sharding.Mesh) -> tuple[TrainState, int]:
    """The newest checkpoint that can be read, or the state at step 0; replicated over the mesh, and its step."""
    init, key = build.build_init(config), rng.purpose_key(config.seed, "init")
    sharding = meshes.replicated(mesh)
    if checkpoints.latest_step() is None:
        return jax.jit(init, out_shardings=sharding, compiler_options=cpu.init_compiler_options())(key), 0
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), jax.eval_shape(init, key))
    fields = abstract.fields()
    older = fields | {"opt_state": optimizers.unclipped_layout(abstract.opt_state)}
    as_now = lambda old: old | {"opt_state": optimizers.from_unclipped_layout(old["opt_state"])}  # noqa: E731
    fields, step = checkpoints.restore(fields, older=(older, as_now))
    return TrainState.from_fields(fields), step


class DueActions:
    """What is to be done before step `step` is taken, on the state after `step` steps."""

    def __init__(self, config: ConfigDict, step: int):
        self.checkpoint = step % config.train.checkpoint_every == 0
        self.picture = bool(config.train.sample_every) and step % config.train.sample_every == 0
        self.evaluation = bool(config.train.eval_every) and step % config.train.eval_every == 0


class DelayedMetricLogger:
    """Holds the metrics of a step back until the next one is under way, so that the device never waits for the host."""

    def __init__(self, config: ConfigDict, logbook: TrainLogger, start_step: int, checkpoints: CheckpointManager):
        self._every = config.train.log_every
        self._learning_rate = build.build_learning_rate(config)
        remedies = [f"a --config.optimizer.learning_rate below {config.optimizer.learning_rate:g}"]
        remedies += [] if config.optimizer.clip_norm else ["--config.optimizer.clip_norm=1"]
        remedies += [] if config.model.dtype == "float32" else ["--config.model.dtype=float32"]
        self._remedies = " or ".join(remedies)
        self._logbook = logbook
        self._checkpoints = checkpoints
        self._start_step = start_step
        self._pending: tuple[int, dict[str, jax.Array]] | None = None
        self._interval: list[dict[str, np.ndarray]] = []

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Take the metrics of the step after which `step` steps are done; log those of the one before."""
        self.flush()
        self._pending = (step, metrics)

    def flush(self) -> None:
        """Log what is held back.

        Raises:
          UserError: the loss or the gradient is not finite.
        """
        if self._pending is None:
            return
        step, metrics = self._pending
        self._pending = None
        metrics = jax.device_get(metrics)
        for name in ("loss", "grad_norm"):
            if not math.isfinite(metrics[name]):
                raise UserError(self._not_finite(name, step))
        self._interval.append(metrics)
        if step % self._every == 0:
            self._logbook.log_scalars(step, self._averages(step))
            self._interval.clear()
        else:
            self._logbook.tick(step)

    def _averages(self, step: int) -> dict[str, float]:
        """Over the steps since the last such line; `loss_q1` is of the quarter of the chain with the least noise."""
        total = {name: sum(metrics[name] for metrics in self._interval) for name in self._interval[0]}
        number = len(self._interval)
        scalars = {"loss": total["loss"] / number, "grad_norm": total["grad_norm"] / number}
        scalars["param_norm"] = self._interval[-1]["param_norm"]
        scalars["learning_rate"] = self._learning_rate(step - 1)
        scalars |= self._logbook.rates()
        for quartile, (losses, count) in enumerate(zip(total["quartile_sum"], total["quartile_count"], strict=True), 1):
            if count:
                scalars[f"loss_q{quartile}"] = losses / count
        return {name: float(value) for name, value in scalars.items()}

    def _not_finite(self, name: str, step: int) -> str:
        self._checkpoints.wait()
        latest = self._checkpoints.latest_step()
        saved = "no checkpoint was saved yet" if latest is None else f"the last good checkpoint is of step {latest:,}"
        again = "start again" if latest is None else "resume"
        return f"{name} is not finite at step {step:,}; {saved}. To {again}, give the command {self._remedies}"


def write_parameters(run_folder: pathlib.Path, params: Any, is_writer: bool) -> str:
    """Write the table of all parameters into the workdir's parameters.txt; the line that says how many there are."""
    file = run_folder / "parameters.txt"
    with distributed.raise_on_all_processes():
        if is_writer:
            write_atomically(file, parameter_overview.get_parameter_overview(params, include_stats=False) + "\n")
    return f"{parameter_count(params):,} parameters, listed in {file}"


def score(config: ConfigDict, evaluation: Any, state: TrainState, logbook: TrainLogger) -> None:
    """Log the scores of images generated by the state's weights; without any where they are not finite."""
    try:
        logbook.log_scalars(int(state.step), evaluation.scores(load_params.from_state(config, state)))
    except NonFiniteSamples as error:  # the weights train on: their loss has a check of its own
        logger.info(f"no scores of step {int(state.step):,}: {error}")


def parse_profile(text: str) -> range:
    """FIRST:LAST -> the steps to trace, LAST not among them."""
    if not text:
        return range(0)
    first, colon, last = text.partition(":")
    if not (colon and first.isdigit() and last.isdigit() and int(first) < int(last)):
        raise UsageError(f"--profile={text} must be FIRST:LAST, such as 20:25")
    return range(int(first), int(last))


@contextlib.contextmanager
def profiling(run_folder: pathlib.Path, steps: range) -> Iterator:
    """A function to call before each step: it starts and ends the trace. View it with TensorBoard or xprof."""
    tracing = False

    def trace(step: int) -> None:
        nonlocal tracing
        if tracing and step not in steps:
            jax.profiler.stop_trace()
            tracing = False
        elif not tracing and step in steps:
            jax.profiler.start_trace(str(run_folder / "profile"))
            tracing = True

    try:
        yield trace
    finally:
        if tracing:
            jax.profiler.stop_trace()

"""Checkpoints of a training state: written in the background, restorable even if the newest one is damaged.

A state is a dict of top-level fields, each a tree of arrays: {"params": ..., "ema_params": ..., "opt_state": ...}.
Each field is saved in its own folder inside the step's folder, so that sampling reads the parameters without the optimizer
state. The step's folder gets its final name when all of it is on disk; a killed process leaves a folder with another name,
which the next start removes. Checksums are added last, because the storage format has none for arrays and would silently
return wrong numbers after a bit flip on disk.

Every process of a run must make the same calls in the same order.
"""

import contextlib
import logging
import os
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers as policies

from ddpm_jax.runtime import storage, tree_shapes
from ddpm_jax.runtime.checksums import check_sums, has_sums, is_committed, quarantine, write_sums
from ddpm_jax.runtime.distributed import all_processes, broadcast_ints, is_primary_process, raise_on_all_processes
from ddpm_jax.runtime.errors import (
    CheckpointError,
    CheckpointMismatch,
    ExpectedError,
    FileAccessError,
    InvalidArgumentError,
    error_line,
    os_errors,
)
from ddpm_jax.runtime.orbax_logs import silence_orbax

logger = logging.getLogger(__name__)

State = dict[str, Any]

# Errors that do not indicate a corrupt checkpoint.
_NOT_CORRUPTION = (MemoryError, ImportError, NameError, AttributeError, jax.errors.JaxRuntimeError)


class CheckpointManager(contextlib.AbstractContextManager):
    """The checkpoints of one folder.

    Args:
      directory: created if missing, unless `read_only`.
      max_to_keep: number of newest checkpoints to keep.
      keep_period: steps divisible by this are never deleted; 0 disables it.
      read_only: never writes, renames or deletes, so that a running training is not disturbed.

    Raises:
      InvalidArgumentError: `max_to_keep` below 1 or `keep_period` negative.
      FileAccessError: the folder cannot be created.
    """

    def __init__(
        self, directory: str | os.PathLike, *, max_to_keep: int, keep_period: int = 0, read_only: bool = False
    ) -> None:
        if max_to_keep < 1:
            raise InvalidArgumentError(f"max_to_keep is {max_to_keep}: it must be at least 1")
        if keep_period < 0:
            raise InvalidArgumentError(f"keep_period is {keep_period}: give a number of steps, or 0 to keep only the newest")
        silence_orbax()
        _disable_replica_parallel()
        self.directory = storage.path(directory)  # Orbax rejects relative paths
        self._read_only = read_only
        self._background: threading.Thread | None = None
        self._background_error: Exception | None = None
        self._failure: FileAccessError | None = None
        self._manager: ocp.CheckpointManager | None = None
        if read_only and not all_processes(self.directory.is_dir()):
            return
        self._pinned = _Pinned()
        keep: list[Any] = [policies.LatestN(max_to_keep), self._pinned]
        if keep_period:
            keep.append(policies.EveryNSteps(keep_period))
        options = ocp.CheckpointManagerOptions(
            create=False,
            read_only=read_only,
            save_interval_steps=0 if read_only else 1,
            cleanup_tmp_directories=not read_only,
            preservation_policy=None if read_only else policies.AnyPreservationPolicy(keep),
        )
        with os_errors(f"cannot use the checkpoint folder {self.directory}"):
            with raise_on_all_processes():  # before Orbax synchronizes the processes
                if not read_only:
                    storage.make_folder(self.directory)
            self._manager = ocp.CheckpointManager(epath.Path(os.fspath(self.directory)), options=options)

    def steps(self) -> list[int]:
        """The steps with a complete checkpoint, in order, as seen by process 0."""
        if self._manager is None:
            return []
        if self._read_only:
            self._manager.reload()
        # Orbax includes unfinished checkpoints.
        return broadcast_ints(sorted(step for step in self._manager.all_steps() if is_committed(self.directory / str(step))))

    def latest_step(self) -> int | None:
        """The newest step with a checkpoint; None if there is none."""
        steps = self.steps()
        return steps[-1] if steps else None

    def pin(self, step: int) -> None:
        """Never delete the checkpoint of `step`, from the next save on; the step pinned before is no longer kept for that.

        Every process must pin the same step. It is not recorded: pin again after a start.
        """
        self._pinned.step = step

    def save(self, step: int, state: State, *, wait: bool = False) -> bool:
        """Writes `state` in the background; its buffers may be donated as soon as this returns.

        Waits for the previous save first.

        Returns:
          False if `step` already has a checkpoint, which is then kept unchanged.

        Raises:
          FileAccessError: this or the previous save could not be written (disk full, folder gone).
          ValueError: `step` is older than the newest checkpoint.
        """
        assert self._manager is not None, "closed"
        assert not self._read_only, "read only"
        self.wait()
        if self._failure:
            raise self._failure
        steps = self.steps()
        if steps and step <= steps[-1]:
            if step not in steps:
                raise ValueError(f"step {step} is older than the newest checkpoint, {steps[-1]}")
            return False
        items = {name: ocp.args.StandardSave(_wrap_leaf(tree)) for name, tree in state.items() if jax.tree.leaves(tree)}
        try:
            # force: the caller decides when to save, not a policy.
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)
        except OSError as error:
            raise self._fail(error) from error
        self._background = threading.Thread(target=self._finish, args=(step,), name="checkpoint")
        self._background.start()
        if wait:
            self.wait()
        return True

    def restore(self, abstract_state: State, step: int | None = None) -> tuple[State, int]:
        """Reads a whole state into the shapes, types and shardings of `abstract_state`.

        With `step` None, reads the newest valid checkpoint: damaged ones are logged and renamed to damaged-STEP, so that
        the step can be saved again.

        Args:
          abstract_state: jax.ShapeDtypeStruct trees, with shardings, of every field.
          step: of the checkpoint.

        Returns:
          The state, and its step.

        Raises:
          CheckpointError: no checkpoint, none of `step`, all damaged, or of another model.
        """
        state, step = self._restore(abstract_state, step, whole=True)
        with raise_on_all_processes():
            if not self._read_only and is_primary_process() and not has_sums(self.directory / str(step)):
                # The process was killed before it wrote the checksums. The checkpoint was read completely, so it is valid.
                write_sums(self.directory / str(step))
        return state, step

    def restore_part(self, abstract_part: State, step: int | None = None) -> tuple[State, int]:
        """Like `restore`, but reads only the fields of `abstract_part`."""
        return self._restore(abstract_part, step, whole=False)

    def wait(self) -> None:
        """Waits until the last save is on disk.

        Raises:
          FileAccessError: the save failed.
        """
        if self._background is None:
            return
        self._background.join()
        self._background = None
        if self._background_error is not None:
            raise self._fail(self._background_error) from self._background_error

    def close(self) -> None:
        """Waits for the last save and ends the background threads. May be called twice.

        Raises:
          FileAccessError: the last save failed and this was not raised before.
        """
        try:
            self.wait()
        finally:
            manager, self._manager = self._manager, None
            if manager is not None and self._failure is None:  # after a failure it would only raise the same error again
                manager.close()

    def __exit__(self, kind: type | None, *_: object) -> None:
        try:
            self.close()
        except ExpectedError:
            if kind is None:  # otherwise the propagating error is the cause
                raise

    def _restore(self, abstract: State, step: int | None, *, whole: bool) -> tuple[State, int]:
        self.wait()
        steps = self.steps()
        if not steps:
            raise CheckpointError(f"no checkpoint in {self.directory}")
        if step is not None:
            if step not in steps:
                listed = ", ".join(map(str, steps))
                wanted = f"no checkpoint of step {step} in {self.directory}, which `checkpoint_step` names"
                raise CheckpointError(f"{wanted}; there are {listed}")
            state, cause = self._validate_and_read(step, abstract, whole)
            if state is None:
                raise CheckpointError(f"the checkpoint {self.directory / str(step)} is damaged ({cause})")
            return state, step
        damaged: dict[int, str] = {}
        for candidate in reversed(steps):
            state, cause = self._validate_and_read(candidate, abstract, whole)
            if state is not None:
                # Only now: if no checkpoint can be read, the cause may not be the files.
                self._quarantine(damaged, candidate)
                return state, candidate
            if all_processes(is_committed(self.directory / str(candidate))):  # else the running training has deleted it
                damaged[candidate] = cause
        if not damaged:
            raise CheckpointError(f"every checkpoint in {self.directory} was deleted while it was read; try again")
        listed = ", ".join(map(str, sorted(damaged)))
        raise CheckpointError(f"no checkpoint in {self.directory} can be read: {listed} are damaged ({damaged[max(damaged)]})")

    def _validate_and_read(self, step: int, abstract: State, whole: bool) -> tuple[State | None, str]:
        """The state, or None and the damage of the files; the same choice in all processes."""
        folder = self.directory / str(step)
        fields = {name: tree for name, tree in abstract.items() if jax.tree.leaves(tree)}

        def inspect() -> bool:
            check_sums(folder, fields)
            # Compare shapes before reading arrays, so that another model is not reported as damage.
            items = sorted(item for item in folder.iterdir() if item.is_dir() and (whole or item.name in fields))
            written = {item.name: read_shapes(item) for item in items}
            wrong = tree_shapes.differences(
                {name: tree_shapes.shapes_of(_wrap_leaf(tree)) for name, tree in fields.items()}, written, whole
            )
            if wrong:
                more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
                found = f"the checkpoint of step {step} does not match the model: {'; '.join(wrong[:3])}{more}"
                advice = "Use the config of the run, as `workdir` alone does, or another `workdir`"
                raise CheckpointMismatch(f"{found}. {advice}", found)
            return True

        def read() -> State:
            items = {name: ocp.args.StandardRestore(_wrap_leaf(tree)) for name, tree in fields.items()}
            found = self._manager.restore(step, args=ocp.args.Composite(**items))
            return {name: _unwrap_leaf(found[name], tree) if name in fields else tree for name, tree in abstract.items()}

        def on_all_processes(work: Callable[[], Any]) -> tuple[Any, str]:
            with raise_on_all_processes():
                result, cause = _catch_corruption(folder, work)
            return (result, "") if all_processes(result is not None) else (None, cause or "another process could not read it")

        # All processes must have validated it before any reads, because Orbax synchronizes them there.
        matches, cause = on_all_processes(inspect)
        return on_all_processes(read) if matches else (None, cause)

    def _quarantine(self, damaged: dict[int, str], good: int) -> None:
        for step, cause in sorted(damaged.items()):
            folder = self.directory / str(step)
            line = f"the checkpoint {folder} is damaged ({cause})"
            if not self._read_only:
                with raise_on_all_processes():
                    if is_primary_process():
                        line += f" and was renamed to {quarantine(folder)}"
            logger.warning(f"{line}; resuming from step {good}")
        if damaged and not self._read_only:
            self._manager.reload()

    def _finish(self, step: int) -> None:
        try:
            self._manager.wait_until_finished()
            if is_primary_process():
                write_sums(self.directory / str(step))
        except Exception as error:  # tensorstore has no specific exception for a full disk
            self._background_error = error

    def _fail(self, error: Exception) -> FileAccessError:
        # Python warns at exit about writes that never started, after the relevant error.
        warnings.filterwarnings("ignore", r"coroutine '.*' was never awaited", RuntimeWarning)
        self._failure = FileAccessError(
            f"cannot write a checkpoint into {self.directory}: {error_line(error)}. "
            "Earlier checkpoints are complete: after fixing this, rerun the same command to resume"
        )
        return self._failure


class _Pinned:
    """A preservation policy of Orbax that keeps one step. Orbax deletes others only after the new checkpoint is complete."""

    step: int | None = None

    def should_preserve(self, checkpoints: Any, *, context: Any) -> list[bool]:
        return [info.step == self.step for info in checkpoints]


def _catch_corruption(folder: Path, work: Callable[[], Any]) -> tuple[Any, str]:
    """The result of `work`, or None and the damage of the files in `folder`."""
    try:
        return work(), ""
    except PermissionError as error:
        raise FileAccessError(f"cannot read the checkpoint {folder}: {error_line(error)}") from error
    except (ExpectedError, *_NOT_CORRUPTION):
        raise
    except Exception as error:  # a damaged file can raise any exception
        return None, error_line(error)


def _wrap_leaf(tree: Any) -> Any:
    # Orbax does not accept a bare array as an item.
    return {"value": tree} if jax.tree_util.all_leaves([tree]) else tree


def _unwrap_leaf(read: Any, abstract: Any) -> Any:
    return read["value"] if jax.tree_util.all_leaves([abstract]) else read


def read_shapes(item: Path) -> dict[str, tuple]:
    """Path -> (shape, dtype) of the arrays in the folder of a field. Damaged files can raise any exception."""
    return tree_shapes.shapes_of(ocp.StandardCheckpointHandler().metadata(epath.Path(os.fspath(item))).tree)


def _disable_replica_parallel() -> None:
    """Lets one device write each replicated array. Orbax would slice it over all devices: thousands of dispatches."""
    handler = ocp.type_handlers.ArrayHandler(use_replica_parallel=False)
    ocp.type_handlers.register_type_handler(jax.Array, handler, override=True)

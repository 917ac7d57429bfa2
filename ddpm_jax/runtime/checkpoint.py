"""Checkpoints of a training state: written in the background, read back even when the newest is damaged.

A state is a dict of top-level fields, each a tree of arrays: {"params": ..., "ema_params": ..., "opt_state": ...}.
Each field becomes a folder of its own inside the step's folder, so that sampling reads the
parameters without the optimizer's state. A step's folder gets its name when all of it is on the
disk; what a killed process leaves half-written has another name, and the next start removes it.
Checksums are added then, because the storage format has none of its own for the arrays: with a bit
flipped on the disk it would hand back other numbers without a word.

Every process of a run makes the same calls in the same order.
"""

import functools
import logging
import os
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers as policies

from ddpm_jax.runtime.checksums import check_sums, has_sums, write_sums
from ddpm_jax.runtime.distributed import all_processes, broadcast_ints, is_primary_process, raise_on_all_processes
from ddpm_jax.runtime.errors import CheckpointError, ExpectedError, FileAccessError, InvalidArgumentError, error_line, os_errors
from ddpm_jax.runtime.orbax_logs import silence_orbax

logger = logging.getLogger(__name__)

State = dict[str, Any]
Layouts = list[tuple[State, Callable[[State], State]]]  # abstract state, and what makes the wanted layout of it

# Trouble that says nothing about the files: never a reason to set a checkpoint aside.
_NOT_CORRUPTION = (MemoryError, ImportError, NameError, AttributeError, jax.errors.JaxRuntimeError)


class CheckpointManager:
    """The checkpoints of one folder.

    Args:
      directory: created where it does not exist, unless `read_only`.
      max_to_keep: how many of the newest stay.
      keep_period: steps divisible by this stay for ever; 0 keeps none of them.
      read_only: never writes, renames or deletes: for reading beside a training that runs.

    Raises:
      InvalidArgumentError: `max_to_keep` under 1 or `keep_period` negative.
      FileAccessError: the folder cannot be made.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        *,
        max_to_keep: int,
        keep_period: int = 0,
        read_only: bool = False,
    ) -> None:
        if max_to_keep < 1:
            raise InvalidArgumentError(f"max_to_keep is {max_to_keep}: at least the newest checkpoint must stay")
        if keep_period < 0:
            raise InvalidArgumentError(f"keep_period is {keep_period}: give a number of steps, or 0 to keep only the newest")
        silence_orbax()
        _disable_replica_parallel()
        self.directory = Path(os.path.abspath(directory))  # Orbax rejects relative paths
        self._read_only = read_only
        self._background: threading.Thread | None = None
        self._background_error: Exception | None = None
        self._failure: FileAccessError | None = None
        self._manager: ocp.CheckpointManager | None = None
        if read_only and not all_processes(self.directory.is_dir()):
            return
        keep: list[Any] = [policies.LatestN(max_to_keep)]
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
            with raise_on_all_processes():  # before Orbax has all processes wait for each other
                if not read_only:
                    self.directory.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(self.directory, options=options)

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, in order: what process 0 sees. One still being written is not among them."""
        if self._manager is None:
            return []
        if self._read_only:
            self._manager.reload()
        # Orbax counts the one under way as well; only the disk knows.
        return broadcast_ints(sorted(step for step in self._manager.all_steps() if (self.directory / str(step)).is_dir()))

    def latest_step(self) -> int | None:
        """The newest step that has a checkpoint, None where there is none."""
        steps = self.steps()
        return steps[-1] if steps else None

    def save(self, step: int, state: State, *, wait: bool = False) -> bool:
        """Writes `state` in the background; its buffers may be donated as soon as this returns.

        Waits for the save before, if that one is not done.

        Returns:
          False where `step` has a checkpoint already, which then stays as it is.

        Raises:
          FileAccessError: this or the save before could not be written (disk full, folder gone).
          ValueError: `step` lies before the newest checkpoint: it belongs to another past.
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
            # force: whether to save is the caller's decision, not a policy's.
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)
        except OSError as error:
            raise self._fail(error) from error
        self._background = threading.Thread(target=self._finish, args=(step,), name="checkpoint")
        self._background.start()
        if wait:
            self.wait()
        return True

    def restore(
        self, abstract_state: State, step: int | None = None, *, older: tuple[State, Callable[[State], State]] | None = None
    ) -> tuple[State, int]:
        """Reads a whole state into the shapes, types and shardings of `abstract_state`.

        With `step` None, the newest that can be read: damaged ones are passed over, told of in one line
        and renamed out of the way (damaged-STEP), so that the step can be saved again.

        Args:
          abstract_state: jax.ShapeDtypeStruct trees, with shardings, of every field.
          step: of the checkpoint.
          older: the state in the layout of an older version of this program, and what makes the present layout of
            it; for checkpoints that are not as `abstract_state`.

        Returns:
          The state, and its step.

        Raises:
          CheckpointError: no checkpoint, none of `step`, all damaged, or of a state of another shape.
        """
        layouts = [(abstract_state, lambda state: state)] + ([older] if older else [])
        state, step = self._restore(layouts, step, whole=True)
        with raise_on_all_processes():
            if not self._read_only and is_primary_process() and not has_sums(self.directory / str(step)):
                # The process that saved it was killed before it wrote them. Read in whole, it is sound now.
                write_sums(self.directory / str(step))
        return state, step

    def restore_part(self, abstract_part: State, step: int | None = None) -> tuple[State, int]:
        """As `restore`, reading only the fields of `abstract_part`."""
        return self._restore([(abstract_part, lambda state: state)], step, whole=False)

    def wait(self) -> None:
        """Waits until the last save is on the disk.

        Raises:
          FileAccessError: it could not be written.
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
          FileAccessError: the last save could not be written, and nobody was told yet.
        """
        try:
            self.wait()
        finally:
            manager, self._manager = self._manager, None
            if manager is not None and self._failure is None:  # a failed one would only raise the same again
                manager.close()

    def __enter__(self) -> "CheckpointManager":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        try:
            self.close()
        except ExpectedError:
            if kind is None:  # another error is on its way already: that one is the cause
                raise

    def _restore(self, layouts: Layouts, step: int | None, *, whole: bool) -> tuple[State, int]:
        self.wait()
        steps = self.steps()
        if not steps:
            raise CheckpointError(f"no checkpoint in {self.directory}")
        if step is not None:
            if step not in steps:
                there = ", ".join(map(str, steps))
                wanted = f"no checkpoint of step {step} in {self.directory}, which `checkpoint_step` names"
                raise CheckpointError(f"{wanted}; there are {there}")
            state, cause = self._try(step, layouts, whole)
            if state is None:
                raise CheckpointError(f"the checkpoint {self.directory / str(step)} is damaged ({cause})")
            return state, step
        damaged: dict[int, str] = {}
        for candidate in reversed(steps):
            state, cause = self._try(candidate, layouts, whole)
            if state is not None:
                # Only now: where none can be read, the files may not be what is wrong.
                self._set_aside(damaged, candidate)
                return state, candidate
            if all_processes((self.directory / str(candidate)).is_dir()):  # else the training beside has deleted it meanwhile
                damaged[candidate] = cause
        if not damaged:
            raise CheckpointError(f"every checkpoint in {self.directory} was deleted while it was read; try again")
        listed = ", ".join(map(str, sorted(damaged)))
        raise CheckpointError(f"no checkpoint in {self.directory} can be read: {listed} are damaged ({damaged[max(damaged)]})")

    def _try(self, step: int, layouts: Layouts, whole: bool) -> tuple[State | None, str]:
        """The state, or None and what is wrong with the files. All processes agree on which."""
        folder = self.directory / str(step)
        wanted = [{name: tree for name, tree in abstract.items() if jax.tree.leaves(tree)} for abstract, _ in layouts]

        def inspect() -> int:
            check_sums(folder, wanted[0])
            # Read before the arrays are, so that a state of another shape is not taken for damage.
            items = sorted(item for item in folder.iterdir() if item.is_dir() and (whole or item.name in wanted[0]))
            written = {item.name: _read_shapes(item) for item in items}
            wrong = [_differing({name: _shapes(tree) for name, tree in fields.items()}, written, whole) for fields in wanted]
            if all(wrong):
                more = f" and {len(wrong[0]) - 3} more" if len(wrong[0]) > 3 else ""
                raise CheckpointError(
                    f"the checkpoint of step {step} is of another model: {'; '.join(wrong[0][:3])}{more}. Take the config of "
                    "the run (--workdir without --config does), or another --workdir"
                )
            return wrong.index([])

        def read(layout: int) -> State:
            (abstract, convert), fields = layouts[layout], wanted[layout]
            items = {name: ocp.args.StandardRestore(_wrap_leaf(tree)) for name, tree in fields.items()}
            found = self._manager.restore(step, args=ocp.args.Composite(**items))
            return convert(
                {name: _unwrap_leaf(found[name], tree) if name in fields else tree for name, tree in abstract.items()}
            )

        def by_all(work: Callable[..., Any], *arguments: Any) -> tuple[Any, str]:
            with raise_on_all_processes():
                result, cause = _catch_corruption(folder, functools.partial(work, *arguments))
            return (result, "") if all_processes(result is not None) else (None, cause or "another process could not read it")

        # All must have found it sound before any reads: Orbax has them wait for each other there.
        layout, cause = by_all(inspect)
        return (None, cause) if layout is None else by_all(read, layout)

    def _set_aside(self, damaged: dict[int, str], good: int) -> None:
        for step, cause in sorted(damaged.items()):
            folder = self.directory / str(step)
            line = f"the checkpoint {folder} is damaged ({cause})"
            if not self._read_only:
                new = _free_name(self.directory / f"damaged-{step}")
                with raise_on_all_processes():
                    if is_primary_process():
                        folder.rename(new)
                line += f" and now called {new.name}"
            logger.warning(f"{line}; going on from step {good}")
        if damaged and not self._read_only:
            self._manager.reload()

    def _finish(self, step: int) -> None:
        try:
            self._manager.wait_until_finished()
            if is_primary_process():
                write_sums(self.directory / str(step))
        except Exception as error:  # whatever it was: tensorstore has no type for a full disk
            self._background_error = error

    def _fail(self, error: Exception) -> FileAccessError:
        # Writes that never began are told of by Python when the program ends, after the line that matters.
        warnings.filterwarnings("ignore", r"coroutine '.*' was never awaited", RuntimeWarning)
        self._failure = FileAccessError(
            f"cannot write a checkpoint into {self.directory}: {error_line(error)}. "
            "Those written before are whole: once that is mended, the same command goes on from the last of them"
        )
        return self._failure


def _catch_corruption(folder: Path, work: Callable[[], Any]) -> tuple[Any, str]:
    """What `work` returns, or None and what is wrong with the files of `folder`."""
    try:
        return work(), ""
    except PermissionError as error:
        raise FileAccessError(f"cannot read the checkpoint {folder}: {error_line(error)}") from error
    except (ExpectedError, *_NOT_CORRUPTION):
        raise
    except Exception as error:  # a damaged file shows as ValueError, KeyError, JSON error, ..., as the damage has it
        return None, error_line(error)


def _wrap_leaf(tree: Any) -> Any:
    # Orbax takes no bare array as an item.
    return {"value": tree} if jax.tree_util.all_leaves([tree]) else tree


def _unwrap_leaf(read: Any, abstract: Any) -> Any:
    return read["value"] if jax.tree_util.all_leaves([abstract]) else read


def _shapes(tree: Any) -> dict[str, tuple]:
    """Path -> (shape, dtype), with paths spelled alike for dicts, tuples, lists and named tuples."""
    leaves = jax.tree_util.tree_flatten_with_path(_wrap_leaf(tree))[0]
    return {"/".join(map(_name, path)): (tuple(leaf.shape), np.dtype(leaf.dtype).name) for path, leaf in leaves}


def _name(key: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def _read_shapes(item: Path) -> dict[str, tuple]:
    return _shapes(ocp.StandardCheckpointHandler().metadata(epath.Path(item)).tree)


def _differing(wanted: dict[str, dict], written: dict[str, dict], whole: bool) -> list[str]:
    """In what the checkpoint's fields are not those wanted, each in words."""
    differing = []
    for field in sorted(written.keys() | wanted.keys() if whole else wanted.keys()):
        if field not in written or field not in wanted:
            differing.append(f"{field} is missing from the {'model' if field in written else 'checkpoint'}")
            continue
        there, here = written[field], wanted[field]
        for path in sorted(there.keys() | here.keys()):
            if there.get(path) != here.get(path):
                differing.append(f"{field}/{path} is {_show(there.get(path))} there, {_show(here.get(path))} here")
    return differing


def _show(shape: tuple | None) -> str:
    return "nothing" if shape is None else f"{shape[1]}{list(shape[0])}"


def _free_name(path: Path) -> Path:
    number, new = 1, path
    while new.exists():
        number, new = number + 1, path.with_name(f"{path.name}.{number}")
    return new


def _disable_replica_parallel() -> None:
    """Has one device write each replicated array. Orbax would cut it into one slice a device: thousands of dispatches."""
    handler = ocp.type_handlers.ArrayHandler(use_replica_parallel=False)
    ocp.type_handlers.register_type_handler(jax.Array, handler, override=True)

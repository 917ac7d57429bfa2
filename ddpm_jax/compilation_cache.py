"""Where compiled programs are kept for the next start: a folder of this machine, or one that all hosts of a job share.

In a job of several processes JAX writes programs in process 0 only; the others read them. So the folder must be shared, or
every host but the first compiles at each start.
"""

import logging
import os

import jax

from ddpm_jax.runtime import storage
from ddpm_jax.runtime.errors import InvalidArgumentError, error_line

LOCAL = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "ddpm_jax", "xla")
WORKDIR = "workdir"  # value of --compilation_cache
FOLDER = "compilation_cache"  # in the workdir
MIN_COMPILE_S = 0.5  # a program that compiles faster is not kept
NEVER_S = 1e9

logger = logging.getLogger(__name__)


def folder_of(given: str | None, workdir: str | None, *, several_processes: bool = False) -> str:
    """The folder of the compiled programs: an absolute path or gs://bucket/name; "" for none.

    Args:
      given: value of --compilation_cache: a path, "workdir", or "" for none. None, without the flag: the folder in
        JAX_COMPILATION_CACHE_DIR; without it the workdir's for a job of several processes, else `LOCAL`.
      workdir: the workdir of the run; None or "" without one.
      several_processes: whether this is such a job.

    Raises:
      InvalidArgumentError: "workdir" without a workdir.
      FileAccessError, UnavailableError: as `storage.path`.
    """
    if given is None:
        shared = WORKDIR if several_processes and workdir else LOCAL
        given = os.environ.get("JAX_COMPILATION_CACHE_DIR") or shared
    if given == WORKDIR:
        if not workdir:
            raise InvalidArgumentError("`compilation_cache=workdir` needs a `workdir`: give one, or a folder for the cache")
        return os.fspath(storage.path(workdir) / FOLDER)
    return storage.folder_name(given) if given else ""


def enable(folder: str) -> None:
    """Use this folder, as of `folder_of`; "" for none. Must be called before the first compilation.

    A folder that cannot be used is only a warning, since no result depends on it. One in the workdir is created by JAX with
    the first program, so that a start that fails creates no workdir; instead the nearest folder that exists is checked.
    """
    fastest_kept = MIN_COMPILE_S
    if folder:
        try:
            checked = storage.path(folder)
            if checked.name != FOLDER:
                storage.make_folder(checked)
            while not storage.is_remote(checked) and not checked.exists():
                checked = checked.parent
            storage.check_writable(checked)
        except OSError as error:
            where = f"cannot write {folder}: {error_line(error)}; choose another `compilation_cache`"
            if storage.path(folder).is_dir():
                logger.warning(f"new compiled programs are not kept, but those there are used: {where}")
                fastest_kept = NEVER_S
            else:
                logger.warning(f"compiled programs are not kept: {where}")
                folder = ""
    jax.config.update("jax_compilation_cache_dir", folder or None)
    if folder and ("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ or fastest_kept == NEVER_S):
        jax.config.update("jax_persistent_cache_min_compile_time_secs", fastest_kept)

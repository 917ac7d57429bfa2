"""Settings for all tests. Strict on purpose: all of JAX's checks are enabled."""

import contextlib
import ctypes
import gc
import importlib.metadata
import importlib.util
import logging
import os
import pathlib
import re

# Before JAX is imported: eight devices on one CPU, to test sharding everywhere.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compile fast instead of running fast: without optimization, and with the emitter that takes half the time.
# test_resume.py omits these flags, to run the program as users do.
COMPILED_FAST = "--xla_backend_optimization_level=0"
if importlib.metadata.version("jaxlib").startswith("0.10."):  # later versions abort on an unknown flag
    COMPILED_FAST += " --xla_cpu_use_fusion_emitters=false"
TEST_FLAGS = f"--xla_force_host_platform_device_count=8 {COMPILED_FAST}"
if TEST_FLAGS not in os.environ.get("XLA_FLAGS", ""):  # a worker inherits them; flags given twice are another cache key
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {TEST_FLAGS}".strip()
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Also in programs that tests start: reading the smallest compiled program is faster than compiling it again.
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
# A cache of GPUs, whose path would be part of the key: a clone in another folder would find nothing in a cache that it shares.
os.environ["JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES"] = "none"

import jax
import pytest

from ddpm_jax import user_messages
from ddpm_jax.configs import defaults
from ddpm_jax.data import local_copy
from tests import two_processes

# The comparisons with diffusers need diffusers and torch, which `make test-interop` installs beside the other packages.
collect_ignore = [] if importlib.util.find_spec("diffusers") else ["interop_real"]
# Those of ONNX and of pages in a browser need what `make test-browser` installs.
collect_ignore += [] if all(map(importlib.util.find_spec, ("jax2onnx", "selenium"))) else ["interop_onnx", "browser"]
# Those for GPUs and TPUs need their compilers, which `make test-plan` installs.
collect_ignore += [] if all(map(importlib.util.find_spec, ("libtpu", "jax_cuda12_plugin"))) else ["plan_compilers"]

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
CACHE = REPOSITORY / ".cache" / "xla"

jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)
# Test files by duration, the longest first (`pytest --durations=50`), then all others in the usual order. A worker runs one
# file at a time, so a long file that starts last would delay the end.
LONGEST_FIRST = (
    "cli/test_processes.py",
    "cli/test_resume.py",
    "benchmarks/test_benchmarks.py",
    "runtime/test_distributed.py",
    "test_configs.py",
    "training/test_step.py",
    "models/test_unet.py",
    "cli/test_init_from.py",
    "cli/test_import.py",
    "test_combinations.py",
    "cli/test_condition.py",
    "cli/test_bad_inputs.py",
    "cli/test_options.py",
    "cli/test_main.py",
    "test_run.py",
    "test_extending.py",
    "cli/test_evaluate.py",
    "cli/test_load_params.py",
    "cli/test_train.py",
    "cli/test_edit.py",
    "cli/test_visualize.py",
    "cli/test_sample.py",
    "test_python_page.py",
    "test_page_blocks.py",
    "test_api.py",
    "test_notebook.py",
    "test_wheel.py",
)


def pytest_collection_modifyitems(items):
    """Sorts the files by `LONGEST_FIRST` and keeps the order inside a file; the same in every worker, as xdist requires."""
    tests = pathlib.Path(__file__).parent
    places = {str(tests / name): place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(str(item.path), len(places)))


gc.set_threshold(50_000)  # tracing creates many objects and few cycles; collecting them takes a tenth of the time


MEMORY_BYTES = 5 * 1024**3 // 4  # memory of a worker, above which it drops its compiled programs


@pytest.fixture(scope="module", autouse=True)
def _drop_compiled_programs():
    """Drops compiled programs after a file: they accumulate, are rarely reused by another file, and are cached on disk."""
    yield
    statm = pathlib.Path("/proc/self/statm")  # Linux
    if statm.exists() and int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") > MEMORY_BYTES:
        jax.clear_caches()
        gc.collect()
        if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc, which keeps what was freed otherwise
            trim(0)


@pytest.fixture(scope="session", autouse=True)
def _no_files_in_the_cache_of_the_user(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    default = local_copy.default_cache
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local_copy, "default_cache", lambda: default() if "XDG_CACHE_HOME" in os.environ else folder)
        yield


@pytest.fixture
def two(tmp_path):
    """Runs a program in two processes: (code) -> the values that each writes, and the exit codes."""
    return lambda code: two_processes.run(code, tmp_path)


@pytest.fixture(scope="session")
def age_files():
    """Makes the files of a folder an hour old: a manifest does not trust files that were written just now."""

    def age(folder):
        for file in folder.rglob("*.*"):
            before = file.stat().st_mtime - 3600
            os.utime(file, (before, before))

    return age


class _Lines(logging.Handler):
    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


@contextlib.contextmanager
def _logged():
    """Collects the lines that the package logs."""
    logger, handler = logging.getLogger("ddpm_jax"), _Lines()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield handler.lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


@pytest.fixture(scope="session")
def logged():
    """Context manager that collects the lines that the package logs inside."""
    return _logged


@pytest.fixture
def log_lines():
    """The lines that the package logs in a test."""
    with _logged() as lines:
        yield lines


@pytest.fixture
def printed_log():
    """Prints log lines on stderr, as main.py does."""
    logger = logging.getLogger("ddpm_jax")
    user_messages.configure_logging(defaults.get_config().to_dict())
    yield
    logger.handlers, logger.propagate = [], True
    logger.setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def real_data():
    """Folder with TFDS's cifar10 and fashion_mnist and photographs (DDPM_JAX_TEST_DATA), or None."""
    folder = os.environ.get("DDPM_JAX_TEST_DATA")
    return pathlib.Path(folder) if folder else None


@pytest.fixture(scope="session")
def emulator():
    """A Google Cloud Storage on 127.0.0.1 with the bucket gs://bucket, for this process and the programs that it starts."""
    import fsspec

    from tests.gcs_emulator import Emulator, environment

    server = Emulator("bucket")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(server.port).items():
            patch.setenv(name, value)
        for name in ("gs", "gcs"):  # fsspec has read the environment before
            patch.setitem(fsspec.config.conf, name, {"token": "anon", "use_listings_cache": False})
        yield server
    server.close()


@pytest.fixture
def bucket(emulator, request):
    """The name of an empty folder in the bucket: gs://bucket/TEST."""
    return f"gs://bucket/{re.sub(r'[^a-z0-9]+', '-', request.node.name)}"


@pytest.fixture(scope="session")
def repository():
    """The folder of main.py."""
    return REPOSITORY


@pytest.fixture(scope="session")
def compiled_fast():
    """XLA_FLAGS for a process with one device that compiles fast."""
    return COMPILED_FAST

"""Settings every test runs under. Strict on purpose: what JAX can check, it checks."""

import contextlib
import gc
import importlib.metadata
import logging
import os
import pathlib

# Before JAX is imported: eight devices on one CPU, so that sharding is exercised everywhere.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compiled fast, not to run fast: without optimisation, and by the emitter that takes half of the other's time.
# test_resume.py leaves these flags out: there the program is as a person runs it.
COMPILED_FAST = "--xla_backend_optimization_level=0"
if importlib.metadata.version("jaxlib").startswith("0.10."):  # later ones end the process over a flag that they do not know
    COMPILED_FAST += " --xla_cpu_use_fusion_emitters=false"
TEST_FLAGS = f"--xla_force_host_platform_device_count=8 {COMPILED_FAST}"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {TEST_FLAGS}".strip()
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import pytest

from configs import defaults
from ddpm_jax import user_messages

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
CACHE = REPOSITORY / ".cache" / "xla"

jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)
# Files of tests by what they took, the longest first. A worker takes one file at a time: a long one that begins last is
# waited for by all. `pytest --durations=50` measures; the others come afterwards, in the usual order.
LONGEST_FIRST = (
    "cli/test_processes.py",
    "cli/test_resume.py",
    "test_configs.py",
    "benchmarks/test_benchmarks.py",
    "cli/test_bad_inputs.py",
    "cli/test_evaluate.py",
    "cli/test_load_params.py",
    "cli/test_options.py",
    "cli/test_main.py",
    "test_notebook.py",
    "cli/test_visualize.py",
    "cli/test_edit.py",
    "cli/test_train.py",
    "test_combinations.py",
    "models/test_unet.py",
)


def pytest_collection_modifyitems(items):
    """Sort the files by `LONGEST_FIRST`; inside a file nothing moves. The same in every worker, as xdist needs it."""
    tests = pathlib.Path(__file__).parent
    places = {str(tests / name): place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(str(item.path), len(places)))


gc.set_threshold(50_000)  # tracing makes many objects and few cycles; to look for these takes a tenth of its time


MEMORY_BYTES = 2 * 1024**3  # of a worker, above which it drops the programs that it has compiled


@pytest.fixture(scope="module", autouse=True)
def _drop_compiled_programs():
    """After a file: compiled programs pile up, and hardly any serves two files. They are on disk still."""
    yield
    statm = pathlib.Path("/proc/self/statm")  # Linux
    if statm.exists() and int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") > MEMORY_BYTES:
        jax.clear_caches()
        gc.collect()


class _Lines(logging.Handler):
    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


@contextlib.contextmanager
def _logged():
    """The lines that the package logs meanwhile, as they come."""
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
    """Context manager: the lines that the package logs inside."""
    return _logged


@pytest.fixture
def log_lines():
    """The lines that the package logs in a test, as they come."""
    with _logged() as lines:
        yield lines


@pytest.fixture
def printed_log():
    """Log lines are on stderr, as main.py has them printed."""
    logger = logging.getLogger("ddpm_jax")
    user_messages.configure_logging(defaults.get_config().to_dict())
    yield
    logger.handlers, logger.propagate = [], True
    logger.setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def real_data():
    """Folder with TFDS's cifar10 and fashion_mnist and photographs (DDPM_JAX_TEST_DATA), or None where there is none."""
    folder = os.environ.get("DDPM_JAX_TEST_DATA")
    return pathlib.Path(folder) if folder else None


@pytest.fixture(scope="session")
def repository():
    """The folder that main.py is in."""
    return REPOSITORY


@pytest.fixture(scope="session")
def compiled_fast():
    """XLA_FLAGS for a process with one device, where what is compiled matters and not how fast it runs."""
    return COMPILED_FAST

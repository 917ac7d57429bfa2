"""Settings every test runs under. Strict on purpose: what JAX can check, it checks."""

import gc
import importlib.metadata
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

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
CACHE = REPOSITORY / ".cache" / "xla"

jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)
gc.set_threshold(50_000)  # tracing makes many objects and few cycles; to look for these takes a tenth of its time


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

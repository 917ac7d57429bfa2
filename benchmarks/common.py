"""What the benchmarks share: options, fair timing, counted operations, and the machine's ceiling."""

import argparse
import atexit
import concurrent.futures
import importlib
import math
import multiprocessing
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from ddpm_jax import build
from ddpm_jax.cpu import conv as cpu_conv

_clock = time.perf_counter


def parser(description: str) -> argparse.ArgumentParser:
    """With the options that every benchmark has."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--config", default="digits", help="name of a file of configs/, such as cifar10")
    options.add_argument("--batch_size", type=int, help="in place of the config's")
    options.add_argument("--dtype", choices=build.DTYPES, help="of convolutions and matmuls, in place of the config's")
    options.add_argument("--rounds", type=int, default=7, help="medians are taken over so many")
    options.add_argument(
        "--one_core",
        action="store_true",
        help="on one core of a CPU, by this process's CPU time: where others work too",
    )
    return options


def load_config(options: argparse.Namespace):
    """The config that the options name; XLA is set up as main.py does for it."""
    config = importlib.import_module(f"configs.{options.config}").get_config()
    config.model.dtype = options.dtype or config.model.dtype
    config.train.batch_size = options.batch_size or config.train.batch_size
    if options.one_core:
        global _clock
        _clock = time.process_time
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # before JAX and PyTorch count their threads
    build.configure_cpu(config)
    return config


def here(call: Callable[[], object]) -> Callable[[int], float]:
    """Number of calls -> the seconds that they take. `call` returns when the work is done, on the device as well."""

    def timed(calls: int) -> float:
        start = _clock()
        for _ in range(calls):
            call()
        return _clock() - start

    return timed


def elsewhere(module: str, function: str, *args, **options) -> Callable[[int], float]:
    """As `here`, of the call that module.function(*args, **options) makes, in a process of its own.

    Two programs in one process meet each other's threads and each other's ways with memory.
    """
    process = _one_process()
    process.submit(_prepare, _clock is time.process_time, module, function, args, options).result()
    return lambda calls: process.submit(_run, calls).result()


def against_torch(module: str, function: str, *args) -> dict[str, Callable[[int], float]]:
    """`elsewhere` in both of PyTorch's memory formats: name -> what to time."""
    return {
        f"torch, {name}": elsewhere(module, function, *args, channels_last=name == "channels_last")
        for name in ("contiguous", "channels_last")
    }


def asked(module: str, function: str, *args):
    """What module.function(*args) returns, asked of a process of its own."""
    return _one_process().submit(_call, module, function, args, {}).result()


def _one_process() -> concurrent.futures.Executor:
    process = concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
    atexit.register(process.shutdown)
    return process


def _call(module: str, function: str, args: tuple, options: dict):
    return getattr(importlib.import_module(module), function)(*args, **options)


def _prepare(cpu_time: bool, module: str, function: str, args: tuple, options: dict) -> None:
    global _clock, _work
    if cpu_time:
        _clock = time.process_time
    _work = here(_call(module, function, args, options))


def _run(calls: int) -> float:
    return _work(calls)


def seconds(work: dict[str, Callable[[int], float]], rounds: int, least: float = 0.5) -> dict[str, float]:
    """Median seconds of one call of each, taken in turn, so that a slow minute of the machine meets them all.

    Args:
      work: name -> what to time, from `here` or `elsewhere`.
      rounds: how often each gets its turn, after one turn that is not counted.
      least: seconds that a turn takes, after one call that is not counted; quick work is called again and again.
    """
    calls = {}
    for name, timed in work.items():
        timed(1)  # compile
        calls[name] = max(1, math.ceil(least / timed(1)))
    taken = {name: [] for name in work}
    for _ in range(rounds):
        for name, timed in work.items():
            timed(1)  # what stood still has lost its caches, and on some machines its memory: the first call gets them back
            taken[name].append(timed(calls[name]) / calls[name])
    return {name: statistics.median(times) for name, times in taken.items()}


def count_flops(fn: Callable, *args) -> float:
    """Operations of all convolutions and matmuls in `fn(*args)`, a multiplication and an addition counted as two.

    Read off the traced program, so that no compiler decides; what it would save by remembering is counted, the
    rest (norms, swish, dropout, Adam) is not.
    """
    return _jaxpr_flops(jax.make_jaxpr(fn)(*args).jaxpr)


def _jaxpr_flops(jaxpr) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        parts = [_jaxpr_flops(part) for value in equation.params.values() for part in _jaxprs(value)]
        # One branch of several runs: of a convolution's forms for different platforms the plain one counts, the dearest.
        inner = max(parts) if equation.primitive.name == "cond" else sum(parts)
        if equation.primitive.name == "shard_map":  # what one device does
            inner *= equation.params["mesh"].size
        total += inner * equation.params.get("length", 1) if equation.primitive.name == "scan" else inner
        out = math.prod(equation.outvars[0].aval.shape) if equation.outvars else 0
        shapes = [var.aval.shape for var in equation.invars]
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            total += 2 * out * math.prod(shapes[0][axis] for axis in contracted)
        elif equation.primitive.name == "conv_general_dilated":
            layout = equation.params["dimension_numbers"]
            kernel = math.prod(shapes[1]) // shapes[1][layout.rhs_spec[0]]  # products per output
            # Of a dilated input only every d-th value is not a known zero; a good convolution skips the others.
            total += 2 * out * kernel / math.prod(equation.params["lhs_dilation"])
        elif equation.primitive.name in cpu_conv.REFERENCE_IMPLS:
            # Shapes alone: inside shard_map avals also carry mesh axes, which mean nothing outside it.
            shapes = [jax.ShapeDtypeStruct(var.aval.shape, var.aval.dtype) for var in equation.invars]
            total += count_flops(cpu_conv.REFERENCE_IMPLS[equation.primitive.name], *shapes)
    return total


def _jaxprs(value) -> list:
    values = value if isinstance(value, list | tuple) else [value]
    found = [getattr(item, "jaxpr", item) for item in values]
    return [item for item in found if hasattr(item, "eqns")]


def matmul(dtype: jnp.dtype) -> tuple[Callable[[int], float], float]:
    """A square matmul large enough to reach the machine's ceiling, and its operations."""
    size = 2048 if jax.default_backend() == "cpu" else 8192
    a = jnp.ones((size, size), dtype)
    product = jax.jit(lambda a: a @ a)
    return here(lambda: jax.block_until_ready(product(a))), 2.0 * size**3


def table(rows: dict[str, float], images: int, flops: float, ceiling: float, baseline: str | None = None) -> None:
    """Print seconds, images/s, GFLOP/s and the share of the ceiling of each row, and its speed relative to `baseline`."""
    print(f"{'':34} {'seconds':>9} {'images/s':>10} {'GFLOP/s':>9} {'of matmul':>9}" + f" {'ratio':>7}" * bool(baseline))
    for name, took in rows.items():
        line = f"{name:34} {took:9.4f} {images / took:10.1f} {flops / took / 1e9:9.1f} {flops / took / ceiling:9.1%}"
        print(line + (f" {rows[baseline] / took:6.2f}x" if baseline else ""))
    print(f"{'matmul ceiling':34} {'':9} {'':10} {ceiling / 1e9:9.1f}")


def machine() -> str:
    """One line that names devices and versions."""
    device = jax.devices()[0]
    return f"{device.device_kind} ({device.platform}), jax {jax.__version__}"

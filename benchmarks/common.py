"""Shared code of the benchmarks: options, timing, operation counts, and the peak speed of the machine."""

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

from ddpm_jax import build, compiler_config
from ddpm_jax.cpu import conv as cpu_conv

_clock = time.perf_counter


def parser(description: str) -> argparse.ArgumentParser:
    """A parser with the common options."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--config", default="digits", help="name of a file of configs/, such as cifar10")
    options.add_argument("--batch_size", type=int, help="instead of the config's")
    options.add_argument("--dtype", choices=build.DTYPES, help="of convolutions and matmuls, instead of the config's")
    options.add_argument("--rounds", type=int, default=7, help="number of rounds, of which the median is reported")
    options.add_argument(
        "--one_core",
        action="store_true",
        help="use one CPU core and measure CPU time, for a shared machine",
    )
    return options


def load_config(options: argparse.Namespace):
    """The config of the options; XLA is configured as in main.py."""
    if getattr(options, "against", None):  # JAX would reserve most of a GPU's memory for itself
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    config = importlib.import_module(f"ddpm_jax.configs.{options.config}").get_config()
    config.model.dtype = options.dtype or config.model.dtype
    config.train.batch_size = options.batch_size or config.train.batch_size
    if options.one_core:
        global _clock
        _clock = time.process_time
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # before JAX and PyTorch count their threads
    compiler_config.configure_cpu(config)
    return config


def in_process(call: Callable[[], object], wait: Callable[[object], object] = jax.block_until_ready) -> Callable[[int], float]:
    """Number of calls -> seconds until all of them are done, also on the device.

    `wait(result)` blocks until the work behind the last call's result is done. The calls before it are not waited for, as in
    training, where the next step is dispatched while the device computes.
    """

    def timed(calls: int) -> float:
        start = _clock()
        for _ in range(calls):
            result = call()
        wait(result)
        return _clock() - start

    return timed


def in_subprocess(module: str, function: str, *args, **options) -> Callable[[int], float]:
    """Like `in_process`, for the call returned by module.function(*args, **options), in a separate process.

    Two frameworks in one process compete for threads and memory allocators.
    """
    process = _one_process()
    process.submit(_prepare, _clock is time.process_time, module, function, args, options).result()
    return lambda calls: process.submit(_run, calls).result()


def against_torch(module: str, function: str, *args) -> dict[str, Callable[[int], float]]:
    """`in_subprocess` for PyTorch's memory formats, on a GPU also with torch.compile: name -> timed function."""
    variants = {name: {"channels_last": name == "channels_last"} for name in ("contiguous", "channels_last")}
    if jax.default_backend() == "gpu":
        variants["compiled"] = {"channels_last": True, "compiled": True}
    return {f"torch, {name}": in_subprocess(module, function, *args, **options) for name, options in variants.items()}


def call_in_subprocess(module: str, function: str, *args):
    """The result of module.function(*args) in a separate process."""
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
    _work = in_process(_call(module, function, args, options), importlib.import_module(module).wait)


def _run(calls: int) -> float:
    return _work(calls)


def seconds(work: dict[str, Callable[[int], float]], rounds: int, least: float = 0.5) -> dict[str, float]:
    """Median seconds of one call of each function, in alternating rounds, so that slow phases affect all of them.

    Args:
      work: name -> timed function, from `in_process` or `in_subprocess`.
      rounds: number of rounds, after one warm-up.
      least: minimum seconds per round; fast functions are called repeatedly.
    """
    calls = {}
    for name, timed in work.items():
        timed(1)  # compile
        calls[name] = max(1, math.ceil(least / timed(1)))
    taken = {name: [] for name in work}
    for _ in range(rounds):
        for name, timed in work.items():
            timed(1)  # warm up: an idle process loses its caches, and on some machines its memory
            taken[name].append(timed(calls[name]) / calls[name])
    return {name: statistics.median(times) for name, times in taken.items()}


def count_flops(fn: Callable, *args) -> float:
    """Floating-point operations of all convolutions and matmuls in `fn(*args)`, a multiply-add counted as two.

    Counted in the traced program, independent of the compiler: rematerialization is included, other operations (norms,
    swish, dropout, Adam) are not.
    """
    return _jaxpr_flops(jax.make_jaxpr(fn)(*args).jaxpr)


def _jaxpr_flops(jaxpr) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        parts = [_jaxpr_flops(part) for value in equation.params.values() for part in _jaxprs(value)]
        # Only one branch runs: of a convolution's implementations the reference has the largest count.
        inner = max(parts) if equation.primitive.name == "cond" else sum(parts)
        if equation.primitive.name == "shard_map":  # the count of one device
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
            # Only every d-th value of a dilated input is not a known zero; the others are skipped.
            total += 2 * out * kernel / math.prod(equation.params["lhs_dilation"])
        elif equation.primitive.name in cpu_conv.REFERENCE_IMPLS:
            # Shapes only: inside shard_map, avals also have mesh axes, which are invalid outside.
            shapes = [jax.ShapeDtypeStruct(var.aval.shape, var.aval.dtype) for var in equation.invars]
            total += count_flops(cpu_conv.REFERENCE_IMPLS[equation.primitive.name], *shapes)
    return total


def _jaxprs(value) -> list:
    values = value if isinstance(value, list | tuple) else [value]
    found = [getattr(item, "jaxpr", item) for item in values]
    return [item for item in found if hasattr(item, "eqns")]


def matmul(dtype: jnp.dtype) -> tuple[Callable[[int], float], float]:
    """A square matmul large enough to reach the peak speed of the machine, and its operations."""
    size = 2048 if jax.default_backend() == "cpu" else 8192
    a = jax.random.normal(jax.random.key(0), (size, size), dtype)  # zeros or ones multiply faster on some devices
    product = jax.jit(lambda a: a @ a)
    return in_process(lambda: product(a)), 2.0 * size**3


def table(rows: dict[str, float], images: int, flops: float, ceiling: float, baseline: str | None = None) -> None:
    """Prints seconds, images/s, GFLOP/s and the fraction of the ceiling for each row, and the speed relative to `baseline`."""
    print(f"{'':34} {'seconds':>9} {'images/s':>10} {'GFLOP/s':>9} {'of matmul':>9}" + f" {'ratio':>7}" * bool(baseline))
    for name, took in rows.items():
        line = f"{name:34} {took:9.4f} {images / took:10.1f} {flops / took / 1e9:9.1f} {flops / took / ceiling:9.1%}"
        print(line + (f" {rows[baseline] / took:6.2f}x" if baseline else ""))
    print(f"{'matmul ceiling':34} {'':9} {'':10} {ceiling / 1e9:9.1f}")


def machine() -> str:
    """One line that names devices and versions."""
    device = jax.devices()[0]
    return f"{device.device_kind} ({device.platform}), jax {jax.__version__}"

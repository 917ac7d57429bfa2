"""The machines of --mode=plan: their memory, speed and how to compile for them without having one.

A TPU's compiler is in the package libtpu, a GPU's in jax-cuda12-plugin, jax-cuda12-pjrt and nvidia-cuda-nvcc-cu12: extras
plan-tpu and plan-cuda.
"""

import dataclasses
import importlib.metadata
import importlib.util
import math
import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from ddpm_jax.runtime import device_flops
from ddpm_jax.runtime.errors import InvalidArgumentError, UnavailableError

GIB = 2**30
# XLA's allocator takes three quarters of a GPU's memory (docs.jax.dev/en/latest/gpu_memory_allocation.html).
GPU_MEMORY_SHARE = 0.75
PTXAS = "nvidia-cuda-nvcc-cu12"  # a package that has NVIDIA's assembler
# platform -> (module that must be installed, its package, packages that have it and what it needs, our extra). The CUDA
# libraries, of 2 GB, are not among them.
_NEEDS = {
    "tpu": ("libtpu", "libtpu", f"'jax[tpu]=={jax.__version__}'", "plan-tpu"),
    "gpu": ("jax_plugins.xla_cuda12", "jax-cuda12-plugin", f"'jax[cuda12-local]=={jax.__version__}' {PTXAS}", "plan-cuda"),
}
# There is no metadata server to ask for the slice; and since no chip is used, several processes may compile at once.
MAX_CPU_DEVICES = 1024  # JAX creates them; 4,096 take seconds, 100,000 do not end
_TPU_ENVIRONMENT = {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
_TPU_ENVIRONMENT |= {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-8"}  # else it logs their absence


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator, as one JAX device.

    Attributes:
      platform: "tpu", "gpu" or "cpu".
      kind: its name in `device_flops.PEAK_FLOPS`, which has the peak in bfloat16; "" if the peak is unknown.
      memory: bytes that a program can use; None: that of this machine.
      bandwidth: bytes per second of its memory; None if unknown.
      float32: peak of float32 products, as a fraction of that in bfloat16.
      layout: how a TPU's compiler makes devices of the cores of a chip.
      dimensions: of a TPU's slices.
      clock: cycles per second, to convert the cycles that a TPU's compiler estimates; None if unknown.
      launch: seconds that a launch takes at the least.
      gpu: fields of XLA's description of the GPU that other GPUs do not share.
    """

    platform: str
    kind: str = ""
    memory: float | None = None
    bandwidth: float | None = None
    float32: float = 1.0
    clock: float | None = None
    layout: str = "default"
    dimensions: int = 0
    launch: float = 0.0
    gpu: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def peak(self) -> float | None:
        """FLOP/s of dense matrix products in bfloat16."""
        return device_flops.PEAK_FLOPS.get(self.kind)

    def peak_flops(self, dtype: str) -> float | None:
        """FLOP/s of dense matrix products of a model of this dtype, with JAX's default precision."""
        return self.peak and self.peak * (1.0 if dtype == "bfloat16" else self.float32)


# An assumption: a kernel of 2.9 us takes 3.4 us in a CUDA graph (developer.nvidia.com/blog/cuda-graphs).
_LAUNCH = 3e-6
_HOPPER = {"core_count": 132, "fpus_per_core": 128, "clock_rate_ghz": 1.98, "l2_cache_size": 52428800}
_HOPPER |= {"shared_memory_per_core": 233472, "shared_memory_per_block_optin": 232448, "major": 9}
_AMPERE = {"core_count": 108, "fpus_per_core": 64, "clock_rate_ghz": 1.41, "l2_cache_size": 41943040}
_AMPERE |= {"shared_memory_per_core": 167936, "shared_memory_per_block_optin": 166912, "major": 8}
_BLACKWELL = _HOPPER | {"core_count": 148, "clock_rate_ghz": 1.965, "l2_cache_size": 132644864, "major": 10}
_ADA = {"core_count": 58, "fpus_per_core": 128, "clock_rate_ghz": 2.04, "l2_cache_size": 50331648, "major": 8, "minor": 9}
_ADA |= {"shared_memory_per_core": 102400, "shared_memory_per_block_optin": 101376, "threads_per_core_limit": 1536}
# Memory and bandwidth: docs.cloud.google.com/tpu/docs/v4, v5e, v5p and v6e (per chip; JAX joins the two cores of a v4 and v5p),
# and NVIDIA's data sheets of L4, A100 80GB SXM, H100 SXM, H200 SXM and DGX B200; a v5e has 16 GiB, of which its compiler uses
# 15.75. On a TPU the default precision of float32 products is one pass in bfloat16, on a GPU TensorFloat-32: half the speed.
# Clocks: jax-ml.github.io/scaling-book/tpus.
CHIPS = {
    "v4": Chip("tpu", "TPU v4", 32 * GIB, 1228e9, clock=1.05e9, layout="megacore", dimensions=3),
    "v5e": Chip("tpu", "TPU v5e", 15.75 * GIB, 819e9, clock=1.5e9, dimensions=2),
    "v5p": Chip("tpu", "TPU v5", 95 * GIB, 2765e9, clock=1.75e9, dimensions=3),
    "v6e": Chip("tpu", "TPU v6", 32 * GIB, 1600e9, dimensions=2),
    "l4": Chip("gpu", "L4", 24e9 * GPU_MEMORY_SHARE, 300e9, 0.5, launch=_LAUNCH, gpu=_ADA),
    "a100": Chip("gpu", "A100", 80 * GIB * GPU_MEMORY_SHARE, 2039e9, 0.5, launch=_LAUNCH, gpu=_AMPERE),
    "h100": Chip("gpu", "H100", 80 * GIB * GPU_MEMORY_SHARE, 3350e9, 0.5, launch=_LAUNCH, gpu=_HOPPER),
    "h200": Chip("gpu", "H200", 141e9 * GPU_MEMORY_SHARE, 4800e9, 0.5, launch=_LAUNCH, gpu=_HOPPER),
    "b200": Chip("gpu", "B200", 180e9 * GPU_MEMORY_SHARE, 8000e9, 0.5, launch=_LAUNCH, gpu=_BLACKWELL),
    "cpu": Chip("cpu"),
}


@dataclasses.dataclass(frozen=True)
class Target:
    """A machine: `num_devices` chips; `topology` is that of a TPU slice, such as "2x4"."""

    name: str
    chip: Chip
    num_devices: int
    topology: str = ""

    @property
    def memory(self) -> float:
        """Bytes that a program can use on one device; CPU devices share the memory of the machine."""
        if self.chip.memory is not None:
            return self.chip.memory
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / self.num_devices


def parse_target(text: str) -> Target:
    """The machine of --target: v5e:2x4, h100, h100x8, cpu; also in capital letters.

    Raises:
      InvalidArgumentError: there is no such chip, or the number of chips is missing or not allowed.
    """
    match = re.fullmatch(rf"({'|'.join(CHIPS)})(?:x(\d+)|:(\d+(?:x\d+)*))?", text.lower())
    if match is None:
        named = next((name for name in CHIPS if text.lower().startswith(name)), "")
        advice = f"write {example(named)}" if named else f"give one of {', '.join(map(example, CHIPS))}"
        raise InvalidArgumentError(f"`target={text}` is not a known machine: {advice}")
    name, count, topology = match[1], match[2], match[3] or ""
    chip, sides = CHIPS[name], [int(side) for side in topology.split("x") if side]
    number = math.prod(sides) if topology else int(count or 1)
    if (chip.platform == "tpu") != bool(topology) or len(sides) != chip.dimensions or number < 1:
        raise InvalidArgumentError(f"`target={text}` is not a known machine: write {example(name)}")
    if chip.platform == "cpu" and number > MAX_CPU_DEVICES:
        raise InvalidArgumentError(
            f"`target={text}` has more than {MAX_CPU_DEVICES:,} devices: give cpux{MAX_CPU_DEVICES} or fewer"
        )
    return Target(text.lower(), chip, number, topology)


def example(name: str) -> str:
    """How machines of a chip are named."""
    if CHIPS[name].platform == "tpu":
        return f"{name}:{'2x2x2' if CHIPS[name].dimensions == 3 else '2x4'} for a slice"
    return f"{name} or {name}x8"


def check_installed(target: Target) -> None:
    """Check that the compiler of the target is installed, in the version that JAX requires.

    Another version of a compiler may fail, or report no temporary memory (libtpu 0.0.30 with jax 0.10.2).

    Raises:
      UnavailableError: it is not; the message has the command that installs it.
    """
    if target.chip.platform not in _NEEDS:
        return
    module, package, packages, extra = _NEEDS[target.chip.platform]
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:  # of its parent
        found = None
    if found is None:
        raise UnavailableError(
            f"compiling for {target.name} needs a package that is not installed: pip install {packages} (the extra {extra})"
        )
    installed, required = _versions(package)
    if required and installed != required and not installed.startswith(f"{required}."):
        raise UnavailableError(
            f"compiling for {target.name} with jax {jax.__version__} needs {package} {required}, but {installed} is installed: "
            f"pip install {packages} (the extra {extra})"
        )


def _versions(package: str) -> tuple[str, str]:
    """The version of a package that is installed, and the one that JAX requires, or how it begins; "" if it is not known."""
    pattern = re.compile(rf"{package}(?:\[.*\])?[<=]=([\d.]+?)(?:\.\*)?[,;]")
    try:
        required = next((found[1] for line in importlib.metadata.requires("jax") or () if (found := pattern.match(line))), "")
        return importlib.metadata.version(package), required
    except importlib.metadata.PackageNotFoundError:  # a nightly version has another name
        return "", ""


def devices_of(target: Target) -> list[Any]:
    """The devices to compile for, none of which is opened. JAX's own devices must be CPUs, as many as a CPU target has.

    Raises:
      UnavailableError: the compiler is not installed, or does not know the slice.
    """
    check_installed(target)
    if target.chip.platform == "cpu":
        devices = jax.devices("cpu")
        if len(devices) < target.num_devices:
            raise UnavailableError(f"JAX has {len(devices)} CPU devices, and `target={target.name}` needs more")
        return devices[: target.num_devices]
    try:
        if target.chip.platform == "gpu":
            options: dict[str, Any] = {"target_config": gpu_description(target), "topology": f"1x1x{target.num_devices}"}
            return topologies.get_topology_desc(target.name, "cuda", **options).devices
        for name, value in _TPU_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        sides = [int(side) for side in target.topology.split("x")]
        bounds = (*(min(2, side) for side in sides[:2]), 1)  # chips of one host
        options = {"chips_per_host_bounds": bounds, "chip_config_name": target.chip.layout}
        return topologies.get_topology_desc(target.name, "tpu", **options).devices
    except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
        raise UnavailableError(f"the compiler does not know `target={target.name}`: {str(error).splitlines()[0]}") from error


def gpu_description(target: Target) -> str:
    """XLA's description of a GPU, `stream_executor.GpuTargetConfigProto` as text."""
    fields = {"threads_per_core_limit": 2048} | target.chip.gpu
    major, minor = fields.pop("major"), fields.pop("minor", 0)
    fields |= {"memory_bandwidth": int(target.chip.bandwidth or 0), "device_memory_size": int(target.memory / GPU_MEMORY_SHARE)}
    fields |= {"threads_per_block_limit": 1024, "threads_per_warp": 32}
    fields |= {"shared_memory_per_block": 49152, "registers_per_core_limit": 65536, "registers_per_block_limit": 65536}
    fields |= {"block_dim_limit_x": 2**31 - 1, "block_dim_limit_y": 65535, "block_dim_limit_z": 65535}
    fields |= {"thread_dim_limit_x": 1024, "thread_dim_limit_y": 1024, "thread_dim_limit_z": 64}
    lines = "".join(f"  {name}: {value}\n" for name, value in fields.items())
    return (
        f"gpu_device_info {{\n{lines}  cuda_compute_capability {{ major: {major} minor: {minor} }}\n}}\n"
        'platform_name: "CUDA"\ndnn_version_info { major: 9 minor: 10 patch: 0 }\n'
        f'device_description_str: "{target.chip.kind}"\n'
    )

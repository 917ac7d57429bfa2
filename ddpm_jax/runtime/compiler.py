"""How XLA compiles for the CPU: flags that make wide networks faster there. They do nothing to programs for accelerators."""

import os

# XLA hands convolutions to YNNPACK. From 64 channels on Eigen takes two thirds of its time for the filters' gradients;
# narrower ones are quicker as they are. docs/performance.md has the numbers.
WIDE = 64
_FLAG = "--xla_cpu_experimental_ynn_fusion_type"
_KNOWN_TO = ("0.10.2", "0.12.0.1")  # XLA ends the process over a flag that it does not know


def set_cpu_flags(width: int) -> None:
    """Add to XLA_FLAGS what suits a network of `width` channels, unless the person has set it.

    XLA reads them once, before it touches a device: call this before anything does.
    """
    from jaxlib import version  # without JAX: --help needs none of it

    flags = os.environ.get("XLA_FLAGS", "")
    if width >= WIDE and version.__version__ in _KNOWN_TO and _FLAG not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {_FLAG}=-individual_convolution".strip()

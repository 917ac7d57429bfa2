"""Denoising diffusion probabilistic models in JAX (Ho et al. 2020, arXiv 2006.11239).

    import ddpm_jax

    run = ddpm_jax.load("runs/digits")
    images = run.sample(16).images  # uint8 [16, H, W, C]

The names below are the interface for whole runs (docs/python.md). The mathematics, samplers and networks are functions in
the modules, such as `ddpm_jax.diffusion.gaussian.q_sample`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddpm_jax.api.functions import Stage, evaluate, get_config, load, train, watch
    from ddpm_jax.api.results import BitsPerDim, Denoised, Samples, Trajectory
    from ddpm_jax.api.run import Run

__version__ = "0.1.0"
__all__ = [
    "BitsPerDim",
    "Denoised",
    "Run",
    "Samples",
    "Stage",
    "Trajectory",
    "evaluate",
    "get_config",
    "load",
    "train",
    "watch",
]
_MODULES = dict.fromkeys(__all__, "results") | dict.fromkeys(
    ("Stage", "evaluate", "get_config", "load", "train", "watch"), "functions"
)
_MODULES["Run"] = "run"


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562), so that `import ddpm_jax` and --help do not import JAX."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"ddpm_jax.api.{_MODULES[name]}")
    globals()[name] = value = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})

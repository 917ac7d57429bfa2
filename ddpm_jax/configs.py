"""The package `ddpm_jax.configs`: the folder configs/ of a clone, or ddpm_jax/configs/ of an installed package.

    from ddpm_jax.configs import defaults

works in both: Python treats a module that sets `__path__` as a package and looks for its submodules there.
"""

from pathlib import Path

_INSTALLED = Path(__file__).with_suffix("")
FOLDER = _INSTALLED if (_INSTALLED / "defaults.py").is_file() else Path(__file__).resolve().parents[1] / "configs"
__path__ = [str(FOLDER)]


def names() -> list[str]:
    """Names of the configs to train with, sorted; for --config=NAME."""
    return sorted(file.stem for file in FOLDER.glob("*.py") if file.stem not in ("defaults", "from_workdir", "__init__"))

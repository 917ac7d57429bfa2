"""The packages of the wheel; pyproject.toml has everything else."""

from setuptools import find_packages, setup

# pyproject.toml can search for packages, or map a folder to a package, but not both.
setup(packages=[*find_packages(include=["ddpm_jax*"]), "ddpm_jax.configs"], package_dir={"ddpm_jax.configs": "configs"})

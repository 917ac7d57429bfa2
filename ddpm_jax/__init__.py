"""Denoising diffusion probabilistic models in JAX (Ho et al. 2020, arXiv 2006.11239)."""

__version__ = "0.1.0"

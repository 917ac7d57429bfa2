"""Samplers: ways back from noise to an image, and the driver that runs them on all devices."""

from collections.abc import Callable

from ddpm_jax.samplers.ancestral import ancestral
from ddpm_jax.samplers.ddim import ddim
from ddpm_jax.samplers.sampler import Sampler

# name -> (schedule, *, prediction, variance, clip_denoised, eta) -> Sampler
SAMPLERS: dict[str, Callable[..., Sampler]] = {
    "ancestral": ancestral,
    "ddim": ddim,
}

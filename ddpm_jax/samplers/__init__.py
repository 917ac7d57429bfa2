"""Samplers: ways back from noise to an image, and the driver that runs them on all devices."""

from collections.abc import Callable

from ddpm_jax.samplers.ancestral import ancestral
from ddpm_jax.samplers.ddim import ddim
from ddpm_jax.samplers.dpmpp import dpmpp_2m, dpmpp_2m_sde
from ddpm_jax.samplers.heun import heun
from ddpm_jax.samplers.ode import ode
from ddpm_jax.samplers.sampler import Sampler
from ddpm_jax.samplers.unipc import unipc

# name -> (schedule, *, prediction, variance, clip_denoised, eta, trained, and options of its own) -> Sampler.
# `schedule` is usually respaced; `trained` is the chain that it was respaced from, for those that stop between its entries.
SAMPLERS: dict[str, Callable[..., Sampler]] = {
    "ancestral": ancestral,
    "ddim": ddim,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "unipc": unipc,
    "heun": heun,
    "ode": ode,
}

"""Samplers: ways back from noise to an image, and the driver that runs them on all devices."""

from collections.abc import Callable

# Modules, so that `from ddpm_jax.samplers import ddim` is ddim.py; each holds the function of its name (dpmpp.py two).
from ddpm_jax.samplers import ancestral, ddim, dpmpp, heun, rk4, unipc
from ddpm_jax.samplers.sampler import Sampler

# name -> (schedule, *, prediction, variance, clip_denoised, eta, trained, and options of its own) -> Sampler.
# `schedule` is usually respaced; `trained` is the chain that it was respaced from, for those that stop between its entries.
SAMPLERS: dict[str, Callable[..., Sampler]] = {
    "ancestral": ancestral.ancestral,
    "ddim": ddim.ddim,
    "dpmpp_2m": dpmpp.dpmpp_2m,
    "dpmpp_2m_sde": dpmpp.dpmpp_2m_sde,
    "unipc": unipc.unipc,
    "heun": heun.heun,
    "ode": rk4.rk4,
}

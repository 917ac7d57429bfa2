"""Samplers, and the driver that runs them on all devices."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ddpm_jax.diffusion.parameterization import Parameterization
from ddpm_jax.diffusion.schedules import NoiseSchedule
from ddpm_jax.runtime import custom_parts, registry

# Import modules, so that `from ddpm_jax.samplers import ddim` is ddim.py; each defines a function of its name (dpmpp.py two).
from ddpm_jax.samplers import ancestral, ddim, dpmpp, heun, rk4, unipc
from ddpm_jax.samplers.sampler import Sampler

# name -> (schedule, predict_x0, *, sampler options) -> Sampler. `schedule` is usually respaced. `predict_x0` is
# `Parameterization.denoise`; a sampler that needs more of the network's output takes `parameterization` instead. A sampler
# that evaluates the network between the levels of `schedule` takes `trained`, the chain that it was respaced from.
SAMPLERS: dict[str, Callable[..., Sampler]] = {
    "ancestral": ancestral.ancestral,
    "ddim": ddim.ddim,
    "dpmpp_2m": dpmpp.dpmpp_2m,
    "dpmpp_2m_sde": dpmpp.dpmpp_2m_sde,
    "unipc": unipc.unipc,
    "heun": heun.heun,
    "ode": rk4.rk4,
}


def make_sampler(
    name: str,
    schedule: NoiseSchedule,
    parameterization: Parameterization,
    /,
    *,
    trained: NoiseSchedule | None = None,
    **options: Any,
) -> Sampler:
    """The sampler called `name` over `schedule`.

    Args:
      name: a key of SAMPLERS, or module:function for a function of the user's own with these arguments.
      schedule: the sampling chain, usually respaced.
      parameterization: what the network's output means.
      trained: the chain that `schedule` was respaced from.
      options: sampler options: eta of ddim, order of unipc, churn, churn_min, churn_max and churn_noise of heun.

    Raises:
      ValueError: unknown name, unknown option, an option out of range, or a prediction or sampler incompatible with zero
        terminal SNR.
    """
    parts = {"predict_x0": parameterization.denoise, "parameterization": parameterization, "trained": trained}
    bound = registry.bind(name, SAMPLERS, "sampler", num_args=1, options=options, parts=parts)
    parameterization.check_terminal_snr(zero=schedule.has_zero_terminal_snr)
    return registry.call(name, SAMPLERS, "sampler", bound, schedule)


def check_custom_sampler(name: str, sampler: Sampler, image_shape: Sequence[int], out_channels: int) -> None:
    """Checks what a sampler of the user's own returns.

    Args:
      name: for the errors.
      sampler: made by `make_sampler`.
      image_shape: (H, W, C).
      out_channels: channels of the network's output.

    Raises:
      InvalidArgumentError: it is not a Sampler, or a step fails or returns other shapes than it gets.
    """
    part, size = f"the sampler {name}", custom_parts.BATCH_SIZE
    custom_parts.check_type(part, sampler, Sampler)
    custom_parts.check_type(f"the schedule of {part}", sampler.schedule, NoiseSchedule)
    custom_parts.check_type(f"the number of steps of {part}", sampler.num_steps, int)

    def denoise(x_t: jax.Array, t: jax.Array) -> jax.Array:
        return jnp.zeros((*x_t.shape[:-1], out_channels))

    def step(x_t: jax.Array, carry: Any, index: jax.Array, keys: jax.Array) -> Any:
        return sampler.step(denoise, x_t, carry, index, keys)

    x = custom_parts.array(size, *image_shape)
    carry = custom_parts.trace(part, sampler.init_carry, x)
    found = custom_parts.trace(part, step, x, carry, custom_parts.array(dtype=jnp.int32), custom_parts.keys(size))
    x_prev, pred_xstart, new_carry = custom_parts.unpack(f"a step of {part}", found, ("x_prev", "pred_xstart", "carry"))
    for value, required, what in ((x_prev, x, "x_prev"), (pred_xstart, x, "pred_xstart"), (new_carry, carry, "the carry")):
        custom_parts.check_result(f"a step of {part}", value, required, what)

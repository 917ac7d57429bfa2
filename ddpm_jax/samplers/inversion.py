"""DDIM inversion: from an image to the noise from which DDIM generates it. Song et al. 2010.02502, section 4.3.

With η = 0 a step of DDIM from index k of the chain to k - 1 is, in x̄ = x / sqrt(ᾱ) and σ = sqrt((1 - ᾱ) / ᾱ),

    x̄_{k-1} = x̄_k + (σ_{k-1} - σ_k) ε̂(x_k, t_k)        (the clean image has index -1, where σ = 0)

and its inverse is the x_k that solves this for a given x_{k-1}, by fixed-point iteration:

    x̄_k ← x̄_{k-1} + (σ_k - σ_{k-1}) ε̂(x_k, t_k)                                                         (1)

The initial x_k uses the ε̂ of the previous step (0 in the first). One iteration of (1) has an error of second order in the
step size; where (1) contracts, further iterations converge to the inverse, up to rounding.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion.noise_level import extract
from ddpm_jax.diffusion.parameterization import DenoiseFn, PredictFn, predict_eps_from_xstart
from ddpm_jax.diffusion.schedules import NoiseSchedule
from ddpm_jax.samplers import sampler as chain
from ddpm_jax.samplers.runge_kutta import require_finite_sigma
from ddpm_jax.samplers.sampler import Sampler


def ddim_inversion(schedule: NoiseSchedule, predict_x0: PredictFn, *, num_fixed_point_iters: int = 1) -> Sampler:
    """The sampler from an image (`sampler.init_state_from`) to the x_T from which `ddim` with η = 0 reconstructs it.

    Step i = 0 .. K-1 ends at index i of the schedule; its pred_xstart is that at index i.

    Args:
      schedule: the schedule of the `ddim` that reconstructs the image.
      predict_x0: its `predict_x0`. Where x̂_0 is clipped, the step is not invertible and the reconstruction not exact.
      num_fixed_point_iters: iterations of (1), one network evaluation each, per step; at least 1.

    Raises:
      ValueError: num_fixed_point_iters < 1, or a schedule that starts at infinite σ.
    """
    if num_fixed_point_iters < 1:
        raise ValueError(f"an inversion needs at least 1 fixed-point iteration per step, not {num_fixed_point_iters}")
    require_finite_sigma("the inversion of ddim", schedule, "only a model trained without zero_terminal_snr can interpolate")
    # x_k = x_coef x_{k-1} + eps_coef ε̂: the step in x̄, times sqrt(ᾱ_k).
    sigma = schedule.sqrt_recipm1_alphas_cumprod
    x_coef = schedule.sqrt_alphas_cumprod / np.sqrt(schedule.alphas_cumprod_prev)
    eps_coef = schedule.sqrt_alphas_cumprod * np.diff(sigma, prepend=0.0)

    def step(denoise_fn: DenoiseFn, x: jax.Array, eps: jax.Array, index: jax.Array, keys: jax.Array | None):
        t = jnp.full(x.shape[:1], schedule.num_timesteps - 1 - index, jnp.int32)
        level = schedule.level(t)

        def inverse_step(eps: jax.Array) -> jax.Array:
            return extract(x_coef, t, x) * x + extract(eps_coef, t, x) * eps

        def iterate(_, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            x_next, _ = carry
            pred_xstart = predict_x0(denoise_fn, x_next, level)
            return inverse_step(predict_eps_from_xstart(x_next, level, pred_xstart)), pred_xstart

        x_next, pred_xstart = jax.lax.fori_loop(0, num_fixed_point_iters, iterate, (inverse_step(eps), x))
        eps = (x_next - extract(x_coef, t, x) * x) / extract(eps_coef, t, x)
        return x_next, pred_xstart, eps

    steps = schedule.num_timesteps
    extra = (num_fixed_point_iters - 1) * steps
    return Sampler(schedule=schedule, step=step, init_carry=lambda x: 0.0 * x, extra_nfe=extra, total_steps=steps)


def invert(inversion: Sampler, denoise_fn: DenoiseFn, x_start: jax.Array) -> jax.Array:
    """x_T [B, H, W, C] of images x_start [B, H, W, C] in [-1, 1], with a sampler from `ddim_inversion`."""
    state = chain.init_state_from(inversion, x_start)
    return chain.run_steps(inversion, denoise_fn, state, None, first_step=0, count=inversion.num_steps).x


def slerp(a: jax.Array, b: jax.Array, fraction: jax.Array) -> jax.Array:
    """Spherical linear interpolation from a to b, for latents of DDIM. DDIM 2010.02502, appendix D.5.

        sin((1 - s) θ) / sin θ a + sin(s θ) / sin θ b,   θ the angle between a and b

    The norm of a linear interpolation of noise would be too small for noise.

    Args:
      a: [B, H, W, C].
      b: [B, H, W, C].
      fraction: s, [B] in 0..1; 0 gives a and 1 gives b.
    """
    axes = tuple(range(1, a.ndim))
    fraction = fraction.reshape(-1, *[1] * (a.ndim - 1))

    def norm(x: jax.Array) -> jax.Array:
        return jnp.sqrt(jnp.sum(x * x, axis=axes, keepdims=True))

    cosine = jnp.sum(a * b, axis=axes, keepdims=True) / jnp.maximum(norm(a) * norm(b), 1e-30)
    angle = jnp.arccos(jnp.clip(cosine, -1.0, 1.0))
    parallel = angle < 1e-3  # interpolate linearly, since sin θ is too small to divide by
    sine = jnp.where(parallel, 1.0, jnp.sin(angle))
    a_coef = jnp.where(parallel, 1 - fraction, jnp.sin((1 - fraction) * angle) / sine)
    b_coef = jnp.where(parallel, fraction, jnp.sin(fraction * angle) / sine)
    return a_coef * a + b_coef * b

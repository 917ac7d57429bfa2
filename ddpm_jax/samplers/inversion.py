"""DDIM backwards: from an image to the noise that DDIM makes it from. Song et al. 2010.02502, section 4.3.

With η = 0 a step of DDIM from entry k of the chain to the next is, in x̄ = x / sqrt(ᾱ) and σ = sqrt((1 - ᾱ) / ᾱ),

    x̄_{k-1} = x̄_k + (σ_{k-1} - σ_k) ε̂(x_k, t_k)        (the clean image being entry -1, where σ = 0)

and its inverse is the x_k that solves this for a known x_{k-1}. x_k stands on both sides, so one guesses where it lies,
asks the network there, at t_k, and takes the step with that ε̂:

    x̄_k ← x̄_{k-1} + (σ_k - σ_{k-1}) ε̂(x_k, t_k)                                                         (1)

The first x_k to ask at lies along the ε̂ of the step before (in the very first step, ε̂ = 0). One turn of (1)
leaves an error that falls with the square of the number of steps; each further turn makes it smaller, down to where the
inverse is exact but for rounding, wherever (1) contracts.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion.noise_level import extract
from ddpm_jax.diffusion.parameterization import DenoiseFn, PredictFn, predict_eps_from_xstart
from ddpm_jax.diffusion.schedules import NoiseSchedule
from ddpm_jax.samplers import sampler as chain
from ddpm_jax.samplers.runge_kutta import no_finite_sigma
from ddpm_jax.samplers.sampler import Sampler


def ddim_inversion(schedule: NoiseSchedule, predict_x0: PredictFn, *, turns: int = 1) -> Sampler:
    """The way from an image (`sampler.start_from`) to the x_T from which `ddim` with η = 0 over `schedule` returns it.

    Step i = 0 .. K-1 leads to entry i of the schedule; the guesses that it keeps are those made there.

    Args:
      schedule: the chain to climb, the same as in `ddim`.
      predict_x0: the same as in the `ddim` that shall return the image. Where a guess is in fact clipped, what leads there
        cannot be told from the image, and it does not return exactly.
      turns: of (1) in each step, and so evaluations of the network: at least 1.

    Raises:
      ValueError: turns < 1, or a schedule that starts from infinite σ.
    """
    if turns < 1:
        raise ValueError(f"an inversion takes at least one turn in each step, not {turns}")
    no_finite_sigma("the inversion of ddim", schedule, "only a model trained without zero_terminal_snr can interpolate")
    # x_k = on_x x_{k-1} + on_eps ε̂: the step in x̄, times sqrt(ᾱ_k).
    sigma = schedule.sqrt_recipm1_alphas_cumprod
    on_x = schedule.sqrt_alphas_cumprod / np.sqrt(schedule.alphas_cumprod_prev)
    on_eps = schedule.sqrt_alphas_cumprod * np.diff(sigma, prepend=0.0)

    def step(denoise_fn: DenoiseFn, x: jax.Array, eps: jax.Array, index: jax.Array, keys: jax.Array | None):
        entry = schedule.num_timesteps - 1 - index
        t = jnp.full(x.shape[:1], entry, jnp.int32)
        level = schedule.level(t)

        def climb(eps: jax.Array) -> jax.Array:
            return extract(on_x, t, x) * x + extract(on_eps, t, x) * eps

        def turn(_, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            x_next, _ = carry
            pred_xstart = predict_x0(denoise_fn, x_next, level)
            return climb(predict_eps_from_xstart(x_next, level, pred_xstart)), pred_xstart

        x_next, pred_xstart = jax.lax.fori_loop(0, turns, turn, (climb(eps), x))
        eps = (x_next - extract(on_x, t, x) * x) / extract(on_eps, t, x)
        return x_next, pred_xstart, eps

    extra = (turns - 1) * schedule.num_timesteps
    return Sampler(schedule=schedule, step=step, init_carry=lambda x: 0.0 * x, extra_nfe=extra)


def invert(inversion: Sampler, denoise_fn: DenoiseFn, x_start: jax.Array) -> jax.Array:
    """x_T [B, H, W, C] of images x_start [B, H, W, C] in [-1, 1], by a sampler of `ddim_inversion`."""
    state = chain.init_state_from(inversion, x_start)
    return chain.run_steps(inversion, denoise_fn, state, None, first_step=0, count=inversion.num_steps).x


def slerp(a: jax.Array, b: jax.Array, share: jax.Array) -> jax.Array:
    """From a to b on the great circle between them: latents of images between two images. DDIM 2010.02502, appendix D.5.

        sin((1 - s) θ) / sin θ a + sin(s θ) / sin θ b,   θ the angle between a and b

    Half of the way in a straight line is nearer to 0 than noise ever is, and no image comes of it; this way is not.

    Args:
      a: [B, H, W, C].
      b: likewise.
      share: [B] in 0..1; 0 gives a and 1 gives b.
    """
    axes = tuple(range(1, a.ndim))
    share = share.reshape(-1, *[1] * (a.ndim - 1))

    def norm(x: jax.Array) -> jax.Array:
        return jnp.sqrt(jnp.sum(x * x, axis=axes, keepdims=True))

    cosine = jnp.sum(a * b, axis=axes, keepdims=True) / jnp.maximum(norm(a) * norm(b), 1e-30)
    angle = jnp.arccos(jnp.clip(cosine, -1.0, 1.0))
    straight = angle < 1e-3  # there the circle is a line, and sin θ too small to divide by
    sine = jnp.where(straight, 1.0, jnp.sin(angle))
    on_a = jnp.where(straight, 1 - share, jnp.sin((1 - share) * angle) / sine)
    on_b = jnp.where(straight, share, jnp.sin(share * angle) / sine)
    return on_a * a + on_b * b

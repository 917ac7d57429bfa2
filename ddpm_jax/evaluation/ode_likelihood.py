"""Density of an image under the probability-flow ODE. Song et al. 2011.13456, section 4.3 and appendix D.

The probability-flow ODE maps N(0, I) at the last noise level to images. It is deterministic and invertible, so the log
density changes by the integral of the divergence. With the angle φ of `diffusion/continuous_time.py` and
x = cos(φ) x_0 + sin(φ) ε, the vector field is v (2202.00512, section 4; equation (7) of `parameterization.py`):

    dx/dφ = v̂(x, φ) = cos(φ) ε̂ - sin(φ) x̂_0                                           (26)
    log p(x_{t=0}) = log N(x_{t=T-1}; 0, I) + ∫ ∇·v̂ dφ    from φ_0 to φ_{T-1}          (27)  2011.13456, eq. 39

The sampler `ode` solves the same ODE in σ = tan φ, with fixed steps whose stages are training timesteps. Here diffrax
chooses the steps of Tsitouras' fifth-order method adaptively, so the network is also evaluated between timesteps
(`continuous_time.timestep_at`). x̂_0 is not clipped: with clipping the vector field would not be smooth and the map not
invertible.

**Start.** The integration starts at t=0, whose noise level σ_0 = tan φ_0 is the smallest one of the network (0.01 for the
linear schedule, with images in [-1, 1]). (27) is the density of x_{t=0} / sqrt(ᾱ_0), the image plus noise of standard
deviation σ_0, evaluated at the image itself: the density of the slightly blurred data. Noise levels below σ_0 do not count.

**Divergence.** The exact trace takes one derivative per pixel, D in all, so it suits small images. Hutchinson's estimator
(2011.13456, eq. 40) takes a few derivatives along random z of ±1: E[zᵀ (∂v̂/∂x) z] = ∇·v̂. It uses the same z for the
whole integration, which keeps the integrand smooth, and is unbiased in log p. Derivatives use forward mode: convolutions of
the same kind, without stored activations.

**Bits per dimension.** The levels k = 0..255 are discrete and have no density, so they are dequantized: each becomes
y = (k + u) / 128 - 1 with u uniform in [0, 1), equal to (u + 255 x) / 256 for an x in [0, 1], and

    bits/dim = -log2 p(y) / D + 7                                                     (28)

where 7 = log2(128) converts to the density per level; for n levels instead of 256 it is log2(n / 2). Its mean over u is an
upper bound of the discrete -log2 P(k) / D (Jensen's inequality). This density of *dequantized* data under an ODE is not
comparable with the variational bound of `diffusion/vlb.py`, which is for the discrete levels under a chain of T steps.
Always report which of the two is meant.

**One image at a time.** `ode_log_likelihood` takes a single image; use `jax.vmap` for a batch. Each image then has its own
step sizes, and its result does not depend on the rest of the batch. A batch takes as long as its slowest image.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion import continuous_time
from ddpm_jax.diffusion.parameterization import DenoiseFn, Parameterization
from ddpm_jax.diffusion.schedules import NoiseSchedule

TRACE_CHUNK = 64  # derivatives of the exact trace computed in one batch: memory for as many forward passes
STAGES = 6  # evaluations per step of Tsitouras' method; the seventh is the first one of the next step


class OdeLogLikelihood(NamedTuple):
    """Log density of one image; arrays [], or [B] under `jax.vmap`.

    Attributes:
      nats: log p of (27) divided by the number of dimensions D, for images in units of [-1, 1].
      prior_nats: its term log N(x_{t=T-1}; 0, I), divided by D.
      evaluations: int32, number of network evaluations, each with derivatives along `probes` directions (D if exact).
      success: bool, whether the solver reached the end within `max_steps`; `nats` is NaN if not.
    """

    nats: jax.Array
    prior_nats: jax.Array
    evaluations: jax.Array
    success: jax.Array


def start_sigma(schedule: NoiseSchedule) -> float:
    """σ_0, the noise level at t=0, in units of [-1, 1]."""
    return float(schedule.sqrt_recipm1_alphas_cumprod[0])


def dequantize(images: jax.Array, keys: jax.Array, num_levels: int = 256, lowest: float = 0.0) -> jax.Array:
    """y = 2 (k + u) / n - 1, float32 in [-1, 1), for n levels k. 2011.13456, appendix D.2; uniform dequantization.

    Args:
      images: integer [B, ...], levels lowest + k, clipped to 0 <= k < n.
      keys: [B]; u uses fold_in(key, 0).
      num_levels: n; 256 for uint8.
      lowest: the level k = 0.
    """
    u = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 0), images.shape[1:]))(keys)
    levels = jnp.clip(images.astype(jnp.float32) - lowest, 0, num_levels - 1)
    return (levels + u) / (num_levels / 2) - 1.0


def bits_per_dim(nats: jax.Array, num_levels: int = 256) -> jax.Array:
    """Bits per dimension (28) from the log density per dimension of dequantized images, in nats."""
    return np.log2(num_levels / 2) - nats / np.log(2.0)


def ode_log_likelihood(
    schedule: NoiseSchedule,
    parameterization: Parameterization,
    denoise_fn: DenoiseFn,
    x: jax.Array,
    key: jax.Array,
    *,
    probes: int,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_steps: int = 1000,
) -> OdeLogLikelihood:
    """log p(x) of one image by (27), with N(0, I) at the last noise level of `schedule`.

    Args:
      schedule: noise schedule of the training, K >= 2 steps; concrete, not traced.
      parameterization: meaning of the network output; its clipping is not applied.
      denoise_fn: (x_t [1, H, W, C], t [1]) -> model output. t is floating in [0, T-1], usually not an integer.
      x: floating [H, W, C], in [-1, 1].
      key: random key; the z of Hutchinson's estimator use fold_in(key, 1). The exact trace ignores it.
      probes: number of z; 0 for the exact trace.
      rtol: relative tolerance per step, for x (root mean square over the image) and for the divergence per dimension.
        float32 cannot resolve less than 1e-6.
      atol: absolute tolerance.
      max_steps: largest number of steps, including rejected ones.

    Raises:
      ValueError: the image is not floating or not [H, W, C], probes < 0, a tolerance is not in (0, 1), max_steps < 1, the
        schedule has one step, or the prediction cannot be used with zero terminal SNR.
    """
    import diffrax  # imported lazily: it takes a second

    validate_args(schedule, parameterization, probes=probes, rtol=rtol, atol=atol, max_steps=max_steps)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x is {x.dtype}: dequantize images to floats first")
    if x.ndim != 3:
        raise ValueError(f"x has shape {x.shape}: one image [H, W, C] is needed; use jax.vmap for a batch")
    angles = continuous_time.noise_angles(schedule)
    size, dtype = x.size, x.dtype
    directions = None
    if probes:
        directions = jax.random.rademacher(jax.random.fold_in(key, 1), (probes, *x.shape), dtype)

    def vector_field(angle: jax.Array, state: tuple[jax.Array, jax.Array], _: None) -> tuple[jax.Array, jax.Array]:
        angle = jnp.asarray(angle, dtype)

        def velocity(x: jax.Array) -> jax.Array:
            level = continuous_time.level_at(schedule, angle[None])
            return parameterization.velocity(parameterization.evaluate(denoise_fn, x[None], level), x[None], level)[0]

        v, jvp_fn = jax.linearize(velocity, state[0])
        trace = _trace(jvp_fn, x.shape, dtype) if directions is None else _hutchinson_trace(jvp_fn, directions)
        return v, trace / size

    def norm(error: tuple[jax.Array, jax.Array]) -> jax.Array:
        return jnp.maximum(jnp.sqrt(jnp.mean(jnp.square(error[0]))), jnp.abs(error[1]))

    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(vector_field),
        diffrax.Tsit5(),
        t0=angles[0],
        t1=angles[-1],
        dt0=angles[1] - angles[0],
        y0=(x * jnp.asarray(schedule.sqrt_alphas_cumprod[0], dtype), jnp.zeros((), dtype)),
        stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol, norm=norm),
        adjoint=diffrax.ForwardMode(),
        max_steps=max_steps,
        throw=False,
    )
    last, divergence = solution.ys[0][-1], solution.ys[1][-1]
    success = solution.result == diffrax.RESULTS.successful
    prior = -0.5 * (jnp.mean(jnp.square(last)) + np.log(2 * np.pi))
    # The density of x_{t=0} / sqrt(ᾱ_0), not of x_{t=0}.
    nats = prior + divergence + np.log(schedule.sqrt_alphas_cumprod[0])
    evaluations = STAGES * solution.stats["num_steps"] + 1
    return OdeLogLikelihood(jnp.where(success, nats, jnp.nan), prior, evaluations.astype(jnp.int32), success)


def validate_args(
    schedule: NoiseSchedule, parameterization: Parameterization, *, probes: int, rtol: float, atol: float, max_steps: int
) -> None:
    """Raise the ValueErrors of `ode_log_likelihood` that do not depend on the image."""
    if schedule.num_timesteps < 2:
        raise ValueError("a chain of 1 step has only one noise level, so there is no ODE to solve: leave out ode_bits_per_dim")
    if probes < 0:
        raise ValueError(f"probes is {probes}: use 1 or more, or 0 for the exact trace")
    if not (0 < rtol < 1 and 0 < atol < 1):
        raise ValueError(f"rtol = {rtol:g} and atol = {atol:g}: both must be above 0 and below 1")
    if max_steps < 1:
        raise ValueError(f"max_steps is {max_steps}: the solver needs at least 1")
    parameterization.check_terminal_snr(zero=schedule.has_zero_terminal_snr)


def _trace(jvp_fn, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """Trace of the linear map `jvp_fn` on images: the sum of its diagonal, pixel by pixel."""
    size = int(np.prod(shape))

    def diagonal(pixel: jax.Array) -> jax.Array:
        return jvp_fn(jax.nn.one_hot(pixel, size, dtype=dtype).reshape(shape)).reshape(-1)[pixel]

    return jnp.sum(jax.lax.map(diagonal, jnp.arange(size), batch_size=min(size, TRACE_CHUNK)))


def _hutchinson_trace(jvp_fn, directions: jax.Array) -> jax.Array:
    """Hutchinson's estimate of the trace of `jvp_fn`: mean of zᵀ jvp_fn(z) over directions z, [probes, H, W, C]."""
    return jnp.mean(jax.vmap(lambda z: jnp.sum(z * jvp_fn(z)))(directions))

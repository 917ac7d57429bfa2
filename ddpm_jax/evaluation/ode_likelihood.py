"""The density of an image under the probability flow. Song et al. 2011.13456, section 4.3 and appendix D.

The probability-flow ODE carries N(0, I) at the last noise level to images, without noise on the way and so invertibly.
Along such a flow a density changes by the flow's divergence alone. In the angle φ of `diffusion/continuous_time.py`, with
x = cos(φ) x_0 + sin(φ) ε, the flow is the network's v (2202.00512, section 4; equation (7) of `parameterization.py`):

    dx/dφ = v̂(x, φ) = cos(φ) ε̂ - sin(φ) x̂_0                                           (26)
    log p(x_{t=0}) = log N(x_{t=T-1}; 0, I) + ∫ ∇·v̂ dφ    from φ_0 to φ_{T-1}          (27)  2011.13456, eq. 39

This is the same flow as that of the sampler `ode`, which steps in σ = tan φ. There the steps are given, and each stage
stands at a timestep of training; here diffrax chooses the steps of Tsitouras' method of order 5 by their error, and the
network is asked between its timesteps too (`continuous.timestep_at`). The guess of x_0 is not clipped: clipped, the flow
would have kinks and be no longer invertible.

**Where it starts.** At t=0, whose noise level σ_0 = tan φ_0 is the smallest that the network knows (.01 of the linear
chain, images being in [-1, 1]). (27) is the density of x_{t=0} / sqrt(ᾱ_0), the image with noise of deviation σ_0,
taken at the image itself: the density of the data with so much blur. Nothing below σ_0 is counted.

**The divergence** is a trace. Exact, it takes a derivative along each of the D pixels: for small images. Hutchinson's
estimator (2011.13456, eq. 40) takes it along a few random z of ±1, E[zᵀ (∂v̂/∂x) z] = ∇·v̂, the same z all the way, so
that the integrand stays smooth: unbiased in log p. Derivatives are pushed forward, not pulled back: they are
convolutions of the same kind, and need no memory of the pass.

**Bits per dimension.** A density of levels k = 0..255 makes no sense, so they are dequantised: each becomes
y = (k + u) / 128 - 1 with u uniform in [0, 1), which is (u + 255 x) / 256 of an x in [0, 1], and

    bits/dim = -log2 p(y) / D + 7                                                     (28)

where 7 = log2(128) counts the density by the level. Its mean over u bounds the discrete -log2 P(k) / D from above (by
Jensen's inequality). It is a density of *dequantised* data under a deterministic flow and not the variational bound of
`diffusion/vlb.py`, which is of the levels themselves, under a chain of T steps: two different quantities. Say which.

**One image at a time.** `flow_density` is of a single image; for a batch it is put under `jax.vmap`. So each image has
its own steps and stops by its own error, and its number does not depend on what stands beside it. (One step size for a
batch would be simpler and depend on all of it.) A batch is done when its slowest image is.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion import continuous_time
from ddpm_jax.diffusion.parameterization import DenoiseFn, Parameterization
from ddpm_jax.diffusion.schedules import NoiseSchedule

LEVELS_PER_UNIT = 128  # of 256 dequantised levels, in a difference of 1 on the scale of [-1, 1)
TRACE_CHUNK = 64  # derivatives of the exact trace taken side by side: memory for so many passes
STAGES = 6  # evaluations in a step of Tsitouras' method, whose seventh is the first of the next


class OdeLogLikelihood(NamedTuple):
    """The density of one image; arrays [], or [B] under `jax.vmap`.

    Attributes:
      nats: log p of (27) divided by the number of dimensions D: of the image in units of [-1, 1].
      prior_nats: the part log N(x_{t=T-1}; 0, I) of it, likewise.
      evaluations: int32, of the network; each comes with its derivatives along `probes` directions (or D).
      finished: bool, whether the solver reached the end within its steps; where not, `nats` is NaN.
    """

    nats: jax.Array
    prior_nats: jax.Array
    evaluations: jax.Array
    finished: jax.Array


def start_sigma(schedule: NoiseSchedule) -> float:
    """σ_0, the noise on the images whose density is taken: that of t=0, in units of [-1, 1]."""
    return float(schedule.sqrt_recipm1_alphas_cumprod[0])


def dequantize(images: jax.Array, keys: jax.Array) -> jax.Array:
    """y = (k + u) / 128 - 1, float32 in [-1, 1). 2011.13456, appendix D.2; uniform dequantisation.

    Args:
      images: uint8 [B, ...], levels k.
      keys: [B]; u is drawn from fold_in(key, 0).
    """
    u = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 0), images.shape[1:]))(keys)
    return (images.astype(jnp.float32) + u) / LEVELS_PER_UNIT - 1.0


def bits_per_dim(nats: jax.Array) -> jax.Array:
    """Bits per dimension of dequantised levels from their log density per dimension, in nats; (28)."""
    return np.log2(LEVELS_PER_UNIT) - nats / np.log(2.0)


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
    """log p(x) of one image by (27), from N(0, I) at the last noise level of `schedule`.

    Args:
      schedule: the chain that the network was trained on, K >= 2 steps; concrete, not traced.
      parameterization: what the output of the network means; its clipping is not applied.
      denoise_fn: (x_t [1, H, W, C], t [1]) -> model output. t is floating, 0 .. T-1, and mostly no integer.
      x: floating [H, W, C], in [-1, 1].
      key: the z of Hutchinson's estimator are drawn from fold_in(key, 1); the exact trace does not read it.
      probes: how many z; 0 for the exact trace.
      rtol: error allowed in a step, relative to x (root mean square over the image) and to the divergence per dimension,
        whichever is worse. Below 1e-6 float32 cannot tell.
      atol: the same, absolute.
      max_steps: the solver gives up after so many, rejected ones included.

    Raises:
      ValueError: an image that is not floating, probes < 0, a tolerance that is not above 0, a chain of one step,
        or a prediction that a chain with zero terminal SNR cannot use.
    """
    import diffrax  # takes a second to import, which only this function should cost

    validate_args(schedule, parameterization, probes=probes, rtol=rtol, atol=atol, max_steps=max_steps)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x is {x.dtype}: dequantize images to floats first")
    if x.ndim != 3:
        raise ValueError(f"x has shape {x.shape}: one image [H, W, C] is needed; put a batch under jax.vmap")
    angles = continuous_time.noise_angles(schedule)
    size, dtype = x.size, x.dtype
    signs = None
    if probes:
        signs = jax.random.rademacher(jax.random.fold_in(key, 1), (probes, *x.shape), dtype)

    def field(angle: jax.Array, state: tuple[jax.Array, jax.Array], _: None) -> tuple[jax.Array, jax.Array]:
        angle = jnp.asarray(angle, dtype)

        def velocity(x: jax.Array) -> jax.Array:
            level = continuous_time.level_at(schedule, angle[None])
            return parameterization.velocity(parameterization.evaluate(denoise_fn, x[None], level), x[None], level)[0]

        v, push = jax.linearize(velocity, state[0])
        return v, (_trace(push, x.shape, dtype) if signs is None else _hutchinson_trace(push, signs)) / size

    def norm(error: tuple[jax.Array, jax.Array]) -> jax.Array:
        return jnp.maximum(jnp.sqrt(jnp.mean(jnp.square(error[0]))), jnp.abs(error[1]))

    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(field),
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
    finished = solution.result == diffrax.RESULTS.successful
    prior = -0.5 * (jnp.mean(jnp.square(last)) + np.log(2 * np.pi))
    # Of x_{t=0} / sqrt(ᾱ_0), not of x_{t=0}.
    nats = prior + divergence + np.log(schedule.sqrt_alphas_cumprod[0])
    evaluations = STAGES * solution.stats["num_steps"] + 1
    return OdeLogLikelihood(jnp.where(finished, nats, jnp.nan), prior, evaluations.astype(jnp.int32), finished)


def validate_args(
    schedule: NoiseSchedule, parameterization: Parameterization, *, probes: int, rtol: float, atol: float, max_steps: int
) -> None:
    """Raises ValueError where `flow_density` would, whatever the image: one line, to be shown to a person."""
    if schedule.num_timesteps < 2:
        raise ValueError("a chain of 1 step has no flow from one noise level to another: leave out ode_bits_per_dim")
    if probes < 0:
        raise ValueError(f"probes is {probes}: take 1 or more, or 0 for the exact trace")
    if not (0 < rtol < 1 and 0 < atol < 1):
        raise ValueError(f"rtol = {rtol:g} and atol = {atol:g}: both must be above 0 and below 1")
    if max_steps < 1:
        raise ValueError(f"max_steps is {max_steps}: the solver needs at least 1")
    parameterization.check_terminal_snr(zero=schedule.has_zero_terminal_snr)


def _trace(push, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """Trace of the linear map `push` of images: its diagonal, one pixel after another."""
    size = int(np.prod(shape))

    def diagonal(pixel: jax.Array) -> jax.Array:
        return push(jax.nn.one_hot(pixel, size, dtype=dtype).reshape(shape)).reshape(-1)[pixel]

    return jnp.sum(jax.lax.map(diagonal, jnp.arange(size), batch_size=min(size, TRACE_CHUNK)))


def _hutchinson_trace(push, signs: jax.Array) -> jax.Array:
    """Hutchinson's estimate of the trace of `push`: the mean of zᵀ push(z) over the z, [probes, H, W, C]."""
    return jnp.mean(jax.vmap(lambda z: jnp.sum(z * push(z)))(signs))

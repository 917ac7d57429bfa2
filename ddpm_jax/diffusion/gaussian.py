"""The diffusion process: noising an image, and one step of taking the noise away again.

Forward, for any t at once, with ε ~ N(0, I) (the tables and their equations (1)-(4) are in `schedules.py`):

    x_t = sqrt(ᾱ_t) x_0 + sqrt(1 - ᾱ_t) ε                                           (6)   DDPM 2006.11239, eq. 4

x_t is known, so any one of x_0, ε and

    v = sqrt(ᾱ_t) ε - sqrt(1 - ᾱ_t) x_0                                             (7)   2202.00512, sec. 4

determines the other two. (6) and (7) are a rotation by the angle whose cosine is sqrt(ᾱ_t), and rotating back gives

    x_0 = sqrt(ᾱ_t) x_t - sqrt(1 - ᾱ_t) v        ε = sqrt(1 - ᾱ_t) x_t + sqrt(ᾱ_t) v     (8)

while (6) alone gives

    x_0 = x_t / sqrt(ᾱ_t) - sqrt(1/ᾱ_t - 1) ε    ε = (x_t - sqrt(ᾱ_t) x_0) / sqrt(1 - ᾱ_t)     (9)   DDPM eq. 9 ff.

Backward, the network's output is turned into a guess of x_0 by (8) or (9), and that guess takes the place of x_0 in
the posterior (3):

    p(x_{t-1} | x_t) = N(c1_t x̂_0 + c2_t x_t, σ_t² I)                               (10)  DDPM eqs. 1, 7

with σ_t² fixed at β̃_t (right if x_0 were a single point) or at β_t (right if x_0 were white noise), DDPM sec. 3.2. Or
learned, pixel by pixel, as a place v between the two, which bound the right one:

    log σ_t² = f log β_t + (1 - f) log β̃_t,   f = (v + 1) / 2                       (11)  IDDPM 2102.09672, eq. 15

Everywhere below x_start, x_t, noise and the network's output are floating arrays [B, ...], images [B, H, W, C] in
[-1, 1]; t is an integer array [B], 0..K-1 (entries of the schedule). Shapes are checked as the functions are
traced and raise ValueError. A t out of range cannot be seen then: it turns its image into NaN instead of borrowing
another step's numbers. Arithmetic is in float32 (float64 where the input is), whatever the network computed in.
All functions are pure and can be jitted; the strings are static.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion.schedules import NoiseSchedule, ends_in_pure_noise

Array = jax.Array


def extract(table: np.ndarray | Array, t: Array, x: Array) -> Array:
    """The entries t of a table, shaped to multiply x: [B, 1, ... 1] of x's rank. The only place where tables are cast.

    The result is in x's dtype, but at least float32. Entries for t outside 0..K-1 are NaN.
    """
    dtype = jnp.promote_types(jnp.result_type(x), jnp.float32)
    values = jnp.asarray(table, dtype).at[t].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
    return values.reshape(values.shape + (1,) * (jnp.ndim(x) - 1))


def check_shapes(t: Array, **arrays: Array) -> None:
    """Raises ValueError unless the arrays are floating and of one shape [B, ...] and t is an integer array [B]."""
    first = next(iter(arrays))
    shape = jnp.shape(arrays[first])
    for name, array in arrays.items():
        if jnp.shape(array) != shape:
            raise ValueError(f"{name} has shape {jnp.shape(array)} and {first} {shape}: they must be the same")
        if not jnp.issubdtype(jnp.result_type(array), jnp.floating):
            raise ValueError(f"{name} is {jnp.result_type(array)}: scale images to floats in [-1, 1] first")
    if jnp.ndim(t) != 1 or jnp.shape(t) != shape[:1] or not jnp.issubdtype(jnp.result_type(t), jnp.integer):
        kind = f"{jnp.result_type(t)} of shape {jnp.shape(t)}"
        raise ValueError(f"t is {kind}: it must hold one integer for each of the images of shape {shape}")


def signal_to_noise(schedule: NoiseSchedule, t: Array, x: Array) -> Array:
    """ᾱ_t / (1 - ᾱ_t), shaped to multiply x as by `extract`; 0 where nothing of the image is left. 2107.00630, eq. 2."""
    signal_scale = extract(schedule.sqrt_alphas_cumprod, t, x)
    return jnp.square(signal_scale / extract(schedule.sqrt_one_minus_alphas_cumprod, t, x))


# Forward.


def q_mean_variance(schedule: NoiseSchedule, x_start: Array, t: Array) -> tuple[Array, Array, Array]:
    """Mean [B, ...], variance and log variance [B, 1, ... 1] of q(x_t | x_0). DDPM eq. 4; (2)."""
    check_shapes(t, x_start=x_start)
    mean = extract(schedule.sqrt_alphas_cumprod, t, x_start) * x_start
    scale = extract(schedule.sqrt_one_minus_alphas_cumprod, t, x_start)
    return mean, jnp.square(scale), 2 * jnp.log(scale)


def q_step(schedule: NoiseSchedule, x_prev: Array, t: Array, noise: Array) -> Array:
    """One step of noise: a draw from q(x_t | x_{t-1}) made of `noise` ~ N(0, I). At t=0 x_prev is x_start. DDPM eq. 2; (1)."""
    check_shapes(t, x_prev=x_prev, noise=noise)
    keep = jnp.sqrt(extract(schedule.alphas, t, x_prev))
    return keep * x_prev + jnp.sqrt(extract(schedule.betas, t, x_prev)) * noise


def q_sample(schedule: NoiseSchedule, x_start: Array, t: Array, noise: Array) -> Array:
    """All the noise up to t at once: a draw from q(x_t | x_0) made of `noise` ~ N(0, I). [B, ...]. DDPM eq. 4; (6)."""
    check_shapes(t, x_start=x_start, noise=noise)
    signal_scale = extract(schedule.sqrt_alphas_cumprod, t, x_start)
    noise_scale = extract(schedule.sqrt_one_minus_alphas_cumprod, t, x_start)
    return signal_scale * x_start + noise_scale * noise


def q_posterior_mean_variance(schedule: NoiseSchedule, x_start: Array, x_t: Array, t: Array) -> tuple[Array, Array, Array]:
    """Mean [B, ...], variance and log variance [B, 1, ... 1] of q(x_{t-1} | x_t, x_0). DDPM eqs. 6, 7; (3).

    At t=0 the mean is x_start and the variance 0; the log variance there is that of t=1, to stay finite.
    """
    check_shapes(t, x_start=x_start, x_t=x_t)
    on_x_start = extract(schedule.posterior_mean_coef1, t, x_t)
    on_x_t = extract(schedule.posterior_mean_coef2, t, x_t)
    variance = extract(schedule.posterior_variance, t, x_t)
    log_variance = extract(schedule.posterior_log_variance_clipped, t, x_t)
    return on_x_start * x_start + on_x_t * x_t, variance, log_variance


# Conversions between x_start, eps and v, given x_t. All arrays [B, ...].


def predict_xstart_from_eps(schedule: NoiseSchedule, x_t: Array, t: Array, eps: Array) -> Array:
    """The image that x_t holds if its noise is eps; (9). Errors in eps grow by sqrt(1/ᾱ_t - 1). Not for ᾱ_t = 0."""
    check_shapes(t, x_t=x_t, eps=eps)
    on_x_t = extract(schedule.sqrt_recip_alphas_cumprod, t, x_t)
    return on_x_t * x_t - extract(schedule.sqrt_recipm1_alphas_cumprod, t, x_t) * eps


def predict_eps_from_xstart(schedule: NoiseSchedule, x_t: Array, t: Array, x_start: Array) -> Array:
    """The noise that x_t holds if its image is x_start; (9). Errors in x_start grow by 1 / sqrt(1/ᾱ_t - 1)."""
    check_shapes(t, x_t=x_t, x_start=x_start)
    signal_scale = extract(schedule.sqrt_alphas_cumprod, t, x_t)
    return (x_t - signal_scale * x_start) / extract(schedule.sqrt_one_minus_alphas_cumprod, t, x_t)


def predict_v(schedule: NoiseSchedule, x_start: Array, t: Array, noise: Array) -> Array:
    """v of an image and its noise. Salimans and Ho 2202.00512, section 4; (7)."""
    check_shapes(t, x_start=x_start, noise=noise)
    signal_scale = extract(schedule.sqrt_alphas_cumprod, t, x_start)
    return signal_scale * noise - extract(schedule.sqrt_one_minus_alphas_cumprod, t, x_start) * x_start


def predict_xstart_from_v(schedule: NoiseSchedule, x_t: Array, t: Array, v: Array) -> Array:
    """The image that x_t holds if its v is v. 2202.00512, section 4; (8)."""
    check_shapes(t, x_t=x_t, v=v)
    signal_scale = extract(schedule.sqrt_alphas_cumprod, t, x_t)
    return signal_scale * x_t - extract(schedule.sqrt_one_minus_alphas_cumprod, t, x_t) * v


def predict_eps_from_v(schedule: NoiseSchedule, x_t: Array, t: Array, v: Array) -> Array:
    """The noise that x_t holds if its v is v. 2202.00512, section 4; (8)."""
    check_shapes(t, x_t=x_t, v=v)
    signal_scale = extract(schedule.sqrt_alphas_cumprod, t, x_t)
    return extract(schedule.sqrt_one_minus_alphas_cumprod, t, x_t) * x_t + signal_scale * v


def _predict_xstart_from_xstart(schedule: NoiseSchedule, x_t: Array, t: Array, x_start: Array) -> Array:
    check_shapes(t, x_t=x_t, x_start=x_start)
    return x_start.astype(jnp.promote_types(x_start.dtype, jnp.float32))


# What the network predicts -> its guess of x_start, from (schedule, x_t, t, model_output).
PREDICTIONS: dict[str, Callable[[NoiseSchedule, Array, Array, Array], Array]] = {
    "eps": predict_xstart_from_eps,
    "x_start": _predict_xstart_from_xstart,
    "v": predict_xstart_from_v,
}


def predict_xstart(schedule: NoiseSchedule, model_output: Array, x_t: Array, t: Array, *, prediction: str) -> Array:
    """The network's guess of x_start [B, ...], unclipped, by (8) or (9).

    Args:
      schedule: the chain that t counts in.
      model_output: [B, ...], what the network made of x_t.
      x_t: [B, ...], the noisy images.
      t: [B].
      prediction: what the network predicts, a key of PREDICTIONS: eps, x_start or v.

    Raises:
      ValueError: unknown prediction, or shapes that do not match; or eps on a chain that ends in pure noise, which
        would be divided by 0 there.
    """
    if prediction not in PREDICTIONS:
        raise ValueError(f"unknown prediction {prediction!r}: choose one of {', '.join(PREDICTIONS)}")
    if prediction == "eps" and ends_in_pure_noise(schedule):
        raise ValueError("a chain with zero terminal SNR needs the prediction v or x_start, not eps")
    return PREDICTIONS[prediction](schedule, x_t, t, model_output)


# Backward.


def _fixed_small(schedule: NoiseSchedule, x_t: Array, t: Array, variance_output: Array | None) -> tuple[Array, Array]:
    """σ_t² = β̃_t, DDPM section 3.2."""
    del variance_output
    variance = extract(schedule.posterior_variance, t, x_t)
    return variance, extract(schedule.posterior_log_variance_clipped, t, x_t)


def _fixed_large(schedule: NoiseSchedule, x_t: Array, t: Array, variance_output: Array | None) -> tuple[Array, Array]:
    """σ_t² = β_t, but β̃_1 at t=0 (where no noise is added and only the likelihood reads it), DDPM section 3.2."""
    del variance_output
    if schedule.num_timesteps > 1:
        first = extract(schedule.posterior_variance, jnp.ones_like(t), x_t)
        value = jnp.where(_is_zero(t, x_t), first, extract(schedule.betas, t, x_t))
    else:
        value = extract(schedule.betas, t, x_t)
    return value, jnp.log(value)


def _learned_range(schedule: NoiseSchedule, x_t: Array, t: Array, variance_output: Array | None) -> tuple[Array, Array]:
    """log σ_t² = f log β_t + (1 - f) log β̃_t, f = (v + 1) / 2, with v of the network, unbounded; (11)."""
    if variance_output is None:
        raise ValueError("learned_range reads the variance from the network's output, and there is none")
    check_shapes(t, x_t=x_t, variance_output=variance_output)
    smallest = extract(schedule.posterior_log_variance_clipped, t, x_t)
    largest = jnp.log(extract(schedule.betas, t, x_t))
    fraction = (variance_output.astype(largest.dtype) + 1) / 2
    log_variance = fraction * largest + (1 - fraction) * smallest
    return jnp.exp(log_variance), log_variance


def _is_zero(t: Array, x: Array) -> Array:
    """Whether t = 0, shaped as by `extract`."""
    return (t == 0).reshape((-1,) + (1,) * (jnp.ndim(x) - 1))


# How the variance of p(x_{t-1} | x_t) is chosen -> (variance, log variance), from (schedule, x_t, t, variance_output).
VARIANCES: dict[str, Callable[[NoiseSchedule, Array, Array, Array | None], tuple[Array, Array]]] = {
    "fixed_small": _fixed_small,
    "fixed_large": _fixed_large,
    "learned_range": _learned_range,
}

# Those for which the network has an output of its own: twice the channels.
LEARNED_VARIANCES = frozenset({"learned_range"})


def split_output(model_output: Array, x_t: Array, *, variance: str) -> tuple[Array, Array | None]:
    """The network's output -> its prediction [B, ...], and its variance_output [B, ...] or None where that is not learned.

    With a learned variance the last axis of model_output holds twice the channels of x_t: first the prediction's,
    then the variance's. IDDPM 2102.09672, section 3.1.

    Raises:
      ValueError: unknown variance, or channels that do not fit it.
    """
    if variance not in VARIANCES:
        raise ValueError(f"unknown variance {variance!r}: choose one of {', '.join(VARIANCES)}")
    if variance not in LEARNED_VARIANCES:
        return model_output, None
    shape = jnp.shape(x_t)
    if jnp.ndim(x_t) < 2 or jnp.shape(model_output) != (*shape[:-1], 2 * shape[-1]):
        raise ValueError(
            f"model_output has shape {jnp.shape(model_output)} and x_t {shape}: "
            f"for the variance {variance} it must have twice the channels of x_t"
        )
    return model_output[..., : shape[-1]], model_output[..., shape[-1] :]


def model_variance(
    schedule: NoiseSchedule, x_t: Array, t: Array, *, variance: str, variance_output: Array | None = None
) -> tuple[Array, Array]:
    """Variance and log variance of p(x_{t-1} | x_t), σ_t² of (10): [B, 1, ... 1], or [B, ...] where it is learned.

    fixed_small is the posterior variance β̃_t; its log is clipped at t=0 to that of t=1. fixed_large is β_t, with
    β̃_1 at t=0. In a chain of one step there is no β̃_1: β_0 takes its place. learned_range lies between log β̃_t,
    clipped likewise, and log β_t, where variance_output [B, ...] goes from -1 to 1. Sampling adds no noise at t=0.
    DDPM section 3.2, IDDPM 2102.09672 eq. 15.

    Raises:
      ValueError: unknown variance, learned_range without variance_output, or shapes that do not match.
    """
    if variance not in VARIANCES:
        raise ValueError(f"unknown variance {variance!r}: choose one of {', '.join(VARIANCES)}")
    check_shapes(t, x_t=x_t)
    return VARIANCES[variance](schedule, x_t, t, variance_output)


def p_mean_variance(
    schedule: NoiseSchedule,
    model_output: Array,
    x_t: Array,
    t: Array,
    *,
    prediction: str,
    variance: str,
    clip_denoised: bool,
) -> tuple[Array, Array, Array]:
    """The network's p(x_{t-1} | x_t): mean [B, ...], log variance [B, 1, ... 1] and guess of x_start [B, ...]. (10).

    Whoever needs only the guess of x_start takes it from here too: this is where an output that holds a learned
    variance as well is taken apart, and what is not read is not computed under jit.

    Args:
      schedule: the chain that t counts in.
      model_output: [B, ...], what the network made of x_t; with a learned variance twice the channels, see `split_output`.
      x_t: [B, ...], the noisy images.
      t: [B].
      prediction: what the network predicts: eps, x_start or v.
      variance: fixed_small, fixed_large or learned_range; under the last, log variance is [B, ...].
      clip_denoised: whether the guess of x_start is clipped to [-1, 1] before the mean is made of it.

    Raises:
      ValueError: unknown prediction or variance, or shapes that do not match.
    """
    output, variance_output = split_output(model_output, x_t, variance=variance)
    _, log_variance = model_variance(schedule, x_t, t, variance=variance, variance_output=variance_output)
    pred_xstart = predict_xstart(schedule, output, x_t, t, prediction=prediction)
    if clip_denoised:
        pred_xstart = jnp.clip(pred_xstart, -1.0, 1.0)
    mean, _, _ = q_posterior_mean_variance(schedule, pred_xstart, x_t, t)
    return mean, log_variance, pred_xstart


def p_sample(
    schedule: NoiseSchedule,
    model_output: Array,
    x_t: Array,
    t: Array,
    noise: Array,
    *,
    prediction: str,
    variance: str,
    clip_denoised: bool,
) -> tuple[Array, Array]:
    """One ancestral step: a draw of x_{t-1} [B, ...] made of `noise` ~ N(0, I), and the guess of x_start [B, ...].

    At t=0 the draw is the mean, without noise. DDPM algorithm 2; arguments and errors as in `p_mean_variance`.
    """
    check_shapes(t, x_t=x_t, noise=noise)
    mean, log_variance, pred_xstart = p_mean_variance(
        schedule, model_output, x_t, t, prediction=prediction, variance=variance, clip_denoised=clip_denoised
    )
    return mean + jnp.where(_is_zero(t, x_t), 0.0, jnp.exp(0.5 * log_variance) * noise), pred_xstart

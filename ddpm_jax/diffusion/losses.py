"""Training losses, one value per image.

The variational bound of the model (10) is a sum over t of Gaussian divergences, each a squared error between the true
and the predicted x_0 (or ε, or v: by (8) and (9) these errors differ only by a factor that depends on t). Leaving
out those factors gives the loss that DDPM trains with, for t uniform in 0..T-1,

    L_simple = E_{t, x_0, ε} ‖ε - ε_θ(x_t, t)‖²                                     (21)  DDPM 2006.11239, eq. 14

here as the mean over height, width and channels, not the sum, as in DDPM's code. A network that predicts x_start or v has
the same loss on that target, which weights timesteps differently: an error in x_start counts ᾱ_t / (1 - ᾱ_t) times as much
in ε, and 1 / (1 - ᾱ_t) times as much in v. `loss_weighting.py` has others.

L_simple does not depend on the variance. A learned variance is trained by the bound, L_vlb = Σ_t L_t with the terms
(14), (15) of `likelihood.py` in bits per dimension; T L_t at one uniform t estimates it. Alone (vlb) its gradients are noisy
and need importance-sampled t (`timestep_sampling.py`). As a small part,

    L_hybrid = L_simple + 0.001 L_vlb                                               (22)  IDDPM 2102.09672, eq. 16

with a stop-gradient on the prediction in L_vlb, it trains only the variance. Neither clips x̂_0: a clipped value has no
gradient.

vlb_mean and hybrid_mean use L_t instead of T L_t, and 1 instead of 0.001: hybrid_mean is hybrid at T = 1000.
(improved-diffusion calls these four RESCALED_KL, RESCALED_MSE, KL and MSE.)
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ddpm_jax.diffusion import likelihood, loss_weighting, variances
from ddpm_jax.diffusion.loss_weighting import Weighting
from ddpm_jax.diffusion.noise_level import check_shapes
from ddpm_jax.diffusion.parameterization import Parameterization
from ddpm_jax.diffusion.schedules import NoiseSchedule
from ddpm_jax.runtime import custom_parts, registry

Array = jax.Array


class Loss(NamedTuple):
    """The terms of a loss.

    Attributes:
      simple: whether it contains (21), weighted.
      vlb: T -> the factor on L_t; None without it.
    """

    simple: bool
    vlb: Callable[[int], float] | None


LOSSES: dict[str, Loss] = {
    "simple": Loss(simple=True, vlb=None),
    "vlb": Loss(simple=False, vlb=lambda num_timesteps: num_timesteps),
    "vlb_mean": Loss(simple=False, vlb=lambda num_timesteps: 1.0),
    "hybrid": Loss(simple=True, vlb=lambda num_timesteps: num_timesteps / 1000),
    "hybrid_mean": Loss(simple=True, vlb=lambda num_timesteps: 1.0),
}


LossFn = Callable[..., Array]  # (schedule, parameterization, model_output, x_start, x_t, t, noise) -> float32 [B]


def make_loss(name: str, /, *, weighting: Weighting | None = None, **options: Any) -> LossFn:
    """The loss called `name`, a function with the arguments of `training_losses`.

    Args:
      name: a key of LOSSES, or module:function for a function `(schedule, parameterization, model_output, x_start,
        x_t, t, noise, **options)` -> float32 [B], made of JAX operations. It gets the weighting if it has a parameter
        `weighting`.
      weighting: weight of the mean squared error.
      options: options of a custom loss.

    Raises:
      ValueError: unknown name or option.
    """
    functions, parts = dict.fromkeys(LOSSES, training_losses), {"loss": name, "weighting": weighting}
    bound = registry.bind(name, functions, "loss", num_args=7, options=options, parts=parts)
    if weighting is not None and "weighting" not in bound.keywords:
        raise ValueError(f"the loss {name} has no parameter `weighting`: choose the weighting simple")
    return bound


def check_custom_loss(
    name: str,
    loss_fn: LossFn,
    schedule: NoiseSchedule,
    parameterization: Parameterization,
    image_shape: Sequence[int],
) -> None:
    """Checks what a loss of the user's own returns for images [H, W, C].

    Raises:
      InvalidArgumentError: it fails, or does not return float32 [B].
    """
    part, size = f"the loss {name}", custom_parts.BATCH_SIZE
    images, t = custom_parts.array(size, *image_shape), custom_parts.array(size, dtype=jnp.int32)
    channels = image_shape[-1] * (1 + parameterization.learns_variance)
    output = custom_parts.array(size, *image_shape[:-1], channels)
    bound = functools.partial(loss_fn, schedule, parameterization)
    found = custom_parts.trace(part, bound, output, images, images, t, images)
    custom_parts.check_result(part, found, custom_parts.array(size), "one value per image")


def check_loss(
    schedule: NoiseSchedule, parameterization: Parameterization, *, loss: str, weighting: Weighting | None = None
) -> None:
    """Raise ValueError for combinations that cannot be trained. Arguments as in `training_losses`.

    Raises:
      ValueError: a one-line message with the reason and an alternative.
    """
    parameterization.check_terminal_snr(zero=schedule.has_zero_terminal_snr)
    if registry.is_custom(loss):
        return  # it decides itself what it can train
    if loss not in LOSSES:
        raise ValueError(f"unknown loss {loss!r}: choose one of {', '.join(LOSSES)}")
    parts, learned = LOSSES[loss], parameterization.learns_variance
    if learned and parts.vlb is None:
        raise ValueError(
            f"the loss {loss} does not train the variance {parameterization.variance}: choose the loss hybrid or vlb"
        )
    if parts.simple and parts.vlb and not learned:
        choices = " or ".join(name for name, variance in variances.VARIANCES.items() if variance.learned)
        raise ValueError(f"the loss {loss} needs a learned variance: choose the variance {choices}, or the loss simple")
    if weighting is not None and not parts.simple:
        raise ValueError(f"the loss {loss} uses the weights of the bound: choose the weighting simple")
    if schedule.has_zero_terminal_snr:
        with jax.ensure_compile_time_eval():
            last_weight = 1.0 if weighting is None else float(weighting(jnp.zeros(1))[0])
        if last_weight == 0:
            raise ValueError(
                "this weighting is 0 at zero SNR, so the last step of a chain with zero terminal SNR would not be trained: "
                "wrap it in loss_weighting.trained_at_zero_snr"
            )


def training_losses(
    schedule: NoiseSchedule,
    parameterization: Parameterization,
    model_output: Array,
    x_start: Array,
    x_t: Array,
    t: Array,
    noise: Array,
    *,
    loss: str = "simple",
    weighting: Weighting | None = None,
) -> Array:
    """The loss of each image: float32 [B], whatever the dtype of the inputs.

    Args:
      schedule: the chain that t indexes.
      parameterization: what model_output means. Its clipping is not applied: a clipped x̂_0 has no gradient.
      model_output: [B, ...], the network's output at x_t; with a learned variance it has twice the channels.
      x_start: [B, ...], the images, in [-1, 1].
      x_t: [B, ...], the noisy images, `q_sample(schedule, x_start, t, noise)`.
      t: integer [B], 0..K-1.
      noise: [B, ...], the noise in x_t.
      loss: a key of LOSSES. simple: the mean squared error, DDPM eq. 14. vlb: T times the term of the bound, IDDPM's
        L_vlb. hybrid: simple + 0.001 vlb, IDDPM eq. 16. vlb_mean, hybrid_mean: with the unscaled term of the bound.
      weighting: weight of the mean squared error, from `loss_weighting.make_weighting`; None for 1.

    Raises:
      ValueError: errors of `check_loss`, or shapes that do not match.
    """
    check_loss(schedule, parameterization, loss=loss, weighting=weighting)
    output, variance_output = parameterization.split_output(model_output, x_t)
    check_shapes(t, x_start=x_start, x_t=x_t, noise=noise, model_output=output)
    parts, values, level = LOSSES[loss], jnp.zeros(jnp.shape(t), jnp.float32), schedule.level(t)
    if parts.simple:
        target = parameterization.target(x_start, level, noise)
        error = target.astype(jnp.float32) - output.astype(jnp.float32)
        values = jnp.mean(jnp.square(error), axis=tuple(range(1, error.ndim)))
        if weighting is not None:
            values = values * loss_weighting.loss_weights(parameterization, level, weighting=weighting)
        if variance_output is not None:  # L_vlb trains only the variance
            model_output = jnp.concatenate([jax.lax.stop_gradient(output), variance_output], axis=-1)
    if parts.vlb is not None:
        unclipped = dataclasses.replace(parameterization, clip_denoised=False)
        terms = likelihood.vb_terms(schedule, unclipped, model_output, x_start, x_t, t)
        values = values + parts.vlb(schedule.num_timesteps) * terms.bits.astype(jnp.float32)
    return values

"""Loss weightings as functions of the signal-to-noise ratio.

With SNR_t = ᾱ_t / (1 - ᾱ_t), the squared errors of the three predictions are proportional (equations (7) and (9) of
`parameterization.py`):

    ‖ε - ε̂‖² = SNR ‖x_0 - x̂_0‖²        ‖v - v̂‖² = (SNR + 1) ‖x_0 - x̂_0‖²            (23)

So a weighting is a function w(SNR) of the error in x_0, whatever the network predicts, and the loss of a network is
w / 1, w / SNR or w / (SNR + 1) times the plain mean squared error of its own target x_0, ε or v:

    simple         (none)                     the plain error of the target itself: w = 1, SNR, SNR + 1
    snr            w = SNR                    DDPM's L_simple, for ε: 2006.11239, eq. 14
    truncated_snr  w = max(SNR, 1)            2202.00512, section 4: keeps some weight at low SNR
    min_snr_gamma  w = min(SNR, γ), γ = 5     2303.09556: limits the weight at high SNR
    p2             w = SNR / (k + SNR)^γ, k = γ = 1    2204.00227: less weight at high SNR, where only details remain
    edm            w = SNR + 1 / σ_data², σ_data = 1/2   2206.00364, table 1: λ(σ), with σ² = 1 / SNR

(Only EDM's weight is used, not its noise distribution.)

At zero terminal SNR three of them are 0, which would leave the first sampling step untrained. The authors' code of
min_snr_gamma sets the weight of that step to 1; `trained_at_zero_snr` does so for any weighting. (diffusers' training
scripts leave it at 0.)
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion.noise_level import NoiseLevel, signal_to_noise
from ddpm_jax.diffusion.parameterization import Parameterization
from ddpm_jax.diffusion.schedules import NoiseSchedule
from ddpm_jax.runtime import custom_parts, registry

Array = jax.Array
Weighting = Callable[[Array], Array]  # SNR [B] -> w [B]


def _snr(snr: Array) -> Array:
    return snr


def _truncated_snr(snr: Array) -> Array:
    return jnp.maximum(snr, 1.0)


def _min_snr_gamma(snr: Array, *, gamma: float = 5.0) -> Array:
    return jnp.minimum(snr, gamma)


def _p2(snr: Array, *, gamma: float = 1.0, k: float = 1.0) -> Array:
    return snr / (k + snr) ** gamma


def _edm(snr: Array, *, sigma_data: float = 0.5) -> Array:
    return snr + sigma_data**-2


# name -> w of SNR, with its options. `make_weighting` returns None for simple, which depends on the prediction as well.
WEIGHTINGS: dict[str, Callable[..., Array]] = {
    "simple": lambda snr: jnp.ones_like(snr),
    "snr": _snr,
    "truncated_snr": _truncated_snr,
    "min_snr_gamma": _min_snr_gamma,
    "p2": _p2,
    "edm": _edm,
}


def make_weighting(name: str, /, **options: Any) -> Weighting | None:
    """The weighting called `name`: SNR -> w, or None for simple.

    Args:
      name: a key of WEIGHTINGS, or module:function for a function `(snr, **options) -> w`, [B] to [B], made of JAX operations.
      options: gamma of min_snr_gamma (5) or of p2 (1), k of p2 (1), sigma_data of edm (0.5); finite, above 0.

    Raises:
      ValueError: unknown name, unknown option, an option out of range, or a function of the user's own that returns
        something else.
    """
    weighting = registry.bind(name, WEIGHTINGS, "weighting", num_args=1, options=options)
    for option, value in options.items():
        if name in WEIGHTINGS and not (math.isfinite(value) and value > 0):
            raise ValueError(f"{option} of the weighting {name} is {value}: it must be finite and above 0")
    if registry.is_custom(name):
        part, snr = f"the weighting {name}", custom_parts.array(custom_parts.BATCH_SIZE)
        custom_parts.check_result(part, custom_parts.trace(part, weighting, snr), snr, "one weight per SNR")
    return None if name == "simple" else weighting


def check_custom_weighting(name: str, weighting: Weighting, schedule: NoiseSchedule) -> None:
    """Checks that a weighting of the user's own is finite at every t of a chain; otherwise the loss would not be.

    Raises:
      ValueError: it is not; the message names the first t.
    """
    t = jnp.arange(schedule.num_timesteps)
    snr = signal_to_noise(schedule.level(t), jnp.ones(t.shape))
    weights = np.asarray(weighting(snr))
    wrong = np.flatnonzero(~np.isfinite(weights))
    if len(wrong):
        first = wrong[0]
        raise ValueError(
            f"the weighting {name} is {weights[first]} at t={first}, where the SNR is {snr[first]:.3g}, and not finite at "
            f"{len(wrong):,} of {len(weights):,} timesteps: it must be finite at each"
        )


def trained_at_zero_snr(weighting: Weighting | None) -> Weighting | None:
    """The same weighting, but w = 1 at SNR = 0 if it is 0 there; the same for x_0 and v, whose scales (23) are 1 there."""
    if weighting is None or float(weighting(jnp.zeros(1))[0]) != 0:
        return weighting
    return lambda snr: jnp.where(snr == 0, 1.0, weighting(snr))


def loss_weights(parameterization: Parameterization, level: NoiseLevel, *, weighting: Weighting | None) -> Array:
    """The factor on the mean squared error of the network's own target: float32 [B], 1 for None. By (23).

    Args:
      parameterization: what the network predicts.
      level: the noise levels, [B].
      weighting: from `make_weighting`.
    """
    ones = jnp.ones(jnp.shape(level.alpha), jnp.float32)
    if weighting is None:
        return ones
    snr = signal_to_noise(level, ones)
    return weighting(snr) / parameterization.error_scale(snr)

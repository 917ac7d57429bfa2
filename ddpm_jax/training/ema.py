"""Moving averages of the parameters, used for sampling: exponential and power-function EMAs.

**Exponential** (DDPM 2006.11239, appendix B). With a fixed decay β:

    θ̂(n) = β θ̂(n-1) + (1 - β) θ(n)                                                   (29)

**Power function** (EDM2 2312.02696, section 3.1). After n steps the weight of the parameters θ(k) of step k = 1..n is the
integral over (k-1, k] of

    p_n(τ) = (γ + 1) τ^γ / n^(γ+1)   on [0, n]                                        (30)  EDM2 eqs. 2, 121

so its length is a fraction of the training time, and the initial parameters have weight 0. The integrals are
(k^(γ+1) - (k-1)^(γ+1)) / n^(γ+1); they sum to 1, and the step from n-1 to n multiplies all but the last by the same factor.
So it is (29) with

    β_γ(n) = (1 - 1/n)^(γ+1)                                                          (31)  EDM2 eqs. 3, 127

exactly, and β_γ(1) = 0: the initial value of the average has no effect. It is parameterized by the standard deviation of (30)
relative to n, the EMA length:

    σ_rel² = (γ + 1) / ((γ + 2)² (γ + 3))                                             (32)  EDM2 eq. 123

γ = 16.97 at σ_rel = .05 and 6.94 at .10; γ = 0 at .2887 = 12^(-1/2), the mean over the run. Snapshots of two such
averages determine any other length after training: `posthoc_ema.py`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

MAX_STD = 12**-0.5  # σ_rel of γ = 0, the mean over the run


def ema_decay(step: jax.Array, decay: float) -> jax.Array:
    """The decay at optimizer step `step` = 0, 1, ..: min(decay, (1 + step) / (10 + step)), float32.

    With .9999 from the start, the initial parameters would affect the average for 50,000 steps, so its length grows with the
    number of steps until `decay` is reached.
    """
    step = step.astype(jnp.float32)
    return jnp.minimum(decay, (1.0 + step) / (10.0 + step))


def update_ema(ema_params: Any, params: Any, decay: float | jax.Array) -> Any:
    """decay * ema_params + (1 - decay) * params, leaf by leaf, float32. (29)."""
    return jax.tree.map(lambda average, new: decay * average + (1.0 - decay) * new, ema_params, params)


def power_gamma(std: float) -> float:
    """γ of a power-function average of relative standard deviation `std`: the inverse of (32).

    Raises:
      ValueError: std is not in (0, 12^(-1/2)].
    """
    if not 0 < std <= MAX_STD:
        raise ValueError(f"the relative standard deviation {std:g} of an average must be above 0 and at most 0.2886")
    roots = np.roots([1.0, 7.0, 16.0 - std**-2, 12.0 - std**-2])
    return max(0.0, float(roots[np.abs(roots.imag) < 1e-6 * np.abs(roots)].real.max()))


def power_one_minus_beta(step: jax.Array, gamma: float) -> jax.Array:
    """1 - β_γ(n) of (31), the weight of the new parameters, at optimizer step `step` = n - 1 = 0, 1, ..; float32.

    Computed without β_γ, which float32 cannot distinguish from 1 after millions of steps.
    """
    return -jnp.expm1((gamma + 1.0) * jnp.log1p(-1.0 / (step.astype(jnp.float32) + 1.0)))


def update_power(average: Any, params: Any, one_minus_beta: float | jax.Array) -> Any:
    """average + (1 - β) (params - average), leaf by leaf, float32: (29), but exactly `params` for β = 0."""

    def update(average: jax.Array, new: jax.Array) -> jax.Array:
        return jnp.where(one_minus_beta == 1.0, new, average + one_minus_beta * (new - average))

    return jax.tree.map(update, average, params)

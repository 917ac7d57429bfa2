"""Adam with linear warm-up and clipping of the global gradient norm, as published, with optax."""

import jax.numpy as jnp
import optax


def warmup_schedule(learning_rate: float, warmup_steps: int) -> optax.Schedule:
    """Step 0, 1, .. -> learning rate: linear warm-up over `warmup_steps` steps, then constant."""
    if not warmup_steps:
        return optax.constant_schedule(learning_rate)
    return lambda step: learning_rate * jnp.minimum(1.0, (step + 1) / warmup_steps)


def make_optimizer(learning_rate: float, *, warmup_steps: int = 0, clip_norm: float = 0.0) -> optax.GradientTransformation:
    """Adam (.9, .999, 1e-8). The structure of its state does not depend on the arguments, so each may change at a resume.

    Args:
      learning_rate: learning rate after warm-up.
      warmup_steps: length of the warm-up; 0 for none.
      clip_norm: maximum global norm of the gradient; 0 for no clipping.
    """
    clip = optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()  # both have an empty state
    return optax.chain(clip, optax.adam(warmup_schedule(learning_rate, warmup_steps), b1=0.9, b2=0.999, eps=1e-8))

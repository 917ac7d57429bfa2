"""Adam with linear warm-up and clipping of the global gradient norm, as published, built from optax."""

import jax.numpy as jnp
import optax


def warmup_schedule(learning_rate: float, warmup_steps: int) -> optax.Schedule:
    """Step 0, 1, .. -> learning rate: up in a straight line over the first `warmup_steps` steps, then constant."""
    if not warmup_steps:
        return optax.constant_schedule(learning_rate)
    return lambda step: learning_rate * jnp.minimum(1.0, (step + 1) / warmup_steps)


def make_optimizer(learning_rate: float, *, warmup_steps: int = 0, clip_norm: float = 0.0) -> optax.GradientTransformation:
    """Adam (.9, .999, 1e-8). Its state has one shape for all values below, so that each may change when a run is resumed.

    Args:
      learning_rate: after warm-up.
      warmup_steps: length of the warm-up; 0 for none.
      clip_norm: largest norm of the whole gradient; a longer one is scaled down to it. 0 for no clipping.
    """
    clip = optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()  # neither has anything in its state
    return optax.chain(clip, optax.adam(warmup_schedule(learning_rate, warmup_steps), b1=0.9, b2=0.999, eps=1e-8))


def unclipped_layout(opt_state: optax.OptState) -> optax.OptState:
    """The state as versions of before 0.1.0 had it with clip_norm = 0: without the place of the clipping."""
    return opt_state[1:]


def from_unclipped_layout(opt_state: optax.OptState) -> optax.OptState:
    """The inverse of `unclipped_layout`."""
    return (optax.EmptyState(), *opt_state)

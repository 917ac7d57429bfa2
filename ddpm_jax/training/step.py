"""One training step: DDPM 2006.11239, algorithm 1, for a whole batch. Pure; whoever calls it jits and shards it.

All noise is drawn at the shape of the global batch, before that is cut into micro-batches or spread over devices. So
neither their number changes a draw.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ddpm_jax.diffusion import conditioning, gaussian, losses, pixels
from ddpm_jax.diffusion.loss_weighting import Weighting
from ddpm_jax.diffusion.parameterization import Parameterization
from ddpm_jax.diffusion.schedules import NoiseSchedule
from ddpm_jax.diffusion.timestep_sampling import TimestepSampler, make_timestep_sampler
from ddpm_jax.training import ema, ema_tracker
from ddpm_jax.training.ema_tracker import EmaTracker
from ddpm_jax.training.state import TrainState

# (params, x_t, t, cond, dropout_key) -> model output
ApplyFn = Callable[[Any, jax.Array, jax.Array, Any, jax.Array], jax.Array]


def train_step(
    state: TrainState,
    batch: dict[str, Any],
    key: jax.Array,
    *,
    apply_fn: ApplyFn,
    schedule: NoiseSchedule,
    parameterization: Parameterization,
    optimizer: optax.GradientTransformation,
    loss: str,
    ema_decay: float,
    random_flip: bool,
    weighting: Weighting | None = None,
    timestep_sampler: TimestepSampler | None = None,
    cond_dropout: float = 0.0,
    null_cond: Any = None,
    averaging: EmaTracker = ema_tracker.NONE,
    accumulation_steps: int = 1,
    unroll: bool = False,
    share: Callable[[Callable], Callable] = lambda gradients: gradients,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Take one optimizer step.

    Args:
      state: before the step.
      batch: image uint8 [B, H, W, C]; cond, a pytree of arrays [B, ...], for a conditional network.
      key: the run's training key; the step is folded into it here.
      apply_fn: the network, with dropout.
      schedule: the chain it is trained on.
      parameterization: what the output of the network means.
      optimizer: whose state `state` holds.
      loss: a key of `losses.LOSSES`.
      ema_decay: of the average of the parameters, once it has warmed up.
      random_flip: mirror each image left to right with probability 1/2.
      weighting: of the mean squared error, from `weightings.make_weighting`.
      timestep_sampler: how t is drawn; uniformly by default.
      cond_dropout: probability with which an example learns without its condition.
      null_cond: the condition that it then has, a pytree of arrays without B.
      averaging: which averages of the parameters `state` has beside the first.
      accumulation_steps: in how many micro-batches the gradient is taken, one after another, and averaged; divides B.
      unroll: write the micro-batches out in place of a loop; on a CPU, gradients of convolutions crawl in loops.
      share: makes of (params, examples, dropout_key) -> (mean loss, gradients, losses [B]) the same function, shared out among
        devices; by default XLA does that.

    Returns:
      The state after the step, and metrics: `loss` (its estimate over uniform t, however they were drawn), `grad_norm` (before
      clipping), `param_norm`, and the sum of the losses and the number of images by quartile of t (`quartile_sum`,
      `quartile_count`, [4]); all float32.
    """
    key = jax.random.fold_in(key, state.step)
    flip_key, t_key, noise_key, dropout_key, cond_key = (jax.random.fold_in(key, purpose) for purpose in range(5))
    timestep_sampler = timestep_sampler or make_timestep_sampler("uniform", schedule.num_timesteps)

    images = batch["image"]
    size = images.shape[0]
    if random_flip:
        flip = jax.random.bernoulli(flip_key, shape=(size, 1, 1, 1))
        images = jnp.where(flip, images[:, :, ::-1], images)
    t, weights = timestep_sampler.draw(state.timestep_sampler_state, t_key, size)
    noise = jax.random.normal(noise_key, images.shape)
    examples = {"x_start": pixels.from_uint8(images), "t": t, "weight": weights, "noise": noise}
    if "cond" in batch:
        examples["cond"] = batch["cond"]
        if cond_dropout:
            dropped = jax.random.bernoulli(cond_key, cond_dropout, (size,))
            examples["cond"] = conditioning.replace_by_null(batch["cond"], null_cond, dropped)

    def mean_loss(params: Any, examples: dict[str, Any], dropout_key: jax.Array) -> tuple[jax.Array, jax.Array]:
        x_start, t, noise = examples["x_start"], examples["t"], examples["noise"]
        x_t = gaussian.q_sample(schedule, x_start, t, noise)

        def denoise_fn(x_t: jax.Array, t: jax.Array) -> jax.Array:
            return apply_fn(params, x_t, t, examples.get("cond"), dropout_key)

        level = schedule.level(t)._replace(time=t)  # in the chain that the network is trained on, t is its time: no lookup
        output = parameterization.evaluate(denoise_fn, x_t, level)
        arrays = (output, x_start, x_t, t, noise)
        values = losses.training_losses(schedule, parameterization, *arrays, loss=loss, weighting=weighting)
        return jnp.mean(examples["weight"] * values), values

    gradient = jax.value_and_grad(mean_loss, has_aux=True)

    def gradients(params: Any, examples: dict[str, Any], dropout_key: jax.Array) -> tuple[jax.Array, Any, jax.Array]:
        if accumulation_steps == 1:
            (mean, values), grads = gradient(params, examples, dropout_key)
            return mean, grads, values
        # Micro-batch a takes examples a, a + A, a + 2A ..: each device finds its share of each in its own rows.
        micro = jax.tree.map(lambda x: x.reshape(-1, accumulation_steps, *x.shape[1:]).swapaxes(0, 1), examples)

        def accumulate(total: tuple, micro_batch: tuple) -> tuple[tuple, jax.Array]:
            number, examples = micro_batch
            (mean, values), grads = gradient(params, examples, jax.random.fold_in(dropout_key, number))
            return jax.tree.map(jnp.add, total, (mean, grads)), values

        zeros = (jnp.zeros_like(examples["weight"], shape=()), jax.tree.map(jnp.zeros_like, params))
        total, values = jax.lax.scan(
            accumulate, zeros, (jnp.arange(accumulation_steps), micro), unroll=accumulation_steps if unroll else 1
        )
        mean, grads = jax.tree.map(lambda x: x / accumulation_steps, total)
        return mean, grads, values.swapaxes(0, 1).reshape(-1)

    mean, grads, values = share(gradients)(state.params, examples, dropout_key)

    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema_params = ema.update_ema(state.ema_params, params, ema.ema_decay(state.step, ema_decay))

    quartile = jax.nn.one_hot(t * 4 // schedule.num_timesteps, 4)
    metrics = {
        "loss": mean,
        "grad_norm": optax.tree.norm(grads),
        "param_norm": optax.tree.norm(params),
        "quartile_sum": jnp.sum(quartile * values[:, None], axis=0),
        "quartile_count": jnp.sum(quartile, axis=0),
    }
    new_state = TrainState(
        step=state.step + 1,
        params=params,
        ema_params=ema_params,
        opt_state=opt_state,
        timestep_sampler_state=timestep_sampler.update(state.timestep_sampler_state, t, values),
        averages=averaging.update(state.averages, params, state.step),
    )
    return new_state, metrics

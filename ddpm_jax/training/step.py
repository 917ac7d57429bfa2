"""One training step: DDPM 2006.11239, algorithm 1, for a batch. Pure; the caller jits and shards it.

All random numbers have the shape of the global batch, before it is split into micro-batches and sharded over devices, so they
do not depend on either number.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ddpm_jax.diffusion import conditioning, gaussian, pixels
from ddpm_jax.diffusion.losses import LossFn
from ddpm_jax.diffusion.parameterization import Parameterization
from ddpm_jax.diffusion.schedules import NoiseSchedule
from ddpm_jax.diffusion.timestep_sampling import TimestepSampler, make_timestep_sampler
from ddpm_jax.training import ema, ema_tracker, grad_groups
from ddpm_jax.training.ema_tracker import EmaTracker
from ddpm_jax.training.optimizer import is_skipped
from ddpm_jax.training.state import TrainState

# (params, x_t, t, cond, dropout_key) -> model output
ApplyFn = Callable[[Any, jax.Array, jax.Array, Any, jax.Array], jax.Array]


def train_step(
    state: TrainState,
    batch: dict[str, Any],
    key: jax.Array,
    learning_rate: jax.typing.ArrayLike,
    *,
    apply_fn: ApplyFn,
    schedule: NoiseSchedule,
    parameterization: Parameterization,
    optimizer: optax.GradientTransformation,
    loss_fn: LossFn,
    ema_decay: float,
    random_flip: bool,
    skip_nonfinite: int = 0,
    find_frozen: Callable[[Any], Any] | None = None,
    timestep_sampler: TimestepSampler | None = None,
    cond_dropout: float = 0.0,
    null_cond: Any = None,
    cond_fn: Callable[[Any, jax.Array, jax.Array | None, jax.Array], Any] | None = None,
    averaging: EmaTracker = ema_tracker.NONE,
    accumulation_steps: int = 1,
    pixel_format: pixels.PixelFormat = pixels.UINT8,
    unroll: bool = False,
    group_grads: bool = False,
    norm_fn: Callable[[Any], jax.Array] = optax.tree.norm,
    shard_grad_fn: Callable[[Callable], Callable] = lambda loss_and_grads: loss_and_grads,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Take one optimizer step.

    Args:
      state: state before the step.
      batch: image [B, H, W, C] of `pixel_format`; cond, a pytree of arrays [B, ...], for a conditional network.
      key: the run's training key; the step is folded in here.
      learning_rate: float32 [], factor on the updates of the optimizer. As an argument it may change without a compilation.
      apply_fn: the network, with dropout.
      schedule: the training chain.
      parameterization: what the network's output means.
      optimizer: the optimizer of `state`, for learning rate 1.
      loss_fn: the loss of each image, from `losses.make_loss`.
      ema_decay: decay of the EMA after warm-up.
      random_flip: mirror each image left to right with probability 1/2.
      skip_nonfinite: that of `optimizer` (`make_optimizer`); 0 for an optimizer that ignores no gradient.
      find_frozen: params -> pytree of bool, the parameters that are not trained: they and their averages keep their bits, and
        their gradients are 0. None for none; `optimizer` must leave them out as well.
      timestep_sampler: distribution of t; uniform by default.
      cond_dropout: probability of replacing the condition of an example with null_cond.
      null_cond: the condition of dropped examples, a pytree of arrays without the batch axis.
      cond_fn: (cond, images, flip, key) -> cond, before the dropout: images uint8 [B, H, W, C] after the flips, flip bool
        [B, 1, 1, 1], those that are mirrored, or None without random_flip.
      averaging: the additional averages of `state`.
      accumulation_steps: number of micro-batches over which gradients are averaged; divides B.
      pixel_format: type and range of the images.
      unroll: unroll the loop over micro-batches; on a CPU, gradients of convolutions are slow in loops.
      group_grads: update the parameters in few kernels (`grad_groups.py`); `norm_fn` should be `grad_groups.norm`.
      norm_fn: the norm of a pytree, by which `optimizer` should clip as well, so that it is computed once.
      shard_grad_fn: transforms (params, examples, dropout_key, transform) -> (mean loss, gradients, losses [B]) into the same
        function of three arguments, sharded over devices; by default XLA partitions it. It may give a function that transforms
        the loss, (params, examples, dropout_key) -> (mean loss, losses [B]), before it is differentiated.

    Returns:
      The state after the step, and metrics: `loss` (an estimate for uniform t, for any timestep sampler), `grad_norm` (before
      clipping), `param_norm`, and the sum of the losses and the number of images by quartile of t (`quartile_sum`,
      `quartile_count`, [4]); all float32. With skip_nonfinite also `skipped`, bool, whether the gradient was ignored,
      `skipped_in_a_row` and `skipped_steps`, int32, the numbers of ignored gradients up to now. A skipped step leaves the
      parameters, the optimizer's moments and the timestep sampler as they were; the averages take a step with the same
      parameters, and `step` advances, so that the next batch and noise are new.
    """
    key = jax.random.fold_in(key, state.step)
    flip_key, t_key, noise_key, dropout_key, cond_key = (jax.random.fold_in(key, purpose) for purpose in range(5))
    timestep_sampler = timestep_sampler or make_timestep_sampler("uniform", schedule.num_timesteps)

    images = batch["image"]
    size, flip = images.shape[0], None
    if random_flip:
        flip = jax.random.bernoulli(flip_key, shape=(size, 1, 1, 1))
        images = jnp.where(flip, images[:, :, ::-1], images)
    t, weights = timestep_sampler.draw(state.timestep_sampler_state, t_key, size)
    noise = jax.random.normal(noise_key, images.shape)
    examples = {"x_start": pixel_format.from_data(images), "t": t, "weight": weights, "noise": noise}
    if "cond" in batch:
        examples["cond"] = batch["cond"]
        if cond_fn is not None:
            examples["cond"] = cond_fn(batch["cond"], images, flip, jax.random.fold_in(key, 5))
        if cond_dropout:
            dropped = jax.random.bernoulli(cond_key, cond_dropout, (size,))
            examples["cond"] = conditioning.replace_by_null(examples["cond"], null_cond, dropped)

    def keep_frozen(new: Any, old: Any) -> Any:
        if find_frozen is None:
            return new
        return jax.tree.map(lambda frozen, new, old: old if frozen else new, find_frozen(old), new, old)

    def mean_loss(params: Any, examples: dict[str, Any], dropout_key: jax.Array) -> tuple[jax.Array, jax.Array]:
        params = keep_frozen(params, jax.lax.stop_gradient(params))
        x_start, t, noise = examples["x_start"], examples["t"], examples["noise"]
        x_t = gaussian.q_sample(schedule, x_start, t, noise)

        def denoise_fn(x_t: jax.Array, t: jax.Array) -> jax.Array:
            return apply_fn(params, x_t, t, examples.get("cond"), dropout_key)

        level = schedule.level(t)._replace(time=t)  # in the training chain, time is t: no lookup
        output = parameterization.evaluate(denoise_fn, x_t, level)
        values = loss_fn(schedule, parameterization, output, x_start, x_t, t, noise)
        return jnp.mean(examples["weight"] * values), values

    def loss_and_grads(
        params: Any,
        examples: dict[str, Any],
        dropout_key: jax.Array,
        transform: Callable[[Callable], Callable] = lambda loss: loss,
    ) -> tuple[jax.Array, Any, jax.Array]:
        value_and_grad = jax.value_and_grad(transform(mean_loss), has_aux=True)
        if accumulation_steps == 1:
            (mean, values), grads = value_and_grad(params, examples, dropout_key)
            return mean, grads, values
        # Micro-batch a has examples a, a + A, a + 2A .., so each device has part of every micro-batch in its own rows.
        micro = jax.tree.map(lambda x: x.reshape(-1, accumulation_steps, *x.shape[1:]).swapaxes(0, 1), examples)

        def accumulate(total: tuple, micro_batch: tuple) -> tuple[tuple, jax.Array]:
            number, examples = micro_batch
            (mean, values), grads = value_and_grad(params, examples, jax.random.fold_in(dropout_key, number))
            return jax.tree.map(jnp.add, total, (mean, grads)), values

        zeros = (jnp.zeros_like(examples["weight"], shape=()), jax.tree.map(jnp.zeros_like, params))
        total, values = jax.lax.scan(
            accumulate, zeros, (jnp.arange(accumulation_steps), micro), unroll=accumulation_steps if unroll else 1
        )
        mean, grads = jax.tree.map(lambda x: x / accumulation_steps, total)
        return mean, grads, values.swapaxes(0, 1).reshape(-1)

    mean, grads, values = shard_grad_fn(loss_and_grads)(state.params, examples, dropout_key)
    if group_grads:
        grads = grad_groups.group(grads)

    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    updates = jax.tree.map(lambda update: jnp.asarray(learning_rate, update.dtype) * update, updates)
    # Adding 0 to a parameter would change -0.0, and a weighted mean of equal numbers has rounding errors.
    params = keep_frozen(optax.apply_updates(state.params, updates), state.params)
    ema_params = ema.update_ema(state.ema_params, params, ema.ema_decay(state.step, ema_decay))
    averages = averaging.update(state.averages, params, state.step)

    quartile = jax.nn.one_hot(t * 4 // schedule.num_timesteps, 4)
    metrics = {
        "loss": mean,
        "grad_norm": norm_fn(grads),
        "param_norm": grad_groups.norm_of_new(params) if group_grads else norm_fn(params),
        "quartile_sum": jnp.sum(quartile * values[:, None], axis=0),
        "quartile_count": jnp.sum(quartile, axis=0),
    }
    timestep_sampler_state = timestep_sampler.update(state.timestep_sampler_state, t, values)
    if skip_nonfinite:
        skipped = is_skipped(opt_state, skip_nonfinite)
        timestep_sampler_state = jax.tree.map(  # without the losses of a skipped step, which may not be finite
            lambda new, old: jnp.where(skipped, old, new), timestep_sampler_state, state.timestep_sampler_state
        )
        metrics |= {
            "skipped": skipped,
            "skipped_in_a_row": opt_state.notfinite_count,
            "skipped_steps": opt_state.total_notfinite,
        }
    new_state = TrainState(
        step=state.step + 1,
        params=params,
        ema_params=keep_frozen(ema_params, state.ema_params),
        opt_state=opt_state,
        timestep_sampler_state=timestep_sampler_state,
        averages={name: keep_frozen(average, state.averages[name]) for name, average in averages.items()},
    )
    return new_state, metrics

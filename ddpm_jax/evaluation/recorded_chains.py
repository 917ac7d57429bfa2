"""Arrays of the page that --mode=visualize --config.visualize.format=html writes: reverse chains, and terms of the bound.

The steps are not under `lax.scan`: only the network is compiled, once, and serves every sampler and every number of steps. For
the few images of a page this takes less time than compiling a chain for each of them.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion import vlb
from ddpm_jax.diffusion.likelihood import VlbTerms
from ddpm_jax.diffusion.parameterization import DenoiseFn, Parameterization
from ddpm_jax.diffusion.schedules import NoiseSchedule
from ddpm_jax.runtime.errors import NumericalError
from ddpm_jax.samplers.sampler import Sampler, per_image_noise

STAGES, FEWEST_STAGES = 25, 5  # of a recorded chain
MAX_ROWS, FEW_ROWS = 20, 3  # chains of each seed; with fewer there is little to compare, so that stages are left out first


class ChainPlan(NamedTuple):
    """Which chains fit into a page.

    Attributes:
      cases: (sampler, number of steps).
      rows: number of chains of each seed, those of the first classes or condition images.
      seeds: number of seeds.
      stages: largest number of stages of a chain.
    """

    cases: list[tuple[str, int]]
    rows: int
    seeds: int
    stages: int


class RecordedChain(NamedTuple):
    """Stages of the chains of B images; float32 NumPy.

    Attributes:
      t: int32 [S], the t of each stage, descending.
      x_t: [B, S, H, W, C], x_t before the step at t.
      pred_xstart: [B, S, H, W, C], predicted from that x_t.
      images: [B, H, W, C], the samples.
    """

    t: np.ndarray
    x_t: np.ndarray
    pred_xstart: np.ndarray
    images: np.ndarray


def plan_chains(cases: list[tuple[str, int]], *, image_bytes: int, num_rows: int, num_seeds: int, max_bytes: int) -> ChainPlan:
    """The chains that fit into `max_bytes`: fewer seeds first, then rows, stages to keep FEW_ROWS, and cases, the last ones.

    Args:
      cases: (sampler, number of steps).
      image_bytes: of one stage of one chain; it is saved twice, as x_t and as the prediction.
      num_rows: largest number of chains of each seed: one for each class or condition image.
      num_seeds: largest number of seeds.
      max_bytes: of all chains.
    """
    for stages in range(STAGES, FEWEST_STAGES - 1, -5):
        chains = max_bytes // (2 * image_bytes * (stages + 1) * len(cases))
        if chains >= min(num_rows, FEW_ROWS):
            break
    rows = max(1, min(chains, num_rows, MAX_ROWS))
    fitting = max(1, max_bytes // (2 * image_bytes * (stages + 1)))
    return ChainPlan(cases[:fitting], rows, max(1, min(chains // rows, num_seeds)), stages)


def record_chain(
    sampler: Sampler,
    denoise_fn: DenoiseFn,
    keys: jax.Array,
    image_shape: Sequence[int],
    *,
    num_stages: int,
    report: Callable[[int], None] = lambda steps: None,
) -> RecordedChain:
    """Run all steps of a sampler from noise, and save evenly spaced stages.

    The images are those of `sampler.sample` with the same keys, up to rounding.

    Args:
      sampler: built by `SAMPLERS[name]`.
      denoise_fn: (x_t [B, H, W, C], t int32 [B]) -> model output; jitted, to be fast.
      keys: [B], one per image.
      image_shape: (H, W, C).
      num_stages: largest S; a chain of fewer steps has a stage for each step.
      report: called with the number of finished steps.

    Raises:
      NumericalError: an image is NaN or infinite.
    """
    num_steps, count = sampler.num_steps, min(num_stages, sampler.num_steps)
    saved = np.arange(count) * num_steps // count
    x, x_t, pred_xstart = per_image_noise(keys, 0, image_shape), [], []
    carry = sampler.init_carry(x)
    for number in range(num_steps):
        x_prev, predicted, carry = sampler.step(denoise_fn, x, carry, jnp.int32(num_steps - 1 - number), keys)
        if number in saved:
            x_t.append(np.asarray(x, np.float32))
            pred_xstart.append(np.asarray(predicted, np.float32))
        x = x_prev
        report(number + 1)
    images = np.asarray(x, np.float32)
    if not np.isfinite(images).all():
        raise NumericalError(
            f"images of a chain of {num_steps} steps are NaN or infinite: try `sampler='ddim'`, a `guidance_scale` nearer to "
            "1, or another `checkpoint_step`"
        )
    return RecordedChain(
        t=sampler.schedule.timesteps[num_steps - 1 - saved],
        x_t=np.stack(x_t, axis=1),
        pred_xstart=np.stack(pred_xstart, axis=1),
        images=images,
    )


def bound_terms(
    schedule: NoiseSchedule,
    parameterization: Parameterization,
    denoise_fn: DenoiseFn,
    x_start: np.ndarray,
    keys: jax.Array,
    t: np.ndarray,
    *,
    num_levels: int,
    report: Callable[[int], None] = lambda terms: None,
) -> dict[str, np.ndarray]:
    """The fields of `likelihood.VlbTerms` of images at some t, from one x_t each: name -> float64 [K, N].

    Args:
      schedule: the chain of the training.
      parameterization: what the network's output means.
      denoise_fn: (x_t [N, H, W, C], t int32 [N]) -> model output; jitted, to be fast.
      x_start: float32 [N, H, W, C] in [-1, 1].
      keys: [N], one per image; the noise is that of `vlb.vlb_terms`.
      t: int [K].
      num_levels: number of levels of the images, 256 for 8 bits.
      report: called with the number of finished t.
    """
    images, half_bin = jnp.asarray(x_start), 1 / (num_levels - 1)
    rows: dict[str, list[np.ndarray]] = {name: [] for name in VlbTerms._fields}
    for number, step in enumerate(t.tolist()):
        steps = jnp.full(len(x_start), step, jnp.int32)
        terms = vlb.vlb_terms(schedule, parameterization, denoise_fn, images, steps, keys, half_bin=half_bin)
        for name, row in rows.items():
            row.append(np.asarray(getattr(terms, name), np.float64))
        report(number + 1)
    return {name: np.stack(row) for name, row in rows.items()}

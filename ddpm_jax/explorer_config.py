"""Derived from config.visualize for format html: what the page contains, computed with the objects of a run."""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

import ddpm_jax
from ddpm_jax import (
    build,
    condition_config,
    config_validation,
    explorer_identity,
    explorer_network,
    explorer_rows,
    explorer_sizes,
    sampling_config,
)
from ddpm_jax.diffusion import schedules, vlb
from ddpm_jax.diffusion.schedules import NoiseSchedule
from ddpm_jax.evaluation import recorded_chains
from ddpm_jax.plotting.explorer.page import Page
from ddpm_jax.runtime import distributed, rng
from ddpm_jax.samplers import SAMPLERS
from ddpm_jax.user_messages import UsageError

MAX_IMAGES = 32


def check(config: ConfigDict) -> None:
    """Raise a UsageError that names the invalid field of config.visualize."""
    visualize, steps = config.visualize, config.diffusion.num_timesteps
    for field, least, most in (("page_images", 1, MAX_IMAGES), ("num_seeds", 1, MAX_IMAGES)):
        if not least <= visualize[field] <= most:
            raise UsageError(f"config.visualize.{field} is {visualize[field]}: choose {least}..{most}")
    if visualize.num_terms < 0 or visualize.num_terms == 1:
        raise UsageError(f"config.visualize.num_terms is {visualize.num_terms}: choose 2..{steps}, or 0 for all")
    for field in ("samplers", "num_steps"):
        if not visualize[field]:
            raise UsageError(f"config.visualize.{field} is empty: give at least one")
    for name in visualize.samplers:
        config_validation.check_part("visualize.samplers", name, SAMPLERS)
    if wrong := [number for number in visualize.num_steps if number < 1]:
        raise UsageError(f"config.visualize.num_steps contains {wrong[0]}: each must be 1 or more")
    if config.sampling.condition_images:
        raise UsageError(
            "config.sampling.condition_images is set, but a page has the condition images of its real images: add "
            "--config.sampling.condition_images= (empty), or choose config.visualize.format=png"
        )
    for case in explorer_identity.chain_cases(config):
        build.build_sampler(explorer_identity.sampler_config(config, *case))  # raises
    explorer_network.check(config)


def make_page(
    config: ConfigDict,
    params: Any,
    step: int | None,
    batch: Mapping[str, np.ndarray],
    noise: np.ndarray,
    class_names: tuple[str, ...],
    runtime: explorer_network.Runtime,
    recorded: dict[str, Any] | None = None,
) -> tuple[str, str]:
    """The text of the page, and a summary. Computes the chains and the terms of the bound, with progress lines.

    Args:
      config: resolved.
      params: the parameters, replicated over the devices; None without a checkpoint, which gives the first part only.
      step: that of the checkpoint; None without one.
      batch: the real images, of a data set: "image" [N, H, W, C] and perhaps "label" and "condition".
      noise: float32 [N, H, W, C].
      class_names: of labels 0, 1, ...; () if unknown.
      runtime: of the network; not used without a checkpoint.
      recorded: config of the run, if it may differ; for the commands that the page shows.
    """
    facts = {"Data": config.data.name, "Images": "×".join(map(str, build.image_shape(config)))}
    facts |= {"Schedule": f"{config.diffusion.schedule}, T = {config.diffusion.num_timesteps:,}"}
    names = [class_names[label] if label < len(class_names) else str(label) for label in range(config.data.num_classes)]
    if step is None:
        page = page_of(config, batch, noise, facts=facts, names=names)
        return page.html(), "no checkpoint yet: only the forward process, which needs no network"
    params = jax.tree.map(lambda leaf: np.asarray(leaf.addressable_data(0)), params)
    weights = f"{config.sampling.params}, step {step:,}{', rounded to 24 bits' if runtime.rounds else ''}"
    facts |= {"Network": f"{config.model.name}, {explorer_sizes.count(params):,} parameters", "Weights": weights}
    page = page_of(config, batch, noise, facts=facts, names=names)
    cases = add_model(page, config, params, batch, names, runtime, recorded)
    chains = [
        f"{sampler} in {', '.join(f'{steps:,}' for _, steps in group)} steps"
        for sampler, group in itertools.groupby(cases, key=lambda case: case[0])
    ]
    options = "".join(f", {field} {value}" for field, value in explorer_identity.chain_options(config).items())
    return page.html(), f"step {step:,}, {config.sampling.params} weights; recorded: {', '.join(chains)}{options}"


def page_of(
    config: ConfigDict,
    batch: Mapping[str, np.ndarray],
    noise: np.ndarray,
    *,
    facts: dict[str, str],
    names: Sequence[str],
) -> Page:
    """The page without a network: schedules and real images.

    Args:
      config: resolved.
      batch: as for `make_page`.
      noise: float32 [N, H, W, C].
      facts: what is known of the run: name -> text.
      names: of the classes.
    """
    page, pixel_format, condition = Page(), build.pixel_format(config), build.build_condition(config)
    channels = pixel_format.shown_channels or tuple(range(3 if config.data.channels >= 3 else 1))
    shown = batch["image"][..., list(channels)]
    is_uint8 = pixel_format.dtype == "uint8"
    table = facts | {
        "Prediction": f"{config.diffusion.prediction}, variance {config.diffusion.variance}",
        "Program": f"ddpm_jax {ddpm_jax.__version__}, jax {jax.__version__}",
    }
    if condition:
        added = f", with noise of level {config.sampling.condition_noise:g}" if config.sampling.condition_noise else ""
        table |= {"Condition images": f"{condition.name}, {'×'.join(map(str, condition.shape))}{added}"}
    page.add("facts", {"summary": " · ".join(facts.values()), "table": table})
    page.add("note", pixel_format.describe_shown(config.data.channels))
    page.add("schedules", schedule_tables(config))
    page.add("images", shown if is_uint8 else np.asarray(pixel_format.from_data(jnp.asarray(shown)), np.float32))
    page.add("noise", np.asarray(noise[..., list(channels)], np.float32))
    page.add("labels", batch["label"].tolist() if "label" in batch else None)
    page.add("classNames", list(names))
    page.add(
        "diffusion",
        {
            "numTimesteps": config.diffusion.num_timesteps,
            "prediction": config.diffusion.prediction,
            "variance": config.diffusion.variance,
            "clip": bool(config.diffusion.clip_denoised),
        },
    )
    return page


def schedule_tables(config: ConfigDict) -> list[dict[str, Any]]:
    """The tables of the run's own schedule, then of the others with their default options."""
    own, name, steps = build.build_schedule(config), config.diffusion.schedule, config.diffusion.num_timesteps
    found = [_tables(own, f"{name}, as trained")]
    for other in schedules.SCHEDULES:
        try:
            schedule = schedules.make_schedule(other, steps)
        except ValueError:  # linear has no betas below 1 for so few steps
            continue
        if other != name or not np.array_equal(schedule.betas, own.betas):
            found.append(_tables(schedule, other if other != name else f"{other}, default options"))
    return found


def _tables(schedule: NoiseSchedule, label: str) -> dict[str, Any]:
    names = ("betas", "alphas", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod")
    return {"label": label} | {name: np.asarray(getattr(schedule, name), np.float64) for name in names}


def add_model(
    page: Page,
    config: ConfigDict,
    params: Any,
    batch: Mapping[str, np.ndarray],
    names: Sequence[str],
    runtime: explorer_network.Runtime,
    recorded: dict[str, Any] | None = None,
) -> list[tuple[str, int]]:
    """Add what needs the trained network: recorded chains and the terms of the bound. Shows progress lines.

    Args:
      page: from `page_of`.
      config: resolved.
      params: NumPy arrays of the parameters.
      batch: as for `make_page`; the bound is that of its images.
      names: of the classes.
      runtime: of the network in the page.
      recorded: as for `make_page`.

    Returns:
      (sampler, number of steps) of the recorded chains: those of `explorer_identity.chain_cases` that fit.
    """
    elements, reason = explorer_network.network_elements(config, params, runtime)
    page.add("noNetwork", reason)
    page.add_elements(elements)
    page.add("nullLabel", config.data.num_classes if condition_config.num_labels(config) > config.data.num_classes else None)
    page.add("bound", _bound(config, params, batch))
    floats = "The images of this run are floats, which have no probabilities: there is no bound in bits."
    page.add("noBound", "No term of the bound is finite." if build.pixel_format(config).num_levels else floats)
    rows = explorer_rows.find_rows(config, batch, names)
    page.add("rows", explorer_rows.rows_of_page(rows))
    chains = _record_chains(config, params, rows, recorded or config.to_dict(), explorer_sizes.chain_bytes(page))
    page.add("chains", chains)
    return [(chain["sampler"], chain["steps"]) for chain in chains]


def _record_chains(
    config: ConfigDict, params: Any, rows: explorer_rows.Rows, recorded: dict[str, Any], max_bytes: int
) -> list[dict[str, Any]]:
    shape, pixel_format, seed = build.image_shape(config), build.pixel_format(config), config.sampling.seed
    plan = recorded_chains.plan_chains(
        explorer_identity.chain_cases(config),
        image_bytes=int(np.prod(shape)),
        num_rows=len(rows.names),
        num_seeds=min(config.visualize.num_seeds, 2**32 - seed),
        max_bytes=max_bytes,
    )
    seeds = range(seed, seed + plan.seeds)
    roots = [jax.random.fold_in(rng.purpose_key(each, "sample"), 0) for each in seeds]  # of image 0 of each seed
    keys = jnp.stack([key for key in roots for _ in range(plan.rows)])
    cond = explorer_rows.first_image_cond(config, rows, seeds, count=plan.rows)
    network = _compiled(build.build_guided_denoise_fn(config, portable=True), params, cond)
    found, done = [], 0
    with distributed.show_progress(sum(steps for _, steps in plan.cases), "steps", "recorded chains") as report:
        for name, steps in plan.cases:
            case = explorer_identity.sampler_config(config, name, steps, num_images=1)
            chain = recorded_chains.record_chain(
                build.build_sampler(case),
                network,
                keys,
                shape,
                num_stages=plan.stages,
                report=functools.partial(lambda before, number: report(before + number), done),
            )
            done += steps
            shown = [
                pixel_format.shown(np.asarray(pixel_format.to_data(jnp.asarray(x))))
                for x in (chain.x_t, chain.pred_xstart, chain.images[:, None])
            ]
            found.append(
                {
                    "sampler": name,
                    "steps": steps,
                    "rows": plan.rows,
                    "flags": sampling_config.flags_for_run(case, recorded, explorer_identity.SHOWN),
                    "seeds": list(seeds),
                    "t": chain.t.tolist(),
                    "x_t": np.concatenate([shown[0], shown[2]], axis=1),
                    "pred_xstart": np.concatenate([shown[1], shown[2]], axis=1),
                    "description": sampling_config.describe_sampling(case),
                    "warnings": sampling_config.sampling_warnings(case),
                }
            )
    return found


def _bound(config: ConfigDict, params: Any, batch: Mapping[str, np.ndarray]) -> dict[str, Any] | None:
    """The terms of the bound, means over the images; None for floats, which have no probabilities."""
    images, cond = batch["image"], condition_config.batch_cond(config, build.build_condition(config), batch)
    pixel_format, schedule, number = build.pixel_format(config), build.build_schedule(config), config.visualize.num_terms
    if not pixel_format.num_levels:
        return None
    last = schedule.num_timesteps - 1
    t = np.unique(np.linspace(0, last, min(number or last + 1, last + 1)).round().astype(int))
    x_start = np.asarray(pixel_format.from_data(jnp.asarray(images)), np.float32)
    root = rng.purpose_key(config.sampling.seed, "bound")
    keys = jax.vmap(functools.partial(jax.random.fold_in, root))(jnp.arange(len(images)))
    network = _compiled(build.build_denoise_fn(config, portable=True), params, cond)
    with distributed.show_progress(len(t), "timesteps", "terms of the bound") as report:
        terms = recorded_chains.bound_terms(
            schedule,
            build.build_parameterization(config),
            network,
            x_start,
            keys,
            t,
            num_levels=pixel_format.num_levels,
            report=report,
        )
    prior = float(np.mean(vlb.prior_bpd(schedule, jnp.asarray(x_start))))
    bits, eps_mse = terms["bits"].mean(axis=1), terms["eps_mse"].mean(axis=1)
    finite = np.isfinite(bits) & np.isfinite(eps_mse)  # a network that was hardly trained may have terms that are not
    if not finite.any():
        return None
    return {
        "t": t[finite].tolist(),
        "bits": bits[finite].tolist(),
        "epsMse": eps_mse[finite].tolist(),
        "prior": prior,
        "total": prior + float(bits.sum()) if finite.sum() == last + 1 else None,
        "count": len(images),
        "split": explorer_rows.page_split(config),
    }


def _compiled(make_denoise_fn: Callable[[Any, Any], Any], params: Any, cond: Any) -> Callable[[Any, Any], Any]:
    """The network for these parameters and conditions, compiled once for a batch of their size."""
    params, cond = jax.device_put((params, cond))

    @jax.jit
    def evaluate(params: Any, cond: Any, x_t: jax.Array, t: jax.Array) -> jax.Array:
        return make_denoise_fn(params, cond)(x_t, t)

    return lambda x_t, t: evaluate(params, cond, x_t, t)

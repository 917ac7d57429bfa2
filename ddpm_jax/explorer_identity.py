"""Derived from config.visualize for format html: which chains the page has, and all that determines its content."""

import hashlib
import itertools
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from ddpm_jax import build, choices, sampling_config
from ddpm_jax.data.condition import batch_conditions
from ddpm_jax.interop import onnxruntime_web
from ddpm_jax.plotting.explorer.page import sources_sha256
from ddpm_jax.training import load_params

FIELDS = ("start_index", "page_images", "samplers", "num_steps", "num_seeds", "num_terms")  # that determine the page
NOT_USED = ("sampler", "num_steps", "label", "condition_samples")  # fields of config.sampling with no effect on the page
SHOWN = (*NOT_USED, "seed")  # fields that the page shows for each chain, or that have no effect on it
LONGEST_NAME = 60  # of the recorded chains in the name of a folder


def chain_cases(config: ConfigDict) -> list[tuple[str, int]]:
    """(sampler, number of steps) of the recorded chains, without repetitions."""
    steps = dict.fromkeys(min(number, config.diffusion.num_timesteps) for number in config.visualize.num_steps)
    return list(itertools.product(dict.fromkeys(config.visualize.samplers), steps))


def sampler_config(config: ConfigDict, sampler: str, num_steps: int, **more: Any) -> ConfigDict:
    """The config with another sampler and number of steps."""
    case = config.copy_and_resolve_references()
    case.sampling.update(sampler=sampler, num_steps=num_steps, num_intermediates=0, **more)
    return case


def identity_of(
    config: ConfigDict, params: Any, step: int | None, batch: Mapping[str, np.ndarray], no_network: str
) -> tuple[str, dict[str, Any]]:
    """The default folder name of a page, and all that determines its content; JSON-serializable.

    Args:
      config: resolved.
      params: the parameters; None without a checkpoint.
      step: that of the checkpoint; None without one.
      batch: the real images, of a data set.
      no_network: why the page has no network; "" if it has one.
    """
    identity: dict[str, Any] = {"mode": "visualize", "diffusion": choices.used_fields(config, "diffusion")}
    sampling: dict[str, Any] = {"seed": config.sampling.seed}
    name = "explorer-forward"
    if step is not None:
        name = f"explorer-{sampling_config.run_name(config, step, chains=_chains_name(config), options=chain_options(config))}"
        sha256 = load_params.params_sha256(params)
        for case in chain_cases(config):  # each sampler has its own options, and perhaps a file with its code
            identity |= sampling_config.identity_of(sampler_config(config, *case), "visualize", step, sha256)
            sampling |= identity["sampling"]
        sampling = {name: value for name, value in sampling.items() if name not in NOT_USED}
        identity |= _condition(config, batch)
    shown = {name: list(value) if isinstance(value := config.visualize[name], tuple) else value for name in FIELDS}
    identity |= {"sampling": sampling, "explorer": shown | {"no_network": no_network}, "data": config.data.name}
    identity |= {"pixels": build.pixel_format(config)._asdict()}
    identity |= {"labels": batch["label"].tolist() if "label" in batch else None, "images_sha256": _sha256(batch["image"])}
    return name, identity | {"page_sha256": sources_sha256(onnxruntime_web.SCRIPT.read_text(encoding="utf-8"))}


def _condition(config: ConfigDict, batch: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The condition images and how they are made; {} without any."""
    condition = build.build_condition(config)
    if condition is None:
        return {}
    options = {name: value for name, value in choices.options_of(config, choices.CONDITION).items() if name != "condition_dir"}
    described = {"name": condition.name, "max_noise": condition.max_noise, "options": options}
    return {"condition": described, "conditions_sha256": _sha256(batch_conditions(condition, batch))}


def _sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def _chains_name(config: ConfigDict) -> str:
    """The recorded chains as a part of a folder name, such as ancestral-ddim-10-50-1000."""
    cases = chain_cases(config)
    parts = dict.fromkeys([*(sampler for sampler, _ in cases), *(str(steps) for _, steps in cases)])
    name = re.sub(r"[^\w.+-]+", "_", "-".join(parts))
    return name if len(name) <= LONGEST_NAME else f"{len(cases)}_chains"


def chain_options(config: ConfigDict) -> dict[str, str]:
    """The options of all recorded chains that differ from their defaults."""
    found: dict[str, str] = {}
    for case in chain_cases(config):
        found |= sampling_config.nondefault_options(sampler_config(config, *case))
    return found

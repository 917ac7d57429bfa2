"""--mode=import: a workdir from weights that another program trained, to sample, evaluate and train further.

Network, schedule and prediction are those of diffusers' configs, or, for a .pt file, those of --config. The weights become
the parameters and their EMA at step 0, with the optimizer's initial state.
"""

import logging
import pathlib
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from ddpm_jax import build, choices, config_validation, sampling_config
from ddpm_jax.interop import array_table, diffusers_config
from ddpm_jax.interop.weights_source import WeightsSource, open_weights
from ddpm_jax.models.unet import UNet
from ddpm_jax.runtime import distributed, paths, rng, run_record, shared_workdir, versions, workdir
from ddpm_jax.runtime.checkpoint import CheckpointManager
from ddpm_jax.training.state import TrainState
from ddpm_jax.user_messages import UsageError, UserError

logger = logging.getLogger(__name__)

IGNORED = ("sampling", "train", "evaluation")  # sections whose flags may differ from the source's config


@distributed.distributed_main()
def run(config: ConfigDict, folder: str, *, source: str, given: Collection[str], new_attention_order: bool = False) -> int:
    """Import weights into a new workdir.

    Args:
      config: of --config and its flags; the fields of the source's config are set in it.
      folder: workdir.
      source: path of the weights, a file or a folder.
      given: names of the flags of the command line.
      new_attention_order: see `openai_layout.table`.
    """
    if not source:
        raise UsageError("--from is missing: give the file or folder of the weights, such as --from=models/64x64_diffusion.pt")
    with distributed.raise_on_all_processes():
        if jax.process_count() > 1:
            raise UsageError("--mode=import runs in one process: run it once, then train with all")
        weights = open_weights(paths.expand(source))
        if new_attention_order and weights.kind != "openai":
            raise UsageError(f"--new_attention_order is for weights of guided-diffusion, and {weights.file} is of diffusers")
        set_fields(config, source_fields(config, weights, given), given)
        config_validation.check_config(config)
        network = build.build_model(config)
        if not isinstance(network, UNet):
            raise UsageError(f"config.model.name is {config.model.name}: only the weights of a unet can be imported")
    check_unused(workdir.absolute(folder))
    # Before the folder is created: weights that cannot be imported leave nothing behind.
    provenance = weights.provenance()
    state = imported_state(config, network, weights, new_attention_order=new_attention_order)
    run_folder = shared_workdir.prepare_workdir(folder, config.to_dict(), write=True)
    with shared_workdir.hold_workdir(run_folder):
        check_unused(run_folder)
        count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
        fields, facts = config.to_dict(), versions.start_facts()
        facts["versions"] |= choices.custom_modules(config)
        devices = f"1 {jax.devices()[0].device_kind}"
        run_record.record_start(run_folder, fields, 0, changed={}, devices=devices, processes=1, imported=provenance, **facts)
        with CheckpointManager(workdir.checkpoint_folder(run_folder), max_to_keep=1) as checkpoints:
            checkpoints.save(0, state.fields(), wait=True)
    if not {"config", "config.data.name"} & set(given):
        logger.info(
            f"config.data.name is {config.data.name}, the default: to evaluate or train with other images, import with "
            "--config.data.name or with a --config that has it"
        )
    print(f"imported {count:,} parameters of {weights.file} into {run_folder}")
    print(f"generate images with: {sampling_config.sample_command(run_folder)}")
    return 0


def source_fields(config: ConfigDict, weights: WeightsSource, given: Collection[str]) -> dict[str, Any]:
    """The fields that the source's own configs determine.

    Raises:
      UsageError: the source has no config of its network, and there is no --config.
      InvalidDataError: the source's config has a value that this program does not have.
    """
    fields: dict[str, Any] = {}
    if weights.network is None:
        if "config" not in given:
            raise UsageError(
                f"{weights.file} has no config of its network: give --config, such as --config=iddpm_cifar10, iddpm_imagenet64 "
                "or adm_imagenet64, and flags of its fields; docs/weights.md lists those of published files"
            )
        return fields
    size = config.data.image_size if {"config", "config.data.image_size"} & set(given) else None
    fields = diffusers_config.network_fields(weights.network, str(weights.files["network"]), image_size=size)
    fields |= null_label_fields(config, fields, given)
    if weights.scheduler is not None:
        fields |= diffusers_config.diffusion_fields(weights.scheduler, str(weights.files["scheduler"]))
    else:
        logger.info(f"{weights.file.parent} has no scheduler_config.json: config.diffusion is that of --config or the default")
    outputs = weights.network.get("out_channels", diffusers_config.DEFAULTS["out_channels"])
    learned = outputs == 2 * fields["data.channels"]
    variance = fields.setdefault("diffusion.variance", "learned_range" if learned else config.diffusion.variance)
    if learned != (variance == "learned_range"):
        raise UserError(
            f"{weights.files['network']}: out_channels is {outputs}, which does not match the variance {variance}: "
            "give the scheduler_config.json of the network, or --config.diffusion.variance"
        )
    if learned:
        fields["diffusion.loss"] = "hybrid"  # which trains it
    return fields


def null_label_fields(config: ConfigDict, fields: dict[str, Any], given: Collection[str]) -> dict[str, Any]:
    """The fields of a network whose last label means "no class".

    The source's config does not say so: it does if --config or flags have label dropout and one class less than the source.
    """
    dropout, classes = config.model.label_dropout, config.data.num_classes
    chosen = {"config", "config.model.label_dropout"} & set(given)
    if not chosen or not dropout or fields.get("data.num_classes") != classes + 1:
        return {}
    logger.info(f"the last of {classes + 1} labels means no class, since config.data.num_classes is {classes}")
    return {"data.num_classes": classes, "model.label_dropout": dropout}


def set_fields(config: ConfigDict, fields: dict[str, Any], given: Collection[str]) -> None:
    """Set fields of the config to those of the source.

    Raises:
      UsageError: a flag gives one of them another value, except of sampling and the like, where the flag applies.
    """
    for field, value in fields.items():
        *sections, name = field.split(".")
        section = config
        for part in sections:
            section = section[part]
        flag = f"config.{field}"
        if flag in given:
            if sections[0] in IGNORED:
                continue
            if section[name] != value:
                raise UsageError(f"--{flag}={section[name]} differs from the config of the weights, {value}: leave it out")
        section[name] = value


def check_unused(run_folder: pathlib.Path) -> None:
    """Raise a UserError if there is a run in the folder; an import that did not complete is none."""
    started = [line for line in run_record.read_history(run_folder) if "imported" not in line]
    if started or run_record.latest_saved_step(run_folder) is not None:
        raise UserError(f"{run_folder} already contains a run: choose another --workdir for the imported weights")


def initial_opt_state(optimizer: optax.GradientTransformation, params: Any) -> optax.OptState:
    """`optimizer.init(params)`, but zeros as large as parameters take no memory: Adam's would double the peak.

    Which leaves are zero is found with parameters of one element each.
    """
    small = optimizer.init(jax.tree.map(lambda param: jnp.ones((1,) * param.ndim, param.dtype), params))
    abstract = jax.eval_shape(optimizer.init, params)
    pairs = list(zip(jax.tree.leaves(small), jax.tree.leaves(abstract), strict=True))
    if any(one.shape != full.shape and jnp.any(one) for one, full in pairs):
        return optimizer.init(params)
    leaves = [one if one.shape == full.shape else np.zeros(full.shape, full.dtype).view(_Constant) for one, full in pairs]
    return jax.tree.unflatten(jax.tree.structure(abstract), leaves)


class _Constant(np.ndarray):
    """An array that nothing changes while it is saved, so that Orbax need not copy it first."""

    def __deepcopy__(self, memo: Any) -> "_Constant":
        return self


def imported_state(
    config: ConfigDict, network: UNet, weights: WeightsSource, *, new_attention_order: bool = False
) -> TrainState:
    """The state at step 0 with the source's weights as parameters and EMA.

    Raises:
      InvalidDataError: the arrays are not those of the network, or not finite.
    """
    init, key = build.build_init(config), rng.purpose_key(config.seed, "init")
    abstract = jax.eval_shape(init, key)
    shapes = {name: leaf.shape for name, leaf in array_table.flatten(abstract.params).items()}
    table = weights.table(network, shapes, new_attention_order=new_attention_order)
    flat = array_table.to_ours(table, shapes, weights.state, str(weights.file))
    params = array_table.unflatten({name: array.view(_Constant) for name, array in flat.items()})
    # Not `create_state`, which copies the parameters for the EMA: nothing is donated here.
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema_params=params,
        opt_state=initial_opt_state(build.build_optimizer(config), params),
        timestep_sampler_state=build.build_timestep_sampler(config).init(),
        averages=build.build_ema_tracker(config).init(params),
    )

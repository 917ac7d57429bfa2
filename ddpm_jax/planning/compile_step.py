"""Compiles the training step of a config, and a chunk of its sampler, for a machine that need not be present.

The functions are those that training and sampling run (`build`); their arguments are shapes, so nothing is allocated.
"""

import dataclasses
import re
import resource
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from ddpm_jax import build, compiler_config, condition_config
from ddpm_jax.planning import analysis, targets
from ddpm_jax.planning.targets import Target
from ddpm_jax.runtime import mesh as meshes
from ddpm_jax.runtime import rng
from ddpm_jax.runtime.errors import UnavailableError
from ddpm_jax.training import fsdp
from ddpm_jax.training.state import TrainState

# A TPU's compiler fails if a program does not fit; a GPU's fails only for a single array that is too large.
_OUT_OF_MEMORY = re.compile(r"RESOURCE_EXHAUSTED|[Oo]ut of memory|Ran out of memory")

_NO_ASSEMBLER = "No PTX compilation provider"


@dataclasses.dataclass(frozen=True, eq=False)
class Abstract:
    """Shapes of the arguments of the training step, with their shardings.

    Attributes:
      state: the training state.
      batch: a batch of the data set.
      key: the training key.
    """

    state: TrainState
    batch: dict[str, jax.ShapeDtypeStruct]
    key: jax.ShapeDtypeStruct


def training_mesh(config: ConfigDict, target: Target) -> Mesh:
    """The mesh on which the step trains: the one place that knows how training arranges its devices.

    Raises:
      UnavailableError: the compiler of the target is not installed.
      InvalidArgumentError: the batch or config.mesh does not divide over the devices.
    """
    mesh = meshes.make_mesh(targets.devices_of(target))
    meshes.check_batch(config.train.batch_size, mesh, config.optimizer.accumulation_steps)
    return meshes.training_mesh(mesh, **config.mesh)


def abstract_arguments(config: ConfigDict, mesh: Mesh) -> Abstract:
    """The arguments of the training step on a mesh; the state keeps its sharding in a step."""
    everywhere, split = meshes.replicated(mesh), meshes.batch_sharding(mesh)
    key = jax.eval_shape(lambda: rng.purpose_key(0, "train"))
    state = fsdp.abstract_state(mesh, jax.eval_shape(build.build_init(config), key))
    return Abstract(state, _placed(_batch(config), split), _placed(key, everywhere))


def _placed(tree: Any, sharding: NamedSharding) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)


def _batch(config: ConfigDict) -> dict[str, jax.ShapeDtypeStruct]:
    """What a data source of the config returns for a training batch."""
    size, condition = config.train.batch_size, build.build_condition(config)
    batch = {"image": jax.ShapeDtypeStruct((size, *build.image_shape(config)), np.dtype(config.data.dtype))}
    if condition_config.num_labels(config):
        batch["label"] = jax.ShapeDtypeStruct((size,), jnp.int32)
    if condition is not None and condition.of_images is None:
        batch["condition"] = jax.ShapeDtypeStruct((size, *condition.shape), jnp.uint8)
    return batch


def plan(config: ConfigDict, target: Target, sampling: bool) -> dict[str, Any]:
    """`plan_sampling` or `plan_training`, in a process that has not used JAX and opens no accelerator."""
    if target.chip.platform == "cpu":
        compiler_config.configure_cpu(config, own_devices=False)
        jax.config.update("jax_num_cpu_devices", target.num_devices)
    found = (plan_sampling if sampling else plan_training)(config, target)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
    return found | {"process": {"cpu_seconds": time.process_time(), "peak_bytes": peak}}


def plan_training(config: ConfigDict, target: Target) -> dict[str, Any]:
    """Compile the training step and analyze it: the dictionary of `analysis.analyze`.

    Raises:
      UnavailableError, InvalidArgumentError: as `training_mesh`.
    """
    mesh = training_mesh(config, target)
    arguments = abstract_arguments(config, mesh)
    step = jax.jit(
        build.build_train_step(config, mesh),
        donate_argnums=0,
        out_shardings=(jax.tree.map(lambda leaf: leaf.sharding, arguments.state), meshes.replicated(mesh)),
        compiler_options=compiler_config.train_step_options(config, target.chip.platform),
    )
    lowered = step.lower(arguments.state, arguments.batch, arguments.key, np.float32(1))
    state = analysis.state_bytes(arguments.state)
    compiled, failure = _compile(lowered)
    if compiled is None:
        return {"state": state, "does_not_fit": failure}
    return {"state": state} | analysis.analyze(compiled, images=config.train.batch_size // mesh.size)


def plan_sampling(config: ConfigDict, target: Target) -> dict[str, Any]:
    """Compile a chunk of the sampler and analyze it: the dictionary of `analysis.analyze`, and `steps`, its sampler steps."""
    mesh, config = meshes.make_mesh(targets.devices_of(target)), config.copy_and_resolve_references()
    devices = 1 if target.chip.platform == "cpu" else target.num_devices
    config.sampling.batch_size = config.sampling.batch_size or devices * meshes.IMAGES_PER_DEVICE
    sampler = build.build_batched_sampler(config, mesh, num_images=config.sampling.batch_size)
    params = abstract_arguments(config, mesh).state.params
    example = condition_config.example_cond(config, build.build_condition(config))
    rows = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((sampler.batch_size, *leaf.shape[1:]), leaf.dtype), example)
    state = {"parameters": analysis.tree_bytes(params)}
    compiled, failure = _compile(sampler.lower_chunk(params, _placed(rows, meshes.batch_sharding(mesh))))
    if compiled is None:
        return {"state": state, "does_not_fit": failure}
    found = analysis.analyze(compiled, images=sampler.batch_size // mesh.size)
    return {"state": state, "steps": sampler.chunk_size} | found


def _compile(lowered: jax.stages.Lowered) -> tuple[jax.stages.Compiled | None, str]:
    """The program, or None and the compiler's line if it does not fit into the memory of the device.

    Raises:
      UnavailableError: for a GPU, if there is no assembler, which XLA looks for in several folders.
    """
    try:
        return lowered.compile(), ""
    except jax.errors.JaxRuntimeError as error:
        if _NO_ASSEMBLER in str(error):
            line = f"compiling for a GPU needs ptxas, which is not found: pip install {targets.PTXAS} (the extra plan-cuda)"
            raise UnavailableError(line) from error
        if not _OUT_OF_MEMORY.search(str(error)):
            raise
        return None, next(line for line in str(error).splitlines() if _OUT_OF_MEMORY.search(line))[:300]

"""How much memory do training and sampling need? The memory that XLA reserves for a step, per config; nothing is run.

python benchmarks/memory.py digits cifar10
python benchmarks/memory.py cifar10 --remat --dtype=bfloat16
python benchmarks/memory.py cifar10 --devices=8 --fsdp=8

`state` is the size of parameters, EMA and Adam's moments on each device, `step` what a training step with the second batch
size on each device needs in addition. `per image` is the memory per image of a device's batch in training, `sampling` the
same for one evaluation of the network (sampling, features, VLB). Both are differences between two batch sizes, so that
constant memory cancels. The numbers depend on the compiler of this machine's devices; other devices may differ.
"""

import argparse
import concurrent.futures
import functools
import importlib
import math
import multiprocessing
import pathlib
import sys

import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from ddpm_jax import build, compiler_config
from ddpm_jax.runtime import mesh as meshes
from ddpm_jax.training import fsdp

MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="+", help="names of configs/, such as cifar10")
    parser.add_argument("--batch_sizes", nargs=2, type=int, default=(64, 128), metavar="N", help="two sizes to compare")
    parser.add_argument("--dtype", choices=build.DTYPES, help="of convolutions and matmuls, instead of the config's")
    parser.add_argument("--remat", action="store_true", help="recompute activations in the backward pass")
    parser.add_argument("--devices", type=int, default=1, help="number of simulated devices")
    parser.add_argument("--fsdp", type=int, default=1, help="config.mesh.fsdp")
    options = parser.parse_args()
    print(f"{'config':18} {'parameters':>12} {'state':>10} {'step':>10} {'per image':>12} {'sampling':>12}")
    # One process per config, since XLA reads its settings once and they depend on the width of the network.
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as processes:
        for row in processes.map(functools.partial(measured, options), options.configs):
            print(row, flush=True)


def measured(options: argparse.Namespace, name: str) -> str:
    """The row of a config; XLA is configured as in main.py."""
    config = importlib.import_module(f"ddpm_jax.configs.{name}").get_config()
    config.model.dtype = options.dtype or config.model.dtype
    config.model.unet.remat = options.remat or config.model.unet.remat
    compiler_config.configure_cpu(config, own_devices=False)
    jax.config.update("jax_num_cpu_devices", options.devices)
    mesh = meshes.training_mesh(meshes.make_mesh(), fsdp=options.fsdp)
    few, many = options.batch_sizes
    state = fsdp.abstract_state(mesh, jax.eval_shape(build.build_init(config), jax.random.key(0)))
    steps = [step_memory(config, state, mesh, batch_size) for batch_size in (few, many)]
    samples = [sampling_memory(config, state, batch_size) for batch_size in (few, many)]
    step, sampling = ((more - less) / (many - few) / MIB for less, more in (steps, samples))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    parts = [(leaf.sharding.shard_shape(leaf.shape), leaf.dtype.itemsize) for leaf in jax.tree.leaves(state)]
    size = sum(math.prod(shape) * itemsize for shape, itemsize in parts) / MIB
    return f"{name:18} {parameters:12,} {size:6,.0f} MiB {steps[1] / MIB:6,.0f} MiB {step:8,.2f} MiB {sampling:8,.2f} MiB"


def step_memory(config, state, mesh, batch_size: int) -> int:
    """Bytes that each device needs for one training step of `batch_size` images per device, in addition to its state."""
    split, everywhere, size = meshes.batch_sharding(mesh), meshes.replicated(mesh), batch_size * mesh.size
    batch = {
        "image": jax.ShapeDtypeStruct((size, *build.image_shape(config)), "uint8", sharding=split),
        "label": jax.ShapeDtypeStruct((size,), "int32", sharding=split),
    }
    shardings = (fsdp.state_sharding(mesh, state), everywhere)
    step = jax.jit(build.build_train_step(config, mesh), donate_argnums=0, out_shardings=shardings)
    key = jax.ShapeDtypeStruct((), jax.random.key(0).dtype, sharding=everywhere)
    return step.lower(state, batch, key, np.float32(1)).compile().memory_analysis().temp_size_in_bytes


def sampling_memory(config, state, batch_size: int) -> int:
    """Bytes that one evaluation of the network, including guidance, needs in addition to its parameters."""
    denoise, labels = build.build_guided_denoise_fn(config), jax.ShapeDtypeStruct((batch_size,), "int32")
    x_t = jax.ShapeDtypeStruct((batch_size, *build.image_shape(config)), "float32")
    step = jax.jit(lambda params, labels, x_t, t: denoise(params, labels if config.model.class_conditional else None)(x_t, t))
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state.params)
    return step.lower(params, labels, x_t, labels).compile().memory_analysis().temp_size_in_bytes


if __name__ == "__main__":
    main()

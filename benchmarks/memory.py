"""How much memory do training and sampling need? The memory that XLA reserves for a step, per config; nothing is run.

python benchmarks/memory.py digits cifar10
python benchmarks/memory.py cifar10 --remat --dtype=bfloat16

`state` is the size of parameters, EMA and Adam's moments, once per device. `per image` is the memory per image of a device's
batch in training, `sampling` the same for one evaluation of the network (sampling, features, VLB). Both are differences
between two batch sizes, so that constant memory cancels. The numbers depend on the compiler of this machine's devices;
other devices may differ.
"""

import argparse
import concurrent.futures
import functools
import importlib
import multiprocessing
import pathlib
import sys

import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from ddpm_jax import build, compiler_config
from ddpm_jax.runtime import mesh as meshes

MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="+", help="names of configs/, such as cifar10")
    parser.add_argument("--batch_sizes", nargs=2, type=int, default=(64, 128), metavar="N", help="two sizes to compare")
    parser.add_argument("--dtype", choices=build.DTYPES, help="of convolutions and matmuls, instead of the config's")
    parser.add_argument("--remat", action="store_true", help="recompute activations in the backward pass")
    options = parser.parse_args()
    print(f"{'config':18} {'parameters':>12} {'state':>10} {'per image':>12} {'sampling':>12}")
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
    few, many = options.batch_sizes
    state = jax.eval_shape(build.build_init(config), jax.random.key(0))
    step, sampling = (
        (memory(config, state, many) - memory(config, state, few)) / (many - few) / MIB
        for memory in (step_memory, sampling_memory)
    )
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)) / MIB
    return f"{name:18} {parameters:12,} {size:6,.0f} MiB {step:8,.2f} MiB {sampling:8,.2f} MiB"


def step_memory(config, state, batch_size: int) -> int:
    """Bytes that one training step needs in addition to its state."""
    batch = {
        "image": jax.ShapeDtypeStruct((batch_size, *build.image_shape(config)), "uint8"),
        "label": jax.ShapeDtypeStruct((batch_size,), "int32"),
    }
    step = jax.jit(build.build_train_step(config, meshes.make_mesh()), donate_argnums=0)
    return step.lower(state, batch, jax.random.key(0), np.float32(1)).compile().memory_analysis().temp_size_in_bytes


def sampling_memory(config, state, batch_size: int) -> int:
    """Bytes that one evaluation of the network, including guidance, needs in addition to its parameters."""
    denoise, labels = build.build_guided_denoise_fn(config), jax.ShapeDtypeStruct((batch_size,), "int32")
    x_t = jax.ShapeDtypeStruct((batch_size, *build.image_shape(config)), "float32")
    step = jax.jit(lambda params, labels, x_t, t: denoise(params, labels if config.model.class_conditional else None)(x_t, t))
    return step.lower(state.params, labels, x_t, labels).compile().memory_analysis().temp_size_in_bytes


if __name__ == "__main__":
    main()

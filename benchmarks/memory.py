"""How much memory do training and drawing take? What XLA reserves for a step, per config; nothing is run.

python benchmarks/memory.py digits cifar10
python benchmarks/memory.py cifar10 --remat --dtype=bfloat16

`state` holds parameters, EMA and Adam's moments, once per device. `per image` is what every image more in a device's
batch adds in training, `drawn` what it adds where images are drawn (and features or bounds measured: one pass through the
network): the difference between two batch sizes, so that what does not grow drops out. The compiler for
this machine's devices decides; another one fuses otherwise, so take the numbers as a first guess there.
"""

import argparse
import concurrent.futures
import functools
import importlib
import multiprocessing
import pathlib
import sys

import jax

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from ddpm_jax import build
from ddpm_jax.runtime import mesh as meshes

MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="+", help="names of configs/, such as cifar10")
    parser.add_argument("--batch_sizes", nargs=2, type=int, default=(64, 128), metavar="N", help="the two that are compared")
    parser.add_argument("--dtype", choices=build.DTYPES, help="of convolutions and matmuls, in place of the config's")
    parser.add_argument("--remat", action="store_true", help="recompute activations in the backward pass")
    options = parser.parse_args()
    print(f"{'config':18} {'parameters':>12} {'state':>10} {'per image':>12} {'drawn':>12}")
    # A process for each, since XLA takes its settings once and they suit the width of a network.
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as processes:
        for row in processes.map(functools.partial(measured, options), options.configs):
            print(row, flush=True)


def measured(options: argparse.Namespace, name: str) -> str:
    """The row of a config, with XLA set up as main.py does for it."""
    config = importlib.import_module(f"configs.{name}").get_config()
    config.model.dtype = options.dtype or config.model.dtype
    config.model.remat = options.remat or config.model.remat
    build.configure_cpu(config, own_devices=False)
    few, many = options.batch_sizes
    state = jax.eval_shape(build.build_init(config), jax.random.key(0))
    step, drawn = (
        (memory(config, state, many) - memory(config, state, few)) / (many - few) / MIB
        for memory in (step_memory, drawing_memory)
    )
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)) / MIB
    return f"{name:18} {parameters:12,} {size:6,.0f} MiB {step:8,.2f} MiB {drawn:8,.2f} MiB"


def step_memory(config, state, batch_size: int) -> int:
    """Bytes that one training step takes beside its state."""
    batch = {
        "image": jax.ShapeDtypeStruct((batch_size, *build.image_shape(config)), "uint8"),
        "label": jax.ShapeDtypeStruct((batch_size,), "int32"),
    }
    step = jax.jit(build.build_train_step(config, meshes.make_mesh()), donate_argnums=0)
    return step.lower(state, batch, jax.random.key(0)).compile().memory_analysis().temp_size_in_bytes


def drawing_memory(config, state, batch_size: int) -> int:
    """Bytes that one evaluation of the network takes beside its parameters, guidance and all."""
    denoise, labels = build.build_guided_denoise_fn(config), jax.ShapeDtypeStruct((batch_size,), "int32")
    x_t = jax.ShapeDtypeStruct((batch_size, *build.image_shape(config)), "float32")
    step = jax.jit(lambda params, labels, x_t, t: denoise(params, labels if config.model.class_conditional else None)(x_t, t))
    return step.lower(state.params, labels, x_t, labels).compile().memory_analysis().temp_size_in_bytes


if __name__ == "__main__":
    main()

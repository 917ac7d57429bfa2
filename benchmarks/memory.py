"""How much memory does training take? What XLA reserves for a step, per config; nothing is run.

python benchmarks/memory.py digits cifar10
python benchmarks/memory.py cifar10 --remat --dtype=bfloat16

`state` holds parameters, EMA and Adam's moments, once per device. `per image` is what every image more in a device's
batch adds: the difference between two batch sizes, so that what does not grow drops out. The compiler that this
machine has decides (its name is printed); another one fuses otherwise, so take the numbers as a first guess there.
"""

import argparse
import importlib
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
    parser.add_argument("--batch_sizes", nargs=2, type=int, default=(2, 6), metavar="N", help="the two that are compared")
    parser.add_argument("--dtype", choices=build.DTYPES, help="of convolutions and matmuls, in place of the config's")
    parser.add_argument("--remat", action="store_true", help="recompute activations in the backward pass")
    options = parser.parse_args()
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
    print(f"{'config':18} {'parameters':>12} {'state':>10} {'per image':>12}")
    for name in options.configs:
        config = importlib.import_module(f"configs.{name}").get_config()
        config.model.dtype = options.dtype or config.model.dtype
        config.model.remat = options.remat or config.model.remat
        state = jax.eval_shape(build.build_init(config), jax.random.key(0))
        few, many = (step_memory(config, state, batch_size) for batch_size in options.batch_sizes)
        per_image = (many - few) / (options.batch_sizes[1] - options.batch_sizes[0])
        parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
        print(f"{name:18} {parameters:12,} {size / MIB:6,.0f} MiB {per_image / MIB:8,.1f} MiB", flush=True)


def step_memory(config, state, batch_size: int) -> int:
    """Bytes that one training step takes beside its state."""
    batch = {
        "image": jax.ShapeDtypeStruct((batch_size, *build.image_shape(config)), "uint8"),
        "label": jax.ShapeDtypeStruct((batch_size,), "int32"),
    }
    step = jax.jit(build.build_train_step(config, meshes.make_mesh()), donate_argnums=0)
    return step.lower(state, batch, jax.random.key(0)).compile().memory_analysis().temp_size_in_bytes


if __name__ == "__main__":
    main()

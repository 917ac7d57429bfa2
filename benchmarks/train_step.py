"""How fast is a training step? Images/s, GFLOP/s, and the fraction of the machine's matmul ceiling, measured in the same run.

python benchmarks/train_step.py --config=cifar10 --batch_size=8
python benchmarks/train_step.py --config=digits --against=torch    # needs: pip install torch diffusers

With --against=torch, the same network of PyTorch's diffusers runs the same step (flips, loss, clipping, Adam, EMA) in
alternating rounds, in both memory formats and in separate processes; a ratio above 1 means that ours is faster. On a GPU
it also runs under torch.compile.
"""

import common
import jax
import numpy as np

from ddpm_jax import build, compiler_config
from ddpm_jax.runtime import mesh as meshes


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--against", choices=["torch"], help="also measure this")
    parser.add_argument("--nondeterministic", action="store_true", help="train.deterministic=False, on a GPU")
    options = parser.parse_args()
    config = common.load_config(options)
    config.train.deterministic = not options.nondeterministic
    batch_size = config.train.batch_size

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch_size, *build.image_shape(config)), dtype=np.uint8)
    labels = np.arange(batch_size, dtype=np.int32) % max(1, config.data.num_classes)
    ours, flops, parameters = our_step(config, {"image": images, "label": labels})
    ceiling_matmul, ceiling_flops = common.matmul(build.DTYPES[config.model.dtype])
    work = {"ddpm_jax": common.in_process(ours)}
    if options.against:
        torch_parameters = common.call_in_subprocess("torch_reference", "count_parameters", config)
        work |= common.against_torch("torch_reference", "train_step", config, images)
    rows = common.seconds(work | {"ceiling": ceiling_matmul}, options.rounds)
    ceiling = ceiling_flops / rows.pop("ceiling")

    print(f"{common.machine()}; {options.config}, batch {batch_size}, {config.model.dtype}, median of {options.rounds}")
    print(f"{parameters:,} parameters; {flops / 1e9:,.1f} GFLOP per step, counted in the program")
    better = min((name for name in rows if name.startswith("torch")), key=rows.get, default=None)
    common.table(rows, batch_size, flops, ceiling, better)
    if better:
        print(f"torch has {torch_parameters:,} parameters; ddpm_jax is {rows[better] / rows['ddpm_jax']:.2f}x {better}")


def our_step(config, batch):
    """A function that runs one training step, its number of operations, and the number of parameters."""
    mesh = meshes.make_mesh()
    meshes.check_batch(config.train.batch_size, mesh, config.optimizer.accumulation_steps)
    replicated = meshes.replicated(mesh)
    state = jax.jit(build.build_init(config), out_shardings=replicated)(jax.random.key(0))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    key = jax.device_put(jax.random.key(1), replicated)
    batch = jax.device_put(batch, meshes.batch_sharding(mesh))
    train_step, rate = build.build_train_step(config, mesh), build.build_learning_rate(config)(0)
    flops = common.count_flops(train_step, state, batch, key, rate)
    step = jax.jit(train_step, donate_argnums=0, compiler_options=compiler_config.train_step_options(config))
    held = [state]

    def once():
        held[0], metrics = step(held[0], batch, key, rate)
        return metrics

    return once, flops, parameters


if __name__ == "__main__":
    main()

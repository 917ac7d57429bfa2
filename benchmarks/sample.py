"""How fast is sampling? Images/s, GFLOP/s, and the fraction of the machine's matmul ceiling, measured in the same run.

python benchmarks/sample.py --config=digits --sampler=ancestral --num_steps=1000
python benchmarks/sample.py --config=digits --sampler=ancestral --num_steps=1000 --against=torch   # pip install torch diffusers
python benchmarks/sample.py --config=cifar10 --batch_size=8 --num_steps=5
for sampler in ancestral ddim dpmpp_2m dpmpp_2m_sde unipc heun ode; do python benchmarks/sample.py --sampler=$sampler; done

Also the fraction of the time spent in the network: the same number of network evaluations without a sampler is timed in
alternating rounds. With --against=torch, diffusers' scheduler and network generate as many images, in both memory formats.
"""

import common
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from ddpm_jax import build, config_validation, data_config
from ddpm_jax.runtime import mesh as meshes
from ddpm_jax.samplers import SAMPLERS


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--sampler", choices=SAMPLERS, help="instead of the config's")
    parser.add_argument("--num_steps", type=int, help="instead of the config's")
    parser.add_argument("--against", choices=["torch"], help="also measure this")
    options = parser.parse_args()
    config = common.load_config(options)
    sampling = config.sampling
    sampling.sampler = options.sampler or sampling.sampler
    sampling.num_steps = options.num_steps or sampling.num_steps
    sampling.num_images = sampling.batch_size = options.batch_size or meshes.images_per_batch(sampling.batch_size)
    config_validation.check_config(config)

    mesh = meshes.make_mesh()
    state = jax.jit(build.build_init(config), out_shardings=meshes.replicated(mesh))(jax.random.key(0))
    generator = build.build_batched_sampler(config, mesh)
    labels = data_config.sampling_labels(config)
    batch_size, evaluations = generator.batch_size, generator.sampler.nfe

    def generate():
        return list(generator.generate(state.params, jax.random.key(1), num_images=batch_size, cond=labels))

    make_denoise_fn = build.build_denoise_fn(config)
    x_t, t = jnp.zeros((batch_size, *build.image_shape(config))), jnp.zeros(batch_size, jnp.int32)

    def network(params, x_t, t, labels):
        # Each evaluation depends on the previous one, as in a sampler.
        return jax.lax.scan(lambda x, _: (make_denoise_fn(params, labels)(x, t), None), x_t, length=evaluations)[0]

    # Each device computes its own images, as in sampling.
    sharded_network = jax.shard_map(
        network, mesh=mesh, in_specs=(P(), *[P(*mesh.axis_names)] * 3), out_specs=P(*mesh.axis_names)
    )
    network_alone = jax.jit(sharded_network)
    arguments = (state.params, *jax.device_put((x_t, t, labels), meshes.batch_sharding(mesh)))
    flops = common.count_flops(sharded_network, *arguments)
    ceiling_matmul, ceiling_flops = common.matmul(build.DTYPES[config.model.dtype])
    work = {
        "ddpm_jax": common.in_process(generate),
        "its network alone": common.in_process(lambda: network_alone(*arguments)),
    }
    if options.against:
        work |= common.against_torch("torch_reference", "sampler", config, batch_size, sampling.num_steps)
    rows = common.seconds(work | {"ceiling": ceiling_matmul}, options.rounds)
    ceiling = ceiling_flops / rows.pop("ceiling")

    settings = (
        f"{sampling.sampler}, {sampling.num_steps} steps, {evaluations} evaluations, batch {batch_size}, {config.model.dtype}"
    )
    print(f"{common.machine()}; {options.config}, {settings}, median of {options.rounds}")
    better = min((name for name in rows if name.startswith("torch")), key=rows.get, default=None)
    common.table(rows, batch_size, flops, ceiling, better)
    print(f"{rows['its network alone'] / rows['ddpm_jax']:.1%} of the time is the network")
    if better:
        print(f"ddpm_jax is {rows[better] / rows['ddpm_jax']:.2f}x {better}")


if __name__ == "__main__":
    main()

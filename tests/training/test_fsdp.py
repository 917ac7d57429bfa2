"""Training with the state sharded over devices: the numbers of replicated training, in less memory on each device."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from ddpm_jax.diffusion import losses
from ddpm_jax.diffusion.parameterization import Parameterization
from ddpm_jax.diffusion.schedules import make_schedule
from ddpm_jax.diffusion.timestep_sampling import make_timestep_sampler
from ddpm_jax.runtime.checkpoint import CheckpointManager
from ddpm_jax.runtime.mesh import batch_sharding, make_mesh, replicated, training_mesh
from ddpm_jax.training import device_grads, fsdp, load_params, param_patterns
from ddpm_jax.training.ema_tracker import EmaTracker
from ddpm_jax.training.optimizer import make_optimizer
from ddpm_jax.training.state import create_state
from ddpm_jax.training.step import train_step

SCHEDULE = make_schedule("cosine", 100)
AVERAGING = EmaTracker(extra_decays=(0.9,), power_sigma_rel=(0.1,))
MESHES = {"replicated": (8, 1), "fsdp": (1, 8), "both": (2, 4)}


def mesh_of(data, size, devices=None):
    return training_mesh(make_mesh(devices), data=data, fsdp=size)


# A custom network, not of Flax: it has kernels, a bias and an array that no number of devices divides.


def init_network(key):
    keys = jax.random.split(key, 3)
    return {
        "in": {"kernel": jax.random.normal(keys[0], (65, 64)) / 8, "bias": jnp.zeros(64)},
        "odd": {"kernel": jax.random.normal(keys[1], (64, 33)) / 8, "gain": jnp.ones((35, 33))},
        "out": {"kernel": jax.random.normal(keys[2], (33, 64)) / 8},
    }


def network(params, x_t, t, cond, dropout_key, *, dropout):
    x = jnp.concatenate([x_t.reshape(-1, 64), 0.01 * t.astype(jnp.float32)[:, None]], axis=1)
    hidden = jnp.tanh(x @ params["in"]["kernel"] + params["in"]["bias"][None])
    hidden = jnp.where(jax.random.bernoulli(dropout_key, 1 - dropout, hidden.shape), hidden / (1 - dropout), 0.0)
    hidden = jnp.tanh(hidden @ params["odd"]["kernel"]) * jnp.mean(params["odd"]["gain"], axis=0, keepdims=True)
    return (hidden @ params["out"]["kernel"]).reshape(x_t.shape)


def sharded_leaves(tree, mesh):
    """Path -> whether an array of the tree is sharded as the rule requires, for each that is large and divisible."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        wanted = fsdp.leaf_sharding(mesh, leaf.shape)
        if not wanted.is_fully_replicated:
            found[jax.tree_util.keystr(path)] = leaf.sharding.is_equivalent_to(wanted, leaf.ndim)
    return found


def start(mesh, optimizer, sampler):
    def create(key):
        return create_state(init_network, optimizer, key, timestep_sampler_state=sampler.init(), averaging=AVERAGING)

    shardings = fsdp.state_sharding(mesh, jax.eval_shape(create, jax.random.key(1)))
    return jax.jit(create, out_shardings=shardings)(jax.random.key(1)), shardings


@functools.cache
def compiled(mesh_name, name="adam", dropout=0.0, frozen=(), accumulation_steps=1, skip_nonfinite=0, t="uniform"):
    """The compiled step of the network on a mesh, the mesh, and a function that makes the state at step 0."""
    mesh, sampler = mesh_of(*MESHES[mesh_name]), make_timestep_sampler(t, SCHEDULE.num_timesteps)
    if name == "own":  # a state of other shapes than the parameters
        own = optax.chain(optax.scale_by_factored_rms(min_dim_size_to_factor=16), optax.trace(0.9), optax.scale(-0.1))
        optimizer = optax.apply_if_finite(own, 0)
    else:
        optimizer = make_optimizer(name, clip_norm=0.5, frozen=frozen, skip_nonfinite=skip_nonfinite)
    step = functools.partial(
        train_step,
        apply_fn=functools.partial(network, dropout=dropout),
        schedule=SCHEDULE,
        optimizer=optimizer,
        parameterization=Parameterization("eps", "fixed_large", clip_denoised=True),
        loss_fn=losses.make_loss("simple"),
        ema_decay=0.99,
        random_flip=True,
        averaging=AVERAGING,
        timestep_sampler=sampler,
        accumulation_steps=accumulation_steps,
        skip_nonfinite=skip_nonfinite,
        find_frozen=functools.partial(param_patterns.match_frozen, patterns=frozen) if frozen else None,
        **device_grads.train_step_options(mesh),
    )
    state, shardings = start(mesh, optimizer, sampler)
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(shardings, replicated(mesh)))
    program = jitted.lower(state, batch_of(0, mesh), jax.random.key(0), np.float32(1e-3)).compile()
    return program, mesh, functools.partial(start, mesh, optimizer, sampler)


def batch_of(step, mesh):
    images = np.random.default_rng(step).integers(0, 256, (32, 8, 8, 1)).astype(np.uint8)
    return {"image": jax.device_put(images, batch_sharding(mesh))}


def run(mesh_name, steps, **options):
    """The losses of some steps, and the last state and metrics."""
    program, mesh, new = compiled(mesh_name, **options)
    key = jax.device_put(jax.random.key(0), replicated(mesh))
    state, found = new()[0], []
    for number in range(steps):
        state, metrics = program(state, batch_of(number, mesh), key, np.float32(1e-3))
        found.append(float(metrics["loss"]))
    return np.array(found), state, metrics


def assert_close(got, want, tolerance):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def assert_same(got, want):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((3, 3, 64, 128), P(None, None, None, "fsdp")),
        ((3, 3, 128, 64), P(None, None, "fsdp")),
        ((64, 64), P(None, "fsdp")),  # of equal axes the last
        ((65, 64), P(None, "fsdp")),
        ((64, 100), P("fsdp")),  # 8 does not divide 100
        ((1023, 3), P()),
        ((512,), P()),
        ((1024,), P("fsdp")),
        ((), P()),
    ],
)
def test_the_largest_axis_that_divides_is_sharded(shape, spec):
    size = 8
    mesh = mesh_of(8 // size, size)
    assert fsdp.leaf_sharding(mesh, shape).spec == spec
    assert fsdp.leaf_sharding(mesh_of(8, 1), shape).spec == P()


def test_the_history_of_the_timestep_sampler_is_replicated():
    mesh, history = mesh_of(1, 8), make_timestep_sampler("second_moment", 1000).init()
    state = create_state(init_network, optax.sgd(1.0), jax.random.key(0), timestep_sampler_state=history)
    shardings = fsdp.state_sharding(mesh, state)
    assert all(sharding.is_fully_replicated for sharding in jax.tree.leaves(shardings.timestep_sampler_state))
    assert not fsdp.leaf_sharding(mesh, history.losses.shape).is_fully_replicated
    assert shardings.step.is_fully_replicated


@pytest.mark.parametrize(("mesh_name", "dropout"), [("fsdp", 0.5), ("both", 0.5), ("both", 0.0)])
def test_fifty_steps_have_the_losses_of_replicated_training(mesh_name, dropout):
    """1e-6: norms are sums of parts."""
    found, state, metrics = run(mesh_name, 50, dropout=dropout)
    expected, other, other_metrics = run("replicated", 50, dropout=dropout)
    assert expected[-1] < 0.95 * expected[0]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert_close(state, other, 1e-5)
    assert_close(metrics, other_metrics, 1e-5)


VARIANTS = {
    "accumulation": {"accumulation_steps": 2, "dropout": 0.5, "t": "second_moment"},
    "frozen": {"frozen": ("in/*",)},
    "skipping": {"skip_nonfinite": 2},
    "muon": {"name": "muon"},
    "own": {"name": "own"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_kind_of_step_is_that_of_replicated_training(variant):
    """Five steps; every large array of the state is still sharded after them."""
    found, state, metrics = run("both", 5, **VARIANTS[variant])
    expected, other, other_metrics = run("replicated", 5, **VARIANTS[variant])
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert_close(state, other, 1e-5)
    assert_close(metrics, other_metrics, 1e-5)
    sharded = sharded_leaves(state.replace(timestep_sampler_state=()), mesh_of(*MESHES["both"]))
    assert all(sharded.values()), sharded
    fields = {path.split(".")[1].split("[")[0] for path in sharded}
    assert fields == {"params", "ema_params", "opt_state", "averages"}


# Memory and collectives.


def device_bytes(program):
    """Bytes that each device needs for a step: state, batch and temporary arrays; donated buffers once."""
    memory = program.memory_analysis()
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.argument_size_in_bytes, memory.argument_size_in_bytes + memory.temp_size_in_bytes + results


def test_each_device_holds_its_part_of_the_state():
    (whole, whole_total), (part, part_total) = (device_bytes(compiled(name, dropout=0.5)[0]) for name in ("replicated", "fsdp"))
    _, state, _ = run("fsdp", 1, dropout=0.5)
    own = jax.tree.leaves(state)
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in own)
    saved = sum(leaf.nbytes for leaf in own) - held
    assert saved > 0.75 * sum(leaf.nbytes for leaf in own)
    assert whole - part == saved
    assert whole_total - part_total > 0.5 * saved  # the gathered parameters are temporary arrays


COLLECTIVE = re.compile(r"= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")


def collectives(program):
    """Kind -> shapes of the results of the collectives in a compiled program, a list for each of them."""
    found = {}
    for line in program.as_text().splitlines():
        if match := COLLECTIVE.search(line):
            shapes = [tuple(map(int, shape.split(","))) if shape else () for shape in re.findall(r"\w+\[([\d,]*)\]", match[1])]
            found.setdefault(match[2], []).append(shapes)
    return found


@pytest.mark.parametrize("mesh_name", ["fsdp", "both"])
def test_parameters_are_gathered_and_gradients_reduced_and_nothing_else_is_sent(mesh_name):
    """Each gradient over the devices of a copy, which keep their parts; if there are copies, these parts over the copies."""
    program, _, new = compiled(mesh_name, dropout=0.5)
    found = collectives(program)
    assert found.keys() <= {"all-gather", "all-reduce", "reduce-scatter"}
    params = new()[0].params
    sharded = [leaf for leaf in jax.tree.leaves(params) if not leaf.sharding.is_fully_replicated]
    gathered = [shape for shapes in found["all-gather"] for shape in shapes]
    assert sorted(gathered) == sorted(leaf.shape for leaf in sharded)
    parts = sorted(leaf.addressable_shards[0].data.shape for leaf in sharded)
    assert sorted(shape for shapes in found["reduce-scatter"] for shape in shapes) == parts
    reduced = sorted(shape for shapes in found["all-reduce"] for shape in shapes if np.prod(shape) > 64)
    whole = [leaf.shape for leaf in jax.tree.leaves(params) if leaf.sharding.is_fully_replicated and leaf.size > 64]
    assert reduced == sorted(whole + (parts if mesh_name == "both" else []))


def test_replicated_training_reduces_once():
    """Also where XLA partitions the step; the gradients, the loss and the sums by quartile are one all-reduce."""
    found = collectives(compiled("replicated", dropout=0.5)[0])
    assert found.keys() == {"all-reduce"}
    assert len(found["all-reduce"]) == 1


# The state on other meshes.


@pytest.mark.parametrize("mesh_name", ["fsdp", "both"])
def test_the_initial_state_has_the_bits_of_the_replicated_one(mesh_name):
    state, _ = compiled(mesh_name, dropout=0.5)[2]()
    expected, _ = compiled("replicated", dropout=0.5)[2]()
    assert_same(state, expected)
    assert all(sharded_leaves(state.params, mesh_of(*MESHES[mesh_name])).values())


def test_a_checkpoint_is_restored_on_any_mesh_bit_for_bit(tmp_path):
    """1 -> 8 -> 2 x 4 -> 4 -> 1 devices, with the same fingerprint of the parameters."""
    _, state, _ = run("both", 2, dropout=0.5)
    expected, fingerprint = jax.device_get(state), load_params.params_sha256(state.ema_params)
    meshes = [mesh_of(1, 1, jax.devices()[:1]), mesh_of(1, 8), mesh_of(2, 4), mesh_of(2, 2, jax.devices()[:4])]
    with CheckpointManager(tmp_path, max_to_keep=2) as checkpoints:
        for step, mesh in enumerate([*meshes, meshes[0]]):
            checkpoints.save(step, state.fields(), wait=True)
            fields, found = checkpoints.restore(fsdp.abstract_state(mesh, state).fields())
            state = type(state).from_fields(fields)
            assert found == step
            assert_same(state, expected)
            assert len(state.params["in"]["kernel"].sharding.device_set) == mesh.size
            assert all(sharded_leaves(state.params, mesh).values())
            assert load_params.params_sha256(state.ema_params) == fingerprint


def test_a_sharded_tree_is_replicated_for_sampling():
    _, state, _ = run("fsdp", 1, dropout=0.5)
    flat = make_mesh()
    whole = fsdp.replicate(state.params, flat)
    assert all(leaf.sharding.is_equivalent_to(replicated(flat), leaf.ndim) for leaf in jax.tree.leaves(whole))
    assert_same(whole, state.params)
    assert fsdp.replicate(whole, flat) is whole


def test_arrays_of_the_host_are_put_as_the_rule_requires():
    arrays = {"a": np.arange(4096.0, dtype=np.float32).reshape(64, 64), "b": np.ones(3, np.float32)}
    mesh = mesh_of(2, 4)
    found = fsdp.put(mesh, arrays)
    assert_same(found, arrays)
    assert sharded_leaves(found, mesh) == {"['a']": True}
    assert fsdp.put(mesh_of(8, 1), arrays) is arrays


def test_a_replicated_step_is_the_program_without_these_options():
    mesh = mesh_of(8, 1)
    assert device_grads.train_step_options(mesh) == {}
    state = jax.eval_shape(lambda key: create_state(init_network, optax.sgd(1.0), key), jax.random.key(1))
    everywhere = replicated(mesh)
    texts = [
        jax.jit(lambda state: state, donate_argnums=0, out_shardings=shardings).lower(state).as_text()
        for shardings in (everywhere, fsdp.state_sharding(mesh, state))
    ]
    assert texts[0] == texts[1]

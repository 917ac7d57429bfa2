"""Gradients in a few vectors: the same step as without, up to the rounding of the norms."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax.diffusion import losses
from ddpm_jax.diffusion.parameterization import Parameterization
from ddpm_jax.diffusion.schedules import make_schedule
from ddpm_jax.runtime import mesh as meshes
from ddpm_jax.training import grad_groups
from ddpm_jax.training.ema_tracker import EmaTracker
from ddpm_jax.training.optimizer import OPTIMIZERS, make_optimizer
from ddpm_jax.training.state import create_state
from ddpm_jax.training.step import train_step

SHAPES = {"conv": (3, 3, 2, 8), "dense": (8, 8), "other": (8, 8), "scale": (8,), "bias": (3,), "scalar": ()}
AVERAGING = EmaTracker(extra_decays=(0.9,))


def random_tree(seed=0):
    generator = np.random.default_rng(seed)
    return {name: {"kernel": jnp.asarray(generator.normal(size=shape), jnp.float32)} for name, shape in SHAPES.items()}


def network(params, x_t, t, cond, dropout_key):
    """Has a gradient in every parameter."""
    total = sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(params))
    return x_t * total + jnp.mean(params["conv"]["kernel"] ** 2)


def steps(name, grouped, clip_norm, frozen=(), count=2):
    """The state and the metrics after `count` steps."""
    norm_fn = grad_groups.norm if grouped else optax.tree.norm
    optimizer = make_optimizer(name, clip_norm=clip_norm, frozen=frozen, norm_fn=norm_fn)
    state = create_state(lambda key: random_tree(), optimizer, jax.random.key(0), averaging=AVERAGING)

    @jax.jit
    def step(state, batch):
        return train_step(
            state,
            batch,
            jax.random.key(1),
            0.1,
            apply_fn=network,
            schedule=make_schedule("cosine", 10),
            parameterization=Parameterization("eps", "fixed_large", clip_denoised=True),
            optimizer=optimizer,
            loss_fn=losses.make_loss("simple"),
            ema_decay=0.99,
            random_flip=False,
            averaging=AVERAGING,
            group_grads=grouped,
            norm_fn=norm_fn,
        )

    batch = {"image": jnp.asarray(np.random.default_rng(2).integers(0, 256, (4, 2, 2, 1)), jnp.uint8)}
    for _ in range(count):
        state, metrics = step(state, batch)
    return state, metrics


@pytest.mark.parametrize("group_size", [1, 2, 64])
def test_grouping_changes_no_gradient(monkeypatch, group_size):
    monkeypatch.setattr(grad_groups, "GROUP_SIZE", group_size)
    grads = random_tree() | {"half": jnp.arange(4, dtype=jnp.bfloat16)}
    grouped = grad_groups.group(grads)
    assert jax.tree.structure(grouped) == jax.tree.structure(grads)
    for got, want in zip(jax.tree.leaves(grouped), jax.tree.leaves(grads), strict=True):
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(got, want)


def test_each_group_is_one_vector():
    """XLA fuses the updates of parameters that read one array: barriers must leave the vectors in the program."""
    text = jax.jit(grad_groups.group).lower({str(index): jnp.ones(2) for index in range(150)}).as_text()
    assert text.count("stablehlo.optimization_barrier") == 3


def test_norm_is_the_norm_of_all_numbers():
    tree = random_tree()
    exact = np.sqrt(sum(np.sum(np.float64(leaf) ** 2) for leaf in jax.tree.leaves(tree)))
    for norm in (grad_groups.norm, grad_groups.norm_of_new):
        np.testing.assert_allclose(norm(tree), exact, rtol=1e-6)
    assert grad_groups.norm({}) == 0


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_equals_that_without_groups(name):
    """After two clipped steps, up to the rounding of numbers of size 1, with a state of the same structure."""
    (state, metrics), (want, want_metrics) = (steps(name, grouped, clip_norm=0.5) for grouped in (True, False))
    assert jax.tree.structure(state) == jax.tree.structure(want)
    assert metrics["grad_norm"] > 0.5
    for got, expected in zip(jax.tree.leaves((state, metrics)), jax.tree.leaves((want, want_metrics)), strict=True):
        assert (got.shape, got.dtype) == (expected.shape, expected.dtype)
        np.testing.assert_allclose(got, expected, rtol=2e-6, atol=1e-6)
    assert not np.allclose(state.params["conv"]["kernel"], random_tree()["conv"]["kernel"], atol=1e-4)


def test_frozen_parameters_keep_their_bits():
    (state, _), (want, _) = (steps("adam", grouped, clip_norm=0.5, frozen=("dense/*",)) for grouped in (True, False))
    np.testing.assert_array_equal(state.params["dense"]["kernel"], random_tree()["dense"]["kernel"])
    for got, expected in zip(jax.tree.leaves(state), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(got, expected, rtol=2e-6, atol=1e-6)


def test_clipping_is_that_of_optax():
    """With optax's norm: the same bits, below and above the maximum."""
    grads = random_tree()
    for clip_norm in (1.0, 1e3):
        ours, theirs = make_optimizer("sgd", clip_norm=clip_norm, momentum=0.0), optax.clip_by_global_norm(clip_norm)
        got, _ = ours.update(grads, ours.init(grads), grads)
        want, _ = theirs.update(grads, theirs.init(grads))
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_array_equal(a, -b)


def test_only_gpus_with_the_whole_state_use_groups():
    def mesh(platform, axes):
        return types.SimpleNamespace(devices=np.array([types.SimpleNamespace(platform=platform)]), axis_names=axes)

    assert not grad_groups.is_useful(meshes.make_mesh())
    assert grad_groups.is_useful(mesh("gpu", ("data",)))
    assert not grad_groups.is_useful(mesh("gpu", ("data", "fsdp")))
    assert not grad_groups.is_useful(mesh("tpu", ("data",)))

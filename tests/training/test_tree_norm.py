"""The norm in slices, and where it is used."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax.training import grad_groups, tree_norm

SHAPES = [(3, 3, 48, 64), (512, 64), (100, 300), (17, 1000), (20_000,), (3, 3, 2, 8), (8,), ()]


@pytest.mark.parametrize("shapes", [SHAPES, SHAPES[:1], SHAPES[5:]])
def test_it_is_the_norm_of_float64(shapes):
    generator = np.random.default_rng(0)
    tree = {str(index): jnp.asarray(generator.normal(size=shape), jnp.float32) for index, shape in enumerate(shapes)}
    got = jax.jit(tree_norm.in_slices)(tree)
    assert got.dtype == jnp.float32
    want = np.sqrt(sum(np.sum(np.float64(leaf) ** 2) for leaf in tree.values()))
    np.testing.assert_allclose(got, want, rtol=1e-6)
    assert got == pytest.approx(float(optax.tree.norm(tree)), rel=1e-6)


def test_small_arrays_share_a_reduction():
    tree = [jnp.ones(4)] * 30 + [jnp.ones((128, 128))] * 2
    text = jax.jit(tree_norm.in_slices).lower(tree).as_text()
    assert text.count("stablehlo.reduce(") == 3


def test_the_norm_of_each_platform():
    def norm(platform, *axes):
        devices = np.array([types.SimpleNamespace(platform=platform)])
        return tree_norm.for_mesh(types.SimpleNamespace(devices=devices, axis_names=axes))

    assert norm("tpu", "data") is tree_norm.in_slices
    assert norm("gpu", "data") is grad_groups.norm
    assert norm("cpu", "data") is norm("tpu", "data", "fsdp") is norm("gpu", "data", "fsdp") is optax.tree.norm

"""improved-diffusion's and guided-diffusion's networks at full size: outputs of their programs (tests/golden), in float32."""

import pathlib

import numpy as np
import pytest

from ddpm_jax import build
from ddpm_jax.configs import adm_imagenet64, iddpm_cifar10, iddpm_imagenet64
from ddpm_jax.interop import array_table, openai_layout
from tests.interop.networks import output, relative_error, shapes_of, their_shapes
from tests.interop.random_state import random_inputs, random_state

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "openai_networks.npz"
NETWORKS = {
    "improved_cifar10": (iddpm_cifar10, 52_546_438),
    "improved_imagenet64": (iddpm_imagenet64, 121_063_942),
    "guided_imagenet64": (adm_imagenet64, 295_904_454),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_networks_of_the_configs_are_the_published_ones(name):
    """Each in the other direction as well: all arrays come back bit for bit."""
    module, count = NETWORKS[name]
    config = module.get_config()
    network, size = build.build_model(config), config.data.image_size
    shapes = shapes_of(network, size)
    table = openai_layout.table(network, shapes, new_attention_order=name.startswith("guided"))
    state = random_state(their_shapes(table, shapes))
    assert sum(array.size for array in state.values()) == count
    params = array_table.to_ours(table, shapes, dict(state), "file")
    assert all(np.array_equal(array, state[key]) for key, array in array_table.to_theirs(table, params))
    x_t, t = random_inputs(size)
    found = output(network, params, x_t, t, [1, 7] if network.num_classes else None)
    assert relative_error(found[:, ::8, ::8], np.load(GOLDEN)[name]) < 1e-5

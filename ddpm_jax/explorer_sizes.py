"""Derived from config.visualize for format html: how the 15 MB of the page are divided.

The network comes first: it may have what the real images, the tables and a few recorded chains leave. The chains fill the rest.
"""

from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from ddpm_jax import build, explorer_identity
from ddpm_jax.diffusion.schedules import SCHEDULES
from ddpm_jax.evaluation.recorded_chains import MAX_ROWS, STAGES
from ddpm_jax.interop import browser_network, onnxruntime_web
from ddpm_jax.plotting.explorer.page import MAX_BYTES, Page

IMAGE_BYTES = 1_500_000  # of the real images with their noise and their condition images
CHAIN_BYTES, FEW_CHAIN_BYTES = 6_000_000, 1_500_000  # of the chains, at most; and beside a network that leaves little
MARGIN_BYTES = 300_000  # of the page, for its sources and everything else that is small
GRAPH_BYTES = 100_000  # of the network's elements, for what is not parameters
FEWEST_PARAMETER_BYTES = 2  # of a trained parameter in a page; a larger network is refused without compressing it


def num_page_images(config: ConfigDict) -> int:
    """Number of real images of the page: config.visualize.page_images, or fewer if they are large."""
    return max(1, min(config.visualize.page_images, IMAGE_BYTES // _image_bytes(config)))


def chain_bytes(page: Page) -> int:
    """Largest size of the recorded chains of a page that has everything else, before base64."""
    return min(CHAIN_BYTES, _before_base64(MAX_BYTES - MARGIN_BYTES - len(page.html().encode())))


def network_bytes(config: ConfigDict) -> int:
    """Largest size in the page of the network with its runtime."""
    images = num_page_images(config) * _image_bytes(config)
    tables = 4 * 8 * config.diffusion.num_timesteps * (len(SCHEDULES) + 1)
    stages = sum(min(steps, STAGES) + 1 for _, steps in explorer_identity.chain_cases(config))
    rows = config.visualize.num_seeds * (min(config.data.num_classes, MAX_ROWS) if config.model.class_conditional else 1)
    chains = min(FEW_CHAIN_BYTES, 2 * stages * rows * int(np.prod(build.image_shape(config))))
    return MAX_BYTES - MARGIN_BYTES - _in_base64(images + tables + chains)


def network_fits(config: ConfigDict, params: Any) -> tuple[bool, bool]:
    """Whether a network fits into the page, and whether it does only with rounded parameters (`browser_network.rounded`).

    Args:
      config: resolved.
      params: the parameters.
    """
    most = network_bytes(config) - onnxruntime_web.RUNTIME_BYTES - GRAPH_BYTES
    if FEWEST_PARAMETER_BYTES * count(params) > most:
        return False, False
    if browser_network.packed_bytes(params) <= most:
        return True, False
    return browser_network.packed_bytes(browser_network.rounded(params)) <= most, True


def count(params: Any) -> int:
    """Number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _image_bytes(config: ConfigDict) -> int:
    """One byte for each channel of a pixel, and its noise in float32; and the condition image, as a PNG of about its size."""
    condition = build.build_condition(config)
    return 5 * int(np.prod(build.image_shape(config))) + (int(np.prod(condition.shape)) if condition else 0)


def _in_base64(size: int) -> int:
    return -(-size * 4 // 3)


def _before_base64(size: int) -> int:
    return size * 3 // 4

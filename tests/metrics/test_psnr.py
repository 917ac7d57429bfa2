"""PSNR by hand."""

import math

import numpy as np
import pytest

from ddpm_jax.metrics.psnr import psnr


def test_values():
    images = np.zeros((3, 2, 2, 1), np.uint8)
    originals = np.zeros((3, 2, 2, 1), np.uint8)
    originals[0] = 255  # MSE 255^2: 0 dB
    originals[1, 0, 0] = 2  # MSE 1
    found = psnr(images, originals)
    assert found[:2] == pytest.approx([0, 20 * math.log10(255)])
    assert found[2] == math.inf
    np.testing.assert_array_equal(psnr(originals, images), found)  # no wrapping of uint8


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="originals of shape"):
        psnr(np.zeros((1, 2, 2, 1), np.uint8), np.zeros((1, 2, 2, 3), np.uint8))

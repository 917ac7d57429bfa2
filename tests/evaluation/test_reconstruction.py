"""PSNR of generated images, of enlarged conditions, and consistency, on images for which they are known."""

import math

import numpy as np
import pytest

from ddpm_jax.evaluation import reconstruction
from ddpm_jax.evaluation.reconstruction import measure_reconstruction


def measure(images, conditions, originals, condition_of):
    return measure_reconstruction(
        iter([images[:2], images[2:]]),
        conditions,
        originals,
        enlarge=lambda small: small.repeat(2, axis=1).repeat(2, axis=2),
        condition_of=condition_of,
        baseline="bicubic",
    )


def test_each_column_compares_its_own_images():
    originals = np.full((3, 2, 2, 1), 100, np.uint8)
    images = originals + np.array([1, 2, 4], np.uint8)[:, None, None, None]
    conditions = np.full((3, 1, 1, 1), 108, np.uint8)
    row, notes = measure(images, conditions, originals, lambda images: images[:, :1, :1])
    decibel = [20 * math.log10(255 / error) for error in (1, 2, 4)]
    assert row["count"] == 3
    assert row["psnr"] == pytest.approx(np.mean(decibel))
    assert row["psnr_stderr"] == pytest.approx(np.std(decibel, ddof=1) / math.sqrt(3))
    assert row["bicubic psnr"] == pytest.approx(20 * math.log10(255 / 8))
    assert row["consistency"] == pytest.approx(np.mean([20 * math.log10(255 / error) for error in (7, 6, 4)]))
    assert "blur" not in notes[0]


def test_samples_below_the_baseline_have_a_note():
    originals = np.full((3, 2, 2, 1), 100, np.uint8)
    row, notes = measure(originals + np.uint8(9), np.full((3, 1, 1, 1), 101, np.uint8), originals, None)
    assert "PSNR rewards blur" in notes[0]
    assert "consistency" not in row


def test_each_process_reads_its_part(monkeypatch):
    """The second of two processes gets the numbers of the first, and both measure all images."""
    originals = np.random.default_rng(0).integers(0, 200, (5, 2, 2, 1), dtype=np.uint8)
    images, conditions = originals + np.arange(1, 6, dtype=np.uint8)[:, None, None, None], originals[:, :1, :1]
    options = {"enlarge": lambda small: small.repeat(2, 1).repeat(2, 2), "baseline": "bicubic"}
    options["condition_of"] = lambda images: images[:, 1:, 1:]
    expected = measure_reconstruction([images], conditions, originals, **options)
    found = []
    monkeypatch.setattr(reconstruction.exchange, "concatenate", lambda rows: found.append(rows) or np.concatenate(found))
    measure_reconstruction([images[:2], images[2:3]], conditions, originals, **options)
    assert measure_reconstruction([images[3:]], conditions, originals, first=3, **options) == expected
    assert [len(rows) for rows in found] == [3, 2]

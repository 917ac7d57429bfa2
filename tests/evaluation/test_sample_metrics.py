"""Notes on scores."""

import pytest

from ddpm_jax.evaluation.sample_metrics import sample_warnings


@pytest.mark.parametrize(
    ("counts", "published", "words"),
    [
        ((50_000, 50_000, 2048), True, []),
        ((50_000, 50_000, 64), False, []),
        ((1000, 1500, 64), False, []),
        ((64, 1500, 64), False, ["64 generated images for 64 features"]),
        ((65, 1500, 64), False, []),
        ((1000, 50, 64), False, ["50 reference images for 64 features"]),
        ((2000, 50_000, 2048), True, ["2,000 generated images for 2,048 features", "FID of 2,000 images"]),
        ((9999, 50_000, 2048), True, ["FID of 9,999 images: FID decreases"]),
        ((10_000, 50_000, 2048), True, ["published ones mostly use 50,000"]),
        ((50_000, None, 2048), True, ["the number of reference images is unknown"]),
    ],
)
def test_small_samples_cause_warnings(counts, published, words):
    lines = sample_warnings(*counts, published=published)
    assert len(lines) == len(words)
    for line, expected in zip(lines, words, strict=True):
        assert expected in line
        assert "\n" not in line

"""Reference statistics that do not fit the run are errors."""

import pytest

from ddpm_jax.evaluation.reference import check_value_range
from ddpm_jax.runtime.errors import InvalidDataError


def test_statistics_with_another_value_range_are_an_error():
    """The same files with another range of gray levels have the same fingerprint but different images."""
    ours = (0.0, 1023.0)
    for theirs in ({"value_range": [0.0, 1023.0]}, {"value_range": []}, {}, None):
        check_value_range("a.npz", theirs, ours)
    match = r"^a\.npz holds .* levels 0 and 65535 are black and white, this run has 0 and 1023 \(config\.data\.value_range\)"
    with pytest.raises(InvalidDataError, match=match):
        check_value_range("a.npz", {"value_range": [0, 65535]}, ours)

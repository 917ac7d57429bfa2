"""What the tests of metrics share; `torch_pickles.py` lies beside them."""

import pathlib
import sys

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def golden():
    """Features, and their metrics by pytorch-fid and torch-fidelity; made by tests/golden/metrics.py."""
    with np.load(pathlib.Path(__file__).parents[1] / "golden" / "metrics.npz") as arrays:
        return dict(arrays)

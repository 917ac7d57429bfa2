"""Settings for the comparisons with real packages, which `make test-interop` runs in a virtual environment of its own."""

import pytest


@pytest.fixture(autouse=True)
def torch_uses_few_threads():
    """PyTorch's threads would compete with XLA's."""
    import torch

    torch.set_num_threads(2)

"""Settings for the comparisons with real packages, which `make test-interop` runs in a virtual environment of its own."""

import pytest
import torch


def import_torchvision():
    """Import torchvision, which diffusers and the FID packages do, also if it was built for another torch.

    PyPI's torchvision lacks two operators beside a torch for CPUs only. None of the packages uses them here.
    """
    try:
        import torchvision
    except RuntimeError:
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        register, torch.library.register_fake = torch.library.register_fake, lambda *_, **__: lambda function: function
        try:
            import torchvision  # noqa: F401
        finally:
            torch.library.register_fake = register


import_torchvision()


@pytest.fixture(autouse=True)
def torch_uses_few_threads():
    """PyTorch's threads would compete with XLA's."""
    torch.set_num_threads(2)

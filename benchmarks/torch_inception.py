"""pytorch-fid's Inception, imported only by features.py with --against=torch."""

from collections.abc import Callable

import numpy as np

try:
    import pytorch_fid.inception
    import torch
except ImportError as error:
    raise SystemExit(
        f"error: --against=torch needs PyTorch and pytorch-fid ({error}): pip install torch torchvision pytorch-fid"
    ) from error


def extractor(state: dict[str, np.ndarray], images: np.ndarray, *, channels_last: bool) -> Callable[[], None]:
    """A function that computes the features of uint8 [B, H, W, C], including the resize to 299x299."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    weights = {name: torch.from_numpy(array) for name, array in state.items()} | {"fc.bias": torch.zeros(1008)}
    fetch, strict = pytorch_fid.inception.load_state_dict_from_url, torch.nn.Module.load_state_dict
    pytorch_fid.inception.load_state_dict_from_url = lambda *_, **__: weights
    # Without the batch counters of the norms.
    torch.nn.Module.load_state_dict = lambda self, given: strict(self, given, strict=False)
    try:
        network = pytorch_fid.inception.InceptionV3().to(device).eval()
    finally:
        pytorch_fid.inception.load_state_dict_from_url, torch.nn.Module.load_state_dict = fetch, strict
    layout = torch.channels_last if channels_last else torch.contiguous_format
    network = network.to(memory_format=layout)
    pixels = torch.from_numpy(images)

    @torch.inference_mode()
    def once() -> None:
        x = pixels.to(device).permute(0, 3, 1, 2).expand(-1, 3, -1, -1).float() / 255
        network(x.contiguous(memory_format=layout))[0].cpu()

    return once

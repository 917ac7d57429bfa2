"""Generates inception.npz: features, logits and spatial features of torch-fidelity and pytorch-fid with random weights.

python tests/golden/inception.py

With torch 2.13.0 (CPU), torchvision 0.28.0, torch-fidelity 0.4.0, pytorch-fid 0.3.0, numpy 2.4.6. What is kept is
torch-fidelity's, as its users run it, in float32: its resize is TensorFlow 1's and its pixels are (x - 128) / 128, as in the
network of published numbers. pytorch-fid's network, whose own resize and pixels are others, must agree in float64 on what
torch-fidelity resized. The spatial features are 7 channels of the layer that torch-fidelity's converter of weights
(util_convert_inception_weights.py) maps to mixed_6/conv, the one that guided-diffusion's sFID takes. Weights and images are
made by a rule, here and in the tests; neither is kept.
"""

import pathlib
import sys
import tempfile
import zlib

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from benchmarks.random_inception import random_state_dict

SEED = 0


def make_images() -> dict[str, np.ndarray]:
    """Name -> uint8 [N, H, W, 3]: noise, and noise in large pixels; two of each size. Extreme levels at 32 px."""
    words = np.random.Philox(np.random.SeedSequence(SEED))

    def noise(*shape: int) -> np.ndarray:
        return (words.random_raw(int(np.prod(shape))) >> np.uint64(56)).astype(np.uint8).reshape(shape)

    def large(height: int, width: int) -> np.ndarray:
        return noise(8, 8, 3).repeat(-(-height // 8), 0).repeat(-(-width // 8), 1)[:height, :width]

    shapes = {"32": (32, 32), "64": (64, 64), "256": (256, 256), "299": (299, 299), "oblong": (20, 350)}
    images = {name: np.stack([noise(*shape, 3), large(*shape)]) for name, shape in shapes.items()}
    checks = (np.indices((32, 32)).sum(0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, -1)
    images["extreme"] = np.stack([np.zeros_like(checks), np.full_like(checks, 255), checks])
    return images


def main() -> None:
    import torch  # imported lazily, since the tests import the images from this file

    fidelity, fid = reference_networks()
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x as resize

    golden, layers = {}, []
    fidelity.Mixed_6d.branch1x1.register_forward_hook(lambda module, inputs, output: layers.append(output))
    for name, images in make_images().items():
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
        features, logits = fidelity(pixels)
        golden |= {f"{name}_features": features.numpy(), f"{name}_logits": logits.numpy()}
        if name in ("32", "299"):
            spatial = layers[-1].permute(0, 2, 3, 1)[..., :7].reshape(len(images), -1)
            golden[f"{name}_spatial"] = spatial.numpy()
        (exact,) = fid((resize(pixels.float(), (299, 299), align_corners=False).double() - 128) / 128)
        error = (exact[:, :, 0, 0] - features).norm() / exact.norm()
        if error > 2e-6:
            raise SystemExit(f"{name}: the references differ by {error:.1e}")
        alive = (features > 0).float().mean()
        spread = features.std(0).mean() / features.std()
        line = f"{name:8} features 0..{features.max():.1f}, {alive:.0%} not 0; between images {spread:.2f} of their spread; "
        print(line + f"the references differ by {error:.1e}")
    state = random_state_dict(SEED)
    golden["weights_crc32"] = np.uint32(zlib.crc32(b"".join(state[name].tobytes() for name in sorted(state))))
    np.savez_compressed(pathlib.Path(__file__).with_suffix(".npz"), **golden)


def reference_networks():
    """torch-fidelity's extractor (uint8 [N, 3, H, W] -> features, logits) and pytorch-fid's network, from one state dict."""
    import torch.library

    # torchvision with another build of PyTorch lacks its operators, which are not needed.
    for name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    torch.library.register_fake = lambda *_, **__: lambda function: function
    import pytorch_fid.inception
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    state = {name: torch.from_numpy(array) for name, array in random_state_dict(SEED).items()}
    state["fc.bias"] = torch.zeros(1008)
    # Batch counters of the norms, which do not affect the results.
    state |= {name.replace("running_mean", "num_batches_tracked"): torch.tensor(0) for name in state if "running_mean" in name}
    with tempfile.NamedTemporaryFile(suffix=".pth") as file:
        torch.save(state, file.name)
        fidelity = FeatureExtractorInceptionV3(
            "inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=file.name
        )
    pytorch_fid.inception.load_state_dict_from_url = lambda *_, **__: state
    fid = pytorch_fid.inception.InceptionV3(resize_input=False, normalize_input=False).double().eval()
    return fidelity, fid


if __name__ == "__main__":
    main()

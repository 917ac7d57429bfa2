"""Improved DDPM on ImageNet at 64x64: Nichol & Dhariwal 2021 (arXiv 2102.09672), learned variance, L_hybrid, 121M parameters.

Command:    python main.py --config=configs/iddpm_imagenet64.py --workdir=runs/iddpm_imagenet64
Data:       TFDS's imagenet_resized/64x64 (van den Oord's small ImageNet), which TFDS downloads and prepares.
Hardware:   eight GPUs or TPU cores and days. On CPUs a step takes minutes; lower train.batch_size to try it.
Expected:   3.57 bits/dim (4,000 steps, 1.5M training steps; with the loss vlb 3.53), as published. Not yet measured here.
"""

from ddpm_jax.configs import iddpm_cifar10


def get_config():
    """The CIFAR-10 config with wider low-resolution levels and without dropout."""
    config = iddpm_cifar10.get_config()
    config.data.name = "imagenet_resized/64x64"
    config.data.image_size = 64
    config.data.num_classes = 1000
    config.model.unet.ch_mult = (1, 2, 3, 4)
    config.model.unet.dropout = 0.0
    config.train.num_steps = 1_500_000
    config.evaluation.heldout_split = "validation"
    return config

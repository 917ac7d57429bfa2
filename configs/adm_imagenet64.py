"""ADM on ImageNet at 64x64, class-conditional: Dhariwal & Nichol 2021 (arXiv 2105.05233), L_hybrid, 295.9M parameters.

Command:    python main.py --config=configs/adm_imagenet64.py --workdir=runs/adm_imagenet64
Data:       TFDS's imagenet_resized/64x64 (van den Oord's small ImageNet), which TFDS downloads and prepares.
Hardware:   published with batch 2048 on many accelerators; here optimizer.accumulation_steps and model.unet.remat save memory.
Expected:   FID 2.07 with 250 steps and without guidance, as published. Not yet measured here.
"""

from ddpm_jax.configs import iddpm_imagenet64


def get_config():
    """Improved DDPM's network, wider, with heads of 64 channels, and resampling in residual blocks; 1,000 steps."""
    config = iddpm_imagenet64.get_config()
    config.model.class_conditional = True
    config.model.unet.ch = 192
    config.model.unet.attn_resolutions = (32, 16, 8)
    config.model.unet.num_heads = 1
    config.model.unet.head_channels = 64
    config.model.unet.resblock_updown = True
    config.model.unet.dropout = 0.1

    config.diffusion.num_timesteps = 1000

    config.optimizer.learning_rate = 3e-4
    config.train.batch_size = 2048
    config.train.num_steps = 540_000
    return config

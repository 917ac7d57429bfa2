"""DDPM on LSUN churches at 256x256 as published: Ho et al. 2020 (arXiv 2006.11239), L_simple, 113.7M parameters.

Command:    python main.py --config=configs/lsun_church256.py --workdir=runs/lsun_church256
Hardware:   published on TPU v3 pods with batch 64. On one accelerator: model.unet.remat, optimizer.accumulation_steps.
Expected:   FID 7.89 (50,000 samples, 1,000 ancestral steps, EMA), as published. Not yet measured here.
"""

from ddpm_jax.configs import celebahq256


def get_config():
    """The CelebA-HQ config with other images and more steps."""
    config = celebahq256.get_config()
    config.data.name = "lsun/church_outdoor"
    config.train.num_steps = 1_200_000
    return config

"""DDPM on CelebA-HQ at 256x256 as published: Ho et al. 2020 (arXiv 2006.11239), L_simple, 113.7M parameters.

Command:    python main.py --config=configs/celebahq256.py --workdir=runs/celebahq256
            TFDS cannot download this set; `tfds build celeb_a_hq/256` prints where to put its files.
Hardware:   published on a TPU v3-128 with batch 64. On one accelerator: model.unet.remat, optimizer.accumulation_steps.
Expected:   the paper shows samples and gives no FID. Not yet measured here.
"""

from ddpm_jax.configs import defaults


def get_config():
    """CelebA-HQ at 256x256; the LSUN configs are based on it."""
    config = defaults.get_config()
    config.data.name = "celeb_a_hq/256"
    config.data.image_size = 256
    config.data.num_classes = 0

    config.model.unet.ch_mult = (1, 1, 2, 2, 4, 4)
    config.model.unet.dropout = 0.0

    config.diffusion.variance = "fixed_small"

    config.optimizer.learning_rate = 2e-5

    config.train.batch_size = 64
    config.train.num_steps = 500_000
    config.sampling.sampler = "ancestral"
    config.sampling.num_steps = 1000
    config.sampling.num_images = 16
    config.sampling.batch_size = 16
    return config

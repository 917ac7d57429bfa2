"""DDPM on CelebA at 64x64, as Song et al. 2020 trained it for DDIM (arXiv 2010.02502): L_simple, 78.7M parameters.

Command:    python main.py --config=configs/celeba64.py --workdir=runs/celeba64
Hardware:   eight GPUs or TPU cores. On CPUs a step takes minutes; lower train.batch_size to try it.
Expected:   FID 3.26 (1,000 steps of DDIM's fixed-large sampler), as published. Not yet measured here, and not directly
            comparable: the published crop is 128 pixels wide around the face, this one the largest centered square.
"""

from ddpm_jax.configs import defaults


def get_config():
    """The network of CIFAR-10 with one more level."""
    config = defaults.get_config()
    config.data.name = "celeb_a"
    config.data.image_size = 64
    config.data.num_classes = 0

    config.model.unet.ch_mult = (1, 2, 2, 2, 4)

    config.train.num_steps = 500_000  # not stated in the paper
    config.sampling.sampler = "ancestral"
    config.sampling.num_steps = 1000
    return config

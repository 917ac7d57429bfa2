"""Improved DDPM on CIFAR-10: Nichol & Dhariwal 2021 (arXiv 2102.09672), learned variance, L_hybrid, 52.5M parameters.

Command:    python main.py --config=configs/iddpm_cifar10.py --workdir=runs/iddpm_cifar10
            For their best bits/dim: --config.diffusion.loss=vlb --config.diffusion.timestep_sampler=second_moment
Hardware:   eight GPUs or TPU cores. On CPUs a step takes tens of seconds; lower train.batch_size to try it.
Expected:   FID 3.19 and 3.17 bits/dim (4,000 steps; with vlb 11.47 and 2.94; with L_simple 3.05 and 3.26), as published.
            Not yet measured here.
"""

from ddpm_jax.configs import defaults


def get_config():
    """DDPM's network with three residual blocks per level, four heads and attention at 16 and 8; 4,000 steps."""
    config = defaults.get_config()
    config.model.unet.num_res_blocks = 3
    config.model.unet.attn_resolutions = (16, 8)
    config.model.unet.num_heads = 4
    config.model.unet.scale_shift = True
    config.model.unet.dropout = 0.3
    config.model.unet.norm_epsilon = 1e-5  # this line and the next two: as in improved-diffusion, so that its weights fit
    config.model.unet.downsample_padding = "symmetric"
    config.model.unet.time_embedding = "iddpm"

    config.diffusion.schedule = "cosine"
    config.diffusion.num_timesteps = 4000
    config.diffusion.variance = "learned_range"
    config.diffusion.loss = "hybrid"

    config.optimizer.learning_rate = 1e-4
    config.optimizer.warmup_steps = 0
    config.optimizer.clip_norm = 0.0
    config.train.num_steps = 500_000
    config.sampling.sampler = "ancestral"
    config.sampling.num_steps = 250  # with a learned variance nearly as good as 4,000, as published
    config.sampling.spacing = "linspace"
    return config

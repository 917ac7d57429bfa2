"""MNIST: 60,000 gray 28x28 images of handwritten digits; a model that trains on a laptop.

Command:    python main.py --config=configs/mnist.py --workdir=runs/mnist
Hardware:   a laptop's CPU, in hours; digits are recognizable within the first hour.
Expected:   no published DDPM uses this set. Not yet measured here.
"""

from ddpm_jax.configs import defaults


def get_config():
    """A U-Net of 1.1M parameters with feature maps of 28, 14 and 7 pixels."""
    config = defaults.get_config()
    config.data.name = "mnist"
    config.data.image_size = 28
    config.data.channels = 1
    config.data.random_flip = False  # a mirrored 2 is not a digit

    config.model.unet.ch = 32
    config.model.unet.ch_mult = (1, 2, 2)
    config.model.unet.num_res_blocks = 1
    config.model.unet.attn_resolutions = (7,)
    config.model.unet.dropout = 0.0

    config.diffusion.schedule = "cosine"

    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 500
    config.ema.decay = 0.999

    config.train.num_steps = 30_000
    config.train.batch_size = 64
    config.train.checkpoint_every = 500
    config.train.keep_period = 0
    config.train.sample_every = 1000

    # DDIM in 50 steps leaves speckles on a third of Fashion-MNIST's garments; stochastic sampling does not.
    config.sampling.sampler = "ancestral"
    config.sampling.num_steps = 250

    config.evaluation.features = "pixels"  # 784 values; Inception was trained on color photographs
    return config

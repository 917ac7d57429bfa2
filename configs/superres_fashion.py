"""Super-resolution of Fashion-MNIST, 7x7 to 28x28 pixels: each training image is conditioned on a small copy of itself.

Command:    python main.py --config=configs/superres_fashion.py --workdir=runs/superres_fashion
Hardware:   two busy CPU cores: 16 minutes at 2 to 4 steps/s, 8 CPU minutes with compilation.
Expected:   loss 0.092 after 3,000 steps; PSNR 19.02 dB (standard error 0.17) for 200 garments of the test set with DDIM in
            50 steps, 15.92 for the bicubic filter; consistency 40.98 dB. docs/super_resolution.md has the picture.
"""

from ddpm_jax.configs import fashion_mnist


def get_config():
    """The Fashion-MNIST config with a network of half the width, conditioned on images of 7x7 pixels."""
    config = fashion_mnist.get_config()
    config.data.condition = "downsample"  # by a factor of 4, the default

    config.model.unet.ch = 16
    config.model.unet.attn_resolutions = ()

    config.diffusion.prediction = "v"  # predicts the image where there is little signal, from the first steps on

    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_steps = 100
    config.ema.decay = 0.995

    config.train.num_steps = 3000
    config.train.batch_size = 16

    config.sampling.sampler = "ddim"
    config.sampling.num_steps = 50
    config.sampling.spacing = "trailing"
    config.sampling.num_images = 24
    config.sampling.batch_size = 24

    config.evaluation.metrics = ("psnr", "frechet")
    config.evaluation.num_images = 1000
    return config

"""The 1,797 handwritten 8x8 digits that come with scikit-learn: no download, minutes of training on a laptop's CPU.

Command:    python main.py --config=configs/digits.py --workdir=runs/digits
Hardware:   two CPU cores: 1:12 until the last image grid, including compilation, at 56 steps/s of 64 images.
Expected:   Fréchet distance 11.8 in pixels (0..16 scale; 1,000 EMA samples, DDIM in 50 steps, against the 1,500 training
            images; 297 held-out real images score 27.5), each digit 9.4 to 10.7 % of the samples by a classifier, as
            measured by benchmarks/digits_quality.py. Class-conditional; a tenth of the labels is dropped, for guidance.
"""

from ddpm_jax.configs import defaults


def get_config():
    """A small U-Net with feature maps of 8 and 4 pixels."""
    config = defaults.get_config()
    config.data.name = "digits"
    config.data.image_size = 8
    config.data.channels = 1
    config.data.random_flip = False  # a mirrored 2 is not a digit

    config.model.unet.ch = 16
    config.model.unet.ch_mult = (1, 2)
    config.model.unet.num_res_blocks = 1
    config.model.unet.attn_resolutions = (4,)
    config.model.unet.dropout = 0.0
    config.model.class_conditional = True
    config.model.label_dropout = 0.1

    config.diffusion.schedule = "cosine"  # the linear one destroys small images early and wastes half of its steps

    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_steps = 100
    config.ema.decay = 0.995

    config.train.num_steps = 2500
    config.train.batch_size = 64
    config.train.checkpoint_every = 500
    config.train.keep_period = 0
    config.train.sample_every = 500
    config.train.sample_num_steps = 0  # use config.sampling: its 50 steps take less time than compiling another sampler

    config.sampling.num_images = 100
    config.sampling.batch_size = 100

    config.evaluation.metrics = ("frechet", "precision_recall", "bits_per_dim")
    config.evaluation.features = "pixels"  # 64 values; Inception was trained on photographs
    config.evaluation.num_images = 1000
    config.evaluation.batch_size = 100
    return config

"""A folder of your own images (PNG, JPEG, WebP, ...) at 64x64; any sizes and file types, no preparation needed.

Command:    python main.py --config=configs/image_folder.py --workdir=runs/image_folder --config.data.data_dir=PATH
            With a subfolder per class, class-conditional: --config.model.class_conditional=True --config.data.num_classes=N
            For images that must not be mirrored, such as text: --config.data.random_flip=False
            To hold images out: --config.data.split="train[:90%]" --config.evaluation.heldout_split="train[90%:]"
            For gray images: --config.data.channels=1. To skip unreadable files: --config.data.on_decode_error=skip
Hardware:   one GPU. On CPUs a step takes tens of seconds; lower data.image_size to 32 and train.batch_size to try it.
Expected:   no published DDPM uses your images. Not yet measured here.
"""

from ddpm_jax.configs import defaults


def get_config():
    """A U-Net with feature maps of 64, 32, 16 and 8 pixels and half the channels of the published ones."""
    config = defaults.get_config()
    config.data.name = "image_folder"
    config.data.image_size = 64
    config.data.num_classes = 0

    config.model.unet.ch = 64
    config.model.unet.ch_mult = (1, 2, 3, 4)

    config.diffusion.schedule = "cosine"  # the linear one destroys small images early and wastes steps
    config.diffusion.prediction = "v"  # on small sets eps makes images tinted and too bright, see docs/colors.md

    config.optimizer.warmup_steps = 1000

    config.train.num_steps = 200_000
    config.train.batch_size = 64
    config.train.checkpoint_every = 1000
    config.train.keep_period = 0
    config.train.sample_every = 2000  # more often than by default, to watch new data closely

    config.sampling.spacing = "logsnr"  # starts at T-1; leading does not, and shifts brightness toward gray: docs/colors.md

    config.evaluation.features = "pixels_16"  # needs no weights; for published numbers use inception and 50,000 images
    config.evaluation.num_images = 1000
    return config

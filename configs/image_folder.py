"""A folder of your own images (PNG, JPEG, WebP, ...) at 64x64: nothing to prepare, any sizes and kinds mixed.

Command:    python main.py --config=configs/image_folder.py --workdir=runs/image_folder --config.data.data_dir=PATH
            With a folder per class, images of a class by: --config.model.class_conditional=True --config.data.num_classes=N
            Text and the like, which must not be mirrored: --config.data.random_flip=False
            Hold some images out: --config.data.split="train[:90%]" --config.evaluation.heldout_split="train[90%:]"
            Gray: --config.data.channels=1. Unreadable files stop it; --config.data.on_decode_error=skip leaves them out.
Hardware:   one GPU. On CPUs a step takes tens of seconds: lower data.image_size to 32 and train.batch_size to see it run.
Expected:   no published DDPM uses your images. Not yet measured here.
"""

from configs import defaults


def get_config():
    """A U-Net over 64, 32, 16 and 8 pixels, half as wide as the published ones."""
    config = defaults.get_config()
    config.data.name = "image_folder"
    config.data.image_size = 64
    config.data.num_classes = 0

    config.model.ch = 64
    config.model.ch_mult = (1, 2, 3, 4)

    config.diffusion.schedule = "cosine"  # small images drown in noise early: the linear one wastes steps
    config.diffusion.prediction = "v"  # small sets: eps tints images and makes them too bright, see docs/colors.md

    config.optimizer.warmup_steps = 1000

    config.train.num_steps = 200_000
    config.train.batch_size = 64
    config.train.checkpoint_every = 1000
    config.train.keep_period = 0
    config.train.sample_every = 2000  # own images are watched more closely than published ones

    config.sampling.spacing = "logsnr"  # from T-1; leading, which starts below it, pulls brightness to gray: docs/colors.md

    config.evaluation.features = "pixels_16"  # needs no weights; for numbers like published ones: inception, 50,000 images
    config.evaluation.num_images = 1000
    return config

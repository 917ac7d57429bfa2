"""DDPM on CIFAR-10 as published: Ho et al. 2020 (arXiv 2006.11239), L_simple, unconditional, 35.7M parameters.

Command:    python main.py --config=configs/cifar10.py --workdir=runs/cifar10
Hardware:   published on a TPU v3-8: 21 steps/s of 128 images, 10.6 hours for all 800,000 steps.
            One NVIDIA H200, model.dtype=bfloat16: 46 steps/s, 4.8 hours.
            On CPUs a step takes tens of seconds; lower train.batch_size to try it.
Expected:   FID 3.17, Inception score 9.46 (50,000 samples, 1,000 ancestral steps, EMA, against the training set),
            as published. Not yet measured here.
Warm-up:    step s uses (s + 1) / warmup_steps of the learning rate; Ho's program is one step behind, at s / warmup_steps.
"""

from ddpm_jax.configs import defaults


def get_config():
    """The defaults are this experiment, except that the published samples take all 1,000 steps."""
    config = defaults.get_config()
    config.sampling.sampler = "ancestral"
    config.sampling.num_steps = 1000
    return config

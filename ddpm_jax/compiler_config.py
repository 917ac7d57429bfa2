"""Derived from a config: settings of the XLA compiler."""

import jax
from ml_collections import ConfigDict

from ddpm_jax import choices, models
from ddpm_jax.cpu import compiler


def configure_cpu(config: ConfigDict, *, own_devices: bool = True) -> None:
    """Set XLA flags for the network on CPUs. Must be called before JAX initializes; accepts a config that is not validated.

    Args:
      config: config of the run.
      own_devices: whether this process may set the number of CPU devices; False in a distributed run.
    """
    options = choices.options_of(config, choices.NETWORK)
    try:
        network = models.make_network(config.model.name, **options | {"out_channels": config.data.channels})
    except ValueError:  # the validation reports it
        return
    if channels := getattr(network, "min_channels", None):
        compiler.set_xla_flags(channels)
        if own_devices:
            compiler.set_num_devices(channels, config.train.batch_size // max(1, config.optimizer.accumulation_steps))


def train_step_options(config: ConfigDict, platform: str = "") -> dict[str, bool] | None:
    """Options of `jax.jit` for the training step: on a GPU, kernels that compute the same bits in each run and process.

    The fastest gradients of convolutions add in no fixed order, and XLA chooses among kernels by timing them.
    `platform` is that of the compiled program, by default JAX's.
    """
    deterministic = config.train.deterministic and (platform or jax.default_backend()) == "gpu"
    return {"xla_gpu_deterministic_ops": True} if deterministic else None

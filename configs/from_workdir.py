"""The config of an existing run: --config=configs/from_workdir.py:runs/digits. Taken by itself where --config is left out."""

from ml_collections import ConfigDict

from configs import defaults
from ddpm_jax import config_file
from ddpm_jax.runtime import workdir
from ddpm_jax.user_messages import UserError


def get_config(folder: str) -> ConfigDict:
    """What `folder`/config.json holds; fields younger than that run have their defaults.

    Raises:
      UserError: there is no such file, or a field in it is not one of configs/defaults.py or not of its type.
    """
    config = defaults.get_config()
    if fault := config_file.update(config, workdir.read_config(folder)):
        raise UserError(
            f"{folder}/config.json cannot be used: {fault}; put the run's config back, or take the version that wrote it"
        )
    return config

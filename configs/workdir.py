"""The config of an existing run: --config=configs/workdir.py:runs/digits. Taken by itself where --config is left out."""

from ml_collections import ConfigDict

from configs import defaults
from ddpm_jax.runtime import workdir


def get_config(folder: str) -> ConfigDict:
    """What `folder`/config.json holds; fields younger than that run have their defaults."""
    config = defaults.get_config()
    with config.unlocked():
        config.update(ConfigDict(workdir.read_config(folder)))
    return config

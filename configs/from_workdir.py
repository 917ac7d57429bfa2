"""The config of an existing run: --config=from_workdir:runs/digits. Used automatically if --config is omitted."""

from ml_collections import ConfigDict

from ddpm_jax import config_file
from ddpm_jax.configs import defaults
from ddpm_jax.runtime import config_changes, workdir
from ddpm_jax.runtime.errors import InvalidArgumentError
from ddpm_jax.user_messages import UserError


def get_config(folder: str) -> ConfigDict:
    """The config in `folder`/config.json, with the defaults of fields that a run of an older version may lack.

    Raises:
      UserError: there is no such file, or it has an unknown field or a value of the wrong type.
      ConflictError: it lacks a field that changes what is trained.
    """
    config, saved = defaults.get_config(), workdir.read_config(folder)
    try:
        config_file.set_fields(config, saved)
    except InvalidArgumentError as error:
        raise UserError(
            f"{folder}/config.json cannot be used: {error}; restore the config of the run, or use the version that wrote it"
        ) from error
    config_changes.check_version(f"{folder}/config.json", saved, config.to_dict())
    return config

"""Derived from config.visualize for format html: whether the page contains the network, and the elements of the network."""

import logging
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from ddpm_jax import build, condition_config, explorer_sizes, user_messages
from ddpm_jax.interop import browser_network, onnx_model, onnxruntime_web
from ddpm_jax.plotting.explorer.page import MAX_BYTES
from ddpm_jax.runtime import paths
from ddpm_jax.runtime.errors import InvalidArgumentError, NumericalError, UnavailableError

logger = logging.getLogger(__name__)

RECORDED = "The recorded chains above show what it does."


class Runtime(NamedTuple):
    """What runs the network in the page.

    Attributes:
      assets: ONNX Runtime; None for a page without its network.
      reason: why the page has no network, for its reader; "" if it has one.
      rounds: whether the parameters are rounded, since the page has no space for all of their bits.
    """

    assets: onnxruntime_web.RuntimeAssets | None
    reason: str
    rounds: bool = False


def check(config: ConfigDict) -> None:
    """Raise a UsageError if config.visualize.onnxruntime_path is not the archive of ONNX Runtime."""
    if archive := _archive(config):
        with user_messages.config_errors("visualize.onnxruntime_path"):
            onnxruntime_web.runtime_assets(archive)


def find_runtime(config: ConfigDict, params: Any) -> Runtime:
    """Whether this run and this machine can give the page a network. The conversion, which takes minutes, comes later.

    Args:
      config: resolved.
      params: the parameters.

    Raises:
      InvalidDataError: the downloaded archive is damaged.
    """
    if not config.visualize.network:
        return Runtime(None, f"This page was written without its network (config.visualize.network). {RECORDED}")
    if config.data.condition:
        return Runtime(None, f"A drawing in this page gives no condition image, so the page has no network. {RECORDED}")
    if not build.pixel_format(config).is_picture(config.data.channels):
        return Runtime(None, f"The page draws gray and RGB images of 8 bits only, so it has no network. {RECORDED}")
    fits, rounds = explorer_sizes.network_fits(config, params)
    if not fits:
        return Runtime(None, _too_large(config, params))
    try:
        for package in ("jax2onnx", "onnxruntime"):
            onnx_model.require(package)
        return Runtime(onnxruntime_web.runtime_assets(_archive(config)), "", rounds)
    except UnavailableError as error:
        return Runtime(None, _failed(error))


def network_elements(config: ConfigDict, params: Any, runtime: Runtime) -> tuple[str, str]:
    """The elements of the network and "", or "" and the reason why the page has no network.

    Args:
      config: resolved.
      params: NumPy arrays of the parameters.
      runtime: from `find_runtime`.
    """
    if runtime.assets is None:
        return "", runtime.reason
    plain = config.copy_and_resolve_references()
    plain.model.dtype = "float32"  # ONNX Runtime has no bfloat16 convolutions for CPUs
    try:
        elements = browser_network.network_elements(
            build.build_denoise_fn(plain, portable=True),
            params,
            image_shape=build.image_shape(config),
            num_timesteps=config.diffusion.num_timesteps,
            num_labels=condition_config.num_labels(config),
            assets=runtime.assets,
            rounds=runtime.rounds,
        )
    except (UnavailableError, InvalidArgumentError, NumericalError) as error:
        return "", _failed(error)
    fits = len(elements) <= explorer_sizes.network_bytes(config)
    return (elements, "") if fits else ("", _too_large(config, params))


def _archive(config: ConfigDict) -> str:
    return str(paths.expand(path)) if (path := config.visualize.onnxruntime_path) else ""


def _too_large(config: ConfigDict, params: Any) -> str:
    left = (explorer_sizes.network_bytes(config) - onnxruntime_web.RUNTIME_BYTES) / 1e6
    reason = (
        f"The network has {explorer_sizes.count(params):,} parameters, more than fit into the {left:.1f} MB that a page of "
        f"{MAX_BYTES // 10**6} MB has for them. {RECORDED}"
    )
    logger.warning(f"warning: the page has no network: {reason}")
    return reason


def _failed(error: Exception) -> str:
    logger.warning(f"warning: the page has no network: {error}")
    return f"The network could not be put into this page: {error}. {RECORDED}"

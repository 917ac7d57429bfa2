"""Images to start from, of the data set or uploaded, as data of a model; and the condition images of one that has them."""

import pathlib
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from ddpm_jax import data_config
from ddpm_jax.api.run import Run
from ddpm_jax.app import checks, pictures
from ddpm_jax.cli import common
from ddpm_jax.data import decode, load
from ddpm_jax.data.condition import Condition, batch_conditions
from ddpm_jax.data.source import ImageSource, center_crop_and_resize
from ddpm_jax.diffusion import pixels
from ddpm_jax.runtime.errors import InvalidArgumentError, UnavailableError
from ddpm_jax.user_messages import UserError

MISSING = "the image is missing: load one from the data set, or upload one"
MAX_SPLITS = 4  # open at once


class StartImages:
    """The images that the modes of editing start from, as config.edit names them."""

    def __init__(self, config: ConfigDict, run: Run, class_names: tuple[str, ...]):
        """Reads nothing yet.

        Args:
          config: resolved, with the data set.
          run: of the model.
          class_names: shown with images of the data set; () for a model without.
        """
        self._config, self._run, self._class_names = config, run, class_names
        self._sources: dict[str, ImageSource] = {}

    @property
    def shape(self) -> tuple[int, ...]:
        """[H, W, C] of an image."""
        return self._run.image_shape

    def of_data(self, split: str, index: int) -> tuple[np.ndarray, str]:
        """An image of the data set, [H, W, C] of its type, and its class; "" if it has none.

        Raises:
          ExpectedError: the set cannot be read, or has no such image.
        """
        batch = self._batch(split, index)
        return batch["image"][0], self._class_of(batch)

    def of_upload(self, picture: Any) -> np.ndarray:
        """An uploaded image as data of the model, [H, W, C] of its type: center-cropped and resized.

        Args:
          picture: path of a file, which is read as config.edit.images; uint8 [h, w, 3 or 4]; or None.

        Raises:
          InvalidArgumentError: there is no picture, or the images of the model are not gray or RGB.
          UserError: the file is not an image.
        """
        self._check_is_picture(picture)
        if isinstance(picture, str):
            return _without_folder(lambda: common.read_original(self._config, picture), picture)
        image = decode.to_uint8(Image.fromarray(np.asarray(picture, np.uint8)), self._background)
        image, pixel_format = center_crop_and_resize(image, self.shape[:2], self.shape[2]), self._run.pixel_format
        return (
            image if pixel_format.dtype == "uint8" else np.asarray(pixel_format.to_data(pixels.from_uint8(jnp.asarray(image))))
        )

    def given(self, image: np.ndarray | None, picture: Any) -> np.ndarray:
        """An image [H, W, C] that the page has read, or, if it has none, that of `picture`; see `of_upload`."""
        return self.of_upload(picture) if image is None else image

    def shown(self, image: np.ndarray) -> np.ndarray:
        """An image [H, W, C] of the data as a large picture, uint8 [H', W', 3]."""
        return pictures.enlarge(self._run.pixel_format.shown(image))

    def require_data(self) -> None:
        """Check that the data set can be read without a download.

        Raises:
          UnavailableError: it is of TFDS, and not prepared.
        """
        data = self._config.data
        if load.needs_download(data.name, data.data_dir):
            raise UnavailableError(f"the data set {data.name} is not on this machine: upload an image")

    def _batch(self, split: str, index: int) -> dict[str, Any]:
        """An image of the data set, as a batch."""
        checks.split(split, (self._config.edit.split, self._config.data.split))
        checks.integer(index, "the index of the image")
        source = self._source(split or self._config.edit.split or self._config.data.split)
        if not 0 <= index < len(source):
            raise InvalidArgumentError(f"image {index} does not exist: {source.name} {source.split} has 0..{len(source) - 1}")
        return source.batch(np.array([index]))

    def _source(self, split: str) -> ImageSource:
        if split not in self._sources:
            self.require_data()
            config = self._config.copy_and_resolve_references()
            config.data.split, config.data.in_memory = split, "never"
            source = data_config.load_source(config)
            while len(self._sources) >= MAX_SPLITS:
                self._sources.pop(next(iter(self._sources)))  # the oldest
            self._sources[split] = source
        return self._sources[split]

    def _class_of(self, batch: dict[str, Any]) -> str:
        return self._class_names[int(batch["label"][0])] if "label" in batch and self._class_names else ""

    @property
    def _background(self) -> tuple[int, int, int]:
        return decode.parse_background(self._config.data.background)

    def _check_is_picture(self, picture: Any) -> None:
        if picture is None:
            raise InvalidArgumentError(MISSING)
        if self.shape[2] not in (1, 3):
            raise InvalidArgumentError(f"the images of this model have {self.shape[2]} channels: use those of its data set")


class ConditionImages(StartImages):
    """The condition images of a model that has them, as config.sampling.condition_images: uint8 [h, w, C]."""

    def __init__(self, config: ConfigDict, run: Run, class_names: tuple[str, ...], condition: Condition):
        """As `StartImages`; `condition` is that of the model."""
        super().__init__(config, run, class_names)
        self._condition = condition

    @property
    def shape(self) -> tuple[int, ...]:
        """[h, w, C] of a condition image."""
        return self._condition.shape

    def of_data(self, split: str, index: int) -> tuple[np.ndarray, str]:
        """The condition image of an image of the data set; see `StartImages.of_data`."""
        batch = self._batch(split, index)
        return batch_conditions(self._condition, batch)[0], self._class_of(batch)

    def of_upload(self, picture: Any) -> np.ndarray:
        """The condition image in a file, of any size; see `StartImages.of_upload`."""
        self._check_is_picture(picture)
        height, width, channels = self.shape
        read = lambda: common.read_image(  # noqa: E731
            picture, size=(height, width), channels=channels, background=self._config.data.background
        )
        return _without_folder(read, picture)

    def shown(self, image: np.ndarray) -> np.ndarray:
        """A condition image as a large picture."""
        return pictures.enlarge(pixels.UINT8.shown(image))


def _without_folder(read: Callable[[], np.ndarray], path: str) -> np.ndarray:
    """read(), with errors that name the file and not its folder, which the user has not chosen."""
    try:
        return read()
    except UserError as error:
        line = str(error).replace(path, pathlib.PurePath(path).name)
        hint = " of a format that is read: use PNG or JPEG" if line.endswith("not an image") else ""
        raise UserError(line + hint) from error

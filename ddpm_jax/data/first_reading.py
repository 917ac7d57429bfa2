"""Reads each file of a set once before training: into memory if it fits, and to collect facts about the files.

These are: the unreadable files, a digest and the range of levels of each file, and the range of the deep gray files. A set
that does not fit into memory keeps them in a manifest, and its later starts read only files that have changed. The manifest is
saved every few minutes, and when the reading is stopped, so that the next start continues it.
"""

import hashlib
import io
import logging
import os
import time
import warnings
from collections.abc import Callable, Sequence

import numpy as np

from ddpm_jax.data import decode, identity, local_copy, value_range
from ddpm_jax.data.folder_manifest import FileFacts, FolderManifest
from ddpm_jax.data.source import center_crop_and_resize, for_each_chunk
from ddpm_jax.runtime import storage
from ddpm_jax.runtime.errors import FileAccessError, InvalidArgumentError, error_line

logger = logging.getLogger(__name__)

CHUNK = 16  # files per task of a thread: photographs are large, and progress should be visible
SAVE_S = 300.0  # time between two saves of the manifest
MANY = 10_000  # files to read from which on the first save is at the start: a cache that cannot be written is known then


class FirstReading:
    """Reads each file once.

    Deep gray files are read a second time, once the levels of all of them are known.

    Args:
      folder: of the files.
      paths: relative to `folder`.
      background: RGB behind transparent pixels.
      shape: (H, W, C) of the decoded images.
      images: uint8 [N, H, W, C] to fill, or None to keep no images.
      cache_dir: folder of the manifest (`local_copy.cache_folder`), in which files that are known are not read again. It is
        only used if no images are kept.
    """

    def __init__(
        self,
        folder: str,
        paths: Sequence[str],
        background: tuple[int, int, int],
        shape: tuple[int, int, int],
        images: np.ndarray | None,
        cache_dir: str = "",
    ):
        self._folder, self._paths, self._background, self._shape, self._images = folder, paths, background, shape, images
        self._facts, self._cache_dir = FileFacts(len(paths)), cache_dir
        self._manifest: FolderManifest | None = None
        self._saved = 0.0  # time.monotonic() of the last save
        self.broken: dict[int, str] = {}

    def open_manifest(self, num_threads: int | None) -> FolderManifest:
        """The manifest of the files; with images to keep, which are all read, it is not used."""
        where = local_copy.cache_folder(self._cache_dir, "manifests")
        self._manifest = FolderManifest(self._folder, self._paths, self._settings(), where, num_threads)
        self._facts = self._manifest.facts
        return self._manifest

    def save(self) -> None:
        """Saves the manifest, if there is one, before `read_deep`."""
        self._saved = time.monotonic()
        if self._manifest is not None:
            self._manifest.save(levels_known=not self._facts.deep)

    def read_some(self, indices: Sequence[int], num_threads: int | None) -> None:
        """Reads the files at `indices` into the facts of the manifest, and adds to `broken`."""
        self._for_each(indices, (), num_threads)

    def read_all(self, num_threads: int | None) -> None:
        """Reads every file that is not known and sets `broken`: index -> reason."""
        unread: Sequence[int] = range(len(self._paths))
        if self._images is None:
            unread = np.flatnonzero(~self.open_manifest(num_threads).known).tolist()
            if len(unread) < len(self._paths):
                logger.info(
                    f"{self._folder}: {len(self._paths) - len(unread):,} files have not changed since they were checked "
                    f"({self._manifest.file}), {len(unread):,} are new or have changed"
                )
        if not len(unread):
            return
        self._saved = time.monotonic() - (len(unread) > MANY) * SAVE_S
        try:
            self._for_each(unread, (), num_threads, between=self._save_at_times)
        except BaseException:
            self.save()
            if self._manifest is not None:
                there = int((self._manifest.known | self._manifest.read).sum())
                logger.info(f"{self._folder}: {there:,} of {len(self._paths):,} files are checked: the next start continues")
            raise
        self.save()

    def _save_at_times(self) -> None:
        if time.monotonic() - self._saved >= SAVE_S:
            self.save()

    def read_deep(self, levels: Sequence[float], num_threads: int | None) -> tuple[float, ...]:
        """Reads the deep files again, with the range `levels` or the detected one. Returns that range; () without deep files.

        Raises:
          InvalidArgumentError: no range fits.
        """
        facts = self._facts
        if not facts.deep:
            return tuple(levels)
        found = not levels
        if found:
            try:
                levels = value_range.find_range(list(facts.deep.values()))
            except ValueError as error:
                raise InvalidArgumentError(f"`levels` is not set, and in {self._folder} {error}") from error
        named = {self._paths[index]: measured for index, measured in facts.deep.items()}
        logger.info(f"{self._folder}: {value_range.describe_range(named, tuple(levels), found=found)}")
        levels = tuple(float(level) for level in levels)
        known = (
            self._manifest.known if self._manifest is not None and facts.levels == levels else np.zeros(len(self._paths), bool)
        )
        facts.levels = levels
        if unread := [index for index in sorted(facts.deep) if not known[index]]:
            self._for_each(unread, levels, num_threads)
            if self._manifest is not None:
                self._manifest.save()
        return levels

    def fingerprint(self, kept: Sequence[int] | None, prefix: str = "") -> str:
        """Fingerprint of the files with these indices, by default all; `prefix`, the folder of a split, is ignored."""
        chosen, digests = range(len(self._paths)) if kept is None else kept, self._facts.digests.tobytes()
        return identity.files_fingerprint(
            (self._paths[index].removeprefix(prefix), digests[32 * index : 32 * index + 32]) for index in chosen
        )

    def deep(self) -> list[value_range.DeepLevels]:
        """Levels of the files of more than 8 bits."""
        return list(self._facts.deep.values())

    def all_equal(self, kept: Sequence[int] | None) -> bool:
        """Whether there are several files, all with the same content."""
        digests = self._facts.digests if kept is None else self._facts.digests[list(kept)]
        return len(digests) > 1 and bool((digests == digests[0]).all())

    def extremes(self, kept: Sequence[int] | None) -> tuple[np.ndarray, np.ndarray]:
        """The lowest and the highest level of each image with these indices, by default all."""
        chosen = slice(None) if kept is None else list(kept)
        return self._facts.least[chosen], self._facts.most[chosen]

    def _for_each(
        self,
        indices: Sequence[int],
        levels: tuple[float, ...],
        num_threads: int | None,
        between: Callable[[], None] = lambda: None,
    ) -> None:
        def read_chunk(positions: range) -> None:
            for index in (indices[position] for position in positions):
                try:
                    self._read(index, levels)
                    if self._manifest is not None:
                        self._manifest.read[index] = True
                except decode.ImageDecodeError as error:
                    self.broken[index] = str(error)

        title = f"{self._folder}: {'checked' if self._images is None else 'read'}"
        with warnings.catch_warnings():  # not in the threads, which share one set of filters
            warnings.filterwarnings("ignore", module=r"PIL\.")  # invalid EXIF metadata, large photographs
            for_each_chunk(read_chunk, len(indices), chunk=CHUNK, title=title, num_threads=num_threads, between=between)

    def _settings(self) -> str:
        """What the facts depend on."""
        return f"images {self._shape} on {self._background}"

    def _read(self, index: int, levels: tuple[float, ...]) -> None:
        """Reads a file into the facts; raises decode.ImageDecodeError if it is broken."""
        try:
            content = storage.read_file(os.path.join(self._folder, self._paths[index]))
        except FileAccessError:
            raise
        except OSError as error:
            raise decode.ImageDecodeError(error_line(error)) from error
        facts = self._facts
        facts.digests[index] = np.frombuffer(hashlib.sha256(content).digest(), np.uint8)
        with decode.open_image(io.BytesIO(content)) as picture:
            if decode.is_deep(picture) and not levels:
                facts.deep[index] = decode.measure_deep(picture)
                return
            if decode.is_deep(picture):
                facts.deep.setdefault(index, decode.measure_deep(picture))
            image = center_crop_and_resize(decode.to_uint8(picture, self._background, levels), self._shape[:2], self._shape[2])
        facts.least[index], facts.most[index] = image.min(), image.max()
        if self._images is not None:
            self._images[index] = image

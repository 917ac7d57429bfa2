"""The first reading of an image folder by several processes: each reads a part of the files, and all get what it finds.

What is found is saved in the manifest of each host (`data/folder_manifest.py`). The set is loaded after that, as usual, and
finds its files known. Nothing else depends on this step: without it, each host reads all files.
"""

import logging
from collections.abc import Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from ddpm_jax import data_config
from ddpm_jax.data import image_folder
from ddpm_jax.data.first_reading import FirstReading
from ddpm_jax.data.folder_manifest import FolderManifest
from ddpm_jax.data.value_range import DeepLevels
from ddpm_jax.runtime import distributed, exchange

logger = logging.getLogger(__name__)

CHUNK = 1024  # files of a process between two points at which the processes wait for each other


def read_parts(config: ConfigDict, split: str = "") -> None:
    """Reads the new and changed files of the folder of config.data, a part in each process. All processes call this.

    It does nothing if one process runs alone, if the set is not an image folder or fits in the memory of one host, or if the
    files of the hosts differ in name, size or time.

    Args:
      config: resolved.
      split: by default that of config.data.

    Raises:
      ExpectedError: the folder cannot be listed or read.
    """
    data = config.data
    if jax.process_count() == 1 or data.name != "image_folder" or not data.data_dir:
        return
    first, manifest = None, None
    with distributed.raise_on_all_processes():
        first = image_folder.open_first_reading(
            data.data_dir,
            image_size=data.image_size,
            channels=data.channels,
            split=split or data.split,
            background=data.background,
            in_memory=data_config.IN_MEMORY[data.in_memory],
            cache_dir=data.cache_dir,
        )
        manifest = first.open_manifest(data.num_threads) if first else None
    state = manifest.state_digest if manifest else b""
    states = {found.tobytes() for found in exchange.gather(np.frombuffer(state, np.uint8))}
    if first and manifest and len(states) == 1:
        _read(first, manifest, data.num_threads)


def _read(first: FirstReading, manifest: FolderManifest, num_threads: int) -> None:
    """Reads the files that any process does not know, and saves what all have found."""
    unread = np.flatnonzero(exchange.total((~manifest.known).astype(np.int32)))
    part = exchange.own_part(len(unread))
    own = unread[part.start : part.stop]
    if not len(unread):
        return
    logger.info(f"{len(unread):,} files are checked, by {jax.process_count()} processes")
    longest = -(-len(unread) // jax.process_count())
    for start in range(0, longest, CHUNK):
        with distributed.raise_on_all_processes():
            first.read_some(own[start : start + CHUNK].tolist(), num_threads)
    read = [index for index in own.tolist() if index not in first.broken]
    _share(manifest, read)
    there = np.concatenate(exchange.gather(np.array(read, np.int64)))
    manifest.save(np.setdiff1d(unread, there).tolist())


def _share(manifest: FolderManifest, read: Sequence[int]) -> None:
    """Sends the facts of the files that this process has read, and adds those of the others."""
    facts = manifest.facts
    indices = exchange.concatenate(np.array(read, np.int64))
    facts.digests[indices] = exchange.concatenate(facts.digests[read])
    facts.least[indices], facts.most[indices] = (exchange.concatenate(array[read]) for array in (facts.least, facts.most))
    deep = [(index, *facts.deep[index]) for index in read if index in facts.deep]
    for index, least, most, is_float in exchange.concatenate(np.array(deep, np.float64).reshape(-1, 4)).tolist():
        facts.deep[int(index)] = DeepLevels(least, most, bool(is_float))

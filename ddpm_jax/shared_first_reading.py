"""The first reading of a folder by several processes: each reads a part of the files, and all get what it finds.

The files are images or arrays. What is found is saved in the manifest of each host (`data/folder_manifest.py`), several times
if there are many files. The set is loaded after that, as usual, and finds its files known. Nothing else depends on this step:
without it, each host reads all files.
"""

import logging
from collections.abc import Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from ddpm_jax import data_config
from ddpm_jax.data import array_folder, image_folder
from ddpm_jax.data.first_reading import FirstReading
from ddpm_jax.data.folder_manifest import FolderManifest
from ddpm_jax.data.value_range import DeepLevels
from ddpm_jax.runtime import distributed, exchange

logger = logging.getLogger(__name__)

CHUNK = 1024  # files of a process between two points at which the processes wait for each other
SHARE = 200 * CHUNK  # files of a process after which all processes save what they have found


def read_parts(config: ConfigDict, split: str = "") -> None:
    """Reads the new and changed files of the folder of config.data, a part in each process. All processes call this.

    It does nothing if one process runs alone, if the set is not a folder or fits in the memory of one host, or if the
    files of the hosts differ in name, size or time.

    Args:
      config: resolved.
      split: by default that of config.data.

    Raises:
      ExpectedError: the folder cannot be listed or read.
    """
    data = config.data
    if jax.process_count() == 1 or data.name not in ("image_folder", "array_folder") or not data.data_dir:
        return
    first, manifest = None, None
    with distributed.raise_on_all_processes():
        first = _open(data, split or data.split)
        manifest = first.open_manifest(data.num_threads) if first else None
    state = manifest.state_digest if manifest else b""
    states = {found.tobytes() for found in exchange.gather(np.frombuffer(state, np.uint8))}
    if first and manifest and len(states) == 1:
        _read(first, manifest, data.num_threads)


def _open(data: ConfigDict, split: str) -> FirstReading | None:
    """The first reading of the folder; None if it fits in memory."""
    common = {
        "image_size": data.image_size,
        "channels": data.channels,
        "split": split,
        "in_memory": data_config.IN_MEMORY[data.in_memory],
        "cache_dir": data.cache_dir,
    }
    if data.name == "array_folder":
        return array_folder.open_first_reading(data.data_dir, array_dtype=data.dtype, **common)
    return image_folder.open_first_reading(data.data_dir, background=data.background, **common)


def _read(first: FirstReading, manifest: FolderManifest, num_threads: int) -> None:
    """Reads the files that any process does not know, and saves what all have found."""
    unread = np.flatnonzero(exchange.total((~manifest.known).astype(np.int32)))
    part = exchange.own_part(len(unread))
    own = unread[part.start : part.stop].tolist()
    if not len(unread):
        return
    logger.info(f"{len(unread):,} files are checked, by {jax.process_count()} processes")
    longest = -(-len(unread) // jax.process_count())
    for begin in range(0, longest, SHARE):
        for start in range(begin, min(begin + SHARE, longest), CHUNK):
            with distributed.raise_on_all_processes():
                first.read_some(own[start : min(start + CHUNK, begin + SHARE)], num_threads)
        _share(manifest, [index for index in own[begin : begin + SHARE] if index not in first.broken])
        first.save()
        if longest > SHARE:
            logger.info(f"{min((begin + SHARE) / longest, 1):.0%} of the files are checked")


def _share(manifest: FolderManifest, read: Sequence[int]) -> None:
    """Sends the facts of the files that this process has read, and adds those of the others."""
    facts = manifest.facts
    indices = exchange.concatenate(np.array(read, np.int64))
    manifest.read[indices] = True
    facts.digests[indices] = exchange.concatenate(facts.digests[read])
    facts.least[indices], facts.most[indices] = (exchange.concatenate(array[read]) for array in (facts.least, facts.most))
    deep = [(index, *facts.deep[index]) for index in read if index in facts.deep]
    for index, least, most, is_float in exchange.concatenate(np.array(deep, np.float64).reshape(-1, 4)).tolist():
        facts.deep[int(index)] = DeepLevels(least, most, bool(is_float))

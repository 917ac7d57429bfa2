"""The cache of generated images: none is lost or repeated, and different settings never mix."""

import resource
import signal

import numpy as np
import pytest

from ddpm_jax.evaluation import sample_cache
from ddpm_jax.evaluation.sample_cache import SampleCache
from ddpm_jax.runtime.errors import ConflictError, FileAccessError, InvalidDataError

IMAGES = np.random.default_rng(0).integers(0, 256, (23, 4, 4, 3), dtype=np.uint8)
KIND = {"step": 6, "sampler": "ddim", "spacing": (1, 2)}


def fill(cache, ranges):
    for chunk in ranges:
        cache.write(chunk.start, IMAGES[chunk.start : chunk.stop])


def held(cache, number, batch_size):
    batches = list(cache.batches(number, batch_size))
    assert all(0 < len(batch) <= batch_size for batch in batches)
    return np.concatenate(batches)


def test_chunks_written_in_any_order_are_read_in_order(tmp_path):
    cache = SampleCache(tmp_path / "a" / "b", KIND)
    assert cache.missing(23) == [range(0, 23)]
    fill(cache, [range(10, 16), range(0, 5)])
    assert cache.missing(23) == [range(5, 10), range(16, 23)]
    assert cache.missing(12) == [range(5, 10)]
    assert cache.missing(4) == []
    with pytest.raises(InvalidDataError, match=r"lacks images 5\.\.9: run the same command again"):
        next(cache.batches(23, 4))
    again = SampleCache(tmp_path / "a" / "b", KIND)
    fill(again, again.missing(23))
    for size in (1, 4, 100):
        np.testing.assert_array_equal(held(again, 23, size), IMAGES)
        np.testing.assert_array_equal(held(again, 12, size), IMAGES[:12])


def test_a_kill_while_writing_loses_only_that_chunk(tmp_path, log_lines):
    """Truncated, empty, corrupted and partial files: their images are missing, and logged."""
    cache = SampleCache(tmp_path, KIND)
    fill(cache, [range(0, 8), range(8, 16), range(16, 23)])
    torn = tmp_path / "images_00000008.npz"
    whole = torn.read_bytes()
    (tmp_path / ".images_00000023.npz.partial").write_bytes(whole[:50])
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for damaged in (whole[: len(whole) // 2], b"", bytes(flipped)):
        torn.write_bytes(damaged)
        log_lines.clear()
        assert cache.missing(23) == [range(8, 16)]
        assert len(log_lines) == 1
        assert "is damaged" in log_lines[0]
    fill(cache, cache.missing(23))
    np.testing.assert_array_equal(held(cache, 23, 5), IMAGES)


def test_different_settings_are_an_error_that_lists_the_fields(tmp_path):
    SampleCache(tmp_path, KIND)
    SampleCache(tmp_path, KIND)
    with pytest.raises(ConflictError, match=r'different settings: sampler was "ddim", now "ancestral"\.'):
        SampleCache(tmp_path, KIND | {"sampler": "ancestral"})
    with pytest.raises(ConflictError, match=r"different settings, or by another version of this program: seed was null"):
        SampleCache(tmp_path, KIND | {"seed": 1})
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(InvalidDataError, match="cannot be read"):
        SampleCache(tmp_path, KIND)


def test_a_full_disk_is_a_one_line_error_and_keeps_earlier_chunks(tmp_path):
    cache = SampleCache(tmp_path, KIND)
    fill(cache, [range(0, 8)])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400, before[1]))
    try:
        with pytest.raises(FileAccessError, match="what was generated before is kept") as caught:
            cache.write(8, IMAGES[8:16])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert "\n" not in str(caught.value)
    assert cache.missing(16) == [range(8, 16)]
    assert {file.name for file in tmp_path.iterdir()} == {"manifest.json", "images_00000000.npz"}


def test_a_part_is_read_from_its_chunks_only(tmp_path, monkeypatch):
    images = np.arange(40, dtype=np.uint8).reshape(40, 1, 1, 1)
    cache = SampleCache(tmp_path, {"seed": 1})
    for first in range(0, 40, 8):
        cache.write(first, images[first : first + 8])
    read, opened = sample_cache._read, []
    monkeypatch.setattr(sample_cache, "_read", lambda file, *name: opened.append(file.name) or read(file, *name))
    reader = SampleCache(tmp_path, {"seed": 1}, is_writer=False)
    found = list(reader.batches(30, 4, first=13))
    np.testing.assert_array_equal(np.concatenate(found), images[13:30])
    assert {len(batch) for batch in found} <= {1, 2, 3, 4}
    assert set(opened) == {f"images_{first:08d}.npz" for first in (8, 16, 24)}
    assert list(reader.batches(13, 4, first=13)) == []
    (tmp_path / "images_00000016.npz").write_bytes(b"")
    with pytest.raises(InvalidDataError, match=r"lacks images 16\.\.23"):
        list(SampleCache(tmp_path, {"seed": 1}).batches(30, 4, first=13))
    cache.write(15, images[15:25])  # a chunk that overlaps its neighbors
    np.testing.assert_array_equal(
        np.concatenate(list(SampleCache(tmp_path, {"seed": 1}).batches(30, 4, first=18))), images[18:30]
    )
    # The names alone do not show that chunk 8 ends before 16 here.
    (tmp_path / "images_00000015.npz").unlink()
    cache.write(8, images[8:20])
    cache.write(10, images[10:12])
    cache.write(20, images[20:24])
    np.testing.assert_array_equal(
        np.concatenate(list(SampleCache(tmp_path, {"seed": 1}).batches(30, 4, first=14))), images[14:30]
    )

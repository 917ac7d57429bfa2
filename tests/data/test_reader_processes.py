"""Processes that read batches: the same batches as threads, errors as in the training process, and no process that is left."""

import concurrent.futures
import contextlib
import itertools
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.data import pipeline, reader_processes
from ddpm_jax.data.array_folder import load_array_folder
from ddpm_jax.data.image_folder import load_image_folder
from ddpm_jax.data.image_pairs import load_pairs
from ddpm_jax.data.prepare import prepare
from ddpm_jax.data.prepare_target import Settings
from ddpm_jax.data.prepared import load_prepared
from ddpm_jax.data.source import LazySource
from ddpm_jax.runtime.errors import InvalidArgumentError, InvalidDataError, UnavailableError
from tests.conftest import REPOSITORY

COUNT = 13


@pytest.fixture
def photographs(tmp_path):
    random = np.random.default_rng(0)
    for index in range(COUNT):
        folder = tmp_path / "photos" / ("cats", "dogs")[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (6, 6, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return tmp_path / "photos"


def folder_source(folder, **options):
    return load_image_folder(str(folder), image_size=4, channels=3, in_memory=False, **options)


def take(source, count, **options):
    options = {"batch_size": 6, "seed": 3, **options}
    with contextlib.closing(pipeline.batches(source, **options)) as iterator:
        return list(itertools.islice(iterator, count))


def assert_same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
            assert (one[name].dtype, one[name].flags.writeable) == (other[name].dtype, True)


def slow_source(seconds=0.0):
    """Labels are the indices, so that a batch shows its order."""

    def read(index):
        time.sleep(seconds)
        return np.full((2, 2, 1), index, np.uint8), index

    return LazySource(read, 50, image_size=2, channels=1, num_classes=50, name="numbers", split="train")


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [1, 2])
def test_the_batches_are_those_of_threads(photographs, tmp_path, num_workers):
    """Folder, pairs, prepared set and arrays; also from a later step, and for the second of two hosts."""
    folder = folder_source(photographs)
    pairs = load_pairs(folder, str(photographs), image_size=4, channels=1, in_memory=False)
    prepare(str(photographs), str(tmp_path / "set"), Settings(4))
    prepared = load_prepared("train", folder=str(tmp_path / "set"), in_memory=False)
    (tmp_path / "arrays").mkdir()
    for index in range(5):
        np.save(tmp_path / "arrays" / f"{index}.npy", np.full((4, 4, 5), index, np.uint16))
    size = {"image_size": 4, "channels": 5, "array_dtype": "uint16"}
    arrays = load_array_folder(str(tmp_path / "arrays"), in_memory=False, **size)
    for source in (folder, pairs, prepared, arrays):
        assert_same(take(source, 9, num_workers=num_workers), take(source, 9))
    late = take(folder, 4, num_workers=num_workers, start_step=5, prefetch=1)
    assert_same(late, take(folder, 9)[5:])
    host = {"process_index": 1, "process_count": 2}
    assert_same(take(folder, 4, num_workers=num_workers, **host), take(folder, 4, **host))


def test_a_set_in_memory_is_read_in_this_process(photographs, monkeypatch):
    source = load_image_folder(str(photographs), image_size=4, channels=3)
    half, pairs = (
        load_pairs(source, str(photographs), image_size=4, channels=1, in_memory=in_memory) for in_memory in (False, True)
    )
    assert reader_processes.usable_workers(half, 2) == 2
    monkeypatch.setattr(reader_processes, "iterate", None)
    for each in (source, pairs):
        assert_same(take(each, 3, num_workers=2), take(each, 3))


def test_a_source_that_cannot_be_copied_is_refused_at_once():
    lock = threading.Lock()
    source = LazySource(lambda index: lock, 4, image_size=2, channels=1, name="locked", split="train")
    with pytest.raises(InvalidArgumentError, match=r"`num_workers` is 2, but the data set locked cannot be copied.*=0`"):
        pipeline.batches(source, batch_size=2, seed=0, num_workers=2)


@pytest.mark.slow
def test_an_error_is_that_of_the_training_process(photographs):
    source = folder_source(photographs)
    (photographs / "cats" / "2.png").write_bytes(b"no image")
    messages = []
    for num_workers in (0, 2):
        with pytest.raises(InvalidDataError) as caught:
            take(source, 3, num_workers=num_workers)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert "cats/2.png" in messages[0]


@pytest.mark.slow
def test_an_unexpected_error_has_the_traceback_of_its_process():
    class Local(Exception):
        def __init__(self, one, two):
            super().__init__(f"{one} and {two}")

    def read(index):
        raise Local("one", "two")

    source = LazySource(read, 4, image_size=2, channels=1, name="broken", split="train")
    with pytest.raises(RuntimeError, match="Local: one and two"):  # it cannot be copied
        take(source, 1, num_workers=1)

    def divide(index):
        return np.zeros((2, 2, 1), np.uint8) // 0 if index is None else 1 // 0

    source = LazySource(divide, 4, image_size=2, channels=1, name="broken", split="train")
    with pytest.raises(ZeroDivisionError) as caught:
        take(source, 1, num_workers=1)
    assert "in divide" in caught.value.__notes__[0]


@pytest.mark.slow
def test_a_killed_process_is_an_error_of_one_line():
    with contextlib.closing(pipeline.batches(slow_source(0.05), batch_size=4, seed=0, num_workers=2)) as iterator:
        next(iterator)
        os.kill(children(os.getpid())[0], signal.SIGKILL)
        with pytest.raises(UnavailableError, match=r"process that reads the data set numbers ended with code -9\. If it was"):
            list(itertools.islice(iterator, 50))


@pytest.mark.slow
def test_signals_of_the_group_end_no_process():
    """Ctrl-C and SIGTERM reach all processes, but the training process needs the batches of its last step."""
    with contextlib.closing(pipeline.batches(slow_source(), batch_size=4, seed=0, num_workers=2, prefetch=2)) as iterator:
        found = [next(iterator)]
        found_processes = children(os.getpid())
        assert len(found_processes) == 2
        for child in found_processes:
            os.kill(child, signal.SIGINT)
            os.kill(child, signal.SIGTERM)
        found += itertools.islice(iterator, 8)
    assert_same(found, take(slow_source(), 9, batch_size=4, seed=0))


@pytest.mark.slow
def test_signals_of_the_group_end_no_process_that_starts():
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    iterator = pipeline.batches(slow_source(), batch_size=4, seed=0, num_workers=1)
    with contextlib.closing(iterator), concurrent.futures.ThreadPoolExecutor(1) as thread:
        first = thread.submit(next, iterator)
        while not (found := children(os.getpid())):
            time.sleep(0.001)
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(found[0], number)
        assert_same([first.result()], take(slow_source(), 1, batch_size=4, seed=0))
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


@pytest.mark.slow
def test_closing_ends_the_processes():
    iterator = pipeline.batches(slow_source(0.01), batch_size=4, seed=0, num_workers=2)
    next(iterator)
    assert len(children(os.getpid())) == 2
    iterator.close()
    assert children(os.getpid()) == []


@pytest.mark.slow
def test_a_killed_parent_leaves_no_process_and_no_memory(tmp_path):
    """Also if the program has no main guard."""
    program = tmp_path / "program.py"
    program.write_text(
        f"""
import sys, time
sys.path.insert(0, {str(REPOSITORY)!r})
import numpy as np
from ddpm_jax.data import pipeline
from ddpm_jax.data.source import LazySource

def read(index):
    time.sleep(0.01)
    return np.zeros((2, 2, 1), np.uint8), None

source = LazySource(read, 10, image_size=2, channels=1, name="slow", split="train", num_threads=2)
iterator = pipeline.batches(source, batch_size=4, seed=0, num_workers=2)
next(iterator)
print("ready", flush=True)
time.sleep(100)
"""
    )
    before = sorted(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else None
    with subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE, text=True) as parent:
        try:
            assert parent.stdout.readline() == "ready\n"
            found = children(parent.pid)
        finally:
            parent.kill()
    assert len(found) == 2
    deadline = time.monotonic() + 10
    while any(map(is_reader, found)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(is_reader, found))
    if before is not None:
        assert sorted(os.listdir("/dev/shm")) == before


def test_the_number_of_batches_in_memory():
    assert reader_processes.places(2, 8) == 8
    assert reader_processes.places(4, 1) == 4


def children(parent):
    """Process ids of the readers that `parent` has started."""
    return [pid for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))) if parent_of(pid) == parent and is_reader(pid)]


def parent_of(pid):
    """None for a process that has ended."""
    try:
        state, parent = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return None
    return None if state == "Z" else int(parent)


def is_reader(pid):
    try:
        return b"reader_processes" in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False

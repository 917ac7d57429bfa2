"""Missing images are generated while earlier ones are written, and each is written once, in order."""

import collections
import threading

import numpy as np
import pytest

from ddpm_jax.evaluation.generation import generate_missing
from ddpm_jax.runtime.errors import FileAccessError
from ddpm_jax.samplers.batched import GeneratedBatch

SAVED = np.zeros((4, 0, 2, 2, 1), np.float32)


class FakeSampler:
    """Batches of 4 images, whose levels are their indices; records which batches were begun."""

    def __init__(self):
        self.begun = []
        self.has_begun = collections.defaultdict(threading.Event)

    def generate(self, params, key, *, num_images, first_image, cond, report):
        assert cond is None or len(cond) == num_images
        for first in range(first_image, first_image + num_images, 4):
            self.begun.append(first)
            self.has_begun[first].set()
            report(first - first_image + 0.5)
            count = min(4, first_image + num_images - first)
            images = np.full((count, 2, 2, 1), np.arange(first, first + count)[:, None, None, None], np.uint8)
            yield GeneratedBatch(images, None, SAVED[:count], SAVED[:count])


def run(sampler, write, gaps=(range(0, 12),), num_images=12, **options):
    generate_missing(lambda first: sampler, None, None, gaps, None, write, num_images=num_images, **options)


def test_a_batch_is_begun_before_the_one_before_is_written():
    """In a serial loop the next batch would begin only after the write that waits for it."""
    sampler, written = FakeSampler(), []

    def write(first, batch):
        if first < 8:
            assert sampler.has_begun[first + 4].wait(10), f"batch {first + 4} waits for the write of {first}"
        assert not sampler.has_begun[first + 12].is_set()  # no more than one ahead
        written.append((first, batch.images[:, 0, 0, 0].tolist()))

    run(sampler, write)
    assert written == [(first, list(range(first, first + 4))) for first in (0, 4, 8)]


def test_gaps_and_the_split_are_kept():
    sampler, written = FakeSampler(), []
    gaps = [range(2, 9), range(11, 12)]
    run(sampler, lambda first, batch: written.append(batch.images[:, 0, 0, 0].tolist()), gaps=gaps, split_at=3)
    assert written == [[2], [3, 4, 5, 6], [7, 8], [11]]


@pytest.mark.parametrize("failing", [0, 8])
def test_a_failed_write_ends_the_command_with_its_error(failing):
    """Soon, also in the middle of a batch; the last one too. What was written before stays."""
    sampler, written = FakeSampler(), []

    def write(first, batch):
        if first == failing:
            raise FileAccessError("cannot write images: no space left on device")
        written.append(first)

    with pytest.raises(FileAccessError, match="no space left"):
        run(sampler, write)
    assert written == list(range(0, failing, 4))
    assert sampler.begun[-1] <= failing + 4


def test_an_error_in_a_batch_waits_for_the_write_of_the_one_before():
    written, go = [], threading.Event()

    class Breaks(FakeSampler):
        def generate(self, *args, **options):
            batches = super().generate(*args, **options)
            yield next(batches)
            threading.Timer(0.1, go.set).start()
            raise FloatingPointError("NaN")

    def write(first, batch):
        assert go.wait(10)
        written.append(first)

    with pytest.raises(FloatingPointError, match="NaN"):
        run(Breaks(), write)
    assert written == [0]

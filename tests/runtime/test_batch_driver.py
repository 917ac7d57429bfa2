"""The driver of batches: each image once and in order, with its own key, whatever the batch size and the devices."""

import jax
import numpy as np
import pytest

from ddpm_jax.runtime import mesh as meshes
from ddpm_jax.runtime.batch_driver import SHARDED, BatchDriver, chunk_size

ROWS = np.arange(22, dtype=np.float32).reshape(11, 2)


def driver(devices, batch_size):
    return BatchDriver(meshes.make_mesh(jax.devices()[:devices]), batch_size)


def noisy(made, ahead=0, **options):
    """Each row with a draw of its key, and the batches as they were computed."""
    seen = []

    def draw(rows, key_data):
        keys = jax.random.wrap_key_data(key_data)
        return rows, jax.vmap(jax.random.uniform)(keys), None

    shared = jax.jit(made.shard(draw, (SHARDED, SHARDED)))

    def compute(batch):
        seen.append(batch)
        return shared(batch.inputs, batch.key_data)

    parts = list(made.run(compute, made.split(ROWS, len(ROWS)), key=jax.random.key(3), ahead=ahead, **options))
    assert all(nothing is None for *_, nothing in parts)
    return np.concatenate([rows for rows, *_ in parts]), np.concatenate([draws for _, draws, _ in parts]), seen


@pytest.mark.parametrize(("devices", "batch_size", "ahead"), [(1, 3, 0), (2, 16, 0), (8, 5, 0), (2, 4, 1), (1, 3, 7)])
def test_each_image_once_with_its_own_key(devices, batch_size, ahead):
    made = driver(devices, batch_size)
    assert made.batch_size % devices == 0
    assert 0 <= made.batch_size - batch_size < devices
    rows, draws, seen = noisy(made, ahead=ahead, first_image=5)
    np.testing.assert_array_equal(rows, ROWS)
    keys = [jax.random.fold_in(jax.random.key(3), 5 + i) for i in range(11)]
    np.testing.assert_array_equal(draws, [jax.random.uniform(key) for key in keys])
    assert {batch.inputs.shape for batch in seen} == {(made.batch_size, 2)}
    assert [batch.first for batch in seen] == list(range(5, 16, made.batch_size))
    assert sum(batch.count for batch in seen) == 11


@pytest.mark.parametrize("devices", [1, 8])
def test_rows_that_a_host_reads_itself(devices):
    """One host has all rows; the last image is repeated as padding."""
    made, asked = driver(devices, 8), []

    def batches():
        for first, count in ((0, 8), (8, 3)):
            yield count, lambda rows, first=first: asked.append(rows.tolist()) or (ROWS[first + rows], None)

    parts = list(made.run(lambda batch: batch.inputs, batches()))
    np.testing.assert_array_equal(np.concatenate([rows for rows, _ in parts]), ROWS)
    assert asked == [list(range(8)), [0, 1, 2, 2, 2, 2, 2, 2]]


def test_progress_is_reported_between_chunks_and_after_each_batch():
    made, reports = driver(1, 4), []

    def compute(batch):
        assert list(batch.chunks(6, 2)) == [0, 2, 4]
        return batch.inputs

    list(made.run(compute, made.split(ROWS, 6), report=reports.append))
    np.testing.assert_allclose(reports, [4 / 3, 8 / 3, 4, 4 + 2 / 3, 4 + 4 / 3, 6], rtol=1e-12)


def test_batches_ahead_are_computed_before_the_first_is_gathered():
    made, order = driver(1, 4), []

    def batches():
        for count, rows in made.split(ROWS, 11):
            order.append("read")
            yield count, rows

    for _ in made.run(lambda batch: batch.inputs, batches(), ahead=1):
        order.append("yield")
    assert order == ["read", "read", "yield", "read", "yield", "yield"]


def test_a_batch_is_started_before_the_one_before_is_gathered_and_computed_after():
    made, order = driver(1, 4), []

    def start(batch):
        order.append(f"start {batch.first}")
        return batch.inputs + 1

    def compute(batch, started):
        order.append(f"compute {batch.first}")
        return started

    rows = []
    for part in made.run(compute, made.split(ROWS, 11), start=start):
        order.append("yield")
        rows.append(part)
    np.testing.assert_array_equal(np.concatenate(rows), ROWS + 1)
    assert order == ["start 0", "compute 0", "start 4", "yield", "compute 4", "start 8", "yield", "compute 8", "yield"]


def test_chunks_are_few_and_of_equal_size():
    """A prime number of steps has as many chunks as its neighbors."""
    assert [chunk_size(*pair) for pair in ((1000, 50), (40, 25), (7, 6), (12, 12), (997, 50))] == [50, 20, 4, 12, 50]
    for num_steps in range(1, 400):
        chunks = list(range(0, num_steps, chunk_size(num_steps, 25)))
        assert len(chunks) == -(-num_steps // 25)
        assert chunk_size(num_steps, 25) <= 25

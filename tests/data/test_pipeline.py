"""Sources and `center_crop_and_resize`; order, sharding, resume and clean shutdown of the input pipeline."""

import itertools
import subprocess
import sys
import threading
import time

import cloudpickle
import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from PIL import Image

from ddpm_jax.data import device_prefetch, example_order, pipeline
from ddpm_jax.data.source import ArraySource, LazySource, center_crop_and_resize
from ddpm_jax.runtime.errors import InvalidArgumentError

NOISE = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)


def array_source(n, labelled=True):
    """Every image encodes its index, and so does its label."""
    images = np.zeros((n, 2, 2, 1), np.uint8)
    images[:, 0, 0, 0], images[:, 0, 1, 0] = np.arange(n) % 256, np.arange(n) // 256
    labels, classes = (np.arange(n), n) if labelled else (None, 0)
    return ArraySource(images, labels, num_classes=classes, name="numbered", split="train")


def lazy_source(n):
    source = array_source(n)

    def read(index):
        example = source.batch(np.array([index]))
        return example["image"][0], int(example["label"][0])

    return LazySource(read, n, image_size=2, channels=1, num_classes=n, name="lazy", split="train", num_threads=3)


def fetching_source(n, calls=None):
    """As `lazy_source`, of records that are fetched for a batch in one call."""
    source = array_source(n)

    def fetch(indices):
        if calls is not None:
            calls.append(indices)
        return [source.batch(np.array([index])) for index in indices]

    def read(record):
        return record["image"][0], int(record["label"][0])

    return LazySource(read, n, image_size=2, channels=1, num_classes=n, name="lazy", split="train", fetch=fetch)


def spelled(batch):
    return batch["image"][:, 0, :, 0].astype(int) @ [1, 256]


def take(source, n, **options):
    iterator = pipeline.batches(source, **{"batch_size": 8, "seed": 0, **options})
    result = list(itertools.islice(iterator, n))
    iterator.close()
    return result


def test_records_of_a_batch_are_fetched_in_one_call():
    calls = []
    batch = fetching_source(300, calls).batch(np.array([5, 290, 5]))
    assert calls == [[5, 290, 5]]
    assert spelled(batch).tolist() == batch["label"].tolist() == [5, 290, 5]
    assert fetching_source(300, calls).batch(np.array([], int))["image"].shape == (0, 2, 2, 1)
    assert len(calls) == 1


def test_a_copy_of_a_lazy_source_has_its_own_threads():
    source = fetching_source(300)
    copy = cloudpickle.loads(cloudpickle.dumps(source))
    assert spelled(copy.batch(np.array([7, 299]))).tolist() == [7, 299]
    assert copy._pool is not source._pool


@pytest.mark.parametrize("make", [array_source, lazy_source, fetching_source])
def test_labels_match_images(make):
    for batch in take(make(300), 40):
        assert batch["image"].shape == (8, 2, 2, 1)
        assert batch["image"].dtype == np.uint8
        assert batch["label"].dtype == np.int32
        np.testing.assert_array_equal(spelled(batch), batch["label"])


def test_no_labels_no_label_key():
    assert take(array_source(20, labelled=False), 1)[0].keys() == {"image"}


@pytest.mark.parametrize(("n", "batch_size"), [(300, 8), (64, 8), (13, 5), (5, 13), (3, 64), (1, 4)])
def test_every_epoch_is_a_new_permutation(n, batch_size):
    epochs = max(4, -(-batch_size // n))
    order = np.concatenate([spelled(b) for b in take(array_source(n), -(-epochs * n // batch_size), batch_size=batch_size)])
    order = order[: epochs * n].reshape(epochs, n)
    for epoch in order:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(n))
    if n >= 13:  # shorter permutations repeat by chance
        assert len({epoch.tobytes() for epoch in order}) == epochs


def test_permutations_are_independent():
    """Orders of different epochs and of adjacent seeds are uncorrelated."""
    n = 20_000
    orders = np.array([example_order.permutation(seed, epoch, n) for seed in range(4) for epoch in range(4)])
    correlations = np.corrcoef(orders)[np.triu_indices(16, 1)] * np.sqrt(n)  # standard normal each
    assert np.abs(correlations).max() < 5
    within = [np.corrcoef(o[1:], o[:-1])[0, 1] * np.sqrt(n) for o in orders]
    assert np.abs(within).max() < 5


def test_order_never_changes():
    """A run resumed with newer libraries must see the same order, so these numbers must never change."""
    assert example_order.batch_indices(0, num_examples=10, batch_size=10, seed=0).tolist() == [0, 8, 9, 3, 7, 5, 1, 2, 6, 4]
    assert example_order.batch_indices(3, num_examples=10, batch_size=4, seed=7).tolist() == [6, 1, 4, 8]


@pytest.mark.parametrize("process_count", [2, 4])
def test_processes_share_the_global_batch(process_count):
    whole = take(array_source(50), 20)
    parts = [take(array_source(50), 20, process_index=p, process_count=process_count) for p in range(process_count)]
    for step, batch in enumerate(whole):
        for name, array in batch.items():
            assert len(parts[0][step][name]) == 8 // process_count
            np.testing.assert_array_equal(np.concatenate([part[step][name] for part in parts]), array)


@pytest.mark.parametrize("threads", [{"num_threads": 0}, {"num_threads": 3, "prefetch": 5}])
def test_start_step_equals_skipping(threads):
    source = array_source(50)
    for expected, batch in zip(take(source, 30)[17:], take(source, 13, start_step=17, **threads), strict=True):
        np.testing.assert_array_equal(expected["label"], batch["label"])


def test_a_late_start_costs_no_more():
    began = time.monotonic()
    late = take(array_source(50), 1, start_step=10**12)
    assert time.monotonic() - began < 1  # reading 10**12 batches would take years
    expected = example_order.batch_indices(10**12, num_examples=50, batch_size=8, seed=0)
    np.testing.assert_array_equal(late[0]["label"], expected)


def test_seeds_differ():
    orders = {np.concatenate([b["label"] for b in take(array_source(50), 6, seed=seed)]).tobytes() for seed in range(5)}
    assert len(orders) == 5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 10, "process_count": 4}, "10.*4 processes"),
        ({"batch_size": 0}, "positive"),
        ({"seed": -1}, "negative"),
    ],
)
def test_bad_arguments_are_rejected_immediately(options, words):
    with pytest.raises(InvalidArgumentError, match=words):
        pipeline.batches(array_source(50), **{"batch_size": 8, "seed": 0, **options})


def test_empty_source():
    with pytest.raises(InvalidArgumentError, match=r"numbered.*empty"):
        pipeline.batches(array_source(0, labelled=False), batch_size=8, seed=0)


def test_reading_error_reaches_the_caller():
    def read(index):
        raise OSError("disk gone")

    source = LazySource(read, 10, image_size=2, channels=1, name="broken", split="train")
    with pytest.raises(OSError, match="disk gone"):
        take(source, 1)


@pytest.mark.parametrize("index", [-1, 50, 10**6])
@pytest.mark.parametrize("make", [array_source, lazy_source])
def test_index_outside_the_set(make, index):
    with pytest.raises(IndexError, match=r"0 \.\. 49"):
        make(50).batch(np.array([0, index]))


@pytest.mark.parametrize(
    "image", [np.zeros((2, 2, 3), np.uint8), np.zeros((2, 1, 1), np.uint8), np.zeros((2, 2, 1), np.float32)]
)
def test_lazy_source_rejects_a_wrong_image(image):
    source = LazySource(lambda index: (image, None), 4, image_size=2, channels=1, name="odd", split="train")
    with pytest.raises(ValueError, match="odd: example 3"):
        source.batch(np.array([3]))


def data_sharding(devices=8):
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
    return NamedSharding(mesh, PartitionSpec("data"))


@pytest.mark.parametrize("devices", [1, 8])
def test_prefetch_keeps_order_and_shards(devices):
    sharding = data_sharding(devices)
    on_device = device_prefetch.prefetch_to_device(iter(take(array_source(50), 7)), sharding)
    received = list(on_device)
    assert len(received) == 7
    for expected, batch in zip(take(array_source(50), 7), received, strict=True):
        for name, array in expected.items():
            assert batch[name].sharding.is_equivalent_to(sharding, array.ndim)
            assert batch[name].dtype == array.dtype
            np.testing.assert_array_equal(batch[name], array)


def test_prefetch_takes_one_batch_first_then_stays_ahead():
    taken = []

    def counted():
        for batch in take(array_source(50), 9):
            taken.append(batch)
            yield batch

    on_device = device_prefetch.prefetch_to_device(counted(), data_sharding())
    assert not taken
    lengths = []
    for _ in on_device:
        lengths.append(len(taken))
    assert lengths == [1, 3, 4, 5, 6, 7, 8, 9, 9]


def prefetch_threads():
    return {t for t in threading.enumerate() if t.name.startswith("grain-prefetch")}


@pytest.mark.parametrize("forget", [False, True])
def test_closing_or_deleting_stops_the_threads(forget):
    before = prefetch_threads()
    on_host = pipeline.batches(array_source(50), batch_size=8, seed=0)
    on_device = device_prefetch.prefetch_to_device(on_host, data_sharding())
    next(on_device)
    assert prefetch_threads() - before
    if forget:
        del on_device, on_host
    else:
        on_device.close()  # also closes the host iterator, which is still referenced here
    deadline = time.monotonic() + 10
    while prefetch_threads() - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not prefetch_threads() - before


def test_closing_cancels_pending_reads():
    begun = []

    class Slow(ArraySource):
        def batch(self, indices):
            begun.append(time.monotonic())
            time.sleep(0.02)
            return super().batch(indices)

    source = Slow(np.zeros((5, 2, 2, 1), np.uint8), name="slow", split="train")
    iterator = pipeline.batches(source, batch_size=1, seed=0, num_threads=1, prefetch=50)
    next(iterator)
    iterator.close()
    closed = len(begun)
    time.sleep(0.4)  # time for twenty more
    assert len(begun) <= closed + 1


def test_interpreter_exits_with_batches_in_flight():
    """Neither a pending read nor an open iterator keeps the program alive or causes an error."""
    program = """
import time, numpy as np
from ddpm_jax.data.pipeline import batches
from ddpm_jax.data.source import LazySource
def read(index):
    time.sleep(0.05)
    return np.zeros((2, 2, 1), np.uint8), None
source = LazySource(read, 10, image_size=2, channels=1, name="slow", split="train", num_threads=2)
iterator = batches(source, batch_size=2, seed=0)
next(iterator)
print("read")
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "read\n", "")


# Sources: conversion of an image before the pipeline.


@pytest.mark.parametrize("channels", [1, 3])
def test_fitting_image_is_untouched(channels):
    image = NOISE[0][..., :channels]
    np.testing.assert_array_equal(center_crop_and_resize(image, 8, channels), image)


def test_gray_and_color():
    gray = NOISE[0][..., 0]
    np.testing.assert_array_equal(center_crop_and_resize(gray, 8, 1)[..., 0], gray)
    np.testing.assert_array_equal(center_crop_and_resize(gray, 8, 3), np.repeat(gray[..., None], 3, -1))
    luma = NOISE[0] @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(
        center_crop_and_resize(NOISE[0], 8, 1)[..., 0], luma, atol=0.51
    )  # half a level, and 16-bit weights
    np.testing.assert_array_equal(
        center_crop_and_resize(center_crop_and_resize(NOISE[0], 8, 1), 8, 3)[..., 1:2], center_crop_and_resize(NOISE[0], 8, 1)
    )


def test_alpha_is_dropped():
    opaque = NOISE[0]
    with_alpha = np.concatenate([opaque, NOISE[1][..., :1]], -1)
    np.testing.assert_array_equal(center_crop_and_resize(with_alpha, 8, 3), opaque)
    np.testing.assert_array_equal(center_crop_and_resize(with_alpha[..., 2:], 8, 1), opaque[..., 2:])


@pytest.mark.parametrize("transpose", [False, True])
def test_other_shapes_are_cropped_to_the_central_square(transpose):
    """Bands at the ends of the long side are removed; the square is kept."""
    wide = np.zeros((6, 16, 3), np.uint8)
    wide[:, 5:11] = NOISE[0][:6, :6]
    image = wide.swapaxes(0, 1) if transpose else wide
    expected = NOISE[0][:6, :6]
    np.testing.assert_array_equal(center_crop_and_resize(image, 6, 3), expected.swapaxes(0, 1) if transpose else expected)


def test_shrinking_is_antialiased():
    """A fine checkerboard becomes its mean; without antialiasing it would become black or white."""
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    small = center_crop_and_resize(board, 8, 1)
    assert np.abs(small.astype(int) - 127).max() <= 4
    flat = np.full((40, 64, 3), 77, np.uint8)
    np.testing.assert_array_equal(center_crop_and_resize(flat, 16, 3), np.full((16, 16, 3), 77))


def test_resizing_does_not_shift():
    """Resizing commutes with mirroring, so pixel centers are correct."""
    picture = np.asarray(Image.effect_mandelbrot((48, 48), (-2, -1.5, 1, 1.5), 50))
    for size in (32, 64):
        np.testing.assert_array_equal(
            center_crop_and_resize(picture[:, ::-1], size, 1), center_crop_and_resize(picture, size, 1)[:, ::-1]
        )


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.float32), np.zeros((4, 4, 5), np.uint8), np.zeros((0, 4, 3), np.uint8)])
def test_invalid_images(image):
    with pytest.raises(ValueError, match="must be uint8"):
        center_crop_and_resize(image, 4, 3)


def test_sources_reject_inconsistent_arguments():
    images = np.zeros((3, 4, 4, 1), np.uint8)
    for arguments, options in (
        ((images.astype(np.float64),), {}),
        ((images[..., 0],), {}),
        ((images, np.arange(3)), {}),
        ((images,), {"num_classes": 3}),
        ((images, np.arange(4)), {"num_classes": 4}),
    ):
        with pytest.raises(ValueError, match=r"uint8|together|match"):
            ArraySource(*arguments, **options, name="x", split="train")

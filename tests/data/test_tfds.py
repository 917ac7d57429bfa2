"""Reading and preparing TFDS sets: real ones if available, and a small synthetic one."""

import concurrent.futures
import glob
import importlib.util
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds

from ddpm_jax.data import tfds as our_tfds
from ddpm_jax.data.source import ArraySource, ImageSource, LazySource, center_crop_and_resize
from ddpm_jax.data.tfds import load_tfds
from ddpm_jax.runtime import storage
from ddpm_jax.runtime.errors import InvalidArgumentError, UnavailableError

NOISE = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)


class DdpmTinyNoise(tfds.core.GeneratorBasedBuilder):
    """Twelve images of noise, each with its own label."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {"image": tfds.features.Image(shape=(8, 8, 3)), "label": tfds.features.ClassLabel(num_classes=12)}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(12), "test": self._generate_examples(4)}

    def _generate_examples(self, count):
        for index in range(count):
            yield index, {"image": NOISE[index], "label": index}


def load(name, split="train", **options):
    return load_tfds(name, split, **{"image_size": 8, "channels": 3, **options})


def everything(source):
    return source.batch(np.arange(len(source)))


def error_of(kind, name, split="train", **options):
    """The error message of a failed load, always one line."""
    with pytest.raises(kind) as caught:
        load(name, split, **options)
    assert issubclass(type(caught.value), kind)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture(scope="session")
def prepared(tmp_path_factory, logged):
    """data_dir with the tiny set, prepared on its first use, and the log lines."""
    folder = tmp_path_factory.mktemp("tfds")
    with logged() as lines:
        load("ddpm_tiny_noise", data_dir=str(folder))
    return folder, lines


@pytest.fixture
def copy(prepared, tmp_path):
    """The version folder of a copy of the prepared set, to be damaged; its data_dir is two above."""
    shutil.copytree(prepared[0], tmp_path, dirs_exist_ok=True)
    return tmp_path / "ddpm_tiny_noise" / "1.0.0"


@pytest.fixture(params=["tiny", "cifar10", "fashion_mnist"])
def a_set(request, prepared, real_data):
    """(name, data_dir, image_size, channels, examples, classes) of the split "test"."""
    if request.param == "tiny" or real_data is None:
        # Without real sets these two cover a part of a split and gray images.
        return {
            "tiny": ("ddpm_tiny_noise", prepared[0], "test", 8, 3, 4, 12),
            "cifar10": ("ddpm_tiny_noise", prepared[0], "train[:7]", 8, 3, 7, 12),
            "fashion_mnist": ("ddpm_tiny_noise", prepared[0], "train", 8, 1, 12, 12),
        }[request.param]
    return {
        "cifar10": ("cifar10", real_data / "tfds", "test", 32, 3, 1000, 10),
        "fashion_mnist": ("fashion_mnist", real_data / "tfds", "test", 28, 1, 10_000, 10),
    }[request.param]


def test_reads_what_tfds_reads(a_set):
    name, data_dir, split, image_size, channels, examples, classes = a_set
    sources = {
        in_memory: load(name, split, data_dir=str(data_dir), image_size=image_size, channels=channels, in_memory=in_memory)
        for in_memory in ("auto", False)
    }
    assert isinstance(sources["auto"], ArraySource)
    assert isinstance(sources[False], LazySource)
    reference = tfds.data_source(name, split=split, data_dir=data_dir)
    chosen = np.random.default_rng(0).permutation(examples)[:50]
    for source in sources.values():
        assert isinstance(source, ImageSource)
        assert len(source) == len(reference) == examples
        assert (source.name, source.split, source.num_classes) == (name, split, classes)
        assert source.image_shape == (image_size, image_size, channels)
        batch = source.batch(chosen)
        assert batch["image"].dtype == np.uint8
        assert batch["label"].dtype == np.int32
        for row, index in enumerate(chosen):
            expected = reference[int(index)]
            np.testing.assert_array_equal(batch["image"][row], center_crop_and_resize(expected["image"], image_size, channels))
            assert batch["label"][row] == expected["label"]


def test_prepares_on_first_use(prepared):
    folder, lines = prepared
    assert len(lines) == 1
    assert "preparing" in lines[0]
    assert str(folder) in lines[0]
    batch = everything(load("ddpm_tiny_noise", data_dir=str(folder)))
    assert sorted(batch["label"]) == list(range(12))
    np.testing.assert_array_equal(batch["image"], NOISE[batch["label"]])  # PNG loses nothing


def test_of_a_set_in_a_bucket_only_the_shards_of_the_split_are_copied(prepared, bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    storage.upload_folder(prepared[0], storage.path(bucket))
    remote, local = (load("ddpm_tiny_noise", "test[:3]", data_dir=str(place)) for place in (bucket, prepared[0]))
    assert np.array_equal(everything(remote)["image"], everything(local)["image"])
    assert remote.fingerprint == local.fingerprint
    copied = {file.name for file in tmp_path.rglob("*array_record*")}
    assert copied == {"ddpm_tiny_noise-test.array_record-00000-of-00001"}
    everything(load("ddpm_tiny_noise", "train+test", data_dir=bucket))
    assert len(list(tmp_path.rglob("*array_record*"))) == 2
    assert "data set cifar10 is not prepared in gs://" in error_of(UnavailableError, "cifar10", data_dir=bucket)


def test_several_processes_prepare_a_shared_data_dir_once(tmp_path, monkeypatch, log_lines):
    """As on the hosts of a pod, but with threads, since locks belong to open files. The others wait, then read the set."""
    began = threading.Event()
    prepare = tfds.core.DatasetBuilder.download_and_prepare

    def slow(self, *args, **kwargs):
        began.set()
        time.sleep(0.5)
        prepare(self, *args, **kwargs)

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", slow)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        first = pool.submit(load, "ddpm_tiny_noise", data_dir=str(tmp_path))
        assert began.wait(60)
        # The second process found nothing prepared either and gets the lock only now.
        found = iter([None])
        find = our_tfds.find_prepared
        monkeypatch.setattr(our_tfds, "find_prepared", lambda *args: next(found, None) or find(*args))
        second = pool.submit(load, "ddpm_tiny_noise", data_dir=str(tmp_path))
        assert len(first.result()) == len(second.result()) == 12
    assert ["preparing" in log_lines[0], "waiting for another process" in log_lines[1], len(log_lines)] == [True, True, 2]


def test_another_process_was_faster_where_files_cannot_be_locked(tmp_path, monkeypatch):
    prepare = tfds.core.DatasetBuilder.download_and_prepare

    def beaten(self, *args, **kwargs):
        prepare(self, *args, **kwargs)
        raise OSError("Directory not empty")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", beaten)
    monkeypatch.setitem(sys.modules, "fcntl", None)  # no locks
    assert len(load("ddpm_tiny_noise", data_dir=str(tmp_path))) == 12


def test_default_data_dir(prepared, monkeypatch):
    """An empty data_dir is TFDS's own default."""
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(prepared[0]))
    assert len(load("ddpm_tiny_noise", data_dir="")) == 12


def test_home_is_expanded(prepared, monkeypatch):
    monkeypatch.setenv("HOME", str(prepared[0].parent))
    assert len(load("ddpm_tiny_noise", data_dir=f"~/{prepared[0].name}")) == 12


def test_prepared_set_needs_neither_tensorflow_nor_network(prepared, real_data):
    program = """
import importlib.machinery, socket, sys
find = importlib.machinery.PathFinder.find_spec
importlib.machinery.PathFinder.find_spec = classmethod(  # as if tensorflow were not installed
    lambda cls, name, path=None, target=None: None if name.split(".")[0] == "tensorflow" else find(name, path, target))
def fail(*args, **kwargs):
    raise AssertionError("the network was tried")
socket.getaddrinfo = socket.create_connection = socket.socket.connect = fail
from ddpm_jax.data.tfds import load_tfds
for name, data_dir, size, channels in SETS:
    for in_memory in (True, False):
        source = load_tfds(name, "test", data_dir=data_dir, image_size=size, channels=channels, in_memory=in_memory)
        print(name, len(source), source.batch([0])["image"].shape)
assert "tensorflow" not in sys.modules
"""
    sets = [("ddpm_tiny_noise", str(prepared[0]), 8, 3)]
    expected = ["ddpm_tiny_noise 4 (1, 8, 8, 3)"] * 2
    if real_data is not None:
        sets.append(("cifar10", str(real_data / "tfds"), 32, 3))
        expected += ["cifar10 1000 (1, 32, 32, 3)"] * 2
    command = [sys.executable, "-W", "error", "-c", program.replace("SETS", repr(sets))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.splitlines() == expected, done.stderr


def restamp(folder, version):
    """A prepared copy under another version number."""
    other = folder.parent / version
    shutil.copytree(folder, other)
    info = json.loads((other / "dataset_info.json").read_text())
    (other / "dataset_info.json").write_text(json.dumps(info | {"version": version}))
    return other


@pytest.mark.parametrize("version", ["0.9.0", "1.2.0"])
def test_another_version_than_this_tfds_prepares(copy, version):
    restamp(copy, version)
    shutil.rmtree(copy)
    assert len(load("ddpm_tiny_noise", data_dir=str(copy.parent.parent))) == 12


def test_newest_version_wins_unless_one_is_asked_for(copy):
    # 1.10.0 is newer than 1.9.0, though not in the alphabet. Each is recognized by its class names.
    for version, label in (("1.9.0", "a"), ("1.10.0", "b")):
        (restamp(copy, version) / "label.labels.txt").write_text("".join(f"{label}{i}\n" for i in range(12)))
    data_dir = str(copy.parent.parent)
    expected = {"ddpm_tiny_noise": "b0", "ddpm_tiny_noise:1.9.0": "a0", "ddpm_tiny_noise:1.*.*": "b0"}
    found = {name: our_tfds.find_prepared(name, data_dir).info.features["label"].names[0] for name in expected}
    assert found == expected


def test_images_are_cropped_and_resized(prepared):
    rgb = everything(load("ddpm_tiny_noise", data_dir=str(prepared[0])))
    for image_size, channels in ((8, 1), (4, 3), (16, 1)):
        batch = everything(load("ddpm_tiny_noise", data_dir=str(prepared[0]), image_size=image_size, channels=channels))
        assert batch["image"].shape == (12, image_size, image_size, channels)
        np.testing.assert_array_equal(batch["image"], [center_crop_and_resize(i, image_size, channels) for i in rgb["image"]])


def test_large_sets_stay_on_disk(prepared, monkeypatch):
    size = 12 * 8 * 8 * 3
    for limit, kind in ((size, ArraySource), (size - 1, LazySource)):
        monkeypatch.setattr("ddpm_jax.data.source.MEMORY_LIMIT", limit)
        assert type(load("ddpm_tiny_noise", data_dir=str(prepared[0]))) is kind


# User errors.


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cifar_10", "did you mean cifar10"),
        ("CIFAR10", "did you mean cifar10"),
        ("fashion-mnist", "did you mean fashion_mnist"),
        ("zzzzqqqq", "catalog"),
        ("", "catalog"),
        ("lsun/bedrooms", "bedroom"),
        ("cifar10/gray", "use cifar10"),
        ("cifar10:9.9.9", "only: 3"),
        ("imdb_reviews", "not a set of images"),
    ],
)
def test_unknown_set(tmp_path, name, words):
    message = error_of(InvalidArgumentError, name, data_dir=str(tmp_path))
    assert words in message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("split", ["validation", "train[", "train[:0]", ""])
def test_unknown_split(prepared, split):
    message = error_of(InvalidArgumentError, "ddpm_tiny_noise", split, data_dir=str(prepared[0]))
    assert repr(split) in message
    assert "test" in message


def test_channels(prepared):
    assert "`channels` is 4" in error_of(InvalidArgumentError, "ddpm_tiny_noise", data_dir=str(prepared[0]), channels=4)


@pytest.fixture
def no_download(monkeypatch):
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", lambda *a, **k: pytest.fail("download was tried"))
    for variable in [v for v in os.environ if v.lower().endswith("_proxy")]:
        monkeypatch.delenv(variable)


def test_missing_set_offline(tmp_path, monkeypatch, no_download):
    def unreachable(address, timeout):
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(socket, "create_connection", unreachable)
    began = time.monotonic()
    message = error_of(UnavailableError, "mnist", data_dir=str(tmp_path))
    assert time.monotonic() - began < 5
    assert "storage.googleapis.com cannot be reached" in message
    assert str(tmp_path) in message
    assert "`data_dir`" in message


def test_missing_set_without_tensorflow(tmp_path, monkeypatch, no_download):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    message = error_of(UnavailableError, "mnist", data_dir=str(tmp_path))
    assert "pip install tensorflow-cpu" in message


def test_without_tfds_the_advice_is_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    message = error_of(UnavailableError, "mnist")
    assert "'mnist' is read with TensorFlow Datasets, and the package tensorflow_datasets is not installed" in message
    assert "pip install tensorflow-datasets importlib_resources" in message


def test_set_to_be_downloaded_by_hand(tmp_path, no_download):
    assert str(tmp_path / "downloads" / "manual") in error_of(UnavailableError, "celeb_a_hq", data_dir=str(tmp_path))


def test_finished_downloads_need_no_network(tmp_path, monkeypatch):
    (tmp_path / "downloads" / "x").mkdir(parents=True)
    (tmp_path / "downloads" / "x" / "train.gz.INFO").touch()
    monkeypatch.setattr(socket, "create_connection", lambda *a, **k: pytest.fail("network was tried"))
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", failing_download)
    message = error_of(UnavailableError, "mnist", data_dir=str(tmp_path))
    assert "could not be prepared" in message
    assert "ConnectionError: connection lost" in message


def failing_download(self, **options):
    raise ConnectionError("connection lost\nwith a long story")


def cut_records(folder):
    for file in glob.glob(str(folder / "*train.array_record*")):
        os.truncate(file, 1000)


def lose_records(folder):
    for file in glob.glob(str(folder / "*train.array_record*")):
        os.remove(file)


def cut_info(folder):
    (folder / "dataset_info.json").write_text("{")


def lose_info(folder):
    (folder / "dataset_info.json").unlink()


def cut_features(folder):
    (folder / "features.json").write_text("{")


@pytest.mark.parametrize("damage", [cut_records, lose_records, cut_info, lose_info, cut_features])
def test_damaged_set(copy, damage):
    damage(pathlib.Path(copy))
    data_dir = str(copy.parent.parent)
    message = error_of(UnavailableError, "ddpm_tiny_noise", data_dir=data_dir)
    assert "cannot be read" in message
    assert data_dir in message


def test_set_without_random_access(tmp_path):
    tfds.builder("ddpm_tiny_noise", data_dir=tmp_path).download_and_prepare(file_format="tfrecord")
    message = error_of(UnavailableError, "ddpm_tiny_noise", data_dir=str(tmp_path))
    assert "prepared as tfrecord" in message

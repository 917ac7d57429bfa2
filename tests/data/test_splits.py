"""Splits and slices of sets outside TFDS."""

import numpy as np
import pytest

from ddpm_jax.data import splits


def test_the_names_of_splits():
    assert splits.split_folders(["train", "test"]) == ["test", "train"]
    assert splits.split_folders(["train", "val"]) == ["train", "val"]
    assert splits.split_folders(["train"]) == ["train"]
    assert splits.split_folders(["test", "val"]) == []  # nothing to train on
    assert splits.split_folders(["train", "cats"]) == []


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("train", [("train", range(10))]),
        ("valid", [("val", range(4))]),
        ("train[:90%]", [("train", range(9))]),
        ("train[90%:]", [("train", range(9, 10))]),
        ("train[:3]", [("train", range(3))]),
        ("train[-3:]", [("train", range(7, 10))]),
        ("train[:3]+validation[50%:]", [("train", range(3)), ("val", range(2, 4))]),
    ],
)
def test_select(spec, expected):
    assert splits.select(spec, {"train": 10, "val": 4}) == expected


@pytest.mark.parametrize(
    "spec",
    [
        "test",
        "",
        "trian",
        "train[",
        "train[:x]",
        "train[:10%",
        "test[:10]",
        "train[:11]",
        "train[1.5:]",
        "train[:1shard]",
        "train[-101%:]",
        "+",
    ],
)
def test_an_unknown_split_lists_the_splits(spec):
    with pytest.raises(ValueError, match=r"choose one of train, val, or a part such as train\[:90%\]"):
        splits.select(spec, {"train": 10, "val": 4})


SPECS = [
    "train[:90%]",
    "train[90%:]",
    "train[-25%:]",
    "train[12.5%:37.5%]",
    "train[10%:50]",
    "train[2:-1]",
    "train[:-33%]+val[1:]",
]


@pytest.mark.parametrize("spec", SPECS)
def test_the_same_examples_as_in_tfds(spec):
    import tensorflow_datasets as tfds

    for size in (3, 7, 10, 99, 1797):
        sizes = {"train": size, "val": 4}
        infos = {name: tfds.core.SplitInfo(name=name, shard_lengths=[n], num_bytes=0) for name, n in sizes.items()}
        parts = tfds.core.ReadInstruction.from_spec(spec).to_absolute(infos)
        expected = [(part.splitname, range(sizes[part.splitname])[part.from_ : part.to]) for part in parts]
        assert [(name, list(part)) for name, part in splits.select(spec, sizes)] == [(n, list(part)) for n, part in expected]


def test_every_prefix_of_the_shuffled_order_has_the_class_proportions():
    paths = [f"{index}.png" for index in range(100)]
    labels = np.repeat([0, 1], [75, 25])
    order = splits.mixed_order(paths, labels)
    assert sorted(order.tolist()) == list(range(100))
    for count in range(1, 101):
        assert abs((labels[order[:count]] == 1).sum() - count / 4) <= 1  # up to one image
    assert order.tolist() != splits.mixed_order(paths).tolist()


def test_the_relative_order_does_not_depend_on_other_files():
    """An added file changes the positions of others, not their order."""
    paths = [f"{index}.png" for index in range(20)]
    before = [paths[index] for index in splits.mixed_order(paths)]
    more = [*paths, "new.png"]
    after = [more[index] for index in splits.mixed_order(more)]
    assert [path for path in after if path != "new.png"] == before


def test_a_slice_past_the_end_is_an_error():
    with pytest.raises(ValueError, match="10 examples"):
        splits.select("train[:1000]", {"train": 10})

"""The identity of a data set, and descriptions of changes."""

import numpy as np
import pytest

from ddpm_jax.data import digits, identity
from ddpm_jax.data.source import ArraySource


def made(**changes):
    return {"count": 10, "class_names": ["cat", "dog"], "fingerprint": "a"} | changes


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["cat", "dog"], ""),
        (["cat"], "no longer there: dog"),
        (["cat", "dog", "emu"], "new: emu"),
        (["cat", "wolf"], "no longer there: dog; new: wolf"),
        (["dog", "cat"], "in another order: cat, dog before, dog, cat now"),
    ],
)
def test_classes_are_compared_by_name_and_order(names, words):
    assert identity.class_changes(made(), made(class_names=names)) == words


def test_contents_are_compared_by_fingerprint():
    assert identity.content_changes(made(), made(name="elsewhere")) == ""
    assert identity.content_changes(made(), made(fingerprint="")) == ""  # unknown
    assert (
        identity.content_changes(made(), made(fingerprint="b", count=9))
        == "10 images before, 9 now, so their order in training changes too"
    )
    assert "but different ones" in identity.content_changes(made(), made(fingerprint="b"))


def test_a_set_in_memory_is_identified_by_pixels_and_labels():
    images, labels = np.arange(3 * 4, dtype=np.uint8).reshape(3, 2, 2, 1), np.array([0, 1, 0])
    first = identity.arrays_fingerprint(images, labels)
    assert identity.arrays_fingerprint(images.copy(), labels.astype(np.int64)) == first
    for other in ((images[::-1], labels), (images, labels[::-1] + 1), (images, None), (images.reshape(3, 4, 1, 1), labels)):
        assert identity.arrays_fingerprint(*other) != first


def test_the_identity_is_json_of_the_source():
    source = ArraySource(
        np.zeros((2, 4, 4, 1), np.uint8), np.array([0, 1]), num_classes=2, class_names=["a", "b"], name="x", split="train"
    )
    assert identity.identity_of(source) == {
        "name": "x",
        "split": "train",
        "count": 2,
        "class_names": ["a", "b"],
        "fingerprint": "",
        "value_range": [],
    }


def test_digits_have_class_names_and_slices():
    whole, first, rest = (digits.load_digits(split) for split in ("train", "train[:90%]", "train[90%:]"))
    assert whole.class_names == tuple("0123456789")
    both = np.concatenate([part.batch(np.arange(len(part)))["image"] for part in (first, rest)])
    np.testing.assert_array_equal(both, whole.batch(np.arange(1500))["image"])
    assert len({part.fingerprint for part in (whole, first, rest)}) == 3

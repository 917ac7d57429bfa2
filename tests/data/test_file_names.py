"""File names in arrays."""

import pickle

import pytest

from ddpm_jax.data.file_names import FileNames

NAMES = ["cats/1.png", "ca\udce9ts/ü.png", "", "dogs/2.png"]


@pytest.mark.parametrize("names", [NAMES, NAMES[:1], []])
def test_it_is_a_sequence_of_the_names(names):
    for found in (FileNames(names), pickle.loads(pickle.dumps(FileNames(names)))):
        assert list(found) == names
        assert len(found) == len(names)
        assert found[1:] == names[1:]
        assert [found[-1 - index] for index in range(len(names))] == names[::-1]
        with pytest.raises(IndexError):
            found[len(names)]


def test_the_size_of_its_copy():
    names = [f"n{index:08}/n{index:08}_{index}.JPEG" for index in range(1000)]
    assert len(pickle.dumps(FileNames(names))) < 1000 * (len(names[-1]) + 10)

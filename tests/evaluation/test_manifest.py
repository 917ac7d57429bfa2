"""Folders of results are never overwritten by other results."""

import pytest

from ddpm_jax.evaluation import manifest
from ddpm_jax.runtime.errors import ConflictError

KIND = {"mode": "sample", "sampling": {"seed": 0, "spacing": (1, 2)}, "step": 6}
OTHER = KIND | {"sampling": {"seed": 1, "spacing": (1, 2)}}
NAMES = ("images.npz", "grid.png")


def claim(identity, folder, **options):
    target = manifest.claim(identity, names=NAMES, default=folder, **options)
    (target / "images.npz").write_text(str(identity))
    return target


def test_other_results_get_a_new_folder_and_equal_ones_reuse_it(tmp_path):
    default = tmp_path / "samples" / "ddim"
    assert claim(KIND, default) == default
    assert claim(OTHER, default).name == "ddim-2"
    assert claim(KIND, default) == default
    assert claim(OTHER, default).name == "ddim-2"
    assert claim(KIND | {"step": 7}, default).name == "ddim-3"
    assert (default / "images.npz").read_text() == str(KIND)


def test_a_folder_without_a_manifest_is_left_alone(tmp_path):
    """An older folder without a manifest, or a file with that name. An empty folder, as after a kill, is used."""
    (tmp_path / "ddim").mkdir()
    (tmp_path / "ddim" / "images.npz").write_text("older")
    (tmp_path / "ddim-2").write_text("")
    (tmp_path / "ddim-3").mkdir()
    (tmp_path / "ddim-3" / ".manifest.json.77.tmp").write_text("{")
    assert claim(KIND, tmp_path / "ddim").name == "ddim-3"
    assert (tmp_path / "ddim" / "images.npz").read_text() == "older"
    (tmp_path / "ddim-3" / "manifest.json").write_text("{")
    assert claim(KIND, tmp_path / "ddim").name == "ddim-4"


def test_an_output_folder_is_never_overwritten(tmp_path):
    named = str(tmp_path / "out")
    assert claim(KIND, tmp_path, output=named) == tmp_path / "out"
    assert claim(KIND, tmp_path, output=named) == tmp_path / "out"
    with pytest.raises(ConflictError, match=r"sampling\.seed was 0, now 1\. Remove it, or choose another `output`"):
        claim(OTHER, tmp_path, output=named)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("")
    assert claim(KIND, tmp_path, output=str(mine)) == mine
    (mine / "manifest.json").unlink()
    with pytest.raises(ConflictError, match=r"mine already holds images\.npz: choose another `output`"):
        claim(KIND, tmp_path, output=str(mine))

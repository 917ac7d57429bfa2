"""Files and folders of weights are recognized by their content, and hostile ones execute nothing."""

import json
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest

from ddpm_jax.interop import weights_file
from ddpm_jax.interop.weights_file import Weights
from ddpm_jax.interop.weights_source import open_weights, sha256
from ddpm_jax.models.unet import UNet
from ddpm_jax.runtime import storage
from ddpm_jax.runtime.errors import FileAccessError, InvalidDataError
from tests.interop.files import HO, SCHEDULER, diffusers_state, openai_state, write_pipeline, write_weights
from tests.metrics.torch_pickles import Called, pickled, state_of, zipped

OPENAI = UNet(3, ch=8, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(4,), num_heads=2)


def same(found, wanted):
    return found.keys() == wanted.keys() and all(np.array_equal(np.asarray(found[name]), wanted[name]) for name in wanted)


@pytest.mark.parametrize("flat", [False, True])
def test_a_pipeline_of_diffusers(tmp_path, flat):
    folder, state = tmp_path / "pipeline", diffusers_state()
    write_pipeline(folder, state=state, flat=flat)
    weights = open_weights(folder)
    assert (weights.kind, weights.network, weights.scheduler) == ("diffusers", HO, SCHEDULER)
    assert same(weights.state, state)
    if not flat:  # the folder of the network, and the file, are as good
        assert same(open_weights(folder / "unet").state, state)
        assert open_weights(weights.file).scheduler == SCHEDULER
    record = weights.provenance()
    assert record == {"path": str(weights.file), "layout": "diffusers", "sha256": sha256(weights.file)}
    json.dumps(record)


def test_weights_in_a_bucket(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    state = diffusers_state()
    storage.upload_folder(write_pipeline(tmp_path / "pipeline", state=state), storage.path(bucket))
    weights = open_weights(storage.path(bucket))
    assert (weights.kind, weights.network, weights.scheduler) == ("diffusers", HO, SCHEDULER)
    assert same(weights.state, state)
    assert weights.provenance()["path"] == f"{bucket}/unet/diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize("layout", ["safetensors", "zip", "legacy"])
@pytest.mark.parametrize("name", ["weights.safetensors", "weights.bin", "weights"])
def test_files_are_recognized_by_content(tmp_path, layout, name):
    """Whatever their names."""
    for kind, state in (("diffusers", diffusers_state()), ("openai", openai_state(OPENAI))):
        weights = open_weights(write_weights(tmp_path / kind / name, state, layout))
        assert (weights.kind, weights.network, weights.scheduler) == (kind, None, None)
        assert same(weights.state, state)


def test_old_names_of_attentions_are_renamed(tmp_path):
    state = diffusers_state()
    old = diffusers_state(old_names=True)
    assert "mid_block.attentions.0.query.weight" in old
    assert same(open_weights(write_weights(tmp_path / "a.bin", old, "zip")).state, state)


def test_weights_of_this_program_name_the_field_that_reads_them(tmp_path):
    params = {"conv_in": {"kernel": np.zeros((3, 3, 3, 8), np.float32)}}
    weights = Weights(params, 1, "ema", weights_file.sha256_of(params), {}, (), "run")
    weights_file.write(tmp_path / weights_file.NAME, weights)
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    for path in (tmp_path, tmp_path / weights_file.NAME, tmp_path / "run"):
        with pytest.raises(InvalidDataError, match=f"not imported: train with --config.train.init_from={path}$"):
            open_weights(path)


def test_paths_without_weights(tmp_path):
    with pytest.raises(FileAccessError, match="there is no such file or folder"):
        open_weights(tmp_path / "nothing")
    with pytest.raises(InvalidDataError, match=r"there is no config.json in it or in its folder unet"):
        open_weights(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InvalidDataError, match=r"there is no diffusion_pytorch_model.safetensors or"):
        open_weights(tmp_path)
    other = write_weights(tmp_path / "a.pt", {"fc.weight": np.ones((2, 2), np.float32)}, "zip")
    with pytest.raises(InvalidDataError, match="does not hold a U-Net of diffusers, improved-diffusion or guided-diffusion"):
        open_weights(other)


@pytest.mark.parametrize("content", ["[1]", "{", "[" * 100_000, " " * 2**21, "\xff"])
def test_damaged_configs_are_rejected(tmp_path, content):
    folder = write_pipeline(tmp_path / "pipeline")
    (folder / "unet" / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(InvalidDataError, match=r"config.json is not a config in JSON") as error:
        open_weights(folder)
    assert "\n" not in str(error.value)


def test_only_files_with_fixed_names_are_opened(tmp_path, monkeypatch):
    """A model_index.json with other paths has no effect."""
    folder = write_pipeline(tmp_path / "pipeline")
    (folder / "model_index.json").write_text(json.dumps({"unet": ["../../secret", "UNet2DModel"], "scheduler": ["/etc", "x"]}))
    opened = set()
    real = os.open

    def record(path, *arguments, **options):
        opened.add(os.fspath(path))
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "open", record)
    weights = open_weights(folder)
    assert weights.file == folder / "unet" / "diffusion_pytorch_model.safetensors"
    assert not [path for path in opened if "secret" in str(path)]


class Executed:
    """Pickled as a call of os.system."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def hostile_files(marker):
    """Name -> bytes of a file that would create `marker`, or take all memory."""
    state = diffusers_state()
    weights = list(state.values())
    command = Executed(f"touch {marker}")
    yield "a pickle that calls os.system", pickle.dumps(command)
    yield "a state dict with such a call", zipped(state_of(state) | {"x": Called("os", "system", f"touch {marker}")}, weights)
    yield "a state dict with eval", zipped({"x": Called("builtins", "eval", f"open('{marker}', 'w')")})
    legacy_head = pickled(0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    yield "a legacy file with such a call", legacy_head + pickle.dumps(command)
    yield "a header of 2^60 bytes", struct.pack("<Q", 2**60) + b"{}" + bytes(100)
    yield "a truncated archive", zipped(state_of(state), weights)[:-200]
    yield "an archive without its end", zipped(state_of(state), weights)[: 2**14]
    yield "an empty file", b""
    yield "zeros", bytes(1000)
    yield "text", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


def test_hostile_files_execute_nothing_and_end_in_one_line(tmp_path):
    marker = tmp_path / "executed"
    for name, content in hostile_files(marker):
        file = tmp_path / "weights.pt"
        file.write_bytes(content)
        with pytest.raises(InvalidDataError) as error:
            open_weights(file)
        assert not marker.exists(), name
        assert "\n" not in str(error.value), name
        assert "weights.pt" in str(error.value), name


def test_a_zip_bomb_is_not_unpacked(tmp_path):
    """Two entries that would unpack to 2 GB each from 4 MB."""
    file = tmp_path / "bomb.pt"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickled(state_of({"w": np.zeros(4, np.float32)})))
        archive.writestr("archive/data/0", bytes(2**24))
    with pytest.raises(InvalidDataError, match="is a compressed zip archive"):
        open_weights(file)


def test_names_of_entries_are_not_paths(tmp_path):
    """Nothing is unpacked to files: an entry ../../x has no effect."""
    file = tmp_path / "inner" / "a.pt"
    file.parent.mkdir()
    state = diffusers_state()
    file.write_bytes(zipped(state_of(state), list(state.values()), **{"../../escaped": "x"}))
    assert same(open_weights(file).state, state)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.pt", "inner"]

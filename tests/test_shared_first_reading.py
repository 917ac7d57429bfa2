"""The first reading of a folder by two processes: each file is read by one, and both know what was found."""

import numpy as np
import pytest
from PIL import Image

from ddpm_jax import shared_first_reading
from ddpm_jax.configs import defaults
from ddpm_jax.data import array_folder
from ddpm_jax.data.image_folder import load_image_folder

PROGRAM = """
from ddpm_jax import shared_first_reading
from ddpm_jax.configs import defaults
from ddpm_jax.data import first_reading
from ddpm_jax.data.image_folder import load_image_folder
read = []
original = first_reading.FirstReading._read
def recorded(self, index, levels):
    read.append(self._paths[index])
    original(self, index, levels)
first_reading.FirstReading._read = recorded
shared_first_reading.CHUNK, shared_first_reading.SHARE = 1, 2  # the processes save twice
config = defaults.get_config()
config.data.update(name="image_folder", data_dir=str(folder / "photos"), image_size=4, in_memory="never")
config.data.update(on_decode_error="skip", cache_dir=str(folder / f"cache{me}"))
def read_parts():
    read.clear()
    shared_first_reading.read_parts(config)
    return sorted(read)
def load():
    read.clear()
    source = load_image_folder(config.data.data_dir, image_size=4, channels=3, in_memory=False, on_decode_error="skip",
                               cache_dir=config.data.cache_dir)
    return [sorted(set(read)), source.fingerprint, list(source.value_range)]
"""


@pytest.fixture
def photos(tmp_path):
    """Six images, one of 16 bits, and a broken file."""
    random = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for index in range(6):
        pixels = random.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        if index == 1:
            pixels = random.integers(0, 1000, (6, 6), dtype=np.uint16)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{index}.png")
    (tmp_path / "photos" / "4.png").write_bytes(b"no image")
    return tmp_path / "photos"


def test_a_shared_reading_of_arrays_fills_the_manifest_of_the_set(tmp_path, age_files, monkeypatch):
    (tmp_path / "scans").mkdir()
    for index in range(3):
        np.save(tmp_path / "scans" / f"{index}.npy", np.full((4, 6, 2), index, np.uint16))
    age_files(tmp_path / "scans")
    data = defaults.get_config().data
    data.update(name="array_folder", data_dir=str(tmp_path / "scans"), image_size=(4, 6), channels=2, dtype="uint16")
    assert shared_first_reading._open(data, "train") is None  # in memory
    data.update(in_memory="never", cache_dir=str(tmp_path / "cache"))
    shared_first_reading._open(data, "train").read_all(1)
    monkeypatch.setattr(array_folder, "read_array", None)
    options = {"image_size": (4, 6), "channels": 2, "array_dtype": "uint16", "in_memory": False, "cache_dir": data.cache_dir}
    assert len(array_folder.load_array_folder(data.data_dir, **options)) == 3


@pytest.mark.slow
def test_each_file_is_read_by_one_process(two, photos, age_files):
    age_files(photos)
    results, codes = two(f"""
{PROGRAM}
first = read_parts()
first_load = load()
again = read_parts()
def moved():
    config.data.data_dir = str(folder / ("photos" if me == 0 else "elsewhere"))
    return read_parts()
write(first=first, load=first_load, again=again, missing=error_of(moved))
""")
    assert codes == [0, 0]
    assert [found["first"] for found in results] == [["0.png", "1.png", "2.png"], ["3.png", "4.png", "5.png"]]
    expected = load_image_folder(str(photos), image_size=4, channels=3, on_decode_error="skip")
    for found in results:
        # The levels of a file of 16 bits need the range of all such files, and the broken file is always read.
        assert found["load"] == [["1.png", "4.png"], expected.fingerprint, [0.0, 1023.0]]
    assert sorted(results[0]["again"] + results[1]["again"]) == ["4.png"]
    assert results[0]["missing"][0] == "DistributedError"
    assert "there is no folder" in results[1]["missing"][1]


@pytest.mark.slow
def test_hosts_with_other_files_read_all_by_themselves(two, photos, age_files):
    age_files(photos)
    results, codes = two(f"""
{PROGRAM}
if me == 1:
    import shutil
    shutil.copytree(folder / "photos", folder / "copy")
    os.utime(folder / "copy" / "0.png")
    config.data.data_dir = str(folder / "copy")
write(first=read_parts(), load=load())
""")
    assert codes == [0, 0]
    for found in results:
        assert found["first"] == []
        assert found["load"][0] == [f"{index}.png" for index in range(6)]

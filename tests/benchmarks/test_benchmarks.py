"""The benchmarks run at reduced size, and their operation counts are correct."""

import os
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from PIL import Image

from ddpm_jax.cpu import conv as cpu_conv
from ddpm_jax.runtime import mesh as meshes
from tests import preloaded


@pytest.fixture
def printed(repository, compiled_fast, tmp_path):
    """The output of a benchmark, run as in its header: (script, arguments) -> str."""
    # One device: the measured values do not matter.
    environment = os.environ | {
        "XLA_FLAGS": compiled_fast,
        "JAX_COMPILATION_CACHE_DIR": str(repository / ".cache" / "xla"),
    }

    def run(script, *arguments):
        line = [sys.executable, f"benchmarks/{script}.py", *arguments]
        result = preloaded.run(line, tmp_path, env=environment)
        assert result.returncode == 0, result.stderr
        return result.stdout

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "arguments"), [("train_step", []), ("sample", ["--num_steps=2"])], ids=["train_step", "sample"]
)
def test_speed_is_printed_as_rates_and_fraction_of_the_ceiling(printed, script, arguments):
    out = printed(script, "--rounds=1", "--batch_size=8", *arguments)
    seconds, images, gflops, share = map(float, re.search(r"ddpm_jax +([\d.]+) +([\d.]+) +([\d.]+) +([\d.]+)%", out).groups())
    ceiling = float(re.search(r"matmul ceiling +([\d.]+)", out)[1])
    assert images == pytest.approx(8 / seconds, rel=0.05)
    assert share == pytest.approx(100 * gflops / ceiling, abs=1)
    assert 0 < share < 110


@pytest.mark.slow
def test_the_input_is_compared_with_the_step(printed):
    out = printed("data_pipeline", "--rounds=1", "--batch_size=8")
    delivers, takes = (float(re.search(rf"{what} +([\d.,]+)", out)[1].replace(",", "")) for what in ("delivers", "takes"))
    assert float(re.search(r"ratio +([\d.,]+)x", out)[1]) == pytest.approx(delivers / takes, rel=0.05, abs=0.06)


@pytest.mark.slow
def test_reading_is_printed_per_core(printed, photographs):
    arguments = ["--sizes", "8", "--workers", "0", "--seconds=0.01", "--batch_size=4"]
    lines = printed("data_pipeline", *arguments, f"--data_dir={photographs}").splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["images", "folder", "prepared"]
    for line in lines[2:]:
        *_, rate, per_core, megabytes = (float(word.replace(",", "")) for word in line.split()[-4:])
        assert min(rate, per_core) > 0
        assert megabytes == pytest.approx(rate * 8 * 8 * 3 / 1e6, abs=1)


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [[], ["--made_up"]])
def test_starts_of_a_folder_are_printed(printed, tmp_path, arguments):
    lines = printed("folder_start", "--files=40", "--folders=4", f"--dir={tmp_path}", *arguments).splitlines()
    titles = ["later start"] if arguments else ["first reading", "later start"]
    assert [line.partition("  ")[0] for line in lines] == titles
    for line in lines:
        assert re.search(r" 40 files: [\d.]+ s, CPU [\d.]+ s, [\d,]+ files/s per core, 0\.\d+ GB$", line)
    assert list(tmp_path.glob("tmp*")) == []


@pytest.mark.slow
def test_features_are_printed_as_rates(printed):
    out = printed("features", "--rounds=1", "--batch_size=2")
    seconds, images, gflops = map(float, re.search(r"ddpm_jax +([\d.]+) +([\d.]+) +([\d.]+) +[\d.]+%", out).groups())
    per_image = float(re.search(r"([\d.]+) GFLOP per image", out)[1])
    assert images == pytest.approx(2 / seconds, rel=0.05, abs=0.06)  # printed with one digit
    assert gflops == pytest.approx(per_image * images, rel=0.05)
    assert 11 < per_image < 12  # 5.7 billion multiply-adds
    streamed = printed("features", "--stream=4", "--batch_size=2")
    assert re.search(r"4 images of digits train; the first 2 after [\d.]+ s\nthe others +[\d.]+ images/s", streamed)


@pytest.mark.slow
def test_memory_of_a_step(printed):
    row = re.search(r"digits +[\d,]+ +(\d+) MiB +\d+ MiB +([\d.]+) MiB +([\d.]+) MiB", printed("memory", "digits"))
    state, per_image, sampling = map(float, row.groups())
    assert state == pytest.approx(177_553 * 4 * 4 / 2**20, abs=1)  # parameters, EMA and two moments
    assert 0.01 < sampling < per_image < 10


@pytest.mark.slow
def test_digits_quality(printed, tmp_path):
    from ddpm_jax.data import digits

    real = digits.load_digits("test")
    np.savez(tmp_path / "images.npz", arr_0=real.batch(np.arange(len(real)))["image"])
    out = printed("digits_quality", str(tmp_path / "images.npz"))
    generated, held_out = (float(re.search(rf"297 {what} +([\d.]+)", out)[1]) for what in ("generated", "held-out real"))
    assert generated == held_out == 27.51


COLORS = r"^{} +([\d.]+) \+- +([\d.]+) +([\d.]+) +([\d.]+) +([\d.]+) +([\d.]+) +([\d.]+) +(\d+)%$"


@pytest.fixture
def photographs(tmp_path):
    """Folder of eight images, half dark and half bright blue, 40 levels apart."""
    image = np.zeros((8, 8, 3), np.uint8)
    image[:4], image[4:] = (60, 60, 120), (100, 100, 160)
    (tmp_path / "photographs").mkdir()
    for index in range(8):
        Image.fromarray(image).save(tmp_path / "photographs" / f"{index}.png")
    np.savez(tmp_path / "images.npz", arr_0=np.stack([image] * 3))
    return tmp_path / "photographs"


def colors_of(name, out):
    return tuple(map(float, re.search(COLORS.format(name), out, re.MULTILINE).groups()))


@pytest.fixture
def colors(photographs, repository, monkeypatch, capsys):
    """benchmarks/colors.py in this process: arguments -> its output."""
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    import colors

    monkeypatch.setattr(colors.compiler_config, "configure_cpu", lambda config: None)  # too late for this process
    monkeypatch.setattr(colors, "CACHE", repository / ".cache" / "xla")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["colors.py", str(photographs), *arguments])
        colors.main()
        return capsys.readouterr().out

    return run


def test_colors_of_images_are_compared_with_the_photographs(colors, photographs):
    images = str(photographs.parent / "images.npz")
    out = colors("--images", images)
    expected = (100.0, 0.0, 0.0, 60.0, 60.0, 20.0, 60.0, 100)  # a contrast of 20 is nearly flat
    assert colors_of("8 photographs", out) == colors_of(images, out) == expected
    assert colors_of("8 photographs", colors("--images", images, "--gray"))[3:5] == (0, 0)


def test_colors_of_the_perfect_network(colors):
    """It generates the only photograph, up to a level of rounding."""
    fields = ["--image_size=8", "--train", "sampling.num_images=8", "sampling.batch_size=8", "sampling.num_steps=4"]
    out = colors(*fields, "--exact", "--sample", "sampling.spacing=trailing")
    expected = (100.0, 0.0, 0.0, 60.0, 60.0, 20.0, 60.0, 100)
    assert colors_of("perfect network: spacing=trailing", out) == pytest.approx(expected, abs=1)


def test_colors_of_a_small_network(colors, photographs, monkeypatch):
    """Without training, to save time: the config for training is checked, and each --sample has a row."""
    from ddpm_jax import build
    from ddpm_jax.cli import common, train

    trained = []
    monkeypatch.setattr(train, "run", lambda config, folder: trained.append((config, folder)) or 0)
    params = lambda config: build.build_init(config)(jax.random.key(0)).params  # noqa: E731
    monkeypatch.setattr(common, "restore_params", lambda config, folder, mesh: (params(config), 0))

    run = photographs.parent / "run"
    fields = [
        "--train",
        "diffusion.prediction=x_start",
        "model.unet.ch_mult=(1,)",
        "model.unet.ch=8",
        "model.unet.attn_resolutions=()",
    ]
    fields += ["sampling.num_images=8", "sampling.num_steps=2"]
    out = colors("--gray", "--image_size=8", f"--workdir={run}", *fields, "--sample", "sampling.spacing=leading")
    assert colors_of("8 photographs", out)[3] == 0
    assert colors_of("spacing=leading", out)[0] == pytest.approx(127.5, abs=0.6)  # an initial network outputs 0, mid-gray
    config, folder = trained[0]
    assert (config.diffusion.prediction, config.data.data_dir, folder) == (
        "x_start",
        str(run / "photographs"),
        str(run / "run"),
    )
    with Image.open(run / "photographs" / "00007.png") as written:
        assert np.asarray(written).tolist() == np.repeat(np.uint8([[67] * 8] * 4 + [[107] * 8] * 4)[..., None], 3, -1).tolist()


@pytest.mark.slow
def test_metrics_are_printed_one_by_one(printed):
    out = printed("metrics", "--num=60", "--dimension=4", "--kept=20")
    rows = re.findall(r"^(\w.*?) +([\d.]+) +([\d.]+) +([\d.]+)$", out, re.MULTILINE)
    assert [name.split()[0] for name, *_ in rows] == ["moments", "moments", "Fréchet", "KID", "neighbors", "precision"]
    assert all(0 < float(memory) < 16 for *_, memory in rows)


def test_operation_counts_match_hand_counts(repository, monkeypatch):
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    import common

    def network(kernel, x):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def wide_network(kernel, x):  # the CPU implementation, which needs fewer
        return cpu_conv.convolve(x, kernel)

    for function, channels, features in ((network, 5, 7), (wide_network, 64, 96)):
        kernel, x = jnp.ones((3, 3, channels, features)), jnp.ones((2, 4, 4, channels))
        forward = 2 * (2 * 4 * 4 * features) * (3 * 3 * channels)
        gradients = jax.grad(lambda kernel, x, function=function: function(kernel, x).sum(), (0, 1))
        assert common.count_flops(function, kernel, x) == forward
        assert common.count_flops(gradients, kernel, x) == 3 * forward
    assert common.count_flops(lambda a, b: a @ b, jnp.ones((3, 4)), jnp.ones((4, 5))) == 2 * 3 * 4 * 5
    scanned = lambda a: jax.lax.scan(lambda h, _: (h @ a, None), a, length=6)[0]  # noqa: E731
    assert common.count_flops(scanned, jnp.ones((4, 4))) == 6 * 2 * 4**3


def test_operations_of_sharded_gradients_are_counted(repository, monkeypatch):
    """The gradients of a wide network without dropout, which a training step on a CPU computes inside shard_map."""
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    import common

    mesh = meshes.make_mesh(jax.devices()[:2])
    batch = P(*mesh.axis_names)
    gradients = jax.grad(lambda kernel, x: cpu_conv.convolve(x, kernel).sum(), (0, 1))
    local_gradients = lambda kernel, x: gradients(jax.lax.pcast(kernel, mesh.axis_names, to="varying"), x)  # noqa: E731
    sharded = jax.shard_map(local_gradients, mesh=mesh, in_specs=(P(), batch), out_specs=batch)
    kernel, x = jnp.ones((3, 3, 64, 96)), jnp.ones((2, 4, 4, 64))
    assert common.count_flops(sharded, kernel, x) == 3 * 2 * (2 * 4 * 4 * 96) * (3 * 3 * 64)

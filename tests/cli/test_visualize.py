"""--mode=visualize: content of the figures, and errors."""

import jax
import numpy as np
import pytest
from PIL import Image

from ddpm_jax import build, data_config, sampling_config, visualize_config
from ddpm_jax.cli import common, sample, visualize
from ddpm_jax.diffusion import pixels, vlb
from ddpm_jax.plotting import filmstrip
from ddpm_jax.runtime import mesh as meshes
from ddpm_jax.runtime.errors import CheckpointError, ConflictError, FileAccessError
from ddpm_jax.samplers import SAMPLERS
from ddpm_jax.samplers.batched import GeneratedBatch
from ddpm_jax.user_messages import UsageError

NETWORK = "tests.small_network:Small"

FIELDS = {"model.class_conditional": True, "sampling.num_steps": 20, "visualize.num_images": 3, "visualize.num_stages": 6}
FIELDS |= {"visualize.animation": ""}
TRAINED = FIELDS  # with checkpoints of steps 2, 4 and 6
ALL = ("chain.png", "forward.png", "reverse.png")
WRITTEN = tuple(sorted((*ALL, "images.npz")))


@pytest.fixture
def sheets(monkeypatch):
    """The arguments of all `filmstrip.sheet` calls, in order: [(rows, options)]."""
    calls, original = [], filmstrip.sheet

    def recording(rows, **options):
        calls.append((rows, options))
        return original(rows, **options)

    monkeypatch.setattr(filmstrip, "sheet", recording)
    return calls


def names(path):
    return tuple(sorted(file.name for file in path.iterdir() if file.name != "manifest.json"))


def digits(config):
    number = config.visualize.num_images
    return data_config.load_source(config).batch(
        np.arange(config.visualize.start_index, config.visualize.start_index + number)
    )["image"]


def test_three_reproducible_figures_and_an_unchanged_run(trained, tiny_config, tmp_path, capsys):
    before = (trained / "config.json").read_bytes()
    assert visualize.run(tiny_config(FIELDS), str(trained)) == 0
    target = trained / "samples" / "visualize-step_6-ddim-20-seed_0"
    assert names(target) == WRITTEN
    out = capsys.readouterr().out
    assert str(target) in out
    assert "step 6, ema weights, ddim in 20 steps, seed 0" in out
    for name in ALL:
        with Image.open(target / name) as picture:
            assert picture.mode == "RGB"
            assert 400 < picture.width < 1500
    assert visualize.run(tiny_config(FIELDS), str(trained), output=str(tmp_path / "again")) == 0
    for name in names(target):
        assert (tmp_path / "again" / name).read_bytes() == (target / name).read_bytes()
    assert (trained / "config.json").read_bytes() == before


def test_content_of_the_figures(trained, tiny_config, tmp_path, sheets):
    """Data at the left of forward and chain; samples at the right of reverse and chain; the labels are their t and class."""
    config = tiny_config(FIELDS | {"visualize.start_index": 7})
    assert visualize.run(config, str(trained), output=str(tmp_path)) == 0
    (forward, forward_options), (reverse, reverse_options), (chain, chain_options) = sheets
    images = digits(config)
    assert forward.shape == (3, 6, 8, 8, 1)
    np.testing.assert_array_equal(forward[:, 0], images)
    assert forward_options["column_t"].tolist() == [-1, 19, 39, 59, 79, 99]
    assert forward_options["column_labels"][1:] == ["$t=19$", "$t=39$", "$t=59$", "$t=79$", "$t=99$"]

    # 20 DDIM steps of 100 are at t = 95, 90 .. 0; every fourth is shown, then the image.
    assert reverse.shape == (6, 6, 8, 8, 1)
    assert reverse_options["column_labels"] == ["$t=95$", "$t=75$", "$t=55$", "$t=35$", "$t=15$", "sample"]
    np.testing.assert_array_equal(reverse[::2, -1], reverse[1::2, -1])
    changes = {"sampling.num_images": 3}
    assert sample.run(tiny_config(FIELDS | changes), str(trained), output=str(tmp_path / "sampled")) == 0
    with np.load(tmp_path / "sampled" / "images.npz") as arrays:
        samples = arrays["arr_0"]  # --mode=sample generates the same images
    np.testing.assert_array_equal(reverse[::2, -1], samples)

    assert chain.shape == (3, 7, 8, 8, 1)
    np.testing.assert_array_equal(chain[:, 0], images)
    np.testing.assert_array_equal(chain[:, -1], samples)
    np.testing.assert_array_equal(chain[:, 3], forward[:, -1])
    assert chain_options["column_labels"][3] == r"noise $\epsilon$"
    assert forward_options["column_labels"][0] == chain_options["column_labels"][0] == "image"  # x_0 would be x at t=0

    assert reverse_options["end_labels"] == ["class 0", "", "class 1", "", "class 2", ""]
    assert chain_options["end_labels"] == ["class 0", "class 1", "class 2"]


def test_notes_of_the_figures(trained, tiny_config, tmp_path, sheets):
    """The notes on the noise and on the class are in the figures that show them only."""
    assert visualize.run(tiny_config(FIELDS), str(trained), output=str(tmp_path)) == 0
    notes = [" ".join(options["notes"]) for _, options in sheets]
    assert ["one noise" in note for note in notes] == [True, False, True]
    assert ["class at the right is an input" in note for note in notes] == [False, True, True]
    assert "clipped to [-1, 1]" in notes[1]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"sampling.sampler": "ancestral", "sampling.num_steps": 100},
            r"reverse, $p_\theta(x_{t-1}|x_t,\,\mathrm{class})$: ancestral, 100 steps",
        ),
        ({"sampling.sampler": "ancestral"}, r"reverse, $p_\theta(x_{s}|x_t,\,\mathrm{class})$: ancestral, 20 steps"),
        (
            {"sampling.sampler": "ancestral", "model.class_conditional": False},
            r"reverse, $p_\theta(x_{s}|x_t)$: ancestral, 20 steps",
        ),
        ({"sampling.sampler": "ancestral", "sampling.guidance_scale": 2.0}, "reverse: ancestral, 20 steps, guidance 2"),
        ({}, r"reverse: ddim, 20 steps, no noise added (not $p_\theta$)"),
        ({"sampling.ddim.eta": 0.5}, "reverse: ddim, 20 steps"),
        ({"sampling.sampler": "unipc"}, r"reverse: unipc, 20 steps, no noise added (not $p_\theta$)"),
        ({"sampling.sampler": "heun"}, r"reverse: heun, 20 steps, no noise added (not $p_\theta$)"),
        ({"sampling.sampler": "heun", "sampling.heun.churn": 5.0}, "reverse: heun, 20 steps"),
        ({"sampling.sampler": "dpmpp_2m_sde"}, "reverse: dpmpp_2m_sde, 20 steps"),
    ],
)
def test_the_reverse_chain_is_labeled_with_its_sampler(tiny_config, fields, words):
    """Only ancestral sampling without guidance is labeled p_θ."""
    assert visualize.reverse_label(tiny_config(FIELDS | fields)) == words


def test_every_sampler_has_a_label(tiny_config):
    """The label of each deterministic sampler mentions that no noise is added."""
    for sampler in SAMPLERS:
        words = visualize.reverse_label(tiny_config(FIELDS | {"sampling.sampler": sampler}))
        assert ("no noise" in words) == (sampler not in ("ancestral", "dpmpp_2m_sde")), sampler


def test_an_unconditional_model_has_no_class_labels(tiny_config):
    config = tiny_config(FIELDS | {"model.class_conditional": False})
    nothing = np.zeros((2, 1, 8, 8, 1), np.float32)
    generated = GeneratedBatch(images=nothing[:, 0], cond=None, saved_x=nothing, saved_pred_xstart=nothing)
    assert visualize.class_labels(config, generated) == visualize.class_note(config) == []
    config = tiny_config(FIELDS | {"sampling.guidance_scale": 0.0})
    generated = GeneratedBatch(images=nothing[:, 0], cond=np.arange(2), saved_x=nothing, saved_pred_xstart=nothing)
    assert visualize.class_labels(config, generated) == ["no class", "no class"]
    assert visualize.class_note(config) == []


def test_the_reverse_chain_starts_from_the_noise_of_the_forward_process(trained, tiny_config):
    config = visualize_config.with_few_images(tiny_config(FIELDS))
    mesh = meshes.make_mesh()
    params, _ = common.restore_params(config, trained, mesh)
    generator, t, _ = visualize.build_reverse(config, mesh)
    generated = sampling_config.generate(config, generator, params)
    noise = visualize_config.starting_noise(config)
    np.testing.assert_allclose(generated.saved_x[:, 0], noise, rtol=0, atol=1e-6)  # two compiled programs: equal up to rounding
    assert (np.diff(t) < 0).all()
    assert generated.saved_x.shape[1] == len(t) == 5


@pytest.mark.parametrize("schedule_name", ["linear", "cosine", "sigmoid"])
def test_forward_stages_are_the_closed_form_with_one_noise_per_image(tiny_config, schedule_name):
    """x_t = sqrt(acp) x_0 + sqrt(1 - acp) ε in float64; 1e-5. The last column is ε, up to a signal of sqrt(acp) < 0.01."""
    config = tiny_config(FIELDS | {"diffusion.schedule": schedule_name})
    schedule, images, noise = build.build_schedule(config), digits(config), np.asarray(visualize_config.starting_noise(config))
    t = visualize.forward_timesteps(schedule, 6)
    x_t = visualize.forward_stages(schedule, pixels.from_uint8(images), t, noise)
    assert x_t.shape == (3, 6, 8, 8, 1)
    x_start = images / 127.5 - 1
    np.testing.assert_array_equal(pixels.to_uint8(x_t[:, 0]), images)
    for column in range(1, 6):
        cumprod = schedule.alphas_cumprod[t[column]]
        np.testing.assert_allclose(x_t[:, column], np.sqrt(cumprod) * x_start + np.sqrt(1 - cumprod) * noise, atol=1e-5)
    np.testing.assert_allclose(x_t[:, -1], noise, atol=0.03)
    assert abs(x_t[:, -1].mean()) < 4 / np.sqrt(noise.size)
    assert x_t[:, -1].std() == pytest.approx(1, abs=4 / np.sqrt(2 * noise.size))


def test_noise_differs_by_image_and_seed(tiny_config):
    noise = [np.asarray(visualize_config.starting_noise(tiny_config(FIELDS | {"sampling.seed": seed}))) for seed in (0, 1)]
    flat = np.concatenate(noise).reshape(6, -1)
    assert np.abs(np.corrcoef(flat) - np.eye(6)).max() < 0.6  # of 64 numbers each: 5 standard deviations


def test_bits_to_noise_in_closed_form(tiny_config):
    """½ [acp mean(x²) - acp - log(1 - acp)] / log 2 of each image; 1e-6, where float32 would lose it."""
    config = tiny_config(FIELDS)
    schedule, images, t = build.build_schedule(config), digits(config), np.array([0, 50, 99])
    bits = vlb.bits_to_noise(schedule, images / 127.5 - 1, t)
    assert bits.dtype == np.float64
    power = np.square(images / 127.5 - 1).mean(axis=(1, 2, 3))
    cumprod = schedule.alphas_cumprod[t][:, None]
    np.testing.assert_allclose(bits, 0.5 * (cumprod * (power - 1) - np.log1p(-cumprod)) / np.log(2), rtol=1e-6)
    assert not jax.config.jax_enable_x64


@pytest.mark.parametrize("sampler", ["ancestral", "ddim"])
def test_fewer_steps_than_stages_are_shown_one_by_one(trained, tiny_config, tmp_path, sheets, sampler):
    config = tiny_config(FIELDS | {"sampling.num_steps": 2, "sampling.sampler": sampler})
    assert visualize.run(config, str(trained), output=str(tmp_path)) == 0
    assert [options["column_labels"][-1] for _, options in sheets] == ["$t=99$", "sample", "sample"]
    assert [rows.shape[1] for rows, _ in sheets] == [6, 3, 5]


def frames_of(path):
    """The frames of an animation as uint8 [F, H, W], and their durations in milliseconds."""
    with Image.open(path) as picture:
        frames, durations = [], []
        for index in range(picture.n_frames):
            picture.seek(index)
            frames.append(np.asarray(picture.convert("L")))
            durations.append(picture.info["duration"])
    return np.stack(frames), durations


def shown_images(frames, row=0, margin=12):
    """The three images in a row of each frame, uint8 [F, 3, 8, 8], which are centered between the margin and the right."""
    left, side = margin + (frames.shape[2] - margin - 12 - (3 * 116 - 4)) // 2, 14 * 8
    corners = [(56 + 116 * row, left + 116 * column) for column in range(3)]
    blocks = np.stack([frames[:, y : y + side, x : x + side] for y, x in corners], axis=1)
    small = blocks[..., ::14, ::14]
    np.testing.assert_array_equal(small.repeat(14, axis=-2).repeat(14, axis=-1), blocks)
    return small


def test_animations_show_the_stages_of_the_chains(trained, tiny_config, tmp_path, sheets, capsys):
    """All pixels of all images at all stages, and the strips are the same as without an animation."""
    fields = {"visualize.animation": "webp", "visualize.animation_frames": 10, "visualize.animation_seconds": 4.0}
    config = tiny_config(FIELDS | fields)
    assert visualize.run(config, str(trained), output=str(tmp_path)) == 0
    assert set(names(tmp_path)) == {*WRITTEN, "chain.webp", "forward.webp", "reverse.webp"}
    assert "chain.webp (" in capsys.readouterr().out
    (forward, _), (reverse, reverse_options), _ = sheets
    assert reverse_options["column_labels"] == ["$t=95$", "$t=75$", "$t=55$", "$t=35$", "$t=15$", "sample"]

    frames, durations = frames_of(tmp_path / "chain.webp")
    assert len(frames) == 22  # 10 and the image; 10 and the sample
    assert sum(durations) == 4000
    assert sum(frames_of(tmp_path / "reverse.webp")[1]) == 2000
    assert min(durations[0], durations[10], durations[-1]) > 2 * max(durations[1:10])
    blocks = shown_images(frames)
    np.testing.assert_array_equal(blocks[0], forward[:, 0, ..., 0])
    np.testing.assert_array_equal(blocks[10], forward[:, -1, ..., 0])
    # 10 stages of 20 steps; the strip has 5 of them.
    np.testing.assert_array_equal(blocks[11:-1:2], reverse[::2, :-1, ..., 0].swapaxes(0, 1))
    np.testing.assert_array_equal(blocks[-1], reverse[::2, -1, ..., 0])
    assert (blocks[12] != blocks[11]).any()
    predicted = shown_images(frames_of(tmp_path / "reverse.webp")[0], row=1, margin=93)
    np.testing.assert_array_equal(predicted[:-1:2], reverse[1::2, :-1, ..., 0].swapaxes(0, 1))


def test_a_gif_without_a_checkpoint(tiny_config, tmp_path, capsys):
    fields = {"visualize.animation": "gif", "visualize.animation_frames": 200, "visualize.animation_seconds": 20.0}
    assert visualize.run(tiny_config(FIELDS | fields), str(tmp_path / "run"), output=str(tmp_path / "out")) == 0
    assert names(tmp_path / "out") == ("forward.gif", "forward.png", "images.npz")
    frames, durations = frames_of(tmp_path / "out" / "forward.gif")
    assert len(frames) == 101  # there are 100 timesteps
    assert sum(durations) == 10_000
    np.testing.assert_array_equal(shown_images(frames)[0], digits(tiny_config(FIELDS))[..., 0])


def test_without_a_checkpoint_there_is_only_the_forward_figure(tiny_config, tmp_path, capsys):
    """In an empty workdir, which does not become a run."""
    run = tmp_path / "run"
    assert visualize.run(tiny_config(FIELDS), str(run)) == 0
    assert names(run / "samples" / "visualize-forward") == ("forward.png", "images.npz")
    assert names(run) == ("samples",)
    out = capsys.readouterr().out
    assert out.count("\n") == 2
    assert "no checkpoint" in out
    assert "only forward.png" in out
    assert visualize.run(tiny_config(FIELDS | {"sampling.seed": 1}), str(run)) == 0
    assert visualize.run(tiny_config(FIELDS | {"sampling.shown_channels": (0,)}), str(run)) == 0
    folders = [f"visualize-forward{number}" for number in ("", "-2", "-3")]
    assert names(run / "samples") == tuple(folders)
    first, second = (np.load(run / "samples" / folder / "images.npz")["forward_x_t"] for folder in folders[:2])
    assert (first[:, 1:] != second[:, 1:]).any()


def test_color_images_of_a_real_data_set(tiny_config, tmp_path, real_data, sheets):
    if real_data is None:
        pytest.skip("needs DDPM_JAX_TEST_DATA")
    fields = {"data.name": "cifar10", "data.data_dir": str(real_data / "tfds"), "data.image_size": 32, "data.channels": 3}
    config = tiny_config(FIELDS | fields | {"data.in_memory": "never"})
    assert visualize.run(config, str(tmp_path / "run"), output=str(tmp_path)) == 0
    ((rows, _),) = sheets
    assert rows.shape == (3, 6, 32, 32, 3)
    np.testing.assert_array_equal(rows[:, 0], digits(config))


def test_errors_are_one_line(trained, tiny_config, tmp_path):
    def refused(match, changes=None, error=UsageError, where=trained, output=""):
        with pytest.raises(error, match=match) as caught:
            visualize.run(tiny_config(FIELDS | (changes or {})), str(where), output=output)
        assert "\n" not in str(caught.value)

    refused(r"visualize\.num_images is 0: choose 1\.\.16", {"visualize.num_images": 0})
    refused(r"visualize\.num_stages is 4: choose 5\.\.24", {"visualize.num_stages": 4})
    refused(r"visualize\.num_stages is 25", {"visualize.num_stages": 25})
    refused(r"start_index is -1", {"visualize.start_index": -1})
    refused(r"digits holds 1,500 images.*start_index=1498", {"visualize.start_index": 1498})
    refused(r"num_timesteps is 3: too few", {"diffusion.num_timesteps": 3, "sampling.num_steps": 2})
    refused(r"config\.sampling", {"sampling.num_steps": 101})
    refused(r"there are 2, 4, 6", {"sampling.checkpoint_step": 5}, CheckpointError)
    refused(r"no checkpoint", {"sampling.checkpoint_step": 5}, CheckpointError, where=tmp_path / "nothing")
    refused(r"model\.unet\.ch was 8, now 16", {"model.unet.ch": 16}, ConflictError)
    moving = {"visualize.animation": "webp"}
    refused(r"visualize\.animation is 'mp4': choose webp or gif, or '' for none", {"visualize.animation": "mp4"})
    refused(r"animation_frames is 1: choose 2\.\.400", moving | {"visualize.animation_frames": 1})
    refused(r"animation_seconds is 2: choose 2\.5\.\.600 for 40 frames", moving | {"visualize.animation_seconds": 2.0})
    (tmp_path / "file").write_text("")
    refused("cannot write to", None, FileAccessError, output=str(tmp_path / "file" / "below"))


def test_from_the_command_line(trained, tmp_path, main):
    result = main(trained, "--mode=visualize", f"--output={tmp_path / 'out'}", config=None, tiny=False)
    assert result.returncode == 0, result.stderr
    assert names(tmp_path / "out") == WRITTEN
    assert "Traceback" not in result.stderr


def test_class_labels_use_known_names(tiny_config):
    nothing = np.zeros((2, 1, 8, 8, 1), np.float32)
    generated = GeneratedBatch(images=nothing[:, 0], cond=np.array([1, 2]), saved_x=nothing, saved_pred_xstart=nothing)
    assert visualize.class_labels(tiny_config(FIELDS), generated, ("daisy", "rose")) == ["class rose", "class 2"]


def test_the_benchmark_of_pred_xstart(trained, repository, monkeypatch, capsys):
    """The errors are those of a network whose output is nearly zero: near pure noise eps is off by 1, pixels out of range."""
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    import pred_xstart

    monkeypatch.setattr("sys.argv", ["pred_xstart.py", f"--workdir={trained}", "--num_images=40"])
    pred_xstart.main()
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines() if line.split()[0].isdigit()]
    assert [int(row[0]) for row in rows] == [t * 99 // 999 for t in pred_xstart.TIMESTEPS]
    assert float(rows[0][2]) == pytest.approx(1, abs=0.1)
    assert float(rows[0][3].rstrip("%")) > 90
    assert "The images themselves are 0.412 from the means" in out

"""Every experiment of configs/: it builds at full size and trains a step at reduced size."""

import importlib
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from ddpm_jax import build, condition_config, config_validation, sampling_config
from ddpm_jax.configs import defaults
from ddpm_jax.runtime.mesh import make_mesh

FOLDER = pathlib.Path(defaults.__file__).parent
NAMES = sorted(file.stem for file in FOLDER.glob("*.py") if file.stem not in ("defaults", "from_workdir"))

PUBLISHED = {  # parameters
    "adm_imagenet64": 295_904_454,
    "cifar10": 35_746_307,
    "celeba64": 78_700_803,
    "celebahq256": 113_673_219,
    "iddpm_cifar10": 52_546_438,
    "iddpm_imagenet64": 121_063_942,
    "lsun_bedroom256": 113_673_219,
    "lsun_cat256": 113_673_219,
    "lsun_church256": 113_673_219,
}


def load(name):
    return importlib.import_module(f"ddpm_jax.configs.{name}").get_config()


def shrink(config):
    """One level and images of four pixels, with attention if the experiment has any; equal networks compile once.

    Without dropout and flips, by which experiments of the same network differ: tests of the U-Net and of the step have them.
    """
    model = config.model
    model.unet.ch_mult = (1,)
    model.unet.attn_resolutions = (4,) if model.unet.attn_resolutions else ()
    model.unet.ch = 8
    model.unet.head_channels = min(8, model.unet.head_channels)
    model.unet.num_res_blocks = 1
    model.unet.dropout = 0.0
    config.data.image_size = 4
    config.data.random_flip = False
    config.train.batch_size = 8
    config.optimizer.warmup_steps = min(10, config.optimizer.warmup_steps)  # or the first step is below float32's rounding
    return config


def built_from(config):
    """What a training step is compiled from, as text. The learning rate is an argument; the EMA's decay is 0.1 at first."""
    fields = {section: config[section].to_dict() for section in ("diffusion", "optimizer", "ema")}
    for section, name in (("optimizer", "learning_rate"), ("optimizer", "warmup_steps"), ("ema", "decay")):
        del fields[section][name]
    data = [config.data[name] for name in ("condition", "condition_noise")]
    return repr((build.build_model(config), build.image_shape(config), config.model.label_dropout, data, fields))


def shapes_of_params(config):
    """Those of the network alone, which JAX traces faster than an initial state."""
    model, cond = build.build_model(config), condition_config.example_cond(config, build.build_condition(config))
    inputs = (jnp.zeros((1, *build.image_shape(config))), jnp.zeros(1, jnp.int32), cond)
    return jax.eval_shape(lambda key: model.init(key, *inputs), jax.random.key(0))


@pytest.fixture(scope="module")
def once():
    """(key, function) -> what the function returns, computed once for each key: equal networks are traced once."""
    made = {}

    def compute(key, function):
        if key not in made:
            made[key] = function()
        return made[key]

    return compute


@pytest.mark.parametrize("name", NAMES)
def test_builds_at_full_size(name, once):
    config = load(name)
    config_validation.check_config(config)
    build.build_init(config)
    build.build_train_step(config, make_mesh(jax.devices()[:1]))
    build.build_sampler(config)
    network = build.build_model(config), build.image_shape(config)
    number = sum(leaf.size for leaf in jax.tree.leaves(once(network, lambda: shapes_of_params(config))))
    if name in PUBLISHED:
        assert number == PUBLISHED[name]
    readme = (FOLDER.parent / "README.md").read_text()
    row = next(line for line in readme.splitlines() if line.startswith(f"| [`{name}`]"))
    assert f"| {number:,} |" in row


@pytest.mark.parametrize("name", NAMES)
def test_sample_grids_cost_little(name):
    """At most 20 evaluations per image during training, except for the digits, whose 50 cost 26 of 2,500 steps; the final
    grid costs less than the training, and is omitted after two steps."""
    config = load(name)
    quick, full = sampling_config.quick_config(config), sampling_config.few_images(config)
    config_validation.check_config(quick)
    assert build.build_sampler(quick).nfe <= (50 if name == "digits" else 20)
    assert sampling_config.cost_in_steps(quick) <= sampling_config.cost_in_steps(full) < config.train.num_steps / 50
    assert sampling_config.cost_in_steps(full) > 2


@pytest.mark.parametrize("name", NAMES)
def test_trains_a_step_at_reduced_size(name, once):
    """Every parameter is updated by the optimizer of the config, and the EMA follows with its decay."""
    config = shrink(load(name))
    config_validation.check_config(config)
    functions = build.build_init(config), build.build_train_step(config, make_mesh(jax.devices()[:1]))
    init, train_step = once(built_from(config), lambda: [*map(jax.jit, functions)])
    rng = np.random.default_rng(0)
    # All random: an initial network outputs zero and has no gradients below. The rest of an initial state is zeros.
    before = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), jax.eval_shape(init, jax.random.key(0)))
    params = jax.tree.map(lambda leaf: (0.1 * rng.standard_normal(leaf.shape)).astype(leaf.dtype), before.params)
    before = before.replace(params=params, ema_params=params)
    images = rng.integers(0, 256, (8, *build.image_shape(config)), dtype=np.uint8)
    batch = {"image": images, "label": np.arange(8, dtype=np.int32)}
    learning_rate = build.build_learning_rate(config)
    after, metrics = train_step(before, batch, jax.random.key(1), learning_rate(0))
    # The target has a mean square of 1 (noise; for v at least that of the image), independent of the outputs.
    least = np.mean(np.square(images / 127.5 - 1)) if config.diffusion.prediction == "v" else 1
    assert least - 5 * np.sqrt(2 / images.size) < float(metrics["loss"]) < 30
    assert int(after.step) == 1
    # Adam's first step is the learning rate times the sign of the gradient, up to its epsilon.
    rate = float(learning_rate(0))
    warmup = config.optimizer.warmup_steps
    assert rate == pytest.approx(config.optimizer.learning_rate / max(1, warmup))
    change = jax.tree.map(lambda new, old: np.abs(np.asarray(new) - np.asarray(old)), after.params, before.params)
    unmoved = [jax.tree_util.keystr(path) for path, leaf in jax.tree_util.tree_leaves_with_path(change) if not leaf.any()]
    # A bias of the keys shifts all logits of a query alike, which softmax ignores: its gradient is a rounding error.
    assert not [name for name in unmoved if not name.endswith("['k']['bias']")]
    largest = max(leaf.max() for leaf in jax.tree.leaves(change))
    assert largest == pytest.approx(rate, rel=0.1)  # at least 2e-6, for parameters of size 1 in float32
    decay = min(config.ema.decay, 1 / 10)  # at the first step
    expected = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, before.params, after.params)
    for average, wanted in zip(*map(jax.tree.leaves, (after.ema_params, expected)), strict=True):
        np.testing.assert_allclose(average, wanted, rtol=1e-6, atol=0.01 * rate)


@pytest.mark.parametrize("name", NAMES)
def test_its_own_sampling_is_not_warned_of(name):
    assert sampling_config.sampling_warnings(load(name)) == []


def test_the_image_folder_config_avoids_color_casts():
    """docs/colors.md: small sets need a prediction other than eps, and a spacing that starts at pure noise."""
    config = load("image_folder")
    assert config.diffusion.prediction == "v"
    assert build.sampling_schedule(config).timesteps[-1] == config.diffusion.num_timesteps - 1


@pytest.mark.parametrize("name", NAMES)
def test_the_header_has_the_command(name):
    text = (FOLDER / f"{name}.py").read_text()
    assert f"python main.py --config=configs/{name}.py --workdir=runs/{name}" in text
    for part in ("Command:", "Hardware:", "Expected:"):
        assert part in text


@pytest.fixture
def restated(monkeypatch):
    """(get_config) -> the fields that it sets to their default."""
    found = []
    set_field = ConfigDict.__setattr__

    def spy(config, name, value):
        if name in config and not isinstance(value, ConfigDict) and config[name] == value:
            found.append(f"{name}={value!r}")
        set_field(config, name, value)

    def trace(make):
        found.clear()
        with monkeypatch.context() as patch:
            patch.setattr(ConfigDict, "__setattr__", spy)
            make()
        return list(found)

    return trace


def test_a_field_that_is_set_to_its_default_is_found(restated):
    def make():
        config = defaults.get_config()
        config.model.unet.ch = defaults.get_config().model.unet.ch
        config.data.image_size = 8

    assert restated(make) == [f"ch={defaults.get_config().model.unet.ch}"]


@pytest.mark.parametrize("name", NAMES)
def test_sets_only_fields_that_differ_and_adds_none(name, restated):
    assert not restated(lambda: load(name))
    fields, ours = dict(_flat(defaults.get_config())), dict(_flat(load(name)))
    assert ours.keys() == fields.keys()
    for field, value in fields.items():
        assert type(ours[field]) is type(value), field


def _flat(config):
    for section, value in config.items():
        if hasattr(value, "items"):
            yield from ((f"{section}.{name}", field) for name, field in value.items())
        else:
            yield section, value

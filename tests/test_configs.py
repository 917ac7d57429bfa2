"""Every experiment of configs/: it builds at full size, and takes a step shrunk."""

import importlib
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import defaults
from ddpm_jax import build, check
from ddpm_jax.programs import pictures, sample
from ddpm_jax.runtime.mesh import make_mesh

FOLDER = pathlib.Path(defaults.__file__).parent
NAMES = sorted(file.stem for file in FOLDER.glob("*.py") if file.stem not in ("defaults", "workdir"))

PUBLISHED = {  # parameters
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
    return importlib.import_module(f"configs.{name}").get_config()


def shrink(config):
    """One level, over images of four pixels, with attention where the experiment has any: networks alike compile once."""
    model = config.model
    model.ch_mult = (1,)
    model.attn_resolutions = (4,) if model.attn_resolutions else ()
    model.ch = 8
    model.num_res_blocks = 1
    config.data.image_size = 4
    config.train.batch_size = 8
    return config


@pytest.mark.parametrize("name", NAMES)
def test_builds_at_full_size(name):
    config = load(name)
    check.check_config(config)
    state = jax.eval_shape(build.build_init(config), jax.random.key(0))
    build.build_sampler(config)
    number = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    if name in PUBLISHED:
        assert number == PUBLISHED[name]
    readme = (FOLDER.parent / "README.md").read_text()
    row = next(line for line in readme.splitlines() if line.startswith(f"| [`{name}`]"))
    assert f"| {number:,} |" in row


@pytest.mark.parametrize("name", NAMES)
def test_pictures_cost_little(name):
    """Along the way at most 20 evaluations an image, but for the digits, whose 50 cost 26 steps of 2,500; the last picture
    costs less than the training, and is left out after two steps."""
    config = load(name)
    quick, full = pictures.quick_config(config), pictures.few_images(config)
    check.check_config(quick)
    assert build.build_sampler(quick).evaluations <= (50 if name == "digits" else 20)
    assert pictures.cost_in_steps(quick) <= pictures.cost_in_steps(full) < config.train.num_steps / 50
    assert pictures.cost_in_steps(full) > 2


@pytest.mark.parametrize("name", NAMES)
def test_takes_a_step_shrunk(name):
    config = shrink(load(name))
    check.check_config(config)
    init, train_step = jax.jit(build.build_init(config)), jax.jit(build.build_train_step(config, make_mesh(jax.devices()[:1])))
    before = init(jax.random.key(0))
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (8, *build.image_shape(config)), dtype=np.uint8)
    batch = {"image": jnp.asarray(images), "label": jnp.arange(8, dtype=jnp.int32)}
    after, metrics = train_step(before, batch, jax.random.key(1))
    assert np.isfinite(float(metrics["loss"]))
    # A fresh network outputs zero, so that the loss is the mean square of what it is to predict: noise; 5 standard deviations.
    # v is a mixture of noise and image, by a share that depends on t: its mean square lies between theirs.
    least = np.mean(np.square(images / 127.5 - 1)) if config.diffusion.prediction == "v" else 1
    slack = 5 * np.sqrt(2 / images.size)
    assert least - slack <= float(metrics["loss"]) <= 1 + slack
    assert int(after.step) == 1
    moved = [bool((a != b).any()) for a, b in zip(*map(jax.tree.leaves, (before.params, after.params)), strict=True)]
    assert any(moved)


@pytest.mark.parametrize("name", NAMES)
def test_its_own_sampling_is_not_warned_of(name):
    assert sample.sampling_notes(load(name)) == []


@pytest.mark.parametrize("name", NAMES)
def test_the_header_says_how_to_run_it(name):
    text = (FOLDER / f"{name}.py").read_text()
    assert f"python main.py --config=configs/{name}.py --workdir=runs/{name}" in text
    for part in ("Command:", "Hardware:", "Expected:"):
        assert part in text


@pytest.mark.parametrize("name", NAMES)
def test_states_only_what_differs_and_adds_no_field(name):
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

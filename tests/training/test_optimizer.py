"""Optimizers and clipping against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax import build
from ddpm_jax.configs import digits
from ddpm_jax.training.learning_rate import make_learning_rate
from ddpm_jax.training.optimizer import OPTIMIZERS, kernel_mask, make_optimizer, muon_dimensions

PARAMS = {"w": jnp.zeros((2, 3)), "b": jnp.zeros(3)}
LAYER = {"dense": {"kernel": (12, 8), "bias": (8,)}, "conv": {"kernel": (3, 3, 8, 16)}, "embed": {"embedding": (10, 8)}}


def random_like(shapes, seed, scale=1.0):
    generator = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(scale * generator.standard_normal(shape), jnp.float32),
        shapes,
        is_leaf=lambda shape: isinstance(shape, tuple),
    )


def gradients(seed, scale=1.0):
    return random_like({name: p.shape for name, p in PARAMS.items()}, seed, scale)


def updates_for(optimizer, sequence, params=PARAMS):
    """The updates for a sequence of gradients at the same parameters, for learning rate 1."""
    update, state, results = jax.jit(optimizer.update), optimizer.init(params), []
    for grads in sequence:
        updates, state = update(grads, state, params)
        results.append(updates)
    return results


def adam(sequence, b1=0.9, b2=0.999, eps=1e-8):
    """Kingma and Ba 1412.6980, algorithm 1, in float64 NumPy, for one array."""
    first, second, results = 0.0, 0.0, []
    for step, g in enumerate(sequence, start=1):
        g = np.asarray(g, np.float64)
        first, second = b1 * first + (1 - b1) * g, b2 * second + (1 - b2) * g**2
        results.append(-(first / (1 - b1**step)) / (np.sqrt(second / (1 - b2**step)) + eps))
    return results


def lion(sequence, b1, b2):
    """Chen et al. 2302.06675, algorithm 2, without decay."""
    momentum, results = 0.0, []
    for g in sequence:
        g = np.asarray(g, np.float64)
        results.append(-np.sign(b1 * momentum + (1 - b1) * g))
        momentum = b2 * momentum + (1 - b2) * g
    return results


def sgd(sequence, momentum, nesterov):
    """v = m v + g; the step is -v, or with Nesterov's momentum -(m v + g), as PyTorch's."""
    velocity, results = 0.0, []
    for g in sequence:
        g = np.asarray(g, np.float64)
        velocity = momentum * velocity + g
        results.append(-(momentum * velocity + g if nesterov else velocity))
    return results


def newton_schulz(matrix, steps=5):
    """Jordan's quintic iteration, which makes all singular values about 1."""
    x = matrix / np.linalg.norm(matrix)
    if transposed := x.shape[0] > x.shape[1]:
        x = x.T
    for _ in range(steps):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.T if transposed else x


def test_the_first_step_of_adam_is_the_sign_of_the_gradient():
    """-g / (|g| + eps): half a step where g = eps. The division by sqrt(1 - b2) costs float32 up to 1e-4."""
    grads = {"w": jnp.array([[1e3, -1.0, 1e-3], [1e-8, -1e-8, 0.0]]), "b": jnp.zeros(3)}
    (update,) = updates_for(make_optimizer("adam"), [grads])
    np.testing.assert_allclose(update["w"], -np.array([[1, -1, 1], [0.5, -0.5, 0]]), rtol=1e-4)
    np.testing.assert_array_equal(update["b"], 0)


@pytest.mark.parametrize(
    ("name", "options", "definition"),
    [
        ("adam", {"b1": 0.8}, lambda sequence: adam(sequence, b1=0.8)),
        ("adamw", {"weight_decay": 0.0, "eps": 0.1}, lambda sequence: adam(sequence, eps=0.1)),
        ("lion", {"b1": 0.8, "b2": 0.9}, lambda sequence: lion(sequence, 0.8, 0.9)),
        ("sgd", {"momentum": 0.8}, lambda sequence: sgd(sequence, 0.8, False)),
        ("sgd", {"momentum": 0.8, "nesterov": True}, lambda sequence: sgd(sequence, 0.8, True)),
        ("sgd", {"momentum": 0.0}, lambda sequence: sgd(sequence, 0.0, False)),
        ("optax:adam", {"b1": 0.8}, lambda sequence: adam(sequence, b1=0.8)),
    ],
    ids=lambda value: str(value) if not callable(value) else "",
)
def test_updates_are_those_of_the_definition(name, options, definition):
    """Six different gradients at parameters 0; float32 powers of b2 near 1: 1e-4."""
    sequence = [gradients(seed) for seed in range(6)]
    got = updates_for(make_optimizer(name, **options), sequence)
    for leaf in PARAMS:
        want = definition([grads[leaf] for grads in sequence])
        np.testing.assert_allclose([update[leaf] for update in got], want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "lion", "muon"])
def test_weight_decay_is_decoupled_and_acts_on_kernels(name):
    """It subtracts weight_decay x parameter for learning rate 1, from kernels only; 1e-5."""
    params = random_like(LAYER, 0)
    sequence = [random_like(LAYER, seed) for seed in (1, 2)]
    with_decay = updates_for(make_optimizer(name, weight_decay=0.3), sequence, params)[1]
    without = updates_for(make_optimizer(name, weight_decay=0.0), sequence, params)[1]
    decay = jax.tree.map(lambda a, b: a - b, without, with_decay)
    for layer, leaf in (("dense", "kernel"), ("conv", "kernel")):
        np.testing.assert_allclose(decay[layer][leaf], 0.3 * params[layer][leaf], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(decay["dense"]["bias"], 0)
    np.testing.assert_array_equal(decay["embed"]["embedding"], 0)


def unet_params():
    return jax.eval_shape(build.build_init(digits.get_config()), jax.random.key(0)).params


def names(tree, is_leaf=None):
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)
    return {"/".join(key.key for key in path): leaf for path, leaf in leaves}


def test_the_decayed_parameters_of_the_unet():
    """Every kernel, in time_embed, blocks, attention, resampling and at both ends; no norm, bias or embedding."""
    mask = names(kernel_mask(unet_params()))
    decayed = {name for name, decays in mask.items() if decays}
    assert decayed == {name for name in mask if name.endswith("/kernel")}
    kept = {name.rpartition("/")[2] for name in mask.keys() - decayed}
    assert kept == {"bias", "scale", "embedding"}
    assert {"conv_in/kernel", "conv_out/kernel"} < decayed
    assert "class_embed/embedding" not in decayed
    assert len(decayed) > 20


def test_the_unets_parameters_that_muon_updates():
    """Every kernel except those at the images, which have one channel; a convolution is a matrix [h w in, out]."""
    dimensions = names(muon_dimensions(unet_params()), is_leaf=lambda x: x is None or isinstance(x, tuple))
    chosen = {name: axes for name, axes in dimensions.items() if axes is not None}
    kernels = {name for name in dimensions if name.endswith("/kernel")}
    assert kernels - chosen.keys() == {"conv_in/kernel", "conv_out/kernel"}
    shapes = {name: leaf.shape for name, leaf in names(unet_params()).items()}
    for name, axes in chosen.items():
        assert axes == ((0,), 1) if len(shapes[name]) == 2 else axes == ((0, 1, 2), 3), name
    assert {len(shapes[name]) for name in chosen} == {2, 4}


def test_muon_orthogonalizes_kernels_as_matrices():
    """The first step is 0.2 sqrt(max(in, out)) Newton-Schulz(gradient), with root mean square about 0.2; float32: 1e-3."""
    params, grads = random_like(LAYER, 0), random_like(LAYER, 1)
    (update,) = updates_for(make_optimizer("muon"), [grads], params)
    for layer, rows, columns in (("dense", 12, 8), ("conv", 72, 16)):
        matrix = np.asarray(grads[layer]["kernel"], np.float64).reshape(rows, columns)
        want = -0.2 * np.sqrt(max(rows, columns)) * newton_schulz(matrix)
        got = np.asarray(update[layer]["kernel"]).reshape(rows, columns)
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3)
        assert 0.12 < np.sqrt(np.mean(got**2)) < 0.28
        assert np.ptp(np.linalg.svd(got)[1]) < np.ptp(np.linalg.svd(matrix)[1])
    adams = adam([grads["dense"]["bias"]])[0]
    np.testing.assert_allclose(np.sign(update["dense"]["bias"]), np.sign(adams))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_minimize_a_quadratic(name):
    """200 steps at a decreasing rate towards a target of size 1, from 0: a hundredth of the loss is left."""
    target, params = random_like(LAYER, 0), jax.tree.map(jnp.zeros_like, random_like(LAYER, 0))
    optimizer = make_optimizer(name, **({"weight_decay": 0.0} if name in ("adamw", "lion", "muon") else {}))
    rate = make_learning_rate("linear", 0.3 if name == "muon" else 0.05, 200)  # Muon's updates are of size 0.2

    @jax.jit
    def step(params, state, learning_rate):
        updates, state = optimizer.update(jax.tree.map(lambda p, t: p - t, params, target), state, params)
        return jax.tree.map(lambda p, u: p + learning_rate * u, params, updates), state

    state = optimizer.init(params)
    for number in range(200):
        params, state = step(params, state, rate(number))
    for got, want in zip(jax.tree.leaves(params), jax.tree.leaves(target), strict=True):
        assert np.mean((got - want) ** 2) < 0.01 * np.mean(want**2)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("adam", {"b1": 1.0}, r"^`b1` is 1.0, out of adam's range: it must be at least 0 and below 1$"),
        ("adam", {"eps": -1.0}, r"^`eps` is -1.0, out of adam's range: it must be 0 or more$"),
        ("adamw", {"b2": -0.1}, r"^`b2` is -0.1, out of adamw's range"),
        ("adamw", {"weight_decay": -1.0}, r"^`weight_decay` is -1.0, out of adamw's range: it must be 0 or more$"),
        ("lion", {"b2": 1.0}, r"^`b2` is 1.0, out of lion's range"),
        ("lion", {"weight_decay": -1.0}, r"^`weight_decay` is -1.0, out of lion's range"),
        ("muon", {"beta": 1.0}, r"^`beta` is 1.0, out of muon's range"),
        ("muon", {"ns_steps": 0}, r"^`ns_steps` is 0, out of muon's range: it must be 1 or more$"),
        ("muon", {"consistent_rms": 0.0}, r"^`consistent_rms` is 0.0, out of muon's range: it must be above 0$"),
        ("sgd", {"momentum": 1.0}, r"^`momentum` is 1.0, out of sgd's range"),
        ("sgd", {"b1": 0.9}, "the optimizer sgd has no option 'b1': it has momentum, nesterov"),
        ("adagrad", {}, "unknown optimizer 'adagrad': choose one of adam, adamw, lion, muon, sgd, or module:function"),
    ],
)
def test_mistakes_are_named(name, options, message):
    with pytest.raises(ValueError, match=message):
        make_optimizer(name, **options)


# Clipping, and the structure of the state.


def moment(state):
    return optax.tree_utils.tree_get(state, "mu")


@pytest.mark.parametrize(("scale", "clipped"), [(1e-2, False), (1e3, True)])
def test_large_gradients_are_clipped_before_adam(scale, clipped):
    """Adam's first moment after one step is a tenth of its gradient; 1e-5."""
    grads, optimizer = gradients(0, scale), make_optimizer("adam", clip_norm=1.0)
    assert (optax.tree.norm(grads) > 1.0) == clipped
    _, state = optimizer.update(grads, optimizer.init(PARAMS), PARAMS)
    seen = jax.tree.map(lambda m: m / 0.1, moment(state))
    assert optax.tree.norm(seen) <= 1.0 + 1e-5
    factor = 1 / optax.tree.norm(grads) if clipped else 1.0
    for name in PARAMS:
        np.testing.assert_allclose(seen[name], factor * grads[name], rtol=1e-5)


def test_clipping_uses_the_global_norm():
    """Two arrays of norm 1 each have a global norm above 1, so both shrink by sqrt(2); 1e-5."""
    grads = {"w": jnp.zeros((2, 3)).at[0, 0].set(1.0), "b": jnp.zeros(3).at[1].set(1.0)}
    optimizer = make_optimizer("adam", clip_norm=1.0)
    _, state = optimizer.update(grads, optimizer.init(PARAMS), PARAMS)
    np.testing.assert_allclose([moment(state)["w"][0, 0], moment(state)["b"][1]], 0.1 / np.sqrt(2), rtol=1e-5)


def test_clip_norm_zero_disables_clipping():
    grads, optimizer = gradients(0, 1e3), make_optimizer("adam")
    _, state = optimizer.update(grads, optimizer.init(PARAMS), PARAMS)
    np.testing.assert_allclose(moment(state)["w"], 0.1 * grads["w"], rtol=1e-5)


@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
@pytest.mark.parametrize("skip_nonfinite", [0, 2])
def test_finite_gradients_have_the_updates_of_optaxs_chain(clip_norm, skip_nonfinite):
    """Multiplied by the rate, bit-identical to optax.adam with a schedule, with clipping and skipping on and off."""
    optimizer, warmup = make_optimizer("adam", clip_norm=clip_norm, skip_nonfinite=skip_nonfinite), 3
    clip = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
    plain = optax.chain(*clip, optax.adam(lambda step: 1e-3 * jnp.minimum(1.0, (step + 1) / warmup)))
    sequence = [gradients(seed, scale) for seed, scale in enumerate((1.0, 100.0, 1e-3, 5.0))]
    rate = make_learning_rate("constant", 1e-3, 4, warmup_steps=warmup)
    for number, (got, want) in enumerate(zip(updates_for(optimizer, sequence), updates_for(plain, sequence), strict=True)):
        for name in PARAMS:
            np.testing.assert_array_equal(rate(number) * got[name], want[name])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_structure_of_the_state_depends_on_the_name_only(name):
    params, other = random_like(LAYER, 0), {"adamw": {"weight_decay": 0.0}, "sgd": {"momentum": 0.0, "nesterov": True}}
    usual = make_optimizer(name).init(params)
    changed = make_optimizer(name, clip_norm=1.0, skip_nonfinite=3, **other.get(name, {})).init(params)
    assert jax.tree.structure(usual) == jax.tree.structure(changed)
    assert jax.eval_shape(lambda: usual) == jax.eval_shape(lambda: changed)

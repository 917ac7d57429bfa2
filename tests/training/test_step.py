"""One training step: its random numbers, averages, gradients and metrics."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from ddpm_jax.cpu.gradients import shard_map_grads
from ddpm_jax.diffusion import losses, pixels
from ddpm_jax.diffusion.parameterization import Parameterization
from ddpm_jax.diffusion.schedules import make_schedule, schedule_from_betas
from ddpm_jax.diffusion.timestep_sampling import LossHistory, TimestepSampler, make_timestep_sampler
from ddpm_jax.models.unet import UNet
from ddpm_jax.training.learning_rate import make_learning_rate
from ddpm_jax.training.optimizer import make_optimizer
from ddpm_jax.training.state import create_state
from ddpm_jax.training.step import train_step

SCHEDULE = make_schedule("cosine", 100)
SGD = optax.sgd(1.0)  # params - new params = gradient
BATCH, PIXELS, HIDDEN = 16, 64, 24


def make_batch(size=BATCH, shape=(8, 8, 1), seed=0):
    generator = np.random.default_rng(seed)
    return {"image": jnp.asarray(generator.integers(0, 256, (size, *shape)), jnp.uint8)}


def init_network(key):
    first, second = jax.random.split(key)
    return {
        "in": jax.random.normal(first, (PIXELS + 1, HIDDEN)) / 8,
        "out": jax.random.normal(second, (HIDDEN, PIXELS)) / 5,
    }


def network(params, x_t, t, labels, dropout_key, *, dropout=0.0):
    """Two layers."""
    x = jnp.concatenate([x_t.reshape(-1, PIXELS), 0.01 * t.astype(jnp.float32)[:, None]], axis=1)
    hidden = jnp.tanh(x @ params["in"])
    hidden = jnp.where(jax.random.bernoulli(dropout_key, 1 - dropout, hidden.shape), hidden / (1 - dropout), 0.0)
    return (hidden @ params["out"]).reshape(x_t.shape)


def make_step(**changes):
    options = {
        "apply_fn": network,
        "schedule": SCHEDULE,
        "optimizer": SGD,
        "learning_rate": 1.0,
        "parameterization": Parameterization("eps", "fixed_large", clip_denoised=True),
        "loss_fn": losses.make_loss("simple"),
        "ema_decay": 0.99,
        "random_flip": False,
    }
    return functools.partial(train_step, **(options | changes))


def new_state(optimizer=SGD, init=init_network):
    return jax.jit(create_state, static_argnums=(0, 1))(init, optimizer, jax.random.key(1))


def assert_close(got, want, atol):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=atol, atol=atol)


def assert_same(got, want):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(a, b)


def differ(got, want):
    return any(not np.array_equal(a, b) for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True))


# A spy replaces the network. Its loss has prescribed gradients, which SGD writes into the parameters.


@jax.custom_vjp
def reveal(param, value):
    """0, with `value` as the gradient of `param`."""
    return jnp.zeros(())


reveal.defvjp(lambda param, value: (jnp.zeros(()), value), lambda value, _: (value, jax.tree.map(jnp.zeros_like, value)))


def spy(params, x_t, t, labels, dropout_key):
    seen = {
        "x_t": x_t,
        "t": t.astype(jnp.float32),
        "dropout": jax.random.uniform(dropout_key, (2,)) ** jnp.array([1.0, 2.0]),
    }
    if labels is not None:
        seen["cond"] = jax.tree.map(lambda x: x.astype(jnp.float32), labels)
    return jnp.zeros_like(x_t) + sum(reveal(params[name], value) for name, value in seen.items())


def spied(batch, *, steps=1, key=None, cond_like=None, **changes):
    """The network's inputs in each step, and the metrics; `cond_like` is a condition of another shape than [B]."""
    shape = batch["image"].shape
    params = {"x_t": jnp.zeros(shape), "t": jnp.zeros(shape[:1]), "dropout": jnp.zeros(2)}
    if "cond" in batch:
        params["cond"] = jnp.zeros(shape[:1]) if cond_like is None else cond_like
    step = jax.jit(make_step(apply_fn=spy, **changes))
    state, results = new_state(SGD, lambda key: params), []
    for _ in range(steps):
        before = state.params
        state, metrics = step(state, batch, jax.random.key(0) if key is None else key)
        results.append((jax.tree.map(lambda a, b: np.asarray(a - b), before, state.params), metrics))
    return results


# Noise and time (DDPM, algorithm 1).


def test_t_is_uniform_over_the_chain():
    """4,096 samples of 10 times: 410 each, standard deviation 19; five of them allowed."""
    ((seen, _),) = spied(make_batch(4096, (1, 1, 1)), schedule=make_schedule("cosine", 10))
    times, counts = np.unique(seen["t"], return_counts=True)
    np.testing.assert_array_equal(times, np.arange(10))
    assert np.abs(counts - 409.6).max() < 5 * 19.2


def test_the_network_gets_the_noised_image():
    """The noise follows from x_t and t; it is N(0, 1), and the loss of a network with output 0 is its mean square.

    16,384 numbers: standard errors 1/128 of the mean and 1/90 of the variance, five allowed; the loss to 1e-4.
    """
    batch = make_batch(256)
    ((seen, metrics),) = spied(batch)
    t = seen["t"].astype(int)[:, None, None, None]
    signal, spread = SCHEDULE.sqrt_alphas_cumprod[t], SCHEDULE.sqrt_one_minus_alphas_cumprod[t]
    noise = (seen["x_t"] - signal * np.asarray(pixels.from_uint8(batch["image"]))) / spread
    assert abs(noise.mean()) < 5 / 128
    assert abs(noise.var() - 1) < 5 / 90
    np.testing.assert_allclose(metrics["loss"], np.mean(noise**2), rtol=1e-4)
    by_image = np.corrcoef(noise.reshape(256, -1)) - np.eye(256)
    assert np.abs(by_image).max() < 6 / 8  # 64 pixels: standard error 1/8, the largest of 32,640


def test_random_numbers_depend_on_key_and_step():
    batch = make_batch()
    (first, _), (second, _) = spied(batch, steps=2)
    ((again, _),) = spied(batch)
    ((other, _),) = spied(batch, key=jax.random.key(7))
    assert_same(again, first)
    for name in ("x_t", "t", "dropout"):
        assert not np.allclose(first[name], second[name], atol=1e-3), name
        assert not np.allclose(first[name], other[name], atol=1e-3), name


def test_each_micro_batch_has_its_own_dropout():
    """The mean of u and of u^2 over micro-batches is revealed; if all u were equal, the variance would be 0."""
    params = {"dropout": jnp.zeros(2)}

    def only_dropout(params, x_t, t, labels, dropout_key):
        u = jax.random.uniform(dropout_key)
        return jnp.zeros_like(x_t) + reveal(params["dropout"], jnp.stack([u, u * u]))

    step = jax.jit(make_step(apply_fn=only_dropout, accumulation_steps=4))
    state, _ = step(new_state(SGD, lambda key: params), make_batch(), jax.random.key(0))
    mean, square = -state.params["dropout"]
    assert square - mean**2 > 1e-3


# Flips and labels.


def flip_examples(random_flip, steps=1):
    """400 images whose corner pixel and label is their index, with negligible noise."""
    images = np.random.default_rng(0).integers(0, 256, (400, 4, 4, 1)).astype(np.uint8)
    number = np.arange(400)
    images[:, 0, 0, 0], images[:, 0, 3, 0] = number % 250, 255
    batch = {"image": jnp.asarray(images), "cond": jnp.asarray(number, jnp.int32)}
    results = spied(batch, steps=steps, random_flip=random_flip, schedule=schedule_from_betas([1e-10] * 4))
    for seen, _ in results:
        np.testing.assert_array_equal(seen["cond"], number)
    return images, [np.asarray(pixels.to_uint8(seen["x_t"])) for seen, _ in results]


def test_images_are_flipped_independently_with_probability_one_half():
    """Every image is itself or its mirror image, in order; 200 of 400 flips, standard deviation 10, five allowed."""
    images, seen = flip_examples(random_flip=True, steps=2)
    mirrored = []
    for shown in seen:
        flipped = (shown == images[:, :, ::-1]).all(axis=(1, 2, 3))
        np.testing.assert_array_equal(shown, np.where(flipped[:, None, None, None], images[:, :, ::-1], images))
        assert abs(flipped.sum() - 200) < 50
        mirrored.append(flipped)
    assert abs((mirrored[0] == mirrored[1]).sum() - 200) < 50  # independent of the next step


def test_without_random_flip_images_are_unchanged():
    images, (shown,) = flip_examples(random_flip=False)
    np.testing.assert_array_equal(shown, images)


def test_labels_are_dropped_independently():
    """100 of 400 labels, standard deviation 8.7, five allowed; the others are unchanged, and another step drops others."""
    batch = make_batch(400, (1, 1, 1)) | {"cond": jnp.arange(400, dtype=jnp.int32) % 10}
    dropped = []
    for seen, _ in spied(batch, steps=2, cond_dropout=0.25, null_cond=np.int32(10)):
        missing = seen["cond"] == 10
        np.testing.assert_array_equal(seen["cond"][~missing], np.asarray(batch["cond"])[~missing])
        assert abs(missing.sum() - 100) < 5 * 8.7
        dropped.append(missing)
    assert (dropped[0] != dropped[1]).any()


@pytest.mark.parametrize("random_flip", [True, False])
def test_conditions_are_made_of_the_images_that_the_network_gets(random_flip):
    """`cond_fn` gets the mirrored images and which ones they are; the dropout follows."""
    images = make_batch(400, (4, 4, 1))["image"]

    def cond_fn(cond, images, flip, key):
        flipped = jnp.zeros(len(images), bool) if flip is None else flip[:, 0, 0, 0]
        return cond | {"image": images.astype(jnp.float32), "flipped": flipped.astype(jnp.float32)}

    null = {"number": np.float32(-1), "image": np.full((4, 4, 1), -1, np.float32), "flipped": np.float32(-1)}
    options = {"random_flip": random_flip, "cond_fn": cond_fn, "cond_dropout": 0.25, "null_cond": null}
    batch = {"image": images, "cond": {"number": jnp.arange(400.0)}}
    zeros = {"number": jnp.zeros(400), "image": jnp.zeros((400, 4, 4, 1)), "flipped": jnp.zeros(400)}
    ((seen, _),) = spied(batch, cond_like=zeros, **options)
    cond, kept = seen["cond"], seen["cond"]["number"] >= 0
    assert abs(kept.sum() - 300) < 5 * 8.7
    assert (cond["image"][~kept] == -1).all()
    assert (cond["flipped"][~kept] == -1).all()
    flipped = cond["flipped"] == 1
    assert abs(flipped[kept].sum() - 150 * random_flip) <= 5 * 8.7 * random_flip
    expected = np.where(flipped[:, None, None, None], images[:, :, ::-1], images)
    np.testing.assert_array_equal(cond["image"][kept], expected[kept])


# Timestep sampling.


def test_weights_of_sampled_t_apply_to_the_loss_but_not_to_the_history():
    """All t are 3 with weight 2: the loss is twice that of a schedule of t = 3 alone, quartiles have the unweighted loss."""

    def draw(state, key, size):
        return jnp.full(size, 3, jnp.int32), jnp.full(size, 2.0)

    seen = []

    def update(state, t, losses):
        seen.append((t, losses))
        return state + 1

    sampler = TimestepSampler(init=lambda: jnp.zeros(()), draw=draw, update=update)
    state = new_state().replace(timestep_sampler_state=sampler.init())
    state, metrics = make_step(timestep_sampler=sampler)(state, make_batch(), jax.random.key(0))
    ((t, values),) = seen
    assert (t == 3).all()
    np.testing.assert_allclose(metrics["loss"], 2 * values.mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["quartile_sum"][0], values.sum(), rtol=1e-5)
    assert state.timestep_sampler_state == 1


@pytest.mark.parametrize("accumulation_steps", [1, 4])
def test_every_loss_enters_the_history_once_at_its_t(accumulation_steps):
    sampler = make_timestep_sampler("second_moment", SCHEDULE.num_timesteps)
    step = jax.jit(make_step(timestep_sampler=sampler, accumulation_steps=accumulation_steps))
    state = new_state().replace(timestep_sampler_state=sampler.init())
    for number in range(3):
        state, metrics = step(state, make_batch(), jax.random.key(0))
        assert state.timestep_sampler_state.counts.sum() == BATCH * (number + 1)
        if number == 0:
            np.testing.assert_allclose(state.timestep_sampler_state.losses.sum(), metrics["quartile_sum"].sum(), rtol=1e-5)


# Gradients: micro-batches, devices, clipping.


@functools.cache
def one_step(accumulation_steps=1, unroll=False, clip_norm=0.0):
    """State and metrics after one step in the full batch of 16, without dropout."""
    optimizer = optax.chain(optax.clip_by_global_norm(clip_norm), SGD) if clip_norm else SGD
    step = make_step(optimizer=optimizer, random_flip=True, accumulation_steps=accumulation_steps, unroll=unroll)
    return jax.jit(step)(new_state(optimizer), make_batch(), jax.random.key(0))


@pytest.mark.parametrize(("accumulation_steps", "unroll"), [(4, False), (4, True), (2, True)])
def test_micro_batches_do_not_change_the_result(accumulation_steps, unroll):
    """Parameters, EMA and all metrics as with the whole batch: 1e-5, float32 sums in another order."""
    state, metrics = one_step()
    assert metrics["grad_norm"] > 0.1
    assert_close(one_step(accumulation_steps, unroll), (state, metrics), 1e-5)


def test_the_mean_gradient_is_clipped_not_each_micro_batch():
    """Four micro-batches, each with gradients longer than .05 in different directions: as the whole batch, 1e-5."""
    before = new_state()
    whole, metrics = one_step(clip_norm=0.05)
    parts, _ = one_step(accumulation_steps=4, unroll=True, clip_norm=0.05)
    update = jax.tree.map(lambda a, b: a - b, before.params, whole.params)
    np.testing.assert_allclose(optax.tree.norm(update), 0.05, rtol=1e-4)
    assert_close(parts.params, whole.params, 1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], one_step()[1]["grad_norm"], rtol=1e-5)  # before clipping


@pytest.mark.parametrize("shared_by", ["XLA", "shard_map_grads"])
@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_the_step_does_not_depend_on_the_number_of_devices(accumulation_steps, shared_by):
    """Two steps with flips, second_moment, dropout if XLA partitions it: 1e-5, float32 sums in another order."""
    sampler = make_timestep_sampler("second_moment", SCHEDULE.num_timesteps)
    history = LossHistory(
        jnp.asarray(np.random.default_rng(0).uniform(1, 9, (100, 10)), jnp.float32), jnp.full(100, 10, jnp.int32)
    )
    own = shared_by == "shard_map_grads"

    def run(devices):
        mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
        step = make_step(
            apply_fn=functools.partial(network, dropout=0.0 if own else 0.5),
            random_flip=True,
            accumulation_steps=accumulation_steps,
            timestep_sampler=sampler,
            shard_grad_fn=functools.partial(shard_map_grads, mesh=mesh) if own and devices > 1 else lambda gradients: gradients,
        )
        replicated, split = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
        state = jax.jit(
            lambda key: create_state(init_network, SGD, key, timestep_sampler_state=history), out_shardings=replicated
        )(jax.random.key(1))
        compiled = jax.jit(step, in_shardings=(replicated, split, replicated), out_shardings=replicated)
        for i in range(2):
            state, metrics = compiled(state, jax.device_put(make_batch(seed=i), split), jax.random.key(0))
        assert len(state.params["in"].sharding.device_set) == devices
        return jax.device_get((state, metrics))

    one = run(1)
    assert_close(run(8), one, 1e-5)
    assert differ(one[0].params, new_state().params)


# The state.


@pytest.mark.parametrize("create", ["jitted", "eager"])
def test_state_can_be_donated_and_one_trace_serves_all_steps(create):
    traces = []

    def counted(*args):
        traces.append(None)
        return network(*args)

    optimizer = make_optimizer("adam", clip_norm=1.0)
    step = jax.jit(make_step(apply_fn=counted, optimizer=optimizer), donate_argnums=0)
    state = new_state(optimizer) if create == "jitted" else create_state(init_network, optimizer, jax.random.key(1))
    for number in range(4):
        assert int(state.step) == number
        assert state.step.dtype == jnp.int32
        old, (state, _) = state, step(state, make_batch(seed=number), jax.random.key(0))
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old.params))
    assert len(traces) == 1


def test_ema_starts_at_the_initial_parameters():
    optimizer = make_optimizer("adam")
    state = new_state(optimizer)
    assert_same(state.ema_params, state.params)
    assert_close(state.params, jax.jit(init_network)(jax.random.key(1)), 1e-7)
    assert_same(state.opt_state, optimizer.init(state.params))
    assert state.step == 0


def test_ema_is_updated_once_per_step_with_the_new_parameters():
    """At step n, d e + (1 - d) p with d = (1 + n) / (10 + n) up to .15, and p the parameters after it; 1e-5."""
    state = new_state()
    step = jax.jit(make_step(ema_decay=0.15, accumulation_steps=2, unroll=True))
    average = state.ema_params
    for decay in (1 / 10, 0.15, 0.15):
        state, _ = step(state, make_batch(), jax.random.key(0))
        average = jax.tree.map(lambda e, p, d=decay: d * e + (1 - d) * p, average, state.params)
        assert_close(state.ema_params, average, 1e-5)
        assert differ(state.ema_params, state.params)


def test_the_step_is_deterministic():
    step, state = jax.jit(make_step(random_flip=True)), new_state()
    first = step(state, make_batch(), jax.random.key(0))
    assert_same(step(state, make_batch(), jax.random.key(0)), first)
    assert differ(step(state, make_batch(), jax.random.key(1))[0].params, first[0].params)


# Metrics.


def test_metrics_are_float32_and_consistent():
    """The quartiles' sums and counts add up to the loss, 1e-5, and count the network's times."""
    batch = make_batch(256, (2, 2, 1))
    ((seen, metrics),) = spied(batch)
    assert set(metrics) == {"loss", "grad_norm", "param_norm", "quartile_sum", "quartile_count"}
    assert all(value.dtype == jnp.float32 for value in metrics.values())
    assert metrics["quartile_sum"].shape == metrics["quartile_count"].shape == (4,)
    np.testing.assert_array_equal(metrics["quartile_count"], np.histogram(seen["t"], [0, 25, 50, 75, 100])[0])
    np.testing.assert_allclose(metrics["quartile_sum"].sum() / metrics["quartile_count"].sum(), metrics["loss"], rtol=1e-5)


def test_quartile_sums_belong_to_their_times():
    """A network whose loss increases with t, so that the quartiles' means increase too."""

    def rising(params, x_t, t, labels, dropout_key):
        return jnp.broadcast_to(params["one"] * t.astype(jnp.float32)[:, None, None, None], x_t.shape)

    for accumulation_steps in (1, 4):
        step = jax.jit(make_step(apply_fn=rising, accumulation_steps=accumulation_steps))
        _, metrics = step(new_state(SGD, lambda key: {"one": jnp.ones(())}), make_batch(256, (2, 2, 1)), jax.random.key(0))
        means = metrics["quartile_sum"] / metrics["quartile_count"]
        # Mean of t^2 over 0-24, 25-49 .. plus the noise's 1, within a fifth (64 t each).
        want = [np.mean(np.arange(low, low + 25) ** 2) + 1 for low in (0, 25, 50, 75)]
        np.testing.assert_allclose(means, want, rtol=0.2)


def test_norms_are_those_of_gradients_and_new_parameters():
    state, metrics = one_step()
    gradient = jax.tree.map(lambda a, b: a - b, new_state().params, state.params)
    np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(gradient), rtol=1e-4)
    np.testing.assert_allclose(metrics["param_norm"], optax.tree.norm(state.params), rtol=1e-5)


# The real network.


@pytest.fixture(scope="module")
def trained():
    """40 steps of a tiny conditional bfloat16 U-Net on one repeated batch of labels 0, 1, 2 out of 4."""
    model = UNet(out_channels=1, ch=8, ch_mult=(1,), num_res_blocks=1, attn_resolutions=(), num_classes=4, dtype=jnp.bfloat16)
    row = jnp.linspace(0, 255, 8).astype(jnp.uint8)
    images = jnp.stack([jnp.tile(row[:, None], (1, 8)), jnp.tile(row[None], (8, 1))] * 6)[..., None]
    batch = {"image": images, "cond": jnp.arange(12, dtype=jnp.int32) % 3}

    def init(key):
        """Ho's initialization, but in NumPy: compiling Flax's takes longer than compiling the training step."""
        del key
        inputs = (jnp.zeros((1, 8, 8, 1)), jnp.zeros(1, jnp.int32), jnp.zeros(1, jnp.int32))
        shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]
        generator = np.random.default_rng(0)

        def draw(path, leaf):
            name = jax.tree_util.keystr(path)
            if leaf.ndim == 1:
                return jnp.full(leaf.shape, 1.0 if "scale" in name else 0.0)
            width = 0.0 if "conv_out" in name else np.prod(leaf.shape[:-1]) ** -0.5
            return jnp.asarray(width * generator.standard_normal(leaf.shape), jnp.float32)

        return jax.tree_util.tree_map_with_path(draw, shapes)

    def apply_fn(params, x_t, t, labels, dropout_key):
        return model.apply({"params": params}, x_t, t, labels, deterministic=False, rngs={"dropout": dropout_key})

    optimizer, rate = make_optimizer("adam", clip_norm=1.0), make_learning_rate("constant", 4e-3, 40, warmup_steps=5)
    step = jax.jit(make_step(apply_fn=apply_fn, optimizer=optimizer), donate_argnums=0)
    state, history = new_state(optimizer, init), []
    for number in range(40):
        state, metrics = step(state, batch, jax.random.key(0), learning_rate=rate(number))
        history.append(float(metrics["loss"]))
    return state, history


def test_loss_decreases_on_one_repeated_batch(trained):
    """From 1, the loss of output 0, by at least a third."""
    _, history = trained
    np.testing.assert_allclose(history[0], 1.0, atol=0.2)
    assert np.mean(history[-10:]) < 0.67 * np.mean(history[:3])


def test_a_bfloat16_network_has_float32_state(trained):
    state, _ = trained
    leaves = jax.tree.leaves((state.params, state.ema_params, state.opt_state))
    assert all(leaf.dtype == jnp.float32 for leaf in leaves if leaf.ndim)
    assert {leaf.dtype for leaf in leaves if not leaf.ndim} <= {jnp.dtype(jnp.int32), jnp.dtype(bool)}  # optax's counts


def test_labels_reach_the_network(trained):
    """The embeddings of classes 0, 1 and 2 have gradients, that of class 3, which does not occur, has none."""
    state, _ = trained
    moment = optax.tree_utils.tree_get(state.opt_state, "mu")["class_embed"]["embedding"]
    assert (np.abs(moment).max(axis=1) > 0).tolist() == [True, True, True, False]

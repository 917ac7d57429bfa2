"""The batched sampler: image i of a key depends on nothing else; exactly N images, in order."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from ddpm_jax.diffusion import pixels
from ddpm_jax.diffusion.parameterization import Parameterization
from ddpm_jax.diffusion.schedules import make_schedule, respace
from ddpm_jax.diffusion.spacings import spaced_timesteps
from ddpm_jax.samplers import sampler
from ddpm_jax.samplers.ancestral import ancestral
from ddpm_jax.samplers.batched import BatchedSampler, NonFiniteSamples

SHAPE = (4, 4, 1)
N = 11
STEPS = 40  # in chunks of 20
PARAMS = {"scale": np.float32(2.0)}
KEPT = (0, 17, 39)


def mesh(devices):
    return jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])


@functools.cache
def the_sampler():
    schedule = make_schedule("linear", 1000)
    schedule = respace(schedule, spaced_timesteps(1000, STEPS, "trailing"))
    return ancestral(schedule, Parameterization("x_start", "fixed_large", clip_denoised=True))


def curved(params, labels):
    """A network that is nonlinear and depends on t."""
    assert labels is None
    return lambda x_t, t: jnp.sin(params["scale"] * x_t + 0.01 * t.astype(jnp.float32)[:, None, None, None])


def generator(devices, batch_size, make_denoise_fn=curved, save_steps=()):
    return BatchedSampler(
        the_sampler(), make_denoise_fn, mesh(devices), image_shape=SHAPE, batch_size=batch_size, save_steps=save_steps
    )


def images(batches):
    return np.concatenate([batch.images for batch in batches])


@pytest.fixture(scope="module")
def reference():
    """The first N images of key 0 from the plain scan, each with its own key, and its saved steps."""
    keys = jnp.stack([jax.random.fold_in(jax.random.key(0), i) for i in range(N)])
    state = jax.jit(lambda keys: sampler.sample(the_sampler(), curved(PARAMS, None), keys, SHAPE, save_steps=KEPT))(keys)
    return jax.device_get((pixels.to_uint8(state.x), state.saved_x, state.saved_pred_xstart))


@pytest.mark.parametrize(("devices", "batch_size"), [(1, 3), (2, 16), (8, 5)])
def test_images_do_not_depend_on_batch_size_or_devices(reference, devices, batch_size):
    """Levels are equal: the last bit of float32 changes the level of one pixel in 100,000, and these are 176."""
    made = generator(devices, batch_size)
    assert made.batch_size % devices == 0
    assert 0 <= made.batch_size - batch_size < devices
    batches = list(made.generate(PARAMS, jax.random.key(0), num_images=N))
    sizes = [len(batch.images) for batch in batches]
    assert sizes == [made.batch_size] * (N // made.batch_size) + [N % made.batch_size] * (N % made.batch_size > 0)
    assert all(batch.images.dtype == np.uint8 and batch.cond is None for batch in batches)
    assert all(batch.saved_x.shape == batch.saved_pred_xstart.shape == (len(batch.images), 0, *SHAPE) for batch in batches)
    np.testing.assert_array_equal(images(batches), reference[0])


def test_devices_do_not_communicate_while_they_sample(reference):
    """The compiled program of a chunk has no collective: each device has all parameters and its own images."""
    made, programs = generator(8, 8), []
    advance = made._advance

    def recorded(*arguments):
        programs.append(advance.lower(*arguments).compile().as_text())
        return advance(*arguments)

    made._advance = recorded
    np.testing.assert_array_equal(images(made.generate(PARAMS, jax.random.key(0), num_images=8)), reference[0][:8])
    assert "while" in programs[0]
    assert not re.search(r"all-(reduce|gather|to-all)|reduce-scatter|collective-permute", programs[0])


def test_saved_steps_equal_those_of_the_scan(reference):
    """On eight devices, in chunks, over two batches: x_t and pred_xstart of steps 0, 17 and 39; 1e-4."""
    batches = list(generator(8, 8, save_steps=KEPT).generate(PARAMS, jax.random.key(0), num_images=N))
    np.testing.assert_array_equal(images(batches), reference[0])
    for field, want in (("saved_x", reference[1]), ("saved_pred_xstart", reference[2])):
        got = np.concatenate([getattr(batch, field) for batch in batches])
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, want, atol=1e-4)


@pytest.fixture(scope="module")
def four():
    """Four images per batch on two devices, and the number of traces of the network."""
    traces = []

    def counted(params, labels):
        traces.append(None)
        return curved(params, labels)

    return generator(2, 4, counted), traces


def test_one_compilation_serves_all_batches_chunks_params_and_keys(four):
    made, traces = four
    first = images(made.generate(PARAMS, jax.random.key(0), num_images=4))
    compiled = []

    def listen(event, duration, **_):
        compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        again = images(made.generate({"scale": np.float32(0.5)}, jax.random.key(1), num_images=10, first_image=2))
        assert not [event for event in compiled if "compile" in event]
        jax.jit(lambda x: x + 3)(jnp.int32(1))
        assert [event for event in compiled if "compile" in event]  # the listener does record a compilation
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert len(traces) == 1
    assert again.shape == (10, *SHAPE)
    assert not np.array_equal(again[:2], first[2:])


def test_a_later_call_continues_an_earlier_one(four, reference):
    made, _ = four
    parts = [made.generate(PARAMS, jax.random.key(0), num_images=n, first_image=i) for i, n in ((0, 3), (3, 6), (9, 2))]
    np.testing.assert_array_equal(np.concatenate([images(part) for part in parts]), reference[0])


def test_other_keys_and_indices_give_other_images(four, reference):
    made, _ = four
    other = images(made.generate(PARAMS, jax.random.key(1), num_images=N))
    every = np.concatenate([reference[0], other]).reshape(2 * N, -1)
    assert len(np.unique(every, axis=0)) == 2 * N


def test_params_reach_the_network(four, reference):
    made, _ = four
    other = images(made.generate({"scale": np.float32(-1.0)}, jax.random.key(0), num_images=4))
    assert not np.array_equal(other, reference[0][:4])


def test_report_increases_to_the_number_of_images(four):
    """2 chunks for each of 3 batches: fractional, increasing, exactly 11 at the end."""
    made, _ = four
    reports = []
    list(made.generate(PARAMS, jax.random.key(0), num_images=N, report=reports.append))
    assert len(reports) == 2 * 3
    assert (np.diff([0, *reports]) > 0).all()
    np.testing.assert_allclose([reports[0], reports[1], reports[3], reports[-1]], [4 / 2, 4, 8, N], rtol=1e-12)
    assert reports[-1] == N


def test_the_devices_have_work_while_the_caller_has_a_batch(four, monkeypatch):
    """The first chunk of a batch is dispatched before the batch before it is returned, each other before the check of its
    predecessor."""
    made, _ = four
    advance, check, order = made._advance, made._require_finite, []

    def recorded_advance(params, cond, state, key_data, first_step):
        order.append(f"dispatch {int(first_step)}")
        return advance(params, cond, state, key_data, first_step)

    def recorded_check(count, batch, step):
        order.append(f"check {batch.first}")
        check(count, batch, step)

    monkeypatch.setattr(made, "_advance", recorded_advance)
    monkeypatch.setattr(made, "_require_finite", recorded_check)
    for batch in made.generate(PARAMS, jax.random.key(0), num_images=N):
        order.append(f"write {len(batch.images)}")
    chunks = ["dispatch 20", "check {}", "check {}"]
    expected = ["dispatch 0", *chunks, "dispatch 0", "write 4", *chunks, "dispatch 0", "write 4", *chunks, "write 3"]
    firsts = iter([0, 0, 4, 4, 8, 8])
    assert order == [step.format(next(firsts)) if "{}" in step else step for step in expected]


@pytest.mark.parametrize(("devices", "batch_size"), [(2, 4), (8, 8)])
def test_labels_reach_their_images_in_order(devices, batch_size):
    """A network that outputs the level of its label: image i has level label i, also in the padded batch."""
    labels = np.array([3, 250, 0, 17, 255, 99, 1, 2, 128, 64, 200])

    def painter(params, labels):
        assert labels.dtype == jnp.int32
        return lambda x_t, t: jnp.broadcast_to(pixels.from_uint8(labels)[:, None, None, None], x_t.shape)

    batches = list(generator(devices, batch_size, painter).generate({}, jax.random.key(0), num_images=N, cond=labels))
    np.testing.assert_array_equal(np.concatenate([batch.cond for batch in batches]), labels)
    np.testing.assert_array_equal(images(batches), np.broadcast_to(labels[:, None, None, None], (N, *SHAPE)))


def test_conditions_may_be_any_pytree():
    """Two arrays of each image, of which the network paints the sum; what comes back is what was given."""
    cond = {"label": np.arange(N, dtype=np.int32), "text": np.ones((N, 3), np.float32)}

    def painter(params, cond):
        level = pixels.from_uint8(cond["label"] + cond["text"].sum(axis=1))
        return lambda x_t, t: jnp.broadcast_to(level[:, None, None, None], x_t.shape)

    made = generator(2, 4, painter).generate_all({}, jax.random.key(0), num_images=N, cond=cond)
    np.testing.assert_array_equal(made.images[:, 0, 0, 0], np.arange(N) + 3)
    jax.tree.map(np.testing.assert_array_equal, made.cond, cond)


def test_nan_images_raise_an_error(monkeypatch):
    """The message has the steps and the number of images; padding does not count."""

    def breaks(params, labels):
        def network(x_t, t):
            wrong = jnp.where(jnp.arange(x_t.shape[0]) % 2 == 0, jnp.nan, 0.0)[:, None, None, None]
            return jnp.where((t < 400)[:, None, None, None], wrong, 0.0) * jnp.ones_like(x_t)

        return network

    with pytest.raises(
        NonFiniteSamples, match=r"^4 of the 7 images 0\.\.6 are NaN or infinite after step 40 of 40 \(they were"
    ) as caught:
        list(generator(1, 8, breaks).generate(PARAMS, jax.random.key(0), num_images=7))
    assert "finite after step 20)" in str(caught.value)
    assert "another `checkpoint_step`" in str(caught.value)
    with pytest.raises(NonFiniteSamples, match=r"1 of the 1 images 4\.\.4"):
        list(generator(2, 4, breaks).generate(PARAMS, jax.random.key(0), num_images=1, first_image=4))

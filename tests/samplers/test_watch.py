"""Stages of a chain while it runs: the same images, the x_t and predictions of saved steps, and the end of a stopped call."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.samplers.batched import NonFiniteSamples
from ddpm_jax.samplers.watch import watch
from tests.samplers.test_batched import KEPT, PARAMS, STEPS, generator

KEY, COUNT = jax.random.key(0), 5


@pytest.fixture(scope="module")
def sampler():
    return generator(2, 4, save_steps=KEPT)


def test_stages_are_those_of_the_unwatched_chain(sampler):
    """Chunks of 9 steps, of which the last has 4; two batches, the second with padding."""
    plain, stages = sampler.generate_all(PARAMS, KEY, num_images=COUNT), []
    with watch(stages.append, stages=5):
        watched = sampler.generate_all(PARAMS, KEY, num_images=COUNT)
    jax.tree.map(np.testing.assert_array_equal, watched, plain)
    assert [(stage.first_image, len(stage.x_t), stage.step) for stage in stages] == [
        (first, count, step) for first, count in ((0, 4), (4, 1)) for step in (8, 16, 24, 32, 40)
    ]
    assert [stage.t for stage in stages[:5]] == [799, 599, 399, 199, None]

    every = []
    with watch(every.append, stages=STEPS):
        sampler.generate_all(PARAMS, KEY, num_images=4)
    assert len(every) == STEPS
    for slot, step in enumerate(KEPT):
        np.testing.assert_array_equal(every[step].pred_xstart, plain.saved_pred_xstart[:4, slot])
        if step:
            np.testing.assert_array_equal(every[step - 1].x_t, plain.saved_x[:4, slot])


def test_a_last_chunk_with_fewer_steps_has_the_last_prediction(sampler):
    stages = []
    with watch(stages.append, stages=4):
        sampler.generate_all(PARAMS, KEY, num_images=4)
    with watch(stages.append, stages=7):  # chunks of 6 steps, the last of 4
        sampler.generate_all(PARAMS, KEY, num_images=4)
    assert [stage.step for stage in stages] == [10, 20, 30, 40, 6, 12, 18, 24, 30, 36, 40]
    np.testing.assert_array_equal(stages[-1].pred_xstart, stages[3].pred_xstart)


def test_an_exception_of_the_callback_ends_the_call(sampler):
    seen = []

    def stop(stage):
        seen.append(stage.step)
        if stage.step >= 16:
            raise InterruptedError("enough")

    with watch(stop, stages=5), pytest.raises(InterruptedError, match="enough"):
        sampler.generate_all(PARAMS, KEY, num_images=COUNT)
    assert seen == [8, 16]
    sampler.generate_all(PARAMS, KEY, num_images=1)  # no longer watched
    assert seen == [8, 16]


def test_nan_and_invalid_arguments():
    def broken(params, labels):
        return lambda x_t, t: jnp.where(t[:, None, None, None] < 500, jnp.nan, x_t)

    with (
        watch(lambda stage: None, stages=5),
        pytest.raises(NonFiniteSamples, match=r"3 of the 3 images .* after step 24 of 40"),
    ):
        generator(1, 4, broken).generate_all(PARAMS, KEY, num_images=3)
    for stages in (0, -1, 2.0, float("nan"), "5", None, True):
        with pytest.raises(ValueError, match=f"^stages is {stages!r}: it must be an integer"), watch(print, stages=stages):
            pass
    for callback in (None, 3):
        with pytest.raises(ValueError, match=f"^callback is {callback}: it must be a function"), watch(callback):
            pass


def test_calls_of_the_callback_are_not_watched(sampler):
    """They would call it again. The stages after them are watched."""
    seen, inner = [], []

    def nested(stage):
        seen.append(stage.step)
        if len(seen) > 2:
            return
        sampler.generate_all(PARAMS, KEY, num_images=1)
        with watch(inner.append, stages=2):
            sampler.generate_all(PARAMS, KEY, num_images=1)

    with watch(nested, stages=2):
        sampler.generate_all(PARAMS, KEY, num_images=1)
    assert seen == [20, 40]
    assert [stage.step for stage in inner] == [20, 40] * 2


def test_later_images_are_watched(sampler):
    plain, stages = sampler.generate_all(PARAMS, KEY, num_images=COUNT), []
    with watch(stages.append, stages=2):
        watched = sampler.generate_all(PARAMS, KEY, num_images=2, first_image=3)
    np.testing.assert_array_equal(watched.images, plain.images[3:])
    assert [stage.first_image for stage in stages] == [3, 3]

"""One step of a sampler in ONNX Runtime is that of JAX within 1e-5, at every timestep, with a trained network.

What the step returns as x_prev is. Its estimate pred_xstart has sigma / alpha times the errors of the network's output, in
JAX as in ONNX Runtime, and is within 1e-5 times that.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax import build, condition_config
from ddpm_jax.data.digits import load_digits
from ddpm_jax.diffusion import gaussian
from ddpm_jax.interop import export_onnx, onnx_model
from ddpm_jax.interop.program_inputs import Tensor
from ddpm_jax.samplers.sampler import GivenNoise
from tests.interop.exported import make_config, random_params
from tests.interop_onnx.test_export_onnx import CLASSES, SMALL

SAMPLERS = {
    "ancestral": {"sampling.sampler": "ancestral", "sampling.num_steps": 1000},
    "ddim": {"sampling.sampler": "ddim", "sampling.num_steps": 50},
}
BATCH, EPSILON = 4, 2.0**-24  # float32 rounds by up to this, relatively
PREDICTIONS = ("eps", "v", "x_start")


def sampler_config(sampler_name, fields=None):
    return make_config(SMALL | CLASSES | {"data.image_size": 8} | SAMPLERS[sampler_name] | (fields or {}))


@pytest.fixture(scope="module")
def digits():
    """Images float32 [N, 8, 8, 1] in [-1, 1] and their labels."""
    source = load_digits("train")
    batch = source.batch(np.arange(512))
    return batch["image"].astype(np.float32) / 127.5 - 1, batch["label"]


@pytest.fixture(scope="module")
def trained(digits):
    """Parameters of a small network after 600 steps on the digits, which halve the loss."""
    config = sampler_config("ddim")
    schedule, make_denoise_fn = build.build_schedule(config), build.build_denoise_fn(config, portable=True)
    images, labels = map(jnp.asarray, digits)
    optimizer = optax.adam(5e-3)

    def loss(params, key):
        rows, t, noise = (jax.random.fold_in(key, i) for i in range(3))
        rows = jax.random.randint(rows, (64,), 0, len(images))
        t = jax.random.randint(t, (64,), 0, 1000)
        noise = jax.random.normal(noise, (64, 8, 8, 1))
        x_t = gaussian.q_sample(schedule, images[rows], t, noise)
        return jnp.mean(jnp.square(make_denoise_fn(params, labels[rows])(x_t, t) - noise))

    @jax.jit
    def train(params, key):
        def step(state, key):
            value, grads = jax.value_and_grad(loss)(state[0], key)
            updates, optimizer_state = optimizer.update(grads, state[1])
            return (optax.apply_updates(state[0], updates), optimizer_state), value

        return jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(key, 600))

    (params, _), losses = train(random_params(config), jax.random.key(0))
    assert losses[-50:].mean() < 0.5 * losses[0]
    return jax.device_get(params)


def inputs_at(index, schedule, images):
    """x_t of these images at an index of a chain, and noise."""
    random = np.random.default_rng(index)
    eps, noise = random.standard_normal((2, *images.shape), np.float32)
    x_t = schedule.sqrt_alphas_cumprod[index] * images + schedule.sqrt_one_minus_alphas_cumprod[index] * eps
    return x_t.astype(np.float32), noise


def distance(a, b):
    return np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max()


@pytest.mark.parametrize("sampler_name", SAMPLERS)
def test_a_step_of_a_trained_network(sampler_name, trained, digits):
    config = sampler_config(sampler_name, {"sampling.guidance_scale": 2.0})
    sampler, cond = build.build_sampler(config), condition_config.example_cond(config, None)
    guided = build.build_guided_denoise_fn(config, portable=True)
    step = export_onnx.step_model(guided, sampler, trained, image_shape=(8, 8, 1), cond=cond)
    running, function, schedule = onnx_model.session(step.model), jax.jit(step.function), sampler.schedule
    images, labels = (array[:BATCH] for array in digits)
    unclipped = 0
    for index in range(sampler.num_steps):
        x_t, noise = inputs_at(index, schedule, images)
        given = {"x_t": x_t, "index": np.int32(index), "noise": noise, "labels": labels.astype(np.int32)}
        arguments = [given[tensor.name] for tensor in step.model.inputs]
        x_prev, pred_xstart = function(*arguments)
        names = [tensor.name for tensor in step.model.inputs]
        found = running.run(["x_prev", "pred_xstart"], {name: np.asarray(given[name]) for name in names})
        assert distance(found[0], x_prev) <= 1e-5
        assert distance(found[1], pred_xstart) <= 1e-5 * max(1.0, schedule.sqrt_recipm1_alphas_cumprod[index])
        unclipped += bool((np.abs(pred_xstart) < 1).mean() > 0.1)
    assert unclipped > 0.3 * sampler.num_steps  # a comparison of clipped images would be of no use


@pytest.mark.parametrize("sampler_name", SAMPLERS)
def test_a_step_of_the_same_network_output(sampler_name, digits):
    """The arithmetic of the step alone: ONNX Runtime and JAX against float64, at every timestep and for every prediction."""
    images = digits[0][:BATCH]
    for prediction in PREDICTIONS:
        config = sampler_config(sampler_name, {"diffusion.prediction": prediction, "diffusion.clip_denoised": False})
        sampler = build.build_sampler(config)
        schedule, inputs = sampler.schedule, [export_onnx.images(name, (8, 8, 1)) for name in ("x_t", "output", "noise")]
        index_input = Tensor("index", "int32", ())

        def step(x_t, output, noise, index, sampler=sampler):
            given = GivenNoise(noise)
            return sampler.step(lambda x_t, t: output, x_t, (), index, given)[:2]

        names = ["x_t", "output", "noise", "index"]
        model = onnx_model.to_onnx(step, [*inputs, index_input], ["x_prev", "pred_xstart"])
        running, in_float32, in_float64 = onnx_model.session(model), jax.jit(step), jax.jit(step)
        used = {each.name for each in running.get_inputs()}
        for index in range(0, sampler.num_steps, sampler.num_steps // 50):
            x_t, noise = inputs_at(index, schedule, images)
            output = np.random.default_rng(1).standard_normal(x_t.shape, np.float32)
            arguments = [x_t, output, noise, np.array(index, np.int32)]
            found = running.run(None, {name: x for name, x in zip(names, arguments, strict=True) if name in used})
            ours = in_float32(*arguments)
            with jax.enable_x64(True):
                wide = [x.astype(np.float64) if x.dtype == np.float32 else x for x in arguments]
                exact = jax.device_get(in_float64(*wide))
            assert exact[1].dtype == np.float64
            terms = np.abs(x_t).max(), np.abs(output).max()
            level = schedule.sqrt_recip_alphas_cumprod[index], schedule.sqrt_recipm1_alphas_cumprod[index]
            scale = level[0] * terms[0] + level[1] * terms[1] if prediction == "eps" else sum(terms)
            for each in (found, ours):  # three roundings of terms of this size, and of the coefficients
                assert distance(each[1], exact[1]) <= 4 * EPSILON * scale
                assert distance(each[0], exact[0]) <= 1e-5 * max(1.0, np.abs(exact[0]).max())

// Reverse steps of ddpm_jax: `parameterization.predict_x0`, `gaussian.p_sample` (ancestral) and `samplers.ddim` with eta 0.

/** The network's output [H, W, C or 2C] -> {prediction, variance}; variance is null unless it is learned. */
function splitOutput(diffusion, output, channels, size) {
  if (diffusion.variance !== "learned_range") return { prediction: output, variance: null };
  const prediction = new Float32Array(size);
  const variance = new Float32Array(size);
  for (let i = 0; i < size; i++) {
    const at = Math.floor(i / channels) * 2 * channels + (i % channels);
    prediction[i] = output[at];
    variance[i] = output[at + channels];
  }
  return { prediction, variance };
}

/** The predicted image, equations (8) and (9) of parameterization.py. */
function predictX0(diffusion, tables, index, x, prediction) {
  const signal = Math.sqrt(tables.cumprod[index]);
  const noise = Math.sqrt(tables.oneMinus[index]);
  const formulas = {
    eps: () => mix(1 / signal, x, -noise / signal, prediction),
    x_start: () => Float32Array.from(prediction),
    v: () => mix(signal, x, -noise, prediction),
  };
  const found = formulas[diffusion.prediction]();
  return diffusion.clip ? found.map((value) => Math.min(1, Math.max(-1, value))) : found;
}

/** log of the variance of the ancestral step, at one pixel: `variances.model_variance`. */
function logVariance(diffusion, tables, index, learned) {
  if (diffusion.variance === "fixed_small") return tables.posteriorLogVariance[index];
  if (diffusion.variance === "fixed_large") {
    return index === 0 && tables.count > 1 ? Math.log(tables.posteriorVariance[1]) : Math.log(tables.betas[index]);
  }
  const fraction = (learned + 1) / 2;
  return fraction * Math.log(tables.betas[index]) + (1 - fraction) * tables.posteriorLogVariance[index];
}

/** One step at `index` of the chain: {x: x_{t-1}, predXstart}. */
function reverseStep(sampler, diffusion, tables, index, x, output, channels, random) {
  const { prediction, variance } = splitOutput(diffusion, output, channels, x.length);
  const predXstart = predictX0(diffusion, tables, index, x, prediction);
  if (sampler === "ddim") {
    const [signal, noise] = [Math.sqrt(tables.cumprod[index]), Math.sqrt(tables.oneMinus[index])];
    const eps = mix(1 / noise, x, -signal / noise, predXstart);
    const noisePrevious = index ? Math.sqrt(tables.oneMinus[index - 1]) : 0;
    return { x: mix(Math.sqrt(tables.previous[index]), predXstart, noisePrevious, eps), predXstart };
  }
  const next = mix(tables.coef1[index], predXstart, tables.coef2[index], x);
  if (index > 0) {
    const noise = random.normals(x.length);
    const fixed = variance ? 0 : Math.exp(0.5 * logVariance(diffusion, tables, index));
    for (let i = 0; i < next.length; i++) {
      next[i] += (variance ? Math.exp(0.5 * logVariance(diffusion, tables, index, variance[i])) : fixed) * noise[i];
    }
  }
  return { x: next, predXstart };
}

/**
 * Runs a chain from x_t at timestep t to an image; denoise(x, t) is the network.
 * onStage({t, x, predXstart, done, steps}) is called for each step, and once for the image, with t = -1.
 * Returns the image, or null if it was stopped: stop.requested.
 */
async function runChain({ denoise, diffusion, schedule, x, t, steps, sampler, random, channels, stop, onStage }) {
  const count = Math.min(steps, t + 1);
  const tables = respace(schedule.tables, trailingTimesteps(t + 1, count));
  for (let index = count - 1; index >= 0; index--) {
    const output = await denoise(x, tables.timesteps[index]);
    if (stop.requested) return null;
    const step = reverseStep(sampler, diffusion, tables, index, x, output, channels, random);
    onStage({ t: tables.timesteps[index], x, predXstart: step.predXstart, done: count - index, steps: count });
    x = step.x;
  }
  onStage({ t: -1, x, predXstart: x, done: count, steps: count });
  return x;
}

// The forward process and the tables of a chain: ddpm_jax.diffusion.gaussian and schedules, whose equations are named here.
// Tables are float64, images float32.

/** The tables of a chain from its betas and alphas, equations (1) to (4) of schedules.py. */
function makeTables(betas, alphas, timesteps) {
  const count = betas.length;
  const table = () => new Float64Array(count);
  const [cumprod, previous, oneMinus, variance, coef1, coef2] = [table(), table(), table(), table(), table(), table()];
  let product = 1;
  let noise = 0;
  for (let i = 0; i < count; i++) {
    previous[i] = product;
    const noisePrevious = noise;
    product *= alphas[i];
    noise = alphas[i] * noise + betas[i]; // 1 minus the product, without cancellation
    cumprod[i] = product;
    oneMinus[i] = noise;
    variance[i] = (betas[i] * noisePrevious) / noise;
    coef1[i] = (betas[i] * Math.sqrt(previous[i])) / noise;
    coef2[i] = (noisePrevious * Math.sqrt(alphas[i])) / noise;
  }
  const clipped = variance.map(Math.log);
  clipped[0] = Math.log(count > 1 ? variance[1] : betas[0]);
  return {
    count,
    timesteps,
    betas,
    alphas,
    cumprod,
    previous,
    oneMinus,
    posteriorVariance: variance,
    posteriorLogVariance: clipped,
    coef1,
    coef2,
  };
}

/** A schedule of the page: its label, its tables, and those of ddpm_jax that `qSample` uses. */
function makeSchedule(entry) {
  const betas = decodeArray(entry.betas).data;
  const tables = makeTables(betas, decodeArray(entry.alphas).data, Int32Array.from(betas.keys()));
  return {
    label: entry.label,
    tables,
    signal: decodeArray(entry.sqrt_alphas_cumprod).data,
    noise: decodeArray(entry.sqrt_one_minus_alphas_cumprod).data,
  };
}

/** The shorter chain at these timesteps, with the same noise levels: `schedules.respace`. */
function respace(tables, timesteps) {
  const betas = [];
  const alphas = [];
  let start = 0;
  for (const end of timesteps) {
    let product = 1;
    let noise = 0;
    for (let i = start; i <= end; i++) {
      product *= tables.alphas[i];
      noise = tables.alphas[i] * noise + tables.betas[i];
    }
    alphas.push(product);
    betas.push(noise);
    start = end + 1;
  }
  return makeTables(Float64Array.from(betas), Float64Array.from(alphas), Int32Array.from(timesteps));
}

/** The last timestep of each of `steps` equal segments of 0 .. count - 1: `spacings.trailing_timesteps`. */
function trailingTimesteps(count, steps) {
  return Array.from({ length: steps }, (_, i) => Math.floor((2 * (i + 1) * count + steps) / (2 * steps)) - 1);
}

/** scaleA * a + scaleB * b in float32. */
function mix(scaleA, a, scaleB, b) {
  const [first, second] = [Math.fround(scaleA), Math.fround(scaleB)];
  const result = new Float32Array(a.length);
  for (let i = 0; i < a.length; i++) result[i] = Math.fround(first * a[i]) + Math.fround(second * b[i]);
  return result;
}

/** A sample of q(x_t | x_0), equation (6): `gaussian.q_sample`. */
function qSample(schedule, xStart, t, noise) {
  return mix(schedule.signal[t], xStart, schedule.noise[t], noise);
}

/** A sample of q(x_t | x_{t-1}), equation (1): `gaussian.q_step`. */
function qStep(schedule, xPrevious, t, noise) {
  return mix(Math.sqrt(schedule.tables.alphas[t]), xPrevious, Math.sqrt(schedule.tables.betas[t]), noise);
}

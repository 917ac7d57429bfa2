// Section 2: the chain of single steps q(x_t | x_{t-1}) beside the closed form, with the scales measured in both.

const STEPS_SEED = 1234;

/** Least squares fit of x = scale * x_0 + residual over all pixels: the scale, and the standard deviation of the residual. */
function measureScales(x, xStart) {
  let [product, power] = [0, 0];
  for (let i = 0; i < x.length; i++) {
    product += x[i] * xStart[i];
    power += xStart[i] * xStart[i];
  }
  const signal = product / power;
  let squares = 0;
  for (let i = 0; i < x.length; i++) squares += (x[i] - signal * xStart[i]) ** 2;
  return { signal, noise: Math.sqrt(squares / x.length) };
}

function setUpSingleSteps(page, view) {
  const last = page.numTimesteps - 1;
  let random;
  let x; // of all images
  let direct;
  let t; // of x; -1 is the image itself

  const show = (message) => {
    const { shape, size } = page;
    const name = t < 0 ? "the image itself" : `t = ${t}`;
    drawImage(find("stepped"), rowOf(x, view.image, size), shape, `After ${t + 1} single steps: ${name}`);
    drawImage(find("direct"), rowOf(direct, view.image, size), shape, `From the closed form: ${name}`);
    find("stepped-caption").textContent = `${t + 1} single steps`;
    find("direct-caption").textContent = t < 0 ? "closed form: the image itself" : `closed form at t = ${t}`;
    const formula = t < 0 ? { signal: 1, noise: 0 } : { signal: view.schedule.signal[t], noise: view.schedule.noise[t] };
    const columns = { stepped: measureScales(x, page.images), direct: measureScales(direct, page.images), formula };
    for (const [column, scales] of Object.entries(columns)) {
      for (const kind of ["signal", "noise"]) find(`${column}-${kind}`).textContent = formatNumber(scales[kind]);
    }
    for (const [id, count] of [["step-1", 1], ["step-10", 10], ["step-100", 100], ["step-all", 1]]) {
      find(id).disabled = t + count > last;
    }
    find("steps-state").textContent = message ?? (t < 0 ? "x is the image itself" : `x at t = ${t}`);
  };
  const reset = () => {
    random = new Random(STEPS_SEED);
    [x, direct, t] = [page.images, page.images, -1];
    show("Choose a number of steps.");
  };
  const advance = (count) => {
    const end = Math.min(last, t + count);
    while (t < end) {
      t++;
      x = qStep(view.schedule, x, t, random.normals(x.length));
    }
    direct = qSample(view.schedule, page.images, t, random.normals(x.length));
    show();
  };
  find("step-1").addEventListener("click", () => advance(1));
  find("step-10").addEventListener("click", () => advance(10));
  find("step-100").addEventListener("click", () => advance(100));
  find("step-all").addEventListener("click", () => advance(page.numTimesteps));
  find("step-reset").addEventListener("click", reset);
  let schedule = view.schedule;
  view.listeners.push(() => {
    if (view.schedule !== schedule) {
      schedule = view.schedule;
      reset();
    } else {
      show();
    }
  });
  reset();
}

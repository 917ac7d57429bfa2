// Section 1: x_t of a real image at any t, the scales of signal and noise, and the histogram of all pixels.

const HISTOGRAM = { low: -3.5, high: 3.5, bins: 28 };

/** Fraction of values per unit in each bin. Values beyond the ends are left out. */
function densityOf(values) {
  const { low, high, bins } = HISTOGRAM;
  const width = (high - low) / bins;
  const counts = new Float64Array(bins);
  for (const value of values) {
    const bin = Math.floor((value - low) / width);
    if (bin >= 0 && bin < bins) counts[bin]++;
  }
  return counts.map((count) => count / (values.length * width));
}

/** Sets up the section. `view` has the image and the schedule that are chosen, which section 2 uses too. */
function setUpForward(page, view) {
  const { shape, size, count, numTimesteps } = page;
  const slider = find("forward-t");
  slider.max = String(numTimesteps - 1);
  slider.value = String(Math.round(numTimesteps * 0.3));

  const names = page.labels && page.classNames.length ? page.labels.map((label) => page.classNames[label] ?? label) : [];
  for (let i = 0; i < count; i++) {
    const canvas = make("canvas", { "aria-hidden": "true" });
    const input = make("input", { type: "radio", name: "image", value: i, checked: i === view.image });
    const name = names.length ? `Image ${i + 1}, class ${names[i]}` : `Image ${i + 1}`;
    input.setAttribute("aria-label", name);
    find("images").append(make("label", { title: name }, input, canvas));
    drawImage(canvas, page.imageOf(i), shape);
    input.addEventListener("change", () => view.choose({ image: i }));
  }
  setOptions(find("schedule"), [...page.schedules.keys()], page.schedules.map((schedule) => schedule.label));
  find("schedule").addEventListener("change", (event) => view.choose({ schedule: page.schedules[event.target.value] }));

  const chart = new Chart(find("scales-chart"), {
    label: "",
    x: [0, numTimesteps - 1],
    y: [0, 1],
    xLabel: "t",
    onPoint: (t) => bound.set(t),
  });
  const edges = Array.from({ length: HISTOGRAM.bins }, (_, i) => HISTOGRAM.low + (i * (HISTOGRAM.high - HISTOGRAM.low)) / HISTOGRAM.bins);
  const curve = Array.from({ length: 141 }, (_, i) => -3.5 + i * 0.05);
  const bell = { x: curve, y: curve.map((x) => Math.exp(-0.5 * x * x) / Math.sqrt(2 * Math.PI)), class: "normal", faint: true };
  const histogram = new Chart(find("histogram"), { label: "", x: [-3.5, 3.5], y: [0, 1], xLabel: "value of a pixel" });
  find("histogram-caption").textContent =
    `Values of all pixels of ${count === 1 ? "this image" : `the ${count} images`} in x_t, and N(0, 1)`.replace("x_t", "xₜ");

  const lines = () => {
    const t = [...Array(numTimesteps).keys()];
    const others = page.schedules.filter((schedule) => schedule !== view.schedule);
    return [
      ...others.map(({ signal }) => ({ x: t, y: signal, class: "other", faint: true })),
      ...others.map(({ noise }) => ({ x: t, y: noise, class: "other", faint: true })),
      { x: t, y: view.schedule.signal, class: "signal" },
      { x: t, y: view.schedule.noise, class: "noise" },
    ];
  };

  let content = lines();
  const render = (t) => {
    const { schedule, image } = view;
    const [signal, noise] = [schedule.signal[t], schedule.noise[t]];
    const clean = page.imageOf(image);
    const epsilon = rowOf(view.noise, image, size);
    drawImage(find("x-t"), qSample(schedule, clean, t, epsilon), shape, `Image ${image + 1} with noise up to t = ${t}`);
    drawImage(find("x-0"), clean, shape, `Image ${image + 1} without noise`);
    drawImage(find("epsilon"), epsilon, shape, "Gaussian noise");
    find("signal-scale").textContent = formatNumber(signal);
    find("noise-scale").textContent = formatNumber(noise);
    const decibel = 20 * Math.log10(signal / noise);
    find("forward-state").textContent =
      `√ᾱₜ = ${formatNumber(signal)}, √(1 − ᾱₜ) = ${formatNumber(noise)}, signal-to-noise ratio ` +
      `${formatNumber((signal / noise) ** 2)} (${Number.isFinite(decibel) ? decibel.toFixed(1).replace("-", "−") : "−∞"} dB)` +
      (view.seed === null ? "" : `, noise of seed ${view.seed}`);
    chart.update({
      content,
      marker: t,
      label: `At t = ${t} the scale of the signal is ${formatNumber(signal)} and that of the noise ${formatNumber(noise)}`,
    });
    const all = qSample(schedule, page.images, t, view.noise);
    const density = densityOf(all);
    const mean = all.reduce((sum, value) => sum + value, 0) / all.length;
    const spread = Math.sqrt(all.reduce((sum, value) => sum + (value - mean) ** 2, 0) / all.length);
    histogram.update({
      content: [{ x: edges, y: density, width: 0.25, class: "pixels" }, bell],
      y: [0, Math.max(0.8, Math.min(2.4, Math.ceil(10 * Math.max(...density)) / 10))],
      label: `Histogram of the pixels at t = ${t}: mean ${formatNumber(mean)}, standard deviation ${formatNumber(spread)}; N(0, 1) has 0 and 1`,
    });
  };
  const bound = bindSlider(slider, find("forward-t-value"), render);

  find("new-noise").addEventListener("click", () => {
    const seed = view.seed === null ? 0 : view.seed + 1;
    view.choose({ noise: new Random(seed).normals(page.images.length), seed });
  });
  find("first-noise").addEventListener("click", () => view.choose({ noise: page.noise, seed: null }));
  view.listeners.push(() => {
    content = lines();
    bound.update();
  });
  bound.update();
}

// Section 4: a drawing, noise up to t, and the chain of the network from there, computed in the page.

const STEP_CHOICES = [5, 10, 20, 50, 100, 250];

function setUpDenoise(page, network) {
  const { shape, size, numTimesteps, classNames } = page;
  const schedule = page.schedules[0];
  let seed = 0;
  let noise = new Random(seed).normals(size);
  const player = new Player(find("try-player"), shape, "Chain from the drawing");
  const state = find("try-state");
  const slider = find("try-t");
  slider.max = String(numTimesteps - 1);
  slider.value = String(Math.round(numTimesteps * 0.45));
  setOptions(find("try-steps"), [...STEP_CHOICES.filter((steps) => steps < numTimesteps), numTimesteps]);
  find("try-steps").value = numTimesteps > 50 ? "50" : String(numTimesteps);

  const classes = find("try-class");
  const labels = [...classNames.keys()];
  const choices = page.nullLabel === null ? labels : [page.nullLabel, ...labels];
  setOptions(classes, choices, choices.map((label) => (label === page.nullLabel ? "not given" : classNames[label])));
  classes.closest("label").hidden = !page.hasClasses;

  const noisy = () => qSample(schedule, sketch.image, bound.value, noise);
  const preview = () => {
    if (page.busy) return;
    const x = noisy();
    player.load([{ t: bound.value, x, predXstart: sketch.image, predName: "your drawing until it is predicted" }]);
    const scales = `${formatNumber(schedule.signal[bound.value])} of your drawing and ${formatNumber(schedule.noise[bound.value])} of noise`;
    state.textContent = `xₜ is ${scales}. Press Denoise.`;
    find("try-progress").value = 0;
  };
  let bound = null;
  const sketch = new Sketch(find("sketch"), shape, () => bound && preview());
  bound = bindSlider(slider, find("try-t-value"), () => bound && preview());

  const pen = find("pen-width");
  pen.addEventListener("input", () => (sketch.pen.radius = Number(pen.value)));
  pen.value = "2";
  sketch.pen.radius = 2;
  find("pen-color-label").hidden = shape[2] !== 3;
  find("pen-color").addEventListener("input", (event) => {
    const value = parseInt(event.target.value.slice(1), 16);
    sketch.pen.color = [value >> 16, (value >> 8) & 255, value & 255].map((level) => level / 127.5 - 1);
  });
  const examples = [...Array(page.count).keys()];
  const names = examples.map((i) => `image ${i + 1}${page.labels && page.hasClasses ? `, class ${classNames[page.labels[i]]}` : ""}`);
  setOptions(find("sketch-example"), ["", ...examples], ["an empty area", ...names]);
  find("sketch-example").addEventListener("change", (event) => {
    if (event.target.value === "") sketch.clear();
    else sketch.load(page.imageOf(Number(event.target.value)));
  });
  find("sketch-clear").addEventListener("click", () => {
    find("sketch-example").value = "";
    sketch.clear();
  });
  find("renoise").addEventListener("click", () => {
    noise = new Random(++seed).normals(size);
    preview();
  });

  makeRunner(page, find("denoise"), find("try-stop"), async (stop) => {
    const began = performance.now();
    const steps = Math.min(Number(find("try-steps").value), bound.value + 1);
    const progress = find("try-progress");
    player.begin(steps + 1);
    state.textContent = "Denoising …";
    const image = await runChain({
      network,
      diffusion: page.diffusion,
      schedule,
      x: noisy(),
      t: bound.value,
      steps,
      sampler: find("try-sampler").value,
      label: page.hasClasses ? Number(classes.value) : null,
      random: new Random(seed + 1),
      channels: shape[2],
      stop,
      onStage: ({ t, x, predXstart, done }) => {
        player.append({ t, x: toLevels(x), predXstart: toLevels(predXstart) });
        progress.value = done / steps;
      },
    });
    player.end();
    const seconds = ((performance.now() - began) / 1000).toFixed(1);
    state.textContent = image
      ? `${steps} steps in ${seconds} s. Move the slider below to see the chain, or draw again.`
      : `Stopped after ${player.stages.length} of ${steps} steps.`;
  });
  const first = Math.min(3, page.count - 1);
  sketch.load(page.imageOf(first));
  find("sketch-example").value = String(first);
  bound.update();
  return { sketch, player };
}

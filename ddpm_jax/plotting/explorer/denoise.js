// Section 4: a drawing, noise up to t, and the chain of the network from there, computed in the page.

const STEP_CHOICES = [5, 10, 20, 50, 100, 250];
const DRAWN = "drawn"; // the choice of a drawing, as opposed to an image

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

  let bound = null;
  const classes = find("try-class");
  const labels = [...classNames.keys()];
  const choices = page.nullLabel === null ? labels : [page.nullLabel, ...labels];
  setOptions(classes, choices, choices.map((label) => (label === page.nullLabel ? "not given" : classNames[label])));
  classes.closest("label").hidden = !page.hasClasses;

  const scaleText = (scale) => (scale === 1 ? "none" : String(scale));
  const guidance = bindSlider(find("guidance"), find("guidance-value"), () => bound && preview(), scaleText);
  const update = () => {
    find("guidance").disabled = Number(classes.value) === page.nullLabel;
    guidance.update();
  };
  classes.addEventListener("change", update);
  if (page.nullLabel === null) hide("#guidance-label, .needs-guidance");

  const noisy = () => qSample(schedule, sketch.image, bound.value, noise);
  const guided = () =>
    guidedNetwork(network, {
      label: page.hasClasses ? Number(classes.value) : null,
      nullLabel: page.nullLabel,
      scale: Number(find("guidance").value),
      channels: shape[2],
    });

  // x_t of the drawing, and what the network predicts from it at once. While it computes, only the last change counts. A
  // change stops the chain of the drawing as it was; the chain of another section delays the preview.
  let changed = false;
  let predicting = false;
  let runner = null;
  const preview = async () => {
    changed = true;
    runner?.stop();
    if (predicting || page.busy) return;
    predicting = true;
    try {
      await predict();
    } catch (error) {
      state.textContent = `The network failed: ${error.message}. Open this page again to restart it.`;
    } finally {
      predicting = false;
    }
  };
  const predict = async () => {
    while (changed && !page.busy) {
      changed = false;
      const [x, t] = [noisy(), bound.value];
      const output = await guided()(x, t);
      if (page.busy) break;
      const { prediction } = splitOutput(page.diffusion, output, shape[2], size);
      player.load([{ t, x, predXstart: predictX0(page.diffusion, schedule.tables, t, x, prediction) }]);
      find("try-progress").value = 0;
      state.textContent =
        `xₜ is ${formatNumber(schedule.signal[t])} of your drawing and ${formatNumber(schedule.noise[t])} of noise. ` +
        "Below is what the network predicts at once. Denoise takes many steps.";
    }
  };
  page.busyListeners.push(() => {
    if (!page.busy && changed) preview();
  });
  const sketch = new Sketch(find("sketch"), shape, (drawn) => {
    if (drawn) find("sketch-example").value = DRAWN;
    if (bound) preview();
  });
  bound = bindSlider(slider, find("try-t-value"), () => bound && preview());

  const pen = find("pen-width");
  pen.value = String(sketch.pen.radius);
  pen.addEventListener("input", () => (sketch.pen.radius = Number(pen.value)));
  find("pen-color-label").hidden = shape[2] !== 3;
  find("pen-color").addEventListener("input", (event) => {
    const value = parseInt(event.target.value.slice(1), 16);
    sketch.pen.color = [value >> 16, (value >> 8) & 255, value & 255].map((level) => level / 127.5 - 1);
  });
  const examples = [...Array(page.count).keys()];
  const names = examples.map((i) => `image ${i + 1}${page.labels && page.hasClasses ? `, class ${classNames[page.labels[i]]}` : ""}`);
  setOptions(find("sketch-example"), ["", DRAWN, ...examples], ["an empty area", "your drawing", ...names]);
  find("sketch-example").addEventListener("change", (event) => {
    if (event.target.value === "") sketch.clear();
    else if (event.target.value !== DRAWN) sketch.load(page.imageOf(Number(event.target.value)));
  });
  find("sketch-clear").addEventListener("click", () => {
    find("sketch-example").value = "";
    sketch.clear();
  });
  find("renoise").addEventListener("click", () => {
    noise = new Random(++seed).normals(size);
    preview();
  });

  runner = makeRunner(page, find("denoise"), find("try-stop"), state, async (stop) => {
    changed = false; // the chain begins with the last change
    const began = performance.now();
    const steps = Math.min(Number(find("try-steps").value), bound.value + 1);
    const progress = find("try-progress");
    player.begin(steps + 1);
    state.textContent = "Denoising …";
    const image = await runChain({
      denoise: guided(),
      diffusion: page.diffusion,
      schedule,
      x: noisy(),
      t: bound.value,
      steps,
      sampler: find("try-sampler").value,
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
  update();
  bound.update();
  return { sketch, player };
}

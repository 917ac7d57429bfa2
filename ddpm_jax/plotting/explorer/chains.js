// Section 3: recorded chains by class or condition image, seed, sampler and number of steps; and new ones, if the network is in the page.

const SAMPLER_TEXTS = {
  ancestral:
    "Ancestral sampling takes a sample of a Gaussian: factors c₁ and c₂ of the schedule combine the estimate and xₜ " +
    "into its mean, and σₜ scales new noise z.",
  ddim: "DDIM keeps the predicted noise, ε̂ = (xₜ − √ᾱₜ x̂₀) / √(1 − ᾱₜ), and only lowers its level, without adding any.",
};
const PREDICTION_NAMES = { eps: "the noise ε", x_start: "the image x₀", v: "v, a mixture of image and noise" };

/** MathML of the formulas that depend on the run or on a choice. */
const MATH = (() => {
  const sub = (a, b) => `<msub>${a}<mrow>${b}</mrow></msub>`;
  const [x, t] = ["<mi>x</mi>", "<mi>t</mi>"];
  const bar = (i) => sub("<mover><mi>α</mi><mo>¯</mo></mover>", i);
  const root = (a) => `<msqrt>${a}</msqrt>`;
  const minus = (a) => `<mn>1</mn><mo>−</mo>${a}`;
  const hat = (a) => `<mover>${a}<mo>^</mo></mover>`;
  const x0 = sub(hat(x), "<mn>0</mn>");
  const eps = hat("<mi>ε</mi>");
  const before = `${t}<mo>−</mo><mn>1</mn>`;
  const noiseRoot = root(minus(bar(t)));
  return {
    eps: `${x0}<mo>=</mo><mo stretchy="false">(</mo>${sub(x, t)}<mo>−</mo>${noiseRoot}${eps}<mo stretchy="false">)</mo><mo>/</mo>${root(bar(t))}`,
    x_start: `${x0}<mo>=</mo><mtext>the network's output</mtext>`,
    v: `${x0}<mo>=</mo>${root(bar(t))}${sub(x, t)}<mo>−</mo>${noiseRoot}${hat("<mi>v</mi>")}`,
    ancestral:
      `${sub(x, before)}<mo>=</mo>${sub("<mi>c</mi>", "<mn>1</mn>")}${x0}<mo>+</mo>${sub("<mi>c</mi>", "<mn>2</mn>")}` +
      `${sub(x, t)}<mo>+</mo>${sub("<mi>σ</mi>", t)}<mi>z</mi>`,
    ddim: `${sub(x, before)}<mo>=</mo>${root(bar(before))}${x0}<mo>+</mo>${root(minus(bar(before)))}${eps}`,
  };
})();

/** The stages of a recorded chain, as a player takes them. */
function recordedStages(chain, row, size) {
  const count = chain.t.length + 1;
  return Array.from({ length: count }, (_, i) => ({
    t: i < chain.t.length ? chain.t[i] : -1,
    x: rowOf(chain.x_t.data, row * count + i, size),
    predXstart: rowOf(chain.pred_xstart.data, row * count + i, size),
  }));
}

function setUpChains(page) {
  const { chains, shape, size, diffusion } = page;
  for (const chain of chains) for (const name of ["x_t", "pred_xstart"]) chain[name] = decodeArray(chain[name]);
  const player = new Player(find("chain-player"), shape, "Reverse chain");
  const [selected, seeds, samplers, steps] = ["row", "seed", "sampler", "steps"].map((name) => find(`chain-${name}`));
  const { kind } = page.rows;
  find("prediction-text").textContent =
    `The network sees ${kind ? `xₜ, t and the ${kind}` : "xₜ and t"}, and predicts ` +
    `${PREDICTION_NAMES[diffusion.prediction]}. That gives an estimate of the image:`;
  find("prediction-formula").innerHTML = MATH[diffusion.prediction];

  const rows = page.rows.list.slice(0, chains[0].rows);
  setOptions(selected, [...rows.keys()], rows.map((row) => row.name));
  find("chain-kind").textContent = kind && kind[0].toUpperCase() + kind.slice(1);
  const label = selected.closest("label");
  label.hidden = !kind;
  label.classList.toggle("wide", page.hasConditions); // whose names are long
  const names = [...new Set(chains.map((chain) => chain.sampler))];
  setOptions(samplers, names, names.map((name) => (name === "ddim" ? "DDIM" : name)));
  setOptions(seeds, chains[0].seeds);

  const command = (chain) =>
    `--mode=sample --config.sampling.num_images=1${rows[selected.value].flags}` +
    ` --config.sampling.seed=${seeds.value} --config.sampling.sampler=${chain.sampler} --config.sampling.num_steps=${chain.steps}${chain.flags}`;

  const show = () => {
    const ofSampler = chains.filter((chain) => chain.sampler === samplers.value);
    setOptions(steps, ofSampler.map((chain) => chain.steps));
    const chain = ofSampler.find((each) => String(each.steps) === steps.value);
    const { name, flags, picture, file } = rows[selected.value];
    player.load(recordedStages(chain, chain.seeds.indexOf(Number(seeds.value)) * rows.length + Number(selected.value), size), 0);
    if (picture) {
      player.showCondition(picture, page.imageOf(Number(selected.value)), name);
      Object.assign(find("condition-file"), { href: picture, download: file, textContent: file });
    }
    find("chain-same").hidden = flags === null;
    find("sampler-text").textContent = SAMPLER_TEXTS[chain.sampler] ?? `The sampler: ${chain.description}.`;
    find("sampler-formula").innerHTML = MATH[chain.sampler] ?? "";
    find("chain-command").textContent = command(chain);
    find("chain-state").textContent = `Recorded by ddpm_jax: ${chain.description}, seed ${seeds.value}.`;
    const warning = find("chain-warning");
    warning.textContent = chain.warnings.map((text) => `${text[0].toUpperCase()}${text.slice(1)}.`).join(" ");
    warning.hidden = !chain.warnings.length;
  };
  for (const select of [selected, seeds, samplers, steps]) select.addEventListener("change", show);
  const first = chains.find((chain) => chain.sampler === "ddim" && chain.steps >= 50) ?? chains.at(-1);
  samplers.value = first.sampler;
  setOptions(steps, [first.steps]); // which `show` keeps
  selected.value = String(Math.min(3, rows.length - 1));
  show();
  return { player, selected, samplers, steps, seeds, show };
}

/** The button that generates an image of a new seed in the page, with the class, sampler and steps that are chosen. */
function setUpGenerate(page, network, section) {
  const { player, selected, samplers, steps } = section;
  const start = find("generate");
  let seed = 0;
  const runner = makeRunner(page, start, find("generate-stop"), find("chain-state"), async (stop) => {
    const began = performance.now();
    const random = new Random(++seed);
    player.begin(Number(steps.value) + 1);
    find("chain-same").hidden = true; // that of the recorded chain
    find("chain-state").textContent = "Computing …";
    const image = await runChain({
      denoise: (x, t) => network.evaluate(x, t, [page.hasClasses ? Number(selected.value) : null]),
      diffusion: page.diffusion,
      schedule: page.schedules[0],
      x: random.normals(page.size),
      t: page.numTimesteps - 1,
      steps: Number(steps.value),
      sampler: samplers.value,
      random,
      channels: page.shape[2],
      stop,
      onStage: (stage) => player.append({ ...stage, x: toLevels(stage.x), predXstart: toLevels(stage.predXstart) }),
    });
    if (!image) return;
    player.end();
    const seconds = ((performance.now() - began) / 1000).toFixed(1);
    find("chain-state").textContent = `Computed in this page with noise of its own generator, seed ${seed}: ${steps.value} steps in ${seconds} s, without guidance.`;
  });
  find("generate-stop").addEventListener("click", section.show);
  const update = () => {
    start.disabled = page.busy || !(samplers.value in SAMPLER_TEXTS);
  };
  page.busyListeners.push(update);
  for (const select of [selected, samplers, steps, section.seeds]) {
    select.addEventListener("change", () => {
      runner.stop();
      update();
    });
  }
  update();
}

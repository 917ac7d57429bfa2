// Reads the embedded data and sets up the sections. `globalThis.ddpmExplorer` lets a console, or a test, use the parts.

function readPage() {
  const data = JSON.parse(find("data").textContent);
  const images = decodeArray(data.images);
  const [count, ...shape] = images.shape;
  const size = shape.reduce((a, b) => a * b, 1);
  const floats = fromLevels(images.data);
  return {
    ...data,
    images: floats,
    noise: decodeArray(data.noise).data,
    imageOf: (index) => rowOf(floats, index, size),
    count,
    shape,
    size,
    numTimesteps: data.diffusion.numTimesteps,
    schedules: data.schedules.map(makeSchedule),
    hasClasses: data.rows?.kind === "class",
    hasConditions: data.rows?.kind === "condition image",
    busy: false, // whether a chain is being computed
    busyListeners: [],
    setBusy(busy) {
      this.busy = busy;
      find("denoise").disabled = busy;
      for (const listener of this.busyListeners) listener();
    },
  };
}

/** What is chosen for sections 1 and 2: an image, a schedule and the noise of all images. */
function makeView(page) {
  return {
    image: Math.min(3, page.count - 1),
    schedule: page.schedules[0],
    noise: page.noise,
    seed: null, // of the noise; null for that of ddpm_jax
    listeners: [],
    choose(changes) {
      Object.assign(this, changes);
      for (const listener of this.listeners) listener();
    },
  };
}

function hide(selector) {
  for (const element of document.querySelectorAll(selector)) element.hidden = true;
}

function show(id, text) {
  find(id).hidden = false;
  if (text) find(id).textContent = text;
}

function setUpText(page) {
  find("facts").textContent = page.facts.summary;
  for (const element of document.querySelectorAll(".T")) element.textContent = page.numTimesteps.toLocaleString("en");
  if (page.note) show("shown-note", page.note);
  for (const [name, value] of Object.entries(page.facts.table)) {
    find("about").tBodies[0].append(make("tr", {}, make("th", { scope: "row" }, name), make("td", {}, String(value))));
  }
  document.querySelectorAll("main > section").forEach((section, i) => {
    const title = section.querySelector("h2");
    find("contents").append(make("li", {}, make("a", { href: `#${section.id}` }, title.textContent)));
    title.prepend(make("span", { class: "number", "aria-hidden": "true" }, `${i + 1}`));
  });
}

async function setUp() {
  const page = readPage();
  const view = makeView(page);
  setUpText(page);
  setUpForward(page, view);
  setUpSingleSteps(page, view);
  const tools = { qSample, makeTables, respace, trailingTimesteps, reverseStep, runChain, loadNetwork, guidedNetwork, Random };
  const parts = { page, view, ...tools, ready: false };
  globalThis.ddpmExplorer = parts;
  if (page.chains?.length) {
    parts.chains = setUpChains(page);
  } else {
    hide(".needs-chains");
    show("no-model");
  }
  if (!page.hasClasses) hide(".needs-classes");
  if (!page.hasConditions) hide(".needs-conditions");
  if (page.bound) {
    setUpBound(page);
  } else {
    hide(".needs-bound");
    show("no-bound", page.noBound);
  }
  hide(".needs-network");
  if (hasNetwork()) await startNetwork(page, parts);
  else show("no-network", page.noNetwork);
  parts.ready = true;
}

async function startNetwork(page, parts) {
  show("no-network");
  try {
    parts.network = await loadNetwork("denoiser");
  } catch (error) {
    show("no-network", `The network could not be started: ${error.message}. The recorded chains above show what it does.`);
    console.error(error);
    return;
  }
  for (const element of document.querySelectorAll(".needs-network")) element.hidden = false;
  find("no-network").hidden = true;
  parts.denoise = setUpDenoise(page, parts.network);
  setUpGenerate(page, parts.network, parts.chains);
}

setUp();

// A player of chains: x_t beside the predicted image, a filmstrip, and buttons to play, pause and step.

const PLAY_MS = { motion: 90, reduced: 500 }; // time of a stage; slower for users who ask for reduced motion

class Player {
  /** A player in `element`; `name` describes its chain to screen readers. */
  constructor(element, shape, name) {
    Object.assign(this, { shape, stages: [], at: 0, timer: null });
    element.append(find("player").content.cloneNode(true));
    this.root = element.querySelector(".player");
    this.root.setAttribute("aria-label", name);
    const part = (selector) => this.root.querySelector(selector);
    Object.assign(this, { x: part(".x"), pred: part(".pred"), playButton: part(".play"), where: part(".where") });
    this.xName = part(".x-name");
    this.slider = part("input");
    this.strip = part(".strip canvas");
    this.playButton.addEventListener("click", () => this.toggle());
    part(".back").addEventListener("click", () => this.step(-1));
    part(".next").addEventListener("click", () => this.step(1));
    this.slider.addEventListener("input", () => {
      this.pause();
      this.show(Math.min(Number(this.slider.value), this.stages.length - 1)); // a chain may still be growing
    });
    this.strip.addEventListener("pointerdown", (event) => {
      const box = this.strip.getBoundingClientRect();
      const column = Math.floor(((event.clientX - box.left) / box.width) * this.columns.length);
      const stage = this.columns[Math.min(this.columns.length - 1, Math.max(0, column))];
      this.pause();
      this.show(Math.min(stage, this.stages.length - 1));
    });
    this.root.addEventListener("keydown", (event) => {
      if (event.key === " " && !event.target.closest("button, select")) {
        event.preventDefault();
        this.toggle();
      }
    });
    drawAtWidth(part(".strip"), (width) => {
      this.width = width;
      this.drawStrip();
    });
  }

  /** stages: [{t, x, predXstart}] of levels or floats, from noise to the image, whose t is -1. */
  load(stages, at = 0) {
    this.pause();
    this.stages = stages;
    this.setTotal(stages.length);
    this.slider.max = String(Math.max(0, stages.length - 1));
    this.show(Math.min(at, stages.length - 1));
    this.drawStrip();
  }

  /** Show beside the stages what their chain is conditioned on: an image file as a data URL, and the real image of it. */
  showCondition(picture, original, name) {
    const part = (selector) => this.root.querySelector(selector);
    for (const figure of this.root.querySelectorAll(".given")) figure.hidden = false;
    part(".pair").classList.add("conditional");
    const image = part(".condition");
    image.onload = () => {
      part(".condition-name").textContent = `the condition image, ${image.naturalHeight}×${image.naturalWidth}`;
    };
    Object.assign(image, { src: picture, alt: `The condition image of ${name}` });
    drawImage(part(".original"), original, this.shape, `The original image of ${name}`);
  }

  /** The number of stages of the whole chain; with one there is nothing to play. */
  setTotal(total) {
    this.total = total;
    this.root.classList.toggle("single", total < 2);
  }

  /** Start a chain that is being computed, of `total` stages. */
  begin(total) {
    this.load([]);
    this.setTotal(total);
    this.slider.max = String(total - 1);
    this.strip.width = 0; // empties it
    this.drawStrip();
  }

  /** Add a stage to such a chain, and show it unless the user went back to an earlier one. */
  append(stage) {
    const follow = this.at === this.stages.length - 1;
    this.stages.push(stage);
    if (follow) this.show(this.stages.length - 1);
    if (this.columns.includes(this.stages.length - 1)) this.drawStrip();
  }

  /** The chain has ended, perhaps before its last stage. */
  end() {
    const follow = this.at === this.stages.length - 1;
    this.load(this.stages, follow ? this.stages.length - 1 : this.at);
  }

  show(at) {
    this.at = at;
    const stage = this.stages[at];
    if (!stage) return;
    const name = stage.t < 0 ? "the image" : `t = ${stage.t}`;
    drawImage(this.x, stage.x, this.shape, stage.t < 0 ? "The generated image" : `x at ${name}`);
    drawImage(this.pred, stage.predXstart, this.shape, stage.t < 0 ? "The generated image" : `The image predicted at ${name}`);
    this.slider.value = String(at);
    this.slider.setAttribute("aria-valuetext", `stage ${at + 1} of ${this.stages.length}, ${name}`);
    this.where.textContent = name;
    this.xName.innerHTML = stage.t < 0 ? "the generated image" : "<i>x</i><sub><i>t</i></sub>, the noisy image";
  }

  step(count) {
    this.pause();
    this.show(Math.min(this.stages.length - 1, Math.max(0, this.at + count)));
  }

  toggle() {
    if (this.timer === null) this.play();
    else this.pause();
  }

  play() {
    if (this.stages.length < 2) return;
    if (this.at === this.stages.length - 1) this.show(0);
    const reduced = matchMedia("(prefers-reduced-motion: reduce)").matches;
    this.timer = setInterval(
      () => {
        this.show(this.at + 1);
        if (this.at === this.stages.length - 1) this.pause();
      },
      reduced ? PLAY_MS.reduced : Math.max(20, PLAY_MS.motion * Math.min(1, 40 / this.stages.length)),
    );
    this.label("▮▮ Pause", "Pause");
  }

  pause() {
    clearInterval(this.timer);
    this.timer = null;
    this.label("▶ Play", "Play");
  }

  label(text, name) {
    this.playButton.textContent = text;
    this.playButton.setAttribute("aria-label", name);
  }

  /** The stages of the filmstrip: evenly spaced, the first and the last one included. */
  get columns() {
    const most = Math.min(this.total, this.width < 480 ? 7 : 11);
    if (most < 2) return this.total ? [0] : [];
    return Array.from({ length: most }, (_, i) => Math.round((i * (this.total - 1)) / (most - 1)));
  }

  drawStrip() {
    if (!this.width || !this.total) return;
    const [height, width] = this.shape;
    const columns = this.columns;
    const gap = Math.max(1, Math.round(width / 16));
    this.strip.width = columns.length * (width + gap) - gap;
    this.strip.height = 2 * height + gap;
    this.strip.style.maxWidth = `${columns.length * 72}px`;
    const context = this.strip.getContext("2d");
    columns.forEach((stage, column) => {
      if (stage >= this.stages.length) return;
      const left = column * (width + gap);
      context.putImageData(pixelsOf(this.stages[stage].x, this.shape), left, 0);
      context.putImageData(pixelsOf(this.stages[stage].predXstart, this.shape), left, height + gap);
    });
  }
}

// Charts as SVG, drawn at the width of their element so that text keeps its size; colors are in style.css.

const SVG = "http://www.w3.org/2000/svg";
const MARGIN = { left: 46, right: 12, top: 10, bottom: 34 };

function svg(name, attributes, text) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

/** Round steps between two numbers, at most `most` of them. */
function ticksOf(low, high, most) {
  const rough = (high - low) / most;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.999);
  const ticks = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-6; value += step) ticks.push(value);
  return ticks.map((value) => Number(value.toPrecision(6)));
}

function powersOfTen(low, high) {
  const [first, last] = [Math.ceil(Math.log10(low) - 1e-9), Math.floor(Math.log10(high) + 1e-9)];
  const every = Math.max(1, Math.ceil((last - first) / 6));
  return Array.from({ length: Math.floor((last - first) / every) + 1 }, (_, i) => 10 ** (first + i * every));
}

/**
 * A chart with axes. Options: label (for screen readers), x: [low, high], y: [low, high], log (of y), xLabel, height,
 * onPoint(x): called while the pointer is pressed. `draw(content)` of the caller adds curves: see `Chart.line` and `Chart.bars`.
 */
class Chart {
  constructor(element, options) {
    Object.assign(this, { element, options, content: [], marker: null });
    this.root = svg("svg", { role: "img", "aria-label": options.label });
    element.append(this.root);
    drawAtWidth(element, (width) => {
      this.width = width;
      this.draw();
    });
    if (options.onPoint) this.listen();
  }

  get height() {
    return this.options.height ?? 220;
  }

  toX(value) {
    const [low, high] = this.options.x;
    return MARGIN.left + ((value - low) / (high - low)) * (this.width - MARGIN.left - MARGIN.right);
  }

  toY(value) {
    const scale = this.options.log ? Math.log10 : (v) => v;
    const [low, high] = this.options.y.map(scale);
    const inside = Math.min(high, Math.max(low, scale(value)));
    return this.height - MARGIN.bottom - ((inside - low) / (high - low)) * (this.height - MARGIN.top - MARGIN.bottom);
  }

  listen() {
    const move = (event) => {
      const [low, high] = this.options.x;
      const within = event.clientX - this.root.getBoundingClientRect().left - MARGIN.left;
      this.options.onPoint(low + (within / (this.width - MARGIN.left - MARGIN.right)) * (high - low));
    };
    this.root.addEventListener("pointerdown", (event) => {
      this.root.setPointerCapture(event.pointerId);
      move(event);
    });
    this.root.addEventListener("pointermove", (event) => event.buttons && move(event));
    this.root.classList.add("movable");
  }

  /** content: [{x, y, class} for a line, or {x, y, width, class} for bars]; marker: x of a vertical line with points, or null. */
  update({ content = this.content, marker = this.marker, label = this.options.label, y = this.options.y }) {
    Object.assign(this, { content, marker });
    Object.assign(this.options, { label, y });
    this.root.setAttribute("aria-label", label);
    if (this.width) this.draw();
  }

  draw() {
    const { x, y, log, xLabel } = this.options;
    this.root.setAttribute("viewBox", `0 0 ${this.width} ${this.height}`);
    this.root.setAttribute("height", this.height);
    const parts = [];
    const [left, right] = [MARGIN.left, this.width - MARGIN.right];
    const floor = this.height - MARGIN.bottom;
    for (const value of log ? powersOfTen(...y) : ticksOf(...y, 5)) {
      const at = this.toY(value);
      parts.push(svg("line", { class: "grid", x1: left, x2: right, y1: at, y2: at }));
      const text = log ? `10${superscript(Math.round(Math.log10(value)))}` : String(value).replace("-", "−");
      parts.push(svg("text", { class: "tick", x: left - 6, y: at + 4, "text-anchor": "end" }, text));
    }
    for (const value of ticksOf(...x, this.width < 420 ? 4 : 6)) {
      parts.push(svg("text", { class: "tick", x: this.toX(value), y: floor + 16, "text-anchor": "middle" }, String(value).replace("-", "−")));
    }
    parts.push(svg("line", { class: "axis", x1: left, x2: right, y1: floor, y2: floor }));
    parts.push(svg("text", { class: "tick label", x: right, y: this.height - 3, "text-anchor": "end" }, xLabel));
    for (const item of this.content) parts.push(item.width ? this.bars(item) : this.line(item));
    if (this.marker !== null) parts.push(...this.markerAt(this.marker));
    this.root.replaceChildren(...parts);
  }

  line({ x, y, class: name }) {
    const points = [];
    const every = Math.max(1, Math.floor(x.length / 600));
    for (let i = 0; i < x.length; i++) {
      if ((i % every === 0 || i === x.length - 1) && !(this.options.log && !(y[i] > 0))) {
        points.push(`${this.toX(x[i]).toFixed(1)},${this.toY(y[i]).toFixed(1)}`);
      }
    }
    return svg("polyline", { class: `line ${name}`, points: points.join(" ") });
  }

  bars({ x, y, width, class: name }) {
    const floor = this.height - MARGIN.bottom;
    const path = [...x].map((left, i) => {
      const top = this.toY(y[i]).toFixed(1);
      return `M${this.toX(left).toFixed(1)},${floor}V${top}H${this.toX(left + width).toFixed(1)}V${floor}Z`;
    });
    return svg("path", { class: `bars ${name}`, d: path.join("") });
  }

  markerAt(value) {
    const at = this.toX(value);
    const parts = [svg("line", { class: "marker", x1: at, x2: at, y1: MARGIN.top, y2: this.height - MARGIN.bottom })];
    for (const { x, y, width, class: name, faint } of this.content) {
      if (width || faint) continue;
      let nearest = 0;
      for (let i = 1; i < x.length; i++) if (Math.abs(x[i] - value) < Math.abs(x[nearest] - value)) nearest = i;
      if (!this.options.log || y[nearest] > 0) {
        parts.push(svg("circle", { class: `point ${name}`, cx: at, cy: this.toY(y[nearest]), r: 4.5 }));
      }
    }
    return parts;
  }
}

// Small functions for elements of the page: finding and making them, pictures, and numbers as text.

const find = (id) => document.getElementById(id);

/** A new element with attributes, and children that are elements or text. */
function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== false) element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

function setOptions(select, values, texts = values) {
  const before = select.value;
  select.replaceChildren(...values.map((value, i) => make("option", { value }, String(texts[i]))));
  if (values.map(String).includes(before)) select.value = before;
}

/** Show an image [H, W, C] of floats or levels on a canvas, one canvas pixel per pixel, with a description for screen readers. */
function drawImage(canvas, values, [height, width, channels], description) {
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  canvas.style.aspectRatio = `${width} / ${height}`;
  canvas.getContext("2d").putImageData(pixelsOf(values, [height, width, channels]), 0, 0);
  if (description) canvas.setAttribute("aria-label", description);
}

function pixelsOf(values, [height, width, channels]) {
  const levels = toLevels(values);
  const pixels = new ImageData(width, height);
  for (let i = 0; i < width * height; i++) {
    for (let c = 0; c < 3; c++) pixels.data[4 * i + c] = levels[channels === 3 ? 3 * i + c : channels * i];
    pixels.data[4 * i + 3] = 255;
  }
  return pixels;
}

/** Digits that suit a scale or a ratio: 0.934, 0.0061, 1.2e-5. */
function formatNumber(value, digits = 3) {
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size < 1e-3 || size >= 1e5) {
    const [mantissa, exponent] = value.toExponential(1).split("e");
    return `${mantissa}·10${superscript(Number(exponent))}`.replace("-", "−");
  }
  return (size >= 1 ? value.toPrecision(digits) : size >= 0.1 ? value.toFixed(digits) : value.toPrecision(digits - 1)).replace("-", "−");
}

function superscript(number) {
  return [...String(number)].map((character) => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(character)]).join("");
}

/** Call `draw` now, and again when the width of the element changes. */
function drawAtWidth(element, draw) {
  let width = 0;
  new ResizeObserver(() => {
    const now = Math.floor(element.clientWidth);
    if (now > 0 && now !== width) draw((width = now));
  }).observe(element);
}

/** Keeps the text of a slider, and calls `changed` with its value. */
function bindSlider(slider, output, changed, text = (t) => `t = ${t}`) {
  const update = () => {
    const t = Number(slider.value);
    slider.setAttribute("aria-valuetext", text(t));
    output.textContent = text(t);
    changed(t);
  };
  slider.addEventListener("input", update);
  return {
    update,
    get value() {
      return Number(slider.value);
    },
    set(t) {
      slider.value = String(Math.round(Math.min(Number(slider.max), Math.max(Number(slider.min), t))));
      update();
    },
  };
}

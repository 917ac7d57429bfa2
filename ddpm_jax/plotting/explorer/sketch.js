// A drawing area for an image of few pixels. Strokes are black and white (or of one color) on a finer grid whose blocks are
// averaged, as a scanner would: this gives soft edges like those of the digits.

const FINE_SIDE = 32; // side of the finer grid, at least
const CURSOR_MS = 600;

class Sketch {
  /** A drawing area on `canvas`; `changed(drawn)` is called after each change: whether the user drew. */
  constructor(canvas, shape, changed) {
    const [height, width, channels] = shape;
    this.factor = Math.max(1, Math.round(FINE_SIDE / Math.min(height, width)));
    Object.assign(this, { canvas, shape, channels, changed, fineHeight: height * this.factor, fineWidth: width * this.factor });
    this.pen = { radius: 2, color: [1, 1, 1], row: this.fineHeight / 2, column: this.fineWidth / 2 };
    this.focused = false;
    this.clear();
    this.listen();
  }

  clear() {
    this.fine = new Float32Array(this.fineHeight * this.fineWidth * this.channels).fill(-1);
    this.finish();
  }

  /** Replace the drawing by an image, floats [H, W, C]. */
  load(image) {
    const [, width] = this.shape;
    for (let row = 0; row < this.fineHeight; row++) {
      for (let column = 0; column < this.fineWidth; column++) {
        const from = (Math.floor(row / this.factor) * width + Math.floor(column / this.factor)) * this.channels;
        const to = (row * this.fineWidth + column) * this.channels;
        for (let c = 0; c < this.channels; c++) this.fine[to + c] = image[from + c];
      }
    }
    this.finish();
  }

  /** The drawing, Float32Array [H, W, C] in [-1, 1]. */
  get image() {
    const [height, width] = this.shape;
    const image = new Float32Array(height * width * this.channels);
    for (let row = 0; row < this.fineHeight; row++) {
      for (let column = 0; column < this.fineWidth; column++) {
        const to = (Math.floor(row / this.factor) * width + Math.floor(column / this.factor)) * this.channels;
        const from = (row * this.fineWidth + column) * this.channels;
        for (let c = 0; c < this.channels; c++) image[to + c] += this.fine[from + c] / this.factor ** 2;
      }
    }
    return image;
  }

  /** A dot of the pen at a place in fine pixels. */
  dot(row, column, color = this.pen.color) {
    const radius = this.pen.radius * this.factor * Math.max(1, Math.min(...this.shape.slice(0, 2)) / 16) * 0.5;
    for (let r = Math.max(0, Math.floor(row - radius)); r <= Math.min(this.fineHeight - 1, row + radius); r++) {
      for (let c = Math.max(0, Math.floor(column - radius)); c <= Math.min(this.fineWidth - 1, column + radius); c++) {
        if ((r + 0.5 - row) ** 2 + (c + 0.5 - column) ** 2 > radius * radius) continue;
        const at = (r * this.fineWidth + c) * this.channels;
        for (let channel = 0; channel < this.channels; channel++) this.fine[at + channel] = color[channel];
      }
    }
  }

  stroke(from, to, color) {
    const length = Math.max(1, Math.ceil(2 * Math.hypot(to.row - from.row, to.column - from.column)));
    for (let i = 0; i <= length; i++) {
      const part = i / length;
      this.dot(from.row + part * (to.row - from.row), from.column + part * (to.column - from.column), color);
    }
    this.finish(true);
  }

  finish(drawn = false) {
    this.draw();
    this.changed(drawn);
  }

  draw() {
    const [height, width] = this.shape;
    drawImage(this.canvas, this.image, this.shape);
    if (!this.focused) return;
    const context = this.canvas.getContext("2d");
    const [row, column] = [Math.floor(this.pen.row / this.factor), Math.floor(this.pen.column / this.factor)];
    context.fillStyle = "rgb(255 140 0 / 0.55)"; // the pixel of the pen, for users of the keyboard
    context.fillRect(Math.min(width - 1, column), Math.min(height - 1, row), 1, 1);
  }

  listen() {
    const { canvas } = this;
    const place = (event) => {
      const box = canvas.getBoundingClientRect();
      return {
        row: ((event.clientY - box.top) / box.height) * this.fineHeight,
        column: ((event.clientX - box.left) / box.width) * this.fineWidth,
      };
    };
    let before = null;
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button || !event.isPrimary) return; // another button, or another finger
      event.preventDefault();
      canvas.focus({ preventScroll: true }); // for the keys, after the mouse
      canvas.setPointerCapture(event.pointerId);
      before = place(event);
      this.stroke(before, before);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!before || !event.isPrimary) return;
      for (const each of event.getCoalescedEvents?.() ?? [event]) {
        const now = place(each);
        this.stroke(before, now);
        before = now;
      }
    });
    for (const name of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(name, (event) => {
        if (event.isPrimary) before = null;
      });
    }
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("focus", () => {
      this.focused = canvas.matches(":focus-visible");
      this.draw();
    });
    canvas.addEventListener("blur", () => {
      this.focused = false;
      this.draw();
    });
  }

  key(event) {
    const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    const { pen, factor } = this;
    if (event.key in moves) {
      const [rows, columns] = moves[event.key];
      pen.row = Math.min(this.fineHeight - factor / 2, Math.max(factor / 2, (Math.floor(pen.row / factor) + rows + 0.5) * factor));
      pen.column = Math.min(this.fineWidth - factor / 2, Math.max(factor / 2, (Math.floor(pen.column / factor) + columns + 0.5) * factor));
    } else if (event.key === " " || event.key === "Enter") {
      this.fillPixel(pen.color);
    } else if (event.key === "Backspace" || event.key === "Delete") {
      this.fillPixel([-1, -1, -1]);
    } else {
      return;
    }
    event.preventDefault();
    this.focused = true;
    if (event.key in moves) this.draw();
    else this.finish(true);
    const [row, column] = [Math.floor(pen.row / factor), Math.floor(pen.column / factor)];
    const level = toLevel(this.image[(row * this.shape[1] + column) * this.channels]);
    find("sketch-state").textContent = `Row ${row + 1}, column ${column + 1}, level ${level} of 255`;
  }

  /** Color the pixel of the pen. */
  fillPixel(color) {
    const { pen, factor } = this;
    const [top, left] = [Math.floor(pen.row / factor) * factor, Math.floor(pen.column / factor) * factor];
    for (let r = top; r < top + factor; r++) {
      for (let c = left; c < left + factor; c++) {
        for (let channel = 0; channel < this.channels; channel++) {
          this.fine[(r * this.fineWidth + c) * this.channels + channel] = color[channel];
        }
      }
    }
  }
}

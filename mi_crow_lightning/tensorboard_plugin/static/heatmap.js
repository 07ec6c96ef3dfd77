// The heatmap: a picture of rows and columns on a canvas, that pointer and keyboard move over.

import { element, fitted, sized, themed } from "./dom.js";
import { nearest } from "./numbers.js";

const AXIS = 34; // below the picture
const HEADER = 18; // above each stack
const MARKS = 16; // above all, where there are marks
const WIDEST = 120; // a cell
const RIGHT = 12;
const FONT = "11px Roboto, system-ui, sans-serif";
const DRAGGED = 5; // pixels that make a brush of a click

/**
 * A heatmap. `show(picture)` draws `{rows, steps, value(row, column), colour(value, row), describe(row, column)}`;
 * a row has a `label` and a `stack`; `marks` are lines before a column with a `text`.
 *
 * Calls `on.move(row, column)` when the cursor moves, `on.choose(row, column)` on a click or Enter,
 * and `on.brush(first, last)` with columns.
 */
export class Heatmap {
  constructor(label, on) {
    this.on = on;
    this.label = label;
    this.picture = null;
    this.crowded = false; // whether a pixel stands for several steps
    this.cell = null; // [row, column]
    this.canvas = element("canvas", { "aria-hidden": "true" });
    this.overlay = element("canvas", {
      className: "overlay",
      tabIndex: 0,
      role: "application",
      "aria-roledescription": "heatmap",
      "aria-label": label,
    });
    this.tooltip = element("div", { className: "tooltip", hidden: true });
    this.root = element("div", { className: "heatmap" }, this.canvas, this.overlay, this.tooltip);
    this.listen();
    new ResizeObserver(() => this.draw()).observe(this.root);
  }

  show(picture) {
    this.picture = picture;
    this.cell = this.cell && this.within(...this.cell);
    this.draw();
  }

  /** Put the cursor on a cell without saying so. */
  point(row, column) {
    this.cell = this.within(row, column);
    this.drawOverlay();
  }

  within(row, column) {
    const { rows, steps } = this.picture;
    if (!rows.length || !steps.length) return null;
    return [Math.max(0, Math.min(row, rows.length - 1)), Math.max(0, Math.min(column, steps.length - 1))];
  }

  draw() {
    const width = this.root.clientWidth;
    if (!this.picture || !width) return;
    const { rows } = this.picture;
    this.place(width);
    const context = sized(this.canvas, width, this.height);
    context.font = FONT;
    this.drawCells(context);
    this.drawLabels(context, rows);
    this.drawAxis(context);
    this.drawMarks(context, this.picture.marks ?? []);
    sized(this.overlay, width, this.height);
    this.publish();
    this.drawOverlay();
  }

  place(width) {
    const { rows, steps } = this.picture;
    const context = this.canvas.getContext("2d");
    context.font = FONT;
    const longest = rows.reduce((most, row) => Math.max(most, context.measureText(row.label).width), 0);
    this.left = Math.min(Math.ceil(longest) + 12, Math.max(60, width * 0.3));
    this.rowHeight = Math.max(4, Math.min(22, Math.floor(560 / Math.max(rows.length, 1))));
    this.cellWidth = Math.min(WIDEST, Math.max(0, width - this.left - RIGHT) / Math.max(steps.length, 1));
    this.tops = [];
    let top = this.picture.marks?.length ? 4 + MARKS : 4;
    for (const [index, row] of rows.entries()) {
      if (row.stack && row.stack !== rows[index - 1]?.stack) top += HEADER;
      this.tops.push(top);
      top += this.rowHeight;
    }
    this.bottom = top;
    this.height = top + AXIS;
  }

  drawCells(context) {
    const { rows, steps } = this.picture;
    if (!rows.length || !steps.length) return;
    const ratio = window.devicePixelRatio || 1;
    const columns = Math.max(1, Math.min(steps.length, Math.floor(this.cellWidth * steps.length * ratio)));
    this.crowded = columns < steps.length;
    const image = new ImageData(columns, rows.length);
    for (let row = 0; row < rows.length; row++) {
      for (let column = 0; column < columns; column++) {
        const first = Math.floor((column * steps.length) / columns);
        const after = Math.floor(((column + 1) * steps.length) / columns);
        const colour = this.picture.colour(this.extreme(row, first, after), row);
        image.data.set([...colour, 255], 4 * (row * columns + column));
      }
    }
    const source = element("canvas", { width: columns, height: rows.length });
    source.getContext("2d").putImageData(image, 0, 0);
    context.imageSmoothingEnabled = false;
    const width = this.cellWidth * steps.length;
    for (const [row, top] of this.tops.entries()) {
      context.drawImage(source, 0, row, columns, 1, this.left, top, width, this.rowHeight);
    }
  }

  /** Return the number that stands for several columns: the largest in size, and nan or infinity before all. */
  extreme(row, first, after) {
    let found = this.picture.value(row, first);
    for (let column = first + 1; column < after && Number.isFinite(found); column++) {
      const value = this.picture.value(row, column);
      if (!(Math.abs(value) <= Math.abs(found))) found = value;
    }
    return found;
  }

  drawLabels(context, rows) {
    context.fillStyle = themed("--text");
    context.textBaseline = "middle";
    context.textAlign = "right";
    const every = Math.ceil(11 / this.rowHeight);
    for (const [row, { label, stack }] of rows.entries()) {
      if (row % every === 0) {
        context.fillText(fitted(context, label, this.left - 8), this.left - 6, this.tops[row] + this.rowHeight / 2);
      }
      if (stack && stack !== rows[row - 1]?.stack) {
        context.textAlign = "left";
        context.font = `bold ${FONT}`;
        context.fillText(
          fitted(context, stack, this.cellWidth * this.picture.steps.length),
          this.left,
          this.tops[row] - 8,
        );
        context.font = FONT;
        context.textAlign = "right";
      }
    }
  }

  drawAxis(context) {
    const { steps } = this.picture;
    context.fillStyle = themed("--text");
    context.strokeStyle = themed("--line");
    context.textAlign = "center";
    context.textBaseline = "top";
    const every = Math.max(1, Math.ceil(70 / Math.max(this.cellWidth, 1e-6)));
    for (let column = 0; column < steps.length; column += every) {
      const x = this.left + (column + 0.5) * this.cellWidth;
      context.beginPath();
      context.moveTo(x, this.bottom);
      context.lineTo(x, this.bottom + 4);
      context.stroke();
      context.fillText(String(steps[column]), x, this.bottom + 6);
    }
    context.fillText("step", this.left + (this.cellWidth * steps.length) / 2, this.bottom + 20);
  }

  drawMarks(context, marks) {
    context.textAlign = "left";
    context.textBaseline = "top";
    let free = 0; // labels do not overlap
    for (const { column, text } of marks) {
      const x = this.left + column * this.cellWidth;
      context.strokeStyle = "rgb(255 255 255 / 70%)";
      context.beginPath();
      context.moveTo(x, this.tops[0] ?? 0);
      context.lineTo(x, this.bottom);
      context.stroke();
      if (x < free) continue;
      context.fillStyle = themed("--faint");
      context.fillText(text, x, 4);
      free = x + context.measureText(text).width + 8;
    }
  }

  /** Write where the cells are into the element, so that scripts can point at them. */
  publish() {
    Object.assign(this.overlay.dataset, {
      left: this.left,
      cellWidth: this.cellWidth,
      rowHeight: this.rowHeight,
      tops: this.tops.join(" "),
      columns: this.picture.steps.length,
    });
  }

  drawOverlay() {
    const context = this.overlay.getContext("2d");
    context.clearRect(0, 0, this.overlay.width, this.overlay.height);
    if (!this.picture) return;
    const { chosenColumn = -1, chosenRow = -1 } = this.picture;
    context.strokeStyle = themed("--text");
    if (chosenColumn >= 0 && this.tops.length) {
      this.frame(context, this.tops[0], this.bottom - this.tops[0], chosenColumn, chosenColumn, 1);
    }
    if (chosenRow >= 0 && this.tops.length) {
      this.frame(context, this.tops[chosenRow], this.rowHeight, 0, this.picture.steps.length - 1, 1);
    }
    if (this.brushed) {
      context.fillStyle = themed("--brush");
      const [first, last] = this.brushed;
      context.fillRect(
        this.left + first * this.cellWidth,
        this.tops[0],
        (last - first + 1) * this.cellWidth,
        this.bottom - this.tops[0],
      );
    }
    if (this.cell && this.tops.length) {
      context.strokeStyle = themed("--cursor");
      this.frame(context, this.tops[this.cell[0]], this.rowHeight, this.cell[1], this.cell[1], 2);
    }
  }

  frame(context, top, height, first, last, width) {
    context.lineWidth = width;
    const across = Math.max(2, (last - first + 1) * this.cellWidth);
    context.strokeRect(this.left + first * this.cellWidth - width / 2, top - width / 2, across + width, height + width);
  }

  at(event) {
    const box = this.overlay.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    if (!this.picture || x < this.left - this.cellWidth || y > this.bottom) return null;
    return this.within(nearest(this.tops, y - this.rowHeight / 2), Math.floor((x - this.left) / this.cellWidth));
  }

  listen() {
    const { overlay } = this;
    overlay.addEventListener("pointermove", (event) => this.moved(event));
    overlay.addEventListener("pointerleave", () => this.hideTooltip());
    overlay.addEventListener("pointerdown", (event) => this.pressed(event));
    overlay.addEventListener("pointerup", (event) => this.released(event));
    overlay.addEventListener("pointercancel", () => this.forgetBrush());
    overlay.addEventListener("keydown", (event) => this.key(event));
    overlay.addEventListener("blur", () => this.hideTooltip());
  }

  moved(event) {
    const cell = this.at(event);
    if (!cell) return this.hideTooltip();
    if (this.pressedAt) {
      const wide = Math.abs(event.clientX - this.pressedAt.x) > DRAGGED;
      this.brushed = wide || this.brushed ? [this.pressedAt.column, cell[1]].sort((a, b) => a - b) : null;
    }
    this.moveTo(...cell, event);
  }

  moveTo(row, column, event = null) {
    const cell = this.picture && this.within(row, column);
    if (!cell) return;
    this.cell = cell;
    this.drawOverlay();
    this.showTooltip(event);
    this.on.move(...cell);
  }

  pressed(event) {
    const cell = event.button === 0 && this.at(event);
    if (!cell) return;
    this.overlay.setPointerCapture(event.pointerId);
    this.pressedAt = { x: event.clientX, column: cell[1] };
  }

  released(event) {
    if (!this.pressedAt) return;
    const [brushed, cell] = [this.brushed, this.at(event)];
    this.forgetBrush();
    if (brushed) this.on.brush(...brushed);
    else if (cell) this.on.choose(...cell);
  }

  forgetBrush() {
    this.pressedAt = this.brushed = null;
    this.drawOverlay();
  }

  key(event) {
    if (!this.picture || event.altKey || event.metaKey) return;
    const { rows, steps } = this.picture;
    const start = this.within(this.picture.chosenRow ?? 0, this.picture.chosenColumn ?? 0);
    if (!start) return;
    const [row, column] = this.cell ?? start;
    const to = {
      ArrowLeft: [row, column - 1],
      ArrowRight: [row, column + 1],
      ArrowUp: [row - 1, column],
      ArrowDown: [row + 1, column],
      PageUp: [row - 10, column],
      PageDown: [row + 10, column],
      Home: event.ctrlKey ? [0, 0] : [row, 0],
      End: event.ctrlKey ? [rows.length - 1, steps.length - 1] : [row, steps.length - 1],
    }[event.key];
    const isFirst = !this.cell && event.key.startsWith("Arrow"); // it only shows where the cursor is
    if (to) this.moveTo(...(isFirst ? start : to));
    else if (event.key === "Enter" || event.key === " ") this.on.choose(row, column);
    else if (event.key === "Escape") this.hideTooltip();
    else return;
    event.preventDefault();
  }

  showTooltip(event) {
    const [row, column] = this.cell;
    const lines = this.picture.describe(row, column);
    this.tooltip.replaceChildren(...lines.map((line) => element("div", {}, line)));
    this.tooltip.hidden = false;
    const box = this.overlay.getBoundingClientRect();
    const x = event ? event.clientX - box.left : this.left + (column + 0.5) * this.cellWidth;
    const y = event ? event.clientY - box.top : this.tops[row] + this.rowHeight;
    const { offsetWidth, offsetHeight } = this.tooltip;
    this.tooltip.style.left = `${Math.max(0, Math.min(x + 14, box.width - offsetWidth - 4))}px`;
    const below = y + 16 + offsetHeight <= Math.max(this.height, offsetHeight + 40);
    this.tooltip.style.top = `${below ? y + 16 : y - offsetHeight - 12}px`;
  }

  hideTooltip() {
    this.tooltip.hidden = true;
  }
}

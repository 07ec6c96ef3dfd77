// The heatmap: a picture of rows and columns on a canvas, that pointer and keyboard move over.

import { element, sized, themed } from "./dom.js";
import { drawPicture, placeOf } from "./drawing.js";
import { nearest } from "./numbers.js";

const DRAGGED = 5; // pixels that make a brush of a click

/**
 * A heatmap. `show(picture)` draws `{rows, steps, value(row, column), colour(value, row), describe(row, column)}`;
 * a row has a `label` and a `stack`; `marks` are lines before a column with a `text`, `events` signs above a place `at`
 * in columns with `lines` for the tooltip.
 *
 * Calls `on.move(row, column)` when the cursor moves, `on.choose(row, column)` on a click or Enter,
 * `on.brush(first, last)` with columns, and `on.event(event)` with one of `events` that is clicked.
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

  within(row, column) {
    const { rows, steps } = this.picture;
    if (!rows.length || !steps.length) return null;
    return [Math.max(0, Math.min(row, rows.length - 1)), Math.max(0, Math.min(column, steps.length - 1))];
  }

  draw() {
    const width = this.root.clientWidth;
    if (!this.picture || !width) return;
    Object.assign(this, placeOf(this.picture, width, this.canvas.getContext("2d")));
    this.crowded = drawPicture(sized(this.canvas, width, this.height), this.picture, this);
    sized(this.overlay, width, this.height);
    this.publish();
    this.drawOverlay();
  }

  /** Write where the cells are into the element, so that scripts can point at them. */
  publish() {
    Object.assign(this.overlay.dataset, {
      left: this.left,
      cellWidth: this.cellWidth,
      rowHeight: this.rowHeight,
      tops: this.tops.join(" "),
      columns: this.picture.steps.length,
      events: (this.picture.events ?? []).map(({ at }) => this.left + at * this.cellWidth).join(" "),
      eventsAt: this.eventsAt,
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

  /** Return the event whose sign is under the pointer. */
  eventAt(event) {
    const box = this.overlay.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    const { events = [] } = this.picture ?? {};
    if (!events.length || y < this.eventsAt || y >= this.eventsAt + 16) return null;
    const away = ({ at }) => Math.abs(this.left + at * this.cellWidth - x);
    const closest = events.reduce((one, two) => (away(two) < away(one) ? two : one));
    return away(closest) <= 8 ? closest : null;
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
    const happened = this.pressedAt ? null : this.eventAt(event);
    this.overlay.style.cursor = happened ? "pointer" : "";
    if (happened) return this.showLines(happened.lines, event.clientX, event.clientY);
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
    const happened = event.button === 0 ? this.eventAt(event) : null;
    if (happened) return this.on.event?.(happened);
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
    const box = this.overlay.getBoundingClientRect();
    const x = event ? event.clientX : box.left + this.left + (column + 0.5) * this.cellWidth;
    const y = event ? event.clientY : box.top + this.tops[row] + this.rowHeight;
    this.showLines(this.picture.describe(row, column), x, y);
  }

  /** Show lines beside a point of the window. */
  showLines(lines, clientX, clientY) {
    this.tooltip.replaceChildren(...lines.map((line) => element("div", {}, line)));
    this.tooltip.hidden = false;
    const box = this.overlay.getBoundingClientRect();
    const [x, y] = [clientX - box.left, clientY - box.top];
    const { offsetWidth, offsetHeight } = this.tooltip;
    this.tooltip.style.left = `${Math.max(0, Math.min(x + 14, box.width - offsetWidth - 4))}px`;
    const below = y + 16 + offsetHeight <= Math.max(this.height, offsetHeight + 40);
    this.tooltip.style.top = `${below ? y + 16 : y - offsetHeight - 12}px`;
  }

  hideTooltip() {
    this.tooltip.hidden = true;
  }
}

// The still part of a heatmap: cells, names, axis, marks. What moves over it is in heatmap.js.

import { element, fitted, themed } from "./dom.js";

const AXIS = 34; // below the picture
const HEADER = 18; // above each stack
const MARKS = 16; // above all, where there are marks
const WIDEST = 120; // a cell
const RIGHT = 12;
export const FONT = "11px Roboto, system-ui, sans-serif";

/** Return where everything lies, in CSS pixels: `{left, cellWidth, rowHeight, tops, bottom, height, eventsAt}`. */
export function placeOf({ rows, steps, marks, events }, width, context) {
  context.font = FONT;
  const longest = rows.reduce((most, row) => Math.max(most, context.measureText(row.label).width), 0);
  const left = Math.min(Math.ceil(longest) + 12, Math.max(60, width * 0.3));
  const rowHeight = Math.max(4, Math.min(22, Math.floor(560 / Math.max(rows.length, 1))));
  const cellWidth = Math.min(WIDEST, Math.max(0, width - left - RIGHT) / Math.max(steps.length, 1));
  const tops = [];
  const eventsAt = marks?.length ? 4 + MARKS : 4; // the top of their row
  let bottom = events?.length ? eventsAt + MARKS : eventsAt;
  for (const [index, row] of rows.entries()) {
    if (row.stack && row.stack !== rows[index - 1]?.stack) bottom += HEADER;
    tops.push(bottom);
    bottom += rowHeight;
  }
  return { left, cellWidth, rowHeight, tops, bottom, height: bottom + AXIS, eventsAt };
}

/** Draw a picture, and return whether a pixel stands for several steps. */
export function drawPicture(context, picture, place) {
  context.font = FONT;
  const crowded = drawCells(context, picture, place);
  drawLabels(context, picture, place);
  drawAxis(context, picture, place);
  drawMarks(context, picture, place);
  drawEvents(context, picture, place);
  return crowded;
}

function drawCells(context, { rows, steps, value, colour }, { left, cellWidth, rowHeight, tops }) {
  if (!rows.length || !steps.length) return false;
  const width = cellWidth * steps.length;
  const columns = Math.max(1, Math.min(steps.length, Math.floor(width * (window.devicePixelRatio || 1))));
  const image = new ImageData(columns, rows.length);
  for (let row = 0; row < rows.length; row++) {
    for (let column = 0; column < columns; column++) {
      const first = Math.floor((column * steps.length) / columns);
      const after = Math.floor(((column + 1) * steps.length) / columns);
      image.data.set([...colour(extreme(value, row, first, after), row), 255], 4 * (row * columns + column));
    }
  }
  const source = element("canvas", { width: columns, height: rows.length });
  source.getContext("2d").putImageData(image, 0, 0);
  context.imageSmoothingEnabled = false;
  tops.forEach((top, row) => context.drawImage(source, 0, row, columns, 1, left, top, width, rowHeight));
  return columns < steps.length;
}

/** Return the number that stands for several columns: the largest in size, and nan or infinity before all. */
export function extreme(value, row, first, after) {
  let found = value(row, first);
  for (let column = first + 1; column < after && Number.isFinite(found); column++) {
    const here = value(row, column);
    if (!(Math.abs(here) <= Math.abs(found))) found = here;
  }
  return found;
}

function drawLabels(context, { rows, steps }, { left, cellWidth, rowHeight, tops }) {
  context.fillStyle = themed("--text");
  context.textBaseline = "middle";
  const every = Math.ceil(11 / rowHeight);
  for (const [row, { label, stack }] of rows.entries()) {
    context.textAlign = "right";
    if (row % every === 0) context.fillText(fitted(context, label, left - 8), left - 6, tops[row] + rowHeight / 2);
    if (!stack || stack === rows[row - 1]?.stack) continue;
    context.textAlign = "left";
    context.font = `bold ${FONT}`;
    context.fillText(fitted(context, stack, Math.max(200, cellWidth * steps.length)), left, tops[row] - 8);
    context.font = FONT;
  }
}

function drawAxis(context, { steps }, { left, cellWidth, bottom }) {
  context.fillStyle = themed("--text");
  context.strokeStyle = themed("--line");
  context.textAlign = "center";
  context.textBaseline = "top";
  const every = Math.max(1, Math.ceil(70 / Math.max(cellWidth, 1e-6)));
  for (let column = 0; column < steps.length; column += every) {
    const x = left + (column + 0.5) * cellWidth;
    line(context, x, bottom, bottom + 4);
    context.fillText(String(steps[column]), x, bottom + 6);
  }
  context.fillText("step", left + (cellWidth * steps.length) / 2, bottom + 20);
}

function drawMarks(context, { marks = [] }, { left, cellWidth, tops, bottom }) {
  context.fillStyle = themed("--faint");
  context.strokeStyle = "rgb(255 255 255 / 70%)";
  context.textAlign = "left";
  let free = 0; // labels do not overlap
  for (const { column, text } of marks) {
    const x = left + column * cellWidth;
    line(context, x, tops[0] ?? bottom, bottom);
    if (x < free) continue;
    context.fillText(text, x, 4);
    free = x + context.measureText(text).width + 8;
  }
}

function drawEvents(context, { events = [] }, { left, cellWidth, tops, bottom, eventsAt }) {
  context.save();
  context.fillStyle = themed("--text");
  context.strokeStyle = "rgb(255 255 255 / 60%)";
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.font = `bold ${FONT}`;
  context.setLineDash([2, 3]);
  let free = -Infinity; // signs do not overlap
  for (const { at, glyph } of events) {
    const x = left + at * cellWidth;
    line(context, x, tops[0] ?? bottom, bottom);
    if (x < free) continue;
    context.fillText(glyph, x, eventsAt + MARKS / 2);
    free = x + 9;
  }
  context.restore();
}

function line(context, x, top, bottom) {
  context.beginPath();
  context.moveTo(x, top);
  context.lineTo(x, bottom);
  context.stroke();
}

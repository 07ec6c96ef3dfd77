// A chart of many lines, one of which is read at a time, with the pointer or the keyboard.

import uPlot from "./uplot/uPlot.esm.js";
import { element, sized, themed } from "./dom.js";
import { exact, extent, short } from "./numbers.js";

const HEIGHT = 220;
const APART = 6; // lines that have a colour and a dash each; more have colours from the first to the last
const DASHES = [[], [8, 4], [2, 3], [10, 3, 2, 3], [14, 5], [4, 4]];
const WHOLE = [1, 2, 5]
  .flatMap((digit) => Array.from({ length: 12 }, (_, zeros) => digit * 10 ** zeros))
  .sort((a, b) => a - b);

/**
 * Return a chart: `{root, destroy}`.
 *
 * @param title its heading.
 * @param over the word for a place on the x axis.
 * @param x the places, ascending whole numbers.
 * @param lines `{name, values}` each.
 */
export function manyLines({ title, over, x, lines }) {
  const heading = element("h3", {}, title);
  const place = element("div", {
    className: "lines",
    tabIndex: 0,
    role: "application",
    "aria-roledescription": "chart",
    "aria-label": `${title}. Left and right arrow keys move over the ${over} numbers, up and down over the layers.`,
  });
  const readout = element("div", { className: "readout", "aria-live": "polite" });
  const root = element("figure", { className: "chart" }, heading, place, readout, key(lines));
  const dot = element("div", { className: "dot", hidden: true });
  const cursor = { line: 0, at: 0 };
  const plot = new uPlot(options(x, lines, over, (at, top) => point(at, top)), [x, ...lines.map(finite)], place);
  plot.over.append(dot);
  const resized = new ResizeObserver(() => {
    if (!root.clientWidth) return;
    plot.setSize({ width: root.clientWidth, height: HEIGHT });
    if (!dot.hidden) show();
  });
  resized.observe(root);
  place.addEventListener("keydown", (event) => {
    const { line, at } = cursor;
    const to = {
      ArrowLeft: [line, at - 1],
      ArrowRight: [line, at + 1],
      ArrowUp: [line - 1, at],
      ArrowDown: [line + 1, at],
      Home: [line, 0],
      End: [line, x.length - 1],
    }[event.key];
    if (!to || event.altKey || event.ctrlKey || event.metaKey || !x.length) return;
    event.preventDefault();
    move(...(dot.hidden ? [line, event.key === "End" ? x.length - 1 : 0] : to));
  });
  place.addEventListener("focus", () => readout.textContent || (x.length && move(0, 0)));
  return { root, destroy: () => (resized.disconnect(), plot.destroy()) };

  /** Take the line that is nearest to a height at a place. */
  function point(at, top) {
    const distances = lines.map(({ values }) =>
      Number.isFinite(values[at]) ? Math.abs(plot.valToPos(values[at], "y") - top) : Infinity,
    );
    move(distances.indexOf(Math.min(...distances)), at);
  }

  function move(line, at) {
    cursor.line = Math.max(0, Math.min(line, lines.length - 1));
    cursor.at = Math.max(0, Math.min(at, x.length - 1));
    show();
  }

  function show() {
    const { name, values } = lines[cursor.line];
    const value = values[cursor.at];
    const text = `${over} ${x[cursor.at]}, ${name}: ${value === value ? exact(value) : "not on"}`;
    if (readout.textContent !== text) readout.textContent = text;
    dot.hidden = false;
    dot.style.left = `${plot.valToPos(x[cursor.at], "x")}px`;
    dot.style.top = `${Number.isFinite(value) ? plot.valToPos(value, "y") : plot.over.clientHeight}px`;
  }
}

function options(x, lines, over, point) {
  const pad = x.length === 1 ? [x[0] - 1, x[0] + 1] : undefined;
  const series = lines.map((_, at) => ({
    stroke: () => colourOf(at, lines.length),
    width: 1.5,
    dash: lines.length <= APART ? DASHES[at] : [],
    points: { show: x.length < 40, size: 5 },
  }));
  const grid = () => ({ stroke: () => themed("--grid"), width: 1 });
  const axis = {
    stroke: () => themed("--text"),
    grid: grid(),
    ticks: { show: false },
    font: "11px Roboto, system-ui, sans-serif",
  };
  return {
    width: 280,
    height: HEIGHT,
    legend: { show: false },
    cursor: { y: false, drag: { x: false, y: false }, points: { show: false } },
    scales: { x: { time: false, range: pad }, y: { range: (_, low, high) => rangeOf(low, high) } },
    series: [{}, ...series],
    axes: [
      { ...axis, size: 22, incrs: WHOLE, values: (_, at) => at.map(String), label: over, labelSize: 18, labelFont: axis.font },
      { ...axis, size: 56, space: 28, values: (_, at) => at.map(short) },
    ],
    hooks: {
      setCursor: [
        ({ cursor: { idx, top } }) => {
          if (idx !== null && idx !== undefined && top >= 0) point(idx, top);
        },
      ],
    },
  };
}

/** Return a range that begins at zero: the sizes of changes are compared with none. */
function rangeOf(low, high) {
  const [, top] = extent([0, low ?? 0, high ?? 0]);
  return [0, top > 0 ? top * 1.05 : 1];
}

function finite({ values }) {
  return values.map((value) => (Number.isFinite(value) ? value : null));
}

/** Return the colour of a line: its own, or its place between the first and the last. */
function colourOf(at, count) {
  if (count <= APART) return themed(`--line-${at}`);
  const [first, last] = ["--line-0", "--line-1"].map((name) =>
    [1, 3, 5].map((place) => parseInt(themed(name).slice(place, place + 2), 16)),
  );
  const part = at / (count - 1);
  return `rgb(${first.map((channel, place) => Math.round(channel + (last[place] - channel) * part)).join(" ")})`;
}

/** Return the words for the lines: each, or the first and the last of many. */
function key(lines) {
  const shown = lines.length <= APART ? lines.map((_, at) => at) : [0, lines.length - 1];
  const entries = shown.map((at) => {
    const sample = element("canvas", { "aria-hidden": "true" });
    const context = sized(sample, 30, 10);
    context.strokeStyle = colourOf(at, lines.length);
    context.lineWidth = 2;
    if (lines.length <= APART) context.setLineDash(DASHES[at]);
    context.beginPath();
    context.moveTo(0, 5);
    context.lineTo(30, 5);
    context.stroke();
    return element("span", { className: "key" }, sample, " ", lines[at].name);
  });
  if (lines.length > APART) entries.splice(1, 0, element("span", { className: "key" }, "to"));
  return element("figcaption", { className: "notes" }, ...entries);
}

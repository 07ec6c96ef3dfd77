// Lines, drawn by uPlot.

import uPlot from "./uplot/uPlot.esm.js";
import { element, themed } from "./dom.js";
import { exact, short } from "./numbers.js";

const HEIGHT = 150;

/**
 * Return a chart: `{root, destroy}`.
 *
 * @param title its heading.
 * @param lines `{x, y}` each, `x` ascending. Of more than two each has a `name`, and `colour`, `width`, perhaps a `dash`:
 *   then the one that is nearest to the pointer is read out.
 * @param marked the place on the x axis that is marked, or `null`.
 * @param marks further places, `{x, glyph, text}` each: a dashed line with a sign above it.
 * @param say the words for a place on the x axis.
 * @param ticks the words for it on the axis, where they are not its number.
 * @param choose called with a place that is clicked, and the nearest line of those that have names.
 */
export function lineChart({ title, lines, marked = null, marks = [], say, ticks = short, choose }) {
  const heading = element("h3", {}, title);
  const place = element("div", {});
  const root = element("figure", { className: "chart", role: "group", "aria-label": title }, heading, place);
  const all = [...new Set(lines.flatMap((line) => Array.from(line.x)))].sort((a, b) => a - b);
  const values = lines.map((line) => onto(all, line));
  const dots = all.length < 40;
  const options = {
    width: 280,
    height: HEIGHT,
    legend: { show: false },
    cursor: { y: false, drag: { x: false, y: false } },
    scales: { x: { time: false, range: all.length === 1 ? [all[0] - 1, all[0] + 1] : undefined } },
    series: [
      {},
      ...lines.map(({ colour, width = 1.5, dash }, at) => ({
        stroke: colour ?? (() => themed(at ? "--second" : "--first")),
        width,
        dash,
        points: { show: dots && !(width < 1.5), size: 3 + width },
      })),
    ],
    axes: [
      axis({ size: 24, incrs: WHOLE, values: (_, at) => at.map(ticks) }),
      axis({ size: 56, space: 28, values: (_, at) => at.map(short) }),
    ],
    hooks: { setCursor: [read], draw: [(plot) => signs(plot, marks), (plot) => mark(plot, marked)] },
  };
  const plot = new uPlot(options, [all, ...values], place);
  plot.over.addEventListener("click", () => {
    const { idx } = plot.cursor;
    if (idx !== null && idx !== undefined) choose(all[idx], nearestLine(plot));
  });
  const resized = new ResizeObserver(
    () => root.clientWidth && plot.setSize({ width: root.clientWidth, height: HEIGHT }),
  );
  resized.observe(root);
  return { root, destroy: () => (resized.disconnect(), plot.destroy()) };

  /** Return the line with a name that is nearest to the pointer, `null` if no line has a name. */
  function nearestLine({ cursor: { idx, top }, posToVal }) {
    const wanted = posToVal(top, "y");
    const away = (at) => Math.abs((values[at][idx] ?? Infinity) - wanted);
    const named = lines.map((_, at) => at).filter((at) => lines[at].name !== undefined);
    return named.length ? named.reduce((one, two) => (away(two) < away(one) ? two : one)) : null;
  }

  function read(chart) {
    const { idx } = chart.cursor;
    const known = idx !== null && idx !== undefined;
    const line = known ? nearestLine(chart) : null;
    const said = (at) => exact(values[at][idx] ?? NaN);
    const numbers = line === null ? values.map((_, at) => known && said(at)).join(" and ") : `${lines[line].name} ${said(line)}`;
    const here = known ? marks.filter(({ x }) => x <= all[idx] && (idx === 0 || x > all[idx - 1])) : [];
    const events = here.map(({ text }) => `; ${text}`).slice(0, 3);
    heading.textContent = known ? `${title}: ${numbers} at ${say(all[idx])}${events.join("")}` : title;
  }
}

const WHOLE = [1, 2, 5]
  .flatMap((digit) => Array.from({ length: 12 }, (_, zeros) => digit * 10 ** zeros))
  .sort((a, b) => a - b);

function axis(options) {
  const grid = { stroke: () => themed("--grid"), width: 1 };
  return {
    stroke: () => themed("--text"),
    grid,
    ticks: { show: false },
    font: "11px Roboto, system-ui, sans-serif",
    ...options,
  };
}

function onto(all, { x, y }) {
  const at = new Map(Array.from(x, (place, index) => [place, index]));
  return all.map((place) => {
    const value = at.has(place) ? y[at.get(place)] : NaN;
    return Number.isFinite(value) ? value : null; // a gap: there is no place for nan and infinity
  });
}

function mark(plot, marked) {
  const x = marked === null ? NaN : plot.valToPos(marked, "x", true);
  const { left, top, width, height } = plot.bbox;
  if (!(x >= left && x <= left + width)) return;
  plot.ctx.save();
  plot.ctx.strokeStyle = themed("--cursor");
  plot.ctx.lineWidth = window.devicePixelRatio || 1;
  plot.ctx.beginPath();
  plot.ctx.moveTo(x, top);
  plot.ctx.lineTo(x, top + height);
  plot.ctx.stroke();
  plot.ctx.restore();
}

function signs(plot, marks) {
  const { left, top, width, height } = plot.bbox;
  const ratio = window.devicePixelRatio || 1;
  plot.ctx.save();
  plot.ctx.strokeStyle = plot.ctx.fillStyle = themed("--faint");
  plot.ctx.lineWidth = ratio;
  plot.ctx.setLineDash([2 * ratio, 3 * ratio]);
  plot.ctx.font = `bold ${10 * ratio}px Roboto, system-ui, sans-serif`;
  plot.ctx.textAlign = "center";
  plot.ctx.textBaseline = "top";
  let free = -Infinity;
  for (const { x: place, glyph } of marks) {
    const x = plot.valToPos(place, "x", true);
    if (!(x >= left - 1 && x <= left + width + 1)) continue;
    plot.ctx.beginPath();
    plot.ctx.moveTo(x, top);
    plot.ctx.lineTo(x, top + height);
    plot.ctx.stroke();
    if (!glyph || x < free) continue;
    plot.ctx.fillText(glyph, x, top);
    free = x + 9 * ratio;
  }
  plot.ctx.restore();
}

/** Return the words for the colours of two lines. */
export function colourKey(names) {
  const entries = names.map((name, at) => {
    const square = element("span", { className: "swatch" });
    square.style.background = `var(${at ? "--second" : "--first"})`;
    return element("span", { className: "key" }, square, name);
  });
  return element("p", { className: "notes" }, ...entries);
}

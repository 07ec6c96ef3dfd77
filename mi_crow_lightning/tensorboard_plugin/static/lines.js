// Lines over the steps, drawn by uPlot.

import uPlot from "./uplot/uPlot.esm.js";
import { element, themed } from "./dom.js";
import { exact, short } from "./numbers.js";

const HEIGHT = 150;

/**
 * Return a chart of one statistic over the steps.
 *
 * @param title its heading.
 * @param lines `[{steps, values}]`, of one run or two.
 * @param step the step that is marked.
 * @param choose called with a step that is clicked.
 */
export function lineChart(title, lines, step, choose) {
  const heading = element("h3", {}, title);
  const place = element("div", {});
  const root = element("figure", { className: "chart", role: "group", "aria-label": `${title} over the steps` }, heading, place);
  const steps = [...new Set(lines.flatMap((line) => Array.from(line.steps)))].sort((a, b) => a - b);
  const values = lines.map((line) => onto(steps, line));
  const options = {
    width: 280,
    height: HEIGHT,
    legend: { show: false },
    cursor: { y: false, drag: { x: false, y: false } },
    scales: { x: { time: false } },
    series: [{}, ...lines.map((_, at) => ({ stroke: () => themed(at ? "--second" : "--first"), width: 1.5, points: { show: steps.length < 20 } }))],
    axes: [axis(24), { ...axis(56), space: 28, values: (_, ticks) => ticks.map(short) }],
    hooks: { setCursor: [read], draw: [(plot) => mark(plot, step)] },
  };
  const plot = new uPlot(options, [steps, ...values], place);
  plot.over.addEventListener("click", () => plot.cursor.idx !== null && choose(steps[plot.cursor.idx]));
  const resized = new ResizeObserver(() => root.clientWidth && plot.setSize({ width: root.clientWidth, height: HEIGHT }));
  resized.observe(root);
  return { root, destroy: () => (resized.disconnect(), plot.destroy()) };

  function read({ cursor: { idx } }) {
    const here = idx === null || idx === undefined ? "" : values.map((row) => exact(row[idx] ?? NaN)).join(" and ");
    heading.textContent = here ? `${title}: ${here} at step ${steps[idx]}` : title;
  }
}

function axis(size) {
  return { stroke: () => themed("--text"), grid: { stroke: () => themed("--grid"), width: 1 }, ticks: { show: false }, size, font: "11px Roboto, system-ui, sans-serif" };
}

function onto(steps, line) {
  const at = new Map(Array.from(line.steps, (step, index) => [step, index]));
  return steps.map((step) => {
    const value = at.has(step) ? line.values[at.get(step)] : NaN;
    return Number.isFinite(value) ? value : null; // a gap: there is no place for nan and infinity
  });
}

function mark(plot, step) {
  const x = plot.valToPos(step, "x", true);
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

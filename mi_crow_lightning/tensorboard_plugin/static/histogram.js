// The histogram of a layer over the steps, as a heat picture: a row for each bin, the largest numbers on top.

import { makeScale } from "./colours.js";
import { element } from "./dom.js";
import { Heatmap } from "./heatmap.js";
import { legend } from "./legend.js";
import { exact, short } from "./numbers.js";

const MOST = 96; // rows: where the bins change from step to step, there may be thousands of edges

/** Return the picture: `{root}`, or `null` if there is nothing to draw. */
export function histogramPicture(parts, from, to, step, choose) {
  const columns = parts
    .flatMap(({ edges, steps, counts }) =>
      Array.from(steps, (at, index) => ({
        step: at,
        edges,
        counts: counts.subarray(index * (edges.length - 1), (index + 1) * (edges.length - 1)),
      })),
    )
    .filter((column) => (from === null || column.step >= from) && (to === null || column.step <= to))
    .sort((one, two) => one.step - two.step);
  if (!columns.length) return null;
  const edges = commonEdges(parts);
  const counts = columns.map((column) => rebinned(column, edges));
  const totals = columns.map((column) => column.counts.reduce((sum, count) => sum + count, 0));
  const filled = Array.from({ length: edges.length - 1 }, (_, bin) => bin).filter((bin) =>
    counts.some((one) => one[bin] > 0),
  );
  if (!filled.length) return null;
  const bins = Array.from({ length: filled.at(-1) - filled[0] + 1 }, (_, at) => filled.at(-1) - at);
  const shares = bins.map((bin) => Float64Array.from(counts, (one, column) => one[bin] / totals[column]));
  const scale = makeScale("symlog", shares);
  const steps = columns.map((column) => column.step);
  const readout = element("div", { className: "readout", "aria-live": "polite" });
  const describe = (row, column) => {
    const bin = bins[row];
    const count = counts[column][bin];
    return [
      `from ${exact(edges[bin])} to ${exact(edges[bin + 1])}`,
      `step ${steps[column]}`,
      `${exact(count)} elements, ${short(100 * shares[row][column])} %`,
    ];
  };
  const heatmap = new Heatmap("Histogram of the layer, bins by steps. Arrow keys move, Enter chooses the step.", {
    move: (row, column) => (readout.textContent = describe(row, column).join(", ")),
    choose: (_, column) => choose(steps[column]),
    brush: () => {},
  });
  heatmap.show({
    rows: bins.map((bin) => ({ label: edgeText(edges[bin]), stack: "" })),
    steps,
    value: (row, column) => shares[row][column],
    colour: scale.colour,
    describe,
    chosenColumn: steps.indexOf(step),
    chosenRow: -1,
  });
  const shown = legend(scale, {}, "share of the elements");
  return { root: element("div", {}, shown, heatmap.root, readout), draw: () => heatmap.draw() };
}

function edgeText(edge) {
  const whole = exact(edge); // most edges are powers of two
  return whole.length <= 7 ? whole : short(edge);
}

function commonEdges(parts) {
  const all = [...new Set(parts.flatMap(({ edges }) => Array.from(edges)))].sort((a, b) => a - b);
  if (all.length <= MOST + 1) return all;
  return Array.from({ length: MOST + 1 }, (_, at) => all[Math.round((at * (all.length - 1)) / MOST)]);
}

// Each count is spread evenly over its bin: where the bins are the common ones, nothing changes.
function rebinned({ edges, counts }, common) {
  const out = new Float64Array(common.length - 1);
  let bin = 0;
  counts.forEach((count, at) => {
    const [low, high] = [edges[at], edges[at + 1]];
    if (!count) return;
    while (bin > 0 && common[bin] > low) bin--;
    while (bin < out.length - 1 && common[bin + 1] <= low) bin++;
    if (!(high > low)) return void (out[bin] += count);
    for (let to = bin; to < out.length && common[to] < high; to++) {
      out[to] += (count * (Math.min(high, common[to + 1]) - Math.max(low, common[to]))) / (high - low);
    }
  });
  return out;
}

// From numbers to colours: the scales, and what their legend says.

import { extent } from "./numbers.js";

export const SCALES = [
  ["linear", "linear"],
  ["symlog", "symmetric log"],
  ["layer", "each layer by itself"],
];

// viridis, and a red-blue scale around white: both stay ordered for colour-blind eyes.
const SEQUENTIAL = ramp([
  "#440154",
  "#482878",
  "#3e4989",
  "#31688e",
  "#26828e",
  "#1f9e89",
  "#35b779",
  "#6ece58",
  "#b5de2b",
  "#fde725",
]);
const DIVERGING = ramp([
  "#053061",
  "#2166ac",
  "#4393c3",
  "#92c5de",
  "#d1e5f0",
  "#f7f7f7",
  "#fddbc7",
  "#f4a582",
  "#d6604d",
  "#b2182b",
  "#67001f",
]);

export const MISSING = [158, 158, 158];
export const ABOVE = [255, 0, 200];
export const BELOW = [0, 229, 255];

function ramp(anchors) {
  const parts = anchors.map((hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)));
  return Array.from({ length: 256 }, (_, index) => {
    const place = (index / 255) * (parts.length - 1);
    const left = Math.min(Math.floor(place), parts.length - 2);
    return parts[left].map((part, channel) => Math.round(part + (parts[left + 1][channel] - part) * (place - left)));
  });
}

/**
 * Make a colour scale for the rows of a picture.
 *
 * @param kind one of `SCALES`.
 * @param rows the numbers of each row.
 * @param around whether zero is the middle: for differences, and wherever there are both signs.
 */
export function makeScale(kind, rows, around = false) {
  const ranges = rows.map((row) => extent(row));
  const known = ranges.filter(Boolean);
  const all = known.length
    ? [Math.min(...known.map(([low]) => low)), Math.max(...known.map(([, high]) => high))]
    : [0, 1];
  const diverging = around || (all[0] < 0 && all[1] > 0);
  const colours = diverging ? DIVERGING : SEQUENTIAL;
  const symmetric = ([low, high]) => {
    const size = Math.max(Math.abs(low), Math.abs(high));
    return diverging ? [-size, size] : [low, high];
  };
  const log = kind === "symlog" ? symmetricLog(rows, all) : { to: (value) => value, from: (value) => value };
  const whole = symmetric(all);
  const domains = kind === "layer" ? ranges.map((range) => symmetric(range ?? all)) : ranges.map(() => whole);
  const placed = domains.map(([low, high]) => [log.to(low), log.to(high)]);
  const colour = (value, row) => {
    if (value !== value) return MISSING;
    if (value === Infinity) return ABOVE;
    if (value === -Infinity) return BELOW;
    const [low, high] = placed[row];
    const place = high > low ? (log.to(value) - low) / (high - low) : 0.5;
    return colours[Math.max(0, Math.min(255, Math.round(place * 255)))];
  };
  return { kind, colours, colour, ticks: kind === "layer" ? null : ticks(whole, log) };
}

// Linear near zero, logarithmic beyond: where the numbers are small against the largest, they still differ in colour.
function symmetricLog(rows, [low, high]) {
  const size = Math.max(Math.abs(low), Math.abs(high)) || 1;
  let smallest = size;
  for (const row of rows)
    for (const value of row) {
      const distance = Math.abs(value);
      if (distance > 0 && distance < smallest) smallest = distance;
    }
  const unit = Math.max(smallest, size * 1e-6);
  return {
    to: (value) => Math.sign(value) * Math.log1p(Math.abs(value) / unit),
    from: (place) => Math.sign(place) * Math.expm1(Math.abs(place)) * unit,
  };
}

function ticks([low, high], log) {
  const [from, to] = [log.to(low), log.to(high)];
  const inner = [0.25, 0.5, 0.75].map((place) => [place, log.from(from + (to - from) * place)]);
  return high > low ? [[0, low], ...inner, [1, high]] : [[0.5, low]];
}

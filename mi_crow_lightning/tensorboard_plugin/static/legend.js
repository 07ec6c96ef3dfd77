// The legend of a colour scale.

import { ABOVE, BELOW, MISSING } from "./colours.js";
import { element, sized, themed } from "./dom.js";
import { short } from "./numbers.js";

const [WIDTH, HEIGHT, SIDE] = [320, 12, 40];

/** Return the legend: the ramp with its numbers, and a swatch for each kind of number that has no place in it. */
export function legend(scale, { missing, above, below }, what = "") {
  const canvas = element("canvas", { role: "img", "aria-label": words(scale) });
  const context = sized(canvas, WIDTH + 2 * SIDE, HEIGHT + 18);
  scale.colours.forEach((colour, index) => {
    context.fillStyle = css(colour);
    context.fillRect(SIDE + (index * WIDTH) / 256, 0, WIDTH / 256 + 1, HEIGHT);
  });
  context.fillStyle = themed("--text");
  context.font = "11px Roboto, system-ui, sans-serif";
  context.textAlign = "center";
  context.textBaseline = "top";
  const ticks = scale.ticks?.map(([place, value]) => [place, short(value)]) ?? [
    [0, "layer's least"],
    [1, "layer's most"],
  ];
  for (const [place, text] of ticks) context.fillText(text, SIDE + place * WIDTH, HEIGHT + 4);
  const swatches = [
    [missing, MISSING, "no number (nan)"],
    [above, ABOVE, "+infinity"],
    [below, BELOW, "−infinity"],
  ];
  return element(
    "div",
    { className: "legend" },
    what,
    canvas,
    ...swatches.filter(([is]) => is).map(([, ...of]) => swatch(...of)),
  );
}

function swatch(colour, text) {
  const square = element("span", { className: "swatch" });
  square.style.background = css(colour);
  return element("span", {}, square, text);
}

function words(scale) {
  if (!scale.ticks) return "Colours from each layer's least to its most";
  return `Colours from ${short(scale.ticks[0][1])} to ${short(scale.ticks.at(-1)[1])}`;
}

function css([red, green, blue]) {
  return `rgb(${red} ${green} ${blue})`;
}

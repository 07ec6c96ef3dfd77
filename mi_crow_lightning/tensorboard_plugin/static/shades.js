// Shades of one colour, for lines that have an order: the later or deeper, the stronger.

import { element } from "./dom.js";

/** Return the shade of the `at`-th of `count` lines: from faint to strong on the page's background. */
export function shade(at, count) {
  const place = count > 1 ? at / (count - 1) : 1;
  const dark = document.documentElement.classList.contains("dark");
  const lightness = dark ? 38 + 50 * place : 78 - 56 * place;
  return `hsl(26 ${55 + 35 * place}% ${lightness}%)`;
}

/** Return the words for the shades: the first and the last of some things, e.g. of `count` steps. */
export function shadeKey(what, first, last, count) {
  const ramp = element("span", { className: "ramp", "aria-hidden": "true" });
  const shades = Array.from({ length: Math.min(count, 8) }, (_, at) => shade(at, Math.min(count, 8)));
  ramp.style.background = shades.length > 1 ? `linear-gradient(to right, ${shades.join(", ")})` : shades[0];
  const words = count > 1 ? [`${what}s from ${first} `, ramp, ` to ${last}`] : [`${what} ${last}`];
  return element("p", { className: "notes" }, ...words);
}

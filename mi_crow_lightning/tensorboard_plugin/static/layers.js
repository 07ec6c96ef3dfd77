// Layers: which are shown, in which order, and how their names read.

export const ORDERS = [
  ["model", "the model's order"],
  ["name", "name"],
  ["value", "value at the step"],
  ["change", "change over the steps"],
];

/** Return a test for names: a glob if there is `*` or `?` in it, otherwise a part of the name. */
export function matcher(glob) {
  const text = glob.trim();
  if (!text) return () => true;
  const isGlob = /[*?]/.test(text);
  const source = text
    .replace(/[.+^${}()|[\]\\]/g, "\\$&")
    .replaceAll("*", ".*")
    .replaceAll("?", ".");
  const pattern = new RegExp(isGlob ? `^${source}$` : source, "isu");
  return (name) => pattern.test(name);
}

/** Return the stack that a layer is in: its name up to its first number, so that encoder and decoder are apart. */
export function stackOf(layer) {
  const parts = layer.split(".");
  const number = parts.findIndex((part) => /^\d+$/.test(part));
  return number < 0 ? "" : parts.slice(0, number).join(".");
}

/** Return how much of its start all names share, in whole parts. */
export function sharedStart(names) {
  if (names.length < 2) return 0;
  let length = Math.min(...names.map((name) => name.length));
  while (length && !names.every((name) => name.startsWith(names[0].slice(0, length)))) length--;
  return names[0].lastIndexOf(".", length - 1) + 1;
}

/**
 * Return the rows of a picture: `[{layer, label, stack, at}]`, `at` the layer's column in the matrix.
 *
 * @param layers every layer.
 * @param row the numbers of a layer over the steps that are shown, by its place.
 * @param column the place of the chosen step among them.
 */
export function chosenRows(layers, { search, order }, row, column) {
  const matches = matcher(search);
  const shown = layers.map((layer, at) => ({ layer, at, stack: stackOf(layer) })).filter((one) => matches(one.layer));
  const stacks = [...new Set(shown.map((one) => one.stack))];
  const several = stacks.length > 1 && stacks.length <= 12;
  const sorted = several
    ? stacks.flatMap((stack) => inOrder(shown.filter((one) => one.stack === stack)))
    : inOrder(shown);
  const cut = several ? 0 : sharedStart(sorted.map((one) => one.layer));
  return sorted.map((one) => ({
    ...one,
    stack: several ? one.stack || "other layers" : one.layer.slice(0, Math.max(0, cut - 1)),
    label: one.layer.slice(several && one.stack ? one.stack.length + 1 : cut),
  }));

  function inOrder(some) {
    const by = { name: null, value: (one) => row(one.at)[column], change: (one) => spread(row(one.at)) }[order];
    if (order === "name") return some.sort((a, b) => a.layer.localeCompare(b.layer, "en", { numeric: true }));
    if (!by) return some;
    const keyed = some.map((one) => [by(one), one]);
    return keyed.sort(([a], [b]) => largestFirst(a, b)).map(([, one]) => one);
  }
}

function largestFirst(a, b) {
  if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b); // nan last
  return a < b ? 1 : a > b ? -1 : 0;
}

function spread(numbers) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of numbers) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return high >= low ? high - low : NaN;
}

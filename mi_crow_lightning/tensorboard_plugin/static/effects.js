// What controllers changed, as numbers: the series of the log, by controller and layer.

import { fetchMatrix } from "./api.js";
import { stageKey } from "./choices.js";

export const OVER_BATCHES = "steering_by_batch";
export const WHOLE = "steering";

/** The quantities: their names in the log, and in words. */
export const QUANTITIES = [
  ["mean_ratio", "mean ratio"],
  ["max_ratio", "largest ratio"],
  ["tokens", "changed tokens"],
  ["fired", "calls that changed a token"],
];

/** Return the stages of a run in which controllers changed something: `[{stage, loader}]`. */
export function stagesOf(run) {
  const found = new Map();
  for (const { prefix, stage, loader } of run.statistics)
    if (prefix === OVER_BATCHES || prefix === WHOLE) found.set(stageKey({ stage, loader }), { stage, loader });
  return [...found.values()];
}

/**
 * Read what controllers changed in a stage: `{over, x, places, whole}`.
 *
 * @returns `over` says what is on the x axis, `places` are `{hook, layer, values}` with the values of the quantity there,
 * and `whole` holds `{hook, layer, numbers}` with each quantity of the whole stage, in the order of `QUANTITIES`.
 */
export async function readEffects(run, stage, quantity) {
  const has = (prefix, name) =>
    run.statistics.some((one) => one.prefix === prefix && one.name === name && stageKey(one) === stageKey(stage));
  const read = async (prefix, name) =>
    has(prefix, name) ? fetchMatrix(run.name, { prefix, name, stage: stage.stage, loader: stage.loader }) : null;
  const batches = run.statistics.some((one) => one.prefix === OVER_BATCHES && stageKey(one) === stageKey(stage));
  const [over, ...whole] = await Promise.all([
    read(batches ? OVER_BATCHES : WHOLE, quantity),
    ...QUANTITIES.map(([name]) => read(WHOLE, name)),
  ]);
  return {
    over: batches ? "batch" : "step",
    x: over ? Array.from(over.steps) : [],
    places: over ? over.layers.map((place, at) => ({ ...parted(place), values: column(over, at) })) : [],
    whole: lastNumbers(whole),
  };
}

/** Return `{hook, layer}` of a place: a layer's name has no slash, an ID of a hook may have some. */
export function parted(place) {
  const at = place.lastIndexOf("/");
  return { hook: place.slice(0, Math.max(at, 0)), layer: place.slice(at + 1) };
}

function column({ layers, steps, values }, at) {
  return Array.from(steps, (_, row) => values[row * layers.length + at]);
}

function lastNumbers(matrices) {
  const places = [...new Set(matrices.flatMap((one) => one?.layers ?? []))];
  return places.map((place) => {
    const numbers = matrices.map((one) => {
      const at = one ? one.layers.indexOf(place) : -1;
      return at < 0 || !one.steps.length ? NaN : column(one, at).at(-1);
    });
    return { ...parted(place), numbers };
  });
}

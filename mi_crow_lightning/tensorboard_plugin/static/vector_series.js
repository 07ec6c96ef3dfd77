// Which series of a run are of vectors: how well layers separate two classes, and projections on directions.

import { stageKey, stageText } from "./choices.js";

const SEPARABILITY = ["auroc", "d_prime", "accuracy", "norm"]; // in the order of their charts
const EXTRACTED = ["norm", "coherence", "anti_steerable"];
export const PROJECTED = ["mean", "std", "min", "max", "cosine"];

/**
 * Return the groups of series of detectors that extract vectors, one for each detector and stage:
 * `[{prefix, stage, loader, title, series}]`, `series` in the order of their charts.
 */
export function separabilityOf({ statistics }) {
  const prefixes = new Set(statistics.filter(isScore(statistics)).map(({ prefix }) => prefix));
  const groups = new Map();
  for (const one of statistics) {
    if (!prefixes.has(one.prefix) || !SEPARABILITY.includes(one.name)) continue;
    const key = JSON.stringify([one.prefix, stageKey(one)]);
    const { prefix, stage, loader } = one;
    if (!groups.has(key)) groups.set(key, { prefix, stage, loader, title: `${prefix}, ${stageText(one)}`, series: [] });
    groups.get(key).series.push(one);
  }
  const place = ({ name }) => SEPARABILITY.indexOf(name);
  for (const group of groups.values()) group.series.sort((one, two) => place(one) - place(two));
  return [...groups.values()].sort((one, two) => place(one.series[0]) - place(two.series[0]));
}

// A run that only extracts vectors has no scores of held-out samples.
function isScore(statistics) {
  const names = (prefix) => statistics.filter((one) => one.prefix === prefix).map(({ name }) => name);
  const extracts = (prefix) => names(prefix).every((name) => EXTRACTED.includes(name));
  return ({ prefix, name }) => name === "auroc" || name === "d_prime" || (name === "norm" && extracts(prefix));
}

/**
 * Return the directions on which a run has projections: `[{prefix, direction, title, stages}]`, where `stages` holds for
 * each stage `{stage, loader, series}`, `series` by the statistic of the projections.
 */
export function projectionsOf({ statistics }) {
  const found = new Map();
  for (const { prefix, name } of statistics) {
    const direction = name === "cosine" ? "" : name.endsWith("_cosine") ? name.slice(0, -"_cosine".length) : null;
    if (direction === null) continue;
    const named = (of) => (direction ? `${direction}_${of}` : of);
    const stages = new Map();
    for (const of of PROJECTED) {
      for (const one of statistics.filter((other) => other.prefix === prefix && other.name === named(of))) {
        const key = stageKey(one);
        if (!stages.has(key)) stages.set(key, { stage: one.stage, loader: one.loader, series: {} });
        stages.get(key).series[of] = one;
      }
    }
    const whole = [...stages.values()].filter(({ series }) => PROJECTED.every((of) => series[of]));
    if (whole.length) {
      const title = direction ? `${prefix}: ${direction}` : prefix;
      found.set(JSON.stringify([prefix, direction]), { prefix, direction, title, stages: whole });
    }
  }
  return [...found.values()];
}

/** Return at most `most` of the numbers from 0 on, spread evenly, the last among them. */
export function spread(count, most) {
  if (count <= most) return Array.from({ length: count }, (_, at) => at);
  return Array.from({ length: most }, (_, at) => Math.round((at * (count - 1)) / (most - 1)));
}

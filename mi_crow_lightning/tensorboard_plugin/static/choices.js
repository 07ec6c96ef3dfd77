// Which runs and series there are, and which of them is meant.

const FIRST = ["rms", "mean"];

export const seriesKey = ({ prefix, name }) => JSON.stringify([prefix, name]);
export const stageKey = ({ stage, loader }) => JSON.stringify([stage, loader ?? null]);

/** Return the words for a stage, and a dataloader if there are several. */
export function stageText({ stage, loader }) {
  return loader === null || loader === undefined ? stage : `${stage}, dataloader ${loader}`;
}

/**
 * Return what is shown: `{run, series, compare}`, as entries of the index; `null` if there is nothing.
 *
 * What the state asks for is shown if it is there. Otherwise the newest run, and the statistic that says most.
 */
export function resolve(index, state) {
  const withNumbers = index.runs.filter((run) => run.statistics.length);
  if (!withNumbers.length) return null;
  const newest = withNumbers.reduce((one, two) => (two.last > one.last ? two : one));
  const run = withNumbers.find((one) => one.name === state.run) ?? newest;
  const series = pickSeries(run.statistics, state);
  const same = (one) => seriesKey(one) === seriesKey(series) && stageKey(one) === stageKey(series);
  const compare =
    withNumbers.find((one) => one.name === state.compare && one !== run && one.statistics.some(same)) ?? null;
  return { run, series, compare };
}

function pickSeries(statistics, { prefix, name, stage, loader }) {
  const points = (one) =>
    8 * (one.name === name) +
    4 * (one.prefix === prefix) +
    2 * (one.stage === stage) +
    ((one.loader ?? null) === loader) +
    (name === null ? (2 - ((FIRST.indexOf(one.name) + 3) % 3)) / 8 : 0) +
    (stage === null && one.stage === "train" ? 0.5 : 0);
  return statistics.reduce((best, one) => (points(one) > points(best) ? one : best));
}

/** Return the parameters that name a series to the server. */
export function asked({ prefix, name, stage, loader }) {
  return { prefix, name, stage, loader };
}

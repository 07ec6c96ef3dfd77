// One layer: every statistic over the steps, its histogram, and the numbers at the chosen step.

import { fetchHistograms, fetchLayer } from "./api.js";
import { asked } from "./choices.js";
import { element } from "./dom.js";
import { histogramPicture } from "./histogram.js";
import { colourKey, lineChart } from "./lines.js";
import { exact, nearest } from "./numbers.js";

/** The panel of a layer. `on.close()`, and `on.step(step)` for a step that is chosen in it. */
export class Detail {
  constructor(on) {
    this.on = on;
    this.charts = [];
    this.title = element("h2", { tabIndex: -1 });
    const close = element("button", { type: "button" }, "Close the layer");
    close.addEventListener("click", () => on.close());
    this.body = element("div", {});
    this.root = element(
      "section",
      { className: "detail", hidden: true, "aria-label": "Layer" },
      element("header", {}, this.title, close),
      this.body,
    );
  }

  /** Read what belongs to a layer: of the run, and of the one it is compared with. */
  static async read({ run, series, compare }, layer) {
    const of = (one) => (one ? fetchLayer(one.name, asked(series), layer) : null);
    const [statistics, others, ...histograms] = await Promise.all([
      of(run),
      of(compare)?.catch(() => null), // it may not have this layer
      ...[run, compare].filter(Boolean).map((one) => histogramsOf(one, series, layer)),
    ]);
    return { layer, statistics, others, histograms: histograms.flat(), run, compare };
  }

  hide() {
    this.clear();
    this.root.hidden = true;
  }

  clear() {
    for (const chart of this.charts) chart.destroy();
    this.charts = [];
    this.body.replaceChildren();
  }

  /** Draw what was read, in a range of steps. */
  show(read, { from, to, step, beside, marks }) {
    this.clear();
    this.root.hidden = false;
    this.title.textContent = read.layer;
    const choose = (chosen) => this.on.step(chosen);
    const pairs = read.statistics.map((one) =>
      [one, read.others?.find(({ name }) => name === one.name)].filter(Boolean),
    );
    this.charts = pairs.map((lines) =>
      lineChart({
        title: lines[0].name,
        lines: lines.map((line) => within(line, from, to)),
        marked: step,
        marks,
        say: (place) => `step ${place}`,
        ticks: String,
        choose,
      }),
    );
    const key = read.compare ? colourKey([read.run.name, read.compare.name]) : "";
    const charts = element("div", { className: "charts" }, ...this.charts.map((chart) => chart.root));
    this.body.append(
      key,
      charts,
      element(
        "div",
        { className: "sides" },
        histogramOf(read, from, to, step, choose),
        numbers(read, pairs, step, beside),
      ),
    );
  }
}

async function histogramsOf(run, series, layer) {
  const same = (one) => one.prefix === series.prefix && one.stage === series.stage && one.loader === series.loader;
  return Promise.all(
    run.histograms.filter(same).map(async (one) => {
      const parts = await fetchHistograms(run.name, asked(one), layer).catch(() => []); // not of every layer
      return { name: one.name, of: run.name, parts };
    }),
  );
}

function within({ steps, values }, from, to) {
  const kept = Array.from(steps, (_, at) => at).filter(
    (at) => (from === null || steps[at] >= from) && (to === null || steps[at] <= to),
  );
  return { x: kept.map((at) => steps[at]), y: kept.map((at) => values[at]) };
}

function histogramOf({ histograms }, from, to, step, choose) {
  const made = histograms
    .map(({ name, of, parts }) => [`${name} of ${of} over the steps`, histogramPicture(parts, from, to, step, choose)])
    .filter(([, picture]) => picture);
  const shown = made.map(([title, picture]) => element("div", {}, element("h3", {}, title), picture.root));
  return element(
    "div",
    {},
    ...(shown.length ? shown : [element("p", { className: "notes" }, "There is no histogram of this layer.")]),
  );
}

function numbers({ run, compare }, pairs, step, beside) {
  const columns = [
    [compare || beside !== null ? `${run.name}, step ${step}` : run.name, ([one]) => valueAt(one, step)],
  ];
  if (compare) columns.push([`${compare.name}, step ${step}`, ([, other]) => (other ? valueAt(other, step) : NaN)]);
  else if (beside !== null) columns.push([`${run.name}, step ${beside}`, ([one]) => valueAt(one, beside)]);
  if (columns.length > 1) columns.push(["difference", (pair) => columns[0][1](pair) - columns[1][1](pair)]);
  const rows = pairs.map((pair) => {
    const cells = columns.map(([, value]) => element("td", {}, exact(value(pair))));
    return element("tr", {}, element("th", { scope: "row" }, pair[0].name), ...cells);
  });
  const heads = ["statistic", ...columns.map(([text]) => text)].map((text) => element("th", { scope: "col" }, text));
  const caption = element("caption", {}, `Numbers at step ${step}`);
  const table = element(
    "table",
    { className: "numbers" },
    caption,
    element("thead", {}, element("tr", {}, ...heads)),
    element("tbody", {}, ...rows),
  );
  return element(
    "div",
    { className: "scroll", tabIndex: 0, role: "region", "aria-label": "Numbers of the layer" },
    table,
  );
}

function valueAt({ steps, values }, step) {
  const at = nearest(steps, step);
  return steps[at] === step ? values[at] : NaN;
}

// The numbers over the layers at one step, beside those at another step or of another run: one chart for each stack.

import { element } from "./dom.js";
import { colourKey, lineChart } from "./lines.js";

/** The profiles of a picture. `choose(layer)` is called for a layer that is clicked. */
export class Profile {
  constructor(choose) {
    this.choose = choose;
    this.charts = [];
    this.root = element("section", { "aria-label": "Profile over the layers", hidden: true });
  }

  hide() {
    for (const chart of this.charts) chart.destroy();
    this.charts = [];
    this.root.hidden = true;
    this.root.replaceChildren();
  }

  /** Show `{rows, view, column, beside, run, compare, series, layer}`; `beside` is another column, or `null`. */
  show(shown) {
    this.hide();
    this.root.hidden = false;
    const stacks = [...new Set(shown.rows.map((row) => row.stack))];
    this.charts = stacks.map((stack) =>
      this.chart(
        shown,
        shown.rows.filter((row) => row.stack === stack),
        stack,
      ),
    );
    const charts = element("div", { className: "charts wide" }, ...this.charts.map((chart) => chart.root));
    this.root.append(colourKey(namesOf(shown)), charts);
  }

  chart(shown, rows, stack) {
    const { view, column, beside, compare, series, layer } = shown;
    const x = rows.map((_, index) => index);
    const of = (number) => ({ x, y: rows.map(({ at }) => number(at)) });
    const lines = compare
      ? [of((at) => view.pair(at, column)[0]), of((at) => view.pair(at, column)[1])]
      : [column, beside].filter((one) => one !== null).map((one) => of((at) => view.rows[at][one]));
    const marked = rows.findIndex((row) => row.layer === layer);
    return lineChart({
      title: `${series.name} over ${stack || "the layers"}`,
      lines,
      marked: marked < 0 ? null : marked,
      say: (index) => rows[index].layer,
      ticks: (index) => rows[index]?.label.slice(-12) ?? "",
      choose: (index) => this.choose(rows[index].layer),
    });
  }
}

function namesOf({ view, column, beside, run, compare }) {
  const step = `step ${view.steps[column]}`;
  if (compare) return [`${run.name}, ${step}`, `${compare.name}, ${step}`];
  return beside === null ? [step] : [step, `step ${view.steps[beside]}`];
}

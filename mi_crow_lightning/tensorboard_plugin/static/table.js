// The numbers of the heatmap as a table, some steps at a time, and all of them as a CSV file.

import { element } from "./dom.js";
import { exact } from "./numbers.js";

const WIDTH = 12; // steps at a time

/** The table of a picture. */
export class Table {
  constructor() {
    this.first = 0;
    this.earlier = element("button", { type: "button" }, "Earlier steps");
    this.later = element("button", { type: "button" }, "Later steps");
    this.earlier.addEventListener("click", () => this.move(-WIDTH));
    this.later.addEventListener("click", () => this.move(WIDTH));
    this.csv = element("button", { type: "button" }, "Download CSV");
    this.csv.addEventListener("click", () => this.download());
    this.where = element("span", { role: "status" });
    this.scroll = element("div", {
      className: "scroll",
      tabIndex: 0,
      role: "region",
      "aria-label": "Table of the heatmap",
    });
    const pager = element("div", { className: "pager" }, this.earlier, this.later, this.where, this.csv);
    this.root = element("section", { "aria-label": "Table", hidden: true }, pager, this.scroll);
  }

  /** Show `{rows, view, column, run, compare, series}`, from the chosen column on. */
  show(shown) {
    this.shown = shown;
    this.root.hidden = false;
    this.first = Math.max(0, shown.column - WIDTH + 1);
    this.draw();
  }

  hide() {
    this.root.hidden = true;
    this.scroll.replaceChildren();
  }

  move(columns) {
    this.first = Math.max(0, Math.min(this.first + columns, this.shown.view.steps.length - 1));
    this.draw();
  }

  draw() {
    const { rows, view } = this.shown;
    const steps = view.steps.slice(this.first, this.first + WIDTH);
    const head = ["layer", ...steps].map((text) => element("th", { scope: "col" }, String(text)));
    const body = rows.map(({ layer, at }) => {
      const cells = steps.map((_, column) => element("td", {}, exact(view.rows[at][this.first + column])));
      return element("tr", {}, element("th", { scope: "row", title: layer }, layer), ...cells);
    });
    this.scroll.replaceChildren(
      element("table", {}, element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...body)),
    );
    this.where.textContent = steps.length
      ? `steps ${steps[0]} to ${steps.at(-1)} of ${view.steps[0]} to ${view.steps.at(-1)}`
      : "no steps";
    this.earlier.disabled = this.first === 0;
    this.later.disabled = this.first + WIDTH >= view.steps.length;
  }

  download() {
    const { series } = this.shown;
    saveCsv(`${series.prefix}_${series.name}_${series.stage}`, csvOf(this.shown));
  }
}

/** Let the browser save a text as a CSV file. */
export function saveCsv(name, text) {
  const address = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  const file = name.replace(/[^\w-]+/g, "_").slice(0, 80);
  element("a", { href: address, download: `${file}.csv` }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

/** Return texts, and after them numbers that are written already, as one line of a CSV file. */
export function csvLine(texts, numbers = []) {
  return [...texts.map(field), ...numbers].join(",");
}

/** Return every number as a line: run, stage, step, layer, name, value; of a difference also what it is made of. */
export function csvOf({ rows, view, run, compare, series }) {
  const more = compare ? ["minus_run", "minuend", "subtrahend"] : [];
  const lines = [["run", "stage", "dataloader", "step", "layer", "detector", "name", "value", ...more].join(",")];
  const before = [field(run.name), field(series.stage), series.loader ?? ""].join(",");
  const after = [field(series.prefix), field(series.name)].join(",");
  for (const { layer, at } of rows) {
    view.steps.forEach((step, column) => {
      const pair = compare ? [field(compare.name), ...view.pair(at, column).map(exact)] : [];
      lines.push([before, step, field(layer), after, exact(view.rows[at][column]), ...pair].join(","));
    });
  }
  return lines.join("\r\n") + "\r\n";
}

function field(text) {
  const safe = /^[=+\-@\t\r]/.test(text) ? `'${text}` : text; // a spreadsheet would take it for a formula
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

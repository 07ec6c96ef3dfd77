// The controls above the heatmap.

import { seriesKey, stageKey, stageText } from "./choices.js";
import { SCALES } from "./colours.js";
import { element, fillSelect, labelled } from "./dom.js";
import { ORDERS } from "./layers.js";

/** The controls. `change(part)` is called with what the user changed of the state. */
export class Toolbar {
  constructor({ change, copy }) {
    const select = (read) => {
      const made = element("select", {});
      made.addEventListener("change", () => change(read(made.value)));
      return made;
    };
    const number = (name) => {
      const made = element("input", { type: "number" });
      made.addEventListener("change", () => change({ [name]: made.value === "" ? null : Number(made.value) }));
      return made;
    };
    this.run = select((value) => ({ run: value }));
    this.compare = select((value) => ({ compare: value || null }));
    this.statistic = select((value) => named(["prefix", "name"], value));
    this.stage = select((value) => named(["stage", "loader"], value));
    this.scale = select((value) => ({ scale: value }));
    this.order = select((value) => ({ order: value }));
    this.beside = number("beside");
    this.from = number("from");
    this.to = number("to");
    this.search = element("input", { type: "search", placeholder: "e.g. *.attn", spellcheck: false });
    this.search.addEventListener("input", () => change({ search: this.search.value }));
    this.whole = element("button", { type: "button" }, "All steps");
    this.whole.addEventListener("click", () => change({ from: null, to: null }));
    const toggle = (text, name) => {
      const made = element("button", { type: "button", "aria-pressed": "false" }, text);
      made.addEventListener("click", () =>
        change({ [name]: made.getAttribute("aria-pressed") === "true" ? null : "1" }),
      );
      return made;
    };
    this.profile = toggle("Profile", "profile");
    this.table = toggle("Table", "table");
    this.link = element("button", { type: "button" }, "Copy link");
    this.link.addEventListener("click", copy);
    fillSelect(this.scale, SCALES, "linear");
    fillSelect(this.order, ORDERS, "model");
    const fields = [
      ["Run", this.run],
      ["Statistic", this.statistic],
      ["Stage", this.stage],
      ["Minus the run", this.compare],
      ["Colours", this.scale],
      ["Layers by", this.order],
      ["Find layers", this.search],
      ["From step", this.from],
      ["To step", this.to],
      ["Beside step", this.beside],
    ];
    const made = fields.map(([text, control]) => labelled(text, control));
    this.root = element(
      "div",
      { className: "toolbar", role: "group", "aria-label": "What is shown" },
      ...made,
      this.whole,
      this.profile,
      this.table,
      this.link,
    );
  }

  /** Show the choices there are, and what is chosen. */
  show(index, { run, series, compare }, state) {
    const runs = index.runs.filter((one) => one.statistics.length);
    fillSelect(
      this.run,
      runs.map((one) => [one.name, one.name]),
      run.name,
    );
    fillSelect(this.statistic, byPrefix(run.statistics), seriesKey(series));
    const stages = run.statistics.filter((one) => seriesKey(one) === seriesKey(series));
    fillSelect(
      this.stage,
      stages.map((one) => [stageKey(one), stageText(one)]),
      stageKey(series),
    );
    const others = runs.filter((one) => one !== run).map((one) => [one.name, one.name]);
    fillSelect(this.compare, [["", "none"], ...others], compare?.name ?? "");
    this.compare.disabled = !others.length;
    this.scale.value = state.scale;
    this.order.value = state.order;
    if (this.search.value !== state.search) this.search.value = state.search;
    this.from.value = state.from ?? "";
    this.to.value = state.to ?? "";
    this.beside.value = state.beside ?? "";
    this.beside.disabled = compare !== null; // the other run is beside it
    this.whole.disabled = state.from === null && state.to === null;
    this.table.setAttribute("aria-pressed", String(state.table !== null));
    this.profile.setAttribute("aria-pressed", String(state.profile !== null));
  }
}

function named(names, json) {
  const values = JSON.parse(json);
  return Object.fromEntries(names.map((name, at) => [name, values[at]]));
}

function byPrefix(statistics) {
  const groups = new Map();
  for (const one of statistics) {
    const options = groups.get(one.prefix) ?? new Map();
    groups.set(one.prefix, options.set(seriesKey(one), one.name));
  }
  return [...groups].map(([label, options]) => ({ label, options: [...options] }));
}

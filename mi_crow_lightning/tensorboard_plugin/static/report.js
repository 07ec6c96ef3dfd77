// The report that a run began with: what it watched and steered, as the run itself logged it.

import { fetchReports } from "./api.js";
import { element, fillSelect, labelled } from "./dom.js";

/** The view of reports, see `views.js`. */
export class ReportView {
  constructor({ change }) {
    this.run = element("select", {});
    this.run.addEventListener("change", () => change({ run: this.run.value }));
    this.drawn = element("div", {});
    const controls = element(
      "div",
      { className: "toolbar", role: "group", "aria-label": "What is shown" },
      labelled("Run", this.run),
    );
    this.root = element("section", { "aria-label": "Report of the run" }, controls, this.drawn);
  }

  async load(index, state, isNewest) {
    const { runs } = index;
    this.root.hidden = !runs.length;
    if (!runs.length) return ["No run of this log has activations yet."];
    const newest = runs.reduce((one, two) => (two.last > one.last ? two : one));
    const run = runs.find((one) => one.name === state.run) ?? newest;
    fillSelect(
      this.run,
      runs.map(({ name }) => [name, name]),
      run.name,
    );
    const reports = await fetchReports(run.name);
    if (!isNewest()) return [];
    this.drawn.replaceChildren(...reports.map(shown));
    if (reports.length) return [`What ${run.name} watched and steered, as it was logged when the run began.`];
    return [`The log of ${run.name} has no report: its callback was of an earlier release.`];
  }

  repaint() {} // text follows the colours by itself
}

function shown({ tag, step, text }) {
  const [, stage, ...callback] = tag.split("/");
  const heading = [stage, ...callback].join(", ") + (step ? `, at step ${step}` : "");
  const box = element("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": `Report of ${heading}` });
  box.append(element("pre", {}, text));
  return element("div", { className: "report" }, element("h2", {}, heading), box);
}

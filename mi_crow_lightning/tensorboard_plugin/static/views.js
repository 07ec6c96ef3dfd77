// The views of the tab, one at a time, and the row of tabs that switches between them.

import { element } from "./dom.js";
import { ReportView } from "./report.js";
import { Vectors } from "./vectors.js";
import { SteeringView } from "./steering.js";

export const HEATMAP = "heatmap";

/**
 * The views beside the heatmap, in the order of their tabs: `[name, title, make]`, the name as it stands in the
 * address. `make({change})` returns a view; `change(part)` takes what the user changed of the state. A view has
 *
 * - `root`, its element, and `drawn`, the part of it that is hidden where something could not be read;
 * - `async load(index, state, isNewest)`, which reads what is asked for, shows it, and returns the lines that stand
 *   above it, as texts. Once `isNewest()` is false something else was asked for: it then shows nothing more;
 * - `repaint()`, which draws again what is there, in other colours.
 */
export const VIEWS = [
  ["steering", "Steering", (on) => new SteeringView(on)],
  ["vectors", "Vectors", (on) => new Vectors(on)],
  ["report", "Report", (on) => new ReportView(on)],
];

/** The row of tabs. `choose(name)` is called with the view that the user wants. */
export class Switch {
  constructor(views, panel, choose) {
    this.choose = choose;
    this.tabs = views.map(([name, title]) => {
      const id = `view-${name}`;
      const tab = element("button", { type: "button", role: "tab", id, "aria-controls": panel.id }, title);
      tab.dataset.view = name;
      tab.addEventListener("click", () => choose(name));
      return tab;
    });
    this.panel = panel;
    this.root = element("div", { className: "views", role: "tablist", "aria-label": "Views" }, ...this.tabs);
    this.root.addEventListener("keydown", (event) => this.key(event));
    this.root.hidden = views.length < 2;
  }

  /** Show which view is chosen. */
  show(name) {
    for (const tab of this.tabs) {
      const chosen = tab.dataset.view === name;
      tab.setAttribute("aria-selected", String(chosen));
      tab.tabIndex = chosen ? 0 : -1; // the arrow keys lead to the others
      if (chosen) this.panel.setAttribute("aria-labelledby", tab.id);
    }
  }

  key(event) {
    const at = this.tabs.indexOf(event.target);
    const last = this.tabs.length - 1;
    const to = {
      ArrowLeft: at === 0 ? last : at - 1,
      ArrowRight: at === last ? 0 : at + 1,
      Home: 0,
      End: last,
    }[event.key];
    if (at < 0 || to === undefined || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    this.tabs[to].focus();
    this.choose(this.tabs[to].dataset.view);
  }
}

// What happened in a run: marks on the time axis, a list of them, and which kinds are shown.

import { element } from "./dom.js";
import { csvLine, saveCsv } from "./table.js";

// The kinds in the order of their weight: where marks share a place, the first of them is drawn.
export const KINDS = new Map([
  ["exception", ["✕", "Exceptions"]],
  ["alarm", ["▼", "Alarms"]],
  ["warning", ["!", "Warnings"]],
  ["detector", ["●", "Reports of detectors"]],
  ["switch", ["◆", "Hooks on or off"]],
  ["strength", ["▲", "Strengths"]],
  ["resumed", ["↻", "Resumed"]],
  ["left out", ["…", "Left out"]],
]);
const OTHER = ["○", null];
const AXES = [["train", "validate"], ["test"], ["predict"]]; // stages that count the same steps

const glyphOf = (kind) => (KINDS.get(kind) ?? OTHER)[0];
const weightOf = (kind) => [...KINDS.keys(), kind].indexOf(kind);
const hiddenKinds = ({ hide }) => new Set(hide ? hide.split(",").map(decoded) : []);

/** Return the words for an event. */
export function said({ kind, text, hook, layer }) {
  const about = [hook, layer].filter(Boolean).join(", ");
  return about ? `${about}: ${text || kind}` : text || kind;
}

/** Return the events that belong to the steps of a stage, of every kind. */
export function onAxisOf(stage, events) {
  const axis = AXES.find((stages) => stages.includes(stage)) ?? [stage];
  return events.filter((event) => axis.includes(event.stage));
}

/** Return the events whose kinds are not hidden. */
export function visible(events, state) {
  const hidden = hiddenKinds(state);
  return events.filter(({ kind }) => !hidden.has(kind));
}

/**
 * Return the marks of events on a picture: `[{at, column, glyph, events}]`. `at` is the place in columns: the middle of
 * the column of its step, or the border before the next one; `column` the one whose tooltip names it.
 */
export function marksOfEvents(events, steps, from, to) {
  const places = new Map();
  for (const event of events) {
    if ((from !== null && event.step < from) || (to !== null && event.step > to) || !steps.length) continue;
    let column = steps.findIndex((step) => step >= event.step);
    if (column < 0) column = steps.length;
    const at = steps[column] === event.step ? column + 0.5 : column;
    if (!places.has(at)) places.set(at, { at, column: Math.min(column, steps.length - 1), events: [] });
    places.get(at).events.push(event);
  }
  return [...places.values()]
    .map((mark) => ({ ...mark, glyph: glyphOf(heaviest(mark.events)) }))
    .sort((one, two) => one.at - two.at);
}

/** Return epochs and events as marks of a line chart: `[{x, glyph, text}]`. */
export function marksOfLines(epochs, events) {
  const starts = epochs.length > 1 ? epochs.map(([step, epoch]) => ({ x: step, glyph: "", text: `epoch ${epoch}` })) : [];
  return [...starts, ...events.map((event) => ({ x: event.step, glyph: glyphOf(event.kind), text: said(event) }))];
}

// A kind may hold a comma.
function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

function heaviest(events) {
  return events.map(({ kind }) => kind).reduce((one, two) => (weightOf(two) < weightOf(one) ? two : one));
}

/** The row of kinds, and the list. `change(part)` is called with what the user changed of the state. */
export class Events {
  constructor(change) {
    this.change = change;
    this.bar = element("div", { className: "kinds", role: "group", "aria-label": "Events on the time axis" });
    this.body = element("tbody", {});
    const heads = ["step", "stage", "kind", "hook", "layer", "what happened"];
    const head = element("tr", {}, ...heads.map((text) => element("th", { scope: "col" }, text)));
    this.csv = element("button", { type: "button" }, "Download events as CSV");
    this.csv.addEventListener("click", () => saveCsv("events", csvOfEvents(this.run, this.listed)));
    this.table = element("table", { className: "events" }, element("thead", {}, head), this.body);
    this.scroll = element("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": "List of events" });
    const pager = element("div", { className: "pager" }, this.csv);
    this.list = element("section", { "aria-label": "Events", hidden: true }, pager, this.scroll);
    this.root = element("div", {}, this.bar, this.list);
  }

  /** Show the events of a stage's steps, and return those whose kinds are shown. */
  show(run, stage, events, state) {
    const all = onAxisOf(stage, events);
    const hidden = hiddenKinds(state);
    this.run = run.name;
    this.state = state;
    this.listed = visible(all, state);
    this.root.hidden = !all.length;
    this.list.hidden = state.events === null;
    this.drawBar(all, hidden);
    this.body.replaceChildren(...(this.list.hidden ? [] : this.listed.map((event) => this.row(event))));
    this.scroll.replaceChildren(...(this.list.hidden ? [] : [this.table]));
    return this.listed;
  }

  drawBar(all, hidden) {
    const focused = this.bar.contains(document.activeElement) ? document.activeElement.dataset.kind : null;
    const kinds = [...new Set(all.map(({ kind }) => kind))].sort((one, two) => weightOf(one) - weightOf(two));
    const toggles = kinds.map((kind) => {
      const count = all.filter((event) => event.kind === kind).length;
      const [glyph, title] = KINDS.get(kind) ?? OTHER;
      const sign = element("span", { className: "glyph", "aria-hidden": "true" }, glyph);
      return this.toggle(kind, !hidden.has(kind), [sign, `${title ?? kind.slice(0, 40)} (${count})`], () => {
        const others = [...hidden].filter((one) => one !== kind);
        this.change({ hide: (hidden.has(kind) ? others : [...others, kind]).map(encodeURIComponent).join(",") || null });
      });
    });
    const list = this.toggle(":list", !this.list.hidden, ["List of events"], () =>
      this.change({ events: this.list.hidden ? "1" : null }),
    );
    this.bar.replaceChildren("Events:", ...toggles, list);
    if (focused) [...this.bar.children].find((made) => made.dataset.kind === focused)?.focus();
  }

  toggle(kind, pressed, content, press) {
    const made = element("button", { type: "button", "aria-pressed": String(pressed) }, ...content);
    made.dataset.kind = kind;
    made.addEventListener("click", press);
    return made;
  }

  row(event) {
    const go = element("button", { type: "button", className: "go", "aria-label": `Go to step ${event.step}` }, String(event.step));
    go.addEventListener("click", () => this.goTo(event));
    const kind = element("td", {}, element("span", { className: "glyph", "aria-hidden": "true" }, glyphOf(event.kind)), event.kind);
    const texts = [event.hook, event.layer, event.text].map((text) => element("td", { className: "text" }, text));
    const row = element("tr", {}, element("th", { scope: "row" }, go), element("td", {}, event.stage), kind, ...texts);
    if (["exception", "alarm", "warning"].includes(event.kind)) row.className = "grave";
    return row;
  }

  /** Choose the step of an event, and its layer if it has one; show all steps if it is not among those shown. */
  goTo({ step, layer }) {
    const { from, to } = this.state;
    const outside = (from !== null && step < from) || (to !== null && step > to);
    this.change({ step, ...(layer ? { layer } : {}), ...(outside ? { from: null, to: null } : {}) });
  }
}

/** Return events as lines: run, stage, step, kind, hook, layer, text. */
export function csvOfEvents(run, events) {
  const lines = events.map(({ stage, step, kind, hook, layer, text }) =>
    csvLine([run, stage, String(step), kind, hook, layer, text]),
  );
  return [csvLine(["run", "stage", "step", "kind", "hook", "layer", "text"]), ...lines].join("\r\n") + "\r\n";
}

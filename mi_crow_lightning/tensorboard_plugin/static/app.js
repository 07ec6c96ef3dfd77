// The tab: what is chosen, what was read, and what is drawn of it.

import { fetchEpochs, fetchEvents, fetchIndex, fetchMatrix } from "./api.js";
import { asked, resolve, stageText } from "./choices.js";
import { makeScale } from "./colours.js";
import { Detail } from "./detail.js";
import { element } from "./dom.js";
import { Events, marksOfEvents, marksOfLines, said } from "./events.js";
import { Heatmap } from "./heatmap.js";
import { chosenRows } from "./layers.js";
import { legend } from "./legend.js";
import { exact, nearest } from "./numbers.js";
import { Profile } from "./profile.js";
import { linkTo, readAddress, writeAddress } from "./state.js";
import { Table } from "./table.js";
import { Toolbar } from "./toolbar.js";
import { makeView, marksOf } from "./view.js";
import { HEATMAP, Switch, VIEWS } from "./views.js";

export class App {
  constructor(root) {
    this.state = readAddress();
    this.read = 0; // counts what was asked for: an answer to an older question is dropped
    this.toolbar = new Toolbar({ change: (part) => this.change(part), copy: () => this.copyLink() });
    this.title = element("h1", {}, "Activations");
    this.notes = element("div", { className: "notes", role: "status" });
    this.readout = element("div", { className: "readout", "aria-live": "polite" });
    this.legend = element("div", {});
    this.heatmap = new Heatmap(
      "Heatmap of layers by steps. Arrow keys move, Home and End go to the first and last step, Enter opens the layer.",
      {
        move: (row, column) => this.say(row, column),
        choose: (row, column) => this.choose(row, column),
        event: ({ events }) => this.events.goTo(events[0]),
        brush: (first, last) => this.change({ from: this.view.steps[first], to: this.view.steps[last] }),
      },
    );
    this.events = new Events((part) => this.change(part));
    this.table = new Table();
    this.profile = new Profile((layer) => this.change({ layer }));
    this.detail = new Detail({ close: () => this.change({ layer: null }), step: (step) => this.change({ step }) });
    const below = [this.readout, this.events.root, this.profile.root, this.table.root, this.detail.root];
    this.drawn = element("div", {}, this.legend, this.heatmap.root, ...below);
    this.body = element("div", {}, this.toolbar.root, this.drawn);
    this.others = new Map(VIEWS.map(([name, , make]) => [name, make({ change: (part) => this.change(part) })]));
    const panel = element("div", { id: "panel", role: "tabpanel" }, this.notes, this.body);
    panel.append(...[...this.others.values()].map((view) => view.root));
    this.switch = new Switch([[HEATMAP, "Heatmap"], ...VIEWS], panel, (view) => this.change({ view }));
    this.root = element("main", {}, this.title, this.switch.root, panel);
    root.replaceChildren(this.root);
  }

  /** Return the view that is chosen, or `null` for the heatmap. */
  otherView() {
    return this.others.get(this.state.view) ?? null;
  }

  /** Read what there is, and show it. */
  async reload() {
    await this.newest(async (read) => {
      const index = await fetchIndex();
      if (read !== this.read) return;
      this.index = index;
      this.loaded = this.opened = null;
      await this.load(read);
    });
  }

  /** Take over what the user changed, and show it. */
  async change(part) {
    Object.assign(this.state, part);
    await this.newest((read) => this.load(read));
  }

  /** Do what was asked for last; if it fails, say so in place of a picture of something else. */
  async newest(work) {
    const read = ++this.read;
    this.root.setAttribute("aria-busy", "true");
    let failure = null;
    try {
      await work(read);
    } catch (error) {
      failure = error;
    }
    if (read !== this.read) return;
    (this.otherView() ?? this).drawn.hidden = failure !== null;
    if (failure) this.note([`This could not be read: ${failure.message}`], true);
    this.root.setAttribute("aria-busy", "false");
  }

  async load(read) {
    const other = this.otherView();
    this.switch.show(other ? this.state.view : HEATMAP);
    for (const view of this.others.values()) view.root.hidden = view !== other;
    if (other) return this.loadOther(other, () => read === this.read);
    const chosen = resolve(this.index, this.state);
    this.body.hidden = chosen === null;
    if (chosen === null) {
      const none = "No run of this log has activations yet.";
      this.note([`${none} A Trainer writes them with HookCallback and a TensorBoardLogger.`, ...this.problems()]);
      return;
    }
    const { run, series, compare } = chosen;
    this.toolbar.show(this.index, chosen, this.state);
    const wanted = JSON.stringify([run.name, asked(series), compare?.name]);
    if (this.loaded !== wanted) {
      this.loaded = null;
      const [matrix, other, epochs, happened] = await Promise.all([
        fetchMatrix(run.name, asked(series)),
        compare && fetchMatrix(compare.name, asked(series)),
        fetchEpochs(run.name),
        fetchEvents(run.name).catch((error) => ({ events: [], problem: error.message })), // the numbers are still there
      ]);
      if (read !== this.read) return;
      Object.assign(this, { matrix, other, epochs, happened, loaded: wanted });
    }
    this.chosen = chosen;
    this.drawn.hidden = false; // before the heatmap asks how wide it is
    this.draw();
    await this.open(read);
  }

  async loadOther(view, isNewest) {
    this.body.hidden = true;
    view.drawn.hidden = false; // before it asks how wide it is
    const lines = await view.load(this.index, this.state, isNewest);
    if (!isNewest()) return;
    this.note([...lines, ...this.problems()]);
    writeAddress(this.state);
  }

  /** Read the chosen layer, and show it. */
  async open(read) {
    const { layer } = this.state;
    if (layer === null || !this.matrix.layers.includes(layer)) return this.detail.hide();
    const wanted = JSON.stringify([this.loaded, layer]);
    if (this.opened !== wanted) {
      const details = await Detail.read(this.chosen, layer);
      if (read !== this.read) return;
      Object.assign(this, { details, opened: wanted });
    }
    this.drawDetail();
  }

  drawDetail() {
    const { from, to } = this.state;
    const [step, beside] = [this.column(), this.beside()].map((column) => this.stepOf(column));
    this.detail.show(this.details, { from, to, step, beside, marks: marksOfLines(this.epochs, this.shownEvents) });
  }

  /** Draw again what is there, in other colours. */
  repaint() {
    const other = this.otherView();
    if (other) return other.repaint();
    if (!this.loaded) return;
    this.draw();
    if (!this.detail.root.hidden) this.drawDetail();
  }

  /** Draw everything from what was read. */
  draw() {
    const { state, matrix, other } = this;
    this.view = makeView(matrix, other, state.from, state.to);
    const column = this.column();
    this.rows = chosenRows(this.view.layers, state, (at) => this.view.rows[at], column);
    const numbers = this.rows.map(({ at }) => this.view.rows[at]);
    const scale = makeScale(state.scale, numbers, other !== null);
    this.legend.replaceChildren(legend(scale, kinds(numbers)));
    this.marks = marksOf(this.epochs, this.view.steps);
    this.shownEvents = this.events.show(this.chosen.run, this.chosen.series.stage, this.happened.events, state);
    this.eventMarks = marksOfEvents(this.shownEvents, this.view.steps, state.from, state.to).map((mark) => ({
      ...mark,
      lines: mark.events.slice(0, 8).map((event) => `step ${event.step}: ${said(event)}`),
    }));
    this.heatmap.show({
      rows: this.rows,
      marks: this.marks,
      events: this.eventMarks,
      steps: this.view.steps,
      value: (row, at) => numbers[row][at],
      colour: scale.colour,
      describe: (row, at) => this.describe(row, at),
      chosenColumn: state.step === null ? -1 : column,
      chosenRow: this.rows.findIndex(({ layer }) => layer === state.layer),
    });
    if (this.heatmap.cell)
      this.say(...this.heatmap.cell); // another number may be there now
    else this.readout.textContent = "";
    const shown = {
      rows: this.rows,
      view: this.view,
      column,
      beside: this.beside(),
      layer: state.layer,
      ...this.chosen,
    };
    for (const [part, is] of [
      [this.profile, state.profile],
      [this.table, state.table],
    ]) {
      if (is !== null && this.view.steps.length) part.show(shown);
      else part.hide();
    }
    this.note([...this.summary(), ...this.problems()]);
    writeAddress(this.state);
  }

  /** Return the column of the chosen step, or of the last one. */
  column() {
    const { steps } = this.view;
    return this.state.step === null ? steps.length - 1 : nearest(steps, this.state.step);
  }

  /** Return the column of the other step that is shown beside it, or `null`. */
  beside() {
    const { steps } = this.view;
    return this.state.beside === null || !steps.length || this.other ? null : nearest(steps, this.state.beside);
  }

  stepOf(column) {
    return column === null ? null : (this.view.steps[column] ?? null);
  }

  summary() {
    const { run, series, compare } = this.chosen;
    const { layers, steps } = this.view;
    const of = compare ? `${run.name} minus ${compare.name}` : run.name;
    const what = `${series.prefix} ${series.name}, ${stageText(series)}, of ${of}`;
    const size = `${this.rows.length} of ${layers.length} layers, ${steps.length} of ${this.matrix.steps.length} steps`;
    const lines = [`${what}: ${size}.`];
    const { samples } = this.index;
    if (samples && this.matrix.steps.length >= samples) {
      const option = "--samples_per_plugin mi_crow_lightning=0";
      lines.push(`TensorBoard keeps ${samples} steps, of more a random choice: start it with ${option} to keep all.`);
    }
    if (compare && !steps.length) lines.push("The two runs have no step in common.");
    if (this.heatmap.crowded)
      lines.push("Where several steps share a pixel, it has the colour of the number that is largest in size.");
    const { problem, leftOut } = this.happened;
    if (problem || leftOut) lines.push(`Not all events are shown: ${problem ?? `${leftOut} are left out`}.`);
    if (this.matrix.leftOut)
      lines.push(`${this.matrix.leftOut} values do not fit their schema and are left out: the file is damaged.`);
    return lines;
  }

  problems() {
    return this.index.runs.flatMap((run) => run.problems.map((problem) => `${run.name}: ${problem}`)).slice(0, 5);
  }

  note(lines, bad = false) {
    this.notes.classList.toggle("bad", bad);
    this.notes.replaceChildren(...lines.map((line) => element("p", {}, line)));
  }

  describe(row, column) {
    const { layer, at } = this.rows[row];
    const value = this.view.rows[at][column];
    const epoch = this.marks.findLast((mark) => mark.column <= column)?.text;
    const events = this.eventMarks.filter((mark) => mark.column === column).flatMap((mark) => mark.events);
    const lines = [layer, [`step ${this.view.steps[column]}`, epoch].filter(Boolean).join(", ")];
    lines.push(...events.slice(0, 3).map(said));
    if (this.view.pair) {
      const [one, two] = this.view.pair(at, column);
      return [...lines, `${exact(one)} minus ${exact(two)} is ${exact(value)}`];
    }
    return [...lines, `${this.chosen.series.name} ${exact(value)}`];
  }

  say(row, column) {
    const text = this.describe(row, column).join(", ");
    if (this.readout.textContent !== text) this.readout.textContent = text;
  }

  choose(row, column) {
    this.say(row, column);
    this.change({ layer: this.rows[row].layer, step: this.view.steps[column] });
  }

  async copyLink() {
    const link = linkTo(this.state);
    try {
      await navigator.clipboard.writeText(link);
      this.readout.textContent = "The link is in the clipboard.";
    } catch {
      this.readout.textContent = `The link: ${link}`; // no permission, or no https
    }
  }
}

function kinds(rows) {
  const found = { missing: false, above: false, below: false };
  for (const row of rows)
    for (const value of row) {
      if (value !== value) found.missing = true;
      else if (value === Infinity) found.above = true;
      else if (value === -Infinity) found.below = true;
    }
  return found;
}

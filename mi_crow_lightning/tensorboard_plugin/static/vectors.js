// The view of vectors: how well each layer's direction separates two classes, and projections on directions over time.

import { fetchEpochs, fetchEvents, fetchLayer, fetchMatrix } from "./api.js";
import { asked, stageKey, stageText } from "./choices.js";
import { element, fillSelect, labelled } from "./dom.js";
import { marksOfLines, onAxisOf, visible } from "./events.js";
import { chosenRows } from "./layers.js";
import { lineChart } from "./lines.js";
import { exact, nearest } from "./numbers.js";
import { shade, shadeKey } from "./shades.js";
import { csvLine, saveCsv } from "./table.js";
import { PROJECTED, projectionsOf, separabilityOf, spread } from "./vector_series.js";

const OVERLAID = 12; // steps that are drawn over one another
const DRAWN = 40; // layers that have a line each
const DIRECTIONS = 24; // charts

export class Vectors {
  constructor({ change }) {
    this.change = change;
    this.charts = [];
    const select = (part) => {
      const made = element("select", {});
      made.addEventListener("change", () => change(part(made.value)));
      return made;
    };
    this.run = select((run) => ({ run }));
    this.stage = select((value) => ({ projected_in: value }));
    this.statistic = select((value) => ({ projected: value }));
    this.layer = select((value) => ({ layer: value === "" ? null : JSON.parse(value) }));
    this.step = element("input", { type: "range", min: 0 });
    this.step.addEventListener("change", () => change({ step: this.steps[this.step.valueAsNumber] }));
    this.step.addEventListener("input", () => this.sayStep(this.step.valueAsNumber));
    this.stepText = element("output", {});
    this.csv = element("button", { type: "button" }, "Download vectors as CSV");
    this.csv.addEventListener("click", () => saveCsv("vectors", csvOfMatrices(this.shown.run, this.shown.matrices)));
    const fields = [
      ["Run", this.run],
      ["Step", this.step],
      ["Projections in", this.stage],
      ["Projections, their", this.statistic],
      ["Projections at", this.layer],
    ].map(([text, control]) => labelled(text, control));
    fields[1].append(this.stepText);
    this.stepField = fields[1];
    this.ofProjections = fields.slice(2);
    this.drawn = element("div", {});
    this.root = element(
      "div",
      {},
      element("div", { className: "toolbar", role: "group", "aria-label": "Which vectors are shown" }, ...fields, this.csv),
      this.drawn,
    );
  }

  async load(index, state, isNewest) {
    const runs = index.runs.map((run) => ({ run, groups: separabilityOf(run), directions: projectionsOf(run) }));
    const found = runs.filter(({ groups, directions }) => groups.length || directions.length);
    this.root.classList.toggle("empty", !found.length);
    if (!found.length) {
      this.clear();
      const how = "A ContrastDetector writes how well layers separate two classes, a ProjectionDetector projections.";
      return [`No run of this log has vectors yet. ${how}`];
    }
    const newest = found.reduce((one, two) => (two.run.last > one.run.last ? two : one));
    const chosen = found.find(({ run }) => run.name === state.run) ?? newest;
    const { run, groups, directions } = chosen;
    const stages = new Map(directions.flatMap((one) => one.stages).map((one) => [stageKey(one), stageText(one)]));
    const stage = stages.has(state.projected_in) ? state.projected_in : ([...stages.keys()][0] ?? null);
    const of = PROJECTED.includes(state.projected) ? state.projected : "mean";
    const here = directions.flatMap((one) => {
      const at = one.stages.find((other) => stageKey(other) === stage);
      return at ? [{ ...one, ...at }] : [];
    });
    const wanted = [
      ...groups.flatMap((group) => group.series.map((series) => ({ group, series }))),
      ...here.slice(0, DIRECTIONS).map((direction) => ({ direction, series: direction.series[of] })),
    ];
    const [epochs, happened, ...matrices] = await Promise.all([
      fetchEpochs(run.name),
      fetchEvents(run.name).catch(() => ({ events: [] })), // the heatmap says why
      ...wanted.map(async (one) => ({ ...one, matrix: await fetchMatrix(run.name, asked(one.series)) })),
    ]);
    if (!isNewest()) return [];
    const layers = [...new Set(matrices.filter((one) => one.direction).flatMap(({ matrix }) => matrix.layers))];
    const layer = layers.includes(state.layer) ? state.layer : null;
    const ofLayer = layer === null ? [] : await this.fetchOfLayer(run, here.slice(0, DIRECTIONS), layer);
    if (!isNewest()) return [];
    const stageName = stage === null ? null : JSON.parse(stage)[0];
    const marks = stageName === null ? [] : marksOfLines(epochs, visible(onAxisOf(stageName, happened.events), state));
    this.shown = { run, groups, directions, matrices, of, stage, layer, ofLayer, marks, state };
    this.fill(found, stages, layers);
    this.draw();
    return this.lines(here);
  }

  fetchOfLayer(run, directions, layer) {
    return Promise.all(
      directions.map(async ({ series, title }) => {
        const found = await fetchLayer(run.name, asked(series.mean), layer).catch(() => []); // not every layer has all
        const numbers = Object.fromEntries(
          PROJECTED.map((of) => [of, found.find(({ name }) => name === series[of].name)]).filter(([, one]) => one),
        );
        return { title, numbers };
      }),
    );
  }

  fill(found, stages, layers) {
    const { run, matrices, of, stage, layer, state, directions } = this.shown;
    const pairs = (values) => values.map((value) => [value, value]);
    fillSelect(this.run, pairs(found.map((one) => one.run.name)), run.name);
    fillSelect(this.stage, [...stages], stage);
    fillSelect(this.statistic, pairs(PROJECTED), of);
    const listed = layers.map((one) => [JSON.stringify(one), one]);
    fillSelect(this.layer, [["", "all layers"], ...listed], layer === null ? "" : JSON.stringify(layer));
    for (const field of this.ofProjections) field.hidden = !directions.length;
    const several = matrices.filter(({ matrix }) => matrix.steps.length > 1);
    this.steps = [...new Set(several.flatMap(({ matrix }) => Array.from(matrix.steps)))].sort((a, b) => a - b);
    this.stepField.hidden = !this.steps.length;
    this.step.max = Math.max(0, this.steps.length - 1);
    this.step.value = state.step === null ? this.steps.length - 1 : nearest(this.steps, state.step);
    this.sayStep(this.step.valueAsNumber);
  }

  sayStep(at) {
    this.stepText.textContent = this.steps.length ? `step ${this.steps[at]}` : "";
    this.step.setAttribute("aria-valuetext", this.stepText.textContent);
  }

  repaint() {
    if (this.shown) this.draw();
  }

  clear() {
    for (const chart of this.charts) chart.destroy();
    this.charts = [];
    this.drawn.replaceChildren();
  }

  draw() {
    this.clear();
    const { groups, matrices } = this.shown;
    const sections = groups.map((group) => this.separability(group, matrices.filter((one) => one.group === group)));
    const projected = matrices.filter((one) => one.direction);
    const scores = groups.filter(hasScores).length; // norms alone come last
    if (projected.length) sections.splice(scores, 0, this.projections(projected));
    this.drawn.append(...sections);
  }

  lines(here) {
    const { run, matrices, stage, of } = this.shown;
    const lines = [];
    for (const group of this.shown.groups) {
      const best = bestOf(matrices.filter((one) => one.group === group), this.columnOf);
      if (best) lines.push(`${run.name}, ${group.title}: at step ${best.step} ${best.layer} separates best, ${best.text}.`);
    }
    if (stage !== null) {
      const where = stageText({ stage: JSON.parse(stage)[0], loader: JSON.parse(stage)[1] });
      const count = here.length === 1 ? "one direction" : `${here.length} directions`;
      const more = here.length > DIRECTIONS ? `, the first ${DIRECTIONS} are drawn` : "";
      lines.push(`${run.name}, ${where}: ${of} of the projections on ${count}${more}.`);
    }
    return lines;
  }

  columnOf = (matrix) => {
    const { step } = this.shown.state;
    return step === null ? matrix.steps.length - 1 : nearest(matrix.steps, step);
  };

  // Separability.

  separability(group, series) {
    const charts = series.flatMap((one) => this.overLayers(one));
    this.charts.push(...charts);
    const { steps } = series[0].matrix;
    const drawn = spread(steps.length, OVERLAID);
    const names = series.map(({ series: { name } }) => name);
    const title = `${hasScores(group) ? "Separability" : "Norms of the vectors"}: ${group.title}`;
    const key = shadeKey("step", steps[drawn[0]], steps[drawn.at(-1)], drawn.length);
    return section(title, key, charts, numbersTable(title, names, series, this.columnOf));
  }

  /** Return a chart of one statistic over the layers for each stack, with a line for each step. */
  overLayers({ series, matrix }) {
    const column = this.columnOf(matrix);
    const rows = chosenRows(matrix.layers, { search: "", order: "model" }, () => [], 0);
    const drawn = [...new Set([...spread(matrix.steps.length, OVERLAID), column])].sort((a, b) => a - b);
    return [...new Set(rows.map(({ stack }) => stack))].map((stack) => {
      const of = rows.filter((row) => row.stack === stack);
      const lines = drawn.map((at, place) => ({
        x: of.map((_, index) => index),
        y: of.map((row) => numberAt(matrix, at, row.at)),
        name: `step ${matrix.steps[at]}`,
        colour: () => shade(place, drawn.length),
        width: at === column ? 3 : 1.25,
      }));
      return lineChart({
        title: `${series.name} over ${stack || "the layers"}`,
        lines,
        say: (index) => of[index].layer,
        ticks: (index) => of[index]?.label.slice(-12) ?? "",
        choose: (_, line) => this.change({ step: matrix.steps[drawn[line]] }),
      });
    });
  }

  // Projections.

  projections(projected) {
    const { layer, ofLayer, of } = this.shown;
    const charts = layer === null ? projected.map((one) => this.overSteps(one)) : ofLayer.map((one) => this.ofOneLayer(one));
    this.charts.push(...charts);
    const layers = projected[0].matrix.layers;
    const drawn = spread(layers.length, DRAWN);
    const key =
      layer === null
        ? shadeKey("layer", layers[drawn[0]], layers[drawn.at(-1)], drawn.length)
        : element("p", { className: "notes" }, `${layer}: mean, mean ± std, and the smallest and largest projection.`);
    const title = `Projections: ${of} over the steps`;
    const heads = projected.map(({ direction }) => direction.title);
    return section(title, key, charts, numbersTable(title, heads, projected, this.columnOf));
  }

  overSteps({ direction, matrix }) {
    const drawn = spread(matrix.layers.length, DRAWN);
    const x = Array.from(matrix.steps);
    const lines = drawn.map((at, place) => ({
      x,
      y: x.map((_, column) => numberAt(matrix, column, at)),
      name: matrix.layers[at],
      colour: () => shade(place, drawn.length),
      width: 1.25,
    }));
    return this.timeChart(direction.title, lines, x[this.columnOf(matrix)], (line) => matrix.layers[drawn[line]]);
  }

  ofOneLayer({ title, numbers }) {
    const { mean, std, min, max, cosine } = numbers;
    if (this.shown.of === "cosine") return this.timeChart(title, cosine ? [lineOf(cosine, "cosine", 2)] : [], null);
    if (!mean) return this.timeChart(title, [], null);
    const lines = [lineOf(mean, "mean", 2)];
    for (const [name, sign] of std ? [["mean + std", 1], ["mean - std", -1]] : []) {
      lines.push({ ...lineOf(mean, name, 1), y: mean.values.map((value, at) => value + sign * std.values[at]) });
    }
    for (const [one, name] of [[min, "min"], [max, "max"]]) if (one) lines.push(lineOf(one, name, 1, [3, 3]));
    return this.timeChart(title, lines, mean.steps[nearest(mean.steps, this.shown.state.step ?? Infinity)]);
  }

  timeChart(title, lines, marked, layerOf = null) {
    return lineChart({
      title,
      lines,
      marked: marked ?? null,
      marks: this.shown.marks,
      say: (step) => `step ${step}`,
      ticks: String,
      choose: (step, line) => this.change({ step, ...(layerOf && line !== null ? { layer: layerOf(line) } : {}) }),
    });
  }
}

const hasScores = ({ series }) => series.some(({ name }) => name !== "norm");

function section(title, key, charts, table) {
  const drawn = element("div", {}, key, element("div", { className: "charts" }, ...charts.map((chart) => chart.root)));
  const beside = element("div", { className: "sides" }, drawn, table);
  return element("section", { "aria-label": title }, element("h2", {}, title), beside);
}

function lineOf({ steps, values }, name, width, dash = undefined) {
  return { x: Array.from(steps), y: values, name, width, dash, colour: () => shade(1, 1) };
}

function numberAt(matrix, column, layer) {
  return matrix.values[column * matrix.layers.length + layer];
}

/** Return the layer with the largest AUROC, among equals the one with the largest d prime. */
function bestOf(series, columnOf) {
  const named = (name) => series.find((one) => one.series.name === name)?.matrix;
  const [auroc, dPrime] = [named("auroc"), named("d_prime")];
  if (!auroc?.steps.length) return null;
  const column = columnOf(auroc);
  const also = (layer) => {
    const at = dPrime?.layers.indexOf(layer) ?? -1;
    return at < 0 ? NaN : numberAt(dPrime, columnOf(dPrime), at);
  };
  const rows = auroc.layers
    .map((layer, at) => ({ layer, auroc: numberAt(auroc, column, at), dPrime: also(layer) }))
    .filter((row) => !Number.isNaN(row.auroc));
  if (!rows.length) return null;
  const better = (one, two) => two.auroc > one.auroc || (two.auroc === one.auroc && two.dPrime > one.dPrime);
  const best = rows.reduce((one, two) => (better(one, two) ? two : one));
  const prime = Number.isNaN(best.dPrime) ? "" : `, d_prime ${exact(best.dPrime)}`;
  return { layer: best.layer, step: auroc.steps[column], text: `auroc ${exact(best.auroc)}${prime}` };
}

/** Return the numbers at the chosen step as a table: a row for each layer, a column for each matrix. */
function numbersTable(label, heads, series, columnOf) {
  const layers = [...new Set(series.flatMap(({ matrix }) => matrix.layers))];
  const columns = series.map(({ matrix }) => {
    const [column, at] = [columnOf(matrix), new Map(matrix.layers.map((layer, index) => [layer, index]))];
    return { step: matrix.steps[column], of: (layer) => (at.has(layer) ? numberAt(matrix, column, at.get(layer)) : NaN) };
  });
  const head = ["layer", ...heads.map((text, index) => `${text}, step ${columns[index].step}`)];
  const rows = layers.map((layer) =>
    element(
      "tr",
      {},
      element("th", { scope: "row", title: layer }, layer),
      ...columns.map(({ of }) => element("td", {}, exact(of(layer)))),
    ),
  );
  const cells = head.map((text) => element("th", { scope: "col" }, text));
  return element(
    "div",
    { className: "scroll", tabIndex: 0, role: "region", "aria-label": `Numbers: ${label}` },
    element("table", {}, element("thead", {}, element("tr", {}, ...cells)), element("tbody", {}, ...rows)),
  );
}

/** Return every number that the view holds as a line: run, stage, step, layer, detector, name, value. */
export function csvOfMatrices(run, matrices) {
  const lines = [csvLine(["run", "stage", "dataloader", "step", "layer", "detector", "name", "value"])];
  for (const { series, matrix } of matrices) {
    matrix.steps.forEach((step, column) =>
      matrix.layers.forEach((layer, at) => {
        const place = [run.name, series.stage, String(series.loader ?? ""), String(step), layer];
        lines.push(csvLine([...place, series.prefix, series.name], [exact(numberAt(matrix, column, at))]));
      }),
    );
  }
  return lines.join("\r\n") + "\r\n";
}

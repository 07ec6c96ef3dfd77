// The view of what controllers did: their effect over the batches, its totals, and the texts of predict runs.

import { fetchTexts } from "./api.js";
import { stageKey, stageText } from "./choices.js";
import { element, fillSelect, labelled } from "./dom.js";
import { QUANTITIES, readEffects, stagesOf } from "./effects.js";
import { manyLines } from "./many_lines.js";
import { exact } from "./numbers.js";
import { ALL, controllersOf, markKey, promptsOf, textCards } from "./texts.js";

const isShown = (run) => run.texts || stagesOf(run).length > 0;

/** The view, see `views.js`. */
export class SteeringView {
  constructor({ change }) {
    const select = (read) => {
      const made = element("select", {});
      made.addEventListener("change", () => change(read(made.value)));
      return made;
    };
    this.charts = [];
    this.run = select((run) => ({ run, prompt: null }));
    this.stage = select((value) => {
      const [stage, loader] = JSON.parse(value);
      return { stage, loader };
    });
    this.quantity = select((quantity) => ({ quantity }));
    this.prompt = select((value) => ({ prompt: Number(value) }));
    this.controller = select((controller) => ({ controller }));
    const step = (by) => () => change({ prompt: this.shownPrompt + by });
    this.earlier = element("button", { type: "button" }, "Previous prompt");
    this.later = element("button", { type: "button" }, "Next prompt");
    this.earlier.addEventListener("click", step(-1));
    this.later.addEventListener("click", step(1));
    fillSelect(this.quantity, QUANTITIES, QUANTITIES[0][0]);
    this.above = group("What is shown", labelled("Run", this.run));
    this.ofEffects = group("Which effect", labelled("Stage", this.stage), labelled("Quantity", this.quantity));
    this.ofTexts = group(
      "Which texts",
      labelled("Prompt", this.prompt),
      this.earlier,
      this.later,
      labelled("Tokens changed by", this.controller),
    );
    this.effects = element("div", {});
    this.texts = element("div", {});
    this.effectsPart = part("Effect", this.ofEffects, this.effects);
    this.textsPart = part("Texts", this.ofTexts, this.texts);
    this.drawn = element("div", {}, this.effectsPart, this.textsPart);
    this.root = element("div", { className: "steering", hidden: true }, this.above, this.drawn);
  }

  async load(index, state, isNewest) {
    const runs = index.runs.filter(isShown);
    this.above.hidden = this.drawn.hidden = !runs.length;
    if (!runs.length) {
      const none = "No run of this log has controllers or texts.";
      return [`${none} A Trainer writes them with HookCallback(controllers=...), CausalLMModule(log_text=...) texts.`];
    }
    const newest = runs.reduce((one, two) => (two.last > one.last ? two : one));
    const run = runs.find((one) => one.name === state.run) ?? newest;
    const stage = pickStage(stagesOf(run), state);
    const quantity = QUANTITIES.find(([name]) => name === state.quantity)?.[0] ?? QUANTITIES[0][0];
    const [effects, texts] = await Promise.all([
      stage && readEffects(run, stage, quantity),
      run.texts ? fetchTexts(run.name) : { texts: [], leftOut: 0 },
    ]);
    if (!isNewest()) return [];
    Object.assign(this, { read: { run, runs, stage, quantity, effects, texts, state: { ...state } } });
    this.draw();
    return this.summary();
  }

  repaint() {
    if (this.read && !this.root.hidden) this.draw();
  }

  draw() {
    const { run, runs, stage, quantity, effects, texts, state } = this.read;
    fillSelect(
      this.run,
      runs.map((one) => [one.name, one.name]),
      run.name,
    );
    this.effectsPart.hidden = !stage;
    if (stage) {
      const stages = stagesOf(run).map((one) => [stageKey(one), stageText(one)]);
      fillSelect(this.stage, stages, stageKey(stage));
      this.quantity.value = quantity;
    }
    this.drawEffects(effects, quantity);
    this.drawTexts(promptsOf(texts.texts), state);
  }

  drawEffects(effects, quantity) {
    for (const chart of this.charts) chart.destroy();
    this.charts = [];
    this.effects.replaceChildren();
    if (!effects) return;
    const words = QUANTITIES.find(([name]) => name === quantity)[1];
    const hooks = [...new Set(effects.places.map((place) => place.hook))];
    this.charts = hooks.map((hook) => {
      const lines = effects.places.filter((place) => place.hook === hook);
      return manyLines({
        title: `${hook}: ${words}`,
        over: effects.over,
        x: effects.x,
        lines: lines.map(({ layer, values }) => ({ name: layer, values })),
      });
    });
    const charts = element("div", { className: "charts wide" }, ...this.charts.map((chart) => chart.root));
    const ratio = "A ratio is the size of a token's change, over the size of its activation before.";
    this.effects.append(element("p", { className: "notes" }, ratio), charts, totals(effects.whole));
  }

  drawTexts(prompts, state) {
    this.textsPart.hidden = !prompts.length;
    this.texts.replaceChildren();
    if (!prompts.length) return;
    this.shownPrompt = Math.max(0, Math.min(state.prompt ?? 0, prompts.length - 1));
    const groups = [...new Set(prompts.map((prompt) => prompt.group))];
    const options = groups.map((label) => ({
      label,
      options: prompts.flatMap((one, at) => (one.group === label ? [[String(at), one.label]] : [])),
    }));
    fillSelect(this.prompt, options, String(this.shownPrompt));
    this.earlier.disabled = this.shownPrompt === 0;
    this.later.disabled = this.shownPrompt === prompts.length - 1;
    const { rows } = prompts[this.shownPrompt];
    const controllers = controllersOf(rows);
    const controller = controllers.includes(state.controller) ? state.controller : ALL;
    fillSelect(this.controller, [[ALL, "any controller"], ...controllers.map((one) => [one, one])], controller);
    this.controller.disabled = !controllers.length;
    this.texts.append(markKey(), textCards(rows, controller));
  }

  summary() {
    const { run, stage, effects, texts } = this.read;
    const lines = [];
    if (effects) {
      const what = `What the controllers of ${run.name} changed in ${stageText(stage)}`;
      const count = effects.x.length;
      const points = `over ${count} ${effects.over === "batch" ? "point" : "step"}${count === 1 ? "" : "s"}`;
      lines.push(effects.x.length ? `${what}, ${points}.` : `${what}.`);
      if (effects.over === "batch" && effects.x.length && effects.x.at(-1) > effects.x.length)
        lines.push("A point covers the batches since the point before it.");
    }
    if (texts.leftOut) lines.push(`${texts.leftOut} texts cannot be read and are left out.`);
    return lines;
  }
}

function pickStage(stages, { stage, loader }) {
  const points = (one) =>
    2 * (one.stage === stage) + ((one.loader ?? null) === loader) + 0.5 * (stage === null && one.stage === "predict");
  return stages.length ? stages.reduce((best, one) => (points(one) > points(best) ? one : best)) : null;
}

function totals(whole) {
  const heads = ["controller", "layer", ...QUANTITIES.map(([name]) => name)];
  const head = element("tr", {}, ...heads.map((text) => element("th", { scope: "col" }, text)));
  const rows = whole.map(({ hook, layer, numbers }) =>
    element(
      "tr",
      {},
      element("th", { scope: "row", title: hook }, hook),
      element("td", {}, layer),
      ...numbers.map((value) => element("td", {}, exact(value))),
    ),
  );
  const table = element(
    "table",
    { className: "numbers totals" },
    element("caption", {}, "The whole stage, at its last reading"),
    element("thead", {}, head),
    element("tbody", {}, ...rows),
  );
  return element("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": "Totals" }, table);
}

function group(label, ...children) {
  return element("div", { className: "toolbar", role: "group", "aria-label": label }, ...children);
}

function part(title, ...children) {
  return element("section", { "aria-label": title }, element("h2", {}, title), ...children);
}

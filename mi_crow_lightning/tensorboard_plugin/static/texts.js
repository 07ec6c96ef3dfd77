// Texts side by side, with the tokens that controllers changed. Whatever the texts hold only becomes text.

import { element } from "./dom.js";

export const ALL = ""; // the controllers that are meant: all

/** Return every prompt of a run: `[{label, group, step, rows}]`, `rows` its texts. */
export function promptsOf(texts) {
  return texts.flatMap(({ stage, loader, step, rows }) => {
    const group = [stage, loader === null ? "" : `dataloader ${loader}`, `step ${step}`].filter(Boolean).join(", ");
    const byRow = new Map();
    for (const row of rows) byRow.set(row.row, [...(byRow.get(row.row) ?? []), row]);
    return [...byRow].map(([number, of]) => ({ label: labelOf(number, of[0]), group, step, rows: of }));
  });
}

function labelOf(number, { prompt, tokens, prompt_tokens: count }) {
  const text = (prompt ?? tokens.slice(0, count).join(" ")).replace(/\s+/g, " ").trim();
  return `${number + 1}: ${text.length > 60 ? `${text.slice(0, 59)}…` : text}`;
}

/** Return the controllers that are known or not known to have changed tokens of a prompt's texts. */
export function controllersOf(rows) {
  return [...new Set(rows.flatMap((row) => [...Object.keys(row.touched), ...Object.keys(row.unmarked)]))];
}

/**
 * Return the texts of a prompt as cards.
 *
 * @param rows the texts.
 * @param controller the controller whose tokens are marked, or `ALL`.
 */
export function textCards(rows, controller) {
  const strengths = new Set(rows.map((row) => row.strength)).size;
  const sequences = new Set(rows.map((row) => row.sequence)).size;
  const cards = rows.map((row) => card(row, controller, titleOf(row, strengths, sequences)));
  return element("div", { className: "cards" }, ...cards);
}

/** Return the words for what is marked. */
export function markKey() {
  const entry = (sample, words) => element("span", { className: "key" }, sample, ` ${words}`);
  return element(
    "p",
    { className: "notes texts-key" },
    entry(element("mark", {}, "token"), "its activation was changed"),
    entry(element("span", { className: "prompt" }, "token"), "of the prompt"),
    entry(element("span", { className: "unread" }, "token"), "written, and not read by the model"),
    entry(element("span", { className: "special" }, "token"), "special, not in the text"),
  );
}

function titleOf({ strength, sequence }, strengths, sequences) {
  const words = strength === null ? (sequences > 1 ? "" : "text") : `strength ${strength}`;
  return [words, sequences > 1 ? `sequence ${sequence + 1}` : ""].filter(Boolean).join(", ");
}

function card(row, controller, title) {
  const hooks = Object.keys(row.touched).filter((hook) => controller === ALL || hook === controller);
  const marks = row.tokens.map((_, at) => markOf(hooks, row, at));
  const special = new Set(row.special);
  const parts = row.tokens.map((token, at) => tokenOf(token, at, row, marks[at], special.has(at)));
  const [before, after] = row.left_out;
  const text = element("p", { className: row.joined ? "text" : "text pieces", dir: "auto" });
  text.append(
    ...(before ? [element("span", { className: "notes" }, `${before} tokens before are left out `)] : []),
    ...parts,
    ...(after ? [element("span", { className: "notes" }, ` ${after} tokens after are left out`)] : []),
  );
  return element(
    "article",
    { className: "card", "aria-label": title },
    element("h4", {}, title),
    text,
    ...summary(row, hooks, marks, controller).map((line) => element("p", { className: "notes" }, line)),
  );
}

/** Return the controllers that changed a token, or `null` where the model never read it. */
function markOf(hooks, row, at) {
  const changed = hooks.filter((hook) => row.touched[hook][at] === "1");
  return !changed.length && hooks.some((hook) => row.touched[hook][at] === "-") ? null : changed;
}

function tokenOf(token, at, row, mark, special) {
  const of = at < row.prompt_tokens ? "prompt" : "new";
  const names = ["token", of, mark === null ? "unread" : "", special ? "special" : ""].filter(Boolean);
  const by = mark?.length ? `, changed by ${mark.join(", ")}` : mark === null ? ", not read by the model" : "";
  const made = element(mark?.length ? "mark" : "span", {
    className: names.join(" "),
    title: `token ${at + 1} of ${row.tokens.length}${by}`,
  });
  made.textContent = token;
  return made;
}

function summary(row, hooks, marks, controller) {
  const changed = marks.filter((mark) => mark?.length).length;
  const by = controller === ALL ? (hooks.length > 1 ? "controllers" : (hooks[0] ?? "")) : controller;
  const lines = hooks.length ? [`${changed} of ${row.tokens.length} tokens changed by ${by}.`] : [];
  for (const [hook, why] of Object.entries(row.unmarked))
    if (controller === ALL || controller === hook)
      lines.push(`It is not known which tokens ${hook} changed: ${why}.`);
  if (!row.joined) lines.push("The tokens are shown one by one: they do not make the text when they are joined.");
  return lines;
}

// Elements of the page. Names from event files only ever become text: nothing here reads HTML.

/** Make an element. `properties` are DOM properties; those with a dash, `role` and `for` become attributes. */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role" || name === "for") made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children);
  return made;
}

/** Make a labelled control, label first. */
export function labelled(text, control) {
  return element("label", { className: "field" }, element("span", {}, text), control);
}

/** Fill a select with `[value, text]` pairs, or with `{label, options}` groups of them, and choose a value. */
export function fillSelect(select, entries, chosen) {
  const described = JSON.stringify(entries);
  if (select.dataset.entries !== described) refill(select, entries);
  select.dataset.entries = described; // an open list must not close because the log was read again
  select.value = chosen;
}

function refill(select, entries) {
  const option = ([value, text]) => element("option", { value }, text);
  const made = entries.map((entry) =>
    Array.isArray(entry) ? option(entry) : element("optgroup", { label: entry.label }, ...entry.options.map(option)),
  );
  select.replaceChildren(...made);
}

/** Size a canvas in CSS pixels, and return its context, in which one unit is one CSS pixel. */
export function sized(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  return context;
}

/** Return the value of a CSS variable of the page. */
export function themed(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

/** Shorten a text from its left until it fits, because layers differ at their end. */
export function fitted(context, text, width) {
  if (context.measureText(text).width <= width) return text;
  let [short, long] = [0, text.length];
  while (short < long) {
    const middle = Math.ceil((short + long) / 2);
    if (context.measureText("…" + text.slice(-middle)).width <= width) short = middle;
    else long = middle - 1;
  }
  return short ? "…" + text.slice(-short) : "…";
}

// What is chosen, and its place in the address: a link shows somebody else the same picture.

const PLUGIN = "mi_crow_lightning";
const KEY = `p.${PLUGIN}.`;

export const INITIAL = Object.freeze({
  view: "heatmap",
  run: null,
  compare: null,
  prefix: null,
  name: null,
  stage: null,
  loader: null,
  scale: "linear",
  order: "model",
  search: "",
  from: null,
  to: null,
  step: null, // null: the last one
  beside: null, // another step
  layer: null,
  table: null,
  profile: null,
  quantity: null,
  prompt: null, // its place among all prompts of the run
  controller: null,
  projected: null, // the statistic of projections
  projected_in: null, // the stage of projections, and its dataloader
  events: null, // whether they are listed
  hide: null, // kinds of events that are not shown, with commas between them
});

const NUMBERS = new Set(["loader", "from", "to", "step", "beside", "prompt"]);

/** Return the state that the address of TensorBoard's page holds. The plugin's page is a frame in that. */
export function readAddress() {
  const state = { ...INITIAL };
  for (const [key, value] of parts(hostHash())) {
    const name = key.startsWith(KEY) ? key.slice(KEY.length) : "";
    if (!(name in INITIAL)) continue;
    const number = Number(value);
    if (!NUMBERS.has(name)) state[name] = value;
    else if (value !== "" && Number.isFinite(number)) state[name] = number;
  }
  return state;
}

/** Write the state into the address, while TensorBoard shows this plugin. */
export function writeAddress(state) {
  const host = hostWindow();
  const [shown] = hostHash().split("&");
  if (!host || (shown && shown !== PLUGIN)) return;
  const hash = addressOf(state);
  if (host.location.hash === hash) return;
  try {
    host.history.replaceState(host.history.state, "", hash);
  } catch (error) {
    if (error.name !== "SecurityError") throw error; // a frame without an address that it may change
  }
}

/** Return the link to a state. */
export function linkTo(state) {
  const [page] = (hostWindow() ?? window).location.href.split("#");
  return page + addressOf(state);
}

function addressOf(state) {
  const chosen = Object.entries(state).filter(([name, value]) => value !== null && value !== INITIAL[name]);
  return [`#${PLUGIN}`, ...chosen.map(([name, value]) => `${KEY}${name}=${encodeURIComponent(value)}`)].join("&");
}

function parts(hash) {
  return hash.split("&").map((part) => {
    const [key, ...rest] = part.split("=");
    try {
      return [key, decodeURIComponent(rest.join("="))];
    } catch {
      return ["", ""];
    }
  });
}

function hostHash() {
  return hostWindow()?.location.hash.slice(1) ?? "";
}

let standsAlone = false;

/** Keep the state in this window's address: the page is not a frame in TensorBoard's. */
export function keepOwnAddress() {
  standsAlone = true;
}

/** Return TensorBoard's window, or `null` where another site shows it in a frame. */
export function hostWindow() {
  if (standsAlone) return window;
  try {
    return window.parent.location.origin === window.location.origin ? window.parent : null;
  } catch {
    return null;
  }
}

// What the page asks the server, or whatever stands in its place.

let source = askServer;

/** Take the answers from elsewhere: `other(route, parameters)`, a list of names and values, promises a `Response`. */
export function answerFrom(other) {
  source = other;
}

/** Return the runs and their series. */
export async function fetchIndex() {
  return (await answer("index", {})).json();
}

/** Return one statistic of a run: `{layers, steps, times, values, state}`, `values` step by step. */
export async function fetchMatrix(run, series) {
  const { header, arrays, state } = await packed("matrix", { run, ...series });
  return { layers: header.layers, leftOut: header.left_out, ...arrays, state };
}

/** Return every statistic of one layer: `[{name, steps, values}]`. */
export async function fetchLayer(run, series, layer) {
  const { header, arrays } = await packed("layer", { run, ...series, layer });
  return header.names.map((name, at) => ({ name, steps: arrays[`steps${at}`], values: arrays[`values${at}`] }));
}

/** Return the histograms of one layer: `[{edges, steps, counts}]`, those with the same bins together. */
export async function fetchHistograms(run, series, layer) {
  const { header, arrays } = await packed("histogram", { run, ...series, layer });
  return Array.from({ length: header.parts }, (_, at) => ({
    edges: arrays[`edges${at}`],
    steps: arrays[`steps${at}`],
    counts: arrays[`counts${at}`],
  }));
}

/** Return the reports that a run began with: `[{tag, step, text}]`. */
export async function fetchReports(run) {
  return (await (await answer("reports", { run })).json()).reports;
}

/** Return the first logged step of each epoch: `[[step, epoch]]`. */
export async function fetchEpochs(run) {
  return (await (await answer("epochs", { run })).json()).epochs;
}

/** Return the texts of a run: `{texts: [{stage, loader, step, rows}], leftOut}`. */
export async function fetchTexts(run) {
  const { texts, left_out: leftOut } = await (await answer("texts", { run })).json();
  return { texts, leftOut };
}

/** Return what happened in a run: `{events: [{stage, step, kind, text, hook, layer}], leftOut}`. */
export async function fetchEvents(run) {
  const { events, left_out } = await (await answer("events", { run })).json();
  return { events, leftOut: left_out };
}

async function packed(route, parameters) {
  const response = await answer(route, parameters);
  return { ...unpack(await response.arrayBuffer()), state: response.headers.get("ETag") };
}

function askServer(route, parameters) {
  const address = new URL(`../${route}`, import.meta.url);
  for (const [name, value] of parameters) address.searchParams.set(name, value);
  return fetch(address);
}

async function answer(route, parameters) {
  const given = Object.entries(parameters).filter(([, value]) => value !== null && value !== undefined);
  const response = await source(route, given);
  if (response.ok) return response;
  const reason = await response.json().then(
    (body) => body.error,
    () => response.statusText,
  );
  throw new Error(reason || `the server answered ${response.status}`);
}

const TYPES = { float32: Float32Array, float64: Float64Array };

/** Read a header and arrays: see `packing.py`. */
export function unpack(buffer) {
  const length = new DataView(buffer).getUint32(4, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length)));
  const arrays = {};
  let at = 8 + length;
  for (const { name, dtype, shape } of header.arrays) {
    const size = shape.reduce((product, side) => product * side, 1);
    arrays[name] = new TYPES[dtype](buffer, at, size);
    at += 8 * Math.ceil(arrays[name].byteLength / 8);
  }
  return { header, arrays };
}

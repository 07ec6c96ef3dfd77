// The answers that a page brings along in place of a server: see `archive.py`.

const DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%.()*+-;,=/?@^_`{|}~";

/**
 * Open an archive, given as text in base 85: `{about, answer}`.
 *
 * `answer(route, parameters)` returns what the server would, `parameters` a list of names and values.
 */
export async function openArchive(text) {
  const bytes = bytesOf(text);
  const begin = 4 + new DataView(bytes.buffer).getUint32(0, true);
  const { about, ends, answers } = JSON.parse(new TextDecoder().decode(await inflated(bytes.subarray(4, begin))));
  const parts = new Map();
  const part = (number) => {
    if (!parts.has(number)) {
      const [from, to] = [ends[number - 1] ?? 0, ends[number]].map((end) => begin + end);
      parts.set(number, inflated(bytes.subarray(from, to)));
    }
    return parts.get(number);
  };
  const known = new Map(answers.map((one) => [keyOf(one.route, Object.entries(one.parameters)), one]));

  async function arrayOf([name, dtype, shape, number]) {
    return { name, dtype, shape, bytes: fromPlanes(await part(number), shape, SIZES[dtype]) };
  }

  async function answer(route, parameters) {
    if (route === "layer") return layer(Object.fromEntries(parameters.map(([name, value]) => [name, String(value)])));
    const found = known.get(keyOf(route, parameters));
    if (!found) return failure("this page does not hold it");
    if (!found.arrays) return new Response(await part(found.text), { status: found.status });
    return new Response(packed(found.header, await Promise.all(found.arrays.map(arrayOf))));
  }

  /** Answer with every statistic of a layer, cut out of the matrices. */
  async function layer(asked) {
    const same = ({ route, parameters }) =>
      route === "matrix" && ["run", "prefix", "stage", "loader"].every((name) => parameters[name] === asked[name]);
    const matrices = answers.filter(same);
    const damaged = matrices.find((one) => one.status !== 200);
    if (damaged) return new Response(await part(damaged.text), { status: damaged.status });
    const having = matrices.filter((one) => one.header.layers.includes(asked.layer));
    if (!having.length) return failure("this page has no statistic of this layer");
    const columns = having.map(async ({ header, arrays }, at) => {
      const [steps, values] = await Promise.all(
        ["steps", "values"].map((wanted) => arrayOf(arrays.find(([name]) => name === wanted))),
      );
      const column = columnOf(values, header.layers.indexOf(asked.layer));
      return [
        { ...steps, name: `steps${at}` },
        { ...column, name: `values${at}` },
      ];
    });
    const names = having.map(({ parameters }) => parameters.name);
    return new Response(packed({ names }, (await Promise.all(columns)).flat()));
  }

  return { about, answer };
}

/** Read base 85: five digits are four bytes, the highest first. */
function bytesOf(text) {
  const digit = new Uint8Array(128);
  for (let at = 0; at < DIGITS.length; at++) digit[DIGITS.charCodeAt(at)] = at;
  const words = new DataView(new ArrayBuffer((text.length / 5) * 4));
  for (let at = 0; at < text.length; at += 5) {
    let word = 0;
    for (let next = at; next < at + 5; next++) word = word * 85 + digit[text.charCodeAt(next)];
    words.setUint32((at / 5) * 4, word);
  }
  return new Uint8Array(words.buffer);
}

const SIZES = { float32: 4, float64: 8 };

function keyOf(route, parameters) {
  return JSON.stringify([route, ...parameters.map(([name, value]) => [name, String(value)]).sort()]);
}

function failure(error) {
  return new Response(JSON.stringify({ error }), { status: 404 });
}

async function inflated(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// All first bytes come first, then all second ones; of a matrix, its columns one after the other.
function fromPlanes(planes, shape, size) {
  const count = planes.length / size;
  const [rows, columns] = shape.length === 2 ? shape : [count, 1];
  const bytes = new Uint8Array(planes.length);
  let at = 0;
  for (let byte = 0; byte < size; byte++)
    for (let column = 0; column < columns; column++)
      for (let row = 0; row < rows; row++) bytes[(row * columns + column) * size + byte] = planes[at++];
  return bytes;
}

function columnOf({ dtype, shape: [rows, columns], bytes }, column) {
  const size = SIZES[dtype];
  const cut = new Uint8Array(rows * size);
  for (let row = 0; row < rows; row++) {
    const from = (row * columns + column) * size;
    cut.set(bytes.subarray(from, from + size), row * size);
  }
  return { dtype, shape: [rows], bytes: cut };
}

/** Return what the server sends, see `packing.py`. */
function packed(header, arrays) {
  const described = arrays.map(({ name, dtype, shape }) => ({ name, dtype, shape }));
  const text = new TextEncoder().encode(JSON.stringify({ ...header, arrays: described }));
  const starts = [8 + padded(text.length)];
  for (const { bytes } of arrays) starts.push(starts.at(-1) + padded(bytes.length));
  const all = new Uint8Array(starts.at(-1));
  all.set(text, 8);
  all.fill(32, 8 + text.length, starts[0]);
  new DataView(all.buffer).setUint32(4, starts[0] - 8, true);
  arrays.forEach(({ bytes }, at) => all.set(bytes, starts[at]));
  return all;
}

function padded(length) {
  return 8 * Math.ceil(length / 8);
}

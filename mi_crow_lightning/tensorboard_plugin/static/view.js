// What the heatmap shows of one statistic: the steps in range, of one run or as the difference of two.

/**
 * Return `{layers, steps, times, rows, pair}`: `rows[at]` holds the numbers of `layers[at]` over `steps`, and
 * `pair(at, column)` the two numbers of a difference.
 */
export function makeView(matrix, other, from, to) {
  return other ? difference(matrix, other, from, to) : single(matrix, from, to);
}

function single(matrix, from, to) {
  const columns = inRange(matrix.steps, from, to);
  return {
    layers: matrix.layers,
    steps: columns.map((column) => matrix.steps[column]),
    times: columns.map((column) => matrix.times[column]),
    rows: matrix.layers.map((_, at) => take(matrix, at, columns)),
    pair: null,
  };
}

function difference(one, two, from, to) {
  const stepsOfTwo = new Map(Array.from(two.steps, (step, column) => [step, column]));
  const layersOfTwo = new Map(two.layers.map((layer, at) => [layer, at]));
  const columns = inRange(one.steps, from, to).filter((column) => stepsOfTwo.has(one.steps[column]));
  const places = one.layers.map((_, at) => at).filter((at) => layersOfTwo.has(one.layers[at]));
  const columnsOfTwo = columns.map((column) => stepsOfTwo.get(one.steps[column]));
  const first = places.map((at) => take(one, at, columns));
  const second = places.map((at) => take(two, layersOfTwo.get(one.layers[at]), columnsOfTwo));
  return {
    layers: places.map((at) => one.layers[at]),
    steps: columns.map((column) => one.steps[column]),
    times: columns.map((column) => one.times[column]),
    rows: first.map((row, at) => row.map((value, column) => value - second[at][column])),
    pair: (at, column) => [first[at][column], second[at][column]],
  };
}

/** Return where epochs begin among steps: `[{column, text}]`. */
export function marksOf(epochs, steps) {
  const columnOf = (step) => steps.findIndex((one) => one >= step);
  const marks = epochs.map(([step, epoch]) => ({ column: columnOf(step), text: `epoch ${epoch}` }));
  // Of several that begin at the same column, the last.
  const seen = marks.filter(({ column }, at) => column >= 0 && column !== marks[at + 1]?.column);
  return seen.length > 1 ? seen : []; // a single epoch says nothing
}

function inRange(steps, from, to) {
  const columns = [];
  steps.forEach((step, column) => {
    if ((from === null || step >= from) && (to === null || step <= to)) columns.push(column);
  });
  return columns;
}

function take(matrix, at, columns) {
  const width = matrix.layers.length;
  return Float64Array.from(columns, (column) => matrix.values[column * width + at]);
}

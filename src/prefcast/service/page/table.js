// Reads, joins, filters, sorts and measures the rows of a file.

/** A file's rows: {name, rows, form, more}; `progress(part, count)` is told how far it is. Throws an Error in words. */
export function readFile(file, progress, signal) {
  return new Promise((done, fail) => {
    const worker = new Worker(new URL("./reader.js", import.meta.url), { type: "module" });
    const rows = [];
    const end = (settle, value) => { worker.terminate(); settle(value); };
    signal.addEventListener("abort", () => end(fail, new DOMException("stopped", "AbortError")), { once: true });
    worker.onerror = () => end(fail, new Error("The file could not be read."));
    worker.onmessage = ({ data }) => {
      // One by one: a spread of many would be too many arguments.
      if (data.rows) for (const row of data.rows) rows.push(row);
      else if (data.done) end(done, { name: file.name, rows, form: data.form, more: data.more });
      else if (data.failed) end(fail, new Error(`${file.name}: ${data.failed}`));
      else progress(data.total ? data.progress / data.total : 1, data.count);
    };
    worker.postMessage(file);
  });
}

const withTexts = (table) => table.rows.some((row) => row.texts);
const withForecasts = (table) => table.rows.some((row) => row.p);

/** Two files as one, by id, where each has what the other lacks; null where they do not belong together. */
export function join(one, other) {
  const [texts, forecasts] = withTexts(one) ? [one, other] : [other, one];
  if (!withTexts(texts) || withForecasts(texts) || withTexts(forecasts) || !withForecasts(forecasts)) return null;
  const byId = new Map(forecasts.rows.map((row) => [row.id, row]));
  let joined = 0;
  const rows = texts.rows.map((row) => {
    const found = byId.get(row.id);
    if (!found) return row;
    joined += 1;
    return { ...row, p: found.p, range: found.range, margin: found.margin, tie: found.tie, cut: found.cut, label: row.label >= 0 ? row.label : found.label, error: row.error ?? found.error };
  });
  return joined ? { name: `${texts.name} + ${forecasts.name}`, rows, form: { ...texts.form, forecasts: true }, more: one.more || other.more, joined } : null;
}

export const said = (row) => (row.p ? row.p.indexOf(Math.max(...row.p)) : -1);
export const loss = (row) => (row.p && row.label >= 0 ? -Math.log(Math.max(row.p[row.label], 1e-15)) : null);
/** The evidence for A, or, where a file has none, the log of the ratio of both probabilities. */
export const lean = (row) => row.margin ?? (row.p ? Math.log(Math.max(row.p[0], 1e-9) / Math.max(row.p[1], 1e-9)) : null);

const KEEP = {
  said: (row, value) => said(row) === Number(value),
  label: (row, value) => row.label === Number(value),
  state: (row, value) => ({
    right: row.label >= 0 && row.p && said(row) === row.label,
    wrong: row.label >= 0 && row.p && said(row) !== row.label,
    voted: row.vote >= 0,
    unvoted: row.vote < 0,
    cut: row.cut,
    error: row.error !== null,
    none: row.p === null && row.error === null,
  })[value],
};

const ORDERS = {
  file: null,
  worst: (row) => -(loss(row) ?? -1),
  unsure: (row) => (row.p ? Math.max(...row.p) : 2),
  a: (row) => -(lean(row) ?? -Infinity),
  b: (row) => lean(row) ?? Infinity,
};

function matches(row, words) {
  const has = (text) => text.toLowerCase().includes(words);
  return has(row.id) || row.models.some(has) || (row.error !== null && has(row.error)) || (row.texts?.some((column) => column.some(has)) ?? false);
}

const breath = () => new Promise((done) => setTimeout(done));

/** The rows that pass `wanted` ({search, said, label, state, order}), in order; null if `stopped()` became true meanwhile. */
export async function choose(rows, wanted, stopped) {
  const words = wanted.search.trim().toLowerCase();
  const tests = Object.entries(KEEP).filter(([name]) => wanted[name]).map(([name, test]) => (row) => test(row, wanted[name]));
  const kept = [];
  let began = performance.now();
  for (const row of rows) {
    if (tests.every((test) => test(row)) && (!words || matches(row, words))) kept.push(row);
    if (performance.now() - began > 30) {
      await breath();
      if (stopped()) return null;
      began = performance.now();
    }
  }
  const order = ORDERS[wanted.order];
  if (!order) return kept;
  return kept.map((row) => [order(row), row]).sort((one, other) => one[0] - other[0] || one[1].number - other[1].number).map(([, row]) => row);
}

/** Figures over all rows: counts, log loss beside the class prior's, accuracy (null without labels). */
export function measure(rows) {
  const figures = { rows: rows.length, forecast: 0, labelled: 0, texts: 0, faults: 0, measured: 0, loss: 0, right: 0, prior: null };
  const labels = [0, 0, 0];
  for (const row of rows) {
    figures.forecast += row.p !== null;
    figures.labelled += row.label >= 0;
    figures.texts += row.texts !== null;
    figures.faults += row.error !== null;
    const off = loss(row);
    if (off === null) continue;
    figures.measured += 1;
    figures.loss += off;
    figures.right += said(row) === row.label;
    labels[row.label] += 1;
  }
  const n = figures.measured;
  if (n) {
    figures.loss /= n;
    figures.prior = labels.reduce((sum, count) => sum - (count ? (count / n) * Math.log(count / n) : 0), 0);
  }
  return figures;
}

/** Wilson's 95 % interval of a share. */
export function wilson(count, n) {
  const z = 1.959964;
  const p = count / n;
  const middle = (p + (z * z) / (2 * n)) / (1 + (z * z) / n);
  const half = (z * Math.sqrt((p * (1 - p)) / n + (z * z) / (4 * n * n))) / (1 + (z * z) / n);
  return [Math.max(0, middle - half), Math.min(1, middle + half)];
}

/** Up to `bins` groups of equal size by the probability of `outcome`: {forecast, observed, low, high, n}. */
export function reliability(rows, outcome, bins = 10) {
  const points = rows.filter((row) => row.p && row.label >= 0).map((row) => [row.p[outcome], row.label === outcome]).sort((one, other) => one[0] - other[0]);
  const count = Math.min(bins, Math.floor(points.length / 10));
  return Array.from({ length: count }, (_, at) => {
    const group = points.slice(Math.floor((at * points.length) / count), Math.floor(((at + 1) * points.length) / count));
    const hits = group.filter(([, hit]) => hit).length;
    const [low, high] = wilson(hits, group.length);
    return { forecast: group.reduce((sum, [p]) => sum + p, 0) / group.length, observed: hits / group.length, low, high, n: group.length };
  });
}

/** The leans of rows in `bins` of equal width, symmetric about 0: {edge, width, counts}; the outermost take what lies beyond. */
export function histogram(rows, bins = 24) {
  const leans = rows.map(lean).filter((value) => value !== null);
  if (!leans.length) return null;
  const sizes = leans.map(Math.abs).sort((one, other) => one - other);
  const edge = Math.max(sizes[Math.floor(0.99 * (sizes.length - 1))] * 1.05, 0.1);
  const width = (2 * edge) / bins;
  const counts = Array(bins).fill(0);
  for (const value of leans) counts[Math.min(bins - 1, Math.max(0, Math.floor((value + edge) / width)))] += 1;
  return { edge, width, counts };
}

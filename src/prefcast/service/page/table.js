// Reads, joins, filters, sorts and measures the rows of a file.

import { askPatiently } from "./api.js";

const MOST = 100_000;
const CHARACTERS = 400_000_000;
const KEYS = ["a", "b", "tie"];
const PACKED = /\.(gz|zst|parquet)$/i;
const megabytes = (bytes) => `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`;

/** What is sent of a file: its bytes, packed if they are too many as they are. Throws an Error in words. */
async function bytesOf(file, most) {
  if (file.size <= most) return file;
  let size = file.size;
  if (!PACKED.test(file.name) && size < 20 * most) {
    const packed = await new Response(file.stream().pipeThrough(new CompressionStream("gzip"))).blob();
    if (packed.size <= most) return packed;
    size = packed.size;
  }
  throw new Error(`The file has ${megabytes(file.size)}${size < file.size ? `, packed ${megabytes(size)}` : ""}, and this server takes ${megabytes(most)} (prefcast serve --max-body). For such a file use the command: prefcast predict FILE -o forecasts.jsonl --with-text.`);
}

/**
 * A file's rows, read by the server: {name, rows, texts, cells, description, more}. `told(count, waits)` hears of the progress. `cells`
 * says what the cells hold, json or text; "" leaves that to the server. Throws an Error in words.
 */
export async function readFile(file, limits, cells, told, signal) {
  const ending = /(\.[a-z0-9]{1,12})?\.[a-z0-9]{1,12}$/i.exec(file.name)?.[0] ?? "";
  const rows = [];
  const table = { name: file.name, rows, cells, more: false };
  let characters = 0;
  try {
    const bytes = await bytesOf(file, limits?.body_bytes ?? Infinity);
    for (let first = 1; first && !table.more;) {
      const query = new URLSearchParams({ ending, first, ...(table.cells && { cells: table.cells }) });
      const answer = await askPatiently(`v1/rows?${query}`, bytes, signal, (wait) => told(rows.length, wait));
      for (const said of answer.rows) rows.push(rowOf(said));
      characters += answer.rows.reduce((sum, { prompt, response_a, response_b }) => sum + [prompt, response_a, response_b].flat().reduce((all, text) => all + (text?.length ?? 0), 0), 0);
      Object.assign(table, { texts: answer.texts, cells: answer.cells, description: answer.description });
      table.more = answer.next !== null && (rows.length >= MOST || characters >= CHARACTERS);
      if (rows.length > MOST) rows.length = MOST;
      first = answer.next;
      told(rows.length, 0);
    }
  } catch (error) {
    if (error.name !== "AbortError") error.message = `${file.name}: ${error.message}`;
    throw error;
  }
  return table;
}

/** A row of the page from one of the server. */
function rowOf({ row, id, prompt, response_a, response_b, model_a, model_b, label, probabilities: p, interval, margin, tie, truncated, error }) {
  const triple = (found) => found && KEYS.map((key) => found[key]);
  return { number: row, id, texts: prompt && [prompt, response_a, response_b], models: [model_a ?? "", model_b ?? ""], p: triple(p), range: triple(interval),
    margin, tie, label: KEYS.indexOf(label), cut: truncated === true, error: error && [error.field, error.message].filter(Boolean).join(" "), vote: -1 };
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
  return joined ? { name: `${texts.name} + ${forecasts.name}`, rows, texts: true, cells: texts.cells, description: texts.description, more: one.more || other.more, joined } : null;
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
  const figures = { rows: rows.length, forecast: 0, labelled: 0, texts: 0, faults: 0, votes: 0, models: 0, cut: 0, measured: 0, loss: 0, right: 0, prior: null };
  const labels = [0, 0, 0];
  for (const row of rows) {
    figures.forecast += row.p !== null;
    figures.labelled += row.label >= 0;
    figures.texts += row.texts !== null;
    figures.faults += row.error !== null;
    figures.votes += row.vote >= 0;
    figures.models += row.models.some(Boolean);
    figures.cut += row.cut;
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

// Forecasts the rows of a file through the server, some at a time. Waits if the server says so.

import { askPatiently } from "./api.js";
import { download } from "./dom.js";

export const WINNERS = ["winner_model_a", "winner_model_b", "winner_tie"];
const AT_ONCE = 32;

/** The next pairs that fit one request. */
function batchFrom(rows, at, limits) {
  const most = Math.min(AT_ONCE, limits?.pairs ?? AT_ONCE);
  const room = (limits?.body_bytes ?? 4_000_000) / 8;
  const batch = [];
  for (let size = 0; at < rows.length && batch.length < most; at += 1) {
    size += JSON.stringify(rows[at].texts).length;
    if (batch.length && size > room) break;
    batch.push(rows[at]);
  }
  return batch;
}

/** Gives each of `rows` its forecast. `told(done, waits)` is called with the progress. Throws Refused, or AbortError if stopped. */
export async function forecastRows(rows, limits, told, signal) {
  for (let at = 0; at < rows.length;) {
    const done = at;
    const batch = batchFrom(rows, at, limits);
    const pairs = batch.map(({ texts: [prompt, response_a, response_b] }) => ({ prompt, response_a, response_b }));
    const answer = await askPatiently("v1/forecast", { pairs }, signal, (wait) => told(done, wait));
    answer.forecasts.forEach((forecast, index) => take(batch[index], forecast));
    at += batch.length;
    told(at, 0);
  }
}

function take(row, forecast) {
  if (forecast.error) { row.error = [forecast.error.field, forecast.error.message].filter(Boolean).join(": "); return; }
  const { probabilities: p, interval } = forecast;
  row.p = [p.a, p.b, p.tie];
  row.range = interval && [interval.a, interval.b, interval.tie];
  row.margin = forecast.margin;
  row.tie = forecast.tie;
  row.cut = forecast.truncation?.truncated ?? false;
  row.read = forecast.truncation;
}

/** Saves the forecasts with texts, in the JSON Lines format of prefcast. */
export function saveForecasts(rows) {
  const lines = rows.filter((row) => row.p).map((row) => {
    const record = { id: row.id };
    WINNERS.forEach((name, at) => { record[name] = row.p[at]; });
    record.margin = row.margin;
    record.tie = row.tie;
    WINNERS.forEach((name, at) => { record[`${name}_low`] = row.range?.[at][0] ?? null; record[`${name}_high`] = row.range?.[at][1] ?? null; });
    record.label = row.label < 0 ? null : row.label;
    [record.model_a, record.model_b] = row.models.map((model) => model || null);
    record.error = null;
    if (row.texts) [record.prompt, record.response_a, record.response_b] = row.texts;
    return `${JSON.stringify(record)}\n`;
  });
  download("forecasts.jsonl", lines, "application/jsonl");
}

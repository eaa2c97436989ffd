// A record of a file -> a row of the table, as docs/formats.md says. A fault of a row becomes the error of that row.

export const WINNERS = ["winner_model_a", "winner_model_b", "winner_tie"];
const TEXTS = ["prompt", "response_a", "response_b"];
const WORDS = { model_a: 0, model_b: 1, tie: 2, "tie (bothbad)": 2, both_bad: 2, bothbad: 2 };

/** What a file with these columns holds: {texts, forecasts, labels}; throws an Error in words if it has other columns. */
export function shape(columns) {
  const has = (names) => names.every((name) => columns.includes(name));
  const texts = has(TEXTS);
  // Labels and forecasts have the same three columns. A file of forecasts has `margin` or `label` too, or no texts.
  const forecasts = has(WINNERS) && (!texts || columns.includes("margin") || columns.includes("label"));
  if (!texts && !(forecasts && columns.includes("id"))) {
    const found = columns.slice(0, 12).join(", ");
    throw new Error(`The columns are not those of pairs (prompt, response_a, response_b) nor of forecasts (id, ${WINNERS.join(", ")}). Found: ${found.slice(0, 300)}`);
  }
  return { texts, forecasts, labels: !forecasts && (has(WINNERS) || columns.includes("winner")) };
}

class Fault extends Error {}

const empty = (value) => value === undefined || value === null || value === "";

/** Row number `number` (from 1) of `record`, whose file has `form`. */
export function rowOf(record, form, number) {
  const row = { number, id: text(record.id) || String(number), texts: null, models: [text(record.model_a), text(record.model_b)],
    p: null, range: null, margin: null, tie: null, label: -1, cut: false, error: null, vote: -1 };
  try {
    if (form.texts) row.texts = texts(record);
    if (form.forecasts) forecasts(row, record);
    else row.label = label(record);
  } catch (error) {
    if (!(error instanceof Fault)) throw error;
    row.error = error.message;
  }
  return row;
}

// An object of a file may have a toString of its own.
const text = (value) => (empty(value) ? "" : typeof value === "object" ? JSON.stringify(value) : String(value));

function texts(record) {
  const found = TEXTS.map((name) => turns(record[name], name));
  if (found.some((column) => column.length !== found[0].length)) throw new Fault(`the numbers of turns differ: ${found.map((column, at) => `${TEXTS[at]} ${column.length}`).join(", ")}`);
  if (!found[0].length) throw new Fault("prompt has no turn");
  return found;
}

function turns(value, name) {
  let found = value;
  if (typeof value === "string") {
    try {
      found = JSON.parse(value);
    } catch {
      found = null;
    }
  }
  if (!Array.isArray(found)) throw new Fault(`${name} is not a JSON array of strings, one for each turn`);
  return found.map((turn) => {
    if (turn !== null && typeof turn !== "string") throw new Fault(`${name} has a turn that is not a text`);
    return turn ?? "";
  });
}

function number(value) {
  if (empty(value)) return null;
  const found = Number(text(value));
  return Number.isFinite(found) ? found : null;
}

function forecasts(row, record) {
  const p = WINNERS.map((name) => number(record[name]));
  if (p.includes(null)) throw new Fault("a probability is missing");
  const sum = p[0] + p[1] + p[2];
  if (p.some((value) => value < -1e-6 || value > 1 + 1e-6) || Math.abs(sum - 1) > 0.001) throw new Fault(`the probabilities ${p.join(", ")} do not sum to 1`);
  if (!empty(record.error)) throw new Fault(text(record.error));
  row.p = p.map((value) => Math.min(Math.max(value, 0), 1) / sum);
  row.margin = number(record.margin);
  row.tie = number(record.tie);
  const ends = WINNERS.map((name) => [number(record[`${name}_low`]), number(record[`${name}_high`])]);
  row.range = ends.flat().includes(null) ? null : ends;
  const said = text(record.label).replace(/\.0$/, "");
  if (said && !["0", "1", "2"].includes(said)) throw new Fault(`label is ${said.slice(0, 30)}; expected 0 (A), 1 (B) or 2 (tie)`);
  row.label = said ? Number(said) : -1;
  const [kept, all] = [number(record.characters_kept), number(record.characters)];
  row.cut = kept !== null && all !== null && kept < all;
}

const BITS = { 0: 0, 1: 1, "0.0": 0, "1.0": 1, false: 0, true: 1 };

function label(record) {
  const cells = WINNERS.map((name) => record[name]);
  let one = -1;
  if (!cells.every(empty)) {
    const bits = cells.map((cell) => BITS[text(cell).trim().toLowerCase()]);
    if (bits.includes(undefined) || bits[0] + bits[1] + bits[2] !== 1) throw new Fault(`${WINNERS.join(", ")} are ${cells.map((cell) => text(cell).slice(0, 20)).join(", ")}; expected exactly one 1 and two 0`);
    one = bits.indexOf(1);
  }
  if (empty(record.winner)) return one;
  const key = text(record.winner).trim().toLowerCase();
  if (!Object.hasOwn(WORDS, key)) throw new Fault(`winner is ${key.slice(0, 30)}; expected model_a, model_b or tie`);
  if (one >= 0 && one !== WORDS[key]) throw new Fault("winner and the three winner columns contradict each other");
  return WORDS[key];
}

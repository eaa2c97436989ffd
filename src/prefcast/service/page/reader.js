// A worker: reads a file in pieces, so that the page stays responsive, and posts its rows.

import { CsvParser } from "./csv.js";
import { rowOf, shape } from "./records.js";

const MOST = 100_000;
const CHARACTERS = 400_000_000;
const CELL = 32_000_000;
const BATCH = 500;

class Enough extends Error {}

class Rows {
  constructor() {
    this.form = null;
    this.columns = null;
    this.count = 0;
    this.rows = [];
    this.first = new Map();
  }

  add(record) {
    if (this.count === MOST) throw new Enough();
    this.count += 1;
    this.form ??= shape(Object.keys(record));
    const row = rowOf(record, this.form, this.count);
    const first = this.first.get(row.id);
    if (first === undefined) this.first.set(row.id, this.count);
    else row.error ??= `row ${first} has the same id`;
    this.put(row);
  }

  bad(problem) {
    if (this.count === MOST) throw new Enough();
    this.count += 1;
    const row = rowOf({}, { texts: false, forecasts: false, labels: false }, this.count);
    row.error = problem;
    this.put(row);
  }

  put(row) {
    this.rows.push(row);
    if (this.rows.length >= BATCH) this.post();
  }

  post() {
    postMessage({ rows: this.rows });
    this.rows = [];
  }

  csv(cells) {
    if (this.columns === null) {
      this.columns = cells.map((name) => name.trim());
      this.form = shape(this.columns);
    } else if (cells.length !== this.columns.length) this.bad(`has ${cells.length} cells; the header has ${this.columns.length}`);
    else this.add(Object.fromEntries(cells.map((cell, at) => [this.columns[at], cell])));
  }

  line(line) {
    if (!line.trim()) return;
    let record;
    try {
      record = JSON.parse(line);
    } catch {
      this.bad("is not a line of JSON");
      return;
    }
    if (record === null || typeof record !== "object" || Array.isArray(record)) { this.bad("is not a JSON object"); return; }
    // Numbers beyond 53 bits would lose digits; an id is kept as it stands.
    if (typeof record.id === "number" && !Number.isSafeInteger(record.id)) record.id = /"id"\s*:\s*([-+.\deE]+)/.exec(line)?.[1] ?? record.id;
    this.add(record);
  }
}

class Lines {
  constructor(line) { this.line = line; this.rest = ""; }

  push(piece) {
    const parts = (this.rest + piece).split("\n");
    this.rest = parts.pop();
    parts.forEach((part) => this.line(part));
  }

  end() {
    this.line(this.rest);
    return false;
  }
}

async function read(file) {
  const rows = new Rows();
  const name = file.name.toLowerCase();
  const packed = name.endsWith(".gz");
  const ending = (packed ? name.slice(0, -3) : name).split(".").pop();
  if (!["csv", "jsonl", "ndjson"].includes(ending)) throw new Error(`The page reads .csv and .jsonl, also as .gz. Of ${ending === "parquet" ? "a Parquet file" : "this file"}, prefcast predict can write a .jsonl: give it -o forecasts.jsonl --with-text.`);
  const parser = ending === "csv" ? new CsvParser((cells) => rows.csv(cells)) : new Lines((line) => rows.line(line));
  let done = 0;
  const counted = new TransformStream({ transform(piece, to) { done += piece.byteLength; to.enqueue(piece); } });
  let stream = file.stream().pipeThrough(counted);
  if (packed) stream = stream.pipeThrough(new DecompressionStream("gzip"));
  const reader = stream.pipeThrough(new TextDecoderStream("utf-8", { fatal: true })).getReader();
  let more = false;
  let characters = 0;
  try {
    for (let piece; !(piece = await reader.read()).done;) {
      parser.push(piece.value);
      if ((parser.cell ?? parser.rest).length > CELL) throw new Error("A cell or a line is longer than 32 million characters; a quote may not be closed.");
      characters += piece.value.length;
      if (characters > CHARACTERS) throw new Enough();
      postMessage({ progress: done, total: file.size, count: rows.count });
    }
    if (parser.end()) throw new Error("A quoted cell is not closed: the file was cut off, or a quote is missing.");
  } catch (error) {
    if (error instanceof Enough) more = true;
    else if (error instanceof TypeError) throw new Error(packed ? "The file is damaged, or it is not UTF-8." : "The file is not UTF-8.");
    else throw error;
    await reader.cancel().catch(() => {});
  }
  if (rows.count === 0) throw new Error("The file has no rows.");
  rows.post();
  postMessage({ done: true, form: rows.form ?? { texts: false, forecasts: false, labels: false }, more });
}

addEventListener("message", async (event) => {
  try {
    await read(event.data);
  } catch (error) {
    postMessage({ failed: error.message });
  }
});

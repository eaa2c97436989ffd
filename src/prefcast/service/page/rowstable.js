// One page of rows as a table; in a narrow window CSS makes a card of each row.

import { el, excerpt, signed, svg, visible } from "./dom.js";
import { lean } from "./table.js";
import { NAMES } from "./votes.js";

const KEYS = ["a", "b", "tie"];
const NOTE = 300;

function stack(p) {
  let from = 0;
  return svg("svg", { class: "stack", viewBox: "0 0 100 12", preserveAspectRatio: "none", "aria-hidden": "true" }, [0, 2, 1].map((outcome) => {
    const rect = svg("rect", { class: `fill ${KEYS[outcome]}`, x: (100 * from).toFixed(2), y: 0, width: (100 * p[outcome]).toFixed(2), height: 12 });
    from += p[outcome];
    return rect;
  }));
}

const note = (row) => [row.error && visible(row.error.length > NOTE ? `${row.error.slice(0, NOTE)}…` : row.error), row.cut && "not read whole"].filter(Boolean).join("; ");

/** The columns of a file with these `figures`: [head, class, cell]; what no row has is left out. */
function columnsOf(figures) {
  const model = (at) => [`model ${"AB"[at]}`, "model", (row) => excerpt(row.models[at], 40)];
  return [
    ...(figures.forecast ? [
      ["Forecast", "bars", (row) => row.p && stack(row.p)],
      ...[0, 1, 2].map((outcome) => [NAMES[outcome], "number", (row) => row.p && `${(100 * row.p[outcome]).toFixed(0)} %`]),
      ["margin", "number", (row) => { const at = lean(row); return at === null ? null : signed(at); }]] : []),
    ...(figures.labelled ? [["label", "", (row) => NAMES[row.label]]] : []),
    ...(figures.votes ? [["your vote", "", (row) => NAMES[row.vote]]] : []),
    ...(figures.models ? [model(0), model(1)] : []),
    ...(figures.texts ? [["prompt", "words", (row) => row.texts && excerpt(row.texts[0][0], 110)]] : []),
    ...(figures.faults || figures.cut ? [["note", "note", note]] : []),
  ];
}

/** `open(row)` is called when a row's id is pressed; `current` is the row that was open last. */
export function rowsTable(rows, figures, current, open) {
  const columns = columnsOf(figures);
  const head = (name, kind) => el("th", { scope: "col", role: "columnheader", class: kind || null }, name);
  const body = rows.map((row) => {
    const id = excerpt(row.id, 60);
    return el("tr", { role: "row", class: row.error ? "bad" : row === current ? "current" : null },
      el("th", { scope: "row", role: "rowheader", class: "id", dir: "auto" }, row.texts ? el("button", { type: "button", "data-row": row.number, onclick: () => open(row) }, id) : id),
      columns.map(([name, kind, cell]) => {
        const found = cell(row) || null;
        return el("td", { role: "cell", "data-name": name, dir: ["words", "note", "model"].includes(kind) ? "auto" : null, class: `${kind}${found ? "" : " none"}` }, found ?? (kind === "note" ? "" : "–"));
      }));
  });
  // A table that is drawn as cards would lose its roles.
  return el("div", { class: "holder", tabindex: "0", role: "region", "aria-label": "Rows" }, el("table", { class: "rows", role: "table" },
    el("thead", { role: "rowgroup" }, el("tr", { role: "row" }, head("id", "id"), columns.map(([name, kind]) => head(name, kind)))), el("tbody", { role: "rowgroup" }, body)));
}

// One page of rows as a table.

import { el, excerpt, signed, svg, visible } from "./dom.js";
import { lean } from "./table.js";
import { NAMES } from "./votes.js";

const KEYS = ["a", "b", "tie"];

function stack(p) {
  let from = 0;
  return svg("svg", { class: "stack", viewBox: "0 0 100 12", preserveAspectRatio: "none", "aria-hidden": "true" }, [0, 2, 1].map((outcome) => {
    const rect = svg("rect", { class: `fill ${KEYS[outcome]}`, x: (100 * from).toFixed(2), y: 0, width: (100 * p[outcome]).toFixed(2), height: 12 });
    from += p[outcome];
    return rect;
  }));
}

/** `open(row)` is called when a row's id is pressed; `current` is the row that was open last. */
export function rowsTable(rows, current, open) {
  const head = [["id", ""], ["Forecast", ""], ["A", "number"], ["B", "number"], ["tie", "number"], ["margin", "number"], ["label", ""], ["you", ""], ["prompt", ""], ["note", ""]];
  const body = rows.map((row) => {
    const id = excerpt(row.id, 60);
    const note = [row.error && visible(row.error.slice(0, 300)), row.cut && "not read whole"].filter(Boolean).join("; ");
    const at = lean(row);
    return el("tr", { class: row.error ? "bad" : row === current ? "current" : null },
      el("th", { scope: "row", class: "id" }, row.texts ? el("button", { type: "button", "data-row": row.number, onclick: () => open(row) }, id) : id),
      el("td", {}, row.p && stack(row.p)),
      [0, 1, 2].map((outcome) => el("td", { class: "number" }, row.p ? (100 * row.p[outcome]).toFixed(0) : "–")),
      el("td", { class: "number" }, at === null ? "–" : signed(at)),
      el("td", {}, row.label >= 0 ? NAMES[row.label] : "–"),
      el("td", {}, row.vote >= 0 ? NAMES[row.vote] : "–"),
      el("td", { class: "words" }, row.texts ? excerpt(row.texts[0][0], 110) : ""),
      el("td", { class: note ? "words" : null }, note));
  });
  return el("div", { class: "holder", tabindex: "0", role: "region", "aria-label": "Rows" }, el("table", { class: "rows" },
    el("thead", {}, el("tr", {}, head.map(([name, kind]) => el("th", { scope: "col", class: kind || null }, name)))), el("tbody", {}, body)));
}

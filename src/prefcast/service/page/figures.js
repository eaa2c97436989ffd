// The margin histogram and the reliability curve, in SVG; each with its numbers as a table.

import { counted, el, percent, svg, whole } from "./dom.js";
import { histogram, reliability } from "./table.js";

const WIDTH = 420;
const HEIGHT = 250;
const LEFT = 44;
const BOTTOM = 40;
const TOP = 12;
const RIGHT = 26;
const x = (part) => LEFT + part * (WIDTH - LEFT - RIGHT);
const y = (part) => HEIGHT - BOTTOM - part * (HEIGHT - BOTTOM - TOP);

const frame = (label, ...children) => svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label }, ...children);
const words = (text, at, down, anchor = "middle") => svg("text", { x: at, y: down, "text-anchor": anchor }, text);
const line = (kind, x1, y1, x2, y2) => svg("line", { class: kind, x1, y1, x2, y2 });

function numbers(head, rows) {
  return el("details", { class: "small" }, el("summary", {}, "The numbers"), el("div", { class: "sideways", tabindex: "0", role: "region", "aria-label": "The numbers of the figure" },
    el("table", {}, el("thead", {}, el("tr", {}, head.map((name) => el("th", { scope: "col" }, name)))),
      el("tbody", {}, rows.map((row) => el("tr", {}, row.map((cell) => el("td", {}, cell))))))));
}

/** How the margins lie; null where no row has a forecast. */
export function marginFigure(rows) {
  const found = histogram(rows);
  if (!found) return null;
  const { edge, width, counts } = found;
  const most = Math.max(...counts);
  const n = counts.reduce((sum, count) => sum + count, 0);
  const forA = counts.slice(counts.length / 2).reduce((sum, count) => sum + count, 0);
  const given = rows.some((row) => row.margin !== null);
  const bars = counts.map((count, at) => svg("rect", { class: `fill ${at < counts.length / 2 ? "b" : "a"}`,
    x: (x(at / counts.length) + 1).toFixed(1), width: ((WIDTH - LEFT - RIGHT) / counts.length - 2).toFixed(1),
    y: y(count / most).toFixed(1), height: (y(0) - y(count / most)).toFixed(1) }));
  return el("div", { class: "card figure" }, el("h3", {}, "Margins"),
    frame(`Histogram of ${counted(n, "margin")}: ${percent(forA / n)} lean to A.`,
      line("grid", x(0), y(0), x(1), y(0)), line("grid", x(0.5), y(0), x(0.5), y(1)), bars,
      words(whole(most), x(0) - 6, y(1) + 4, "end"), words("0", x(0) - 6, y(0) + 4, "end"),
      [0, 0.25, 0.5, 0.75, 1].map((part) => words(((2 * part - 1) * edge).toFixed(edge < 1 ? 2 : 1).replace("-", "−"), x(part), y(0) + 16)),
      words("← for B", x(0), HEIGHT - 6, "start"), words(given ? "margin" : "log of P(A) / P(B)", x(0.5), HEIGHT - 6), words("for A →", x(1), HEIGHT - 6, "end")),
    numbers(["from", "to", "rows"], counts.map((count, at) => [(at * width - edge).toFixed(2), ((at + 1) * width - edge).toFixed(2), whole(count)])));
}

const NAMES = ["A", "B", "tie"];
const KEYS = ["a", "b", "tie"];

function dot(outcome, at, down) {
  const [px, py] = [Number(at.toFixed(1)), Number(down.toFixed(1))];
  if (outcome === 0) return svg("circle", { class: "dot", cx: px, cy: py, r: 5 });
  if (outcome === 1) return svg("rect", { class: "dot", x: px - 4.5, y: py - 4.5, width: 9, height: 9 });
  return svg("path", { class: "dot", d: `M${px} ${py - 6}l6 11h-12z` });
}

/** How often outcomes came true, by how likely they were called; null where too few rows have labels. */
export function reliabilityFigure(rows) {
  const all = KEYS.map((_, outcome) => reliability(rows, outcome));
  if (!all[0].length) return null;
  const series = all.map((points, outcome) => svg("g", { class: `series ${KEYS[outcome]}` },
    points.map((point) => line("reach", x(point.forecast), y(point.low), x(point.forecast), y(point.high))),
    svg("polyline", { points: points.map((point) => `${x(point.forecast).toFixed(1)},${y(point.observed).toFixed(1)}`).join(" ") }),
    points.map((point) => dot(outcome, x(point.forecast), y(point.observed)))));
  const ticks = [0, 0.25, 0.5, 0.75, 1];
  return el("div", { class: "card figure" }, el("h3", {}, "Reliability"),
    frame("Reliability curve: how often A, B and a tie came true, by the probability that they were given. The numbers follow.",
      ticks.map((part) => [line("grid", x(0), y(part), x(1), y(part)), words(`${100 * part}`, x(0) - 6, y(part) + 4, "end"), words(`${100 * part} %`, x(part), y(0) + 16)]),
      line("ideal", x(0), y(0), x(1), y(1)), series, words("forecast", x(0.5), HEIGHT - 6)),
    el("ul", { class: "legend" }, NAMES.map((name, outcome) => el("li", {}, svg("svg", { class: `series ${KEYS[outcome]}`, viewBox: "0 0 40 16", "aria-hidden": "true" },
      svg("polyline", { points: "0,8 40,8", fill: "none", "stroke-width": 2 }), dot(outcome, 20, 8)), name)),
      el("li", { class: "quiet" }, "vertical lines: 95 %")),
    numbers(["outcome", "forecast", "came true", "95 %", "rows"], all.flatMap((points, outcome) => points.map((point) =>
      [NAMES[outcome], percent(point.forecast), percent(point.observed), `${(100 * point.low).toFixed(0)} to ${(100 * point.high).toFixed(0)}`, whole(point.n)]))));
}

// Draws a forecast: three bars with their intervals, both orders, lengths, what was read, and the influences.

import { counted, el, percent, points, signed, svg, visible, whole } from "./dom.js";
import { characters, wordCount } from "./texts.js";

// Above this, a pair is unlike the training pairs (UNLIKE in forecasts/predictions.py).
const UNLIKE = 2.5;

export const OUTCOMES = [["a", "A is preferred"], ["b", "B is preferred"], ["tie", "A tie"]];

/** The forecast in one sentence. */
export function sentence(forecast) {
  const { a, b, tie } = forecast.probabilities;
  return `Forecast: A ${percent(a)}, B ${percent(b)}, tie ${percent(tie)}.`;
}

/** The forecast in a line, for the folded panel. */
export function short({ probabilities }) {
  return OUTCOMES.map(([key]) => el("span", { class: `ink-${key}` }, `${key === "tie" ? "tie" : key.toUpperCase()} `, el("strong", {}, percent(probabilities[key]))));
}

/** The whole panel. `pair` holds the texts that were forecast. */
export function result(forecast, pair) {
  return [
    bars(forecast),
    orders(forecast),
    truncation(forecast.truncation),
    lengthTable(pair),
    influences(forecast),
  ];
}

function bars(forecast) {
  const { probabilities, interval } = forecast;
  const rows = OUTCOMES.map(([key, name]) => {
    const p = probabilities[key];
    const range = interval?.[key];
    const said = range ? `${(100 * range[0]).toFixed(1)} to ${(100 * range[1]).toFixed(1)}` : "";
    return el("div", { class: `outcome ${key}` },
      el("span", { class: "outcome-name" }, name),
      el("span", { class: "outcome-value" }, el("strong", {}, percent(p)), range && el("span", { class: "quiet" }, ` ${said}`)),
      drawnBar(p, range));
  });
  const level = interval ? `The line over each bar is the ${Math.round(100 * interval.level)} % interval: how far other labels for the fit could move this forecast.`
    : "This forecaster has no interval for its probabilities.";
  const unlike = forecast.unlike > UNLIKE && el("p", { class: "said warn" },
    `This pair is unlike the training pairs (${forecast.unlike.toFixed(1)}; a typical pair has 1). The forecast is less certain than usual.`);
  return el("div", { class: "card" }, rows, unlike, el("p", { class: "quiet small" }, level));
}

function drawnBar(p, range) {
  const x = (value) => (1000 * Math.min(Math.max(value, 0), 1)).toFixed(1);
  return svg("svg", { class: "probability", viewBox: "0 0 1000 40", preserveAspectRatio: "none", "aria-hidden": "true" },
    svg("rect", { class: "track", x: 0, y: 8, width: 1000, height: 24 }),
    svg("rect", { class: "fill", x: 0, y: 8, width: x(p), height: 24 }),
    range && [svg("line", { class: "whisker", x1: x(range[0]), x2: x(range[1]), y1: 20, y2: 20 }),
      range.map((end) => svg("line", { class: "whisker", x1: x(end), x2: x(end), y1: 11, y2: 29 }))]);
}

function orders(forecast) {
  if (!forecast.swapped) return null;
  const off = 100 * forecast.swapped.largest_difference;
  const amount = off === 0 ? "nothing" : off < 0.0001 ? "each probability by less than 0.0001 points" : `each probability by at most ${off.toFixed(off < 0.01 ? 4 : 2)} points`;
  const fine = off < 0.01;
  return el("p", { class: fine ? "said good" : "said warn" },
    el("span", { class: "sign", "aria-hidden": "true" }, fine ? "✓" : "!"),
    `Both orders were forecast: exchanging A and B changes ${amount}.`);
}

function truncation(read) {
  if (!read) return null;
  if (!read.truncated) return el("p", { class: "said good" }, el("span", { class: "sign", "aria-hidden": "true" }, "✓"), "Everything was read.");
  const turns = read.turns_kept < read.turns ? `, ${whole(read.turns_kept)} of ${counted(read.turns, "turn")}` : "";
  return el("p", { class: "said warn" }, el("span", { class: "sign", "aria-hidden": "true" }, "!"),
    `Not everything was read: ${whole(read.characters_kept)} of ${counted(read.characters, "character")}${turns}. The texts show which parts were not read.`);
}

function lengthTable(pair) {
  const texts = ["response_a", "response_b"].map((field) => pair[field]);
  const rows = [["Characters", characters], ["Words", wordCount]].map(([name, measure]) => {
    const [a, b] = texts.map((answers) => answers.reduce((sum, text) => sum + measure(text), 0));
    const most = Math.max(a, b, 1);
    const cell = (key, value) => el("td", {}, svg("svg", { class: `length ${key}`, viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" },
      svg("rect", { class: "fill", x: 0, y: 0, width: ((100 * value) / most).toFixed(1), height: 10 })), whole(value));
    return el("tr", {}, el("th", { scope: "row" }, name), cell("a", a), cell("b", b));
  });
  return el("div", { class: "card" }, el("table", { class: "lengths" }, el("caption", {}, "Lengths"),
    el("thead", {}, el("tr", {}, el("td"), el("th", { scope: "col" }, "A"), el("th", { scope: "col" }, "B"))), el("tbody", {}, rows)));
}

const SHOWN = 8;

function influences(forecast) {
  const found = forecast.influences;
  if (!found) return null;
  const evidence = el("p", { class: "quiet small" }, `Evidence before calibration: margin ${signed(forecast.margin)} (above 0 favours A), tie ${signed(forecast.tie)}.`);
  if (!found.length) return el("div", { class: "card" }, el("h3", {}, "What moved the forecast"), el("p", {}, "This forecaster cannot explain its forecasts."), evidence);
  const most = Math.max(...found.flatMap(({ change }) => Object.values(change).map(Math.abs)), 0.005);
  const rows = found.map((influence) => influenceRow(influence, most));
  const more = rows.slice(SHOWN);
  return el("div", { class: "card" },
    el("h3", {}, "What moved the forecast"),
    el("p", { class: "quiet small" }, "The change of each probability in percentage points, against the same forecast without that kind of feature."),
    el("div", { class: "push push-head quiet", "aria-hidden": "true" }, el("span"), el("span", { class: "sides" }, el("span", {}, "← less likely"), el("span", {}, "more likely →"))),
    el("ul", { class: "pushes" }, rows.slice(0, SHOWN)),
    more.length > 0 && el("details", {}, el("summary", {}, `${counted(more.length, "smaller one")}`), el("ul", { class: "pushes" }, more)),
    evidence);
}

function influenceRow(influence, most) {
  const { change, name, values } = influence;
  const bars = ["a", "b", "tie"].map((key, at) => {
    const width = 50 * Math.min(Math.abs(change[key]) / most, 1);
    return svg("rect", { class: `fill ${key}`, x: (change[key] < 0 ? 50 - width : 50).toFixed(2), y: 1 + 8 * at, width: width.toFixed(2), height: 6 });
  });
  const shown = (x) => (Number.isInteger(x) ? whole(x) : x.toPrecision(3));
  const said = values.slice(0, 4).map((value) => `${visible(value.name).replaceAll("_", " ")} ${shown(value.a)} / ${shown(value.b)}`).join(", ");
  return el("li", { class: "push" },
    el("span", { class: "push-name" }, visible(name)),
    svg("svg", { class: "signed", viewBox: "0 0 100 24", preserveAspectRatio: "none", "aria-hidden": "true" },
      svg("line", { class: "axis", x1: 50, x2: 50, y1: 0, y2: 24 }), bars),
    el("span", { class: "push-points" }, ["a", "b", "tie"].map((key) => el("span", {}, el("span", { class: `ink-${key}` }, key === "tie" ? "tie " : `${key.toUpperCase()} `), points(change[key]), " "))),
    said && el("span", { class: "quiet small push-values" }, `in A / in B: ${said}${values.length > 4 ? ", …" : ""}`));
}

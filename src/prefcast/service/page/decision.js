// The results of a vote, for whoever started it. The key behind the # of the address opens them; raters do not have it.

import { ask, Refused } from "./api.js";
import { byId, counted, download, el, percent, points, problem, say, svg, visible, whole } from "./dom.js";
import { wilson } from "./table.js";
import { theme } from "./theme.js";

const AGAIN = 3_000;
let drawn = "";

const key = () => location.hash.slice(1);
const get = (path, bytes = false) => {
  if (!/^[\w-]{1,100}$/.test(key())) throw new Refused("The results open with the address that prefcast printed when it started the page.", 403);
  return ask(path, undefined, undefined, { headers: { "Results-Key": key() }, bytes });
};
const name = (text) => el("bdi", {}, visible(text));

/** What is decided, as the parts of a heading. */
function verdict({ said, why, names, pairs, counted: n }) {
  if (why === "few") return ["Too few votes yet"];
  if (why === "waiting") return ["Not all pairs have votes yet"];
  if (said.verdict !== "none") return ["People prefer ", name(names[said.verdict === "right" ? 1 : 0])];
  if (said.more !== null) return [`Still open; about ${whole(said.more)} more pairs with votes would decide it`];
  return [n < pairs ? "Still open; the votes on these pairs may not decide it" : "Still open"];
}

function explanation({ said, why, pairs, counted: n }) {
  if (why === "few") return `The result needs votes on at least 5 pairs. It counts ${counted(n, "pair")} so far.`;
  if (why === "waiting") return `The result comes when all ${whole(pairs)} pairs have votes. Whoever looks at an interval again and again, and stops when it looks good, is wrong too often. A draw with --uniform has an interval that allows it.`;
  if (said.always) return `95 % interval that holds however often you look. You may stop as soon as it does not hold 0. It counts the first vote on each of ${counted(n, "pair")}, in the order of the draw, up to the first one that waits.`;
  return `95 % intervals, from votes and forecasts together, on the ${counted(n, "pair")} of the plan.`;
}

function rates({ said, names }) {
  const rows = [
    ["Win minus loss", said.net, points], said.win && [[name(names[1]), " preferred"], said.win, percent],
    said.loss && [[name(names[0]), " preferred"], said.loss, percent], said.tie && ["Tie", said.tie, percent]].filter(Boolean);
  return el("table", { class: "rates" }, el("thead", {}, el("tr", {}, el("th", {}, "Rate"), el("th", { class: "number" }, "Estimate"), el("th", { class: "number" }, "Interval"))),
    el("tbody", {}, rows.map(([title, { value, low, high }, shown]) => el("tr", {}, el("th", { scope: "row" }, title), el("td", { class: "number" }, shown(value)), el("td", { class: "number" }, `${shown(low)} to ${shown(high)}`)))));
}

function line({ said: { net }, names }) {
  const x = (value) => (500 + 500 * value).toFixed(1);
  return el("div", { class: "interval" },
    svg("svg", { viewBox: "0 0 1000 40", preserveAspectRatio: "none", "aria-hidden": "true" },
      svg("rect", { class: "track", x: 0, y: 14, width: 1000, height: 12 }),
      svg("line", { class: "axis", x1: 500, x2: 500, y1: 0, y2: 40 }),
      svg("line", { class: "whisker", x1: x(net.low), x2: x(net.high), y1: 20, y2: 20 }),
      [net.low, net.high].map((end) => svg("line", { class: "whisker", x1: x(end), x2: x(end), y1: 10, y2: 30 })),
      svg("rect", { class: "fill main", x: x(net.value) - 4, y: 8, width: 8, height: 24 })),
    el("p", { class: "sides small quiet" }, el("span", {}, "← ", name(names[0])), el("span", {}, name(names[1]), " →")));
}

function work({ pairs, voted, skipped, votes }) {
  const open = pairs - voted - skipped;
  return el("section", { class: "card", "aria-labelledby": "work" }, el("h2", { id: "work" }, `${whole(voted)} of ${counted(pairs, "pair")} have votes`),
    el("progress", { max: pairs, value: voted + skipped, "aria-label": "Pairs with votes" }),
    el("p", { class: "quiet" }, [counted(votes, "vote"), skipped && `${counted(skipped, "pair")} skipped by all raters`, open && `${counted(open, "pair")} still waiting`].filter(Boolean).join("; ")));
}

function agreement({ alike: { things, couples, same, alpha } }) {
  if (!couples) return "No pair has the votes of two raters yet.";
  const [low, high] = wilson(same, couples);
  return `On ${counted(things, "pair")} with the votes of two raters, the two say the same in ${percent(same / couples)} (95 %: ${(100 * low).toFixed(0)} to ${(100 * high).toFixed(0)}). ${alpha === null ? "" : `Krippendorff's alpha is ${alpha.toFixed(2).replace("-", "−")}: 1 is full agreement, 0 is chance.`}`;
}

function people(found) {
  const raters = Object.entries(found.raters);
  return el("section", { class: "card", "aria-labelledby": "people" }, el("h2", { id: "people" }, counted(raters.length, "rater")),
    raters.length > 0 && el("table", { class: "rates" }, el("thead", {}, el("tr", {}, el("th", {}, "Name"), el("th", { class: "number" }, "Votes"), el("th", { class: "number" }, "Skipped"))),
      el("tbody", {}, raters.map(([rater, [votes, skips]]) => el("tr", {}, el("th", { scope: "row" }, name(rater)), el("td", { class: "number" }, whole(votes)), el("td", { class: "number" }, whole(skips)))))),
    el("p", {}, agreement(found)));
}

async function save(file) {
  try {
    const bytes = await get("v1/votes/file", true);
    download(file, [bytes], "application/octet-stream");
  } catch (error) {
    byId("trouble").replaceChildren(problem(error.message));
  }
}

function draw(found) {
  const words = verdict(found);
  const focused = document.activeElement?.id;
  byId("results").replaceChildren(
    el("section", { class: "card wide", "aria-labelledby": "verdict" },
      el("h2", { id: "verdict" }, words),
      found.said && line(found), found.said && rates(found), el("p", { class: "quiet small" }, explanation(found))),
    work(found), people(found),
    el("div", { class: "bar wide" }, el("button", { type: "button", id: "save", onclick: () => save(found.file) }, `Save ${visible(found.file)}`),
      el("span", { class: "quiet small" }, "The page shows new votes by itself.")));
  if (focused) byId(focused)?.focus();
  say(byId("verdict").textContent);
}

async function refresh() {
  try {
    const found = await get("v1/results");
    const text = JSON.stringify(found);
    byId("trouble").replaceChildren();
    if (text !== drawn) draw(found);
    drawn = text;
  } catch (error) {
    byId("trouble").replaceChildren(problem(error instanceof Refused ? error.message : "The server does not answer."));
    return ![401, 403].includes(error.status);
  }
  return true;
}

/** Looks again while the page is in sight. */
async function watch() {
  if (document.hidden || await refresh()) setTimeout(watch, AGAIN);
}

theme();
addEventListener("hashchange", () => location.reload());
watch();

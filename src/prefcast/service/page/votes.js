// Votes of one's own on rows of a file: casting them, keeping them, and how often they agree with the forecaster.

import { WINNERS } from "./batch.js";
import { byId, counted, download, el, percent, say, visible, whole } from "./dom.js";
import { said, wilson } from "./table.js";

const COLUMNS = ["id", "model_a", "model_b", "prompt", "response_a", "response_b", ...WINNERS];
const CHOICES = [[0, "A", " is better", "A"], [2, "Tie", "", "T"], [1, "B", " is better", "B"]];
export const NAMES = ["A", "B", "tie"];

/** How one's votes and the forecasts agree, in a sentence. */
export function agreementSaid(rows) {
  const voted = rows.filter((row) => row.vote >= 0);
  const compared = voted.filter((row) => row.p);
  const n = compared.length;
  if (!voted.length) return "No votes yet.";
  if (!n) return `${counted(voted.length, "vote")}, none of them on a row with a forecast.`;
  const agree = compared.filter((row) => said(row) === row.vote).length;
  const [low, high] = wilson(agree, n);
  const given = compared.reduce((sum, row) => sum + row.p[row.vote], 0) / n;
  return `You agree with the forecaster in ${whole(agree)} of ${counted(n, "vote")}: ${percent(agree / n)} (95 %: ${(100 * low).toFixed(0)} to ${(100 * high).toFixed(0)}). It gave what you chose ${percent(given)} on average.`;
}

const quote = (cell) => (/[",\r\n]|^\s|\s$/.test(cell) ? `"${cell.replaceAll('"', '""')}"` : cell);
const csvLine = (cells) => `${cells.map((cell) => quote(String(cell))).join(",")}\n`;

/** Hands over votes as labelled pairs in the Kaggle schema. Two votes with one id come from two files of one name. */
function saveVotes(votes) {
  const lines = [csvLine(COLUMNS)];
  const ids = new Set();
  for (const { id, models, texts, vote } of votes) {
    let own = id;
    for (let count = 2; ids.has(own); count += 1) own = `${id} (${count})`;
    ids.add(own);
    lines.push(csvLine([own, ...models, ...texts.map((text) => JSON.stringify(text)), ...[0, 1, 2].map((outcome) => Number(outcome === vote))]));
  }
  download("votes.csv", lines, "text/csv");
}

/** The button that saves the votes among `rows`; null if there are none. */
export function saveButton(rows) {
  const votes = rows.filter(({ vote }) => vote >= 0);
  return votes.length ? el("button", { type: "button", class: "save-votes", onclick: () => saveVotes(votes) }, `Save ${counted(votes.length, "vote")}`) : null;
}

/** The button in the head of the page with the number of all votes, and the list behind it. */
export function drawKept(kept) {
  const button = byId("kept");
  button.hidden = kept.votes.size === 0;
  button.textContent = `Save votes (${whole(kept.votes.size)})`;
  button.onclick = () => byId("kept-dialog").showModal();
  byId("kept-note").textContent = kept.lasting
    ? `Your votes and the texts that they are about are kept in this browser alone (its IndexedDB for ${location.host}), until you delete them here or clear the data of this site. No server gets them.`
    : "This browser keeps nothing for this page, so your votes last until you close or reload it. Save them before that.";
  byId("kept-files").replaceChildren(...Array.from(kept.files, ([file, votes]) => el("li", { class: "bar" },
    el("span", { class: "kept-file", dir: "auto" }, visible(file)), el("span", { class: "quiet" }, counted(votes.length, "vote")),
    el("span", { class: "bar-end" }, saveButton(votes),
      el("button", { type: "button", class: "delete-votes", onclick: () => { if (confirm(`Delete ${counted(votes.length, "vote")} on ${visible(file)}?`)) kept.delete(file); } }, "Delete")))));
  if (!kept.votes.size) byId("kept-dialog").close();
}

/** The bar over a pair that was opened from a file. */
export class Voting {
  /** `home()` goes back to the table. */
  constructor(pairView, kept, home) {
    this.pairView = pairView;
    this.kept = kept;
    this.home = home;
    this.rows = [];
    this.on = false;
    this.keys = true;
    this.row = null;
    document.addEventListener("keydown", (event) => this.key(event));
    pairView.forecastSeen = (forecast) => this.seen(forecast);
  }

  /** `rows` are those to walk through; `table` is the file; with `on` one votes. */
  async open(rows, at, table, on) {
    this.rows = rows;
    this.table = table;
    this.on = on;
    const gone = this.go(at);
    byId("vote-title").focus();
    await gone;
  }

  async go(at) {
    if (at < 0 || at >= this.rows.length) return;
    this.at = at;
    this.row = this.rows[at];
    this.restore();
    scrollTo(0, 0);
    await this.reveal();
  }

  restore() {
    const [prompt, response_a, response_b] = this.row.texts;
    this.pairView.editor.set({ prompt, response_a, response_b }, "read");
    this.draw();
  }

  /** The forecast stays hidden only while one votes and has not voted on this row. */
  get hides() { return this.on && this.row.vote < 0; }

  async reveal() {
    if (this.hides) this.pairView.hide("You will see the forecast after your vote.");
    else await this.pairView.forecast();
  }

  /** A row without a forecast gets that of the server. */
  seen(forecast) {
    const { row } = this;
    if (!row || row.p || !this.unchanged()) return;
    const { a, b, tie } = forecast.probabilities;
    Object.assign(row, { p: [a, b, tie], margin: forecast.margin, tie: forecast.tie, cut: forecast.truncation?.truncated ?? false });
    this.draw();
  }

  unchanged() {
    const { pair } = this.pairView.editor;
    return JSON.stringify([pair.prompt, pair.response_a, pair.response_b]) === JSON.stringify(this.row.texts);
  }

  vote(outcome) {
    // A vote on texts that were edited or exchanged would stand on a row that it does not speak of.
    if (!this.unchanged()) {
      this.restore();
      byId("agreement").textContent = "You had changed the texts. They are those of the row again; now vote.";
      say(byId("agreement").textContent);
      this.pairView.hide("The texts are those of the row again.");
      return;
    }
    this.row.vote = this.row.vote === outcome ? -1 : outcome;
    this.kept.put(this.row, this.table.name);
    say(this.row.vote < 0 ? "Vote removed." : `Voted: ${NAMES[outcome]}. ${agreementSaid(this.table.rows)}`);
    this.reveal();
  }

  close() {
    this.row = null;
    byId("voting").hidden = true;
    byId("view-pair").classList.remove("votes");
  }

  key(event) {
    if (!this.row || byId("view-pair").hidden || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.closest?.("input:not([type=checkbox]), textarea, select, dialog")) return;
    const outcome = { a: 0, b: 1, t: 2 }[event.key.toLowerCase()];
    if (outcome !== undefined && this.on && this.keys) this.vote(outcome);
    else if (event.key === "ArrowRight" || event.key === "ArrowLeft") {
      if (event.target.closest?.("[role=tablist], [tabindex='0']:not(main)")) return;
      this.go(this.at + (event.key === "ArrowRight" ? 1 : -1));
    } else return;
    event.preventDefault();
  }

  draw() {
    const { row, at, rows } = this;
    const focused = document.activeElement?.dataset?.key;
    const check = (name, label, then) => el("label", { class: `small ${name}-label` },
      el("input", { type: "checkbox", "data-key": name, checked: this[name], onchange: (event) => { this[name] = event.target.checked; then?.(); } }), label);
    const turn = (key, to, ...words) => el("button", { type: "button", class: "plain", "data-key": key, "aria-label": `${key} row`, disabled: to < 0 || to >= rows.length, onclick: () => this.go(to) }, words);
    const long = (words) => el("span", { class: "long" }, words);
    const turns = [turn("previous", at - 1, "← ", long("Previous")), turn("next", at + 1, long("Next"), " →")];
    const facts = [["id", row.id], ...(this.hides ? [] : [["A", row.models[0]], ["B", row.models[1]], ["label", NAMES[row.label]], ["your vote", NAMES[row.vote]]])];
    byId("voting").replaceChildren(
      el("section", { class: "vote", "aria-labelledby": "vote-title" },
        el("div", { class: "bar" },
          el("h2", { id: "vote-title", tabindex: "-1", "data-key": "title" }, `Row ${whole(at + 1)} of ${whole(rows.length)}`),
          facts.filter(([, value]) => value).map(([name, value]) => el("span", { class: "fact" }, el("span", { class: "quiet" }, `${name} `), el("bdi", {}, visible(value)))),
          el("div", { class: "bar-end" }, check("on", "Vote yourself", () => { this.draw(); this.reveal(); }), !this.on && turns,
            el("button", { type: "button", "data-key": "back", onclick: this.home }, "Back to the file"))),
        this.on && el("div", { class: "bar" }, check("keys", "Keys A, T, B vote"), el("p", { class: "small quiet", id: "agreement" }, agreementSaid(this.table.rows)))),
      ...(this.on ? [el("div", { class: "choices", role: "group", "aria-label": "Your vote" }, turns[0],
        CHOICES.map(([outcome, name, more, key]) => el("button", {
          type: "button", "data-key": key, "aria-pressed": String(row.vote === outcome), "aria-label": name + more, onclick: () => this.vote(outcome) }, name, long(more), " ", el("kbd", { "aria-hidden": "true" }, key))),
        turns[1])] : []));
    byId("voting").hidden = false;
    byId("view-pair").classList.add("votes");
    if (focused) byId("voting").querySelector(`[data-key="${CSS.escape(focused)}"]:not(:disabled)`)?.focus();
  }
}

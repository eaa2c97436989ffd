// Votes of one's own on rows of a file, and how often they agree with the forecaster.

import { csvLine } from "./csv.js";
import { byId, counted, download, el, percent, say, visible, whole } from "./dom.js";
import { WINNERS } from "./records.js";
import { said, wilson } from "./table.js";

const COLUMNS = ["id", "model_a", "model_b", "prompt", "response_a", "response_b", ...WINNERS];
const CHOICES = [[0, "A is better", "A"], [2, "Tie", "T"], [1, "B is better", "B"]];
export const NAMES = ["A", "B", "tie"];

/** How one's votes and the forecasts agree: {votes, compared, agree, low, high, given}; `given` is the mean probability of what was voted. */
export function agreement(rows) {
  const voted = rows.filter((row) => row.vote >= 0);
  const compared = voted.filter((row) => row.p);
  const agree = compared.filter((row) => said(row) === row.vote).length;
  const [low, high] = compared.length ? wilson(agree, compared.length) : [0, 1];
  const given = compared.reduce((sum, row) => sum + row.p[row.vote], 0) / Math.max(compared.length, 1);
  return { votes: voted.length, compared: compared.length, agree, low, high, given };
}

export function agreementSaid(rows) {
  const { votes, compared, agree, low, high, given } = agreement(rows);
  if (!votes) return "No votes yet.";
  if (!compared) return `${counted(votes, "vote")}, none of them on a row with a forecast.`;
  return `You agree with the forecaster in ${whole(agree)} of ${counted(compared, "vote")}: ${percent(agree / compared)} (95 %: ${(100 * low).toFixed(0)} to ${(100 * high).toFixed(0)}). It gave what you chose ${percent(given)} on average.`;
}

/** Hands over the votes as labelled pairs in the Kaggle schema. */
export function saveVotes(rows) {
  const lines = [csvLine(COLUMNS)];
  for (const row of rows) {
    if (row.vote < 0) continue;
    lines.push(csvLine([row.id, ...row.models, ...row.texts.map((texts) => JSON.stringify(texts)), ...[0, 1, 2].map((outcome) => Number(outcome === row.vote))]));
  }
  download("votes.csv", lines, "text/csv");
}

/** The bar over a pair that was opened from a file. */
export class Voting {
  /** `home()` goes back to the table; `changed()` hears of each vote. */
  constructor(pairView, home, changed) {
    this.pairView = pairView;
    this.home = home;
    this.changed = changed;
    this.rows = [];
    this.blind = true;
    this.keys = true;
    this.row = null;
    document.addEventListener("keydown", (event) => this.key(event));
    pairView.forecastSeen = (forecast) => this.seen(forecast);
  }

  /** `rows` are those to walk through, `all` those of the file. */
  async open(rows, at, all) {
    this.rows = rows;
    this.all = all;
    await this.go(at);
    byId("vote-title").focus();
  }

  async go(at) {
    if (at < 0 || at >= this.rows.length) return;
    this.at = at;
    this.row = this.rows[at];
    this.restore();
    await this.reveal();
  }

  restore() {
    const [prompt, response_a, response_b] = this.row.texts;
    this.pairView.editor.set({ prompt, response_a, response_b });
    this.pairView.editor.mode = "read";
    this.pairView.editor.draw();
    this.draw();
  }

  async reveal() {
    if (this.blind && this.row.vote < 0) this.pairView.hide("You will see the forecast after your vote.");
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
    this.changed();
    this.draw();
    say(this.row.vote < 0 ? "Vote removed." : `Voted: ${NAMES[outcome]}. ${agreementSaid(this.all)}`);
    this.reveal();
  }

  close() {
    this.row = null;
    byId("voting").hidden = true;
    byId("view-pair").classList.remove("votes");
  }

  key(event) {
    if (!this.row || byId("view-pair").hidden || !this.keys || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.closest?.("input:not([type=checkbox]), textarea, select, dialog")) return;
    const outcome = { a: 0, b: 1, t: 2 }[event.key.toLowerCase()];
    if (outcome !== undefined) this.vote(outcome);
    else if (event.key === "ArrowRight" || event.key === "ArrowLeft") {
      if (event.target.closest?.("[role=tablist], [tabindex='0']:not(main)")) return;
      this.go(this.at + (event.key === "ArrowRight" ? 1 : -1));
    } else return;
    event.preventDefault();
  }

  draw() {
    const { row, at, rows } = this;
    const focused = document.activeElement?.dataset?.key;
    const check = (name, key, label, then) => el("label", { class: `small ${key}-label` }, el("input", { type: "checkbox", "data-key": key, checked: this[name], onchange: (event) => { this[name] = event.target.checked; then?.(); } }), label);
    const facts = [row.models.some(Boolean) && (!this.blind || row.vote >= 0) ? row.models.map(visible).join(" / ") : "", row.label >= 0 && (!this.blind || row.vote >= 0) ? `label: ${NAMES[row.label]}` : ""].filter(Boolean);
    byId("voting").replaceChildren(el("section", { class: "vote", "aria-labelledby": "vote-title" },
      el("div", { class: "bar" },
        el("h2", { id: "vote-title", tabindex: "-1" }, `Row ${whole(at + 1)} of ${whole(rows.length)}`),
        el("span", { class: "quiet" }, [`id ${visible(row.id)}`, ...facts].join(" · ")),
        el("div", { class: "bar-end" },
          el("button", { type: "button", "data-key": "back", onclick: this.home }, "Back"),
          el("button", { type: "button", "data-key": "previous", disabled: at === 0, onclick: () => this.go(at - 1) }, "Previous"),
          el("button", { type: "button", "data-key": "next", disabled: at + 1 === rows.length, onclick: () => this.go(at + 1) }, "Next"))),
      el("div", { class: "bar" }, el("div", { class: "choices", role: "group", "aria-label": "Your vote" }, CHOICES.map(([outcome, name, key]) => el("button", {
        type: "button", "data-key": key, "aria-pressed": String(row.vote === outcome), onclick: () => this.vote(outcome) }, name, " ", el("kbd", { "aria-hidden": "true" }, key))))),
      el("p", { class: "small", id: "agreement" }, agreementSaid(this.all)),
      el("div", { class: "bar" },
        check("blind", "blind", "Hide the forecast until I have voted", () => { this.draw(); this.reveal(); }),
        check("keys", "keys", "Keys A, T, B vote; ← and → turn the pages"))));
    byId("voting").hidden = false;
    byId("view-pair").classList.add("votes");
    if (focused) byId("voting").querySelector(`[data-key="${CSS.escape(focused)}"]:not(:disabled)`)?.focus();
  }
}

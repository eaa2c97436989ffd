// The voting page: a rater reads two answers in random order and says which is better. The next pair comes when the server
// has the vote on its disk; until then the vote is kept in this browser and is sent again.

import { ask, pause, Refused } from "./api.js";
import { byId, counted, el, problem, say, visible, whole } from "./dom.js";
import { rendered } from "./texts.js";
import { theme } from "./theme.js";
import { drop, keep, unsent } from "./unsent.js";

const NAME = "prefcast-rater";
const CHOICES = [["1", "A", " is better", "A"], ["tie", "Tie", "", "T"], ["2", "B", " is better", "B"], ["skip", "Skip", "", "S"], ["undo", "Take back", " the last", "U"]];
const AGAIN = 2;
// Milliseconds for which a new pair takes no vote, so that a double click does not vote on a pair that nobody read.
const UNREAD = 300;

const passing = (error) => !(error instanceof Refused) || [0, 408, 429].includes(error.status) || error.status >= 500;

/** Waits, but no longer than until the network is there again. */
async function wait(seconds) {
  const back = new AbortController();
  addEventListener("online", () => back.abort(), { once: true, signal: back.signal });
  await pause(seconds, back.signal).catch(() => {});
  back.abort();
}

class Voting {
  constructor() {
    this.standing = null;
    this.busy = false;
    byId("who").addEventListener("submit", (event) => { event.preventDefault(); this.enter(byId("name").value); });
    byId("rater").addEventListener("click", () => this.askName());
    document.addEventListener("keydown", (event) => this.key(event));
  }

  async start() {
    let name = null;
    try {
      name = localStorage.getItem(NAME);
    } catch { /* this browser keeps nothing */ }
    const lost = [];
    for (const message of unsent()) if (!await this.exchange(message)) lost.push(problem(this.notice));
    if (name) await this.enter(name);
    else this.askName();
    byId("trouble").append(...lost);
  }

  askName(fault = null) {
    byId("vote").hidden = true;
    byId("who").hidden = false;
    byId("rater").hidden = true;
    byId("counts").textContent = "";
    byId("name").value = this.rater ?? "";
    byId("trouble").replaceChildren(...(fault ? [problem(fault)] : []));
    byId("name").focus();
  }

  async enter(name) {
    this.rater = name;
    if (!await this.exchange({ rater: name })) return;
    this.rater = this.standing.rater;
    try {
      localStorage.setItem(NAME, this.rater);
    } catch { /* it is asked again after a reload */ }
    byId("who").hidden = true;
    byId("vote").hidden = false;
    byId("rater").hidden = false;
    byId("rater").replaceChildren(el("bdi", {}, visible(this.rater)), el("span", { class: "quiet" }, " change"));
    this.draw();
  }

  /** Sends a message until the server has answered it. True if it was taken; then `standing` is the answer. */
  async exchange(message) {
    this.busy = true;
    document.body.classList.add("sending");
    try {
      for (;;) {
        try {
          this.standing = await ask("v1/votes", message);
          if (message.vote) drop(message.ballot);
          byId("trouble").replaceChildren();
          return true;
        } catch (error) {
          if (!passing(error)) {
            if (message.vote && error.status !== 401) drop(message.ballot);
            this.refused(error, message);
            return false;
          }
          this.waits(error, message);
          await wait(AGAIN);
        }
      }
    } finally {
      this.busy = false;
      document.body.classList.remove("sending");
    }
  }

  waits(error, message) {
    const reason = error instanceof Refused ? error.message : "The server does not answer.";
    const kept = message.vote && message.vote !== "undo" ? " Your vote is kept in this browser." : "";
    byId("trouble").replaceChildren(el("p", { class: "said warn" }, el("span", { class: "sign", "aria-hidden": "true" }, "!"),
      el("span", {}, `${visible(reason).replace(/\.?$/, ".")}${kept} The page tries again every ${AGAIN} seconds.`)));
  }

  refused(error, message) {
    if (error.field === "rater" || (error.status === 401 && !this.standing)) {
      this.askName(error.status === 401 ? "Voting needs the token of this server." : `Name: ${error.message}`);
      return;
    }
    this.notice = message.vote ? `Your vote was not counted: ${visible(error.message)}.` : visible(error.message);
    byId("trouble").replaceChildren(problem(this.notice));
  }

  async vote(said) {
    const { shown, last } = this.standing;
    const ballot = said === "undo" ? last : shown?.ballot;
    if (this.busy || !ballot || (said !== "undo" && byId("choices").classList.contains("unread"))) return;
    const message = { rater: this.rater, ballot, vote: said };
    if (said !== "undo") keep(message);
    this.notice = null;
    if (!await this.exchange(message)) {
      const { notice } = this;
      if (!byId("who").hidden || !notice || !await this.exchange({ rater: this.rater })) return;
      byId("trouble").replaceChildren(problem(notice));
    }
    this.draw();
    const { voted, skipped, left } = this.standing;
    const done = { skip: "Skipped.", undo: "Taken back." }[said] ?? "Vote kept.";
    say(this.notice ?? `${done} ${counted(voted, "vote")}, ${whole(skipped)} skipped, ${whole(left)} left.`);
  }

  key(event) {
    if (byId("vote").hidden || event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.closest?.("input, textarea, select, dialog")) return;
    const choice = CHOICES.find(([, , , key]) => key === event.key.toUpperCase());
    if (!choice) return;
    event.preventDefault();
    this.vote(choice[0]);
  }

  draw() {
    const { shown, voted, skipped, left, last } = this.standing;
    byId("counts").textContent = `${counted(voted, "vote")}${skipped ? `, ${whole(skipped)} skipped` : ""}; ${counted(left, "pair")} left`;
    const title = shown ? "Which answer is better?" : "You are done: there is no pair left for you. Thank you.";
    byId("vote").replaceChildren(
      el("div", { class: "bar vote-head" }, el("h1", { id: "title", tabindex: "-1" }, title),
        el("progress", { max: voted + skipped + left || 1, value: voted + skipped, "aria-label": "Pairs that you have voted on" })),
      el("div", { class: "choices unread", id: "choices", role: "group", "aria-label": "Your vote" }, CHOICES.map(([said, name, more, key]) => (shown || said === "undo") && el("button", {
        type: "button", "data-said": said, class: ["skip", "undo"].includes(said) ? "plain" : null, "aria-keyshortcuts": key, disabled: said === "undo" && !last, onclick: () => this.vote(said) },
      name, el("span", { class: "long" }, more), " ", el("kbd", { "aria-hidden": "true" }, key)))),
      ...(shown ? this.texts(shown) : []));
    const choices = byId("choices");
    setTimeout(() => choices.classList.remove("unread"), UNREAD);
    scrollTo(0, 0);
    byId("title").focus({ preventScroll: true });
  }

  texts({ system, turns }) {
    const field = (name, title, text, at) => {
      const id = `${name}-${at}`;
      return el("div", { class: `field ${name}` }, el("div", { class: "bar field-head" }, el("h2", { id }, title)),
        el("div", { class: "text", role: "group", "aria-labelledby": id }, rendered(text, null)));
    };
    const number = (at) => (turns.length > 1 ? ` ${at + 1}` : "");
    return [
      system ? field("prompt", "Instructions to the assistant", system, "system") : null,
      ...turns.map(([prompt, one, other], at) => el("section", { class: "turn", "aria-label": turns.length > 1 ? `Turn ${at + 1}` : null },
        field("prompt", `Prompt${number(at)}`, prompt, at),
        el("div", { class: "answers" }, field("response_a", `Answer A${number(at) && `, turn${number(at)}`}`, one, at), field("response_b", `Answer B${number(at) && `, turn${number(at)}`}`, other, at)))),
    ].filter(Boolean);
  }
}

theme();
new Voting().start();

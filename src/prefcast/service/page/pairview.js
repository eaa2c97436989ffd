// The first view: one pair, its forecast, its link.

import { ask, Refused } from "./api.js";
import { byId, el, problem, say } from "./dom.js";
import { Editor } from "./editor.js";
import { result, sentence, short } from "./result.js";
import { pack, unpack } from "./share.js";

const EXAMPLE = {
  prompt: ["Why is the sky blue?", "And at sunset?"],
  response_a: [
    "Because air scatters **short waves** of light more than long ones (Rayleigh scattering):\n\n1. Sunlight holds all colours.\n2. Molecules of air scatter blue about *four times* as much as red.\n3. So blue reaches your eye from every part of the sky.",
    "Then the light comes a long way through the air. Most of the blue is scattered out of it, and what is left is `red` and orange.",
  ],
  response_b: [
    "The sky is blue because it reflects the ocean.",
    "At sunset the sun is lower, so the sky looks red and orange.",
  ],
};

/** The view of one pair. `forecastSeen(forecast)` is called with each forecast that was drawn. */
export class PairView {
  constructor() {
    this.editor = new Editor(() => this.stale());
    this.running = null;
    this.forecastSeen = () => {};
    byId("forecast").addEventListener("click", () => this.forecast());
    byId("share").addEventListener("click", () => this.share());
    byId("fold").addEventListener("click", () => {
      localStorage.setItem("prefcast-folded", String(byId("fold").getAttribute("aria-expanded") === "true"));
      this.fold();
    });
    this.fold();
    byId("example").addEventListener("click", () => { this.editor.set(EXAMPLE); this.forecast(); });
    this.drawEmpty();
  }

  /** Folds the forecast to one line, so that the answers have its room, or unfolds it. */
  fold() {
    const folded = localStorage.getItem("prefcast-folded") === "true";
    byId("view-pair").classList.toggle("folded-result", folded);
    byId("fold").setAttribute("aria-expanded", String(!folded));
    byId("fold").textContent = folded ? "Show details" : "Hide details";
    byId("result").hidden = folded;
    byId("result-line").hidden = !folded;
    this.editor.draw();
  }

  /** What is said in the place of the forecast while that is folded. */
  line(words) {
    byId("result-line").replaceChildren(...words);
  }

  drawEmpty() {
    this.line(["No forecast yet."]);
    byId("result").replaceChildren(el("div", { class: "card empty" },
      el("p", {}, "Write a prompt and two answers, then press Forecast."),
      el("p", { class: "quiet" }, "You will see the probabilities that people prefer A, prefer B or call it a tie, how certain they are, and what moved the forecast.")));
  }

  /** The texts changed, so the forecast does not belong to them any more. */
  stale() {
    this.running?.abort();
    byId("forecast").classList.remove("busy");
    byId("result").classList.remove("busy");
    if (location.hash.startsWith("#z=") || location.hash.startsWith("#j=")) history.replaceState(null, "", location.pathname + location.search);
    if (!this.shown) return;
    this.shown = false;
    if (this.editor.empty) { this.drawEmpty(); return; }
    byId("result").classList.add("stale");
    this.line(["The texts have changed since the forecast."]);
    byId("result").prepend(el("p", { class: "said warn" }, el("span", { class: "sign", "aria-hidden": "true" }, "!"), "The texts have changed since this forecast."));
  }

  hide(note) {
    this.running?.abort();
    this.shown = false;
    byId("result").classList.remove("stale");
    this.line([note]);
    byId("result").replaceChildren(el("div", { class: "card empty" }, el("p", {}, note)));
  }

  async forecast() {
    const { pair } = this.editor;
    if (this.editor.empty) {
      byId("result").replaceChildren(problem("There is nothing to forecast yet: write a prompt and two answers."));
      byId("prompt-0")?.focus();
      return;
    }
    this.running?.abort();
    const running = new AbortController();
    this.running = running;
    byId("forecast").classList.add("busy");
    byId("result").classList.add("busy");
    if (!byId("result").querySelector(".outcome")) byId("result").replaceChildren(el("div", { class: "card empty" }, el("p", {}, "Asking the forecaster …")));
    say("Asking the forecaster.");
    try {
      const forecast = await ask("v1/forecast", { ...pair, explain: true, both_orders: true }, running.signal);
      if (forecast.error) throw new Refused(forecast.error.message, 200, forecast.error.field);
      this.draw(forecast, pair);
    } catch (error) {
      if (error.name === "AbortError") return;
      if (!(error instanceof Refused)) throw error;
      this.fail(error);
    } finally {
      if (this.running === running) {
        this.running = null;
        byId("forecast").classList.remove("busy");
        byId("result").classList.remove("busy");
      }
    }
  }

  draw(forecast, pair) {
    const panel = byId("result");
    panel.classList.remove("stale");
    panel.replaceChildren(...result(forecast, pair).filter(Boolean));
    this.line(short(forecast));
    this.shown = true;
    this.editor.mark(forecast.truncation?.texts ?? []);
    say(sentence(forecast));
    this.forecastSeen(forecast);
    // In a narrow window the result is under the texts: scroll to it.
    if (window.innerWidth < 1100 && !byId("view-pair").classList.contains("votes")) byId("result-title").scrollIntoView({ block: "start" });
  }

  fail(error) {
    const wait = error.status === 429 ? ` The server is busy; try again in ${error.wait ?? 1} s.` : "";
    const field = error.field ? `${error.field}: ` : "";
    const what = error.status === 401 ? "The forecast needs the token of this server." : `${field}${error.message}${wait}`;
    byId("result").classList.remove("stale");
    this.line([what]);
    byId("result").replaceChildren(problem(what), el("button", { type: "button", onclick: () => this.forecast() }, "Try again"));
    this.shown = false;
  }

  async share() {
    const button = byId("share");
    try {
      if (this.editor.empty) throw new Error("There are no texts to share yet.");
      const fragment = await pack(this.editor.pair);
      history.replaceState(null, "", fragment);
      let copied = true;
      try {
        await navigator.clipboard.writeText(location.href);
      } catch {
        copied = false;
      }
      button.textContent = copied ? "Link copied" : "Link is in the address bar";
      say(`${copied ? "The link is copied." : "The link is in the address bar."} The link contains the texts.`);
      setTimeout(() => { button.textContent = "Copy link"; }, 4000);
    } catch (error) {
      byId("result").prepend(problem(error.message));
      byId("result").firstChild.scrollIntoView({ block: "nearest" });
    }
  }

  /** Opens the pair of the address, if it holds one. */
  async open() {
    try {
      const pair = await unpack(location.hash);
      if (!pair) return false;
      const { hash } = location;
      this.editor.set(pair, "read");
      history.replaceState(null, "", hash);
      await this.forecast();
      return true;
    } catch (error) {
      byId("result").replaceChildren(problem(error.message));
      return true;
    }
  }
}

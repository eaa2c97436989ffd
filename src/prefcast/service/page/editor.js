// The texts of one pair, to write, to read or to compare.

import { byId, el, excerpt } from "./dom.js";
import { cutNote, differences, rendered, size } from "./texts.js";

const FIELDS = ["prompt", "response_a", "response_b"];
const NAMES = { prompt: "Prompt", response_a: "Answer A", response_b: "Answer B" };
const empty = () => ({ prompt: "", response_a: "", response_b: "" });

// A text that is higher, in pixels, is folded.
const HIGHEST = 900;

/** The editor. `changed` is called after every change of a text. */
export class Editor {
  constructor(changed) {
    this.turns = [empty()];
    this.changed = changed;
    this.cuts = [];
    // What the reader has opened or closed: names of fields and numbers of turns.
    this.unfolded = new Set();
    this.closed = new Set();
    for (const radio of document.querySelectorAll("[name=mode]")) radio.addEventListener("change", () => this.draw());
    byId("wrap").addEventListener("click", () => {
      const wrap = byId("wrap").getAttribute("aria-pressed") !== "true";
      byId("wrap").setAttribute("aria-pressed", String(wrap));
      byId("turns").classList.toggle("wrap", wrap);
      this.draw();
    });
    byId("add-turn").addEventListener("click", () => {
      this.turns.push(empty());
      this.edited();
      this.mode = "write";
      this.draw();
      byId(`prompt-${this.turns.length - 1}`).focus();
    });
    byId("clear").addEventListener("click", () => { this.set({ prompt: [""], response_a: [""], response_b: [""] }, "write"); byId("prompt-0").focus(); });
    byId("exchange").addEventListener("click", () => {
      this.turns = this.turns.map((turn) => ({ prompt: turn.prompt, response_a: turn.response_b, response_b: turn.response_a }));
      this.edited();
      this.draw();
    });
    this.draw();
  }

  get mode() { return document.querySelector("[name=mode]:checked").value; }
  set mode(name) { document.querySelector(`[name=mode][value=${name}]`).checked = true; }

  /** {prompt, response_a, response_b}, each a list of texts. */
  get pair() {
    return Object.fromEntries(FIELDS.map((field) => [field, this.turns.map((turn) => turn[field])]));
  }

  get empty() { return this.turns.every((turn) => FIELDS.every((field) => !turn[field].trim())); }

  set(pair, mode = this.mode) {
    this.mode = mode;
    this.unfolded.clear();
    this.closed.clear();
    this.turns = pair.prompt.map((prompt, at) => ({ prompt, response_a: pair.response_a[at], response_b: pair.response_b[at] }));
    this.edited();
    this.draw();
  }

  /** Marks the parts that a forecast did not read. */
  mark(cuts) {
    this.cuts = cuts;
    if (this.mode === "write") this.showCuts();
    else this.draw();
  }

  edited() {
    this.cuts = [];
    this.changed();
  }

  cut(turn, field) { return this.cuts.find((cut) => cut.turn === turn && cut.field === field); }

  draw() {
    const { mode } = this;
    const notes = [];
    const made = this.turns.map((turn, at) => {
      const body = this.body(turn, at, mode, notes);
      if (this.turns.length === 1) return el("section", { class: "turn" }, body);
      if (mode !== "write") return this.foldable(turn, at, body);
      return el("section", { class: "turn", "aria-label": `Turn ${at + 1}` }, el("div", { class: "bar turn-head" }, el("h2", {}, `Turn ${at + 1}`),
        el("button", { type: "button", class: "plain", "aria-label": `Remove turn ${at + 1}`, onclick: () => this.remove(at) }, "Remove")), body);
    });
    byId("turns").replaceChildren(...made);
    byId("wrap").hidden = mode !== "read" || !byId("turns").querySelector("pre");
    for (const text of byId("turns").querySelectorAll(".text")) this.fold(text);
    const note = byId("mode-note");
    note.hidden = mode !== "difference";
    note.textContent = notes.length > 1 ? notes.map((text, at) => `Turn ${at + 1}: ${text}`).join(" ") : notes.join("");
    if (mode === "write") this.showCuts();
  }

  /** A turn that can be closed. */
  foldable(turn, at, body) {
    const toggled = (event) => { if (event.target.open) this.closed.delete(at); else this.closed.add(at); };
    return el("details", { class: "turn", open: !this.closed.has(at), ontoggle: toggled },
      el("summary", {}, el("h2", {}, `Turn ${at + 1}`), el("span", { class: "quiet small what", dir: "auto" }, excerpt(turn.prompt, 160))), el("div", { class: "turn-body" }, body));
  }

  /** Folds a text that is very long, unless its reader has unfolded it. */
  fold(text) {
    const name = text.getAttribute("aria-labelledby");
    if (text.scrollHeight <= HIGHEST) return;
    const set = (folded) => {
      text.classList.toggle("folded", folded);
      text.scrollTop = 0;
      button.setAttribute("aria-expanded", String(!folded));
      button.textContent = folded ? "Show all of it" : "Fold";
      if (folded) this.unfolded.delete(name);
      else this.unfolded.add(name);
    };
    const button = el("button", { type: "button", class: "plain fold", onclick: () => set(!text.classList.contains("folded")) });
    text.after(button);
    // Who goes on with the keyboard sees where they are.
    text.addEventListener("focusin", (event) => { if (event.target.matches(":focus-visible")) set(false); });
    set(!this.unfolded.has(name));
  }

  body(turn, at, mode, notes) {
    const compared = mode === "difference" ? differences(turn.response_a, turn.response_b) : null;
    if (compared) notes.push(compared.note);
    const field = (name) => {
      const id = `${name}-${at}`;
      const count = el("span", { class: "quiet count" }, size(turn[name]));
      const head = mode === "write" ? el("label", { for: id }, NAMES[name]) : el("h3", { id: `${id}-name` }, NAMES[name]);
      const content = mode === "write" ? this.area(turn, name, id, count)
        : el("div", { class: "text", role: "group", "aria-labelledby": `${id}-name` },
          compared && name !== "prompt" ? compared[name === "response_a" ? "a" : "b"] : rendered(turn[name], this.cut(at, name)));
      return el("div", { class: `field ${name}` }, el("div", { class: "bar field-head" }, head, count), content,
        mode === "write" && el("p", { class: "cut-note", id: `${id}-cut`, hidden: true }));
    };
    return [field("prompt"), el("div", { class: "answers" }, field("response_a"), field("response_b"))];
  }

  area(turn, name, id, count) {
    const area = el("textarea", { id, dir: "auto", spellcheck: "false", rows: name === "prompt" ? 2 : 6, "aria-describedby": `${id}-cut`,
      oninput: () => { turn[name] = area.value; count.textContent = size(turn[name]); this.edited(); this.showCuts(); } });
    area.value = turn[name];
    return area;
  }

  showCuts() {
    this.turns.forEach((_, at) => FIELDS.forEach((field) => {
      const note = byId(`${field}-${at}-cut`);
      const text = cutNote(this.cut(at, field));
      if (note) { note.hidden = text === null; note.textContent = text ?? ""; }
    }));
  }

  remove(at) {
    this.turns.splice(at, 1);
    this.edited();
    this.draw();
    (byId(`prompt-${Math.min(at, this.turns.length - 1)}`) ?? byId("add-turn")).focus();
  }
}

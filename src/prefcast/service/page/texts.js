// The texts of a pair, to be read: rendered, with what was not read marked, or their words compared.

import { compare, words } from "./diff.js";
import { counted, el, visible } from "./dom.js";
import { markdown } from "./markdown.js";

/** Code points, as the server counts. */
export function characters(text) {
  let pairs = 0;
  for (let at = 0; at < text.length - 1; at += 1) {
    if ((text.charCodeAt(at) & 0xfc00) === 0xd800 && (text.charCodeAt(at + 1) & 0xfc00) === 0xdc00) { pairs += 1; at += 1; }
  }
  return text.length - pairs;
}

export const wordCount = (text) => text.match(/\S+/g)?.length ?? 0;

export const size = (text) => `${counted(characters(text), "character")} · ${counted(wordCount(text), "word")}`;

/** The index in `text` of code point `count`. */
function index(text, count) {
  let at = 0;
  for (; count > 0 && at < text.length; count -= 1) at += text.codePointAt(at) > 0xffff ? 2 : 1;
  return at;
}

/** A text, rendered; `cut` ({characters, head, tail}) says what of it was not read. */
export function rendered(text, cut) {
  if (!text.trim()) return [el("p", { class: "quiet", dir: "ltr" }, text ? "(only white space)" : "(empty)")];
  if (!cut) return markdown(text);
  const from = index(text, cut.head);
  const to = index(text, cut.characters - cut.tail);
  const unread = el("details", { class: "unread" },
    el("summary", {}, `Not read by the forecaster: ${counted(cut.characters - cut.head - cut.tail, "character")}`),
    el("div", { dir: "auto" }, visible(text.slice(from, to))));
  return [cut.head ? markdown(text.slice(0, from)) : [], unread, cut.tail ? markdown(text.slice(to)) : []].flat();
}

/** One sentence about a cut, or null. */
export function cutNote(cut) {
  if (!cut) return null;
  const { characters: all, head, tail } = cut;
  if (!head && !tail) return `Not read by the forecaster: all ${counted(all, "character")}.`;
  const parts = [head ? `first ${head.toLocaleString("en")}` : "", tail ? `last ${tail.toLocaleString("en")}` : ""].filter(Boolean);
  return `Only the ${parts.join(" and ")} of ${counted(all, "character")} were read by the forecaster.`;
}

/** Both texts with the words that only one of them has marked: {a, b: nodes, note}. */
export function differences(a, b) {
  const [left, right] = [visible(a), visible(b)];
  const [inLeft, inRight] = [words(left), words(right)];
  const shared = compare(inLeft.map((word) => word.text), inRight.map((word) => word.text));
  const count = shared.a.filter(Boolean).length;
  const share = (total) => (total ? `${Math.round((100 * count) / total)} %` : "0 %");
  const note = left === right ? "The answers are the same."
    : `${share(inLeft.length)} of the words of A are in B too, ${share(inRight.length)} of those of B in A${shared.exact ? ", in the same order" : ""}.`
      + (shared.exact ? "" : " The answers are too long or too different to be compared in order: marked is what the other does not have at all.");
  return { a: marked(left, inLeft, shared.a), b: marked(right, inRight, shared.b), note };
}

// A block between fences, or code within a line.
const CODE = /^ {0,3}(`{3,}|~{3,})[^\n]*\n(?:[^]*?^ {0,3}\1[`~]*[ \t]*$\n?|[^]*)|`[^`\n]{1,400}`/gm;
const CODES = 2_000;

function marked(text, found, shared) {
  // Where the text changes between plain and marked.
  const edges = [];
  for (let at = 0; at < found.length;) {
    if (shared[at]) { at += 1; continue; }
    const start = found[at].from;
    while (at < found.length && !shared[at]) at += 1;
    edges.push(start, found[at - 1].to);
  }
  let next = 0;
  const cut = (from, to) => {
    const made = [];
    while (from < to) {
      const end = Math.min(edges[next] ?? to, to);
      if (end > from) made.push(next % 2 ? el("mark", {}, text.slice(from, end)) : text.slice(from, end));
      if (end === edges[next]) next += 1;
      from = end;
    }
    return made;
  };
  const made = [];
  let from = 0;
  CODE.lastIndex = 0;
  for (let match, count = 0; count < CODES && (match = CODE.exec(text)); count += 1) {
    made.push(cut(from, match.index), el("code", { class: match[1] ? "block" : null, dir: match[1] ? "ltr" : null }, cut(match.index, CODE.lastIndex)));
    from = CODE.lastIndex;
  }
  made.push(cut(from, text.length));
  return el("div", { class: "compared", dir: "auto" }, made);
}

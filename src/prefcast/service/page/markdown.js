// A small, safe Markdown: builds nodes, never HTML. Links only to http, https and mailto; images stay words.
// What it does not know stays text. Every search has a bound, so that no text takes long.

import { el, visible } from "./dom.js";

const DEPTH = 6;
const NODES = 20_000;
const REACH = 4_000;
const SAFE = new Set(["http:", "https:", "mailto:"]);

/** `text` as a list of nodes. */
export function markdown(text) {
  const budget = { left: NODES };
  return blocks(visible(text).split("\n"), 0, budget);
}

const FENCE = /^ {0,3}(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})[ \t]+(.*)$/;
const RULE = /^ {0,3}([-*_])[ \t]*(?:\1[ \t]*){2,}$/;
const ITEM = /^( {0,7})([-*+]|\d{1,9}[.)])(?:[ \t]+(.*)|)$/;
const QUOTE = /^ {0,3}> ?(.*)$/;
const ROW_RULE = /^ {0,3}\|?[ \t]*:?-+:?[ \t]*(\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/;

function blocks(lines, depth, budget) {
  const made = [];
  // A list, a quote or a table takes the direction of its first text. A browser looks only at texts without a direction of their own.
  const dir = depth ? null : "auto";
  for (let at = 0; at < lines.length;) {
    const line = lines[at];
    let match;
    if (!line.trim()) at += 1;
    else if (budget.left <= 0 || depth > DEPTH) {
      made.push(el("p", { class: "lines", dir }, lines.slice(at).join("\n")));
      break;
    } else if ((match = FENCE.exec(line))) at = fence(lines, at, match, made, budget);
    else if ((match = HEADING.exec(line))) {
      made.push(el("p", { class: `heading h${match[1].length}`, dir }, inline(match[2].replace(/[ \t]#+[ \t]*$/, ""), budget)));
      at += 1;
    } else if (RULE.test(line)) { made.push(el("hr")); at += 1; }
    else if (QUOTE.test(line)) at = quote(lines, at, made, depth, budget);
    else if (ITEM.test(line)) at = list(lines, at, made, depth, budget);
    else if (line.includes("|") && at + 1 < lines.length && lines[at + 1].includes("-") && lines[at + 1].length < 1000 && ROW_RULE.test(lines[at + 1])) {
      at = table(lines, at, made, budget);
    } else at = paragraph(lines, at, made, budget, dir);
    budget.left -= 1;
  }
  return made;
}

function fence(lines, at, match, made, budget) {
  const mark = match[1];
  const held = [];
  for (at += 1; at < lines.length; at += 1) {
    const line = lines[at].trim();
    if (line.startsWith(mark) && line === mark[0].repeat(line.length)) break;
    held.push(lines[at]);
  }
  const language = match[2].trim().split(/\s/)[0].slice(0, 30);
  const label = `Code${language ? `, ${language}` : ""}`;
  made.push(el("pre", { dir: "ltr", tabindex: "0", role: "region", "aria-label": label, "data-language": language || null }, el("code", {}, held.join("\n"))));
  budget.left -= 2;
  return at + 1;
}

function quote(lines, at, made, depth, budget) {
  const held = [];
  for (let match; at < lines.length && (match = QUOTE.exec(lines[at])); at += 1) held.push(match[1]);
  made.push(el("blockquote", { dir: "auto" }, blocks(held, depth + 1, budget)));
  return at;
}

function list(lines, at, made, depth, budget) {
  const [, indent, mark] = ITEM.exec(lines[at]);
  const ordered = /\d/.test(mark);
  const node = ordered ? el("ol", { start: parseInt(mark, 10) === 1 ? null : parseInt(mark, 10) }) : el("ul");
  while (at < lines.length) {
    const match = ITEM.exec(lines[at]);
    if (!match || match[1].length > indent.length + 3 || /\d/.test(match[2]) !== ordered || RULE.test(lines[at])) break;
    const held = [match[3] ?? ""];
    const inner = match[1].length + 2;
    let blank = false;
    for (at += 1; at < lines.length; at += 1) {
      const line = lines[at];
      const margin = line.length - line.trimStart().length;
      if (!line.trim()) { blank = true; held.push(""); continue; }
      if (margin >= inner) held.push(line.slice(inner));
      else if (!blank && !ITEM.test(line) && !FENCE.test(line) && !HEADING.test(line)) held.push(line.trim());
      else break;
      blank = false;
    }
    node.append(el("li", {}, blocks(held, depth + 1, budget)));
    budget.left -= 1;
    if (budget.left <= 0) break;
  }
  node.dir = "auto";
  made.push(node);
  return at;
}

const cells = (line) => line.trim().replace(/^\||\|$/g, "").split("|").slice(0, 50);

function table(lines, at, made, budget) {
  const head = el("tr", {}, cells(lines[at]).map((cell) => el("th", {}, inline(cell.trim(), budget))));
  const body = el("tbody");
  for (at += 2; at < lines.length && lines[at].includes("|") && budget.left > 0; at += 1) {
    const row = cells(lines[at]);
    body.append(el("tr", {}, row.map((cell) => el("td", {}, inline(cell.trim(), budget)))));
    budget.left -= row.length + 1;
  }
  made.push(el("div", { class: "sideways", tabindex: "0", role: "region", "aria-label": "Table" }, el("table", { dir: "auto" }, el("thead", {}, head), body)));
  return at;
}

function paragraph(lines, at, made, budget, dir) {
  const held = [];
  for (; at < lines.length; at += 1) {
    const line = lines[at];
    if (!line.trim() || (held.length && (FENCE.test(line) || HEADING.test(line) || QUOTE.test(line) || ITEM.test(line)))) break;
    held.push(line.trim());
  }
  made.push(el("p", { class: "lines", dir }, inline(held.join("\n"), budget)));
  return at;
}

const ESCAPED = /[\\`*_{}[\]()#+\-.!~|>]/;
const PLAIN = /[\\`*_[!~h]/g;

/** Code, strong, emphasis, strike, links, bare addresses; the rest is text. */
function inline(text, budget, depth = 0) {
  const made = [];
  let from = 0;
  const missing = new Map();
  const keep = (until) => { if (until > from) made.push(text.slice(from, until)); };
  // The next `mark` from `at` on, within reach, or -1; a stretch that was searched in vain is not searched again.
  const find = (mark, at) => {
    const gap = missing.get(mark);
    const within = gap && at >= gap[0] && at <= gap[1];
    const start = within ? gap[1] : at;
    const found = start < at + REACH ? text.slice(start, at + REACH).indexOf(mark) : -1;
    if (found >= 0) return start + found;
    missing.set(mark, [within ? gap[0] : at, Math.max(start, at + REACH - mark.length + 1)]);
    return -1;
  };
  const put = (node, until) => { made.push(node); from = until; budget.left -= 1; };
  for (let at = 0; at < text.length && budget.left > 0 && depth <= DEPTH;) {
    PLAIN.lastIndex = at;
    const next = PLAIN.exec(text);
    if (!next) break;
    at = next.index;
    const c = text[at];
    let end;
    if (c === "\\" && ESCAPED.test(text[at + 1] ?? "")) { keep(at); from = at + 1; at += 2; continue; }
    if (c === "`") {
      const mark = /^`{1,8}/.exec(text.slice(at, at + 9))[0];
      end = find(mark, at + mark.length);
      if (end > 0) { keep(at); put(el("code", {}, text.slice(at + mark.length, end).trim()), end + mark.length); at = from; continue; }
      at += mark.length;
      continue;
    }
    if ((c === "*" || c === "_" || c === "~") && (end = emphasis(text, at, c, find))) {
      const [tag, mark, close] = end;
      keep(at);
      put(el(tag, {}, inline(text.slice(at + mark, close), budget, depth + 1)), close + mark);
      at = from;
      continue;
    }
    if (c === "[" || (c === "!" && text[at + 1] === "[")) {
      const link = bracket(text, at, c === "!", find);
      if (link) { keep(at); put(linked(link, budget, depth), link.end); at = from; continue; }
    }
    if (c === "h" && (at === 0 || /[\s(<[]/.test(text[at - 1])) && /^https?:\/\//.test(text.slice(at, at + 8))) {
      const bare = /^[^\s<>"'`]{1,2000}/.exec(text.slice(at, at + 2000))[0].replace(/[.,;:!?)\]*_]+$/, "");
      keep(at);
      put(anchor(bare, [bare]) ?? bare, at + bare.length);
      at = from;
      continue;
    }
    at += 1;
  }
  keep(text.length);
  return made;
}

/** [tag, length of the mark, place of the closing mark], or null. */
function emphasis(text, at, c, find) {
  const double = text[at + 1] === c;
  if (c === "~" && !double) return null;
  const mark = double ? c + c : c;
  const after = at + mark.length;
  if (!text[after] || /\s/.test(text[after]) || text[after] === c) return null;
  if (c === "_" && at > 0 && /[\p{L}\p{N}]/u.test(text[at - 1])) return null;
  const close = find(mark, after);
  if (close < 0 || /\s/.test(text[close - 1])) return null;
  if (c === "_" && /[\p{L}\p{N}]/u.test(text[close + mark.length] ?? "")) return null;
  return [c === "~" ? "s" : double ? "strong" : "em", mark.length, close];
}

/** [label](target) or ![label](target) at `at`, or null. */
function bracket(text, at, image, find) {
  const start = at + (image ? 2 : 1);
  const middle = find("](", start);
  if (middle < 0 || text.slice(start, middle).includes("\n\n")) return null;
  const close = find(")", middle + 2);
  if (close < 0) return null;
  const target = text.slice(middle + 2, close).trim().split(/\s+/)[0].replace(/^<|>$/g, "");
  return { image, label: text.slice(start, middle), target, end: close + 1 };
}

function linked(link, budget, depth) {
  if (link.image) return el("span", { class: "image" }, `[image: ${link.label || "without words"}]`);
  const made = anchor(link.target, inline(link.label, budget, depth + 1));
  return made ?? el("span", { class: "image" }, `${link.label} [link not shown: ${link.target.slice(0, 200)}]`);
}

/** A link, or null if its address is not one of the safe kinds. */
function anchor(target, children) {
  let address;
  try {
    address = new URL(target);
  } catch {
    return null;
  }
  if (!SAFE.has(address.protocol)) return null;
  const properties = { href: address.href, title: address.href.slice(0, 300), target: "_blank", rel: "noopener noreferrer nofollow" };
  // A link without a word could be followed by nobody's will.
  const node = el("a", properties, children);
  if (!node.textContent.trim()) node.append(address.href.slice(0, 200));
  // No link within a link.
  for (const inner of node.querySelectorAll("a")) inner.replaceWith(...inner.childNodes);
  return node;
}

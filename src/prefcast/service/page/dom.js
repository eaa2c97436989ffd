// Elements without innerHTML: every text becomes a text node.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, properties, children) {
  // One by one: a spread of very many would be too many arguments. Before dir="auto", which a browser works out anew for each child.
  for (const child of children.flat(Infinity)) if (child !== null && child !== undefined && child !== false) node.append(child);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  return node;
}

/** An element; `on...` properties are listeners, null and false leave an attribute out, children are nodes or texts. */
export function el(tag, properties = {}, ...children) {
  return fill(document.createElement(tag), properties, children);
}

/** The same in SVG. */
export function svg(tag, properties = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), properties, children);
}

export const byId = (id) => document.getElementById(id);

/** Says a sentence to who cannot see the page change. */
export function say(text) {
  byId("live").textContent = text;
}

// Controls (but tab and line end), and what turns, joins or hides text.
const UNSEEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]/g;

/** `text` with what cannot be seen written out, such as \x1b. */
export function visible(text) {
  return text.replace(/\r\n?/g, "\n").replace(UNSEEN, (c) => {
    const code = c.charCodeAt(0).toString(16);
    return code.length > 2 ? `\\u${code.padStart(4, "0")}` : `\\x${code.padStart(2, "0")}`;
  });
}

/** On one line, at most `size` characters. */
export function excerpt(text, size) {
  const line = visible(text.slice(0, 4 * size).replace(/\s+/g, " ")).trim();
  return line.length > size || text.length > 4 * size ? `${line.slice(0, size)}…` : line;
}

export const percent = (p) => `${(100 * p).toFixed(1)} %`;
export const points = (p) => `${p < 0 ? "−" : "+"}${Math.abs(100 * p).toFixed(1)}`;
export const whole = (n) => n.toLocaleString("en");
export const counted = (n, one, many = `${one}s`) => `${whole(n)} ${n === 1 ? one : many}`;
export const signed = (x) => `${x < 0 ? "−" : "+"}${Math.abs(x).toFixed(2)}`;

/** Hands a file to the person. */
export function download(name, parts, type) {
  const address = URL.createObjectURL(new Blob(parts, { type }));
  const link = el("a", { href: address, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}

/** A problem as a paragraph that is announced. */
export function problem(text) {
  return el("p", { class: "problem", role: "alert" }, visible(text));
}

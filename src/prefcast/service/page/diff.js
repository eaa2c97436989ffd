// The words that two texts share in the same order: Myers' O(ND) algorithm ("An O(ND) Difference Algorithm and Its
// Variations", 1986), with a bound on the work.

const WORD = /[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}]|[\p{L}\p{M}\p{N}_]+(?:['’][\p{L}]+)?|[^\s]/gu;
const WORDS = 20_000;
const EDITS = 3_000;

/** The words of a text, each with where it begins and ends. */
export function words(text) {
  return Array.from(text.matchAll(WORD), (match) => ({ text: match[0], from: match.index, to: match.index + match[0].length }));
}

/**
 * Which words of `a` and `b` are shared: {a: [bool], b: [bool], exact}. `exact` is false where the texts were too
 * long or too different: then a word counts as shared if the other text has it anywhere, as often.
 */
export function compare(a, b) {
  let head = 0;
  while (head < a.length && head < b.length && a[head] === b[head]) head += 1;
  let tail = 0;
  while (tail < a.length - head && tail < b.length - head && a[a.length - 1 - tail] === b[b.length - 1 - tail]) tail += 1;
  const left = a.slice(head, a.length - tail);
  const right = b.slice(head, b.length - tail);
  const middle = left.length + right.length > 2 * WORDS ? null : myers(left, right);
  const [inA, inB] = middle ?? bags(left, right);
  const around = (inner) => [...Array(head).fill(true), ...inner, ...Array(tail).fill(true)];
  return { a: around(inA), b: around(inB), exact: middle !== null };
}

function myers(a, b) {
  const n = a.length;
  const m = b.length;
  const most = Math.min(n + m, EDITS);
  const reached = new Int32Array(2 * most + 3);
  const middle = most + 1;
  const rounds = [];
  for (let d = 0; d <= most; d += 1) {
    for (let k = -d; k <= d; k += 2) {
      const down = k === -d || (k !== d && reached[middle + k - 1] < reached[middle + k + 1]);
      let x = down ? reached[middle + k + 1] : reached[middle + k - 1] + 1;
      while (x < n && x - k < m && x - k >= 0 && a[x] === b[x - k]) x += 1;
      reached[middle + k] = x;
      if (x >= n && x - k >= m) return back(rounds, d, k, n, m);
    }
    rounds.push(reached.slice(middle - d, middle + d + 1));
  }
  return null;
}

/** Walks from the end to the beginning; rounds[d] holds how far each diagonal from -d to d came in d edits. */
function back(rounds, d, k, n, m) {
  const inA = Array(n).fill(false);
  const inB = Array(m).fill(false);
  let x = n;
  for (; d > 0; d -= 1) {
    const before = rounds[d - 1];
    const at = (diagonal) => (Math.abs(diagonal) <= d - 1 ? before[diagonal + d - 1] : -1);
    const down = k === -d || (k !== d && at(k - 1) < at(k + 1));
    const from = down ? at(k + 1) : at(k - 1) + 1;
    while (x > from) { x -= 1; inA[x] = true; inB[x - k] = true; }
    k += down ? 1 : -1;
    x = down ? from : from - 1;
  }
  while (x > 0) { x -= 1; inA[x] = true; inB[x - k] = true; }
  return [inA, inB];
}

function bags(a, b) {
  const mark = (these, others) => {
    const left = new Map();
    for (const word of others) left.set(word, (left.get(word) ?? 0) + 1);
    return these.map((word) => {
      const count = left.get(word) ?? 0;
      left.set(word, count - 1);
      return count > 0;
    });
  };
  return [mark(a, b), mark(b, a)];
}

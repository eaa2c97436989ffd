// A pair as the fragment of an address. Browsers do not send a fragment to servers.

const LONGEST = 32_000;
const UNPACKED = 2_000_000;
// As many as the server takes; a small link could hold hundreds of thousands, each with three fields.
const TURNS = 256;

const toBase64 = (bytes) => {
  let text = "";
  for (let at = 0; at < bytes.length; at += 0x8000) text += String.fromCharCode(...bytes.subarray(at, at + 0x8000));
  return btoa(text).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
};
const fromBase64 = (text) => Uint8Array.from(atob(text.replaceAll("-", "+").replaceAll("_", "/")), (c) => c.charCodeAt(0));

async function through(bytes, transform, most = Infinity) {
  const reader = new Blob([bytes]).stream().pipeThrough(transform).getReader();
  const parts = [];
  let size = 0;
  for (let piece; !(piece = await reader.read()).done;) {
    size += piece.value.length;
    if (size > most) { await reader.cancel(); throw new Error("The link holds more text than this page takes."); }
    parts.push(piece.value);
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

/** The fragment for {prompt, response_a, response_b}, lists of texts; throws an Error in words if it gets too long. */
export async function pack(pair) {
  const bytes = new TextEncoder().encode(JSON.stringify([pair.prompt, pair.response_a, pair.response_b]));
  const packs = typeof CompressionStream === "function";
  const fragment = packs ? `#z=${toBase64(await through(bytes, new CompressionStream("deflate-raw")))}` : `#j=${toBase64(bytes)}`;
  if (fragment.length > LONGEST) {
    throw new Error(`These texts make a link of ${fragment.length.toLocaleString("en")} characters; at most ${LONGEST.toLocaleString("en")} work everywhere. Shorten them, or share them as a file.`);
  }
  return fragment;
}

/** The pair of a fragment, or null if it has none; throws an Error in words if it is broken. */
export async function unpack(fragment) {
  const match = /^#([zj])=([A-Za-z0-9_-]+)$/.exec(fragment);
  if (!match) {
    if (/^#[zj]=/.test(fragment)) throw new Error("The link is damaged: a part is missing or was changed.");
    return null;
  }
  try {
    if (fragment.length > 2 * LONGEST) throw new Error("The link is longer than this page takes.");
    let bytes = fromBase64(match[2]);
    if (match[1] === "z") bytes = await through(bytes, new DecompressionStream("deflate-raw"), UNPACKED);
    const columns = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
    const good = Array.isArray(columns) && columns.length === 3 && columns.every((column) => Array.isArray(column)
      && column.length === columns[0].length && column.length > 0 && column.every((text) => typeof text === "string"));
    if (!good) throw new TypeError("not a pair");
    if (columns[0].length > TURNS) throw new Error(`The link holds ${columns[0].length.toLocaleString("en")} turns; this page takes at most ${TURNS}.`);
    return { prompt: columns[0], response_a: columns[1], response_b: columns[2] };
  } catch (error) {
    if (error.message.startsWith("The link")) throw error;
    throw new Error("The link is damaged: a part is missing or was changed.");
  }
}

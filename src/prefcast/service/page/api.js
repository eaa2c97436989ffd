// The server's routes. A token lives in sessionStorage only.

import { byId } from "./dom.js";

const KEY = "prefcast-token";

/** A refusal or a failure, in words for a person. `status` is 0 if no answer came. `wait` is the seconds of Retry-After, or null. */
export class Refused extends Error {
  constructor(message, status, field = "", wait = null) {
    super(message);
    this.status = status;
    this.field = field;
    this.wait = wait;
  }
}

const address = (path) => new URL(path, document.baseURI);

async function send(path, body, signal, more) {
  const token = sessionStorage.getItem(KEY);
  const headers = { Accept: "application/json", ...more };
  if (body !== undefined) headers["Content-Type"] = body instanceof Blob ? "application/octet-stream" : "application/json";
  // A header cannot hold other characters, so such a token is wrong: the server asks again.
  if (token && /^[\x21-\x7e]+$/.test(token)) headers.Authorization = `Bearer ${token}`;
  try {
    return await fetch(address(path), {
      method: body === undefined ? "GET" : "POST", headers, body, signal,
      cache: "no-store", credentials: "omit", redirect: "error", referrerPolicy: "no-referrer",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("The server does not answer. Is prefcast still running?", 0);
  }
}

async function refusal(response) {
  let detail = {};
  try {
    detail = (await response.json()).error ?? {};
  } catch { /* not JSON: only the status is known */ }
  const header = response.headers.get("Retry-After");
  const wait = header && /^\d+$/.test(header) ? Number(header) : null;
  const message = detail.message || `The server answered ${response.status}.`;
  return new Refused(message, response.status, detail.field ?? "", wait);
}

/** Waits `seconds`. Rejects at once if `signal` aborts. */
export function pause(seconds, signal) {
  return new Promise((done, fail) => {
    const stop = () => { clearTimeout(timer); fail(new DOMException("stopped", "AbortError")); };
    const timer = setTimeout(() => { signal?.removeEventListener("abort", stop); done(); }, 1000 * seconds);
    if (signal?.aborted) stop();
    signal?.addEventListener("abort", stop, { once: true });
  });
}

/** GET (without content) or POST, of JSON or of a Blob's bytes. Asks for the token if the server wants one. `headers` are sent too;
 * with `bytes` the answer is a Blob. Throws Refused. */
export async function ask(path, content, signal, { headers = {}, bytes = false } = {}) {
  const body = content === undefined || content instanceof Blob ? content : JSON.stringify(content);
  for (;;) {
    const response = await send(path, body, signal, headers);
    if (response.ok) return bytes ? response.blob() : response.json();
    const error = await refusal(response);
    if (error.status !== 401 || !(await askToken())) throw error;
  }
}

const PATIENCE = 20;

/** As `ask`, but waits if the server is busy; `waits(seconds)` hears of it. */
export async function askPatiently(path, content, signal, waits) {
  for (let refused = 0; ; refused += 1) {
    try {
      return await ask(path, content, signal);
    } catch (error) {
      if (!(error instanceof Refused) || ![429, 503].includes(error.status) || refused === PATIENCE) throw error;
      const wait = error.wait ?? 2;
      waits(wait);
      await pause(wait, signal);
    }
  }
}

let asking = null;

function askToken() {
  asking ??= new Promise((done) => {
    const dialog = byId("ask-token");
    const field = byId("token");
    const wrong = sessionStorage.getItem(KEY) !== null;
    if (wrong) byId("token-note").textContent = "That was not the token of this server. The token is the one that prefcast serve was started with.";
    field.value = "";
    let entered = false;
    byId("token-form").onsubmit = () => { entered = field.value.trim() !== ""; };
    dialog.onclose = () => {
      if (entered) sessionStorage.setItem(KEY, field.value.trim());
      field.value = "";
      asking = null;
      done(entered);
    };
    dialog.showModal();
    field.focus();
  });
  return asking;
}

// Votes that the server has not confirmed yet. They stay in this browser over a reload.

const KEY = "prefcast-unsent-votes";

function all() {
  try {
    const found = JSON.parse(localStorage.getItem(KEY) ?? "[]");
    return Array.isArray(found) ? found.filter((one) => typeof one?.ballot === "string" && typeof one.rater === "string" && typeof one.vote === "string") : [];
  } catch {
    return [];
  }
}

function write(votes) {
  try {
    localStorage.setItem(KEY, JSON.stringify(votes));
  } catch { /* this browser keeps nothing: the vote lives as long as the page */ }
}

const others = (ballot) => all().filter((one) => one.ballot !== ballot);

/** The votes that wait, as messages for the server. */
export const unsent = all;
export const keep = (message) => write([...others(message.ballot), message]);
export const drop = (ballot) => write(others(ballot));

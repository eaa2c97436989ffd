// The votes of this browser. They stay in it (IndexedDB) until they are deleted; no server gets them.

const NAME = "votes";
const keyOf = ({ id, texts }) => JSON.stringify([id, texts]);
const settled = (asked) => new Promise((done, fail) => { asked.onsuccess = () => done(asked.result); asked.onerror = () => fail(asked.error); });

export class Kept {
  constructor(changed) {
    this.votes = new Map();
    this.changed = changed;
    this.store = null;
    this.loaded = this.load();
  }

  async load() {
    await null;
    try {
      const asked = indexedDB.open("prefcast", 1);
      asked.onupgradeneeded = () => asked.result.createObjectStore(NAME, { keyPath: "key" });
      this.store = await settled(asked);
      for (const vote of await settled(this.store.transaction(NAME).objectStore(NAME).getAll())) this.votes.set(vote.key, vote);
    } catch {
      // A browser may forbid it: then the votes last as long as the page.
      this.store = null;
    }
    this.changed();
  }

  /** Whether votes outlast the page. */
  get lasting() { return this.store !== null; }

  write(change) {
    if (this.store) {
      const done = this.store.transaction(NAME, "readwrite");
      change(done.objectStore(NAME));
      done.onabort = () => { this.store = null; this.changed(); };
    }
    this.changed();
  }

  /** Gives rows the votes that they have here. */
  apply(rows) {
    const ids = new Set(Array.from(this.votes.values(), ({ id }) => id));
    for (const row of rows) row.vote = row.texts && ids.has(row.id) ? this.votes.get(keyOf(row))?.vote ?? -1 : -1;
  }

  /** Keeps the vote of a row of the file called `file`, or forgets it if it is -1. */
  put(row, file) {
    const vote = { key: keyOf(row), file, id: row.id, models: row.models, texts: row.texts, vote: row.vote };
    if (row.vote < 0) this.votes.delete(vote.key);
    else this.votes.set(vote.key, vote);
    this.write((votes) => (row.vote < 0 ? votes.delete(vote.key) : votes.put(vote)));
  }

  /** The votes by the name of their file. */
  get files() { return Map.groupBy(this.votes.values(), ({ file }) => file); }

  delete(file) {
    const gone = this.files.get(file) ?? [];
    for (const { key } of gone) this.votes.delete(key);
    this.write((votes) => gone.forEach(({ key }) => votes.delete(key)));
  }
}

// CSV as RFC 4180 has it, in pieces: quoted cells may hold commas, line ends and doubled quotes.

/** Calls `row(cells)` for each row, the header too; lines without anything are left out. */
export class CsvParser {
  constructor(row) {
    this.row = row;
    this.cells = [];
    this.cell = "";
    this.quoted = false;
    this.closed = false;
    this.rest = "";
  }

  push(piece, last = false) {
    const text = this.rest + piece;
    const special = /[",\r\n]/g;
    let at = 0;
    this.rest = "";
    while (at < text.length) {
      if (this.quoted) {
        const end = text.indexOf('"', at);
        if (end < 0) { this.cell += text.slice(at); return; }
        this.cell += text.slice(at, end);
        if (end + 1 === text.length && !last) { this.rest = '"'; return; }
        if (text[end + 1] === '"') { this.cell += '"'; at = end + 2; continue; }
        this.quoted = false;
        this.closed = true;
        at = end + 1;
        continue;
      }
      special.lastIndex = at;
      const match = special.exec(text);
      if (!match) { this.cell += text.slice(at); return; }
      this.cell += text.slice(at, match.index);
      at = match.index + 1;
      if (match[0] === '"') {
        if (this.cell === "" && !this.closed) this.quoted = true;
        else this.cell += '"';
      } else if (match[0] === ",") this.endCell();
      else {
        if (match[0] === "\r") {
          if (at === text.length && !last) { this.rest = "\r"; return; }
          if (text[at] === "\n") at += 1;
        }
        this.endRow();
      }
    }
  }

  /** The end of the file; says whether a quote was left open. */
  end() {
    this.push("", true);
    const open = this.quoted;
    this.endRow();
    return open;
  }

  endCell() {
    this.cells.push(this.cell);
    this.cell = "";
    this.closed = false;
  }

  endRow() {
    if (this.cells.length || this.cell || this.closed) {
      this.endCell();
      this.row(this.cells);
    }
    this.cells = [];
    this.quoted = false;
  }
}

const quote = (cell) => (/[",\r\n]|^\s|\s$/.test(cell) ? `"${cell.replaceAll('"', '""')}"` : cell);

/** One line of CSV, with its line end. */
export const csvLine = (cells) => `${cells.map((cell) => quote(String(cell))).join(",")}\n`;

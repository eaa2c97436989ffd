// The second view: the rows of a file, with figures, filters and votes.

import { forecastRows, saveForecasts } from "./batch.js";
import { byId, counted, el, percent, problem, say, visible, whole } from "./dom.js";
import { marginFigure, reliabilityFigure } from "./figures.js";
import { rowsTable } from "./rowstable.js";
import { Kept } from "./kept.js";
import { choose, join, loss, measure, readFile } from "./table.js";
import { agreementSaid, drawKept, NAMES, saveButton, Voting } from "./votes.js";

const PAGE = 50;
const busy = (waits) => (waits ? `; the server is busy, the next try is in ${waits} s` : "");
const ALL = { search: "", said: "", label: "", state: "", order: "file" };

export class FileView {
  /** `limits` is a promise of the server's limits; `show(view)` changes the view. */
  constructor(pairView, limits, show) {
    this.limits = limits;
    this.show = show;
    this.table = null;
    this.running = null;
    this.kept = new Kept(() => this.votesChanged());
    this.voting = new Voting(pairView, this.kept, () => this.home());
    this.accept();
  }

  accept() {
    const drop = byId("drop");
    const view = byId("view-file");
    const input = byId("file");
    input.addEventListener("change", () => { this.load([...input.files]); input.value = ""; });
    // On the whole page, so that a file that is dropped beside the field does not replace the page.
    for (const name of ["dragover", "dragleave", "drop"]) {
      document.addEventListener(name, (event) => {
        if (name !== "dragleave") event.preventDefault();
        drop.classList.toggle("over", name === "dragover" && !view.hidden);
        if (name === "drop" && event.dataTransfer.files.length) {
          this.show("file");
          this.load([...event.dataTransfer.files]);
        }
      });
    }
  }

  votesChanged() {
    drawKept(this.kept);
    if (!this.table) return;
    this.kept.apply(this.table.rows);
    if (this.voting.row) this.voting.draw();
    this.shown();
  }

  /** Reads files; `cells` says what their cells hold, or nothing. */
  async load(files, cells = "") {
    this.running?.abort();
    const running = new AbortController();
    this.running = running;
    byId("file-problem").replaceChildren();
    try {
      // Two files are joined. One file is joined to the open one, if it has what that lacks.
      let table = files.length > 1 || cells ? null : this.table;
      await this.kept.loaded;
      for (const file of files.slice(0, 2)) {
        const bar = this.progress(`Reading ${visible(file.name)}`, () => running.abort());
        const read = await readFile(file, await this.limits, cells, (count, waits) => bar(null, `${counted(count, "row")}${busy(waits)}`), running.signal);
        table = (table && join(table, read)) ?? read;
      }
      this.voting.close();
      this.kept.apply(table.rows);
      this.table = table;
      this.files = files;
      this.wanted = { ...ALL };
      this.draw();
      say(`${table.name}: ${counted(table.rows.length, "row")} loaded.`);
    } catch (error) {
      if (error.name !== "AbortError") byId("file-problem").replaceChildren(problem(error.message));
    } finally {
      if (this.running === running) { this.running = null; byId("loading").hidden = true; }
    }
  }

  /** Shows a progress bar with a stop button; returns the function that moves it. */
  progress(label, stop) {
    const bar = el("progress", { max: 1, "aria-label": label });
    const text = el("span", { class: "quiet" });
    byId("loading").replaceChildren(el("span", {}, label), bar, text, el("button", { type: "button", onclick: stop }, "Stop"));
    byId("loading").hidden = false;
    return (part, words) => { if (part !== null) bar.value = part; text.textContent = words; };
  }

  draw() {
    byId("drop").classList.add("small-drop");
    this.parts = Object.fromEntries(["facts", "figures", "filters", "rows"].map((name) => [name, el("div", { id: `file-${name}` })]));
    byId("file-view").replaceChildren(...Object.values(this.parts));
    this.parts.tasks = el("div", { class: "bar", id: "file-tasks" });
    byId("file-view").hidden = false;
    this.drawFacts();
    this.drawFilters();
    this.choose();
  }

  drawFacts() {
    const { rows, name, more, joined, texts, cells, description } = this.table;
    const figures = measure(rows);
    this.figures = figures;
    const reread = (as, words) => this.files.length === 1 && el("button", { type: "button", id: "cells", onclick: () => this.load(this.files, as) }, words);
    const fault = figures.faults > 0 && rows.find((row) => row.error !== null);
    const fact = (title, value, note) => el("div", {}, el("dt", {}, title), el("dd", {}, value, note && el("small", {}, ` ${note}`)));
    this.parts.facts.replaceChildren(el("div", { class: "card" }, el("div", { class: "bar" }, el("h2", { dir: "auto" }, visible(name)), el("span", { class: "quiet small" }, description), this.parts.tasks),
      el("dl", { class: "facts" },
        fact("Rows", whole(figures.rows)), fact("Forecast", whole(figures.forecast)), fact("Labelled", whole(figures.labelled)), fact("With texts", whole(figures.texts)),
        figures.faults > 0 && fact("With a fault", whole(figures.faults)),
        figures.measured > 0 && fact("Log loss", figures.loss.toFixed(3), `class prior ${figures.prior.toFixed(3)}`),
        figures.measured > 0 && fact("Accuracy", percent(figures.right / figures.measured))),
      more && el("p", { class: "said warn" }, el("span", { class: "sign", "aria-hidden": "true" }, "!"), `The page takes at most 100,000 rows and 400 million characters. These are the first ${counted(figures.rows, "row")} of the file.`),
      joined && el("p", { class: "quiet small" }, `${counted(joined, "row")} joined by id.`),
      fault && el("p", { class: "said warn" }, el("span", { class: "sign", "aria-hidden": "true" }, "!"), el("span", {}, `${counted(figures.faults, "row has a fault", "rows have a fault")}. The first, row ${whole(fault.number)}: `, el("bdi", {}, visible(fault.error.slice(0, 400)))),
        el("button", { type: "button", id: "show-faults", class: "plain", onclick: () => { byId("filter-state").value = "error"; this.wanted.state = "error"; this.choose(); } }, "Show these rows")),
      texts && cells === "text" && el("div", { class: "bar small" }, el("span", { class: "quiet" }, "Each cell was read as one turn of plain text."), reread("json", "Read JSON arrays instead")),
      texts && cells === "json" && 2 * figures.faults > rows.length && el("div", { class: "bar small" }, reread("text", "Read the cells as plain text")),
      !texts && el("p", { class: "quiet small" }, "This file has no columns of texts, so its rows cannot be opened or voted on. Open the file of the pairs too: the page joins the rows by id.")));
    this.drawTasks(figures);
    const worst = this.worst();
    const drawn = [marginFigure(rows), reliabilityFigure(rows), worst].filter(Boolean);
    this.parts.figures.replaceChildren(...drawn);
    this.parts.figures.className = `figures${drawn.length > 2 ? " three" : ""}`;
  }

  drawTasks(figures) {
    const open = this.table.rows.filter((row) => row.p === null && row.texts && row.error === null);
    this.parts.tasks.replaceChildren(...[
      open.length && el("button", { type: "button", class: "main", id: "forecast-rows", onclick: () => this.forecast(open) }, `Forecast ${counted(open.length, "row")}`),
      figures.texts > 0 && el("button", { type: "button", id: "start-votes", onclick: () => this.vote() }, "Vote yourself"),
      saveButton(this.table.rows),
      this.made && figures.forecast > 0 && el("button", { type: "button", id: "save-forecasts", onclick: () => saveForecasts(this.table.rows) }, "Save the forecasts"),
      figures.votes > 0 && el("p", { class: "small", id: "agreement-file" }, agreementSaid(this.table.rows)),
    ].filter(Boolean));
  }

  worst() {
    const found = this.table.rows.filter((row) => loss(row) !== null).sort((one, other) => loss(other) - loss(one)).slice(0, 6);
    if (!found.length) return null;
    return el("div", { class: "card figure" }, el("h3", {}, "Worst rows"), el("ol", { class: "worst" }, found.map((row) => {
      const words = [el("span", {}, `${NAMES[row.label]} at ${percent(row.p[row.label])}`), el("span", { class: "what quiet", dir: "auto" }, row.texts ? visible(row.texts[0][0].slice(0, 120)) : visible(row.id))];
      return el("li", {}, row.texts ? el("button", { type: "button", onclick: () => this.open(found.filter((one) => one.texts), row) }, words) : words);
    })));
  }

  async forecast(rows) {
    this.running?.abort();
    const running = new AbortController();
    this.running = running;
    byId("file-problem").replaceChildren();
    byId("forecast-rows").disabled = true;
    const bar = this.progress("Forecasting", () => running.abort());
    let done = 0;
    try {
      await forecastRows(rows, await this.limits, (count, waits) => {
        done = count;
        bar(count / rows.length, `${whole(count)} of ${whole(rows.length)}${busy(waits)}`);
      }, running.signal);
    } catch (error) {
      if (error.name !== "AbortError") byId("file-problem").replaceChildren(problem(`Stopped after ${counted(done, "row")}: ${error.message}`));
    }
    if (this.running !== running) return;
    this.running = null;
    this.made ||= done > 0;
    byId("loading").hidden = true;
    say(`${counted(done, "row")} forecast.`);
    this.refresh();
  }

  refresh() {
    this.drawFacts();
    this.choose();
  }

  drawFilters() {
    const select = (name, title, options) => el("label", {}, title, el("select", { id: `filter-${name}`, onchange: (event) => { this.wanted[name] = event.target.value; this.choose(); } },
      options.map(([value, words]) => el("option", { value }, words))));
    let timer;
    const outcomes = [["", "any"], ["0", "A"], ["1", "B"], ["2", "tie"]];
    this.parts.filters.replaceChildren(el("div", { class: "filters", role: "search", "aria-label": "Rows" },
      el("label", { class: "search" }, "Search in ids, models and texts", el("input", { type: "search", id: "filter-search", maxlength: 200, oninput: (event) => {
        this.wanted.search = event.target.value;
        clearTimeout(timer);
        timer = setTimeout(() => this.choose(), 200);
      } })),
      select("said", "Forecast", outcomes), select("label", "Label", outcomes),
      select("state", "Show", [["", "all"], ["right", "forecast right"], ["wrong", "forecast wrong"], ["voted", "voted"], ["unvoted", "not voted"], ["cut", "not read whole"], ["none", "without a forecast"], ["error", "with a fault"]]),
      select("order", "Order", [["file", "as in the file"], ["worst", "worst first"], ["unsure", "least sure first"], ["a", "most for A first"], ["b", "most for B first"]])));
  }

  async choose() {
    const asked = { ...this.wanted };
    this.asked = asked;
    const found = await choose(this.table.rows, asked, () => this.asked !== asked);
    if (found === null || this.asked !== asked) return;
    this.found = found;
    this.page = 0;
    this.drawRows();
  }

  drawRows() {
    const { found, page } = this;
    const from = page * PAGE;
    const last = Math.max(0, Math.ceil(found.length / PAGE) - 1);
    const turn = (to, words) => el("button", { type: "button", disabled: to < 0 || to > last, onclick: () => { this.page = to; this.drawRows(); byId("rows-count").scrollIntoView({ block: "nearest" }); } }, words);
    const shown = found.slice(from, from + PAGE);
    this.parts.rows.replaceChildren(
      el("div", { class: "pages" }, el("p", { id: "rows-count", role: "status" }, found.length ? `${counted(found.length, "row")}; ${whole(from + 1)} to ${whole(from + shown.length)} shown` : "No row matches these filters."),
        found.length > PAGE && el("div", { role: "group", "aria-label": "Pages" }, turn(0, "First"), turn(page - 1, "Previous"), turn(page + 1, "Next"), turn(last, "Last"))),
      ...(found.length ? [rowsTable(shown, this.figures, this.last, (row) => this.open(found.filter((one) => one.texts), row))] : []));
    this.parts.rows.className = "filters-rows";
  }

  /** Starts at the first row of the table that has texts and no vote. */
  vote() {
    const rows = this.found.filter((row) => row.texts);
    if (rows.length) this.open(rows, rows.find((row) => row.vote < 0) ?? rows[0], true);
  }

  open(rows, row, votes = false) {
    this.show("pair");
    this.voting.open(rows, rows.indexOf(row), this.table, votes);
  }

  /** This view is seen again: what it says of votes and forecasts may be old. */
  shown() {
    if (!this.found || byId("view-file").hidden) return;
    this.drawFacts();
    this.drawRows();
  }

  home() {
    this.last = this.voting.row;
    this.voting.close();
    this.show("file");
    (byId("file-rows").querySelector(`[data-row="${this.last?.number}"]`) ?? byId("start-votes"))?.focus();
  }

  /** A link opened another pair: the bar for voting goes, the votes stay. */
  leave() {
    this.voting.close();
  }
}

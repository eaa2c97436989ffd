"""The page in a real browser: what it shows is what the server says, whoever wrote the texts."""

from __future__ import annotations

import base64
import csv
import gzip
import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Dialog, Page, Request, Route, expect

import prefcast.service
from browsers import opened
from conftest import EXAMPLES, Run, kaggle_row, labelled, write_csv, write_jsonl
from servers import Server, serving

expect.set_options(timeout=120_000)
FOLDER = Path(prefcast.service.__file__).parent / "page"
HOSTILE = (
    "<script>window.pwned=1</script>",
    '<img src=x onerror="window.pwned=1">',
    '"><svg onload="window.pwned=1">',
    "</textarea></div><iframe src='https://attacker.example/'></iframe>",
    '<a href="javascript:window.pwned=1" id="planted">x</a>',
    "[one](javascript:window.pwned=1) [two](JaVaScRiPt&colon;window.pwned=1) [three](data:text/html,<script>1</script>)",
    "[four](  java\tscript:window.pwned=1) <javascript:window.pwned=1> [five](vbscript:x)",
    "![pixel](https://attacker.example/pixel.png) ![p](javascript:window.pwned=1)",
    "[honest](https://attacker.example/page) https://attacker.example/bare mailto:x@attacker.example",
    "```html\n<script>window.pwned=1</script>\n```",
    "| a | b |\n| --- | --- |\n| <script>window.pwned=1</script> | ![x](//attacker.example/t.png) |",
    "> # <style>body{display:none}</style>\n> 1. <link rel=stylesheet href=//attacker.example/x.css>",
    "\x1b[31mred\x1b]0;pwned\x07 \x00 \x9b31m \u202egnp.exe\u2066 \u200b",
    "<meta http-equiv=refresh content='0;url=https://attacker.example/'>",
    "{{7*7}} ${7*7} %3Cscript%3E &lt;script&gt;",
    "**" * 500 + "[" * 500 + "`" * 501,
)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving("--model", "surface") as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with opened() as found:
        yield found


class Visit:
    """One tab, and all that it must not do: ask another host, say something on the console, open a dialog."""

    def __init__(self, context: BrowserContext, server: Server) -> None:
        self.server = server
        self.page = context.new_page()
        self.page.set_default_timeout(120_000)
        self.asked: list[str] = []
        self.said: list[str] = []
        self.dialogs: list[str] = []
        context.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", self.dismiss)

    def dismiss(self, dialog: Dialog) -> None:
        self.dialogs.append(dialog.message)
        dialog.dismiss()

    def _console(self, message: ConsoleMessage) -> None:
        # A refusal that a test provokes stands on the console as a resource that failed to load.
        if not re.match("Failed to load resource: the server responded with a status of 4", message.text):
            self.said.append(message.text)

    def open(self, fragment: str = "") -> Page:
        self.page.goto(f"{self.server.url}/{fragment}")
        expect(self.page.locator("#forecaster")).to_have_text("surface forecasts")
        return self.page

    def load(self, *files: Path) -> Page:
        self.page.click("#tab-file")
        self.page.set_input_files("#file", list(files))
        expect(self.page.locator("#loading")).to_be_hidden()
        return self.page

    def check(self) -> None:
        assert all(url.startswith((f"{self.server.url}/", "blob:", "data:,")) for url in self.asked), self.asked
        assert self.said == []
        assert self.dialogs == []
        assert self.page.evaluate("window.pwned") is None


Visitor = Callable[..., Visit]


@pytest.fixture
def visit(browser: Browser, server: Server) -> Iterator[Visitor]:
    """Opens a tab of its own; at the end each is asked whether it did what it must not."""
    made: list[tuple[BrowserContext, Visit]] = []

    def new(width: int = 1280, scheme: str = "light", at: Server = server, **more: Any) -> Visit:
        viewport = {"width": width, "height": 800}
        context = browser.new_context(viewport=viewport, color_scheme=scheme, accept_downloads=True, **more)
        made.append((context, Visit(context, at)))
        return made[-1][1]

    yield new
    for context, one in made:
        one.check()
        context.close()


def write(page: Page, prompt: Sequence[str], a: Sequence[str], b: Sequence[str]) -> None:
    page.check("[name=mode][value=write]", force=True)
    while page.locator(".turn").count() < len(prompt):
        page.click("#add-turn")
    for name, texts in (("prompt", prompt), ("response_a", a), ("response_b", b)):
        for at, text in enumerate(texts):
            page.fill(f"#{name}-{at}", text)


def forecast(page: Page) -> None:
    """Presses the button and waits for the result."""
    page.click("#forecast")
    expect(page.locator("#live")).to_contain_text("Forecast: A")
    expect(page.locator("#result.busy")).to_have_count(0)


def mode(page: Page, name: str) -> None:
    page.check(f"[name=mode][value={name}]", force=True)


def fits(page: Page) -> bool:
    """Whether nothing makes the page wider than its window."""
    return bool(page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"))


def no_serious_fault(page: Page, state: str) -> None:
    found = Axe().run(page).response["violations"]
    bad = [f"{one['id']}: {one['nodes'][0]['html'][:200]}" for one in found if one["impact"] in ("serious", "critical")]
    assert bad == [], state


def examples(rows: int, label: bool = True) -> list[dict[str, Any]]:
    """Rows in the Kaggle shape, with an awkward text here and there."""
    made = []
    for at in range(rows):
        a = f'Answer {at}, with "quotes", a comma,\na line end and <b>tags</b>.' + " more words" * (at % 7)
        row = {"id": f"row-{at}", "prompt": (f"Question {at}?",), "a": (a,), "b": (f"No. {at}" + " x" * (at % 5),)}
        made.append(labelled(at % 3, **row) if label else kaggle_row(**row))
    return made


def test_it_is_small_and_fetches_nothing_from_elsewhere() -> None:
    files = [path for path in FOLDER.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 300_000
    for path in files:
        text = path.read_text("utf-8")
        assert len(text.splitlines()) <= 400, path.name
        assert not re.search(
            r"(src|href)=[\"'](https?:)?//|@import|\.(inner|outer)HTML|insertAdjacentHTML|\beval\(", text
        )
        elsewhere = re.findall(r"[\"'(]https?://\w+[^\"']*", text)
        assert [url for url in elsewhere if "www.w3.org/2000/svg" not in url] == [], path.name
    index = (FOLDER / "index.html").read_text("utf-8")
    assert not re.search(r"<script>|<style|\sstyle=|\son\w+=", index)


def test_a_pair_is_forecast(visit: Visitor, server: Server) -> None:
    one = visit()
    page = one.open()
    write(page, ["Why is the sky blue?"], ["Because air scatters short waves more."], ["No idea."])
    page.focus("#response_b-0")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#live")).to_contain_text("Forecast: A")
    pair = {
        "prompt": "Why is the sky blue?",
        "response_a": "Because air scatters short waves more.",
        "response_b": "No idea.",
    }
    answer = server.forecast(**pair, explain=True)
    for key in ("a", "b", "tie"):
        shown = page.locator(f".outcome.{key}")
        low, high = answer["interval"][key]
        expect(shown.locator("strong")).to_have_text(f"{100 * answer['probabilities'][key]:.1f} %")
        expect(shown.locator(".outcome-value")).to_contain_text(f"{100 * low:.1f} to {100 * high:.1f}")
        drawn = shown.locator(".whisker").first
        assert float(drawn.get_attribute("x1")) == pytest.approx(1000 * low, abs=0.1)
        assert float(drawn.get_attribute("x2")) == pytest.approx(1000 * high, abs=0.1)
        width = float(shown.locator("rect.fill").get_attribute("width"))
        assert width == pytest.approx(1000 * answer["probabilities"][key], abs=0.1)
    result = page.locator("#result")
    expect(result).to_contain_text("Both orders were forecast: exchanging A and B changes")
    expect(result).to_contain_text("Everything was read.")
    pushed = page.locator(".pushes .push-name").all_text_contents()
    assert pushed == [influence["name"] for influence in answer["influences"]]
    # A bar to the right says more likely, one to the left less.
    for bars, influence in zip(page.locator(".pushes .signed").all(), answer["influences"], strict=True):
        for key, change in influence["change"].items():
            start = float(bars.locator(f".fill.{key}").get_attribute("x"))
            assert start == 50 if change >= 0 else start <= 50
    characters = page.locator(".lengths tbody tr").first.locator("td").all_text_contents()
    assert characters == [str(len(pair["response_a"])), str(len(pair["response_b"]))]
    # Once a text changes, the forecast no longer speaks of it.
    page.fill("#response_b-0", "Rayleigh.")
    expect(result).to_contain_text("The texts have changed since this forecast.")


def test_several_turns(visit: Visitor) -> None:
    page = visit().open()
    write(page, ["Hi", "Why?", "Really?"], ["Hello", "So.", "Yes"], ["Yo", "Because.", "No"])
    page.click("[aria-label='Remove turn 2']")
    assert page.evaluate("document.activeElement.id") == "prompt-1"
    with page.expect_request("**/v1/forecast") as asked:
        forecast(page)
    sent = asked.value.post_data_json
    assert sent["prompt"] == ["Hi", "Really?"]
    assert sent["response_b"] == ["Yo", "No"]
    page.click("#exchange")
    assert page.input_value("#response_a-0") == "Yo"
    page.click("#clear")
    expect(page.locator(".turn")).to_have_count(1)
    assert page.input_value("#prompt-0") == ""
    page.click("#forecast")
    expect(page.locator("[role=alert]")).to_contain_text("There is nothing to forecast yet")


def test_what_was_not_read_is_marked(visit: Visitor, server: Server) -> None:
    page = visit().open()
    # Characters outside the BMP count once, as the server counts them.
    long = "😀 word " * 4_000
    write(page, ["Why?"], [long], ["Short."])
    forecast(page)
    cut = server.forecast(prompt="Why?", response_a=long, response_b="Short.")["truncation"]["texts"][0]
    expect(page.locator("#result")).to_contain_text("Not everything was read:")
    note = f"Only the first {cut['head']:,} and last {cut['tail']:,} of {len(long):,} characters were read by the forecaster."
    expect(page.locator("#response_a-0-cut")).to_have_text(note)
    mode(page, "read")
    left_out = page.locator(".response_a .unread")
    expect(left_out.locator("summary")).to_contain_text(f"{len(long) - cut['head'] - cut['tail']:,} characters")
    left_out.locator("summary").click()
    assert left_out.locator("div").text_content() == long[cut["head"] : len(long) - cut["tail"]]
    expect(page.locator(".response_b .unread")).to_have_count(0)


def test_the_difference_in_words(visit: Visitor) -> None:
    page = visit().open()
    write(page, ["p"], ["The quick brown fox jumps"], ["The slow brown fox sleeps well"])
    mode(page, "difference")
    assert page.locator(".response_a mark").all_text_contents() == ["quick", "jumps"]
    assert page.locator(".response_b mark").all_text_contents() == ["slow", "sleeps well"]
    expect(page.locator("#mode-note")).to_contain_text("60 % of the words of A are in B too")


def common_length(a: Sequence[str], b: Sequence[str]) -> int:
    """The length of the longest common subsequence, by the table."""
    row = [0] * (len(b) + 1)
    for x in a:
        before = row
        row = [0]
        for at, y in enumerate(b):
            row.append(before[at] + 1 if x == y else max(row[at], before[at + 1]))
    return row[-1]


def test_the_difference_is_the_shortest(visit: Visitor) -> None:
    page = visit().open()
    draw = random.Random(7)
    cases = [[draw.choices("abcd", k=draw.randrange(25)) for _ in "ab"] for _ in range(300)]
    found = page.evaluate(
        "async (cases) => { const {compare} = await import('/static/diff.js'); return cases.map(([a, b]) => compare(a, b)); }",
        cases,
    )
    for (a, b), shared in zip(cases, found, strict=True):
        kept = [word for word, both in zip(a, shared["a"], strict=True) if both]
        assert shared["exact"]
        assert kept == [word for word, both in zip(b, shared["b"], strict=True) if both]
        assert len(kept) == common_length(a, b)
    # Where the work would have no bound, the answer says that it is no longer exact.
    bound = page.evaluate(
        "async () => { const {compare} = await import('/static/diff.js'); const many = (c) => Array.from({length: 15000}, (_, i) => c + i);"
        " const {a, exact} = compare([...many('a'), 'both'], ['both', ...many('b')]); return [exact, a.filter(Boolean).length]; }"
    )
    assert bound == [False, 1]


@pytest.mark.long
def test_texts_of_any_kind_have_an_end(visit: Visitor) -> None:
    """As long as the server takes them, and made to be hard: nothing overflows, and the number of elements has a bound."""
    page = visit().open()
    kinds = (
        "*a ",
        "[a](b",
        "`a ",
        "> ",
        "- a\n",
        "|a|b\n|-|-\n",
        "```\n",
        "https://a.b/ ",
        "**a** ",
        "# ",
        "\\*",
        "ab cd\n",
        "\0",
    )
    made = page.evaluate(
        """async (kinds) => {
          const {rendered, differences} = await import("/static/texts.js");
          const {el} = await import("/static/dom.js");
          return kinds.map((kind) => {
            const text = kind.repeat(200_000 / kind.length);
            const {a} = differences(text, text.slice(7).replaceAll("a", "b"));
            return [el("div", {}, rendered(text)).querySelectorAll("*").length, a.textContent.length >= text.length];
          });
        }""",
        list(kinds),
    )
    for kind, (elements, whole) in zip(kinds, made, strict=True):
        assert elements < 60_000, kind
        assert whole, kind


def test_markdown(visit: Visitor) -> None:
    page = visit().open()
    text = (
        "# Title\n\nSome **bold** and *thin* and `code` and ~~gone~~.\nnext_line_here\n\n1. one\n2. two\n   - inner\n\n> said\n\n"
        "```python\nprint('<b>')\n```\n\n| a | b |\n| --- | --- |\n| 1 | 2 |\n\n[site](https://example.org/x) ![pic](https://example.org/p.png) 2*3*4 a_b_c"
    )
    write(page, ["p"], [text], ["**open and `open [open](x"])
    mode(page, "read")
    shown = page.locator(".response_a .text")
    for selector, expected in (
        (".heading.h1", "Title"), ("strong", "bold"), ("em >> nth=0", "thin"), ("p code", "code"), ("s", "gone"),
        ("ol > li >> nth=0", "one"), ("ol ul > li", "inner"), ("blockquote", "said"), ("pre code", "print('<b>')"),
        ("th >> nth=1", "b"), ("td >> nth=0", "1"), ("span.image", "[image: pic]"),
    ):  # fmt: skip
        expect(shown.locator(selector)).to_have_text(expected)
    link = shown.locator("a")
    expect(link).to_have_attribute("href", "https://example.org/x")
    expect(link).to_have_attribute("rel", "noopener noreferrer nofollow")
    expect(shown).to_contain_text("next_line_here")
    expect(shown).to_contain_text("a_b_c")
    expect(page.locator(".response_b .text")).to_have_text("**open and `open [open](x")


def harmless(page: Page) -> None:
    """Nothing of the texts became an element that loads, runs or leads to an unsafe place."""
    for area in ("#turns", "#result", "#file-view", "#voting", "#file-problem"):
        planted = page.locator(
            f"{area} :is(script, img, iframe, style, link, meta, object, embed, base, form, #planted)"
        )
        assert planted.count() == 0
    for address in page.eval_on_selector_all("a[href]", "all => all.map((one) => one.protocol)"):
        assert address in ("http:", "https:", "mailto:", "data:", page.evaluate("location.protocol"))
    assert page.evaluate(
        "[...document.querySelectorAll('*')].every((one) => one.getAttributeNames().every((n) => !n.startsWith('on')))"
    )
    assert page.evaluate("document.title").startswith("prefcast")
    assert page.evaluate("window.pwned") is None
    # No control character reaches the text that is shown.
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", page.inner_text("body"))


def test_hostile_texts_do_nothing(visit: Visitor) -> None:
    one = visit()
    page = one.open()
    for bad in (*HOSTILE, "\n\n".join(HOSTILE)):
        write(page, [bad], [bad], [f"{bad} and more"])
        forecast(page)
        for name in ("read", "difference"):
            mode(page, name)
            harmless(page)
    mode(page, "read")
    expect(page.locator(".response_a")).to_contain_text("\\x1b[31mred\\x1b]0;pwned\\x07")
    expect(page.locator(".response_a")).to_contain_text("\\u202egnp.exe")
    expect(page.locator(".response_a")).to_contain_text("<script>window.pwned=1</script>")
    # What could not be a safe link is said, and cannot be pressed.
    expect(page.locator(".response_a")).to_contain_text("one [link not shown: javascript:window.pwned=1]")
    links = page.locator(".response_a a")
    assert {link.get_attribute("rel") for link in links.all()} == {"noopener noreferrer nofollow"}
    one.check()


def test_hostile_files_do_nothing(visit: Visitor, tmp_path: Path) -> None:
    page = visit().open()
    rows = [
        labelled(at % 3, id=f"{at} {bad}", prompt=(bad,), a=(bad,), b=("b " + bad,), model_a=bad, model_b=bad)
        for at, bad in enumerate(HOSTILE)
    ]
    path = write_jsonl(
        tmp_path / "<img src=x onerror=pwned=1>.jsonl", [*rows, {"prompt": HOSTILE[0], "id": HOSTILE[1]}]
    )
    one = page
    page.click("#tab-file")
    page.set_input_files("#file", path)
    expect(page.locator(".rows tbody tr")).to_have_count(len(rows) + 1)
    harmless(one)
    page.click("#forecast-rows")
    expect(page.locator("#save-forecasts")).to_be_visible()
    harmless(one)
    page.click("#start-votes")
    page.keyboard.press("b")
    expect(page.locator("#agreement")).to_contain_text("of 1 vote")
    harmless(one)


def test_a_link_holds_the_pair(visit: Visitor) -> None:
    one = visit(permissions=["clipboard-read", "clipboard-write"])
    page = one.open()
    texts = (["Grüße 😀?", "Zwei"], ["a\n```\ncode\n```", "x & <y>"], ["", "b" * 3000])
    write(page, *texts)
    page.click("#share")
    expect(page.locator("#share")).to_have_text("Link copied")
    link = page.evaluate("navigator.clipboard.readText()")
    expect(page).to_have_url(link)
    assert link.startswith(f"{one.server.url}/#z=")
    assert len(link) < 400
    other = visit()
    fresh = other.open(link.removeprefix(f"{one.server.url}/"))
    expect(fresh.locator("#live")).to_contain_text("Forecast: A")
    mode(fresh, "write")
    for name, column in zip(("prompt", "response_a", "response_b"), texts, strict=True):
        assert [fresh.input_value(f"#{name}-{at}") for at in (0, 1)] == list(column)
    assert not any("#z=" in url for url in other.asked if "/v1/" in url or "/static/" in url)
    # Once a text changes, the address no longer speaks of it.
    fresh.fill("#prompt-0", "other")
    expect(fresh).to_have_url(re.compile(r"^[^#]*$"))


@pytest.mark.parametrize("fragment", ["#z=AAAA", "#z=!!", "#j=bm90IGpzb24", "#j=W1tdLFtdLFtdXQ", "#z="])
def test_a_damaged_link_is_said_to_be_one(visit: Visitor, fragment: str) -> None:
    page = visit().open(fragment)
    expect(page.locator("#result [role=alert]")).to_contain_text("The link is damaged")


def test_links_have_a_bound(visit: Visitor) -> None:
    page = visit().open()
    draw = random.Random(1)
    write(page, ["p"], ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=60_000))], ["b"])
    page.click("#share")
    expect(page.locator("#result [role=alert]")).to_contain_text("at most 32,000 work everywhere")
    expect(page).to_have_url(re.compile(r"^[^#]*$"))
    # A small link that unpacks to a great deal is stopped on the way.
    said = page.evaluate(
        """async () => {
          const stream = new Blob(['[["', 'a'.repeat(5_000_000), '"],["b"],["c"]]']).stream().pipeThrough(new CompressionStream("deflate-raw"));
          const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
          const packed = btoa(String.fromCharCode(...bytes)).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
          const {unpack} = await import("/static/share.js");
          return unpack("#z=" + packed).then(() => "taken", (error) => error.message);
        }"""
    )
    assert said == "The link holds more text than this page takes."
    turns = base64.urlsafe_b64encode(json.dumps([[""] * 257] * 3).encode()).decode().rstrip("=")
    expect(visit().open(f"#j={turns}").locator("#result [role=alert]")).to_contain_text("at most 256")


def test_a_file_is_shown_filtered_and_searched(visit: Visitor, tmp_path: Path) -> None:
    page = visit().open()
    visitor_rows = examples(120)
    page.click("#tab-file")
    page.set_input_files("#file", write_csv(tmp_path / "pairs.csv", visitor_rows))
    expect(page.locator("#rows-count")).to_have_text("120 rows; 1 to 50 shown")
    expect(page.locator(".facts")).to_contain_text("Labelled120")
    page.click("text=Last")
    expect(page.locator("#rows-count")).to_have_text("120 rows; 101 to 120 shown")
    page.select_option("#filter-label", "1")
    expect(page.locator("#rows-count")).to_have_text("40 rows; 1 to 40 shown")
    page.fill("#filter-search", "question 7")
    # 7, 70 and 73, 76, 79: the rows with label 1 are 7, 70, 73, 76, 79.
    expect(page.locator("#rows-count")).to_have_text("5 rows; 1 to 5 shown")
    assert page.locator(".rows tbody th").all_text_contents() == ["row-7", "row-70", "row-73", "row-76", "row-79"]
    page.fill("#filter-search", "no such thing")
    expect(page.locator("#rows-count")).to_have_text("No row matches these filters.")
    page.fill("#filter-search", "")
    page.select_option("#filter-label", "")
    page.click("#forecast-rows")
    expect(page.locator(".facts")).to_contain_text("Forecast120")
    expect(page.locator("#file-figures")).to_contain_text("Reliability")
    page.select_option("#filter-order", "worst")
    page.select_option("#filter-state", "wrong")
    expect(page.locator(".rows tbody tr").first).to_be_visible()
    first = page.locator(".rows tbody tr").first
    worst = page.locator(".worst li").first
    expect(worst).to_contain_text(first.locator("td.words").first.inner_text())
    # A row opens as a pair, and the way back leads to where it was.
    first.locator("button").click()
    expect(page.locator("#vote-title")).to_contain_text("Row 1 of")
    page.click("[data-key=back]")
    expect(page.locator(".rows tr.current")).to_have_count(1)


def test_forecasts_that_prefcast_wrote(visit: Visitor, prefcast: Run, tmp_path: Path) -> None:
    for name, more in (("all.jsonl", ("--with-text",)), ("bare.jsonl", ()), ("submission.csv", ())):
        assert prefcast("predict", EXAMPLES, "--model", "surface", "-o", name, *more).returncode == 0
    evaluated = prefcast("evaluate", EXAMPLES, "--predictions", "all.jsonl", "--json", "out.json")
    assert evaluated.returncode == 0, evaluated.stderr
    loss = json.loads((tmp_path / "out.json").read_text())["log_loss"]["value"]
    one = visit()
    page = one.open()
    one.load(tmp_path / "all.jsonl")
    expect(page.locator(".facts")).to_contain_text("Rows42")
    expect(page.locator(".facts")).to_contain_text("Labelled42")
    expect(page.locator(".facts")).to_contain_text(f"Log loss{loss:.3f}")
    assert page.locator("#forecast-rows").count() == 0
    with gzip.open(tmp_path / "packed.jsonl.gz", "wb") as file:
        file.write((tmp_path / "bare.jsonl").read_bytes())
    one.load(tmp_path / "packed.jsonl.gz")
    expect(page.locator("#file-view")).to_contain_text("This file has no columns of texts")
    expect(page.locator(".rows th button")).to_have_count(0)
    # A submission and its pairs, joined.
    one.load(EXAMPLES, tmp_path / "submission.csv")
    expect(page.locator("#file-facts")).to_contain_text("42 rows joined by id.")
    expect(page.locator(".facts")).to_contain_text(f"Log loss{loss:.3f}")


def test_a_file_is_dropped(visit: Visitor) -> None:
    page = visit().open()
    drop = """([name, text, type]) => {
      const data = new DataTransfer();
      data.items.add(new File([text], name));
      return !document.body.dispatchEvent(new DragEvent(type, {dataTransfer: data, bubbles: true, cancelable: true}));
    }"""
    text = EXAMPLES.read_text("utf-8")
    # It opens from the other view too, and the browser does not go to the file.
    assert page.evaluate(drop, ["pairs.csv", text, "dragover"])
    assert page.evaluate(drop, ["pairs.csv", text, "drop"])
    expect(page.locator("#rows-count")).to_have_text("42 rows; 1 to 42 shown")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.csv", b"a,b\n1,2\n", "x.csv: no pairs found in its columns"),
        ("x.csv", b"id,prompt\xff\n", "not UTF-8"),
        ("x.csv", b'id,winner_model_a,winner_model_b,winner_tie\n1,"0.2,0.3\n', "a quoted cell that never ends"),
        ("x.csv", b"", "the file is empty"),
        ("x.jsonl.gz", b"\x1f\x8bno gzip", "the compressed data"),
        ("x.parquet", b"PAR1", "not a readable Parquet file"),
        ("x.txt", b"hello", "no pairs found"),
        ("<img src=x onerror=pwned=1>.csv", b"\x89PNG", "not UTF-8"),
    ],
)
def test_a_file_that_is_none_of_ours(visit: Visitor, tmp_path: Path, name: str, content: bytes, said: str) -> None:
    one = visit()
    page = one.open()
    (tmp_path / name).write_bytes(content)
    one.load(tmp_path / name)
    expect(page.locator("#file-problem [role=alert]")).to_contain_text(said)
    expect(page.locator("#file-view")).to_be_hidden()


def test_rows_with_faults_are_named(visit: Visitor, tmp_path: Path) -> None:
    one = visit()
    page = one.open()
    good = labelled(0, id=1)
    lines = [good, labelled(1, id=1), {**good, "id": 2, "prompt": "plain"}, {**good, "id": 3, "winner_tie": 1},
             {**good, "id": 9007199254740993}, {**good, "id": 5, "response_a": ["x", "y"]}, {**good, "id": {"x": 1}},
             {**good, "id": 6, "model_a": {"toString": 1}}]  # fmt: skip
    path = write_jsonl(tmp_path / "x.jsonl", lines)
    path.write_text(path.read_text() + "{broken\n[]\n")
    one.load(path)
    notes = page.locator(".rows tbody tr td:last-child").all_text_contents()
    expected = ("", "id is the same as in row 1", "prompt is 'plain'; expected a JSON array", "expected exactly one 1", "",
                "the numbers of turns differ", "id is {'x': 1}", "", "not valid JSON", "a JSON array where")  # fmt: skip
    assert len(notes) == len(expected)
    assert all(part in note for part, note in zip(expected, notes, strict=True)), notes
    assert page.locator(".rows tbody th").all_text_contents()[4] == "9007199254740993"
    said = page.locator("#file-facts .said")
    expect(said).to_contain_text("7 rows have a fault. The first, row 2: id is the same as in row 1")
    page.click("#show-faults")
    expect(page.locator("#rows-count")).to_have_text("7 rows; 1 to 7 shown")


def test_a_file_of_faults_alone_says_which(visit: Visitor, tmp_path: Path) -> None:
    """Not that it has no texts."""
    one = visit()
    page = one.open()
    one.load(write_csv(tmp_path / "x.csv", [kaggle_row(id=at, b="[broken") for at in range(3)]))
    expect(page.locator("#file-facts")).to_contain_text(
        "3 rows have a fault. The first, row 1: response_b is not valid JSON"
    )
    expect(page.locator("#file-facts")).not_to_contain_text("has no columns of texts")
    expect(page.locator(".rows td.note")).to_have_count(3)


@pytest.mark.parametrize("kind", ["arena.json", "arena.parquet", "chosen.jsonl.zst", "kaggle.csv.gz", "plain.tsv"])
def test_the_servers_readers_read_the_file(visit: Visitor, tmp_path: Path, kind: str) -> None:
    rows = [(f"Question {at}?", f"Answer {at}", f"No. {at}", f"model-{at}") for at in range(5)]
    said = [
        [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        for prompt, a, b, _ in rows
        for answer in (a, b)
    ]
    arena = [
        {
            "id": at,
            "conversation_a": said[2 * at],
            "conversation_b": said[2 * at + 1],
            "winner": "model_b",
            "model_a": model,
        }
        for at, (*_, model) in enumerate(rows)
    ]
    path = tmp_path / kind
    if kind == "arena.json":
        path.write_text(json.dumps(arena))
    elif kind == "arena.parquet":
        pq.write_table(pa.Table.from_pylist(arena), path)
    elif kind == "chosen.jsonl.zst":
        lines = "".join(json.dumps({"prompt": prompt, "chosen": a, "rejected": b}) + "\n" for prompt, a, b, _ in rows)
        with pa.CompressedOutputStream(str(path), "zstd") as file:
            file.write(lines.encode())
    elif kind == "kaggle.csv.gz":
        plain = write_csv(
            tmp_path / "x.csv", [kaggle_row(at, (p,), (a,), (b,)) for at, (p, a, b, _) in enumerate(rows)]
        )
        path.write_bytes(gzip.compress(plain.read_bytes()))
    else:
        path.write_text(
            "id\tprompt\tresponse_a\tresponse_b\n"
            + "".join(f"{at}\t{p}\t{a}\t{b}\n" for at, (p, a, b, _) in enumerate(rows))
        )
    one = visit()
    page = one.open()
    one.load(path)
    expect(page.locator(".rows tbody tr")).to_have_count(5)
    assert page.locator(".rows td.words").all_text_contents() == [prompt for prompt, *_ in rows]
    expect(page.locator(".rows .bad")).to_have_count(0)
    models = page.locator(".rows td.model").all_text_contents()
    assert models[::2] == ([model for *_, model in rows] if "arena" in kind else [])
    page.click("#forecast-rows")
    expect(page.locator("#save-forecasts")).to_be_visible()
    if kind == "plain.tsv":
        expect(page.locator("#file-facts")).to_contain_text("one turn of plain text")
        page.click("#cells")
        expect(page.locator(".rows .bad")).to_have_count(5)
        page.click("#cells")
        expect(page.locator(".rows .bad")).to_have_count(0)


def test_a_file_beyond_the_servers_size_is_packed_or_refused(visit: Visitor, tmp_path: Path) -> None:
    with serving("--model", "surface", "--max-body", "20000") as server:
        one = visit(at=server)
        page = one.open()
        one.load(write_csv(tmp_path / "large.csv", examples(200)))
        expect(page.locator("#rows-count")).to_contain_text("200 rows")
        draw = random.Random(2)
        noise = "".join(draw.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=60_000))
        one.load(write_csv(tmp_path / "noise.csv", [kaggle_row(a=(noise,))]))
        expect(page.locator("#file-problem [role=alert]")).to_contain_text(
            re.compile(r"noise.csv: The file has .* this server takes 0.0 MB")
        )


@pytest.mark.parametrize(
    ("rows", "shown", "found"),
    [
        (20_000, "20,000", 2),
        pytest.param(100_001, "100,000", 19, marks=pytest.mark.long),
    ],
)
def test_many_rows(visit: Visitor, tmp_path: Path, rows: int, shown: str, found: int) -> None:
    one = visit()
    page = one.open()
    path = tmp_path / "many.csv"
    draw = random.Random(5)
    with path.open("w") as file:
        file.write("id,winner_model_a,winner_model_b,winner_tie,label\n")
        for at in range(rows):
            a = draw.random() * 0.9
            file.write(f"{at},{a!r},{(1 - a) / 2!r},{(1 - a) / 2!r},{draw.randrange(3)}\n")
    # The page goes on drawing while it reads.
    page.evaluate("window.ticks = 0; setInterval(() => { window.ticks += 1; }, 5)")
    one.load(path)
    expect(page.locator("#rows-count")).to_have_text(f"{shown} rows; 1 to 50 shown")
    if rows > 100_000:
        expect(page.locator("#file-facts")).to_contain_text("These are the first 100,000 rows of the file.")
    assert page.evaluate("window.ticks") > 5
    page.fill("#filter-search", "9999")
    expect(page.locator("#rows-count")).to_contain_text(f"{found} rows;")


def test_forecasting_a_file_waits_where_the_server_is_busy(visit: Visitor, tmp_path: Path, server: Server) -> None:
    one = visit()
    page = one.open()
    one.load(write_csv(tmp_path / "pairs.csv", examples(70, label=False)))
    refused: list[str] = []

    def busy(route: Route) -> None:
        if len(refused) < 3:
            refused.append(route.request.url)
            body = {"error": {"type": "too_busy", "field": "", "message": "many wait already"}}
            route.fulfill(status=429, headers={"Retry-After": "0"}, json=body)
        else:
            route.continue_()

    page.route("**/v1/forecast", busy)
    page.click("#forecast-rows")
    expect(page.locator(".facts")).to_contain_text("Forecast70")
    assert len(refused) == 3
    with page.expect_download() as taken:
        page.click("#save-forecasts")
    records = [json.loads(line) for line in Path(taken.value.path()).read_text("utf-8").splitlines()]
    expected = server.forecast(**{name: records[7][name] for name in ("prompt", "response_a", "response_b")})
    assert [records[7][f"winner_{key}"] for key in ("model_a", "model_b", "tie")] == list(
        expected["probabilities"].values()
    )
    assert records[7]["winner_tie_high"] == expected["interval"]["tie"][1]


def test_forecasting_a_file_can_be_stopped(visit: Visitor, tmp_path: Path) -> None:
    one = visit()
    page = one.open()
    one.load(write_csv(tmp_path / "pairs.csv", examples(100, label=False)))
    asked: list[Request] = []

    def first_only(route: Route) -> None:
        asked.append(route.request)
        if len(asked) == 1:
            route.continue_()
        # The others get no answer until they are stopped.

    page.route("**/v1/forecast", first_only)
    page.click("#forecast-rows")
    expect(page.locator("#loading")).to_contain_text("32 of 100")
    page.click("#loading >> text=Stop")
    expect(page.locator(".facts")).to_contain_text("Forecast32")
    expect(page.locator("#forecast-rows")).to_have_text("Forecast 68 rows")
    page.unroute_all(behavior="ignoreErrors")


def test_votes_become_labels_that_prefcast_reads(visit: Visitor, prefcast: Run, tmp_path: Path) -> None:
    one = visit()
    page = one.open()
    rows = examples(60, label=False)
    one.load(write_csv(tmp_path / "pairs.csv", rows))
    page.click("#forecast-rows")
    # Gone where every row has its forecast; a vote before that is compared with none.
    expect(page.locator("#forecast-rows")).to_have_count(0)
    page.click("#start-votes")
    expect(page.locator("#result")).to_contain_text("You will see the forecast after your vote.")
    votes = [at % 3 for at in range(60)]
    for at, vote in enumerate(votes):
        expect(page.locator("#vote-title")).to_have_text(f"Row {at + 1} of 60")
        page.keyboard.press("abt"[vote])
        if at == 0:
            expect(page.locator("#live")).to_contain_text("Forecast: A")
            page.keyboard.press("a")
            expect(page.locator("#agreement")).to_have_text("No votes yet.")
            page.keyboard.press("a")
        page.keyboard.press("ArrowRight")
    expect(page.locator("#agreement")).to_contain_text("of 60 votes")
    # The page's share of agreement is that of the table.
    page.click("text=Back")
    told = re.search(r"in (\d+) of 60 votes", page.inner_text("#agreement-file"))
    with page.expect_download() as taken:
        page.click("#file-tasks .save-votes")
    assert taken.value.suggested_filename == "votes.csv"
    taken.value.save_as(tmp_path / "votes.csv")
    with (tmp_path / "votes.csv").open(newline="", encoding="utf-8") as file:
        saved = list(csv.DictReader(file))
    for row, kept, vote in zip(rows, saved, votes, strict=True):
        assert kept["id"] == row["id"]
        assert [json.loads(kept[name]) for name in ("prompt", "response_a", "response_b")] == [
            row[name] for name in ("prompt", "response_a", "response_b")
        ]
        assert [int(kept[name]) for name in ("winner_model_a", "winner_model_b", "winner_tie")] == [
            int(at == vote) for at in range(3)
        ]
    forecasts = prefcast("predict", "pairs.csv", "--model", "surface", "-o", "f.jsonl")
    assert forecasts.returncode == 0, forecasts.stderr
    said = [json.loads(line) for line in (tmp_path / "f.jsonl").read_text().splitlines()]
    names = ("winner_model_a", "winner_model_b", "winner_tie")
    agree = sum(
        max(range(3), key=lambda at, row=row: row[names[at]]) == vote for row, vote in zip(said, votes, strict=True)
    )
    assert told is not None
    assert int(told[1]) == agree
    checked = prefcast("check", "votes.csv")
    assert checked.returncode == 0, checked.stderr
    assert "60" in checked.stdout
    fitted = prefcast("fit", "votes.csv", "--model", "length", "-o", "mine")
    assert fitted.returncode == 0, fitted.stderr
    # And the page reads its own votes as labels.
    one.load(tmp_path / "votes.csv")
    expect(page.locator(".facts")).to_contain_text("Labelled60")


def test_a_vote_speaks_of_the_row_as_it_is(visit: Visitor, tmp_path: Path) -> None:
    one = visit()
    page = one.open()
    one.load(write_csv(tmp_path / "pairs.csv", examples(2)))
    page.click("#start-votes")
    shown = page.inner_text(".response_a .text")
    page.click("#exchange")
    assert page.inner_text(".response_b .text") == shown
    page.click("[data-key=A]")
    expect(page.locator("#agreement")).to_contain_text("You had changed the texts")
    assert page.inner_text(".response_a .text") == shown
    expect(page.locator("[data-key=A]")).to_have_attribute("aria-pressed", "false")
    page.click("[data-key=A]")
    expect(page.locator("#agreement")).to_contain_text("1 vote")


def test_votes_stay_until_they_are_deleted(visit: Visitor, tmp_path: Path) -> None:
    one = visit()
    page = one.open()
    pairs = write_csv(tmp_path / "pairs.csv", examples(4))
    expect(page.locator("#kept")).to_be_hidden()
    one.load(pairs)
    page.click("#start-votes")
    page.keyboard.press("b")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("t")
    expect(page.locator("#kept")).to_have_text("Save votes (2)")
    # The tab of the file, and not only the button that leads there.
    page.click("#tab-file")
    expect(page.locator("#file-tasks .save-votes")).to_have_text("Save 2 votes")
    voted = page.locator(".rows td[data-name='your vote']")
    assert voted.all_text_contents() == ["B", "tie", "–", "–"]
    page.click("#tab-pair")
    expect(page.locator("#vote-title")).to_have_text("Row 2 of 4")
    # Another file takes nothing away, and asks nothing.
    one.load(write_csv(tmp_path / "other.csv", [kaggle_row(id="row-0", prompt=("Another?",))]))
    expect(page.locator("#rows-count")).to_contain_text("1 row;")
    expect(voted).to_have_count(0)
    page.reload()
    expect(page.locator("#kept")).to_have_text("Save votes (2)")
    page.click("#kept")
    expect(page.locator("#kept-note")).to_contain_text("in this browser alone")
    no_serious_fault(page, "the votes")
    with page.expect_download() as taken:
        page.click("#kept-files .save-votes")
    with Path(taken.value.path()).open(newline="", encoding="utf-8") as file:
        saved = list(csv.DictReader(file))
    assert [(row["id"], row["winner_model_b"], row["winner_tie"]) for row in saved] == [
        ("row-0", "1", "0"),
        ("row-1", "0", "1"),
    ]
    assert json.loads(saved[1]["prompt"]) == ["Question 1?"]
    page.click("#kept-dialog .main")
    one.load(pairs)
    assert voted.all_text_contents() == ["B", "tie", "–", "–"]
    # The person may think again.
    page.click("#kept")
    page.click(".delete-votes")
    assert one.dialogs == ["Delete 2 votes on pairs.csv?"]
    expect(page.locator("#kept")).to_have_text("Save votes (2)")
    page.remove_listener("dialog", one.dismiss)
    page.once("dialog", lambda dialog: dialog.accept())
    page.click(".delete-votes")
    expect(page.locator("#kept")).to_be_hidden()
    expect(page.locator("#kept-dialog")).to_be_hidden()
    expect(voted).to_have_count(0)
    page.reload()
    expect(page.locator("#forecaster")).to_have_text("surface forecasts")
    expect(page.locator("#kept")).to_be_hidden()
    one.dialogs.clear()


def test_votes_where_the_browser_keeps_nothing(visit: Visitor, tmp_path: Path) -> None:
    one = visit()
    one.page.add_init_script(
        "delete window.indexedDB; Object.defineProperty(window, 'indexedDB', {get() { throw new Error('no'); }})"
    )
    page = one.open()
    one.load(write_csv(tmp_path / "pairs.csv", examples(2)))
    page.click("#start-votes")
    page.keyboard.press("b")
    page.click("#kept")
    expect(page.locator("#kept-note")).to_contain_text("Save them before that")
    page.click("#kept-dialog .main")
    page.click("#tab-file")
    expect(page.locator("#file-tasks .save-votes")).to_have_text("Save 1 vote")


def test_looking_is_not_voting(visit: Visitor, tmp_path: Path) -> None:
    one = visit()
    page = one.open()
    one.load(
        write_csv(tmp_path / "pairs.csv", [{**row, "model_a": "m-one", "model_b": "m-two"} for row in examples(3)])
    )
    page.click(".rows th button >> nth=1")
    expect(page.locator(".outcome.a")).to_be_visible()
    expect(page.locator(".vote")).to_contain_text("m-one")
    expect(page.locator(".vote")).to_contain_text("label B")
    expect(page.locator(".choices")).to_have_count(0)
    page.keyboard.press("a")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#vote-title")).to_have_text("Row 3 of 3")
    expect(page.locator(".outcome.a")).to_be_visible()
    expect(page.locator("#kept")).to_be_hidden()
    page.check("[data-key=on]")
    expect(page.locator("#result")).to_contain_text("You will see the forecast after your vote.")
    expect(page.locator(".vote")).not_to_contain_text("m-one")
    page.uncheck("[data-key=on]")
    expect(page.locator(".outcome.a")).to_be_visible()


def test_vote_buttons_stay_in_sight(visit: Visitor, tmp_path: Path) -> None:
    row = labelled(0, a=("long " * 4_000,), b=("\n\n".join("word" for _ in range(300)),))
    for width in (390, 1280):
        one = visit(width=width)
        page = one.open()
        one.load(write_csv(tmp_path / "pairs.csv", [row]))
        page.click("#start-votes")
        for button in page.locator(".response_b .fold").all():
            button.click()
        page.mouse.wheel(0, 2_000)
        page.wait_for_function("scrollY > 500")
        box = page.locator("[data-key=B]").bounding_box()
        assert box is not None
        assert 0 <= box["y"] <= 800 - box["height"]
        assert box["height"] >= 24


def test_directions(visit: Visitor) -> None:
    arabic = "مرحبا\n\n1. نم جيدًا\n2. GPU سريع\n\n- نقطة\n\n| الاسم | العمر |\n| - | - |\n| أحمد | ٣٠ |\n\n> قال\n\n# عنوان\n\n```\nx = 1\n```"
    page = visit().open()
    write(page, ["שלום"], [arabic], [arabic.replace("\n", "\r\n").replace("مرحبا", "Hello")])
    for name in ("prompt", "response_a"):
        assert page.evaluate("(s) => getComputedStyle(document.querySelector(s)).direction", f"#{name}-0") == "rtl"
    mode(page, "read")
    of = "(all) => all.map((one) => getComputedStyle(one).direction)"
    for selector in ("p", "ol", "ul", "ol li", "ul li", "table", "td", "blockquote", "blockquote p", ".heading"):
        found = page.eval_on_selector_all(f".response_a .text {selector}", of)
        assert found, selector
        assert set(found) == {"rtl"}, selector
    assert page.eval_on_selector_all("pre", of) == ["ltr", "ltr"]
    # What is left of the first column of a table is what is right of it elsewhere.
    first, second = (page.locator(".response_a th").nth(at).bounding_box() for at in (0, 1))
    assert first is not None
    assert second is not None
    assert first["x"] > second["x"]
    assert page.eval_on_selector_all(".response_b .text > p:first-child", of) == ["ltr"]
    mode(page, "difference")
    assert page.eval_on_selector_all(".compared", of) == ["rtl", "ltr"]


def test_code_in_a_difference_is_monospaced(visit: Visitor) -> None:
    page = visit().open()
    a = "Use `x = 1` so:\n\n```python\nreturn 1\n```\nand\n~~~\nopen 1"
    write(
        page,
        ["p"],
        [
            a,
        ],
        [a.replace("1", "2")],
    )
    mode(page, "difference")
    shown = page.locator(".response_b .compared")
    assert shown.inner_text().split() == a.replace("1", "2").split()
    assert [one.split() for one in shown.locator("code").all_text_contents()] == [
        ["`x", "=", "2`"], ["```python", "return", "2", "```"], ["~~~", "open", "2"],
    ]  # fmt: skip
    assert all(
        "ono" in font
        for font in page.eval_on_selector_all(
            ".compared code mark", "(all) => all.map((one) => getComputedStyle(one).fontFamily)"
        )
    )
    assert page.locator(".response_b mark").all_text_contents() == ["2", "2", "2"]


def test_long_texts_and_turns_fold(visit: Visitor) -> None:
    page = visit().open()
    code = "```\n" + "wide " * 100 + "\n```"
    write(page, ["p", "second prompt"], ["word\n\n" * 200, code], ["b", "b"])
    mode(page, "read")
    text = page.locator(".response_a .text").first
    height = "(one) => one.clientHeight"
    assert text.evaluate(height) < 700
    button = page.locator(".fold")
    expect(button).to_have_attribute("aria-expanded", "false")
    button.click()
    assert text.evaluate(height) > 2_000
    forecast(page)
    # A forecast draws the texts anew; what the reader opened stays open.
    assert page.locator(".response_a .text").first.evaluate(height) > 2_000
    page.locator(".turn summary").nth(1).click()
    expect(page.locator(".turn").nth(1).locator(".text").first).to_be_hidden()
    expect(page.locator(".turn summary").nth(1)).to_contain_text("second prompt")
    page.locator(".turn summary").nth(1).click()
    # Code scrolls, or wraps if one wants it.
    wide = "(one) => one.scrollWidth > one.clientWidth"
    assert page.locator("pre").evaluate(wide)
    page.click("#wrap")
    assert not page.locator("pre").evaluate(wide)


def test_the_forecast_folds_to_a_line(visit: Visitor) -> None:
    page = visit().open()
    page.click("#example")
    expect(page.locator("#live")).to_contain_text("Forecast: A")
    width = "document.querySelector('.answers').clientWidth"
    before = page.evaluate(width)
    page.click("#fold")
    assert page.evaluate(width) > before + 300
    expect(page.locator("#result")).to_be_hidden()
    expect(page.locator("#result-line")).to_contain_text(re.compile(r"A [\d.]+ %\s*B [\d.]+ %\s*tie [\d.]+ %"))
    page.fill("#prompt-0", "Other")
    expect(page.locator("#result-line")).to_contain_text("have changed")
    page.reload()
    expect(page.locator("#result")).to_be_hidden()
    page.click("#fold")
    expect(page.locator("#result")).to_be_visible()


def test_a_wide_window_is_used(visit: Visitor) -> None:
    page = visit(width=1920).open()
    assert page.evaluate("document.querySelector('.answers').clientWidth") > 1_350


def test_rows_are_cards_in_a_narrow_window(visit: Visitor, tmp_path: Path) -> None:
    one = visit(width=390)
    page = one.open()
    one.load(
        write_csv(tmp_path / "pairs.csv", [{**row, "model_a": "m-one", "model_b": "m-two"} for row in examples(3)])
    )
    page.click("#forecast-rows")
    expect(page.locator("#save-forecasts")).to_be_visible()
    assert page.evaluate(
        "document.querySelector('.holder').scrollWidth <= document.querySelector('.holder').clientWidth"
    )
    boxes = [row.bounding_box() for row in page.locator(".rows tbody tr").all()]
    assert all(box is not None and box["height"] > 80 and 300 < box["width"] <= 390 for box in boxes)
    names = page.eval_on_selector_all(
        ".rows tbody tr:first-child td", "(all) => all.map((one) => getComputedStyle(one, '::before').content)"
    )
    assert '"model A" " "' in names or '"model A "' in names
    # Cards are rows of a table all the same.
    expect(page.get_by_role("row")).to_have_count(4)
    expect(page.get_by_role("rowheader", name="row-1")).to_be_visible()


def test_themes(visit: Visitor) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    light, dark = "rgb(246, 246, 243)", "rgb(20, 22, 26)"
    page = visit(scheme="dark").open()
    assert page.evaluate(ground) == dark
    page.click("#theme")
    expect(page.locator("#theme")).to_have_text("○ Light")
    assert page.evaluate(ground) == light
    page.click("#theme")
    assert page.evaluate(ground) == dark
    page.reload()
    expect(page.locator("#theme")).to_have_text("● Dark")
    page.emulate_media(color_scheme="light")
    assert page.evaluate(ground) == dark
    page.click("#theme")
    assert page.evaluate(ground) == light


def test_with_the_keyboard_alone(visit: Visitor, tmp_path: Path) -> None:
    one = visit()
    page = one.open()
    press = page.keyboard.press

    def reach(wanted: str, most: int = 40) -> None:
        """Tab until the element that `wanted` selects has the focus, which can be seen."""
        for _ in range(most):
            if page.evaluate("(s) => document.activeElement.matches(s)", wanted):
                # Where an input itself cannot be seen, something beside it is outlined.
                assert page.evaluate(
                    "[document.activeElement, document.activeElement.nextElementSibling].some((one) => one && getComputedStyle(one).outlineStyle !== 'none')"
                )
                return
            press("Tab")
        raise AssertionError(wanted)

    press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    press("Enter")
    reach("#prompt-0")
    page.keyboard.type("Why?")
    press("Tab")
    page.keyboard.type("Because of this.")
    press("Tab")
    page.keyboard.type("No.")
    press("Tab")
    assert page.evaluate("document.activeElement.id") == "forecast"
    press("Enter")
    expect(page.locator("#live")).to_contain_text("Forecast: A")
    # Arrow keys change the way the texts are shown, and the view.
    page.focus("[name=mode][value=write]")
    press("ArrowRight")
    expect(page.locator(".text").first).to_have_text("Why?")
    page.focus("#tab-pair")
    press("ArrowRight")
    assert page.evaluate("document.activeElement.id") == "tab-file"
    expect(page.locator("#view-file")).to_be_visible()
    reach("#file")
    page.set_input_files("#file", write_csv(tmp_path / "pairs.csv", examples(3)))
    expect(page.locator("#rows-count")).to_contain_text("3 rows")
    reach("#forecast-rows")
    press("Enter")
    expect(page.locator("#save-forecasts")).to_be_visible()
    page.focus("#tab-file")
    reach(".rows th button")
    press("Enter")
    assert page.evaluate("document.activeElement.id") == "vote-title"
    reach("[data-key=on]")
    press("Space")
    press("t")
    press("ArrowRight")
    expect(page.locator("#vote-title")).to_have_text("Row 2 of 3")
    reach("[data-key=back]")
    press("Enter")
    assert page.evaluate("document.activeElement.dataset.row") == "2"
    # Letters vote only where nobody is writing.
    page.click("#start-votes")
    mode(page, "write")
    page.focus("#prompt-0")
    page.keyboard.type("abt")
    expect(page.locator("#agreement")).to_contain_text("of 1 vote")


def states(one: Visit, folder: Path) -> Iterator[str]:
    """The page in each of its states, one after the other."""
    page = one.open()
    yield "empty"
    page.click("#forecast")
    yield "an error"
    write(
        page,
        ["Why?", "And?"],
        ["**Because** " + "long " * 6_000, "| a | b |\n| - | - |\n| " + "wide" * 60 + " | 2 |"],
        ["No\n```\n" + "code" * 100 + "\n```\n[x](https://example.org)", "x" * 300],
    )
    forecast(page)
    yield "a forecast"
    page.click("#result summary")
    mode(page, "read")
    page.click(".unread summary")
    yield "read"
    mode(page, "difference")
    yield "the difference"
    page.click("#tab-file")
    yield "no file"
    one.load(write_csv(folder / "bad.csv", [{"x": 1}]))
    yield "a bad file"
    one.load(write_csv(folder / "pairs.csv", [*examples(60), kaggle_row(id="i" * 200, prompt=5)]))
    yield "a file"
    page.click("#forecast-rows")
    expect(page.locator("#save-forecasts")).to_be_visible()
    for summary in page.locator("#file-figures summary").all():
        summary.click()
    yield "a file with forecasts"
    page.click("#start-votes")
    yield "a vote that is open"
    page.keyboard.press("a")
    expect(page.locator("#live")).to_contain_text("Forecast: A")
    yield "a vote"


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.long)])
def test_no_serious_accessibility_fault(visit: Visitor, tmp_path: Path, scheme: str) -> None:
    one = visit(scheme=scheme)
    for state in states(one, tmp_path):
        no_serious_fault(one.page, f"{state}, {scheme}")


@pytest.mark.parametrize("width", [375, 768])
def test_narrow_screens(visit: Visitor, tmp_path: Path, width: int) -> None:
    one = visit(width=width)
    for state in states(one, tmp_path):
        assert fits(one.page), state
        cut = one.page.evaluate(
            "[...document.querySelectorAll('button, label, h2, h3')].filter((one) => one.checkVisibility() && !one.closest('.holder, .sideways, .hidden, .skip')"
            " && !one.matches('.hidden') && (one.getBoundingClientRect().right > innerWidth + 1 || one.getBoundingClientRect().left < -1)).map((one) => one.textContent)"
        )
        assert cut == [], state
    if width == 375:
        no_serious_fault(one.page, "narrow")


def test_a_token_is_asked_for(visit: Visitor) -> None:
    with serving("--model", "surface", token="the-right-one", PREFCAST_TOKEN="the-right-one") as server:
        one = visit(at=server)
        page = one.page
        page.goto(f"{server.url}/")
        expect(page.locator("#ask-token")).to_be_visible()
        no_serious_fault(page, "the token")
        page.fill("#token", "wrong")
        page.keyboard.press("Enter")
        expect(page.locator("#token-note")).to_contain_text("That was not the token of this server")
        # One that no header can hold is a wrong one too.
        page.evaluate("document.querySelector('#token-note').textContent = ''")
        page.fill("#token", "wrong–€")
        page.click("#ask-token button")
        expect(page.locator("#token-note")).to_contain_text("That was not the token of this server")
        page.fill("#token", "the-right-one")
        page.click("#ask-token button")
        expect(page.locator("#forecaster")).to_have_text("surface forecasts")
        page.click("#example")
        expect(page.locator("#live")).to_contain_text("Forecast: A")
        assert page.evaluate("JSON.stringify([{...localStorage}, document.cookie])") == '[{},""]'
        assert not any("the-right-one" in url for url in one.asked)
        page.reload()
        expect(page.locator("#forecaster")).to_have_text("surface forecasts")


def test_a_server_that_is_gone_or_busy(visit: Visitor) -> None:
    one = visit()
    page = one.open()
    write(page, ["Why?"], ["a"], ["b"])
    body = {"error": {"type": "too_busy", "field": "", "message": "many wait already"}}
    page.route("**/v1/forecast", lambda route: route.fulfill(status=429, headers={"Retry-After": "7"}, json=body))
    page.click("#forecast")
    expect(page.locator("#result [role=alert]")).to_contain_text("try again in 7 s")
    page.unroute_all()
    page.route("**/v1/forecast", lambda route: route.abort())
    page.click("#result button")
    expect(page.locator("#result [role=alert]")).to_contain_text("The server does not answer.")
    page.unroute_all()
    one.said.clear()
    page.click("#result button")
    expect(page.locator("#live")).to_contain_text("Forecast: A")

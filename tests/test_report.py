"""A report is one page that shows hostile texts as text, fetches nothing, runs nothing, and says what was measured."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

from browsers import chromium
from conftest import EXAMPLES, Run, labelled, write_jsonl
from prefcast.errors import UsageError
from prefcast.measuring.collected import Measured, Surprise
from prefcast.measuring.metrics import Evaluation
from prefcast.measuring.metrics.measure import evaluate_probabilities
from prefcast.pairs import Outcome, Pair, Turn
from prefcast.report.html import report_html, visible

HOSTILE = (
    '<script>document.title="pwned"</script>',
    "<img src=x onerror=\"document.title='pwned'\">",
    '"><svg onload=alert(1)>',
    "</style><style>body{display:none}</style>",
    "</details></li></ol></main>",
    "<!-- <![CDATA[ ]]> -->",
    '<iframe src="https://attacker.example/"></iframe>',
    '<link rel=stylesheet href="//attacker.example/x.css">',
    '<meta http-equiv=refresh content="0;url=https://attacker.example/">',
    "{{ 7 * 7 }} {% raw %}",
    "\u202egnp.exe\u2066",
    "\x1b[31mred\x1b[0m\x07\x00",
    "$x_1$ $\\frac{",
    "' onmouseover='alert(1)",
    'id="figure_1" #222222 url(#a)',
)
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Reader(HTMLParser):
    """Tags must be closed in order; keeps elements, text and headings."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text.append(data)


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert not reader.open
    return reader


def measured(pairs: list[Pair], seed: int = 0, surprises: int = 20) -> Measured:
    found = Measured(surprises=surprises)
    found.add_pairs(pairs, np.random.default_rng(seed).dirichlet([2, 2, 2], len(pairs)), None)
    return found


def hostile_pairs() -> list[Pair]:
    pairs = []
    for number in range(60):
        bad = HOSTILE[number % len(HOSTILE)]
        turns = (Turn(f"prompt {number} {bad}", f"{bad}\nsecond line", f"b {bad} " + "x" * 100_000),)
        models = (f"left {bad}", f"right {bad}")
        pairs.append(Pair(turns, f"{number} {bad}", Outcome(number % 3), models[0], models[1]))
    return pairs


def hostile_page(title: str = "".join(HOSTILE[:3])) -> str:
    found = measured(hostile_pairs())
    return report_html(
        found.evaluation(repeats=100),
        title=title,
        forecaster=HOSTILE[0],
        source=HOSTILE[1],
        date="2026-01-02",
        surprises=found.surprises,
    )


@pytest.fixture(scope="module")
def hostile() -> str:
    return hostile_page()


def test_hostile_texts_stay_text(hostile: str) -> None:
    reader = read(hostile)
    names = {tag for tag, _ in reader.elements}
    assert not names & {"script", "img", "iframe", "object", "embed", "base", "form", "foreignobject", "a"}
    assert len([tag for tag, _ in reader.elements if tag == "style"]) == 1
    for _, attributes in reader.elements:
        assert not [name for name in attributes if name.startswith("on")]
        assert (attributes.get("href") or "#").startswith(("#", "data:,"))
        assert "src" not in attributes
    text = "".join(reader.text)
    for bad in HOSTILE:
        assert visible(bad) in text
    assert "[[" not in text
    assert "49" not in text.split("{{ 7 * 7 }}")[1][:10]


def test_nothing_invisible_is_left(hostile: str) -> None:
    assert not [c for c in set(hostile) if not c.isprintable() and c not in "\n\t\u00a0"]
    assert "\\u202egnp.exe" in hostile
    assert "\\x1b[31mred" in hostile


def test_the_page_forbids_itself_everything(hostile: str) -> None:
    reader = read(hostile)
    policy = next(a["content"] for tag, a in reader.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:")
    # Before anything that could load.
    assert hostile.index("Content-Security-Policy") < hostile.index("<link")


def test_nothing_refers_to_the_network() -> None:
    found = measured([Pair.of(f"p {n}", "a", "bb", id=n, outcome=Outcome(n % 3)) for n in range(30)])
    page = report_html(found.evaluation(repeats=100), title="t", forecaster="f", surprises=found.surprises)
    assert not re.findall(r"https?:|//\w|@import|ftp:", page)
    used = set(re.findall(r"url\(([^)]*)\)", page))
    assert used
    assert used <= {f"#{i}" for i in re.findall(r'id="([^"]*)"', page)}


def test_ids_are_unique_and_found(hostile: str) -> None:
    elements = read(hostile).elements
    ids = [a["id"] for _, a in elements if "id" in a]
    assert len(ids) == len(set(ids))
    used = {a.get("href", a.get("xlink:href")) for tag, a in elements if tag == "use"}
    assert used
    assert used <= {f"#{each}" for each in ids}


def test_charts_have_words_and_headings_are_in_order(hostile: str) -> None:
    elements = read(hostile).elements
    charts = [a for tag, a in elements if tag == "svg"]
    assert len(charts) >= 5
    assert all(a.get("role") == "img" and len(a.get("aria-label") or "") > 40 for a in charts)
    levels = [int(tag[1]) for tag, _ in elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels) if after < 4)
    tables = [tag for tag, _ in elements if tag in ("table", "caption")]
    assert tables
    assert tables == ["table", "caption"] * (len(tables) // 2)
    assert all("scope" in a for tag, a in elements if tag == "th")


def test_colours_are_the_pages(hostile: str) -> None:
    drawings = re.findall(r"<svg.*?</svg>", hostile, re.DOTALL)
    tags = "".join(tag for drawing in drawings for tag in re.findall(r"<[^>]*>", drawing) if not tag.startswith("<svg"))
    assert "var(--accent)" in tags
    assert "currentColor" in tags
    assert not re.findall(r"(?:fill|stroke): ?#(?!000000)\w+", tags)
    # A name that looks like a colour keeps its text.
    assert "#222222" in "".join(read(hostile).text)


def test_long_texts_are_cut_and_counted(hostile: str) -> None:
    assert len(hostile) < 2_000_000
    assert "more characters are not shown" in hostile
    many = Pair(tuple(Turn(f"p{n}", "a", "b") for n in range(40)), 1, Outcome.A)
    found = measured([many, Pair.of("q", "a", "b", outcome=Outcome.B)])
    page = report_html(found.evaluation(repeats=100), title="t", forecaster="f", surprises=found.surprises)
    assert "28 more turns are not shown" in page
    assert "more characters are not shown" not in page
    found = measured([Pair.of("q", "x" * 4000, "y" * 4001, outcome=Outcome.B)])
    page = report_html(found.evaluation(repeats=100), title="t", forecaster="f", surprises=found.surprises)
    assert page.count("more characters are not shown") == 1
    assert "<p>1 more characters are not shown" in page


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\r\nb\tc\n", "a\nb\tc\n"),
        ("a\rb", "a\\rb"),
        ("\u3000中\u00a0x", "\u3000中\u00a0x"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("👩\u200d💻", "👩\u200d💻"),
        ("a\u200db", "a\\u200db"),
        ("\u202e\u2066\u2028\ufeff\u200b", "\\u202e\\u2066\\u2028\\ufeff\\u200b"),
        ("é\u200d\u200d\u200d", "é\u200d\\u200d\\u200d"),
        ("\x00\x1b\x7f\x9b\U000e0041", "\\x00\\x1b\\x7f\\x9b\\U000e0041"),
    ],
)
def test_visible(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_same_input_same_bytes(hostile: str) -> None:
    assert hostile_page() == hostile
    dated, undated = hostile, hostile.replace("<span>2026-01-02</span>", "")
    assert len(undated) < len(dated)
    found = measured(hostile_pairs())
    pages = [
        report_html(found.evaluation(repeats=100), title="t", forecaster="f", surprises=found.surprises) for _ in "ab"
    ]
    assert pages[0] == pages[1]


def bare(label: int) -> Evaluation:
    p = np.random.default_rng(1).dirichlet([2, 2, 2], 25)
    return evaluate_probabilities(p, np.full(25, label), repeats=100)


@pytest.mark.parametrize("label", [0, 1, 2])
def test_one_outcome_no_texts(label: int) -> None:
    page = report_html(bare(label), title="t", forecaster="f")
    text = "".join(read(page).text)
    assert "the texts of the pairs were not given" in text
    assert "Better and worse kinds" not in text
    assert "not tried" in text
    assert "no such rows" in text


def test_extreme_probabilities() -> None:
    p = np.eye(3)[np.arange(30) % 3]
    for outcomes in (np.arange(30) % 3, (np.arange(30) + 1) % 3):
        read(report_html(evaluate_probabilities(p, outcomes, repeats=100), title="t", forecaster="f", surprises=()))


def test_a_right_forecast_is_called_better_and_a_wrong_one_worse() -> None:
    y = np.arange(90) % 3
    good = np.full((90, 3), 0.2) + 0.4 * np.eye(3)[y]
    bad = np.full((90, 3), 0.2) + 0.4 * np.eye(3)[(y + 1) % 3]
    same = np.full((90, 3), 1 / 3)
    said = [
        report_html(evaluate_probabilities(p, y, repeats=100), title="t", forecaster="f") for p in (good, bad, same)
    ]
    for page, words in zip(
        said, ("better than a forecast", "worse than a forecast", "not clearly different"), strict=True
    ):
        assert words in page


def quiet(*hosts: str) -> bool:
    """Whether the hosts are those that Chromium asks for itself."""
    own = ("google.com", "googleapis.com", "gstatic.com", "gvt1.com", "chromium.org")
    return all(host.endswith(own) for host in hosts)


@pytest.fixture
def browse(tmp_path: Path) -> Callable[[Path], tuple[str, str, list[str]]]:
    """Opens a page in Chromium: the document afterwards, the console, the addresses that were asked for."""
    program = chromium()

    def opened(page: Path) -> tuple[str, str, list[str]]:
        log = tmp_path / "net.json"
        done = subprocess.run(
            [
                program,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                f"--user-data-dir={tmp_path / 'profile'}",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--disable-default-apps",
                "--no-first-run",
                "--enable-logging=stderr",
                "--v=0",
                f"--log-net-log={log}",
                "--virtual-time-budget=2000",
                "--dump-dom",
                page.as_uri(),
            ],
            capture_output=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode("utf-8", "replace")[-2000:]
        addresses = re.findall(r'"url":"((?:https?|wss?):[^"]*)"', log.read_text("utf-8", "replace"))
        return done.stdout.decode("utf-8"), done.stderr.decode("utf-8", "replace"), addresses

    return opened


def test_in_a_browser(tmp_path: Path, hostile: str, browse: Callable[[Path], tuple[str, str, list[str]]]) -> None:
    page = tmp_path / "report.html"
    page.write_text(hostile, encoding="utf-8")
    dom, console, addresses = browse(page)
    reader = Reader()
    reader.feed(dom)
    assert not [tag for tag, _ in reader.elements if tag in ("script", "img", "iframe", "object")]
    title = re.search(r"<title>(.*?)</title>", dom, re.DOTALL)
    assert title is not None
    assert title[1].startswith("&lt;script&gt;document.title=")
    assert len([tag for tag, _ in reader.elements if tag == "details"]) == hostile.count("<details")
    assert "CONSOLE" not in console
    assert "Content Security Policy" not in console
    assert quiet(*(urlsplit(address).hostname or "" for address in addresses)), addresses


def test_the_browser_test_sees_what_it_looks_for(
    tmp_path: Path, browse: Callable[[Path], tuple[str, str, list[str]]]
) -> None:
    page = tmp_path / "open.html"
    page.write_text(
        '<title>t</title><script>document.title="pwned"; oops()</script><img src="http://localhost:9/x.png">'
    )
    dom, console, addresses = browse(page)
    assert "<title>pwned</title>" in dom
    assert "CONSOLE" in console
    assert "http://localhost:9/x.png" in addresses
    # The policy of a report stops all that slips through.
    policy = re.search(
        r'<meta http-equiv="Content-Security-Policy"[^>]*>', report_html(bare(0), title="t", forecaster="f")
    )
    assert policy is not None
    page.write_text(policy[0] + page.read_text())
    dom, console, addresses = browse(page)
    assert "<title>t</title>" in dom
    assert "Content Security Policy" in console
    assert "http://localhost:9/x.png" not in addresses


def test_report_from_the_command_line(prefcast_here: Run, tmp_path: Path) -> None:
    done = prefcast_here("report", EXAMPLES, "-o", "out.html", "--json", "out.json", "--title", "Our <b>votes</b>")
    assert (done.returncode, done.stderr) == (0, "")
    assert "report in out.html" in done.stdout
    page = (tmp_path / "out.html").read_text("utf-8")
    read(page)
    assert "<title>Our &lt;b&gt;votes&lt;/b&gt;</title>" in page
    assert "forecaster <bdi>embedded</bdi>" in page
    assert page.count("<li><details>") == 20
    figures = json.loads((tmp_path / "out.json").read_text())
    assert f"{figures['log_loss']['value']:.3f}" in page
    assert {path.name for path in tmp_path.iterdir()} == {"out.html", "out.json"}
    dates = [
        prefcast_here(
            "report", EXAMPLES, "--model", "surface", "-o", "dated.html", SOURCE_DATE_EPOCH="86400"
        ).returncode,
        "<span>1970-01-02</span>" in (tmp_path / "dated.html").read_text("utf-8"),
    ]
    assert dates == [0, True]


def test_predictions_alone_show_no_pairs(prefcast_here: Run, tmp_path: Path) -> None:
    assert prefcast_here("predict", EXAMPLES, "--model", "surface", "-o", "p.jsonl").returncode == 0
    assert prefcast_here("predict", EXAMPLES, "--model", "length", "-o", "other.jsonl").returncode == 0
    done = prefcast_here("report", "--predictions", "p.jsonl", "--against", "other.jsonl", "-o", "out.html")
    assert done.returncode == 0
    assert done.stderr.startswith("prefcast: the report shows no pairs")
    page = (tmp_path / "out.html").read_text("utf-8")
    assert "the texts of the pairs were not given" in page
    assert "Compared with <bdi>other.jsonl</bdi>" in page
    assert prefcast_here("report", EXAMPLES, "--predictions", "p.jsonl", "-o", "out.html").stderr == ""
    assert (tmp_path / "out.html").read_text("utf-8").count("<li><details>") == 20


def test_failed_rows_end_with_3(prefcast_here: Run, tmp_path: Path) -> None:
    rows = [labelled(n % 3, id=n, prompt=(f"Why {n}?",)) for n in range(6)]
    write_jsonl(tmp_path / "pairs.jsonl", [*rows, {**rows[0], "id": 9, "prompt": 5}])
    done = prefcast_here("report", "pairs.jsonl", "--model", "surface", "-o", "out.html")
    assert done.returncode == 3
    assert "1: rows without a forecast" in (tmp_path / "out.html").read_text("utf-8")


def test_measured_keeps_no_more_than_asked() -> None:
    found = measured(hostile_pairs(), surprises=3)
    losses = [each.log_loss for each in found.surprises]
    assert losses == sorted(losses, reverse=True)
    assert len(losses) == 3
    assert all(isinstance(each, Surprise) for each in found.surprises)
    with pytest.raises(UsageError):
        Measured().evaluation()

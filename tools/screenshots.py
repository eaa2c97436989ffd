"""Makes the pictures of the pages that the README and docs/ show: python tools/screenshots.py FOLDER

Starts a server with the default forecaster, shows a pair and the example file, then starts a voting page for the example pairs, on
which two made-up raters vote. Reduces the pictures to few colours.
"""

from __future__ import annotations

import csv
import io
import json
import re
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, expect

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from browsers import opened  # noqa: E402
from servers import Server, serving  # noqa: E402

COLOURS = 96
MOST_BYTES = 150_000
EXAMPLES = ROOT / "examples" / "pairs.csv"


def save(page: Page, path: Path) -> None:
    """What the window shows, as a small PNG."""
    picture = Image.open(io.BytesIO(page.screenshot(animations="disabled"))).convert("RGB")
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    if path.stat().st_size > MOST_BYTES:
        raise SystemExit(f"{path}: {path.stat().st_size} bytes; at most {MOST_BYTES}")
    print(f"{path}: {path.stat().st_size:,} bytes")


def forecasts(browser: Browser, server: Server, folder: Path) -> None:
    """A pair with its forecast, and a file."""
    page = browser.new_page(viewport={"width": 1280, "height": 860}, color_scheme="light")
    page.goto(server.url)
    page.click("#example")
    expect(page.locator("#live")).to_contain_text("Forecast: A", timeout=60_000)
    page.check("[name=mode][value=read]", force=True)
    save(page, folder / "page-pair.png")

    page = browser.new_page(viewport={"width": 1280, "height": 980}, color_scheme="dark")
    page.goto(server.url)
    page.click("#tab-file")
    page.set_input_files("#file", EXAMPLES)
    page.click("#forecast-rows")
    expect(page.locator("#save-forecasts")).to_be_visible(timeout=60_000)
    page.select_option("#filter-order", "b")
    page.mouse.move(0, 0)
    save(page, folder / "page-file.png")


def answers(folder: Path) -> tuple[Path, Path]:
    """The two answers of the example pairs as the files of two systems."""
    with EXAMPLES.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for name, column in (("yesterday", "response_a"), ("today", "response_b")):
        lines = [
            {"id": row["id"], "prompt": json.loads(row["prompt"]), "response": json.loads(row[column])} for row in rows
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return folder / "yesterday.jsonl", folder / "today.jsonl"


def vote(server: Server, rater: str, votes: int, *, unlike: int) -> None:
    """Made-up votes: mostly for today; every pair whose number `unlike` divides is seen the other way round."""
    with EXAMPLES.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    numbers = {json.loads(row["prompt"])[0]: number for number, row in enumerate(rows)}
    standing = server.ask("POST", "/v1/votes", {"rater": rater}).json
    for _ in range(votes):
        prompt, first, _ = standing["shown"]["turns"][0]
        number = numbers[prompt]
        is_today = first == json.loads(rows[number]["response_b"])[0]
        spoken = "tie" if number % 7 == 3 else "1" if is_today == bool(number % 4 and number % unlike) else "2"
        ballot = standing["shown"]["ballot"]
        standing = server.ask("POST", "/v1/votes", {"rater": rater, "ballot": ballot, "vote": spoken}).json


def voting(browser: Browser, folder: Path) -> None:
    """The voting page of a rater, and the results."""
    with tempfile.TemporaryDirectory() as made:
        left, right = answers(Path(made))
        verb = ("label", str(left), str(right), "--votes", "40", "--uniform", "--page", "-o", f"{made}/votes.csv")
        with serving(verb=verb, PREFCAST_CACHE=made) as server:
            vote(server.loaded(), "Ann", 12, unlike=99)
            page = browser.new_page(viewport={"width": 1280, "height": 720}, color_scheme="light")
            page.goto(server.url)
            page.fill("#name", "Ann")
            page.keyboard.press("Enter")
            expect(page.locator("#choices:not(.unread)")).to_be_visible()
            save(page, folder / "label-vote.png")

            vote(server, "Ann", 8, unlike=99)
            vote(server, "Bob", 14, unlike=5)
            key = re.search(r"/results#(\S+)", "".join(server.lines))
            assert key is not None  # noqa: S101
            page = browser.new_page(viewport={"width": 1000, "height": 680}, color_scheme="dark")
            page.goto(f"{server.url}/results#{key[1]}")
            expect(page.locator("#verdict")).to_be_visible()
            save(page, folder / "label-results.png")


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    with opened() as browser:
        with serving() as server:
            forecasts(browser, server, folder)
        voting(browser, folder)


if __name__ == "__main__":
    main()

"""The voting page in a real browser: from an empty folder to a decision, and no vote is lost on the way."""

from __future__ import annotations

import csv
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from browsers import opened
from conftest import SURFACE, Run
from servers import Server, serving
from test_page import Visit, fits, harmless, no_serious_fault
from test_voting import command, key_of

expect.set_options(timeout=120_000)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with opened() as found:
        yield found


def start(page: Page, server: Server, name: str) -> Page:
    page.goto(server.url)
    page.fill("#name", name)
    page.keyboard.press("Enter")
    expect(page.locator("#rater")).to_contain_text(name)
    return page


def counts(page: Page) -> tuple[int, int]:
    """How many votes the rater gave, and how many pairs are left."""
    found = re.fullmatch(r"(\d+) votes?.*; (\d+) pairs? left", page.locator("#counts").text_content() or "")
    assert found is not None
    return int(found[1]), int(found[2])


class Rater:
    """A person who likes what the right system says, with the keyboard or without, and remembers their votes."""

    def __init__(self, page: Page, name: str, *, keys: bool) -> None:
        self.page, self.name, self.keys = page, name, keys
        self.said: dict[str, str] = {}

    def texts(self) -> tuple[str, str, str]:
        expect(self.page.locator("#choices:not(.unread)")).to_be_visible()
        read = [
            self.page.locator(f".{name} .text").first.inner_text() for name in ("prompt", "response_a", "response_b")
        ]
        return read[0], read[1], read[2]

    def shows_what(self, other: Rater) -> None:
        """Waits until both pages show the same pair: a count or a message may come before the next pair does."""
        end = time.monotonic() + 180
        while self.texts() != other.texts():
            assert time.monotonic() < end
            self.page.wait_for_timeout(50)

    def press(self, said: str) -> None:
        if self.keys:
            self.page.keyboard.press(said)
        else:
            self.page.click({"a": "[data-said='1']", "b": "[data-said='2']", "t": "[data-said=tie]"}[said])

    def vote(self, *, answered: bool = True) -> None:
        """Votes on what the page shows: every sixth pair is a tie."""
        prompt, a, _ = self.texts()
        voted, _ = counts(self.page)
        said = "t" if len(self.said) % 6 == 5 else "a" if a.startswith("right") else "b"
        self.said[prompt] = "tie" if said == "t" else "right"
        self.press(said)
        if answered:
            self.taken(voted + 1)

    def taken(self, votes: int) -> None:
        expect(self.page.locator("#counts")).to_have_text(re.compile(rf"^{votes} vote"))


def kept(path: Path) -> dict[tuple[str, str], str]:
    with path.open(newline="") as file:
        return {(row["rater"], row["id"]): row["winner"] for row in csv.DictReader(file)}


@pytest.mark.parametrize("votes", [8, pytest.param(60, marks=pytest.mark.long)])
def test_from_an_empty_folder_to_a_decision(browser: Browser, tmp_path: Path, prefcast_here: Run, votes: int) -> None:
    verb = command(tmp_path, "--overlap", "0.25", votes=votes)
    with serving(verb=verb, ending=-9) as server:
        server.loaded()
        tab = browser.new_context().new_page()
        phone = browser.new_context(viewport={"width": 375, "height": 740}, color_scheme="dark").new_page()
        ann, bob = (
            Rater(start(page, server, name), name, keys=name == "Ann") for page, name in ((tab, "Ann"), (phone, "Bob"))
        )
        for _ in range(votes // 4):
            ann.vote()
            bob.vote()
        # A reload in the middle: Ann is asked for no name and sees the same pair.
        before = ann.texts(), counts(tab)
        tab.reload()
        assert (ann.texts(), counts(tab)) == before
        # The server is killed. What Ann says now waits in her browser, also over the end of the page.
        server.process.kill()
        server.process.wait()
        ann.vote(answered=False)
        expect(tab.locator("#trouble")).to_contain_text("Your vote is kept in this browser. The page tries again")
        assert len(kept(tmp_path / "votes.csv")) == 2 * (votes // 4)
    with serving(verb=verb, port=server.port) as server:
        ann.taken(votes // 4 + 1)
        expect(tab.locator("#trouble")).to_be_empty()
        for rater in (ann, bob, ann):
            while counts(rater.page)[1]:
                rater.vote()
        expect(tab.locator("#title")).to_contain_text("You are done")
        results = browser.new_page()
        results.goto(f"{server.url}/results#{key_of(server)}")
        expect(results.locator("#verdict")).to_have_text("People prefer right.jsonl")
        expect(results.locator("#people")).to_have_text("2 raters")
        expect(results.locator("main")).to_contain_text(f"{votes} of {votes} pairs have votes")
        expect(results.locator("main")).to_contain_text("the two say the same in")
        with results.expect_download() as download:
            results.click("#save")
        assert download.value.path().read_bytes() == (tmp_path / "votes.csv").read_bytes()
        for page in (tab, phone, results):
            page.close()
    found = kept(tmp_path / "votes.csv")
    # Each vote that was given is there, for the system that it was given to, and no other.
    expected = {}
    for rater in (ann, bob):
        for prompt, side in rater.said.items():
            number = "7" if prompt == "one?" else prompt.removeprefix("Why ").removesuffix("?")
            expected[rater.name, f"id-{number}"] = side
    assert found == expected
    assert len({id for _, id in found}) == votes
    done = prefcast_here(
        "compare", tmp_path / "left.jsonl", tmp_path / "right.jsonl", *SURFACE, "--votes", tmp_path / "votes.csv"
    )
    assert f"{len(found)} votes by 2 raters on {votes} of 60 pairs" in done.stdout
    assert "people prefer right.jsonl" in done.stdout


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(verb=command(tmp_path_factory.mktemp("page"), "--uniform", votes=60)) as found:
        yield found.loaded()


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.long)])
def test_what_the_page_must_not_do(browser: Browser, server: Server, scheme: str) -> None:
    """Texts do nothing, no state has a fault of accessibility, nothing is wider than a phone; keys, skips and taking back."""
    context = browser.new_context(color_scheme=scheme, viewport={"width": 375, "height": 740})
    one = Visit(context, server)
    page = one.page
    page.goto(server.url)
    expect(page.locator("#who")).to_be_visible()
    no_serious_fault(page, "name")
    page.fill("#name", "=cmd()")
    page.keyboard.press("Enter")
    expect(page.locator("#trouble")).to_contain_text("begins with a letter or a digit")
    start(page, server, f"Eve {scheme}")
    expect(page.locator(".response_a .text")).to_contain_text("<script>window.pwned=1</script>")
    expect(page.locator(".response_a .text strong").first).to_have_text("bold")
    no_serious_fault(page, "vote")
    assert fits(page)
    rater = Rater(page, "Eve", keys=True)
    for number in range(7):
        rater.vote()
        assert counts(page)[0] == number + 1
    rater.texts()
    page.keyboard.press("s")
    expect(page.locator("#counts")).to_contain_text("7 votes, 1 skipped")
    for _ in range(2):
        rater.texts()
        page.keyboard.press("u")
        expect(page.locator("#live")).to_contain_text("Taken back.")
    expect(page.locator("#counts")).to_have_text(re.compile("^6 votes;"))
    # A key that is held down, or has another meaning, is no vote.
    rater.texts()
    page.keyboard.press("Control+a")
    page.evaluate("document.body.dispatchEvent(new KeyboardEvent('keydown', {key: 'a', repeat: true, bubbles: true}))")
    assert counts(page)[0] == 6
    rater.vote()
    page.goto(f"{server.url}/results#{key_of(server)}")
    expect(page.locator("#verdict")).to_be_visible()
    expect(page.locator("main")).to_contain_text("holds however often you look")
    no_serious_fault(page, "results")
    assert fits(page)
    harmless(page)
    page.goto(f"{server.url}/results#wrong")
    expect(page.locator("#trouble")).to_contain_text("the results open with the address")
    one.check()
    context.close()


def test_two_tabs_of_one_rater(browser: Browser, server: Server) -> None:
    context = browser.new_context()
    one, two = (Rater(context.new_page(), "Tab", keys=True) for _ in range(2))
    start(one.page, server, "Tab")
    two.page.goto(server.url)
    assert two.texts() == one.texts()
    one.press("a")
    one.taken(1)
    # The same again is the same vote; another one is refused, and the page goes on.
    two.press("a")
    two.taken(1)
    two.shows_what(one)
    one.press("b")
    one.taken(2)
    two.press("t")
    expect(two.page.locator("#trouble")).to_contain_text(
        "Your vote was not counted: you have voted on this pair before"
    )
    two.shows_what(one)
    assert counts(two.page)[0] == 2
    context.close()

"""Who votes on which pair, blind, and what may be said of the result meanwhile."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefcast.measuring.interim import Interim, Population, Underway
from prefcast.measuring.voted import voted
from prefcast.outcomes.statistics.raters import alike
from prefcast.pairs import Pair
from prefcast.pairs.formats.side_votes import read_side_votes
from prefcast.pairs.formats.vote_files import Vote, VoteFile
from prefcast.service.desk import Desk, Standing, rater_of
from prefcast.service.refusals import Refusal

ROWS = 40
PAIRS = [Pair.of(f"Why {row}?", f"left says {row}", f"right says {row}", id=f"secret-{row}") for row in range(ROWS)]
INCLUSION = {str(pair.id): 0.5 for pair in PAIRS}
Made = Callable[..., Desk]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Made]:
    """Opens desks, one after the other, on one file."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    files: list[VoteFile] = []

    def made(pairs: list[Pair] = PAIRS, **more: Any) -> Desk:
        for file in files:
            file.close()
        file = VoteFile(tmp_path / "votes.csv")
        files.append(file)
        file.begin({str(pair.id): 0.5 for pair in pairs})
        return Desk(pairs, file, **more)

    yield made
    for file in files:
        file.close()


def side(standing: Standing, answer: str) -> str:
    """Whose an answer is, by its text."""
    assert standing.shown is not None
    return standing.shown.turns[0]["12".index(answer) + 1].split()[0]


def row(standing: Standing) -> int:
    assert standing.shown is not None
    return int(standing.shown.turns[0][0].split()[1][:-1])


def vote(desk: Desk, rater: str, said: str = "1") -> Standing:
    shown = desk.standing(rater).shown
    assert shown is not None
    return desk.say(rater, shown.ballot, said)


def test_the_vote_is_for_the_system_and_the_rater_is_blind(desk: Made, tmp_path: Path) -> None:
    one, sides = desk(overlap=1.0), Counter[tuple[str, str]]()
    expected = {}
    for rater in ("Ann", "Bob"):
        for _ in range(ROWS):
            standing = one.standing(rater)
            # Neither the id nor the order of the sides can be told from what a rater gets.
            assert "secret" not in repr(standing)
            sides[rater, side(standing, "1")] += 1
            expected[f"secret-{row(standing)}", rater] = side(standing, "1")
            vote(one, rater)
    # Binomial with 40 throws: 8 to 32 holds in all but one of 10,000 cases, and the seed is fixed.
    assert all(8 <= count <= 32 for count in sides.values()), sides
    assert len(sides) == 4
    found = {
        (vote.id, str(vote.rater)): ("left", "right")[vote.outcome]
        for vote in read_side_votes(tmp_path / "votes.csv").votes
    }
    assert found == expected
    # Two raters do not see all pairs the same way round.
    assert len({expected[id, "Ann"] == expected[id, "Bob"] for id in INCLUSION}) == 2
    ballots = {rater: desk(overlap=1.0)._ballot(rater, 0) for rater in ("Ann", "Bob")}
    assert ballots["Ann"] != ballots["Bob"]


def test_pairs_come_in_the_order_of_the_draw_and_never_twice(desk: Made) -> None:
    one = desk()
    rows = []
    for _ in range(ROWS):
        rows.append(row(one.standing("Ann")))
        standing = vote(one, "Ann", "tie" if len(rows) % 3 else "skip")
    assert rows == list(range(ROWS))
    assert (standing.voted, standing.skipped, standing.left, standing.shown) == (27, 13, 0, None)
    # What Ann skipped is there for Bob.
    assert row(one.standing("Bob")) == 2
    assert one.standing("Bob").left == 13


def test_two_raters_share_the_pairs(desk: Made) -> None:
    time = 0.0
    one = desk(clock=lambda: time)
    assert [row(one.standing(rater)) for rater in ("Ann", "Bob", "Ann", "Cy")] == [0, 1, 0, 2]
    vote(one, "Bob")
    assert [row(one.standing(rater)) for rater in ("Bob", "Ann")] == [3, 0]
    # Ann left. After a while her pair is there for the others.
    time = 10_000.0
    assert row(one.standing("Dee")) == 0
    # Ann comes back and votes on what her page still shows: the vote counts.
    mine = one._ballot("Ann", 0)
    vote(one, "Dee")
    assert one.say("Ann", mine, "tie").voted == 1
    assert len(one.votes()[1][0]) == 2


def test_at_the_end_nobody_waits_for_a_rater_who_left(desk: Made) -> None:
    one = desk(PAIRS[:2])
    assert [row(one.standing(rater)) for rater in ("Ann", "Bob")] == [0, 1]
    vote(one, "Bob")
    assert row(one.standing("Bob")) == 0


@pytest.mark.parametrize(("overlap", "twice"), [(0.0, 0), (0.2, 8), (0.5, 20), (1.0, 40)])
def test_a_share_of_the_pairs_gets_two_raters(desk: Made, overlap: float, twice: int) -> None:
    # A longer draw leaves the pairs of the shorter one as they were.
    few = desk(PAIRS[:20], overlap=overlap)._wanted
    one = desk(overlap=overlap)
    assert one._wanted[:20] == few
    for rater in ("Ann", "Bob", "Cy"):
        while one.standing(rater).shown is not None:
            vote(one, rater)
    counts = [len(votes) for votes in one.votes()[1]]
    assert sorted(counts) == [1] * (ROWS - twice) + [2] * twice


def test_a_retry_counts_once_and_another_vote_is_refused(desk: Made) -> None:
    one = desk()
    shown = one.standing("Ann").shown
    assert shown is not None
    first = one.say("Ann", shown.ballot, "1")
    changed = one.changed
    assert one.say("Ann", shown.ballot, "1") == first
    assert one.changed == changed
    for other in ("2", "tie", "skip"):
        with pytest.raises(Refusal) as caught:
            one.say("Ann", shown.ballot, other)
        assert caught.value.type == "voted_already"
    # Another rater, and a ballot of another rater.
    for rater, ballot in (("Bob", shown.ballot), ("Ann", "0" * 24), ("Ann", "")):
        with pytest.raises(Refusal) as caught:
            one.say(rater, ballot, "1")
        assert (caught.value.type, caught.value.field) == ("invalid", "ballot")
    assert one.changed == changed


def test_the_last_vote_is_taken_back(desk: Made) -> None:
    one = desk()
    for said in ("1", "2", "skip"):
        last = vote(one, "Ann", said)
    # Also after a restart, and again and again.
    one = desk()
    for left in (2, 1, 0):
        assert last.last is not None
        shown = one.take_back("Ann", last.last)
        # A retry takes no second vote back.
        assert one.take_back("Ann", last.last) == shown
        assert shown.shown is not None
        assert (row(shown), shown.shown.ballot) == (left, last.last)
        assert shown.voted + shown.skipped == left
        last = shown
    assert last.last is None


def test_a_clock_that_is_set_back_does_not_change_which_vote_is_the_last(
    desk: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefcast.service import desk as module

    class Past(module.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return cls(2001, 1, 1, tzinfo=tz)

    one = desk()
    vote(one, "Ann")
    monkeypatch.setattr(module, "datetime", Past)
    second = one.standing("Ann").shown
    assert second is not None
    assert vote(one, "Ann").last == second.ballot
    assert desk().standing("Ann").last == second.ballot


def test_a_rater_is_known_in_any_letters(desk: Made) -> None:
    one = desk()
    vote(one, "Zoë")
    assert one.standing("zoë").voted == 1
    assert vote(one, "ZOË").voted == 2
    assert one.raters.keys() == {"Zoë"}
    assert rater_of("  Zoe\u0308   von  X ") == "Zoë von X"


@pytest.mark.parametrize(
    "name",
    ["", " ", "=cmd()", "+1", "-x", "@me", "\tAnn", "x" * 41, "Ann\x00", "A\u202enn", "\u200bAnn", "'x", "A\ud800"],
)
def test_a_name_that_a_table_could_not_hold_is_refused(name: str) -> None:
    if name == "\tAnn":
        assert rater_of(name) == "Ann"
        return
    with pytest.raises(Refusal) as caught:
        rater_of(name)
    assert caught.value.field == "rater"


def test_raters_at_the_same_moment(desk: Made) -> None:
    one = desk(overlap=0.3)
    raters = [f"r{number}" for number in range(6)]

    def work(rater: str) -> None:
        standing = one.standing(rater)
        while standing.shown is not None:
            standing = one.say(rater, standing.shown.ballot, "1")

    threads = [threading.Thread(target=work, args=(rater,)) for rater in raters]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    again = desk(overlap=0.3)
    assert again.votes()[1] == one.votes()[1]
    assert all(len(votes) >= wanted for votes, wanted in zip(one.votes()[1], one._wanted, strict=True))


@pytest.mark.parametrize("said", ["skip", "1"])
def test_a_pair_that_is_taken_back_is_shown_again_though_others_filled_it(desk: Made, said: str) -> None:
    one = desk(PAIRS[:1])
    first = one.standing("Bob").shown
    assert first is not None
    other = one.standing("Ann").shown
    assert other is not None
    one.say("Bob", first.ballot, said)
    one.say("Ann", other.ballot, "1")
    again = one.take_back("Bob", first.ballot)
    assert (again.left, again.shown) == (1, first)
    assert one.say("Bob", first.ballot, "2").voted == 1
    assert one.standing("Ann").shown is None


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["Ann", "Bob"]),
        st.sampled_from(["1", "2", "tie", "skip", "undo", "again", "reload", "restart"]),
    ),
    max_size=30,
)


@given(steps=STEPS)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_vote_that_was_answered_is_there(desk: Made, tmp_path: Path, steps: list[tuple[str, str]]) -> None:
    (tmp_path / "votes.csv").unlink(missing_ok=True)
    one = desk(PAIRS[:6], overlap=0.5)
    kept: dict[tuple[str, str], str] = {}
    history: dict[str, list[tuple[str, str]]] = {"Ann": [], "Bob": []}
    for rater, step in steps:
        standing = one.standing(rater)
        mine = history[rater]
        if step == "restart":
            one = desk(PAIRS[:6], overlap=0.5)
        elif step == "again" and mine:
            ballot, said = mine[-1]
            one.say(rater, ballot, said)
        elif step == "undo" and standing.last is not None:
            undone = one.take_back(rater, standing.last)
            place = next(at for at in range(6) if one._ballot(rater, at) == standing.last)
            ballot = mine.pop()[0]
            assert ballot == standing.last
            del kept[f"secret-{place}", rater]
            assert undone.shown is not None
            assert undone.shown.ballot == ballot
        elif step in ("1", "2", "tie", "skip") and standing.shown is not None:
            kept[f"secret-{row(standing)}", rater] = {"tie": "tie", "skip": ""}.get(step) or (
                "" if step == "skip" else side(standing, step)
            )
            mine.append((standing.shown.ballot, step))
            one.say(rater, standing.shown.ballot, step)
        found = {
            (f"secret-{place}", name): each.winner
            for place, votes in enumerate(one.votes()[1])
            for name, each in votes.items()
        }
        assert found == kept
        now = one.standing(rater)
        assert now.voted + now.skipped == len([key for key in kept if key[1] == rater])


def test_alpha_is_that_of_the_book() -> None:
    """The examples of Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), sections B and C."""
    two = ("aabbdcccedda", "babbbccceddd")
    found = alike(np.array([[sum(rater[unit] == kind for rater in two) for kind in "abcde"] for unit in range(12)]))
    assert found.alpha == pytest.approx(0.692, abs=5e-4)
    assert (found.things, found.couples, found.same) == (12, 12, 9)
    four = ("123321412...", "1233224125.3", ".333234225 1.".replace(" ", ""), "1233244125 1.".replace(" ", ""))
    found = alike(np.array([[sum(rater[unit] == kind for rater in four) for kind in "12345"] for unit in range(12)]))
    assert found.alpha == pytest.approx(0.743, abs=5e-4)
    assert alike(np.array([[1, 0], [0, 1]])).alpha is None
    assert alike(np.array([[2, 0], [2, 0]])).alpha is None
    assert alike(np.array([[2, 0], [0, 2]])).alpha == 1


def votes_of(sides: dict[int, dict[str, str]]) -> list[dict[str, Vote]]:
    """The votes on each pair; a later rater voted later."""
    return [
        {rater: Vote(winner, f"{at}") for at, (rater, winner) in enumerate(sides.get(place, {}).items())}
        for place in range(ROWS)
    ]


def underway(*, uniform: bool) -> Underway:
    p = np.tile([0.4, 0.35, 0.25], (ROWS, 1))
    return Underway(Population.of(PAIRS, p), INCLUSION, uniform=uniform)


def interim(sides: dict[int, dict[str, str]], *, uniform: bool) -> Interim:
    return underway(uniform=uniform).interim(votes_of(sides))


def test_before_the_plan_is_reached_a_planned_draw_says_nothing() -> None:
    sides = {place: {"Ann": "right"} for place in range(ROWS - 1)}
    found = interim(sides, uniform=False)
    assert (found.said, found.why, found.voted, found.counted) == (None, "waiting", ROWS - 1, ROWS - 1)
    # The last pair has a vote, or nobody is left who did not skip it.
    for last in ({"Ann": "left"}, {"Ann": ""}):
        found = interim(sides | {ROWS - 1: last}, uniform=False)
        assert found.said is not None
        assert (found.said.verdict, found.said.always, found.why) == ("right", False, "")
        assert found.skipped == ("" in last.values())
    found = interim(sides | {ROWS - 1: {"Ann": ""}, 0: {"Bob": "tie"}}, uniform=False)
    assert found.why == "waiting"


def test_the_result_is_that_of_compare(tmp_path: Path) -> None:
    sides = {place: {"Ann": ("right", "left", "tie", "right")[place % 4]} for place in range(ROWS)}
    sides[3] |= {"Bob": "left"}
    sides[5] |= {"Bob": ""}
    with VoteFile(tmp_path / "votes.csv") as file:
        file.begin(INCLUSION)
        for place, each in sides.items():
            for at, (rater, winner) in enumerate(each.items()):
                file.put((f"secret-{place}", rater), Vote(winner, str(at)))
    of = Population.of(PAIRS, np.tile([0.4, 0.35, 0.25], (ROWS, 1)))
    for uniform in (False, True):
        said = interim(sides, uniform=uniform).said
        expected = voted(of.ids, of.p, of.groups, read_side_votes(tmp_path / "votes.csv"))
        assert said is not None
        assert (said.net, said.win, said.loss, said.tie) == (expected.net, expected.win, expected.loss, expected.tie)
        assert (said.verdict, said.more) == (expected.verdict, expected.more)


def test_a_uniform_draw_has_an_interval_for_every_moment() -> None:
    sides = {place: {"Ann": "right"} for place in range(30)}
    whole = interim(sides, uniform=True)
    assert whole.said is not None
    assert (whole.said.always, whole.said.win, whole.counted) == (True, None, 30)
    # Votes behind a pair that waits do not count yet: they came first because they are quick to read, say.
    gap = dict(sides)
    del gap[20]
    found = interim(gap, uniform=True)
    assert (found.counted, found.voted) == (20, 29)
    assert found.said is not None
    assert found.said.net.high - found.said.net.low > whole.said.net.high - whole.said.net.low
    # A pair that every rater skipped does not wait.
    assert interim(gap | {20: {"Ann": ""}}, uniform=True).counted == 29
    # A second vote on a pair changes nothing of what was counted.
    second = interim(sides | {0: {"Ann": "right", "Bob": "left"}}, uniform=True)
    assert second.said == whole.said
    assert (second.alike.couples, second.alike.same) == (1, 0)
    few = interim({place: {"Ann": "right"} for place in range(4)}, uniform=True)
    assert (few.said, few.why) == (None, "few")


def test_what_is_missing_is_counted_for_the_interval_that_decides() -> None:
    """About as many more as its own width needs: an interval for every moment is wider, and needs more."""
    sides = {place: {"Ann": "right" if place % 5 else "left"} for place in range(12)}
    p = np.tile([0.4, 0.35, 0.25], (4000, 1))
    pairs = [Pair.of(f"Why {row}?", "l", "r", id=row) for row in range(4000)]
    inclusion = {str(row): 0.003 for row in range(12)}
    of = Population.of(pairs, p)
    found = Underway(of, inclusion | {"12": 0.003}, uniform=True).interim([*votes_of(sides)[:12], {}]).said
    assert found is not None
    assert found.verdict == "none"
    half = (found.net.high - found.net.low) / 2
    assert found.more is not None
    assert found.more == pytest.approx(12 * (half / found.net.value) ** 2 - 12, abs=1.01)

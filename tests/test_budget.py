import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefcast.errors import UsageError
from prefcast.pairs import Pair, Turn
from prefcast.pairs.budget import (
    DEFAULT_BUDGET,
    Budget,
    Cut,
    KeepLast,
    Notebook,
    Proportional,
    Truncation,
    cuts,
    parse_budget,
)

texts = st.text(alphabet="ab \n漢", max_size=60)
turns = st.lists(st.builds(Turn, texts, texts, texts), min_size=1, max_size=5).map(tuple)
budgets = st.one_of(
    st.just(Notebook()), st.builds(KeepLast, st.integers(1, 200)), st.builds(Proportional, st.integers(1, 200))
)


def turn(prompt: int, a: int, b: int) -> Turn:
    return Turn("p" * prompt, "a" * a, "b" * b)


# The notebook's budget, worked out by hand from its description: 7,200 over the turns kept, the last turn goes first.
@pytest.mark.parametrize(
    ("given_turns", "kept", "characters"),
    [
        ([turn(200, 3500, 3500)], [turn(200, 3500, 3500)], 7200),  # exactly the budget: untouched
        ([turn(201, 3500, 3500)], [turn(201, 3000, 3000)], 6201),  # one over, alone: cut to 1,000 / 3,000 / 3,000
        ([turn(1500, 100, 6000)], [turn(1000, 100, 3000)], 4100),  # each text by its own limit
        ([turn(100, 1000, 1000), turn(100, 2500, 2500)], [turn(100, 1000, 1000), turn(100, 2500, 2500)], 7200),
        ([turn(100, 1000, 1000), turn(101, 2500, 2500)], [turn(100, 1000, 1000)], 2100),  # the LAST turn is dropped
        ([turn(0, 10, 10), turn(0, 7000, 171), turn(0, 0, 10)], [turn(0, 10, 10), turn(0, 7000, 171)], 7191),
        ([turn(1, 8000, 1), turn(1, 1, 1)], [turn(1, 3000, 1)], 3002),  # no turn fits: the first, cut
    ],
)
def test_the_notebooks_budget(given_turns: list[Turn], kept: list[Turn], characters: int) -> None:
    found, report = Notebook().apply(tuple(given_turns))
    assert list(found) == kept
    total = sum(each.characters for each in given_turns)
    assert report == Truncation(characters, total, len(kept), len(given_turns))


def test_keep_last_drops_the_oldest_turns_first() -> None:
    found, report = KeepLast(100).apply((turn(30, 30, 30), turn(5, 10, 10), turn(20, 20, 20)))
    assert found == (turn(5, 10, 10), turn(20, 20, 20))
    assert report == Truncation(85, 175, 2, 3)


def test_keep_last_cuts_the_middle_of_the_newest_turn() -> None:
    text = "".join(chr(ord("a") + index % 26) for index in range(200))
    found, report = KeepLast(100).apply((turn(1, 1, 1), Turn("Why?", text, "short")))
    # The prompt and B need 9 of 100; A gets the other 91, its head and its tail.
    assert found == (Turn("Why?", text[:46] + "\n…\n" + text[-45:], "short"),)
    assert report == Truncation(100, 212, 1, 2)


def test_proportional_shares() -> None:
    found, report = Proportional(100).apply((turn(300, 300, 300),))
    assert [len(text.replace("\n…\n", "")) for text in (found[0].prompt, found[0].response_a, found[0].response_b)] == [
        20,
        40,
        40,
    ]
    assert report.kept == 100
    # What the prompt leaves goes to A and B alike.
    found, _ = Proportional(100).apply((turn(10, 300, 300),))
    assert [len(text.replace("\n…\n", "")) for text in (found[0].prompt, found[0].response_a, found[0].response_b)] == [
        10,
        45,
        45,
    ]


def test_proportional_keeps_the_newest_texts() -> None:
    found, report = Proportional(100).apply((turn(50, 50, 50), turn(20, 40, 40)))
    assert found == (turn(20, 40, 40),)
    assert report == Truncation(100, 250, 1, 2)


@given(budgets, turns)
def test_a_budget_holds_and_reports_what_it_kept(budget: Budget, given_turns: tuple[Turn, ...]) -> None:
    kept, report = budget.apply(given_turns)
    total = sum(each.characters for each in given_turns)
    assert report.total == total
    assert report.turns_total == len(given_turns)
    assert 1 <= len(kept) == report.turns_kept
    assert report.kept <= min(total, budget.limit)
    gaps = sum(text.count("\n…\n") for each in kept for text in (each.prompt, each.response_a, each.response_b))
    assert sum(each.characters for each in kept) == report.kept + 3 * gaps
    if total <= budget.limit:
        assert kept == given_turns
        assert not report.truncated
    else:
        assert report.truncated


def test_proportional_drops_a_turn_that_loses_a_whole_answer() -> None:
    # The prompts and B need 18 of 100. A gets the other 82: its newest text whole, 22 of the one before, none of the first.
    found, report = Proportional(100).apply((turn(1, 9, 5), turn(1, 50, 5), turn(1, 60, 5)))
    assert found == (Turn("p", "a" * 11 + "\n…\n" + "a" * 11, "b" * 5), turn(1, 60, 5))
    assert report == Truncation(94, 137, 2, 3)


@given(turns)
def test_no_policy_makes_an_empty_answer(given_turns: tuple[Turn, ...]) -> None:
    for budget in (KeepLast(40), Proportional(40)):
        kept, _ = budget.apply(given_turns)
        for now, was in zip(reversed(kept), reversed(given_turns), strict=False):
            assert bool(now.response_a) == bool(was.response_a)
            assert bool(now.response_b) == bool(was.response_b)


@given(budgets, turns)
def test_cutting_and_swapping_commute(budget: Budget, given_turns: tuple[Turn, ...]) -> None:
    swapped, report = budget.apply(Pair(given_turns).swapped().turns)
    kept, same_report = budget.apply(given_turns)
    assert Pair(swapped).swapped().turns == kept
    assert report == same_report


@pytest.mark.parametrize("budget", [DEFAULT_BUDGET, Notebook(), Proportional(6000), KeepLast(1)])
def test_a_budget_is_named_by_its_text(budget: Budget) -> None:
    assert parse_budget(str(budget)) == budget
    assert type(parse_budget(budget.name)) is type(budget)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("keep-first", "unknown budget 'keep-first'; there are keep-last, notebook, proportional and whole"),
        ("keep-last:", "needs a limit from 1 to 999999999999 characters, found ''"),
        ("keep-last:0", "found '0'"),
        ("proportional:-5", "found '-5'"),
        ("keep-last:٣", "found '٣'"),
        ("notebook:100", "has the fixed limit 7200"),
    ],
)
def test_budgets_that_are_none(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_budget(text)


@given(turns, budgets)
def test_cuts_say_what_was_read(turns: tuple[Turn, ...], budget: Budget) -> None:
    read, truncation = budget.apply(turns)
    found = cuts(turns, read)
    assert truncation.total - truncation.kept == sum(cut.characters - cut.head - cut.tail for cut in found)
    for cut in found:
        assert cut.characters == len(getattr(turns[cut.turn], cut.field))
        assert cut.head + cut.tail < cut.characters


def test_cuts_of_the_notebooks_policy_are_of_the_last_turns() -> None:
    turns = tuple(Turn("p", "a" * 3000, "b") for _ in range(4))
    read, _ = Notebook().apply(turns)
    assert len(read) == 2
    # Alike turns could be any; these are told apart.
    turns = tuple(Turn(f"prompt {number}", "a" * 3000, "b") for number in range(4))
    read, _ = Notebook().apply(turns)
    assert [(cut.turn, cut.field, cut.head) for cut in cuts(turns, read)] == [
        (turn, field, 0) for turn in (2, 3) for field in ("prompt", "response_a", "response_b")
    ]
    long = (Turn("p" * 2000, "a" * 9000, "b"),)
    read, _ = Notebook().apply(long)
    assert cuts(long, read) == [Cut(0, "prompt", 2000, 1000, 0), Cut(0, "response_a", 9000, 3000, 0)]

import numpy as np
import pytest

from prefcast.errors import UsageError
from prefcast.pairs import Outcome, Pair, Turn


def test_the_value_of_an_outcome_is_its_column() -> None:
    assert [int(outcome) for outcome in (Outcome.A, Outcome.B, Outcome.TIE)] == [0, 1, 2]
    assert [outcome.swapped for outcome in Outcome] == [Outcome.B, Outcome.A, Outcome.TIE]


def test_strings_are_one_turn() -> None:
    pair = Pair.of("Why?", "Because.", "So.")
    assert pair.turns == (Turn("Why?", "Because.", "So."),)
    assert (pair.prompt, pair.response_a, pair.response_b) == (("Why?",), ("Because.",), ("So.",))
    assert pair.characters == len("Why?Because.So.")


def test_swapping_twice_changes_nothing() -> None:
    pair = Pair(Pair.of(["1", "2"], ["a", "b"], ["c", "d"]).turns, id=7, outcome=Outcome.A, model_a="x", model_b="y")
    swapped = pair.swapped()
    assert (swapped.response_a, swapped.response_b) == (("c", "d"), ("a", "b"))
    assert (swapped.outcome, swapped.model_a, swapped.model_b) == (Outcome.B, "y", "x")
    assert swapped.swapped() == pair


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ((["1", "2"], ["a"], ["b"]), "found 2, 1, 1"),
        (([], [], []), "at least one; found 0, 0, 0"),
        (([None], ["a"], ["b"]), "every turn must be a string"),
    ],
)
def test_pairs_that_are_none(texts: tuple[list[str], list[str], list[str]], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Pair.of(*texts)


def test_ids_of_kindred_types() -> None:
    assert type(Pair.of("p", "a", "b", id=np.int64(3)).id) is int
    for id in (True, None, 1.5):
        with pytest.raises(UsageError, match="a pair's id must be a text or a whole number"):
            Pair.of("p", "a", "b", id=id)


def test_a_pair_has_a_turn() -> None:
    with pytest.raises(UsageError, match="a pair needs at least one turn"):
        Pair(())

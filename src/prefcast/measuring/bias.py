"""The biases of a judge: for what it reads first, for the longer answer, and for its own answers.

A judge differs from people where it prefers the longer answer, or its own, more often than they do on the same pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prefcast.outcomes.statistics.bootstrap import REPEATS, Bootstrap, Figure
from prefcast.outcomes.statistics.columns import Columns
from prefcast.pairs import Outcome, Pair
from prefcast.pairs.pair import group_key

__all__ = ["Excess", "JudgeBias", "Judged"]

Floats = NDArray[np.float64]
# The raw numbers of a judge.
_RAW = ("margin_a", "margin_b", "position", "uncovered")
_SIDES = {Outcome.A: 1.0, Outcome.B: -1.0, Outcome.TIE: 0.0}


@dataclass(frozen=True)
class Excess:
    """How often the judge and how often people prefer a kind of answer, on `n` pairs that have one such answer and whose
    label is no tie; and the difference. A judge that prefers neither answer counts as a half."""

    n: int
    judge: Figure
    people: Figure
    excess: Figure


@dataclass(frozen=True)
class JudgeBias:
    """The biases of a judge on `n` pairs, with intervals from a bootstrap over first prompts.

    `position` is the mean log-odds for the answer that is read first, `first` the share of verdicts for it, `turned` the
    share of pairs whose preferred answer changes with the order, `uncovered` the mean probability of replies that are no
    verdict. `longer` and `own` are None where no pair tells: `own` needs the names of the pairs' models.
    """

    n: int
    position: Figure
    first: Figure
    turned: Figure
    uncovered: Figure
    longer: Excess | None
    own: Excess | None


class Judged:
    """Collects the verdicts of a judge. `judge` is the name of its model."""

    def __init__(self, judge: str | None) -> None:
        self._judge = _plain(judge)
        self._table = Columns((*_RAW, "people", "longer", "own", "key"))

    @staticmethod
    def tells(columns: Mapping[str, Floats] | None) -> bool:
        """Whether evidence with these columns is a judge's."""
        return columns is not None and all(name in columns for name in _RAW)

    def add(self, pairs: Sequence[Pair], columns: Mapping[str, Floats]) -> None:
        """Collect the raw numbers (n,) of n labelled pairs."""
        facts = []
        for pair in pairs:
            a, b = (sum(map(len, texts)) for texts in (pair.response_a, pair.response_b))
            mine = [self._judge is not None and _plain(model) == self._judge for model in (pair.model_a, pair.model_b)]
            side = 0.0 if pair.outcome is None else _SIDES[pair.outcome]
            facts.append([side, float(np.sign(a - b)), float(mine[0]) - float(mine[1])])
        keys = np.array([group_key(pair.prompt[0]) for pair in pairs], dtype=np.uint64)
        raw = [columns[name] for name in _RAW]
        if pairs:
            self._table.append(np.column_stack([*raw, np.array(facts), keys.view(np.float64)]))

    def bias(self, *, repeats: int = REPEATS, seed: int = 0) -> JudgeBias | None:
        """The biases; None without pairs."""
        if not len(self._table):
            return None
        sums = Bootstrap(repeats, seed)
        for block in self._table.blocks():
            forth, back, position, uncovered, people, longer, own = block[:, :-1].T
            columns = {
                "rows": np.ones(len(block)),
                "position": position,
                "first": (2 + np.sign(forth) - np.sign(back)) / 4,
                "turned": (forth * back < 0).astype(np.float64),
                "uncovered": uncovered,
            }
            preferred = np.sign(forth + back)
            for name, side in (("longer", longer), ("own", own)):
                told = np.abs(side * people)
                columns[f"{name} rows"] = told
                columns[name] = told * (1 + preferred * side) / 2
                columns[f"{name} people"] = told * (1 + people * side) / 2
                columns[f"{name} excess"] = columns[name] - columns[f"{name} people"]
            sums.add(block[:, -1].copy().view(np.uint64), columns)
        return JudgeBias(
            len(self._table),
            sums.ratio("position"),
            sums.ratio("first"),
            sums.ratio("turned"),
            sums.ratio("uncovered"),
            _excess(sums, "longer"),
            _excess(sums, "own"),
        )


def _excess(sums: Bootstrap, name: str) -> Excess | None:
    n = round(sums.total(f"{name} rows"))
    if not n:
        return None
    return Excess(n, *(sums.ratio(each, f"{name} rows") for each in (name, f"{name} people", f"{name} excess")))


def _plain(model: str | None) -> str | None:
    """A model's name without its owner."""
    return None if model is None else model.rsplit("/", 1)[-1].casefold()

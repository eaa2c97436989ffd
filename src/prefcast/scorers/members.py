"""What scorers that are made of other scorers share: members in folders of their own, and how much of a pair they read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from prefcast.errors import ForecasterError, UsageError, excerpt
from prefcast.pairs import Pair, Turn
from prefcast.pairs.budget import Budget, Truncation, parse_budget
from prefcast.scorers.base import Scorer, fingerprint, read_pair
from prefcast.scorers.options import given_values, options_for, which

__all__ = ["EachItsOwn", "check_moved", "finite", "load_member", "save_member", "with_options"]


def with_options(members: Sequence[Scorer], options: Any) -> list[Scorer]:
    """The members, with `options` for those that have options of these names. Raises UsageError if none has."""
    names = given_values(options).keys()
    fits = [names <= which(type(member.options)).keys() for member in members]
    if names and not any(fits):
        raise UsageError(f"no model of the forecaster has the option --{min(names).replace('_', '-')}")
    return [
        member.with_options(options_for(type(member.options), options)) if fit else member
        for member, fit in zip(members, fits, strict=True)
    ]


def save_member(folder: Path, number: int, scorer: Scorer, budget: Budget) -> dict[str, Any]:
    """Write a member into `folder`/member-`number`; what the folder's own file says of it."""
    room = folder / f"member-{number}"
    room.mkdir()
    scorer.save(room)
    return {"model": scorer.name, "sha256": fingerprint(room, scorer), "budget": str(budget)}


def load_member(folder: Path, number: int, said: Mapping[str, Any], moved: str | None) -> tuple[Scorer, Budget]:
    """What `save_member` wrote. `moved` says where the member's model lies now, if it may lie elsewhere.

    Raises ForecasterError if the member's files have changed.
    """
    from prefcast.scorers.registry import scorer_class

    room, scorer = folder / f"member-{number}", scorer_class(said["model"])
    if fingerprint(room, scorer) != said["sha256"]:
        raise ForecasterError(f"{room}: the scorer's files are not those that the outcome model was fitted for")
    return scorer.load(room, moved if scorer.may_lie_elsewhere else None), parse_budget(said["budget"])


def check_moved(folder: Path, members: Sequence[Mapping[str, Any]], moved: str | None) -> None:
    """Raise ForecasterError if `moved` is given and not exactly one member has a model that may lie elsewhere."""
    from prefcast.scorers.registry import scorer_class

    if moved is None:
        return
    places = [said["model"] for said in members if scorer_class(said["model"]).may_lie_elsewhere]
    if len(places) != 1:
        raise ForecasterError(f"{folder}: holds {len(places)} reward models; one path cannot say where they lie now")


def finite(value: Any, file: str) -> float:
    """A number of a saved `file`. Raises ForecasterError if it is not a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
        raise ForecasterError(f"{file}: {excerpt(value)} where a finite number belongs")
    return float(value)


class EachItsOwn(Budget):
    """Does not cut the pair, and reports how much the member that reads least reads of it."""

    name = "each member's own budget"
    limit = 10**12

    def __init__(self, members: Sequence[tuple[Scorer, Budget]]) -> None:
        self._members = members

    def __str__(self) -> str:
        return self.name

    def apply(self, turns: tuple[Turn, ...]) -> tuple[tuple[Turn, ...], Truncation]:
        return turns, self.read(Pair(turns))[1]

    def read(self, pair: Pair) -> tuple[Pair, Truncation]:
        reports = [read_pair(pair, budget, scorer)[1] for scorer, budget in self._members]
        # Members may count a system message or not: what counts is how much each left out.
        least = min(reports, key=lambda report: (report.kept - report.total, report.turns_kept))
        return pair, replace(least, literal=any(report.literal for report in reports))

"""What a benchmark is: how a row of its files is read, what a model's preferences are worth, and how the totals are made.

A new benchmark is one file in `rules/`: a subclass of `Benchmark` and a `BENCHMARK`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from prefcast.errors import excerpt
from prefcast.outcomes.statistics.bootstrap import Bootstrap
from prefcast.pairs import Pair, Turn, clean
from prefcast.pairs.formats.fields import Fault, Record, cell, kind, present
from prefcast.pairs.formats.messages import conversation
from prefcast.pairs.pair import group_key

__all__ = ["ALL", "Benchmark", "Cells", "Item", "Line", "Means", "Preferences", "Row", "crossed"]

Floats = NDArray[np.float64]
# The subset that has every row.
ALL = ""


@dataclass(frozen=True)
class Item:
    """One prompt of a benchmark and the answers to it.

    `answers` are in the order of the file, `right` the positions of those that are to be preferred; none if people called it
    a tie. `compared` are the pairs of positions that the benchmark's rule looks at. `prompt` has the turns, `earlier` the answers
    to all turns but the last. `models` are the names of the answers' models, where the file has them. `cluster` says which
    rows are resampled together; without it those with the same first prompt. `about` is what else the rule needs.
    """

    id: str
    subsets: tuple[str, ...]
    prompt: tuple[str, ...]
    answers: tuple[str, ...]
    right: frozenset[int]
    compared: tuple[tuple[int, int], ...]
    earlier: tuple[str, ...] = ()
    system: str = ""
    models: tuple[str | None, ...] = ()
    cluster: str | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    def pair(self, a: int, b: int, id: int, row: int) -> Pair:
        """Two of the answers as a pair: position `a` as A, `b` as B."""
        before = [Turn(prompt, said, said) for prompt, said in zip(self.prompt[:-1], self.earlier, strict=True)]
        turns = (*before, Turn(self.prompt[-1], self.answers[a], self.answers[b]))
        names = (self.models[a], self.models[b]) if self.models else (None, None)
        return Pair(turns, id=id, row=row, system=self.system, model_a=names[0], model_b=names[1])

    @property
    def digest(self) -> str:
        """16 hexadecimal digits of a hash of the texts, by which results of one row are joined."""
        texts = (self.system, *self.prompt, *self.earlier, *self.answers)
        return f"{group_key(''.join(f'{len(text)}:{text}' for text in texts)):016x}"

    @property
    def group(self) -> int:
        """The key of what is resampled together."""
        return group_key(self.prompt[0] if self.cluster is None else f"cluster:{self.cluster}")


@dataclass(frozen=True)
class Preferences:
    """What a model says of the answers to one prompt.

    `margins` are by pair of positions: above 0 where the first is preferred. `orders` has, for a judge that reads both answers at
    once, the two numbers of which a margin is made: with the first answer read first, and read second.
    """

    margins: Mapping[tuple[int, int], float]
    orders: Mapping[tuple[int, int], tuple[float, float]] = field(default_factory=dict)

    def over(self, one: int, other: int) -> float:
        """The margin of one answer over another."""
        return self.margins[one, other] if (one, other) in self.margins else -self.margins[other, one]

    def decisions(self, one: int, other: int) -> tuple[float, float]:
        """The signs (1, 0 or -1) for one answer over another in the two orders. They are equal for a model that does not
        depend on the order."""
        if (one, other) in self.orders:
            first, second = self.orders[one, other]
        elif (other, one) in self.orders:
            second, first = (-value for value in self.orders[other, one])
        else:
            first = second = self.over(one, other)
        return float(np.sign(first)), float(np.sign(second))

    def beats_all(self, one: int, others: Sequence[int]) -> bool:
        """Whether an answer is preferred to each of the others."""
        return all(self.over(one, other) > 0 for other in others)


def crossed(right: int, wrong: int) -> tuple[tuple[int, int], ...]:
    """Each of the first `right` answers against each of the `wrong` ones after them."""
    return tuple(product(range(right), range(right, right + wrong)))


@dataclass
class Row:
    """The result of one row of a benchmark. `marks` are its numbers by name, None if it failed: then `error` says why."""

    id: str
    digest: str
    group: int
    subsets: tuple[str, ...]
    marks: dict[str, float] | None
    error: str | None = None


class Means:
    """Means of marks over the rows of a subset: the value, then that of each bootstrap draw, (1 + repeats,)."""

    def __init__(self, rows: Sequence[Row], *, repeats: int, seed: int = 0) -> None:
        self.counts: dict[tuple[str, str], int] = {}
        for row in rows:
            for subset in (ALL, *row.subsets):
                for mark in row.marks or ():
                    self.counts[subset, mark] = self.counts.get((subset, mark), 0) + 1
        self._names = {key: place for place, key in enumerate(self.counts)}
        self._sums = Bootstrap(repeats, seed)
        for start in range(0, len(rows), 4096):
            self._add(rows[start : start + 4096])

    def _add(self, rows: Sequence[Row]) -> None:
        if not self._names:
            return
        above, below = np.zeros((len(self._names), len(rows))), np.zeros((len(self._names), len(rows)))
        for place, row in enumerate(rows):
            for subset in (ALL, *row.subsets):
                for mark, value in (row.marks or {}).items():
                    above[self._names[subset, mark], place] += value
                    below[self._names[subset, mark], place] += 1
        columns = {f"{place}+": above[place] for place in self._names.values()}
        columns |= {f"{place}#": below[place] for place in self._names.values()}
        self._sums.add(np.array([row.group for row in rows], dtype=np.uint64), columns)

    def n(self, mark: str, subset: str = ALL) -> int:
        """How many rows of a subset have the mark."""
        return self.counts.get((subset, mark), 0)

    def of(self, mark: str, subset: str = ALL) -> Floats | None:
        """The mean of a mark over a subset; None if no row has it."""
        place = self._names.get((subset, mark))
        if place is None:
            return None
        draws = self._sums.ratio_draws(f"{place}+", f"{place}#")
        return np.concatenate([[self._sums.total(f"{place}+") / self._sums.total(f"{place}#")], draws])

    def averaged(
        self, mark: str, subsets: Sequence[str], weights: Sequence[float] | None = None
    ) -> tuple[Floats | None, list[str]]:
        """The weighted mean of the means of those subsets that are there, and the names of those that are not."""
        found = [(self.of(mark, subset), 1.0 if weights is None else weights[at]) for at, subset in enumerate(subsets)]
        there = [(values, weight) for values, weight in found if values is not None]
        missing = [subset for subset, (values, _) in zip(subsets, found, strict=True) if values is None]
        if not there:
            return None, missing
        return sum((values * weight for values, weight in there), np.zeros(1)) / sum(w for _, w in there), missing


@dataclass(frozen=True)
class Line:
    """A figure of a benchmark: the value and its draws (1 + repeats,), None if the rows for it are missing. `n` rows are in it.
    `kind` is total, section or more."""

    kind: str
    name: str
    values: Floats | None
    n: int
    note: str = ""


def without(missing: Sequence[str]) -> str:
    """The note of a figure for which subsets are missing."""
    shown = ", ".join(missing[:4]) + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
    return f"without {shown}" if missing else ""


class Cells:
    """The cells of one record, with faults that say what would be right."""

    def __init__(self, record: Record, *, textual: bool) -> None:
        self._record, self._textual = record, textual

    def has(self, field: str) -> bool:
        return self._record.get(field) not in (None, "")

    def value(self, field: str) -> Any:
        """A list or an object; a CSV has it as JSON."""
        return cell(self._record, field) if self._textual else present(self._record, field)

    def text(self, field: str) -> str:
        value = present(self._record, field)
        if not isinstance(value, str):
            raise Fault(field, f"is {kind(value)}; expected a text")
        return clean(value)

    def name(self, field: str) -> str:
        """A short text, or a number, that names something."""
        value = present(self._record, field)
        if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
            raise Fault(field, f"is {excerpt(value)}; expected a text or a whole number")
        return clean(str(value))

    def one_of(self, field: str, allowed: Sequence[Any]) -> Any:
        value = present(self._record, field)
        known = {str(each): each for each in allowed}
        if isinstance(value, bool) or str(value) not in known:
            raise Fault(field, f"is {excerpt(value)}; expected {' or '.join(known)}")
        return known[str(value)]

    def truth(self, field: str) -> bool:
        """Whether a flag is set; False where there is none."""
        value = self._record.get(field)
        return value is True or (isinstance(value, str) and value.strip().lower() == "true")

    def texts(self, field: str, least: int = 1, most: int | None = None) -> list[str]:
        """A list of texts."""
        value = self.value(field)
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            raise Fault(field, f"is {kind(value)}; expected a list of texts")
        if len(value) < least or (most is not None and len(value) != most):
            expected = f"{least} or more" if most is None else str(most)
            raise Fault(field, f"has {len(value)} answers; expected {expected}")
        return [clean(text) for text in value]

    def answer(self, value: Any, field: str) -> str:
        """The text of an object with `answer`."""
        if not isinstance(value, dict) or not isinstance(value.get("answer"), str):
            raise Fault(field, f"is {excerpt(value)}; expected an object with the text `answer`")
        return clean(value["answer"])

    def asked(self, field: str) -> dict[str, Any]:
        """The prompt of an item: a text, or a list of messages that ends with the user's."""
        value = present(self._record, field)
        if isinstance(value, str):
            return {"prompt": (clean(value),)}
        if not isinstance(value, list) or not value:
            raise Fault(field, f"is {kind(value)}; expected a text, or a list of messages with role and content")
        turns, system, _ = conversation([*value, {"role": "assistant", "content": ""}], field)
        return {
            "prompt": tuple(prompt for prompt, _ in turns),
            "earlier": tuple(answer for _, answer in turns[:-1]),
            "system": system,
        }


class Benchmark(ABC):
    """One benchmark. `name` is what the command line calls it, `source` where its rules are published. `shape` says in a line
    what its files hold; `fields` are the columns that are read, `needs` those that must be there."""

    name: ClassVar[str]
    title: ClassVar[str]
    source: ClassVar[str]
    shape: ClassVar[str]
    fields: ClassVar[tuple[str, ...]]
    needs: ClassVar[tuple[str, ...]]
    # The mark that is shown for each subset, and what its column is called.
    mark: ClassVar[str] = "correct"
    shown: ClassVar[str] = "accuracy"
    # The marks of a row that failed; without it such a row is left out.
    failed: ClassVar[Mapping[str, float] | None] = None

    def wants(self, path: Path) -> bool:
        """Whether a file that lies in a named folder is one of the benchmark's."""
        return True

    @abstractmethod
    def item(self, cells: Cells, row: int, path: Path) -> Item:
        """The item of a row. Raises Fault."""

    @abstractmethod
    def marks(self, item: Item, found: Preferences) -> dict[str, float]:
        """The numbers of an item, of which the figures are means."""

    def joined(self, rows: list[Row]) -> None:
        """Add the marks that need several rows."""

    @abstractmethod
    def lines(self, means: Means) -> Iterator[Line]:
        """The benchmark's sections and totals."""

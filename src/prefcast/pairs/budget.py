"""How much of a conversation is read.

A policy cuts a pair's turns down to a limit and reports what it kept. It decides by the lengths of the texts alone and
treats A and B alike: cutting and swapping commute. Lengths are summed over prompt, response A and response B of all
turns. They count characters (code points), unless a scorer measures in its own tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from prefcast.errors import UsageError, excerpt
from prefcast.pairs import Pair, Turn

__all__ = [
    "DEFAULT_BUDGET",
    "WHOLE",
    "Budget",
    "Cut",
    "KeepLast",
    "Measure",
    "Notebook",
    "Proportional",
    "Truncation",
    "cuts",
    "parse_budget",
]

# Prompt, A, B: the shares that the winners of the LMSYS competition settled on.
_SHARES = (1, 2, 2)
_GAP = "\n…\n"
_FIELDS = ("prompt", "response_a", "response_b")
_Sizes = Sequence[int]


@dataclass(frozen=True, slots=True)
class Truncation:
    """What was read of a pair: characters and turns, kept of how many. `literal`: a special token inside a text was read
    letter by letter, and the model's template would have treated the token itself in another way."""

    kept: int
    total: int
    turns_kept: int
    turns_total: int
    literal: bool = False

    @property
    def truncated(self) -> bool:
        return self.kept < self.total or self.turns_kept < self.turns_total


@dataclass(frozen=True, slots=True)
class Cut:
    """A text that was not read whole: `field` (prompt, response_a, response_b) of turn `turn`, counted from 0. Of its
    `characters` only the first `head` and the last `tail` were read."""

    turn: int
    field: str
    characters: int
    head: int
    tail: int


class Measure(Protocol):
    """What lengths are counted in."""

    def size(self, text: str) -> int: ...

    def head(self, text: str, size: int) -> str:
        """The first `size` of `text`."""

    def tail(self, text: str, size: int) -> str:
        """The last `size` of `text`."""


class _Characters:
    def size(self, text: str) -> int:
        return len(text)

    def head(self, text: str, size: int) -> str:
        return text[:size]

    def tail(self, text: str, size: int) -> str:
        return text[-size:] if size else ""


CHARACTERS = _Characters()


class Budget(ABC):
    """How much is read of a pair: a limit, in characters unless it says otherwise."""

    name: str
    limit: int

    @abstractmethod
    def apply(self, turns: tuple[Turn, ...]) -> tuple[tuple[Turn, ...], Truncation]:
        """The part of `turns` (not empty) that is read, and the report of it."""

    def read(self, pair: Pair) -> tuple[Pair, Truncation]:
        """The part of `pair` that is read, and the report of it. Only turns are cut and counted here: a system message
        that keeps its role is read whole, and so is a pair whose answers call tools."""
        if pair.tools is not None:
            total = sum(turn.characters for turn in pair.turns)
            return pair, Truncation(total, total, len(pair.turns), len(pair.turns))
        turns, truncation = self.apply(pair.turns)
        return (pair if turns is pair.turns else replace(pair, turns=turns)), truncation

    def __str__(self) -> str:
        return f"{self.name}:{self.limit}"


class _Policy(Budget):
    """A budget that decides by the lengths of the texts alone."""

    # Whether a text that is too long keeps its end as well as its beginning.
    tails = True

    @abstractmethod
    def _granted(self, sizes: Sequence[_Sizes]) -> tuple[int, Sequence[_Sizes]]:
        """The first turn that is kept, and how much of each text (prompt, A, B) of the kept turns is read."""

    def apply(self, turns: tuple[Turn, ...]) -> tuple[tuple[Turn, ...], Truncation]:
        total = sum(turn.characters for turn in turns)
        if total <= self.limit:
            return turns, Truncation(total, total, len(turns), len(turns))
        kept, characters = self.cut(turns)
        return kept, Truncation(characters, total, len(kept), len(turns))

    def cut(self, turns: Sequence[Turn], measure: Measure = CHARACTERS) -> tuple[tuple[Turn, ...], int]:
        """The turns that are read, and how many characters of the original they hold. `turns` exceed the limit."""
        sizes = [tuple(map(measure.size, turn.texts)) for turn in turns]
        first, grants = self._granted(sizes)
        kept, characters = [], 0
        for turn, size, grant in zip(turns[first:], sizes[first:], grants, strict=False):
            texts = []
            for each in zip(turn.texts, size, grant, strict=True):
                text, count = self._shortened(*each, measure)
                texts.append(text)
                characters += count
            kept.append(Turn(*texts))
        return tuple(kept), characters

    def _shortened(self, text: str, size: int, grant: int, measure: Measure) -> tuple[str, int]:
        """What is read of a text, and how many of its characters that holds."""
        if size <= grant:
            return text, len(text)
        end = grant // 2 if self.tails else 0
        head, tail = measure.head(text, grant - end), measure.tail(text, end)
        return head + _GAP * self.tails + tail, len(head) + len(tail)


@dataclass(frozen=True)
class Notebook(_Policy):
    """The notebook's policy: drop the LAST turn while over 7,200. A first turn that is over 7,200 alone is cut to 1,000 /
    3,000 / 3,000."""

    name = "notebook"
    limit = 7200
    tails = False

    def _granted(self, sizes: Sequence[_Sizes]) -> tuple[int, Sequence[_Sizes]]:
        count = _fitting(sizes, self.limit)
        return 0, sizes[:count] if count else [(1000, 3000, 3000)]


@dataclass(frozen=True)
class KeepLast(_Policy):
    """Whole turns from the newest back. If the newest turn alone is too long, its long texts lose their middle.

    Within the newest turn, prompt, A and B may have 20, 40 and 40 % of the limit. What a short text leaves goes to the
    others.
    """

    limit: int = 24_000
    name = "keep-last"

    def _granted(self, sizes: Sequence[_Sizes]) -> tuple[int, Sequence[_Sizes]]:
        first = len(sizes) - _fitting(sizes[::-1], self.limit)
        return (first, sizes[first:]) if first < len(sizes) else (first - 1, [_allocate(self.limit, sizes[-1])])


@dataclass(frozen=True)
class Proportional(_Policy):
    """20, 40 and 40 % of the limit for all prompts, all of A and all of B. Each keeps its newest texts; the text at the
    edge loses its middle.

    What one of the three does not need goes to the others. A turn that loses a whole text is dropped.
    """

    limit: int = 24_000
    name = "proportional"

    def _granted(self, sizes: Sequence[_Sizes]) -> tuple[int, Sequence[_Sizes]]:
        left = _allocate(self.limit, [sum(column) for column in zip(*sizes, strict=True)])
        grants: list[_Sizes] = []
        for size in reversed(sizes):
            grant = [min(each) for each in zip(size, left, strict=True)]
            # An answer that was cut away would look like an empty one.
            if grants and any(wanted and not given for wanted, given in zip(size, grant, strict=True)):
                break
            grants.insert(0, grant)
            left = [rest - given for rest, given in zip(left, grant, strict=True)]
        return len(sizes) - len(grants), grants


def _fitting(sizes: Sequence[_Sizes], limit: int) -> int:
    """How many of the turns, from the first on, are within the limit together."""
    for count, size in enumerate(sizes):
        limit -= sum(size)
        if limit < 0:
            return count
    return len(sizes)


def _allocate(limit: int, wants: _Sizes) -> list[int]:
    """Shares of `limit` for (prompt, A, B) by water-filling: nobody gets more than it wants, A and B have equal
    caps."""
    grants = [0, 0, 0]
    open_, left = [0, 1, 2], limit
    while open_:
        weight = sum(_SHARES[index] for index in open_)
        full = [index for index in open_ if wants[index] <= left * _SHARES[index] // weight]
        if not full:
            for index in open_:
                grants[index] = left * _SHARES[index] // weight
            break
        for index in full:
            grants[index] = wants[index]
        left -= sum(wants[index] for index in full)
        open_ = [index for index in open_ if index not in full]
    return grants


@dataclass(frozen=True)
class _Whole(KeepLast):
    """Everything: for scorers that have a limit of their own."""

    limit: int = 10**12
    name = "whole"

    def __str__(self) -> str:
        return self.name


WHOLE = _Whole()
DEFAULT_BUDGET = KeepLast()
_POLICIES: dict[str, type[KeepLast] | type[Proportional]] = {"keep-last": KeepLast, "proportional": Proportional}


def parse_budget(text: str) -> Budget:
    """A budget from its name: `notebook`, `keep-last`, `proportional:6000` (a limit in characters).

    Raises UsageError.
    """
    name, colon, limit = text.partition(":")
    if name == "notebook":
        if colon and limit != str(Notebook.limit):
            raise UsageError(f"budget 'notebook' has the fixed limit {Notebook.limit}; write just: notebook")
        return Notebook()
    if name == "whole":
        return WHOLE
    if name not in _POLICIES:
        raise UsageError(
            f"unknown budget {excerpt(name)}; there are keep-last, notebook, proportional and whole, e.g. keep-last:8000"
        )
    if not colon:
        return _POLICIES[name]()
    if not (limit.isascii() and limit.isdigit() and len(limit) <= 12) or int(limit) < 1:
        raise UsageError(
            f"budget {name!r} needs a limit from 1 to 999999999999 characters, found {excerpt(limit)}; e.g. {name}:8000"
        )
    return _POLICIES[name](int(limit))


def cuts(turns: Sequence[Turn], read: Sequence[Turn]) -> list[Cut]:
    """The texts of `turns` that some policy cut or dropped, where `read` is what it left."""
    dropped = len(turns) - len(read)
    # Policies keep turns that follow one another; most keep the newest.
    for first in range(dropped, -1, -1):
        left = [_NOTHING] * first + [*read] + [_NOTHING] * (dropped - first)
        found = [
            _part(number, *each)
            for number, pair in enumerate(zip(turns, left, strict=True))
            for each in zip(_FIELDS, *(turn.texts for turn in pair), strict=True)
        ]
        if None not in found:
            return [cut for cut in found if cut is not None and cut.head < cut.characters]
    return []


_NOTHING = Turn("", "", "")


def _part(turn: int, field: str, text: str, read: str) -> Cut | None:
    """How much of `text` there is in `read`; None if `read` is not made of it."""
    if text == read:
        return Cut(turn, field, len(text), len(text), 0)
    at = read.find(_GAP)
    while at >= 0:
        head, tail = read[:at], read[at + len(_GAP) :]
        if text.startswith(head) and text.endswith(tail) and len(head) + len(tail) <= len(text):
            return Cut(turn, field, len(text), len(head), len(tail))
        at = read.find(_GAP, at + 1)
    return Cut(turn, field, len(text), len(read), 0) if text.startswith(read) else None

"""How much of a conversation is read.

A policy cuts a pair's turns down to a limit and reports what it kept. It knows nothing of scorers; it only measures
and slices. Every policy treats A and B alike, so cutting and swapping commute. Lengths are summed over prompt, response
A and response B of all turns: in characters (code points), unless a scorer measures in its own tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from prefcast.errors import UsageError, excerpt
from prefcast.pairs import Turn

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
    "Whole",
    "cuts",
    "parse_budget",
]

# Prompt, A, B: the shares that the winners of the LMSYS competition settled on.
_SHARES = (1, 2, 2)
_GAP = "\n…\n"
_FIELDS = ("prompt", "response_a", "response_b")


@dataclass(frozen=True, slots=True)
class Truncation:
    """What was read of a pair: characters and turns, kept of how many."""

    kept: int
    total: int
    turns_kept: int
    turns_total: int

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
    """A truncation policy with its limit, in characters unless it says otherwise."""

    name: str
    limit: int

    @abstractmethod
    def cut(self, turns: Sequence[Turn], measure: Measure = CHARACTERS) -> tuple[tuple[Turn, ...], int]:
        """The turns that are read, and how many characters of the original they hold; meant for what is over the
        limit."""

    def apply(self, turns: tuple[Turn, ...]) -> tuple[tuple[Turn, ...], Truncation]:
        """The part of `turns` (not empty) that is read, and the report of it."""
        total = sum(turn.characters for turn in turns)
        if total <= self.limit:
            return turns, Truncation(total, total, len(turns), len(turns))
        kept, characters = self.cut(turns)
        return kept, Truncation(characters, total, len(kept), len(turns))

    def __str__(self) -> str:
        return f"{self.name}:{self.limit}"


@dataclass(frozen=True)
class Notebook(Budget):
    """The notebook's policy: drop the LAST turn while over 7,200; a first turn over that alone is cut to 1,000 /
    3,000 / 3,000."""

    name = "notebook"
    limit = 7200

    def cut(self, turns: Sequence[Turn], measure: Measure = CHARACTERS) -> tuple[tuple[Turn, ...], int]:
        size, count = 0, 0
        for turn in turns:
            size += turn.characters
            if size > self.limit:
                break
            count += 1
        kept: tuple[Turn, ...]
        if count == 0:
            kept = (Turn(turns[0].prompt[:1000], turns[0].response_a[:3000], turns[0].response_b[:3000]),)
        else:
            kept = tuple(turns[:count])
        return kept, sum(turn.characters for turn in kept)


@dataclass(frozen=True)
class KeepLast(Budget):
    """Whole turns from the newest back; if the newest alone is too long, the middle of its long texts goes.

    Within the newest turn prompt, A and B may have 20, 40 and 40 % of the limit; what a short text leaves goes to the
    others.
    """

    limit: int = 24_000
    name = "keep-last"

    def cut(self, turns: Sequence[Turn], measure: Measure = CHARACTERS) -> tuple[tuple[Turn, ...], int]:
        sizes = [sum(measure.size(text) for text in _texts(turn)) for turn in turns]
        if sizes[-1] > self.limit:
            texts = _texts(turns[-1])
            grants = _allocate(self.limit, [measure.size(text) for text in texts])
            kept, counts = zip(
                *(_cut_middle(text, grant, measure) for text, grant in zip(texts, grants, strict=True)), strict=True
            )
            return (Turn(*kept),), sum(counts)
        size, first = 0, len(turns)
        for index in range(len(turns) - 1, -1, -1):
            if size + sizes[index] > self.limit:
                break
            size += sizes[index]
            first = index
        return tuple(turns[first:]), sum(turn.characters for turn in turns[first:])


@dataclass(frozen=True)
class Proportional(Budget):
    """20, 40 and 40 % of the limit for all prompts, all of A and all of B; each keeps its newest texts, the one at
    the edge loses its middle.

    What one of the three does not need goes to the others. A turn that loses a whole text is dropped.
    """

    limit: int = 24_000
    name = "proportional"

    def cut(self, turns: Sequence[Turn], measure: Measure = CHARACTERS) -> tuple[tuple[Turn, ...], int]:
        columns = list(zip(*map(_texts, turns), strict=True))
        grants = _allocate(self.limit, [sum(map(measure.size, column)) for column in columns])
        texts, counts = zip(*(_newest(*each, measure) for each in zip(columns, grants, strict=True)), strict=True)

        def loses_a_text(index: int) -> bool:
            return any(column[index] and not count[index] for column, count in zip(columns, counts, strict=True))

        # An answer that was cut away would look like an empty one.
        first = len(turns) - 1
        while first and not loses_a_text(first - 1):
            first -= 1
        kept = tuple(Turn(*(text[index] for text in texts)) for index in range(first, len(turns)))
        return kept, sum(sum(count[first:]) for count in counts)


def _allocate(limit: int, wants: Sequence[int]) -> list[int]:
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


def _texts(turn: Turn) -> tuple[str, str, str]:
    return turn.prompt, turn.response_a, turn.response_b


def _cut_middle(text: str, limit: int, measure: Measure) -> tuple[str, int]:
    """The head and the tail of `text`, `limit` of it in all, with a mark where the middle was; and how many characters
    of the text that holds."""
    if measure.size(text) <= limit:
        return text, len(text)
    size = limit // 2
    head, tail = measure.head(text, limit - size), measure.tail(text, size)
    return head + _GAP + tail, len(head) + len(tail)


def _newest(texts: Sequence[str], limit: int, measure: Measure) -> tuple[list[str], list[int]]:
    """The newest texts that fit, the one at the edge without its middle, empty ones before it; and the characters of each."""
    kept, counts = [""] * len(texts), [0] * len(texts)
    for index in range(len(texts) - 1, -1, -1):
        size = min(measure.size(texts[index]), limit)
        limit -= size
        if size:
            kept[index], counts[index] = _cut_middle(texts[index], size, measure)
    return kept, counts


@dataclass(frozen=True)
class Whole(Budget):
    """Everything: for scorers that have a limit of their own."""

    name = "whole"
    limit = 10**12

    def __str__(self) -> str:
        return self.name

    def cut(self, turns: Sequence[Turn], measure: Measure = CHARACTERS) -> tuple[tuple[Turn, ...], int]:
        return tuple(turns), sum(turn.characters for turn in turns)


WHOLE = Whole()
_POLICIES: dict[str, type[KeepLast] | type[Proportional]] = {"keep-last": KeepLast, "proportional": Proportional}
DEFAULT_BUDGET = KeepLast()


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
    found: list[list[Cut]] = []
    # Policies keep turns that follow one another; most keep the newest.
    for first in range(len(turns) - len(read), -1, -1):
        kept = turns[first : first + len(read)]
        parts = [
            _part(number, field, before, after)
            for number, (turn, rest) in enumerate(zip(kept, read, strict=True), first)
            for field, before, after in zip(_FIELDS, _texts(turn), _texts(rest), strict=True)
        ]
        if None in parts:
            continue
        dropped = [
            Cut(number, field, len(text), 0, 0)
            for number, turn in enumerate(turns)
            if not first <= number < first + len(read)
            for field, text in zip(_FIELDS, _texts(turn), strict=True)
            if text
        ]
        found.append([*dropped, *(part for part in parts if part is not None and part.head < part.characters)])
        break
    return sorted(found[0], key=lambda cut: (cut.turn, _FIELDS.index(cut.field))) if found else []


def _part(turn: int, field: str, text: str, read: str) -> Cut | None:
    """How much of `text` there is in `read`; None if that is not made of it."""
    if text == read:
        return Cut(turn, field, len(text), len(text), 0)
    at = read.find(_GAP)
    while at >= 0:
        head, tail = read[:at], read[at + len(_GAP) :]
        if text.startswith(head) and text.endswith(tail) and len(head) + len(tail) <= len(text):
            return Cut(turn, field, len(text), len(head), len(tail))
        at = read.find(_GAP, at + 1)
    return Cut(turn, field, len(text), len(read), 0) if text.startswith(read) else None

"""Cuts pairs to the number of tokens that a model reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

from prefcast.errors import PrefcastError, UsageError, excerpt
from prefcast.pairs import Turn
from prefcast.pairs.budget import Budget, KeepLast, Proportional, Truncation
from prefcast.scorers.reward.text import TextEncoder

__all__ = ["POLICIES", "TokenBudget"]

POLICIES: dict[str, type[KeepLast] | type[Proportional]] = {"keep-last": KeepLast, "proportional": Proportional}


class TokenBudget(Budget):
    """A policy of `budget.py` whose limit counts tokens: those of the longest sequence that is made of a pair, template
    included.

    `longest` gives that number for some turns. Bisection finds the largest budget that fits; each trial is tokenised as
    it would be scored. Only the texts are cut, never the template or the token that is scored.
    """

    def __init__(self, policy: str, limit: int, longest: Callable[[Sequence[Turn]], int], reader: TextEncoder) -> None:
        if policy not in POLICIES:
            raise UsageError(f"unknown policy {excerpt(policy)}; there are {', '.join(POLICIES)}")
        self.name = f"{policy} in tokens"
        self.limit = limit
        self._policy, self._longest, self._reader = POLICIES[policy], longest, reader

    def apply(self, turns: tuple[Turn, ...]) -> tuple[tuple[Turn, ...], Truncation]:
        total = sum(turn.characters for turn in turns)
        try:
            fits = self._longest(turns) <= self.limit
        except PrefcastError:
            fits = True  # the scorer reports the fault
        if fits:
            return turns, Truncation(total, total, len(turns), len(turns))
        measure = TokenMeasure(self._reader)
        low, high = 0, sum(measure.size(text) for turn in turns for text in turn.texts)
        while high - low > 1:
            middle = (low + high) // 2
            if self._longest(self._policy(middle).cut(turns, measure)[0]) <= self.limit:
                low = middle
            else:
                high = middle
        # If not even one token of text fits, the scorer reports that.
        kept, characters = self._policy(low or 1).cut(turns, measure)
        return kept, Truncation(characters, total, len(kept), len(turns))


class TokenMeasure:
    """Sizes and ends of texts in tokens."""

    def __init__(self, reader: TextEncoder) -> None:
        self._of = cache(reader.offsets)

    def size(self, text: str) -> int:
        return len(self._of(text))

    def head(self, text: str, size: int) -> str:
        """The first `size` tokens of `text`, as text."""
        offsets = self._of(text)
        return text if size >= len(offsets) else text[: offsets[size][0]]

    def tail(self, text: str, size: int) -> str:
        """The last `size` tokens of `text`, as text."""
        offsets = self._of(text)
        return text if size >= len(offsets) else "" if size <= 0 else text[offsets[-size][0] :]

"""Cutting pairs to what a model reads, in its own tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prefcast.errors import PrefcastError, UsageError, excerpt
from prefcast.pairs import Turn
from prefcast.pairs.budget import Budget, KeepLast, Proportional, Truncation
from prefcast.scorers.reward.text import TextEncoder

__all__ = ["POLICIES", "TokenBudget"]

POLICIES: dict[str, type[KeepLast] | type[Proportional]] = {"keep-last": KeepLast, "proportional": Proportional}


class TokenBudget(Budget):
    """A policy of `budget.py` whose limit is the most tokens of any one sequence that the model reads of a pair, the
    template included.

    `longest` gives that of some turns. The largest share of the texts that fits is found by bisection, each trial
    tokenised as it will be scored: the content is cut, never the template or the token that is scored.
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
            fits = True  # the scorer names the fault
        if fits:
            return turns, Truncation(total, total, len(turns), len(turns))
        measure = TokenMeasure(self._reader)
        low, high = 0, sum(measure.size(text) for turn in turns for text in turn.texts)
        best: tuple[tuple[Turn, ...], int] | None = None
        while high - low > 1:
            middle = (low + high) // 2
            kept, characters = self._policy(middle).cut(turns, measure)
            if self._longest(kept) <= self.limit:
                low, best = middle, (kept, characters)
            else:
                high = middle
        if best is None:
            # Not even one token of text fits: the scorer says so.
            kept, characters = self._policy(1).cut(turns, measure)
            best = kept, characters
        return best[0], Truncation(best[1], total, len(best[0]), len(turns))


class TokenMeasure:
    """Sizes and ends of texts in tokens."""

    def __init__(self, reader: TextEncoder) -> None:
        self._reader = reader
        self._offsets: dict[str, list[tuple[int, int]]] = {}

    def _of(self, text: str) -> list[tuple[int, int]]:
        if text not in self._offsets:
            self._offsets[text] = self._reader.offsets(text)
        return self._offsets[text]

    def size(self, text: str) -> int:
        return len(self._of(text))

    def head(self, text: str, size: int) -> str:
        """The first `size` tokens of `text`, as text."""
        offsets = self._of(text)
        return text if size >= len(offsets) else text[: offsets[size][0]]

    def tail(self, text: str, size: int) -> str:
        """The last `size` tokens."""
        offsets = self._of(text)
        return text if size >= len(offsets) else "" if size <= 0 else text[offsets[-size][0] :]

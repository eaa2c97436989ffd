"""Cuts pairs to the number of tokens that a model reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

from prefcast.errors import PrefcastError, UsageError, excerpt
from prefcast.pairs import Pair, Turn
from prefcast.pairs.budget import Budget, KeepLast, Proportional, Truncation
from prefcast.scorers.reward.text import TextEncoder

__all__ = ["POLICIES", "TokenBudget"]

# A system message has at most this part of the limit: as much as the prompts.
_SYSTEM_SHARE = 5
POLICIES: dict[str, type[KeepLast] | type[Proportional]] = {"keep-last": KeepLast, "proportional": Proportional}


class TokenBudget(Budget):
    """A policy of `budget.py` whose limit counts tokens: those of the longest sequence that is made of a pair, template
    included.

    `longest` gives that number for a pair. Bisection finds the largest budget that fits; each trial is tokenised as it
    would be scored. Only the texts are cut, never the template or the token that is scored. A system message has at most
    a fifth of the limit where the pair does not fit. `reads_otherwise` says whether the literal reading of special tokens
    changes what the template does with a pair.
    """

    def __init__(
        self,
        policy: str,
        limit: int,
        longest: Callable[[Pair], int],
        reader: TextEncoder,
        reads_otherwise: Callable[[Pair], bool] = lambda pair: False,
    ) -> None:
        if policy not in POLICIES:
            raise UsageError(f"unknown policy {excerpt(policy)}; there are {', '.join(POLICIES)}")
        self.name = f"{policy} in tokens"
        self.limit = limit
        self._policy, self._longest, self._reader = POLICIES[policy], longest, reader
        self._reads_otherwise = reads_otherwise

    def apply(self, turns: tuple[Turn, ...]) -> tuple[tuple[Turn, ...], Truncation]:
        read, truncation = self.read(Pair(turns))
        return read.turns, truncation

    def read(self, pair: Pair) -> tuple[Pair, Truncation]:
        total = sum(turn.characters for turn in pair.turns)
        try:
            literal = self._reads_otherwise(pair)
            if self._longest(pair) <= self.limit:
                return pair, Truncation(total, total, len(pair.turns), len(pair.turns), literal)
            if pair.tools is not None:
                # The scorer reports that it is too long.
                return pair, Truncation(total, total, len(pair.turns), len(pair.turns), literal)
            return self._cut(pair, total, literal)
        except PrefcastError:
            # The scorer reports the fault.
            return pair, Truncation(total, total, len(pair.turns), len(pair.turns))

    def _cut(self, pair: Pair, total: int, literal: bool) -> tuple[Pair, Truncation]:
        measure = TokenMeasure(self._reader)
        cut = replace(pair, system=self._shortened(pair.system, measure))
        # Characters of a system message are told where they are missing.
        lost = max(0, len(pair.system) - len(cut.system))
        if lost and self._longest(cut) <= self.limit:
            return cut, Truncation(max(0, total - lost), total, len(pair.turns), len(pair.turns), literal)
        low, high = 0, sum(measure.size(text) for turn in pair.turns for text in turn.texts)
        while high - low > 1:
            middle = (low + high) // 2
            if self._longest(replace(cut, turns=self._policy(middle).cut(pair.turns, measure)[0])) <= self.limit:
                low = middle
            else:
                high = middle
        # If not even one token of text fits, the scorer reports that.
        kept, characters = self._policy(low or 1).cut(pair.turns, measure)
        truncation = Truncation(max(0, characters - lost), total, len(kept), len(pair.turns), literal)
        return replace(cut, turns=kept), truncation

    def _shortened(self, system: str, measure: TokenMeasure) -> str:
        share = self.limit // _SYSTEM_SHARE
        if not system or measure.size(system) <= share:
            return system
        # As a turn with nothing else: the policy leaves out the middle.
        return self._policy(max(1, share)).cut((Turn(system, "", ""),), measure)[0][0].prompt


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

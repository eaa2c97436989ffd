"""From n answers to a prompt to pairs of a chosen and a rejected answer: which pairs, and what is dropped for which reason."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, fields
from itertools import combinations
from tempfile import TemporaryFile
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from prefcast.base.files import atomic_file
from prefcast.errors import RowError, UsageError
from prefcast.forecasts.best import Choice
from prefcast.forecasts.forecaster import Forecaster
from prefcast.outcomes.models import MarginSign
from prefcast.outcomes.statistics.columns import Columns
from prefcast.pairs import Outcome
from prefcast.pairs.formats.fields import Fault
from prefcast.pairs.formats.preferences import TIES_IN, Preference, preference_record
from prefcast.pairs.pair import group_key

__all__ = ["REASONS", "STRATEGIES", "Counts", "Lengths", "Rule", "balanced", "preferences", "write_preferences"]

STRATEGIES = ("best-worst", "best-random", "all", "hard")
# Why a pair is dropped; the first that holds counts.
REASONS = (
    "same text",
    "repeated",
    "tie",
    "below the margin",
    "outside the band",
    "above --per-prompt",
    "length balance",
)
# Differences of length in one bin differ by at most this factor.
_BIN = 1.25


@dataclass(frozen=True)
class Rule:
    """Which pairs are made of the answers to a prompt.

    `best-worst` takes the best and the worst answer, `best-random` the best and one drawn at random; with `per_prompt` k there are
    k such pairs (the second best and the second worst, or another one drawn). `all` takes every pair, `hard` those whose win
    probability lies in `band`; k of them are drawn. A win probability is P(wins) + P(tie) / 2. The lower end of the 95 % interval
    of P(chosen wins) - P(rejected wins) must be above `margin`. If a tie is the likeliest outcome, the pair is a tie, which is
    dropped unless `ties`.
    """

    strategy: str = "best-worst"
    margin: float = 0.0
    band: tuple[float, float] = (0.55, 0.75)
    per_prompt: int | None = None
    ties: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise UsageError(f"unknown strategy {self.strategy!r}; there are {', '.join(STRATEGIES)}")
        if not 0 <= self.margin < 1:
            raise UsageError(f"--margin is a difference of two probabilities, from 0 to below 1; found {self.margin:g}")
        low, high = self.band
        if not 0.5 <= low < high <= 1:
            raise UsageError(
                f"--band takes two win probabilities of the chosen answer, 0.5 to 1; found {low:g} {high:g}"
            )

    def check(self, forecaster: Forecaster) -> None:
        """Raise UsageError if the forecaster has no probabilities and the rule needs them."""
        needs = "--margin" if self.margin else "--strategy hard" if self.strategy == "hard" else ""
        if needs and isinstance(forecaster.outcome, MarginSign):
            raise UsageError(
                f"{needs} needs probabilities, and no outcome model was fitted to this model: fit one with prefcast fit "
                "LABELLED --model MODEL -o DIR and use --forecaster DIR"
            )


@dataclass
class Lengths:
    """How much longer the chosen answers of `pairs` are, in characters: `longer` and `shorter` count them, `total` is the sum of
    the differences."""

    pairs: int = 0
    longer: int = 0
    shorter: int = 0
    total: int = 0

    def add(self, difference: int) -> None:
        self.pairs += 1
        self.longer += difference > 0
        self.shorter += difference < 0
        self.total += difference

    def __str__(self) -> str:
        mean = round(self.total / max(1, self.pairs), 1) + 0.0
        share = self.longer / max(1, self.longer + self.shorter)
        return f"longer in {share:.1%} of {self.longer + self.shorter:,} pairs of unequal length, by {mean:+.1f} characters on average"


@dataclass
class Counts:
    """What was made: of `prompts`, `failed` had an error and `without` have no pair. Of `considered` pairs, `written` are in the
    file, `ties` of them as ties; `dropped` counts the others by reason. `lengths` are of all pairs that the rule takes,
    `balanced` of those that are written; ties are in neither."""

    prompts: int = 0
    failed: int = 0
    without: int = 0
    truncated: int = 0
    considered: int = 0
    written: int = 0
    ties: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    lengths: Lengths = field(default_factory=Lengths)
    balanced: Lengths = field(default_factory=Lengths)
    first_error: RowError | None = None

    def to_dict(self) -> dict[str, Any]:
        """The counts as JSON types."""
        plain = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "first_error"}
        plain["dropped"] = {reason: self.dropped[reason] for reason in REASONS}
        return {**plain, "lengths": vars(self.lengths), "balanced": vars(self.balanced)}


def preferences(choice: Choice, rule: Rule, counts: Counts) -> Iterator[Preference]:
    """The pairs of one prompt, in a fixed order. The choice must have `leads`."""
    ranking, said = choice.ranking, choice.candidates
    if ranking is None or said is None or ranking.leads is None:
        return
    probabilities, leads = ranking.probabilities, ranking.leads
    wins = probabilities[:, :, Outcome.A] + probabilities[:, :, Outcome.TIE] / 2
    taken: list[tuple[int, int, bool]] = []
    seen: set[frozenset[tuple[str, ...]]] = set()
    for i, j in _considered(str(choice.id), ranking.order, wins, rule):
        counts.considered += 1
        win, lose, tie = probabilities[i, j]
        reason, texts = "", frozenset((said.responses[i], said.responses[j]))
        repeated = texts in seen
        seen.add(texts)
        if len(texts) == 1:
            reason = "same text"
        elif repeated:
            reason = "repeated"
        elif is_tie := bool(tie >= max(win, lose) or win == lose):
            reason = "" if rule.ties else "tie"
        elif leads[i, j] <= rule.margin:
            reason = "below the margin"
        elif rule.strategy == "hard" and not rule.band[0] <= wins[i, j] <= rule.band[1]:
            reason = "outside the band"
        if reason:
            counts.dropped[reason] += 1
        else:
            taken.append((i, j, is_tie))
    for i, j, is_tie in _drawn(str(choice.id), taken, rule, counts):
        yield Preference(
            _pair_id(choice.id, i, j),
            said.prompt,
            said.responses[i],
            said.responses[j],
            None if is_tie else float(wins[i, j]),
            is_tie,
            said.system,
            said.reference,
        )


def _pair_id(id: str | int, i: int, j: int) -> str:
    return f"{id}:{i}-{j}"


def _considered(id: str, order: tuple[int, ...], wins: NDArray[np.float64], rule: Rule) -> Iterator[tuple[int, int]]:
    """The pairs of positions that a strategy looks at, the one to be chosen first."""
    n, most = len(order), rule.per_prompt or 1
    if rule.strategy == "best-worst":
        yield from ((order[place], order[n - 1 - place]) for place in range(min(most, n // 2)))
    elif rule.strategy == "best-random":
        others = sorted(order[1:], key=lambda other: group_key(f"{rule.seed}\0{_pair_id(id, order[0], other)}"))
        yield from ((order[0], other) for other in others[:most])
    else:
        yield from ((i, j) if wins[i, j] >= wins[j, i] else (j, i) for i, j in combinations(range(n), 2))


def _drawn(id: str, taken: list[tuple[int, int, bool]], rule: Rule, counts: Counts) -> list[tuple[int, int, bool]]:
    """At most `per_prompt` pairs, drawn at random, in their order."""
    most = rule.per_prompt
    if most is None or len(taken) <= most:
        return taken
    counts.dropped["above --per-prompt"] += len(taken) - most
    marks = {pair: group_key(f"{rule.seed}\0{_pair_id(id, pair[0], pair[1])}") for pair in taken}
    drawn = set(sorted(taken, key=marks.__getitem__)[:most])
    return [pair for pair in taken if pair in drawn]


def balanced(difference: NDArray[np.float64], mark: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which pairs (n,) are kept, so that the sign of `difference` (n,), by how much the chosen answer is longer, tells nothing of
    the label.

    Pairs are put into bins by the size of the difference; sizes in one bin differ by at most a factor of 1.25. In each bin as
    many pairs are kept in which the chosen answer is longer as in which it is shorter: those of the smallest `mark` (n,), a
    random number of the pair. That is coarsened exact matching (Iacus, King and Porro, "Causal inference without balance
    checking", Political Analysis 20, 2012) of the two signs on the size. If the chosen answers are still longer on average
    because sizes differ within bins, further pairs are dropped until they are not.
    """
    size = np.abs(difference)
    bins = np.full(len(size), -1, dtype=np.int64)
    bins[size > 0] = np.floor(np.log(size[size > 0]) / np.log(_BIN)).astype(np.int64)
    keep = np.ones(len(size), dtype=bool)
    for each in np.unique(bins[bins >= 0]).tolist():
        sides = [np.flatnonzero((bins == each) & (sign * difference > 0)) for sign in (1, -1)]
        fewer = min(map(len, sides))
        for side in sides:
            keep[side[np.argsort(mark[side], kind="stable")[fewer:]]] = False
    total = float(difference[keep].sum())
    while total > 0:
        longer = np.flatnonzero(keep & (difference > 0))
        enough = longer[difference[longer] >= total]
        drop = enough[np.argmin(difference[enough])] if len(enough) else longer[np.argmax(difference[longer])]
        keep[drop] = False
        total -= float(difference[drop])
    return keep


def write_preferences(
    path: str | os.PathLike[str],
    found: Iterable[Choice],
    rule: Rule,
    trainer: str = "trl",
    *,
    plain: bool = False,
    balance: bool = False,
    on_error: str = "keep",
    name: str = "pairs",
) -> Counts:
    """Write the pairs of `found`, which come from the file `name`, as JSON Lines, whole or not at all, in memory that does not grow with the prompts. With `balance`
    the pairs lie in a temporary file until it is known which are kept.

    With `on_error="stop"` the first prompt that fails raises its RowError. Raises UsageError for ties in a form without them.
    """
    if rule.ties and trainer not in TIES_IN:
        raise UsageError(f"--ties write: {trainer} has no place for ties; --to {TIES_IN[0]} has")
    counts = Counts()
    with ExitStack() as stack:
        file = stack.enter_context(atomic_file(path))
        out: BinaryIO = stack.enter_context(TemporaryFile()) if balance else file
        kept = Columns(("difference", "mark", "tie", "prompt"))
        for choice in found:
            lines, error = _lines(choice, rule, trainer, plain, counts, name)
            if error is not None and on_error == "stop":
                raise error
            for line, pair in lines:
                out.write(line)
                counts.written += 1
                if not balance:
                    continue
                mark = np.array([group_key(f"{rule.seed}\0{pair.id}")], dtype=np.uint64).view(np.float64)[0]
                kept.append(np.array([[0 if pair.tie else pair.difference, mark, pair.tie, counts.prompts]]))
        if balance:
            _write_balanced(out, file, kept, counts)
        else:
            counts.balanced = counts.lengths
    return counts


def _lines(
    choice: Choice, rule: Rule, trainer: str, plain: bool, counts: Counts, name: str
) -> tuple[list[tuple[bytes, Preference]], RowError | None]:
    """The lines of one prompt. A prompt with a pair that the form has no place for fails as a whole."""
    counts.prompts += 1
    counts.truncated += choice.truncated > 0
    error = choice.error
    lines: list[tuple[bytes, Preference]] = []
    if error is None:
        before = counts.considered, counts.dropped.copy()
        try:
            for pair in preferences(choice, rule, counts):
                record = preference_record(pair, trainer, plain=plain)
                lines.append((json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n", pair))
        except Fault as fault:
            row = 0 if choice.candidates is None else choice.candidates.row
            error = RowError(name, row, fault.field, fault.problem, choice.id)
            lines = []
            counts.considered, counts.dropped = before
    counts.failed += error is not None
    counts.without += error is None and not lines
    counts.first_error = counts.first_error or error
    for _, pair in lines:
        if pair.tie:
            counts.ties += 1
        else:
            counts.lengths.add(pair.difference)
    return lines, error


def _write_balanced(spool: BinaryIO, file: BinaryIO, kept: Columns, counts: Counts) -> None:
    keep = balanced(kept.column("difference"), kept.column("mark").view(np.uint64))
    counts.dropped["length balance"] = int((~keep).sum())
    counts.written = int(keep.sum())
    counts.ties = int(kept.column("tie")[keep].sum())
    counts.without = counts.prompts - counts.failed - len(np.unique(kept.column("prompt")[keep]))
    spool.seek(0)
    for line, stays, row in zip(spool, keep.tolist(), (row for block in kept.blocks() for row in block), strict=True):
        if stays:
            file.write(line)
            if not row[2]:
                counts.balanced.add(int(row[0]))

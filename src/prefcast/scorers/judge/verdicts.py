"""Verdicts of a judge, and the evidence that they make.

A verdict is about two answers in the order in which the judge read them: the first, the second, or a tie. The letters are
A, B and C, each one token in every tokenizer.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["LETTERS", "RAW", "Verdict", "evidence_of", "letter_of_text", "of_letter", "of_tokens", "packed", "unpacked"]

# The first answer, the second answer, a tie.
LETTERS = ("A", "B", "C")
RAW = ("margin_a", "margin_b", "position", "uncovered")
# A probability counts as at least this: a letter that is not among the listed tokens has some.
_FLOOR = 1e-5
# With less probability on the three letters together nothing is known of the verdict.
_LEAST_COVERED = 1e-3
# What tokenizers and Markdown put around a letter.
_AROUND = " \t\r\n\u2581\u0120\u010a*_`\"'.:()[]"
_LAST_LINE = re.compile(r"\W*(?:(?:(?:the|my|final)\s+)*(?:verdict|answer)(?:\s+is)?\W+)?([ABC])\W*", re.IGNORECASE)
_PACKED = struct.Struct("<?4d")
_KINDS = ("refusal", "unreadable")


@dataclass(frozen=True)
class Verdict:
    """What a reply says: the probabilities of the first answer, the second and a tie, and the probability `uncovered` of
    replies that are none of these. `sampled`: the reply was drawn, one of the three is 1."""

    first: float
    second: float
    tie: float
    uncovered: float = 0.0
    sampled: bool = False


@dataclass(frozen=True)
class NoVerdict:
    """A reply without a verdict. `kind` is "refusal" or "unreadable"."""

    kind: str


def of_letter(letter: str) -> Verdict:
    """The verdict of a drawn letter."""
    first, second, tie = (float(letter == each) for each in LETTERS)
    return Verdict(first, second, tie, sampled=True)


def of_tokens(tokens: Iterable[tuple[str, float]]) -> Verdict | NoVerdict:
    """The verdict of the likeliest first tokens (text, log probability). Spellings of a letter are added up."""
    covered = dict.fromkeys(LETTERS, 0.0)
    for text, logprob in tokens:
        if (letter := text.strip(_AROUND)) in covered:
            covered[letter] += math.exp(min(logprob, 0.0))
    total = math.fsum(covered.values())
    if total < _LEAST_COVERED:
        return NoVerdict("unreadable")
    first, second, tie = covered.values()
    return Verdict(first, second, tie, max(0.0, 1.0 - total))


def letter_of_text(text: str) -> str | None:
    """The letter on the last line of a reply that is not empty; None if the line holds anything else."""
    lines = text.strip()[-1000:].splitlines()
    found = _LAST_LINE.fullmatch(lines[-1]) if lines else None
    return found[1].upper() if found else None


def evidence_of(forth: Sequence[Verdict], back: Sequence[Verdict]) -> tuple[float, float, tuple[float, ...]]:
    """Margin, tie and raw numbers (named RAW) of the verdicts with A first and with B first.

    With l1 = log(p(first) / p(second)) where A is first and l2 where B is first, the margin is (l1 - l2) / 2 and the
    position (l1 + l2) / 2: above 0 the judge prefers what it reads first. The tie is the mean over the orders of
    log(p(tie) / sqrt(p(first) p(second))). Drawn verdicts are counted, and 1/2 is added to each count.
    """
    (l1, t1, u1), (l2, t2, u2) = _log_odds(forth), _log_odds(back)
    return (l1 - l2) / 2, (t1 + t2) / 2, (l1, 0.0 - l2, (l1 + l2) / 2, (u1 + u2) / 2)


def _log_odds(verdicts: Sequence[Verdict]) -> tuple[float, float, float]:
    if verdicts[0].sampled:
        first, second, tie = (
            0.5 + sum(getattr(each, name) for each in verdicts) for name in ("first", "second", "tie")
        )
    else:
        first, second, tie = (max(_FLOOR, each) for each in (verdicts[0].first, verdicts[0].second, verdicts[0].tie))
    a, b = math.log(first), math.log(second)
    # Sums before differences, so that an exchange of the two changes nothing in the last digit.
    return a - b, math.log(tie) - (a + b) / 2, math.fsum(each.uncovered for each in verdicts) / len(verdicts)


def packed(found: Verdict | NoVerdict) -> bytes:
    """A reply as the evidence store keeps it: numbers, no text."""
    if isinstance(found, NoVerdict):
        return bytes([_KINDS.index(found.kind)])
    return _PACKED.pack(found.sampled, found.first, found.second, found.tie, found.uncovered)


def unpacked(value: bytes) -> Verdict | NoVerdict | None:
    """What `packed` made; None for anything else."""
    if len(value) == 1 and value[0] < len(_KINDS):
        return NoVerdict(_KINDS[value[0]])
    if len(value) != _PACKED.size:
        return None
    sampled, *numbers = _PACKED.unpack(value)
    first, second, tie, uncovered = numbers
    return Verdict(first, second, tie, uncovered, sampled) if all(0 <= each <= 1 for each in numbers) else None

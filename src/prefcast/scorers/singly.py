"""A scorer of single answers around which each answer is read once, however many pairs it is in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from prefcast.pairs import Pair, Turn
from prefcast.scorers.base import SILENT, Evidence, Meter, Part, Scorer
from prefcast.scorers.wrapped import WrappedScorer

__all__ = ["SinglyScorer", "alone", "reads_singly", "singly"]

# The raw numbers of a scorer of single answers.
_SCORES = ("score_a", "score_b")
# How far the difference of two scores may be from the margin of the pair, relative to the margin.
_ROUNDING = 1e-3


def singly(scorer: Scorer) -> Scorer:
    """The scorer, or each of its members, that reads each answer once if it scores single answers."""
    if members := scorer.members():
        return scorer.with_members([singly(member) for member in members])
    return SinglyScorer(scorer) if scorer.pointwise and scorer.raw_names == _SCORES else scorer


def reads_singly(scorer: Scorer) -> bool:
    """Whether every member reads each answer once, so that more pairs of the same answers cost next to nothing."""
    if members := scorer.members():
        return all(map(reads_singly, members))
    return isinstance(scorer, SinglyScorer) and scorer.sound is not False


class SinglyScorer(WrappedScorer):
    """The margin of a pair is the difference of two scores, and `inner` is asked for each answer beside itself.

    `sound` says whether that holds. The first pair of two answers is scored as a pair too: if its margin is no difference of
    scores, or it has evidence for a tie, all pairs are scored as pairs.
    """

    def __init__(self, inner: Scorer, sound: bool | None = None) -> None:
        super().__init__(inner)
        self.sound = sound

    def again(self, inner: Scorer) -> Scorer:
        return SinglyScorer(inner)

    def stream(self, pairs: Sequence[Pair], meter: Meter = SILENT) -> Iterator[Part]:
        read: dict[tuple[object, ...], int] = {}
        answers: list[Pair] = []
        index = np.array([[_place(pair, side, read, answers) for side in (0, 1)] for pair in pairs], dtype=np.intp)
        index = index.reshape(len(pairs), 2)
        told = [] if self.sound else np.flatnonzero(index[:, 0] != index[:, 1])[:1].tolist()
        found = None
        if self.sound is not False:
            found = self.inner.evidence([*answers, *(pairs[row] for row in told)], meter.aside())
        if found is None or (told and not self._holds(found, index[told[0]])):
            yield from self.inner.stream(pairs, meter)
            return
        a, b = found.raw["score_a"][index[:, 0]], found.raw["score_b"][index[:, 1]]
        problems = {
            row: found.problems.get(first) or found.problems[second]
            for row, (first, second) in enumerate(index.tolist())
            if first in found.problems or second in found.problems
        }
        bad = np.array([row in problems for row in range(len(pairs))], dtype=bool)
        margin, tie = np.where(bad, np.nan, a - b), np.where(bad, np.nan, 0.0)
        meter.advance(len(pairs))
        yield range(len(pairs)), Evidence(margin, tie, problems, {"score_a": a, "score_b": b})

    def _holds(self, found: Evidence, index: np.ndarray[tuple[int], np.dtype[np.intp]]) -> bool:
        """Whether the last row of the evidence is the difference of the two answers' scores. A row that failed does not tell."""
        margin = float(found.margin[-1])
        off = abs(margin - float(found.raw["score_a"][index[0]] - found.raw["score_b"][index[1]]))
        if np.isfinite(off):
            self.sound = bool(off <= _ROUNDING * max(1.0, abs(margin)) and found.tie[-1] == 0)
        return self.sound is not False


def _place(pair: Pair, side: int, read: dict[tuple[object, ...], int], answers: list[Pair]) -> int:
    """The place among `answers` of the answer A (0) or B (1) of a pair, beside itself; it is put there if it is new."""
    texts = (pair.response_a, pair.response_b)[side]
    tools = None if pair.tools is None else pair.tools[side]
    place = read.setdefault((pair.system, pair.reference, pair.prompt, texts, tools), len(answers))
    if place == len(answers):
        turns = tuple(Turn(prompt, text, text) for prompt, text in zip(pair.prompt, texts, strict=True))
        both = None if tools is None else (tools, tools)
        answers.append(Pair(turns, system=pair.system, reference=pair.reference, tools=both))
    return place


def alone(scorer: Scorer) -> Scorer | None:
    """The one scorer of single answers that a scorer is or has among its members; None if there is none, or several."""
    if members := scorer.members():
        found = [each for each in map(alone, members) if each is not None]
        return found[0] if len(found) == 1 else None
    return scorer if scorer.pointwise and scorer.raw_names == _SCORES else None

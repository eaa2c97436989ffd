"""Samples -> rewards: the raw score of each, or the probability that it is preferred to the others of its group.

The probability of being preferred is P(wins) + P(tie) / 2, averaged over the other samples: the strength of `prefcast best`. A model
that scores single answers reads each answer once. A model that compares two answers reads pairs of them.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from prefcast.errors import ModelError, UsageError, excerpt
from prefcast.forecasts.forecaster import Forecaster
from prefcast.forecasts.resolve import Choice, resolve, resolve_fitted
from prefcast.forecasts.scores import RawScores, score_pairs
from prefcast.outcomes.models import OutcomeModel
from prefcast.pairs.budget import Budget
from prefcast.runs.ready import Running, ready_scorer
from prefcast.scorers.base import Scorer, costs_money
from prefcast.scorers.singly import alone, reads_singly, singly
from prefcast.service.rewards.samples import Sample, as_pair

__all__ = ["OPPONENTS", "READINGS", "Rewarder", "contests"]

READINGS = ("preferred", "score")
# With so many opponents each, a group of 9 has all its pairs, and a larger one 4 for each sample.
OPPONENTS = 8

# A sample, or why there is none.
Given = Sample | str
# A reward, or why there is none.
Found = float | str
_Contest = tuple[Sample, Sample]


def contests(samples: Sequence[Sample], opponents: int) -> list[_Contest]:
    """Which of the different samples of a group are compared: every two of them if none has more than `opponents` others, otherwise
    each with the nearest ones in a circle, half of them on each side. The circle is in the order of the samples' digests."""
    circle = sorted(samples, key=lambda sample: sample.order)
    n = len(circle)
    reach = n // 2 if n - 1 <= opponents else opponents // 2
    steps = ((place, (place + step) % n) for step in range(1, reach + 1) for place in range(n))
    return [(circle[a], circle[b]) for a, b in dict.fromkeys((min(pair), max(pair)) for pair in steps)]


@dataclass
class Rewarder:
    """Rewards by the chosen model. It can be pickled; the copy loads the model again.

    `reading` is "preferred" or "score". `running` says how evidence is computed and kept; by default only evidence that costs money
    is kept. Raises UsageError and the errors of the model's files.
    """

    choice: Choice
    reading: str = "preferred"
    opponents: int = OPPONENTS
    running: Running | None = None
    scorer: Scorer = field(init=False, repr=False)
    budget: Budget = field(init=False, repr=False)
    _outcome: OutcomeModel = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.reading not in READINGS:
            raise UsageError(f"unknown reading {excerpt(self.reading)}; there are {', '.join(READINGS)}")
        if self.opponents < 2 or self.opponents % 2:
            raise UsageError(f"opponents is {self.opponents}; expected an even number, at least 2")
        self._open()

    def __getstate__(self) -> Mapping[str, Any]:
        return {name: getattr(self, name) for name in ("choice", "reading", "opponents", "running")}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def _open(self) -> None:
        scorer: Scorer | None
        if self.reading == "preferred":
            forecaster = resolve(self.choice)
            self._outcome = forecaster.outcome
            scorer, self.budget = forecaster.scorer, forecaster.budget
        else:
            found, self.budget, fitted = resolve_fitted(self.choice)
            scorer = alone(found)
            if scorer is None:
                raise UsageError(
                    f"reading='score': the model {found.name} compares two answers and has no score of one; use reading='preferred'"
                )
            if fitted is not None and scorer is not found:
                # A member reads what it reads alone.
                self.budget = Forecaster.default_budget(scorer)
        running = self.running or Running(keep=costs_money(scorer))
        with ExitStack() as stack:
            self.scorer = singly(stack.enter_context(ready_scorer(scorer, running))[0])
            self.close: Callable[[], None] = weakref.finalize(self, stack.pop_all().close)

    def rewards(self, samples: Sequence[Given], references: Sequence[Given] | None = None) -> tuple[list[Found], int]:
        """The reward of each sample, or a text that says why it has none; and how many samples had nothing to be compared with.

        `references` are answers to compare with, one for each sample. Without them a sample is compared with the other samples of its
        group; if there is none, its reward is 0.5.
        """
        if self.reading == "score":
            return self._scores(samples), 0
        found: list[Found] = [each if isinstance(each, str) else math.nan for each in samples]
        good = [place for place, each in enumerate(samples) if isinstance(each, Sample)]
        asked: dict[int, list[tuple[Sample, int]]] = {}
        if references is not None:
            for place in good:
                reference = references[place]
                if isinstance(reference, str):
                    found[place] = reference
                else:
                    asked[place] = [(reference, 1)]
        else:
            asked = self._opponents(samples, good)
        return self._preferred(samples, asked, found), sum(not others for others in asked.values())

    def _opponents(self, samples: Sequence[Given], good: Sequence[int]) -> dict[int, list[tuple[Sample, int]]]:
        """The opponents of each sample, with the number of samples that are equal to them."""
        groups: dict[bytes, dict[Sample, list[int]]] = {}
        for place in good:
            sample = samples[place]
            assert isinstance(sample, Sample)  # noqa: S101
            groups.setdefault(sample.group, {}).setdefault(sample, []).append(place)
        asked: dict[int, list[tuple[Sample, int]]] = {}
        for group in groups.values():
            many = len(group) if reads_singly(self.scorer) else self.opponents
            met: dict[Sample, list[tuple[Sample, int]]] = {sample: [] for sample in group}
            for a, b in contests(list(group), many):
                met[a].append((b, len(group[b])))
                met[b].append((a, len(group[a])))
            for sample, places in group.items():
                same = [(sample, len(places) - 1)] if len(places) > 1 else []
                asked |= {place: [*same, *met[sample]] for place in places}
        return asked

    def _preferred(
        self, samples: Sequence[Given], asked: Mapping[int, list[tuple[Sample, int]]], found: list[Found]
    ) -> list[Found]:
        pairs: dict[_Contest, None] = {}
        for place, others in asked.items():
            for other, _ in others:
                pairs.setdefault(_ordered(samples[place], other)[0])
        pairs = {pair: None for pair in pairs if pair[0] != pair[1]}
        won = dict(zip(pairs, self._won(list(pairs)), strict=True))
        for place, others in asked.items():
            total = weight = 0.0
            problem = ""
            for other, count in others:
                pair, turned = _ordered(samples[place], other)
                # Of two equal answers neither is preferred.
                p = 0.5 if pair[0] == pair[1] else won[pair]
                if isinstance(p, str):
                    problem = problem or p
                else:
                    total, weight = total + count * (1 - p if turned else p), weight + count
            found[place] = total / weight if weight else f"no comparison was possible: {problem}" if problem else 0.5
        return found

    def _won(self, pairs: Sequence[_Contest]) -> list[Found]:
        """P(the first is preferred) + P(tie) / 2 of each pair."""
        raw = score_pairs([as_pair(a, b) for a, b in pairs], self.scorer, self.budget, verb="reward")
        problems, margin, tie = _problems(raw), raw.columns["margin"], raw.columns["tie"]
        good = np.isfinite(margin)
        half = np.full(len(margin), np.nan)
        p = self._outcome.probabilities(margin[good], tie[good])
        half[good] = p[:, 0] + p[:, 2] / 2
        return [problems.get(row, float(half[row])) for row in range(len(margin))]

    def _scores(self, samples: Sequence[Given]) -> list[Found]:
        known: dict[Sample, Found] = {}
        plain = list(dict.fromkeys(each for each in samples if isinstance(each, Sample) and not each.templated))
        if plain:
            raw = score_pairs([as_pair(each, each) for each in plain], self.scorer, self.budget, verb="reward")
            problems, scores = _problems(raw), raw.columns["score_a"]
            known |= {each: problems.get(row, float(scores[row])) for row, each in enumerate(plain)}
        templated = list(dict.fromkeys(each for each in samples if isinstance(each, Sample) and each.templated))
        known |= dict(zip(templated, self._of_texts([each.templated for each in templated]), strict=True))
        return [each if isinstance(each, str) else known[each] for each in samples]

    def _of_texts(self, texts: Sequence[str]) -> list[Found]:
        """The scores of texts in the model's template."""
        try:
            scores = self.scorer.score([{"text": text} for text in texts]).tolist() if texts else []
        except (UsageError, ModelError) as error:
            # The fault of one text is that text's.
            return [str(error)] if len(texts) == 1 else [self._of_texts([text])[0] for text in texts]
        return [each if math.isfinite(each) else "the model gave a score that is not finite" for each in scores]


def _ordered(sample: Given, other: Sample) -> tuple[_Contest, bool]:
    """Two samples in the order of their digests, and whether they changed places."""
    assert isinstance(sample, Sample)  # noqa: S101
    return ((sample, other), False) if sample.order <= other.order else ((other, sample), True)


def _problems(raw: RawScores) -> dict[int, str]:
    return {row: error.problem for row, error in enumerate(raw.errors) if error is not None}

"""What the reward functions have in common: the settings, the model, the monitor, and the handling of faults."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict, cast

from prefcast.errors import ScoringError, UsageError, excerpt, printable
from prefcast.forecasts.forecaster import Forecaster
from prefcast.forecasts.resolve import Choice
from prefcast.pairs.budget import Budget
from prefcast.runs.ready import Running
from prefcast.service.batching import Batcher
from prefcast.service.rewards.monitor import Monitor
from prefcast.service.rewards.samples import Sample
from prefcast.service.rewards.scoring import OPPONENTS, Found, Given, Rewarder

__all__ = ["Core", "Settings", "one"]

_log = logging.getLogger("prefcast")
# Samples that come one a call are one step of the monitor together, so many at a time.
_A_STEP = 64
# Calls of verl that wait at the same time are scored together, at most so many, after so many seconds.
_TOGETHER, _COMPANY = 256, 0.005


class Settings(TypedDict, total=False):
    """What all reward functions take.

    The model: `forecaster` (a folder or a Forecaster), `budget`, `preset` as in `prefcast.predict`, and `options`, the model's options by
    name, as `--option NAME=VALUE`. `running` says how evidence is computed and kept; by default only what costs money is kept.

    The reward: `reading` is "preferred" (default) or "score". `opponents` is the most samples that a sample is compared with, an even
    number (default 8); it does not limit models that score single answers.

    The length: `residualise="length"` takes out a running regression on the length, `length_penalty` is what a doubling of the length
    costs. `length_alarm` (default 0.5, None: never) is the size of the correlation with length above which a warning comes. `log` is a
    file (.jsonl) to which the figures of each step are added.
    """

    forecaster: Forecaster | str | os.PathLike[str] | None
    budget: Budget | str | None
    preset: str | None
    options: Mapping[str, Any]
    running: Running | None
    reading: str
    opponents: int
    residualise: str | None
    length_penalty: float
    length_alarm: float | None
    log: str | os.PathLike[str] | None


class Core:
    """What the functions have in common: the model, the monitor, and one lock, since trainers call from several threads."""

    def __init__(self, model: str | None, name: str, settings: Settings) -> None:
        said = cast("dict[str, Any]", dict(settings))
        residualise = said.pop("residualise", None)
        if residualise not in (None, "length"):
            raise UsageError(f"residualise is {excerpt(residualise)}; expected 'length' or None")
        if not name.isidentifier():
            raise UsageError(f"name is {excerpt(name)}; expected a name such as prefcast, of letters, digits and _")
        watched: dict[str, Any] = {"alarm": said.pop("length_alarm", 0.5), "penalty": said.pop("length_penalty", 0.0)}
        self.monitor = Monitor(name, residualise=residualise is not None, log=said.pop("log", None), **watched)
        more = tuple(f"{key}={value}" for key, value in said.pop("options", {}).items())
        reading, opponents = said.pop("reading", "preferred"), said.pop("opponents", OPPONENTS)
        running = said.pop("running", None)
        self.rewarder = Rewarder(Choice(model, more=more, **said), reading, opponents, running)
        self.name = name
        self._told_alone = False
        self._waiting: list[tuple[Sample, float, float]] = []
        self._failed = 0
        self._begin()

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._batchers: weakref.WeakKeyDictionary[Any, Batcher[Any, Any]] = weakref.WeakKeyDictionary()

    def close(self) -> None:
        """Give back what the model holds."""
        self.rewarder.close()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_lock", "_batchers")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._begin()

    def step(
        self,
        samples: Sequence[Given],
        references: Sequence[Given] | None,
        on_error: str,
        step: int | None,
        log_metric: Callable[[str, float], None] | None,
    ) -> list[float | None]:
        """The rewards of the samples of one step."""
        with self._lock:
            found = self._rewards(samples, references)
            good = [place for place, each in enumerate(found) if not isinstance(each, str)]
            self._tell(found, on_error)
            kept = [cast(Sample, samples[place]) for place in good]
            corrected = self.monitor.step(
                [sample.group for sample in kept],
                [sample.answer for sample in kept],
                [cast(float, found[place]) for place in good],
                failed=len(found) - len(good),
                step=step,
                log_metric=log_metric,
            )
        rewards: list[float | None] = [None] * len(samples)
        for place, reward in zip(good, corrected, strict=True):
            rewards[place] = reward
        return rewards

    def few(
        self, samples: Sequence[Given], references: Sequence[Given] | None, failed: float | None
    ) -> list[tuple[float, float] | ScoringError]:
        """The rewards of samples that are a part of a step, each with the one before the correction for length. A sample without a
        reward has `failed`, or the error if that is None."""
        with self._lock:
            found = self._rewards(samples, references)
            if failed is not None:
                self._tell(found, "none", failed)
            rewards: list[tuple[float, float] | ScoringError] = []
            for place, (sample, before) in enumerate(zip(samples, found, strict=True)):
                if isinstance(sample, str) or isinstance(before, str):
                    self._failed += 1
                    rewards.append(self._error(place, str(before)) if failed is None else (failed, failed))
                    continue
                after = self.monitor.corrected(sample.answer, before)
                rewards.append((after, before))
                self._waiting.append((sample, before, after))
            if len(self._waiting) >= _A_STEP:
                kept, raw, final = zip(*self._waiting, strict=True)
                groups, answers = [sample.group for sample in kept], [sample.answer for sample in kept]
                self.monitor.note(groups, answers, raw, final, failed=self._failed)
                self._waiting, self._failed = [], 0
        return rewards

    async def one_of_many(self, sample: Given, reference: Given | None, failed: float | None) -> float:
        """As `few`, of one sample, together with the samples of other calls that wait at the same time. Raises ScoringError."""
        loop = asyncio.get_running_loop()
        if loop not in self._batchers:
            self._batchers[loop] = made = Batcher(self._batch, most=_TOGETHER, company=_COMPANY, room=1 << 40)
            made.start()
        return one((await self._batchers[loop].submit([(sample, reference, failed)]))[0])[0]

    def _batch(self, items: Sequence[tuple[Given, Given | None, float | None]]) -> list[Any]:
        samples, references, failed = zip(*items, strict=True)
        # Samples that could not be read have no reference either.
        compared = self.rewarder.reading == "preferred"
        return self.few(samples, [each or "" for each in references] if compared else None, failed[0])

    def _rewards(self, samples: Sequence[Given], references: Sequence[Given] | None) -> list[Found]:
        found, alone = self.rewarder.rewards(samples, references)
        if alone and not self._told_alone:
            self._told_alone = True
            _log.warning(
                "%s: %d of %d samples are the only ones of their prompts: there is nothing to compare them with, and their reward is 0.5 "
                "(this is said once; name a reference answer, or use reading='score')",
                self.name,
                alone,
                len(samples),
            )
        return found

    def _tell(self, found: Sequence[Found], on_error: str, failed: float | None = None) -> None:
        """Say how many samples have no reward, and why, or raise."""
        bad = [(place, problem) for place, problem in enumerate(found) if isinstance(problem, str)]
        if not bad:
            return
        place, problem = bad[0]
        if on_error == "raise":
            raise self._error(place, problem)
        _log.warning(
            "%s: %d of %d samples have no reward (%s); the first is sample %d: %s",
            self.name,
            len(bad),
            len(found),
            "None" if failed is None else failed,
            place + 1,
            printable(problem),
        )

    def _error(self, place: int, problem: str) -> ScoringError:
        return ScoringError(self.name, place + 1, "", printable(problem))


def one(found: tuple[float, float] | ScoringError) -> tuple[float, float]:
    """A reward with the one before the correction. Raises the error in its place."""
    if isinstance(found, ScoringError):
        raise found
    return found

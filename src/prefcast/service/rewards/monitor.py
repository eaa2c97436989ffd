"""What a trainer's steps look like: the correlations of the rewards with the looks of answers, and the correction for length."""

from __future__ import annotations

import json
import logging
import os
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefcast.base.files import checked_ending
from prefcast.errors import UsageError, shown_path
from prefcast.service.rewards.lengths import LOOKS, Correlation, Slope, Sums, looks_of

__all__ = ["WINDOW", "Monitor"]

Floats = NDArray[np.float64]

# Steps over which the length is watched and the slope is fitted.
WINDOW = 20
# Before a warning, the window has so many steps, and the interval is beyond the threshold so many steps in a row.
_LEAST_STEPS, _IN_A_ROW = 10, 5
_KEPT = 10_000
_log = logging.getLogger("prefcast")


@dataclass(frozen=True)
class _Step:
    before: Sums
    after: Sums


class Monitor:
    """Corrects rewards for length if it is asked to, and watches them.

    `steps` has the figures of the last 10,000 steps, the newest last. `alarm` is the size of the correlation with length above which
    the monitor warns (None: never). `penalty` is what a doubling of the length costs. With `residualise` the slope of a running
    regression of the rewards on the length, within groups, is taken out. `log` is a file of JSON lines to add to.
    """

    def __init__(
        self,
        name: str,
        *,
        alarm: float | None = 0.5,
        penalty: float = 0.0,
        residualise: bool = False,
        log: str | os.PathLike[str] | None = None,
    ) -> None:
        if alarm is not None and not 0 < alarm < 1:
            raise UsageError(f"length_alarm is {alarm}; expected a number between 0 and 1, or None")
        if not isfinite(penalty):
            raise UsageError(f"length_penalty is {penalty}; expected a finite number")
        if residualise and penalty:
            raise UsageError("length_penalty and residualise exclude each other: both take length out of the rewards")
        if log is not None:
            checked_ending(log, "the log of rewards", ".jsonl")
            if not Path(log).absolute().parent.is_dir():
                raise UsageError(f"{shown_path(log)}: the folder of this file does not exist")
        self.name = name
        self.steps: deque[dict[str, Any]] = deque(maxlen=_KEPT)
        self._alarm, self._penalty, self._residualise, self._file = alarm, penalty, residualise, log
        self._window: deque[_Step] = deque(maxlen=WINDOW)
        self._beyond = self._count = 0
        self._warned = False

    @property
    def corrects(self) -> bool:
        return self._residualise or bool(self._penalty)

    def slope(self) -> Slope | None:
        """The slope of the rewards on the length, before any correction, in the last steps; None before the first step."""
        return Sums.joined([step.before for step in self._window]).slope() if self._window else None

    def step(
        self,
        groups: Sequence[bytes],
        answers: Sequence[str],
        rewards: Sequence[float],
        *,
        failed: int = 0,
        step: int | None = None,
        log_metric: Callable[[str, float], None] | None = None,
    ) -> list[float]:
        """Take in the samples of one step, and return their rewards, corrected with a slope that includes this step."""
        looks = np.array([looks_of(answer) for answer in answers]).reshape(len(answers), len(LOOKS))
        before = np.array(rewards, dtype=np.float64)
        sums = Sums.of(groups, looks, before)
        self._window.append(_Step(sums, sums))
        removed = self._removed()
        after = before - removed * looks[:, 0]
        if removed:
            self._window[-1] = _Step(sums, Sums.of(groups, looks, after))
        self._record(self._window[-1], looks, after, failed, removed, step, log_metric)
        corrected: list[float] = after.tolist()
        return corrected

    def corrected(self, answer: str, reward: float) -> float:
        """The reward of one sample, corrected with what the steps so far say."""
        return reward - self._removed() * looks_of(answer)[0]

    def note(
        self,
        groups: Sequence[bytes],
        answers: Sequence[str],
        before: Sequence[float],
        after: Sequence[float],
        failed: int,
    ) -> None:
        """Take in samples as one step that were corrected one at a time."""
        looks = np.array([looks_of(answer) for answer in answers]).reshape(len(answers), len(LOOKS))
        y = np.array(after, dtype=np.float64)
        self._window.append(
            _Step(Sums.of(groups, looks, np.array(before, dtype=np.float64)), Sums.of(groups, looks, y))
        )
        self._record(self._window[-1], looks, y, failed, self._removed(), None, None)

    def _removed(self) -> float:
        """What a doubling of the length costs."""
        if not self._residualise:
            return self._penalty
        slope = self.slope()
        return 0.0 if slope is None else slope.shrunken

    def _record(
        self,
        found: _Step,
        looks: Floats,
        rewards: Floats,
        failed: int,
        removed: float,
        step: int | None,
        log_metric: Callable[[str, float], None] | None,
    ) -> None:
        self._count += 1
        figures = {f"{look}_correlation": found.after.correlation(place).value for place, look in enumerate(LOOKS)}
        window = Sums.joined([each.after for each in self._window])
        recent = window.correlation()
        figures["length_correlation_recent"] = recent.value
        if self.corrects:
            figures["length_correlation_before"] = found.before.correlation().value
            figures["length_removed"] = removed
        if log_metric is not None:
            for name, value in figures.items():
                if isfinite(value):
                    log_metric(f"{self.name}/{name}", value)
        record = {
            "call": self._count,
            "step": step,
            "rank": int(rank) if (rank := os.environ.get("RANK", "0")).isdecimal() else 0,
            "samples": len(rewards),
            "failed": failed,
            "groups": len(found.after.n),
            "reward": float(rewards.mean()) if len(rewards) else None,
            "doublings": float(looks[:, 0].mean()) if len(rewards) else None,
            **{name: value if isfinite(value) else None for name, value in figures.items()},
            **{f"length_correlation_recent_{end}": _known(getattr(recent, end)) for end in ("low", "high")},
        }
        self.steps.append(record)
        self._write(record)
        self._watch(recent, window)

    def _write(self, record: dict[str, Any]) -> None:
        if self._file is None:
            return
        try:
            # One write of a short line: lines of several processes do not mix.
            with open(self._file, "ab", buffering=0) as file:  # noqa: PTH123
                file.write(f"{json.dumps(record)}\n".encode())
        except OSError as error:
            _log.warning(
                "%s: cannot be written (%s); the log of rewards ends here", shown_path(self._file), error.strerror
            )
            self._file = None

    def _watch(self, recent: Correlation, window: Sums) -> None:
        """Warn if the size of the correlation with length is above the threshold for sure, several steps in a row."""
        if self._alarm is None:
            return
        beyond = recent.low > self._alarm or recent.high < -self._alarm
        self._beyond = self._beyond + 1 if beyond and len(self._window) >= _LEAST_STEPS else 0
        if not beyond:
            self._warned = False
        if self._beyond < _IN_A_ROW or self._warned:
            return
        self._warned = True
        _log.warning(
            "%s: the rewards follow the length of the answers: within groups the correlation is %.2f [%.2f, %.2f] over the last %d "
            "steps (%d samples in %d groups), beyond %s; training on them makes answers %s (residualise='length' takes length out)",
            self.name,
            recent.value,
            recent.low,
            recent.high,
            len(self._window),
            int(window.n.sum()),
            len(window.n),
            self._alarm,
            "longer" if recent.value > 0 else "shorter",
        )


def _known(value: float) -> float | None:
    return value if isfinite(value) else None

"""Scorers in a process of their own, so that a row that ends or hangs it is that row's error and no more.

A batch that its worker does not survive is halved until the row is found; a row alone has two tries, because a worker may
also die for no fault of the row's (the machine's memory, an administrator).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from prefcast.base.frames import receive, send
from prefcast.base.processes import CRASHED, TOO_SLOW, Child
from prefcast.errors import WorkerError
from prefcast.pairs import Pair
from prefcast.scorers.base import Evidence, Push, Scorer
from prefcast.scorers.blend import BlendScorer
from prefcast.scorers.given import GivenScorer
from prefcast.scorers.reward import Options

__all__ = ["IsolatedScorer", "isolated"]

_FALSE_STARTS, _ROWS_AT_FAULT = 2, 16


def isolated(scorer: Scorer, time_limit: float | None = None) -> Scorer:
    """The same scorer in worker processes, `time_limit` seconds a batch; a reward model in its replicas' own."""
    if isinstance(scorer, BlendScorer):
        members = [replace(member, scorer=isolated(member.scorer, time_limit)) for member in scorer.members]
        return BlendScorer(members, scorer.weights)
    if isinstance(scorer, GivenScorer):
        return scorer  # it only looks numbers up
    if (elsewhere := getattr(scorer, "elsewhere", None)) is not None:
        moved: Scorer = elsewhere(Options(isolate=True, time_limit=time_limit))
        return moved
    return IsolatedScorer(scorer, time_limit)


class IsolatedScorer(Scorer):
    """`scorer`, loaded anew in a process of its own; the numbers are the same.

    A pair that ends its worker process twice, or twice takes longer than `time_limit` seconds, has no evidence; the
    problem says how it ended. Raises WorkerError where workers do not start, or nothing but such pairs comes.
    """

    def __init__(self, scorer: Scorer, time_limit: float | None = None) -> None:
        self._scorer, self._limit = scorer, time_limit
        self.name = scorer.name  # type: ignore[misc]
        self.limit, self.raw_names = scorer.limit, scorer.raw_names
        self._folder = tempfile.TemporaryDirectory(prefix="prefcast-")
        scorer.save(Path(self._folder.name))
        self._threads: int | None = None
        self._child: Child | None = None
        self._false_starts = self._at_fault = 0

    def evidence(self, pairs: Sequence[Pair]) -> Evidence:
        n = len(pairs)
        values = {name: np.full(n, np.nan) for name in ("margin", "tie", *self.raw_names)}
        problems: dict[int, str] = {}
        todo = [(0, n, False)] if n else []
        while todo:
            start, stop, again = todo.pop()
            found = self._ask(pairs[start:stop])
            if isinstance(found, Evidence):
                self._at_fault = 0
                for name, column in {"margin": found.margin, "tie": found.tie, **found.raw}.items():
                    values[name][start:stop] = column
                problems |= {start + place: problem for place, problem in found.problems.items()}
            elif stop - start > 1:
                middle = (start + stop) // 2
                todo += [(middle, stop, False), (start, middle, False)]
            elif not again:
                todo.append((start, stop, True))
            else:
                problems[start] = found
                self._at_fault += 1
                if self._at_fault >= _ROWS_AT_FAULT:
                    raise WorkerError(f"{_ROWS_AT_FAULT} rows on end could not be scored; the last {found}")
        raw = {name: values[name] for name in self.raw_names}
        return Evidence(values["margin"], values["tie"], problems, raw)

    def _ask(self, pairs: Sequence[Pair]) -> Evidence | str:
        """Their evidence, or what happened instead."""
        if self._child is not None and not self._child.alive:
            # It died while it had nothing to do: no row is to blame.
            self._child.kill()
            self._child = None
        if self._child is None:
            self._start()
        child = self._child
        assert child is not None  # noqa: S101 - for the type checker
        try:
            with child.within(self._limit):
                turns = [[(turn.prompt, turn.response_a, turn.response_b) for turn in pair.turns] for pair in pairs]
                send(child.to, {"pairs": turns})
                header, body = receive(child.answers)
        except (EOFError, OSError, ValueError):
            self._child = None
            ended = child.end()
            return f"{ended} to score" if ended.startswith(TOO_SLOW) else f"{CRASHED}, which {ended}"
        if "refused" in header:
            raise WorkerError(str(header["refused"]))
        if "fault" in header:
            return str(header["fault"])
        columns = np.frombuffer(body, dtype=np.float64).reshape(len(header["names"]), len(pairs))
        found = dict(zip(header["names"], columns, strict=True))
        margin, tie = found.pop("margin"), found.pop("tie")
        return Evidence(margin, tie, {int(place): said for place, said in header["problems"].items()}, found)

    def _start(self) -> None:
        """A worker that has loaded its scorer. Raises WorkerError."""
        while True:
            said = {"scorer": self.name, "folder": self._folder.name, "threads": self._threads}
            child = Child("prefcast.runs.worker", json.dumps(said))
            try:
                header, _ = receive(child.answers)
            except (EOFError, OSError, ValueError):
                self._false_starts += 1
                if self._false_starts >= _FALSE_STARTS:
                    raise WorkerError(f"the worker process {child.end()} before it was ready, twice") from None
                child.kill()
                continue
            except BaseException:
                child.stop()
                raise
            if "refused" in header:
                child.kill()
                raise WorkerError(str(header["refused"]))
            self._child, self._false_starts = child, 0
            return

    def use_threads(self, threads: int) -> None:
        # A worker that runs already keeps its own.
        self._threads = threads

    @property
    def pid(self) -> int | None:
        """The worker's process id, while there is one."""
        return None if self._child is None else self._child.pid

    def identity(self) -> str:
        return self._scorer.identity()

    def save(self, folder: Path) -> None:
        self._scorer.save(folder)

    def explain(self, pair: Pair) -> list[Push]:
        return self._scorer.explain(pair)

    def close(self) -> None:
        if self._child is not None:
            self._child.stop()
            self._child.kill()
            self._child = None
        self._folder.cleanup()
        self._scorer.close()

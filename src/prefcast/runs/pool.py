"""Worker processes with a scorer each: for several devices, and so that a pair which ends or hangs its process is that pair's
problem and no more.

A batch that its worker does not survive is halved until the pair is found. A pair alone has two tries, because a worker may
also die for no fault of the pair's. Whoever is free takes the next batch; this module knows nothing of models.
"""

from __future__ import annotations

import json
import logging
import tempfile
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefcast.base.frames import receive, send
from prefcast.base.processes import CRASHED, TOO_SLOW, Child
from prefcast.errors import ModelError, UsageError, WorkerError
from prefcast.pairs import Pair
from prefcast.scorers.base import SILENT, Evidence, Meter, Part, Problem, Scorer, failed
from prefcast.scorers.wrapped import WrappedScorer

__all__ = ["PooledScorer", "pooled"]

_log = logging.getLogger("prefcast")
_TRIES, _FALSE_STARTS, _IN_A_ROW = 2, 2, 16
# What a worker answers: evidence, the scores of conversations, or in words how the process ended.
Answer = Evidence | NDArray[np.float64] | Problem


def pooled(scorer: Scorer, *, isolate: bool = False, time_limit: float | None = None) -> Scorer:
    """The same scorer in worker processes: one for each of its replicas, or, with `isolate` or a time limit (seconds a
    batch), one at least. A scorer that needs no worker, or that no other process can load, stays as it is."""
    if members := scorer.members():
        return scorer.with_members([pooled(member, isolate=isolate, time_limit=time_limit) for member in members])
    if not scorer.portable or not (isolate or time_limit is not None or scorer.replicas()):
        return scorer
    return PooledScorer(scorer, time_limit)


@dataclass
class _Task:
    """A batch of a caller: its positions there, what is asked about them, how often it was tried; `done` takes
    (positions, answer), or an exception that ends the caller's wait."""

    positions: Sequence[int]
    items: Sequence[Any]
    done: SimpleQueue[tuple[Sequence[int], Answer] | BaseException]
    conversations: bool = False
    tries: int = 0

    def halves(self) -> tuple[_Task, _Task]:
        middle = len(self.items) // 2
        first = _Task(self.positions[:middle], self.items[:middle], self.done, self.conversations)
        return first, _Task(self.positions[middle:], self.items[middle:], self.done, self.conversations)


@dataclass
class _Board:
    """The tasks that wait. `failure` ends the pool's work for good."""

    waiting: deque[_Task] = field(default_factory=deque)
    failure: BaseException | None = None
    closed: bool = False
    in_a_row: int = 0
    changed: threading.Condition = field(default_factory=threading.Condition)


class PooledScorer(WrappedScorer):
    """`inner`, loaded anew in each worker process; the numbers are the same.

    A pair that ends its worker twice, or twice takes longer than `time_limit` seconds, has no evidence; its problem says
    how the worker ended. Several threads may ask at a time. Raises WorkerError where workers do not start, or where many
    pairs in a row end them.
    """

    def __init__(self, inner: Scorer, time_limit: float | None = None) -> None:
        super().__init__(inner)
        self.time_limit = time_limit
        self._threads: int | None = None
        self._room = tempfile.TemporaryDirectory(prefix="prefcast-")
        self._spec = inner.spec(Path(self._room.name))
        self._asked: Sequence[Any] = inner.replicas() or [None]
        self.workers = len(self._asked)
        self._board = _Board()
        self._workers: list[_Worker] = []
        self._callers: dict[int, SimpleQueue[Any]] = {}

    def again(self, inner: Scorer) -> Scorer:
        made = pooled(inner, isolate=True, time_limit=self.time_limit)
        self._room.cleanup()
        return made

    @property
    def pids(self) -> list[int]:
        """The process ids of the workers that run."""
        return [worker.child.pid for worker in self._workers if worker.child is not None]

    def use_threads(self, threads: int) -> None:
        # A worker that runs already keeps its own number.
        self._threads = threads

    def stream(self, pairs: Sequence[Pair], meter: Meter = SILENT) -> Iterator[Part]:
        done: SimpleQueue[Any] = SimpleQueue()
        turns = [[(turn.prompt, turn.response_a, turn.response_b) for turn in pair.turns] for pair in pairs]
        tasks = [_Task(batch, [turns[position] for position in batch], done) for batch in self.batches(pairs)]
        for positions, found in self._answers(tasks, done):
            meter.advance(len(positions))
            yield positions, failed(self, found) if isinstance(found, Problem) else found

    def score(self, conversations: Sequence[Sequence[Mapping[str, str]]]) -> NDArray[np.float64]:
        if not self.pointwise:
            return self.inner.score(conversations)
        scores = np.full(len(conversations), np.nan)
        done: SimpleQueue[Any] = SimpleQueue()
        plain = [[dict(message) for message in each] for each in conversations]
        tasks = [_Task(range(len(plain)), plain, done, True)] if plain else []
        for positions, found in self._answers(tasks, done):
            if isinstance(found, Problem):
                raise ModelError(f"conversation {positions[0]}: {found}")
            scores[list(positions)] = found
        return scores

    def _answers(self, tasks: Sequence[_Task], done: SimpleQueue[Any]) -> Iterator[tuple[Sequence[int], Any]]:
        """The answers to tasks, or to parts of them, as they come."""
        left = sum(len(task.items) for task in tasks)
        with self._board.changed:
            if self._board.failure is not None:
                raise self._board.failure
            self._callers[id(done)] = done
            self._board.waiting.extend(tasks)
            self._board.changed.notify_all()
        self._start()
        try:
            while left:
                found = done.get()
                if isinstance(found, BaseException):
                    raise found
                left -= len(found[0])
                yield found
        finally:
            with self._board.changed:
                self._callers.pop(id(done), None)
                # A caller that was interrupted takes what waits with it.
                for task in [task for task in self._board.waiting if task.done is done]:
                    self._board.waiting.remove(task)

    def _start(self) -> None:
        if not self._workers:
            self._workers = [_Worker(self, number, options) for number, options in enumerate(self._asked, 1)]
            for worker in self._workers:
                worker.start()

    def command(self, options: Any) -> str:
        """What a worker process is told."""
        said = dict(self._spec)
        if options is not None:
            said["options"] = asdict(options)
        return json.dumps({**said, "threads": self._threads})

    # What follows is for the workers' threads.

    def take(self) -> _Task | None:
        """The next task; waits for one. None once there is nothing more to do."""
        board = self._board
        with board.changed:
            board.changed.wait_for(lambda: board.waiting or board.closed or board.failure is not None)
            return None if board.closed or board.failure is not None else board.waiting.popleft()

    def give(self, task: _Task, found: Answer) -> None:
        """A task has its answer."""
        with self._board.changed:
            self._board.in_a_row = 0 if not isinstance(found, Problem) else self._board.in_a_row + 1
            many = self._board.in_a_row >= _IN_A_ROW
        if many:
            self.fail(WorkerError(f"{_IN_A_ROW} pairs in a row could not be scored; the last {found}"))
        else:
            task.done.put((task.positions, found))

    def lost(self, task: _Task, problem: Problem) -> None:
        """The worker that had a task is gone."""
        task.tries += 1
        if len(task.items) == 1 and task.tries >= _TRIES:
            self.give(task, problem)
            return
        parts = task.halves() if len(task.items) > 1 else (task,)
        with self._board.changed:
            self._board.waiting.extendleft(reversed(parts))
            self._board.changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """Nobody can go on."""
        with self._board.changed:
            self._board.failure = self._board.failure or error
            callers = list(self._callers.values())
            self._board.changed.notify_all()
        for done in callers:
            done.put(error)

    def close(self) -> None:
        with self._board.changed:
            self._board.closed = True
            self._board.changed.notify_all()
        for worker in self._workers:
            worker.stop()
        self._room.cleanup()
        self.inner.close()


class _Worker(threading.Thread):
    """One worker process after another, and the thread that asks it."""

    def __init__(self, pool: PooledScorer, number: int, options: Any) -> None:
        super().__init__(daemon=True, name=f"prefcast-worker-{number}")
        self._pool, self._number, self._options = pool, number, options
        self._stopping = False
        self.child: Child | None = None

    def run(self) -> None:
        try:
            while (task := self._pool.take()) is not None:
                found = self._ask(task)
                if isinstance(found, Problem):
                    self._pool.lost(task, found)
                elif isinstance(found, UsageError):
                    task.done.put(found)
                else:
                    self._pool.give(task, found)
        except BaseException as error:
            # Whatever happens in a thread must not leave the callers waiting.
            if not self._stopping:
                self._pool.fail(error)

    def _ask(self, task: _Task) -> Answer | UsageError:
        if self.child is not None and not self.child.alive:
            # It died while it had nothing to do: no pair is to blame.
            self.child.kill()
            self.child = None
        child = self.child or self._loaded()
        try:
            with child.within(self._pool.time_limit):
                send(child.to, {"conversations" if task.conversations else "pairs": task.items})
                header, body = receive(child.answers)
        except (EOFError, OSError, ValueError):
            return self._ended(child, task)
        if "refused" in header:
            raise ModelError(str(header["refused"]))
        if "usage" in header:
            return UsageError(str(header["usage"]))
        numbers = np.frombuffer(body, dtype=np.float64)
        if task.conversations:
            return numbers
        columns = numbers.reshape(len(header["names"]), len(task.items))
        found = dict(zip(header["names"], columns, strict=True))
        margin, tie = found.pop("margin"), found.pop("tie")
        problems = {int(place): Problem(*said) for place, said in header["problems"].items()}
        return Evidence(margin, tie, problems, found)

    def _ended(self, child: Child, task: _Task) -> Problem:
        """How the process ended, once it is gone."""
        self.child, pid = None, child.pid
        ended = child.end()
        if not self._stopping:
            _log.info("worker %d (process %d) %s with %d pairs", self._number, pid, ended, len(task.items))
        if ended.startswith(TOO_SLOW):
            return Problem(f"{ended} to score", "worker", self._pool.time_limit)
        return Problem(f"{CRASHED}, which {ended}", "worker")

    def _loaded(self) -> Child:
        """A worker process that has loaded its scorer. Raises WorkerError."""
        for attempt in range(_FALSE_STARTS):
            if self._stopping:
                raise WorkerError("the run was stopped")
            child = self.child = Child("prefcast.runs.worker", self._pool.command(self._options))
            try:
                header, _ = receive(child.answers)
            except (EOFError, OSError, ValueError):
                self.child, ended = None, child.end()
                if attempt == _FALSE_STARTS - 1:
                    raise WorkerError(f"the worker process {ended} before it was ready, twice") from None
                continue
            if "refused" in header:
                child.kill()
                raise ModelError(str(header["refused"]))
            break
        return child

    def stop(self) -> None:
        """End the process at once, whoever waits for it."""
        self._stopping = True
        if self.child is not None:
            self.child.stop()
            self.child.kill()

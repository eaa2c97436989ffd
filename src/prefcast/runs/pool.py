"""Worker processes with one scorer each: for several devices, and for pairs that crash or hang the process that scores them.

If a worker dies, its batch is halved until the pair at fault is found; only that pair fails. A single pair is tried twice,
because a worker may also die for another reason. The next free worker takes the next batch.
"""

from __future__ import annotations

import json
import logging
import tempfile
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefcast.base.frames import receive, send
from prefcast.base.processes import CRASHED, TOO_SLOW, Child
from prefcast.errors import ModelError, PrefcastError, UsageError, WorkerError
from prefcast.pairs import Pair
from prefcast.runs.worker import plain_pair
from prefcast.scorers.base import (
    SILENT,
    Conversation,
    Evidence,
    Meter,
    Part,
    Problem,
    Scorer,
    failed,
    plain_conversation,
)
from prefcast.scorers.wrapped import WrappedScorer

__all__ = ["PooledScorer", "pooled"]

_log = logging.getLogger("prefcast")
_TRIES, _FALSE_STARTS, _IN_A_ROW = 2, 2, 16
_STOPPED = "the worker processes were stopped"
# What a worker answers: evidence, the scores of conversations, or in words how the process ended.
Answer = Evidence | NDArray[np.float64] | Problem


def pooled(scorer: Scorer, *, isolate: bool = False, time_limit: float | None = None) -> Scorer:
    """The same scorer in worker processes: one for each replica, and at least one with `isolate` or a time limit (seconds
    a batch). A scorer that needs no worker, or that another process cannot load, stays as it is."""
    if members := scorer.members():
        return scorer.with_members([pooled(member, isolate=isolate, time_limit=time_limit) for member in members])
    if not scorer.portable or not (isolate or time_limit is not None or scorer.replicas()):
        return scorer
    return PooledScorer(scorer, time_limit)


@dataclass
class _Task:
    """A batch of one caller: its positions, its items, and how often it was tried. `done` takes (positions, answer), or an
    exception that ends the caller's wait."""

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
    """The tasks that wait, and the queues of the callers that wait for answers."""

    waiting: deque[_Task] = field(default_factory=deque)
    callers: set[SimpleQueue[Any]] = field(default_factory=set)
    closed: bool = False
    in_a_row: int = 0
    changed: threading.Condition = field(default_factory=threading.Condition)


class PooledScorer(WrappedScorer):
    """`inner`, loaded anew in each worker process; the numbers are the same.

    A pair has no evidence if it ends its worker twice, or twice takes longer than `time_limit` seconds; its problem says
    how the worker ended. Several threads may ask at the same time. Raises WorkerError if the workers do not start, or if
    many pairs in a row end their workers.
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

    def again(self, inner: Scorer) -> Scorer:
        made = pooled(inner, isolate=True, time_limit=self.time_limit)
        self._room.cleanup()
        return made

    @property
    def pids(self) -> list[int]:
        """The process ids of the workers that run."""
        children = [worker.child for worker in self._workers]
        return [child.pid for child in children if child is not None]

    def use_threads(self, threads: int) -> None:
        # A worker that runs already keeps its number of threads.
        self._threads = threads

    def stream(self, pairs: Sequence[Pair], meter: Meter = SILENT) -> Iterator[Part]:
        done: SimpleQueue[Any] = SimpleQueue()
        plain = [plain_pair(pair) for pair in pairs]
        tasks = [_Task(batch, [plain[position] for position in batch], done) for batch in self.batches(pairs)]
        with closing(self._answers(tasks, done)) as answers:
            for positions, found in answers:
                meter.advance(len(positions))
                yield positions, failed(self, found) if isinstance(found, Problem) else found

    def score(self, conversations: Sequence[Conversation]) -> NDArray[np.float64]:
        if not self.pointwise:
            return self.inner.score(conversations)
        scores = np.full(len(conversations), np.nan)
        done: SimpleQueue[Any] = SimpleQueue()
        plain = list(map(plain_conversation, conversations))
        tasks = [_Task(range(len(plain)), plain, done, True)] if plain else []
        for positions, found in self._answers(tasks, done):
            if isinstance(found, Problem):
                raise ModelError(f"conversation {positions[0]}: {found}")
            scores[list(positions)] = found
        return scores

    def _answers(
        self, tasks: Sequence[_Task], done: SimpleQueue[Any]
    ) -> Generator[tuple[Sequence[int], Any], None, None]:
        """The answers to tasks, or to parts of them, as they come."""
        board, left = self._board, sum(len(task.items) for task in tasks)
        with board.changed:
            if board.closed:
                raise WorkerError(_STOPPED)
            self._start()
            board.callers.add(done)
            board.waiting.extend(tasks)
            board.changed.notify_all()
        try:
            while left:
                found = done.get()
                if isinstance(found, BaseException):
                    raise found
                left -= len(found[0])
                yield found
        finally:
            with board.changed:
                board.callers.discard(done)
                # A caller that ends early takes its waiting tasks with it.
                board.waiting = deque(task for task in board.waiting if task.done is not done)

    def _start(self) -> None:
        if not self._workers:
            self._workers = [_Worker(self, number, options) for number, options in enumerate(self._asked, 1)]
            for worker in self._workers:
                worker.start()

    def command(self, options: Any) -> str:
        """The argument of a worker process."""
        said = dict(self._spec)
        if options is not None:
            said["options"] = asdict(options)
        return json.dumps({**said, "threads": self._threads})

    # The methods from here to `lost` are for the workers' threads.

    def take(self) -> _Task | None:
        """The next task; waits for one. None once the pool is closed."""
        board = self._board
        with board.changed:
            board.changed.wait_for(lambda: board.waiting or board.closed)
            return None if board.closed else board.waiting.popleft()

    def give(self, task: _Task, found: Answer) -> None:
        """A task has its answer."""
        with self._board.changed:
            self._board.in_a_row = self._board.in_a_row + 1 if isinstance(found, Problem) else 0
            if many := self._board.in_a_row >= _IN_A_ROW:
                self._board.in_a_row = 0
        if many:
            task.done.put(WorkerError(f"{_IN_A_ROW} pairs in a row could not be scored; the last one {found}"))
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
            # The caller may have gone in the meantime.
            if task.done in self._board.callers:
                self._board.waiting.extendleft(reversed(parts))
                self._board.changed.notify_all()

    def close(self) -> None:
        with self._board.changed:
            self._board.closed = True
            self._board.waiting.clear()
            for done in self._board.callers:
                done.put(WorkerError(_STOPPED))
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
        self._stopping, self._starting = False, threading.Lock()
        self.child: Child | None = None

    def run(self) -> None:
        while (task := self._pool.take()) is not None:
            try:
                found = self._ask(task)
            except BaseException as error:
                # The caller must not wait for an answer that will not come, whatever happened here.
                task.done.put(error)
                continue
            if isinstance(found, Problem):
                self._pool.lost(task, found)
            elif isinstance(found, PrefcastError):
                task.done.put(found)
            else:
                self._pool.give(task, found)

    def _ask(self, task: _Task) -> Answer | PrefcastError:
        if self.child is not None and not self.child.alive:
            # It died while it had nothing to do: no pair is at fault.
            self._dismissed(self.child)
        child = self.child or self._loaded()
        try:
            with child.within(self._pool.time_limit):
                send(child.to, {"conversations" if task.conversations else "pairs": task.items})
                header, body = receive(child.answers)
        except (EOFError, OSError, ValueError):
            return self._ended(child, task)
        if "refused" in header:
            self._dismissed(child)
            return ModelError(str(header["refused"]))
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
        """How the process ended; waits until it is gone."""
        ended = self._dismissed(child)
        if not self._stopping:
            what = "conversations" if task.conversations else "pairs"
            _log.info("worker %d (process %d) %s; it had %d %s", self._number, child.pid, ended, len(task.items), what)
        if ended.startswith(TOO_SLOW):
            return Problem(f"{ended} to score", "worker", self._pool.time_limit)
        return Problem(f"{CRASHED}, which {ended}", "worker")

    def _dismissed(self, child: Child) -> str:
        """How the process ended, which is awaited."""
        ended = child.end()
        self.child = None
        return ended

    def _loaded(self) -> Child:
        """A worker process that has loaded its scorer. Raises WorkerError, and ModelError if the scorer cannot be loaded."""
        ended = ""
        for _ in range(_FALSE_STARTS):
            # A process that starts while another thread calls `stop` would be left over.
            with self._starting:
                if self._stopping:
                    raise WorkerError(_STOPPED)
                child = self.child = Child("prefcast.runs.worker", self._pool.command(self._options))
            try:
                header, _ = receive(child.answers)
            except (EOFError, OSError, ValueError):
                ended = self._dismissed(child)
                continue
            if "refused" in header:
                self._dismissed(child)
                raise ModelError(str(header["refused"]))
            return child
        raise WorkerError(f"the worker process {ended} before it was ready; so did the one before it")

    def stop(self) -> None:
        """End the process at once, even while a thread waits for its answer."""
        with self._starting:
            self._stopping = True
        if (child := self.child) is not None:
            child.stop()
            child.kill()

"""One replica of a model a process, one queue of batches, longest first; results in the order asked for.

Knows nothing of models: it hands batches to whoever is free. A worker that dies is named, its batch goes back into the
queue and a new worker takes its place; a batch that has killed two is halved, and a pair that alone has killed two is given
up, with the reason.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import cast

import torch

from prefcast.base.processes import Child
from prefcast.errors import ModelError, PrefcastError, WorkerError
from prefcast.scorers.reward.engine import Group, Recipe, Scores
from prefcast.scorers.reward.worker import read_scores, write_groups

__all__ = ["LocalReplica", "Replicas", "Result"]

_log = logging.getLogger("prefcast")
_DEATHS_A_BATCH = 2
_DEATHS_A_RUN = 8
_FALSE_STARTS = 2
TOO_LARGE = "needs more memory than the device has; --max-tokens reads less of it"

# The outputs of a group, or why there are none.
Result = Scores | str
# Called with the number of a batch and its results, from any thread.
Done = Callable[[int, list[Result]], None]


def _results(scores: Sequence[Scores | None]) -> list[Result]:
    return [TOO_LARGE if each is None else each for each in scores]


class LocalReplica:
    """The model in this process."""

    def __init__(self, recipe: Recipe) -> None:
        self._engine = recipe.build()

    def run(self, batches: Sequence[Sequence[Group]], done: Done | None = None) -> list[list[Result]]:
        """The results of each batch, in order."""
        found = []
        for number, batch in enumerate(batches):
            found.append(_results(self._engine.run(batch)))
            if done:
                done(number, found[-1])
        return found

    def close(self) -> None:
        """Free the device's memory, once nobody holds this object."""
        del self._engine
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


class _Worker(Child):
    """A process with one replica, `time_limit` seconds a batch."""

    def __init__(self, recipe: Recipe, number: int, time_limit: float | None = None) -> None:
        super().__init__("prefcast.scorers.reward.worker", recipe.to_json())
        self.number, self.device = number, recipe.devices[0]
        self._limit = time_limit
        self._loaded = False

    @property
    def loaded(self) -> bool:
        """Whether it has said that its model is ready."""
        return self._loaded

    def run(self, batch: Sequence[Group]) -> list[Scores | None]:
        """EOFError, OSError or ValueError if the process is gone."""
        if not self._loaded:
            read_scores(self.answers)
            self._loaded = True
        with self.within(self._limit):
            write_groups(self.to, batch)
            return read_scores(self.answers)

    def name(self) -> str:
        return f"worker {self.number} ({self.device}, process {self.pid})"


class Replicas:
    """Workers on several devices."""

    def __init__(self, recipes: Sequence[Recipe], time_limit: float | None = None) -> None:
        self._recipes, self._limit = recipes, time_limit
        self._workers = [_Worker(recipe, number, time_limit) for number, recipe in enumerate(recipes, 1)]

    @property
    def pids(self) -> list[int]:
        """The process ids of the workers."""
        return [worker.pid for worker in self._workers]

    def run(self, batches: Sequence[Sequence[Group]], done: Done | None = None) -> list[list[Result]]:
        """The results of each batch, in order, whoever scored it.

        Raises WorkerError if workers keep dying and ModelError if one says that it cannot go on.
        """
        board = _Board(batches, len(self._workers), done)
        threads = [
            threading.Thread(target=self._serve, args=(place, board), daemon=True)
            for place in range(len(self._workers))
        ]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                # With a time limit a signal is noticed.
                while thread.is_alive():
                    thread.join(0.2)
        except BaseException:
            # An interrupt: nobody takes another batch, nobody waits for an answer.
            board.fail(WorkerError("the run was interrupted"))
            for worker in self._workers:
                worker.stop()
            raise
        if board.failure is not None:
            self.close()
            raise board.failure
        return cast(list[list[Result]], board.results[: len(batches)])

    def _serve(self, place: int, board: _Board) -> None:
        """Let one worker take batches until none is left."""
        try:
            while (number := board.take()) is not None:
                worker = self._workers[place]
                if not worker.alive:
                    # It died while it had nothing to do: no batch is to blame.
                    _log.warning("%s %s; a new one takes its place", worker.name(), worker.end())
                    worker = self._replace(place)
                found = self._answer(worker, board, number)
                if found is not None:
                    board.put(number, found)
                elif board.failure is None:
                    board.lose(number, place, f"{worker.name()} {worker.end()}", worker.loaded)
                    if not board.finished:
                        self._replace(place)
        except BaseException as error:
            # Whatever happens in a thread must not leave the others waiting.
            board.fail(error)

    def _replace(self, place: int) -> _Worker:
        self._workers[place] = _Worker(self._recipes[place], self._workers[place].number, self._limit)
        return self._workers[place]

    @staticmethod
    def _answer(worker: _Worker, board: _Board, number: int) -> list[Result] | None:
        """The results of a batch, or None if the worker is gone or the run has failed."""
        try:
            return _results(worker.run(board.batches[number]))
        except (EOFError, OSError, ValueError):
            return None
        except PrefcastError as error:
            board.fail(ModelError(str(error)))
            return None

    def close(self) -> None:
        """End the workers."""
        for worker in self._workers:
            worker.kill()


class _Board:
    """The batches of a run: those that wait, those that are done. All methods may be called from any thread."""

    def __init__(self, batches: Sequence[Sequence[Group]], workers: int, done: Done | None) -> None:
        # Halves of batches get numbers after those of the batches.
        self.batches = list(batches)
        self._halves: dict[int, tuple[int, int]] = {}
        self._whole: dict[int, int] = {}
        self._asked = len(batches)
        self.results: list[list[Result] | None] = [None] * len(batches)
        self.failure: BaseException | None = None
        self._waiting = deque(range(len(batches)))
        self._left = len(batches)
        self._deaths = [0] * len(batches)
        self._deaths_explained = 0
        # To find one pair in the longest batch takes two deaths a halving.
        longest = max((len(batch) for batch in batches), default=1)
        self._most_deaths = _DEATHS_A_RUN + _DEATHS_A_BATCH * longest.bit_length()
        self._false_starts = [0] * workers
        self._done = done
        self._changed = threading.Condition()

    @property
    def finished(self) -> bool:
        return self._left == 0 or self.failure is not None

    def take(self) -> int | None:
        """The next batch; waits while another worker's batch may still come back. None when there is nothing more."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self.finished)
            return None if self.finished else self._waiting.popleft()

    def put(self, number: int, results: list[Result]) -> None:
        """A batch is done."""
        whole: int | None = number
        with self._changed:
            self.results[number] = results
            # The second half that is done makes its batch whole, and so on up.
            while whole is not None and whole >= self._asked:
                whole = self._whole[whole]
                first, second = (self.results[half] for half in self._halves[whole])
                if first is None or second is None:
                    whole = None
                else:
                    self.results[whole] = results = first + second
            self._left -= whole is not None
            self._changed.notify_all()
        if self._done and whole is not None:
            self._done(whole, results)

    def fail(self, error: BaseException) -> None:
        """The run cannot go on."""
        with self._changed:
            self.failure = self.failure or error
            self._changed.notify_all()

    def lose(self, number: int, place: int, problem: str, loaded: bool) -> None:
        """The worker that had this batch has died."""
        if not loaded:
            self._false_starts[place] += 1
            problem = f"{problem} before it had loaded the model"
            if self._false_starts[place] >= _FALSE_STARTS:
                self.fail(WorkerError(f"{problem}, and so did the one before it"))
                return
        else:
            self._deaths[number] += 1
        if sum(self._deaths) - self._deaths_explained >= self._most_deaths:
            self.fail(WorkerError(f"workers keep dying; the last: {problem}"))
        elif self._deaths[number] >= _DEATHS_A_BATCH and len(self.batches[number]) > 1:
            _log.warning("%s; its batch has ended %d workers and is halved", problem, self._deaths[number])
            self._halve(number)
        elif self._deaths[number] >= _DEATHS_A_BATCH:
            # What is found so says nothing of the machine.
            self._deaths_explained += self._deaths_of(number)
            _log.warning("%s; its pair has ended %d workers and is given up", problem, self._deaths[number])
            self.put(number, [f"{problem} while scoring it"] * len(self.batches[number]))
        else:
            _log.warning("%s; its batch of %d pairs goes back into the queue", problem, len(self.batches[number]))
            with self._changed:
                self._waiting.appendleft(number)
                self._changed.notify_all()

    def _halve(self, number: int) -> None:
        """Let its halves wait instead of a batch."""
        batch, place = self.batches[number], len(self.batches)
        middle = len(batch) // 2
        with self._changed:
            self.batches += [batch[:middle], batch[middle:]]
            self.results += [None, None]
            self._deaths += [0, 0]
            self._halves[number] = place, place + 1
            self._whole |= {place: number, place + 1: number}
            self._waiting.extendleft((place + 1, place))
            self._changed.notify_all()

    def _deaths_of(self, number: int) -> int:
        """How many workers a pair has ended, those that had its batches too."""
        deaths = self._deaths[number]
        while (whole := self._whole.get(number)) is not None:
            deaths += self._deaths[whole]
            number = whole
        return deaths

"""A simulated run on many workers: one queue of pieces, or shards fixed beforehand; slow workers and lost nodes.

Knows nothing of pairs: a piece is the seconds that a worker of speed 1 takes for it. Times are seconds since the start.
`work_queue.py` measures what goes in, and compares what comes out with real workers.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Seconds = NDArray[np.float64]
# When a worker is next lost after a time; infinity: never.
Losses = Callable[[int, float], float]


def never(worker: int, after: float) -> float:
    """No worker is lost."""
    return math.inf


class AtTimes:
    """Workers are lost at given times, a sorted list for each that is named."""

    def __init__(self, times: dict[int, list[float]]) -> None:
        self._times = times

    def __call__(self, worker: int, after: float) -> float:
        times = self._times.get(worker, [])
        place = bisect_right(times, after)
        return times[place] if place < len(times) else math.inf


class AtRate:
    """Every node is lost at random, `per_hour` times an hour on average, with all its `a_node` workers at once."""

    def __init__(self, per_hour: float, seed: int, a_node: int = 1) -> None:
        self._rate, self._seed, self._a_node = per_hour / 3600, seed, a_node
        self._nodes: dict[int, tuple[np.random.Generator, list[float]]] = {}

    def __call__(self, worker: int, after: float) -> float:
        if not self._rate:
            return math.inf
        node = worker // self._a_node
        if node not in self._nodes:
            self._nodes[node] = np.random.default_rng((self._seed, node)), [0.0]
        random, times = self._nodes[node]
        while times[-1] <= after:
            times.append(times[-1] + random.exponential(1 / self._rate))
        return times[bisect_right(times, after)]


@dataclass(frozen=True)
class Workers:
    """Who works. `speeds` (n,): 0.5 takes twice the time. A lost worker, and the piece it is at, cost `replacement` and
    then `start_up` seconds before another is in its place; `start_up` alone comes before the first piece."""

    speeds: Seconds
    start_up: float = 0.0
    replacement: float = 0.0
    losses: Losses = never

    def __len__(self) -> int:
        return len(self.speeds)

    def back(self, lost: float) -> float:
        """When the worker lost then works again."""
        return lost + self.replacement + self.start_up


@dataclass
class Result:
    """What came of it. `useful` is the time spent on pieces that were done, `lost` on those that had to be done again;
    `losses` counts those, `tries` how often the unluckiest piece was begun. `ideal` is the shortest time that could be: no
    start-up, no losses, nobody idle at the end."""

    workers: int
    ideal: float
    makespan: float = 0.0
    useful: float = 0.0
    lost: float = 0.0
    losses: int = 0
    done: int = 0
    begun: dict[int, int] = field(default_factory=dict, repr=False)

    @property
    def tries(self) -> int:
        return 1 + max(self.begun.values(), default=0)

    @property
    def utilisation(self) -> float:
        """Share of the workers' time, until the last piece is done, that went into pieces that were done."""
        return self.useful / (self.workers * self.makespan) if self.makespan else 1.0

    @property
    def over_ideal(self) -> float:
        return self.makespan / self.ideal if self.ideal else 1.0

    def lose(self, piece: int, seconds: float) -> None:
        self.lost += seconds
        self.losses += 1
        self.begun[piece] = self.begun.get(piece, 0) + 1


def ideal(pieces: Seconds, workers: Workers) -> float:
    return float(pieces.sum() / workers.speeds.sum())


def from_queue(
    pieces: Seconds, workers: Workers, *, held: int = 1, stays: bool = False, feed: float = 0.0, commit: float = 0.0
) -> Result:
    """Workers take the next piece when they are free.

    `held` is how many pieces a worker has at a time, the one it is at among them. A lost worker's pieces go to the front
    of the queue, or with `stays` wait for the worker that takes its place, as Ray retries an actor's tasks. One reader
    makes a piece ready every `feed` seconds; who keeps the results takes `commit` seconds for each, one after the other.
    """
    found = Result(len(workers), ideal(pieces, workers))
    speeds, seconds = workers.speeds.tolist(), pieces.tolist()
    front, own = deque[int](), [deque[int]() for _ in speeds]
    coming = 0
    # In turns, a piece each, before anybody has a second one.
    for mine in own * (held - 1):
        if coming < len(seconds) and (coming < len(own) or feed == 0):
            mine.append(coming)
            coming += 1
    # (time, worker, the time since when it is at its first piece; infinity: it is free)
    events = [(workers.start_up, worker, math.inf) for worker in range(len(speeds))]
    heapq.heapify(events)
    idle, ends = list[int](), list[float]()
    while events:
        now, worker, since = heapq.heappop(events)
        mine = own[worker]
        if since < math.inf:  # lost
            found.lose(mine[0], max(0.0, now - since))
            if not stays:
                front.extendleft(reversed(mine))
                mine.clear()
                for one in idle:
                    heapq.heappush(events, (now, one, math.inf))
                idle.clear()
            heapq.heappush(events, (workers.back(now), worker, math.inf))
            continue
        while len(mine) < held:
            if front:
                mine.append(front.popleft())
            elif coming < len(seconds) and (not mine or (coming + 1) * feed <= now):
                mine.append(coming)
                coming += 1
            else:
                break
        if not mine:
            idle.append(worker)
            continue
        start = max(now, (mine[0] + 1) * feed)
        end = start + seconds[mine[0]] / speeds[worker]
        gone = workers.losses(worker, now)
        if gone < end:
            heapq.heappush(events, (gone, worker, start))
            continue
        found.useful += end - start
        found.done += 1
        mine.popleft()
        ends.append(end)
        heapq.heappush(events, (end, worker, math.inf))
    kept = 0.0
    for end in sorted(ends):
        kept = max(kept, end) + commit
    found.makespan = kept
    return found


def from_shards(pieces: Seconds, workers: Workers, *, reading: float = 0.0, commit: float = 0.0) -> Result:
    """Worker i of n does the pieces i, i + n, ... and no others, as `--shard I/N` has it.

    Each reads the whole input, `reading` seconds a piece, and again up to where it was after it was lost; it keeps its own
    results, `commit` seconds each.
    """
    found, n = Result(len(workers), ideal(pieces, workers)), len(workers)
    for worker, speed in enumerate(workers.speeds.tolist()):
        numbers = range(worker, len(pieces), n)
        scoring = pieces[worker::n] / speed
        whole = scoring + n * reading + commit
        # When each would be done if nothing went wrong, from the first on.
        ends = np.concatenate([[0.0], whole.cumsum()])
        now, place = workers.start_up, 0
        while place < len(numbers):
            gone = workers.losses(worker, now)
            through = int(np.searchsorted(ends, gone - now + ends[place], side="right")) - 1
            if through >= len(numbers):
                now += float(ends[-1] - ends[place])
                break
            found.lose(numbers[through], gone - now - float(ends[through] - ends[place]))
            now, place = workers.back(gone) + numbers[through] * reading, through
        found.useful += float(scoring.sum())
        found.done += len(numbers)
        found.makespan = max(found.makespan, now if numbers else 0.0)
    return found

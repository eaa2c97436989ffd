"""Work of many clients -> batches on one thread. Knows nothing of what the work is.

Requests wait in a ring; a batch takes one item of each in turn, so that a request of hundreds does not keep a request of one
waiting. Everything but the work itself happens on the event loop's thread: there are no locks.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

__all__ = ["Batcher", "Full", "Stopped"]

T = TypeVar("T")
R = TypeVar("R")
_LEAST_WAIT, _MOST_WAIT = 1, 60
# How much the newest batch says of the rate.
_NEWEST = 0.2


class Full(Exception):  # noqa: N818 - it is an answer
    """The queue has no room; after `seconds` it may."""

    def __init__(self, seconds: int) -> None:
        super().__init__(seconds)
        self.seconds = seconds


class Stopped(Exception):  # noqa: N818 - it is an answer
    """The batcher takes no more work."""


class _Request(Generic[T, R]):
    """Items of one request, those that wait and the results of those that are done."""

    def __init__(self, items: Sequence[T], done: asyncio.Future[list[R]]) -> None:
        self.items = items
        self.done = done
        self.results: dict[int, R] = {}
        self.next = 0


class Batcher(Generic[T, R]):
    """Runs `work`, which gives a result an item in the same order and never raises for an item's sake, on batches of at most
    `most` items. The first item of a batch waits at most `company` seconds for others, and only where nothing else is
    done meanwhile. At most `room` items wait or are worked on.

    `seen` is told of each batch: how many items, how many seconds.
    """

    def __init__(
        self,
        work: Callable[[list[T]], list[R]],
        *,
        most: int,
        company: float,
        room: int,
        seen: Callable[[int, float], None] = lambda items, seconds: None,
    ) -> None:
        self._work, self._most, self._company, self._room, self._seen = work, most, company, room, seen
        self._ring: deque[_Request[T, R]] = deque()
        self._waiting = self._working = 0
        self._seconds_each = 0.0
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefcast-scoring")
        self._stopping = False
        self._task: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Items that wait or are worked on."""
        return self._waiting + self._working

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    @property
    def alive(self) -> bool:
        return self._task is not None and not self._task.done()

    async def submit(self, items: Sequence[T]) -> list[R]:
        """The result of each item. Raises Full at once where there is no room for all of them, Stopped after `stop`.

        A caller that is cancelled takes the items that wait with it.
        """
        if self._stopping or not self.alive:
            raise Stopped
        if not items:
            return []
        if self.waiting + len(items) > self._room:
            raise Full(self._wait_for(len(items)))
        request: _Request[T, R] = _Request(items, asyncio.get_running_loop().create_future())
        self._waiting += len(items)
        self._ring.append(request)
        self._arrived.set()
        try:
            return await request.done
        finally:
            # Of a request that is cancelled or failed, some still wait.
            self._waiting -= len(items) - request.next
            request.next = len(items)

    async def alone(self, work: Callable[[], None]) -> None:
        """Run something else on the thread, before what is asked later."""
        await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def stop(self) -> None:
        """Finish what was taken; take nothing more."""
        self._stopping = True
        self._arrived.set()
        if self._task is not None:
            await self._task
        self._thread.shutdown()

    def _wait_for(self, items: int) -> int:
        """Seconds until `items` have room, by the rate so far."""
        missing = self.waiting + items - self._room
        return min(_MOST_WAIT, max(_LEAST_WAIT, math.ceil(missing * self._seconds_each)))

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if not self._waiting:
                if self._stopping:
                    return
                self._arrived.clear()
                await self._arrived.wait()
                await self._gather(loop)
            batch = self._take()
            if not batch:
                # Whatever waits was cancelled: let its callers say so.
                await asyncio.sleep(0)
                continue
            self._working = len(batch)
            start = time.perf_counter()
            try:
                results = await loop.run_in_executor(self._thread, self._work, [r.items[i] for r, i in batch])
            except Exception as error:
                for request, _ in batch:
                    if not request.done.done():
                        request.done.set_exception(error)
                continue
            finally:
                self._working = 0
            seconds = time.perf_counter() - start
            self._seen(len(batch), seconds)
            each = seconds / len(batch)
            self._seconds_each += _NEWEST * (each - self._seconds_each) if self._seconds_each else each
            for (request, index), result in zip(batch, results, strict=True):
                request.results[index] = result
                if len(request.results) == len(request.items) and not request.done.done():
                    request.done.set_result([request.results[number] for number in range(len(request.items))])

    async def _gather(self, loop: asyncio.AbstractEventLoop) -> None:
        """Wait for company: until a batch is full or the time is up."""
        until = loop.time() + self._company
        while self._waiting < self._most and not self._stopping and (left := until - loop.time()) > 0:
            self._arrived.clear()
            try:
                async with asyncio.timeout(left):
                    await self._arrived.wait()
            except TimeoutError:
                return

    def _take(self) -> list[tuple[_Request[T, R], int]]:
        """The next batch: an item of each request in turn."""
        batch: list[tuple[_Request[T, R], int]] = []
        while self._ring and len(batch) < self._most:
            request = self._ring.popleft()
            if request.next >= len(request.items) or request.done.done():
                continue
            batch.append((request, request.next))
            request.next += 1
            self._waiting -= 1
            if request.next < len(request.items):
                self._ring.append(request)
        return batch

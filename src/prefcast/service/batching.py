"""Items of many clients -> batches on one thread, whatever the items are.

Requests wait in a ring. A batch takes one item of each request in turn, so that a request with one item does not wait for a
request with hundreds. Everything but the work itself runs on the event loop's thread, so there are no locks.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from prefcast.service.refusals import Refusal

__all__ = ["Batcher"]

T = TypeVar("T")
R = TypeVar("R")
_LEAST_WAIT, _MOST_WAIT = 1, 60
# The weight of the newest batch in the average time of an item.
_NEWEST = 0.2


class _Request(Generic[T, R]):
    """The items of one request, and the results so far. The items from position `next` on still wait."""

    def __init__(self, items: Sequence[T], done: asyncio.Future[list[R]]) -> None:
        self.items = items
        self.done = done
        self.results: dict[int, R] = {}
        self.next = 0


class Batcher(Generic[T, R]):
    """Runs `work` on batches of at most `most` items. `work` returns one result for each item, in the same order, and does not
    raise for the fault of a single item.

    The first item of a batch waits at most `company` seconds for others, and only while no other batch runs. At most `room`
    items wait or are being worked on. `seen` is called after each batch with its number of items and its seconds.
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
        """The number of items that wait or are being worked on."""
        return self._waiting + self._working

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    @property
    def alive(self) -> bool:
        return self._task is not None and not self._task.done()

    async def submit(self, items: Sequence[T]) -> list[R]:
        """The result of each item. Raises Refusal at once if there is no room for all of them, and after `stop`.

        If the caller is cancelled, its waiting items are dropped.
        """
        if self._stopping or not self.alive:
            raise Refusal("stopping", "the server is stopping", headers={"Retry-After": "5"})
        if not items:
            return []
        if self.waiting + len(items) > self._room:
            seconds = self._wait_for(len(items))
            problem = f"{self.waiting} pairs are waiting already; try again in {seconds} s"
            raise Refusal("too_busy", problem, headers={"Retry-After": str(seconds)})
        request: _Request[T, R] = _Request(items, asyncio.get_running_loop().create_future())
        self._waiting += len(items)
        self._ring.append(request)
        self._arrived.set()
        try:
            return await request.done
        finally:
            # Items of a cancelled or failed request may still wait.
            self._waiting -= len(items) - request.next
            request.next = len(items)

    async def alone(self, work: Callable[[], None]) -> None:
        """Run `work` on the scoring thread, before any batch that is submitted later."""
        await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def stop(self) -> None:
        """Refuse new items, and finish those that were accepted."""
        self._stopping = True
        self._arrived.set()
        if self._task is not None:
            await self._task
        self._thread.shutdown()

    def _wait_for(self, items: int) -> int:
        """Seconds until there is room for `items`, estimated from the batches so far."""
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
                # All waiting requests were cancelled: let their callers run.
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
        """Wait until a batch is full or `company` seconds have passed."""
        until = loop.time() + self._company
        while self._waiting < self._most and not self._stopping and (left := until - loop.time()) > 0:
            self._arrived.clear()
            try:
                async with asyncio.timeout(left):
                    await self._arrived.wait()
            except TimeoutError:
                return

    def _take(self) -> list[tuple[_Request[T, R], int]]:
        """The next batch, with one item of each request in turn."""
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

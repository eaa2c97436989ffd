"""Work of many clients in batches: whose turn it is, what has no room, what is left behind."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable

import pytest

from prefcast.service.batching import Batcher
from prefcast.service.refusals import Refusal


class Work:
    """Doubles numbers; each batch waits for `go`."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go = threading.Semaphore(0)

    def __call__(self, items: list[int]) -> list[int]:
        self.batches.append(list(items))
        assert self.go.acquire(timeout=300)
        if -1 in items:
            raise RuntimeError("planted")
        return [2 * item for item in items]


def run(
    body: Callable[[Batcher[int, int], Work], Awaitable[None]], *, most: int = 4, room: int = 20, company: float = 0.0
) -> Work:
    work = Work()

    async def main() -> None:
        batcher: Batcher[int, int] = Batcher(work, most=most, company=company, room=room)
        batcher.start()
        try:
            await body(batcher, work)
        finally:
            work.go.release(1000)
            await batcher.stop()
        assert batcher.waiting == 0

    asyncio.run(main())
    return work


async def begun(work: Work, batches: int = 1) -> None:
    while len(work.batches) < batches:
        await asyncio.sleep(0.001)


def test_requests_take_turns_in_a_batch() -> None:
    async def body(batcher: Batcher[int, int], work: Work) -> None:
        first = asyncio.create_task(batcher.submit([0]))
        await begun(work)
        # A large one comes before small ones; they do not wait for all of it.
        large = asyncio.create_task(batcher.submit(list(range(10, 18))))
        await asyncio.sleep(0)
        small = [asyncio.create_task(batcher.submit([number])) for number in (1, 2)]
        await asyncio.sleep(0)
        work.go.release(100)
        assert await first == [0]
        assert [await each for each in small] == [[2], [4]]
        assert await large == [2 * number for number in range(10, 18)]

    work = run(body)
    assert work.batches[0] == [0]
    assert sorted(work.batches[1]) == [1, 2, 10, 11]
    assert sorted(number for batch in work.batches for number in batch) == [0, 1, 2, *range(10, 18)]


def test_the_first_waits_for_company() -> None:
    async def body(batcher: Batcher[int, int], work: Work) -> None:
        work.go.release(100)
        tasks = [asyncio.create_task(batcher.submit([number])) for number in range(4)]
        await asyncio.gather(*tasks)

    assert run(body, company=30).batches == [[0, 1, 2, 3]]


def test_what_has_no_room_is_refused_at_once_and_whole() -> None:
    async def body(batcher: Batcher[int, int], work: Work) -> None:
        tasks = [asyncio.create_task(batcher.submit([number])) for number in range(5)]
        await begun(work)
        assert batcher.waiting == 5
        with pytest.raises(Refusal) as full:
            await batcher.submit([6, 7])
        assert full.value.type == "too_busy"
        assert 1 <= int(full.value.headers["Retry-After"]) <= 60
        assert batcher.waiting == 5
        tasks.append(asyncio.create_task(batcher.submit([6])))
        work.go.release(100)
        await asyncio.gather(*tasks)

    run(body, room=6)


def test_who_leaves_takes_what_waits_along() -> None:
    async def body(batcher: Batcher[int, int], work: Work) -> None:
        first = asyncio.create_task(batcher.submit([0]))
        await begun(work)
        leaving = asyncio.create_task(batcher.submit(list(range(10, 16))))
        staying = asyncio.create_task(batcher.submit([1]))
        await asyncio.sleep(0)
        assert batcher.waiting == 8
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        assert batcher.waiting == 2
        work.go.release(100)
        assert await first == [0]
        assert await staying == [2]

    assert run(body).batches == [[0], [1]]


def test_work_that_raises_does_so_for_its_batch_only() -> None:
    async def body(batcher: Batcher[int, int], work: Work) -> None:
        work.go.release(100)
        with pytest.raises(RuntimeError, match="planted"):
            await batcher.submit([3, -1, 4, 5, 6, 7])
        assert await batcher.submit([8]) == [16]
        assert batcher.waiting == 0

    run(body)


def test_after_stop_nothing_is_taken_and_what_was_is_finished() -> None:
    async def body(batcher: Batcher[int, int], work: Work) -> None:
        tasks = [asyncio.create_task(batcher.submit([number])) for number in range(9)]
        await begun(work)
        stopping = asyncio.create_task(batcher.stop())
        await asyncio.sleep(0)
        with pytest.raises(Refusal, match="stopping"):
            await batcher.submit([1])
        work.go.release(100)
        assert await asyncio.gather(*tasks) == [[2 * number] for number in range(9)]
        await stopping
        assert not batcher.alive

    run(body)


def test_nothing_is_asked() -> None:
    async def body(batcher: Batcher[int, int], work: Work) -> None:
        assert await batcher.submit([]) == []

    assert run(body).batches == []

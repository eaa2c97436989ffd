"""Rows on their way to a server: many requests at a time, each answer as soon as it is there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, as_completed
from itertools import pairwise
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from prefcast.errors import PrefcastError, ServiceError
from prefcast.scorers.remote.protocols import Item, Numbers
from prefcast.scorers.remote.server import RefusedError, Server
from prefcast.scorers.remote.texts import Texts

__all__ = ["Sender"]

_NOT_FINITE = "the server gave a score that is not a finite number"
# The outputs (sequences, width) of a pair, or what is wrong with it. None: not answered, because the run ends.
Result = NDArray[np.float64] | str | None


class Sender:
    """Sends rows to `server`, at most `concurrency` requests at a time, whoever asks, with at most `size` items in each."""

    def __init__(self, server: Server, texts: Texts, concurrency: int, size: int) -> None:
        self._server, self._texts, self._concurrency, self._size = server, texts, concurrency, size
        self._pool: ThreadPoolExecutor | None = None
        self._lock = Lock()

    def close(self) -> None:
        """Send nothing more. A request that is under way is not waited for."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)

    def answered(
        self, rows: Mapping[int, Sequence[Item]]
    ) -> Iterator[tuple[list[int], list[NDArray[np.float64] | str]]]:
        """The results of rows, by batch, each as soon as it is there. What was answered is given before an error is raised:
        the evidence store keeps it."""
        with self._lock:
            if self._pool is None:
                # The server is asked `concurrency` requests at a time; the other threads wait to send one again.
                self._pool = ThreadPoolExecutor(2 * self._concurrency, thread_name_prefix="prefcast-request")
            pool = self._pool
        waiting: dict[Future[tuple[list[Result], PrefcastError | None]], Sequence[int]] = {
            pool.submit(self._asked, [rows[index] for index in batch]): batch for batch in self.planned(rows)
        }
        failure: BaseException | None = None
        try:
            for future in as_completed(waiting):
                try:
                    results, error = future.result()
                except CancelledError:
                    continue
                except Exception as unforeseen:
                    results, error = [], None
                    failure = failure or unforeseen
                if error is not None or failure is not None:
                    failure = failure or error
                    for other in waiting:
                        other.cancel()
                there = [
                    (index, result)
                    for index, result in zip(waiting[future], results, strict=False)
                    if result is not None
                ]
                if there:
                    yield [index for index, _ in there], [result for _, result in there]
        finally:
            for other in waiting:
                other.cancel()
        if failure is not None:
            raise failure

    def planned(self, rows: Mapping[int, Sequence[Item]]) -> list[list[int]]:
        """Rows in batches of one request each: the order of the rows alone decides."""
        most, most_bytes = self._most(), self._server.protocol.most_bytes
        batches: list[list[int]] = []
        count = size = 0
        for index, items in rows.items():
            bytes_ = sum(item.bytes for item in items)
            if not batches or count + len(items) > most or size + bytes_ > most_bytes:
                batches.append([])
                count = size = 0
            batches[-1].append(index)
            count, size = count + len(items), size + bytes_
        return batches

    def _most(self) -> int:
        return 1 if self._texts.alone else min(self._size, self._server.protocol.most)

    def _asked(self, rows: Sequence[Sequence[Item]]) -> tuple[list[Result], PrefcastError | None]:
        """The results of some rows, and the error that ended the asking; rows after it are None."""
        # Sorted, and each once: a pair and the swapped pair make the same request.
        unique = [{item.key: item for item in sorted(items, key=lambda item: item.key)} for items in rows]
        flat = [item for each in unique for item in each.values()]
        outputs: list[Numbers | str] = []
        failure: PrefcastError | None = None
        try:
            most = self._most()
            for start in range(0, len(flat), most):
                self._ask(flat[start : start + most], outputs)
        except PrefcastError as error:
            failure = error
        ends = np.cumsum([0, *map(len, unique)])
        results = [self._row(outputs[first:last], last - first) for first, last in pairwise(ends)]
        for place, (items, keys) in enumerate(zip(rows, unique, strict=True)):
            if isinstance(found := results[place], np.ndarray):
                results[place] = found[[list(keys).index(item.key) for item in items]]
        return results, failure

    @staticmethod
    def _row(found: Sequence[Numbers | str], n: int) -> Result:
        if len(found) < n:
            return None
        wrong = next((each for each in found if isinstance(each, str)), None)
        return wrong if wrong is not None else np.array(found)

    def _ask(self, items: Sequence[Item], outputs: list[Numbers | str]) -> None:
        """Append the outputs of each item, or what is wrong with it. Raises PrefcastError once the run cannot go on; what was
        answered is among `outputs` then."""
        try:
            reply = self._server.reply(items)
            wrong = self._misread(items, reply.tokens)
        except RefusedError as error:
            wrong = f"the server refuses it: {error.said}"
        if wrong is None:
            outputs += [self._checked(each) for each in reply.outputs]
        elif len(items) == 1:
            outputs.append(wrong)
        else:
            middle = len(items) // 2
            self._ask(items[:middle], outputs)
            self._ask(items[middle:], outputs)

    @staticmethod
    def _misread(items: Sequence[Item], told: int | None) -> str | None:
        """What is wrong where the server read other tokens than those that were sent."""
        if told is None or any(item.ids is None for item in items):
            return None
        sent = sum(len(item.ids or ()) for item in items)
        if told < sent:
            return f"the server read {told} of {sent} tokens: it cuts texts without a word (--max-tokens sends fewer)"
        return (
            None if told == sent else f"the server read {told} tokens, and {sent} were sent: it adds tokens of its own"
        )

    def _checked(self, numbers: Numbers) -> Numbers | str:
        if len(numbers) != self._texts.width:
            raise ServiceError(
                f"{self._server.shown}: gave {len(numbers)} numbers for a text, expected {self._texts.width}", 200
            )
        return numbers if np.isfinite(numbers).all() else _NOT_FINITE

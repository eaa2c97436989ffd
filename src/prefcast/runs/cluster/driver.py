"""What the driver of a run does on the cluster: it asks for the job's header there, has actors score batches, counts tries
and names faults."""

from __future__ import annotations

import functools
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from queue import Empty, Queue
from typing import Any

from prefcast.errors import PrefcastError, WorkerError, printable
from prefcast.pairs import Pair
from prefcast.runs.cluster import Pool
from prefcast.runs.cluster.actors import TRIES, EvidenceActor, JobSpec, died, header_there, raise_fault
from prefcast.runs.worker import plain_pair
from prefcast.scorers.base import SILENT, Evidence, Meter, Part, Problem, Scorer
from prefcast.scorers.wrapped import WrappedScorer

__all__ = ["ClusterScorer", "counting", "header_of_actors", "remote_faults"]

_PATIENCE = 1.0
# The evidence of a batch is kept when the whole batch is back: so many pairs at most are computed again after a kill.
_MOST_PAIRS = 64
_STOPPED = "the run was stopped"


class ClusterScorer(WrappedScorer):
    """`inner` in the actors of a cluster, which load it as `spec` says; `spec` has the header of the actors' job. Several
    threads may ask at the same time.

    Raises WorkerError if a batch ends its actor again and again.
    """

    def __init__(self, inner: Scorer, pool: Pool, spec: JobSpec) -> None:
        import ray

        super().__init__(inner)
        # The actors are its worker processes; it needs no others.
        self.portable = False
        self.workers, self.time_limit = pool.actors, spec.time_limit
        self.batch_pairs = min(inner.batch_pairs, _MOST_PAIRS)
        self._spec, self._closed = spec, False
        self._streams, self._ended = 0, threading.Condition()
        # An actor that ends is replaced: what is asked of an actor that restarts fails at once.
        self._made = ray.remote(EvidenceActor).options(
            num_cpus=pool.cluster.cpus, num_gpus=pool.cluster.gpus or None, max_restarts=0, max_task_retries=0
        )
        self._idle: Queue[Any] = Queue()
        for _ in range(pool.actors):
            self._idle.put(self._made.remote(spec))

    def again(self, inner: Scorer) -> Scorer:
        raise WorkerError("a scorer on a cluster cannot be changed during a run")

    def identity(self) -> str:
        # The machines there may have other devices.
        return str((self._spec.header or {})["scorer"])

    def batches(self, pairs: Sequence[Pair]) -> Sequence[Sequence[int]]:
        # What fits a device is planned where the device is.
        return Scorer.batches(self, pairs)

    def stream(self, pairs: Sequence[Pair], meter: Meter = SILENT) -> Iterator[Part]:
        import ray

        waiting = deque((batch, 1) for batch in self.batches(pairs))
        running: dict[Any, tuple[Sequence[int], int, Any]] = {}
        with self._ended:
            self._streams += 1
        try:
            while waiting or running:
                while waiting and (actor := self._free(wait=not running)) is not None:
                    batch, tries = waiting.popleft()
                    plain = [plain_pair(pairs[position]) for position in batch]
                    running[actor.evidence.remote(plain)] = batch, tries, actor
                ready, _ = ray.wait(list(running), timeout=_PATIENCE)
                if self._closed:
                    raise WorkerError(_STOPPED)
                for reference in ready:
                    batch, tries, actor = running.pop(reference)
                    try:
                        found = self._answer(reference)
                    except BaseException:
                        self._idle.put(actor)
                        raise
                    self._idle.put(self._made.remote(self._spec) if found is None else actor)
                    if found is not None:
                        meter.advance(len(batch))
                        yield batch, found
                    elif tries >= TRIES:
                        raise WorkerError(died(f"a batch of {len(batch)} pairs"))
                    else:
                        waiting.append((batch, tries + 1))
        finally:
            # If a caller ends early, nobody waits for its answers.
            for _, _, actor in running.values():
                self._idle.put(actor)
            with self._ended:
                self._streams -= 1
                self._ended.notify_all()

    def _free(self, *, wait: bool) -> Any:
        """An actor with nothing to do; None if there is none and the caller need not wait for one."""
        while not self._closed:
            try:
                return self._idle.get(block=wait, timeout=_PATIENCE)
            except Empty:
                if not wait:
                    return None
        raise WorkerError(_STOPPED)

    @staticmethod
    def _answer(reference: Any) -> Evidence | None:
        """What an actor answered; None if the actor is gone."""
        import ray
        from ray.exceptions import RayActorError

        with remote_faults():
            try:
                said = ray.get(reference)
            except RayActorError:
                return None
        if said["fault"]:
            raise_fault(said["fault"])
        problems = {place: Problem(*each) for place, each in said["problems"].items()}
        return Evidence(said["margin"], said["tie"], problems, said["raw"])

    def close(self) -> None:
        self._closed = True
        # A thread that waits inside Ray while Ray shuts down may never come back.
        with self._ended:
            self._ended.wait_for(lambda: not self._streams, timeout=5 * _PATIENCE)
        super().close()


def header_of_actors(pool: Pool, spec: JobSpec) -> Mapping[str, Any]:
    """The job's header on the machines of the actors. Raises PrefcastError."""
    import ray

    with remote_faults():
        asked = ray.remote(header_there).options(num_cpus=pool.cluster.cpus, num_gpus=pool.cluster.gpus or None)
        found = ray.get(asked.remote(spec))
    if "fault" in found:
        raise_fault(found["fault"])
    header: Mapping[str, Any] = found["header"]
    return header


@contextmanager
def counting(pool: Pool) -> Iterator[Callable[[str], int]]:
    """A function for actors: it counts how often it was called with each name in the whole run."""
    import ray

    kept = ray.remote(_Counts).options(num_cpus=0, max_restarts=-1, label_selector={"ray.io/node-id": pool.node})
    counts = kept.remote()
    try:
        yield functools.partial(_count, counts)
    finally:
        ray.kill(counts)


class _Counts:
    def __init__(self) -> None:
        self._seen: dict[str, int] = {}

    def count(self, name: str) -> int:
        self._seen[name] = self._seen.get(name, 0) + 1
        return self._seen[name]


def _count(counts: Any, name: str) -> int:
    import ray

    found: int = ray.get(counts.count.remote(name))
    return found


@contextmanager
def remote_faults() -> Iterator[None]:
    """An exception of Ray becomes a WorkerError of one line; Ray's own logs have the whole."""
    try:
        yield
    except PrefcastError:
        raise
    except Exception as error:
        from ray.exceptions import RayError

        # Ray Data has exceptions of its own, which are not RayErrors.
        if not isinstance(error, RayError) and not type(error).__module__.startswith("ray."):
            raise
        said = [line for line in str(error).splitlines() if line.strip()]
        raise WorkerError(f"Ray: {printable(said[-1] if said else type(error).__name__)[:300]}") from error

"""What the one who asks does on the cluster: learn what the actors are, count tries, name faults, and score batches there."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from queue import Empty, Queue
from typing import Any

from prefcast.errors import PrefcastError, WorkerError, printable
from prefcast.pairs import Pair
from prefcast.runs.cluster import Pool
from prefcast.runs.cluster.actors import TRIES, EvidenceActor, JobSpec, header_there, raise_fault
from prefcast.scorers.base import SILENT, Evidence, Meter, Part, Problem, Scorer
from prefcast.scorers.wrapped import WrappedScorer

__all__ = ["ClusterScorer", "counting", "header_of_actors", "remote_faults"]

_PATIENCE = 1.0


class ClusterScorer(WrappedScorer):
    """`inner` in the actors of a cluster, which hold it as `spec` says; any number of threads may ask at a time.

    Raises WorkerError where a batch ends its actor again and again.
    """

    def __init__(self, inner: Scorer, pool: Pool, spec: JobSpec, header: Mapping[str, Any]) -> None:
        import ray

        super().__init__(inner)
        self.workers = pool.actors
        self._header, self._closed = header, False
        made = ray.remote(EvidenceActor).options(
            num_cpus=pool.cluster.cpus, num_gpus=pool.cluster.gpus or None, max_restarts=-1, max_task_retries=0
        )
        self._idle: Queue[Any] = Queue()
        for _ in range(pool.actors):
            self._idle.put(made.remote(spec))

    def again(self, inner: Scorer) -> Scorer:
        raise WorkerError("a scorer on a cluster cannot be changed during a run")

    def identity(self) -> str:
        # The devices there may be others than those here.
        return str(self._header["scorer"])

    def stream(self, pairs: Sequence[Pair], meter: Meter = SILENT) -> Iterator[Part]:
        import ray

        waiting = deque((batch, 1) for batch in self.batches(pairs))
        running: dict[Any, tuple[Sequence[int], int, Any]] = {}
        while waiting or running:
            while waiting and (actor := self._free(wait=not running)) is not None:
                batch, tries = waiting.popleft()
                turns = [
                    [(turn.prompt, turn.response_a, turn.response_b) for turn in pairs[position].turns]
                    for position in batch
                ]
                running[actor.evidence.remote(turns)] = batch, tries, actor
            ready, _ = ray.wait(list(running), timeout=_PATIENCE)
            for reference in ready:
                batch, tries, actor = running.pop(reference)
                found = self._answer(reference)
                self._idle.put(actor)
                if found is None and tries >= TRIES:
                    raise WorkerError(
                        f"a batch of {len(batch)} pairs ended its actor {TRIES} times; if a row does that, --isolate finds it"
                    )
                if found is None:
                    waiting.append((batch, tries + 1))
                    continue
                meter.advance(len(batch))
                yield batch, found

    def _free(self, *, wait: bool) -> Any:
        """An actor with nothing to do; None where there is none and something else to wait for."""
        while not self._closed:
            try:
                return self._idle.get(block=wait, timeout=_PATIENCE)
            except Empty:
                if not wait:
                    return None
        raise WorkerError("the run was stopped")

    @staticmethod
    def _answer(reference: Any) -> Evidence | None:
        """What an actor answered; None where it is gone."""
        import ray
        from ray.exceptions import ActorDiedError, ActorUnavailableError, RayActorError

        with remote_faults():
            try:
                said = ray.get(reference)
            except (RayActorError, ActorDiedError, ActorUnavailableError):
                return None
        if said["fault"]:
            raise_fault(said["fault"])
        problems = {place: Problem(*each) for place, each in said["problems"].items()}
        return Evidence(said["margin"], said["tie"], problems, said["raw"])

    def close(self) -> None:
        self._closed = True
        super().close()


def header_of_actors(pool: Pool, spec: JobSpec) -> Mapping[str, Any]:
    """What the job says of itself where the actors run. Raises PrefcastError."""
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
    """A function for actors that counts, over the whole run, how often each name was given to it."""
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
    """What Ray raises becomes WorkerError, a line of it; the whole is in Ray's own logs."""
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

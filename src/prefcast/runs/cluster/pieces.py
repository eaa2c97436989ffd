"""One file of any kind that the local engine reads, scored on a cluster: every piece into the journal, in whatever order
they come. The output is then written from there, in the order of the input, as the local engine writes it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from prefcast.errors import PrefcastError, WorkerError, printable
from prefcast.runs.cluster import Pool
from prefcast.runs.cluster.actors import PieceScorer, Recipe, Source, header_there, raise_fault, read_pieces
from prefcast.runs.journal import Entry, Journal
from prefcast.runs.log import Watch
from prefcast.runs.packed import unpack
from prefcast.runs.stopping import Stopping

__all__ = ["Arrivals", "gather", "header_of_actors", "remote_faults"]


@dataclass
class Arrivals:
    """How far the reader of a file of `size` bytes is, as far as it has been heard of."""

    size: int
    position: int = field(default=0)

    @property
    def progress(self) -> tuple[int, int]:
        return self.position, self.size


def header_of_actors(pool: Pool, recipe: Recipe) -> Mapping[str, Any]:
    """What the job says of itself where the actors run. Raises PrefcastError."""
    import ray

    with remote_faults():
        asked = ray.remote(header_there).options(num_cpus=pool.cluster.cpus, num_gpus=pool.cluster.gpus or None)
        found = ray.get(asked.remote(recipe))
    if "fault" in found:
        raise_fault(found["fault"])
    header: Mapping[str, Any] = found["header"]
    return header


def gather(
    pool: Pool,
    recipe: Recipe,
    source: Source,
    arrivals: Arrivals,
    on_error: str,
    journal: Journal,
    watch: Watch,
    stopping: Stopping,
) -> None:
    """Have every piece of `source` that `journal` lacks scored, and keep it there as soon as it comes.

    With `on_error="stop"` the first row that comes back failed raises its RowError. Raises PrefcastError.
    """
    import ray

    known = journal.digests()
    before = watch.rows_passed = journal.rows
    data = ray.data.from_items([{"of": "file"}], override_num_blocks=1).map_batches(
        # It takes no processor from the actors, which would wait for it, and it runs where the file is.
        read_pieces,
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=0,
        label_selector={"ray.io/node-id": pool.node},
        fn_kwargs={"source": source, "known": known},
    )
    with remote_faults(), counting(pool) as count:
        data = pool.map(data, PieceScorer, recipe, count)
        for table in data.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for row in table.to_pylist():
                if row["fault"]:
                    raise_fault(row["fault"])
                if on_error == "stop" and row["failed"]:
                    raise next(filter(None, unpack(row["payload"]).errors))
                with stopping.busy(), watch.timing("writing"):
                    journal.put(Entry(row["number"], row["first"], row["rows"], row["digest"], row["payload"]))
                _tell(row, watch)
                arrivals.position = max(arrivals.position, row["position"])
                watch.rows_read = max(watch.rows_read, row["first"] + row["rows"] - 1)
                watch.done(journal.rows - before, journal.rows)
    # The output is written by reading once more.
    arrivals.position, watch.rows_read, watch.rows_passed = arrivals.size, 0, 0


def _tell(row: Mapping[str, Any], watch: Watch) -> None:
    watch.spent("reading", row["reading"])
    watch.spent("tokenising", row["tokenising"])
    watch.spent("scoring", row["seconds"] - row["tokenising"])
    watch.log.event(
        "chunk",
        number=row["number"],
        first_row=row["first"],
        rows=row["rows"],
        failed=row["failed"],
        seconds=round(row["seconds"], 6),
    )


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

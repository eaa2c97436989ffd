"""One attempt at a run that writes a file: the output or a shard, with the evidence store, signals and the log.

However the attempt ends, the output is whole or not there, and the evidence that was computed is kept for the next attempt.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

from prefcast.base.files import atomic_file
from prefcast.errors import FileError, PrefcastError, ResourceError, RowError, RunError, shown_path
from prefcast.pairs import Pair
from prefcast.runs.log import Log, Watch
from prefcast.runs.loop import Job, RunReport, Sink, run_to
from prefcast.runs.shards import ShardOf, ShardWriter
from prefcast.runs.stopping import Interrupted, Stopping
from prefcast.scorers.store import EvidenceStore

__all__ = ["Target", "attempt", "refuse_priors"]

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_WAITING = "stopping once the piece in flight is scored; a second signal stops at once"


@dataclass(frozen=True)
class Target:
    """What a run writes. `open` gives the writer of the output at `path` (None: standard output). With `shard` a shard of
    the output is written instead, with the texts if `with_text`. `facts` are what the output depends on besides the job's
    own header. `no_priors`: an output that every row failed in is not written."""

    open: Callable[[], AbstractContextManager[Sink]]
    path: Path | None = None
    shard: ShardOf | None = None
    with_text: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)
    no_priors: bool = False

    @property
    def written(self) -> Path | None:
        """The file that is written."""
        return self.path if self.path is None or self.shard is None else self.shard.path(self.path)


def attempt(
    job: Job,
    items: Iterable[Pair | RowError],
    target: Target,
    *,
    log: Log,
    watch: Watch,
    on_error: str = "keep",
    store: EvidenceStore | None = None,
) -> RunReport:
    """Do `job` for `items` into `target`.

    Raises Interrupted after a signal, and PrefcastError: ResourceError where disk or memory run out.
    """
    header = {**job.header, **target.facts}
    if target.shard is not None:
        header |= {"shard": str(target.shard), "texts": target.with_text}
    shown = None if target.written is None else shown_path(target.written)
    log.event("started", **header, output=shown)
    watch.on_first = None
    with Stopping(lambda: log.tell("stopping", _WAITING)) as stopping:
        try:
            with _marked(store, target, job, watch, log), _written(target, header) as writer:
                rows = items if target.shard is None else _Digested(items)
                report = run_to(writer, rows, job, on_error=on_error, watch=watch, part=target.shard, stopping=stopping)
                if getattr(items, "changed", False):
                    raise FileError(items.name, "changed while it was read, so nothing was written")  # type: ignore[attr-defined]
                if target.no_priors and target.shard is None and report.failed:
                    watch.rows_scored -= report.failed  # a row that failed has no evidence that could be kept
                    refuse_priors(shown, report.rows, report.failed, report.first_error)
                if isinstance(writer, ShardWriter) and isinstance(rows, _Digested):
                    writer.finish(watch.pieces_read, rows.hexdigest())
        except BaseException as error:
            _end(error, target, watch, log, keeps=store is not None and store.usable)
            raise
    return report


def refuse_priors(output: str | None, rows: int, failed: int, first: object) -> None:
    """Raises RunError where every row failed."""
    if output is not None and failed == rows:
        why = f"all {rows} rows failed, so it would hold nothing but the class prior; the first: {first}"
        raise RunError(f"{output}: was not written: {why} (--allow-all-failed writes it all the same)")


@contextmanager
def _written(target: Target, header: Mapping[str, Any]) -> Iterator[Sink]:
    """The writer of the output, or of the shard."""
    if target.shard is None or target.written is None:
        with target.open() as writer:
            yield writer
    else:
        with atomic_file(target.written) as file:
            yield ShardWriter(file, target.shard, header, with_text=target.with_text)


class _Digested:
    """The rows, and a digest of them: ids, labels, models, texts and faults."""

    def __init__(self, items: Iterable[Pair | RowError]) -> None:
        self._items, self._digest = items, blake2b(digest_size=16)

    def __iter__(self) -> Iterator[Pair | RowError]:
        for item in self._items:
            said = (
                ("!", str(item), item.id)
                if isinstance(item, RowError)
                else (item.id, item.outcome, item.model_a, item.model_b, item.prompt, item.response_a, item.response_b)
            )
            if isinstance(item, Pair) and (item.system or item.reference is not None):
                said = (*said, item.system, item.reference)
            if isinstance(item, Pair) and item.own:
                said = (*said, item.own)
            self._digest.update(repr(said).encode("utf-8", "surrogatepass"))
            yield item

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


@contextmanager
def _marked(store: EvidenceStore | None, target: Target, job: Job, watch: Watch, log: Log) -> Iterator[None]:
    """Notes in the store that the run is under way, so that the next attempt knows whether this one ended in order."""
    if store is None or target.written is None:
        yield
        return
    said = f"{target.written.absolute()}\0{sorted(map(str, job.header.items()))}"
    key = blake2b(said.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    if store.begin(key):
        log.tell(
            "ended_before",
            "an earlier attempt at this output crashed or was killed before it had scored a new row; if a row causes that, "
            "--isolate finds it",
        )
    watch.on_first = lambda: store.scored(key)
    try:
        yield
    finally:
        store.end(key)


def _end(error: BaseException, target: Target, watch: Watch, log: Log, *, keeps: bool) -> None:
    """Raise the error as one of ours; a note tells how many rows are kept. Nothing is raised for an error of others."""
    kept = watch.rows_scored if keeps else 0
    if isinstance(error, Interrupted):
        after = f" after {kept:,}{watch.of_rows()} rows; the same command continues" if kept else ""
        said = f"stopped by {error.name}{after or '; an output file is written whole or not at all'}"
        log.tell("interrupted", said, signal=error.name, rows_kept=kept)
    elif isinstance(error, OSError) and error.errno in _FULL and target.written is not None:
        error = ResourceError(f"{shown_path(target.written)}: cannot be written: {error.strerror}")
    elif isinstance(error, MemoryError):
        error = ResourceError(
            "out of memory; a smaller --budget reads less of a pair, and --isolate finds a row that alone needs too much"
        )
    if isinstance(error, PrefcastError):
        if kept:
            error.add_note(f"{kept:,} rows are kept: the same command continues")
        raise error from None

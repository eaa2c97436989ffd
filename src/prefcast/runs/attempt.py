"""One attempt at a run that writes a file: journal, output, signals and log together.

Whatever ends it, the output is whole or not there, and what was scored is kept for the next attempt.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from prefcast.errors import FileError, JournalError, PrefcastError, ResourceError, RowError, WorkerError, shown_path
from prefcast.pairs import Pair
from prefcast.runs.journal import Journal
from prefcast.runs.log import Log, Watch
from prefcast.runs.loop import Job, RunReport, Sink, run_to
from prefcast.runs.packed import Items, Piece, link_as_json
from prefcast.runs.shards import ShardOf
from prefcast.runs.stopping import Interrupted, Stopping

__all__ = ["Gather", "attempt"]

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

# A writer, given the folder where its file lies until it is whole.
Open = Callable[[Path | None], AbstractContextManager[Sink]]
# Fills a journal with all pieces of the input that it lacks, wherever they are scored.
Gather = Callable[[Journal, Watch, Stopping], None]


def attempt(
    job: Job,
    items: Iterable[Pair | RowError],
    open_output: Open,
    output: Path | None,
    facts: Mapping[str, Any],
    *,
    log: Log,
    watch: Watch,
    on_error: str = "keep",
    journalled: bool = True,
    fresh: bool = False,
    shard: ShardOf | None = None,
    with_text: bool = False,
    gather: Gather | None = None,
) -> RunReport:
    """Do `job` for `items` into `output`; go on where an earlier attempt at the same was stopped.

    `facts` say, besides the job's own header, what the output depends on. A shard's output is its journal, called
    `output`.shard-I-of-N. Without an output, or with `journalled` off, nothing is kept. With `gather` nothing is scored
    here: it fills the journal first. Raises Interrupted after a signal,
    and PrefcastError: JournalError where the journal is another run's, another process holds it, or the input is no longer
    what it was; ResourceError where disk or memory run out.
    """
    target = output if output is None or shard is None else shard.path(output)
    header = {**job.header, **facts}
    if shard is not None:
        header |= {"shard": str(shard), "texts": with_text}
    log.event("started", **header, output=None if target is None else shown_path(target))
    journal: Journal | None = None
    with Stopping(lambda: log.tell("stopping", _WAITING)) as stopping:
        try:
            if target is not None and journalled:
                journal = Journal(target, header, fresh=fresh)
                _tell_resumed(journal, log)
                if shard is not None:
                    # Who merges has no forecaster.
                    journal.note(link=link_as_json(job.link))
            before, start = 0 if journal is None else journal.rows, time.perf_counter()
            if gather is not None and journal is not None:
                gather(journal, watch, stopping)
                job = replace(job, score=_nothing_here)
            with ExitStack() as stack:
                room = None if journal is None else journal.folder
                writer = None if shard is not None else stack.enter_context(open_output(room))
                report = run_to(
                    writer,
                    items,
                    job,
                    on_error=on_error,
                    watch=watch,
                    journal=journal,
                    part=shard,
                    stopping=stopping,
                    with_text=with_text and shard is not None,
                )
                if getattr(items, "changed", False):
                    raise FileError(items.name, "changed while it was read, so nothing was written")  # type: ignore[attr-defined]
            if gather is not None:
                report = replace(report, restored=before, seconds=time.perf_counter() - start)
            if journal is not None and shard is not None and target is not None:
                journal.become(target)
            elif journal is not None:
                journal.remove()
        except BaseException as error:
            _end(error, journal, target, watch, log)
            raise
    return report


def _nothing_here(items: Items) -> Piece:
    """In the place of a job's scoring where others have done it."""
    raise WorkerError(f"{len(items)} rows did not come back from the cluster")


_WAITING = "stopping once the piece in flight is scored; a second signal stops at once"


def _tell_resumed(journal: Journal, log: Log) -> None:
    if journal.rows:
        log.tell(
            "resumed",
            f"{journal.shown}: {journal.rows:,} rows were scored before and are not scored again (--fresh starts over)",
            rows=journal.rows,
            chunks=journal.count,
        )
    # An attempt that ended in order says so in `ended`.
    if journal.noted("began") == journal.count and not journal.noted("ended"):
        log.tell(
            "ended_before",
            f"the attempt before ended without a word after {journal.rows:,} rows; where a row does that, --isolate finds it",
            rows=journal.rows,
        )
    journal.note(began=journal.count, ended=False)


def _end(error: BaseException, journal: Journal | None, target: Path | None, watch: Watch, log: Log) -> None:
    """Let go of the journal; an error becomes one of ours, with what is kept in its note."""
    kept = 0
    if journal is not None:
        kept = journal.rows
        with suppress(PrefcastError):
            journal.note(ended=True)
        journal.close()
    goes_on = f"{kept:,} rows are kept: the same command goes on from there" if kept else ""
    if isinstance(error, Interrupted):
        after = f" after {kept:,}{watch.of_rows()} rows; the same command goes on from there" if kept else ""
        log.tell(
            "interrupted",
            f"stopped by {error.name}{after or '; an output file is written whole or not at all'}",
            signal=error.name,
            rows_kept=kept,
        )
    elif isinstance(error, OSError) and error.errno in _FULL and target is not None:
        full = ResourceError(f"{shown_path(target)}: cannot be written: {error.strerror}")
        if goes_on:
            full.add_note(goes_on)
        raise full from None
    elif isinstance(error, MemoryError):
        short = ResourceError(
            "out of memory; a smaller --budget reads less of a pair, and --isolate finds a row that alone needs too much"
        )
        if goes_on:
            short.add_note(goes_on)
        raise short from None
    elif isinstance(error, PrefcastError) and not isinstance(error, JournalError) and goes_on:
        error.add_note(goes_on)

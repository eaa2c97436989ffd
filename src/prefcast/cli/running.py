"""What the verbs with long runs share: one attempt at the run, here or on a cluster, and what is said at its end; and `merge`."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prefcast.cli.requests import LongRun
from prefcast.cli.shared import LOG, ROWS_FAILED, app, progress, say
from prefcast.cli.verbs import verb
from prefcast.errors import UsageError, printable

if TYPE_CHECKING:
    from prefcast.errors import RowError
    from prefcast.pairs import Pair
    from prefcast.pairs.formats import PairFile
    from prefcast.runs.attempt import Target
    from prefcast.runs.loop import Job, RunReport
    from prefcast.runs.shards import ShardOf
    from prefcast.scorers.store import EvidenceStore

__all__ = ["attempted", "end_failed", "merge", "say_finished", "shard_of"]

_LONG = 60.0


def shard_of(long: LongRun, output: Path | None) -> ShardOf | None:
    """The shard that is asked for. Raises UsageError."""
    if long.shard is None:
        return None
    from prefcast.runs.shards import ShardOf

    shard = ShardOf.parse(long.shard)
    if output is None:
        raise UsageError("--shard needs an output file (-o FILE); the shard lies beside it")
    return shard


def attempted(
    job: Job,
    items: Iterable[Pair | RowError],
    file: PairFile,
    target: Target,
    *,
    on_error: str,
    store: EvidenceStore | None,
) -> RunReport:
    """One attempt at the run, with a bar where people look."""
    from prefcast.runs.attempt import attempt
    from prefcast.runs.log import Watch

    with progress(file) as show:
        share = 1.0 if target.shard is None else 1 / target.shard.count
        watch = Watch(LOG, show, lambda: file.progress, share)
        return attempt(job, items, target, log=LOG, watch=watch, on_error=on_error, store=store)


def say_finished(report: RunReport, what: str, output: Path | None, long: LongRun, *, always: bool = False) -> None:
    """The closing line of a run with an output: on a terminal, after more than a minute, or always."""
    from prefcast.runs.log import duration_text

    LOG.event(
        "finished",
        rows=report.rows,
        restored=report.restored,
        failed=report.failed,
        errors=dict(report.errors),
        truncated=report.truncated,
        seconds=round(report.seconds, 3),
        pairs_a_second=round(report.rate, 2),
        shares={part: round(share, 4) for part, share in report.shares.items()},
    )
    if LOG.as_json or output is None or not (always or sys.stderr.isatty() or report.seconds > _LONG):
        return
    where = output if long.shard is None else f"shard {long.shard} of {output}"
    took = f"{report.seconds:.1f} s" if report.seconds < 2 * _LONG else duration_text(report.seconds)
    rate = f"{report.rate:{',.0f' if report.rate > 10 else '.2g'}} pairs a second"
    parts = [took, rate]
    if report.restored:
        parts.append(f"{report.restored:,} scored before")
    if report.truncated:
        parts.append(f"{report.truncated:,} truncated")
    if len(report.errors) > 1:
        parts.append("failed: " + ", ".join(f"{count:,} {kind}" for kind, count in sorted(report.errors.items())))
    shares = ", ".join(f"{part} {share:.0%}" for part, share in report.shares.items())
    say(f"{report.rows} {what} in {where} ({', '.join(parts)}; {shares})")


def end_failed(failed: int, rows: int, first: object, got: str = "") -> None:
    """Exit status 3 if rows failed, with a line that says how many."""
    if failed:
        if not LOG.as_json:
            say(f"{failed} of {rows} rows failed{got}; the first: {first}")
        raise typer.Exit(ROWS_FAILED)


@verb(app)
def merge(
    shards: Annotated[list[Path], typer.Argument(metavar="SHARDS...", help="All shards of one run, in any order.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", help=".csv, .jsonl or .parquet: what one run would have written.")
    ],
) -> None:
    """Join the shards of a run (--shard I/N) into the output that one run would have written, byte for byte.

    Neither the model nor the input is needed. A shard that is missing, there twice, damaged or of another run is named,
    and nothing is written.

    \b
    Examples:
      prefcast merge out.csv.shard-* -o out.csv
    """
    from prefcast.forecasts.predictions import open_writer, output_kind
    from prefcast.forecasts.scores import open_score_writer
    from prefcast.runs.shards import open_shards, rows_of

    output_kind(output)
    found = open_shards(shards)
    rows = failed = 0
    first: object = None
    with ExitStack() as stack:
        for shard in found:
            stack.callback(shard.close)
        header = found[0].header
        writer: Any = stack.enter_context(
            open_score_writer(output, header["numbers"])
            if header["verb"] == "score"
            else open_writer(output, with_text=bool(header["texts"]))
        )
        for piece in rows_of(found):
            rows += len(piece)
            errors = [row["error"] for row in piece.rows if row["error"] is not None]
            failed += len(errors)
            first = first or next(iter(errors), None)
            writer.write(piece)
    if sys.stderr.isatty():
        say(f"{rows} rows of {len(found)} shards in {printable(str(output))}")
    end_failed(failed, rows, first)

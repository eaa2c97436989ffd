"""What the verbs with long runs share: their options, one attempt at the run, and what is said at its end; and `merge`."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prefcast.cli.clusters import Remote, on_cluster
from prefcast.cli.run_options import Running
from prefcast.cli.shared import LOG, ROWS_FAILED, HowFar, app, progress, say
from prefcast.errors import UsageError, printable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prefcast.errors import RowError
    from prefcast.pairs import Pair
    from prefcast.pairs.formats import PairFile
    from prefcast.runs.attempt import Open
    from prefcast.runs.loop import Job, RunReport

_LONG = 60.0


def attempted(
    job: Job,
    items: Iterable[Pair | RowError],
    file: PairFile,
    output: Path | None,
    open_output: Open,
    running: Running,
    *,
    facts: dict[str, Any],
    on_error: str,
    with_text: bool = False,
    remote: Remote | None = None,
) -> RunReport:
    """One attempt at the run, here or on a cluster, with a bar where people look."""
    from prefcast.runs.attempt import attempt
    from prefcast.runs.log import Watch
    from prefcast.runs.shards import ShardOf

    shard = None if running.part is None else ShardOf.parse(running.part)
    if shard is not None and output is None:
        raise UsageError("--shard needs an output file (-o FILE); the shard lies beside it")
    if shard is not None and not running.journal:
        raise UsageError("a shard is its journal: --shard and --no-journal exclude each other")
    read: HowFar = file
    gather = None
    with ExitStack() as stack:
        if remote is not None:
            job, read, gather = stack.enter_context(on_cluster(remote, job, file, on_error))
        show = stack.enter_context(progress(read))
        return attempt(
            job,
            items,
            open_output,
            output,
            facts,
            log=LOG,
            watch=Watch(LOG, show, lambda: read.progress, 1 / shard.count if shard else 1.0),
            on_error=on_error,
            journalled=running.journal,
            fresh=running.fresh,
            shard=shard,
            with_text=with_text,
            gather=gather,
        )


def say_finished(report: RunReport, what: str, output: Path | None, running: Running, *, always: bool = False) -> None:
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
    where = output if running.part is None else f"shard {running.part} of {output}"
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


def end_failed(report: RunReport, got: str = "") -> None:
    """Exit status 3 if rows failed, with a line that says how many."""
    if report.failed:
        say_failed = f"{report.failed} of {report.rows} rows failed{got}; the first: {report.first_error}"
        if not LOG.as_json:
            say(say_failed)
        raise typer.Exit(ROWS_FAILED)


@app.command()
def merge(
    shards: Annotated[list[Path], typer.Argument(metavar="SHARDS...", help="All shards of one run, in any order.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", help=".csv, .jsonl or .parquet: what one run would have written.")
    ],
) -> None:
    """Join the shards of a run (--shard I/N) into the output that one run would have written, byte for byte.

    A shard that is missing, there twice or of another run is named, and nothing is written.

    \b
    Examples:
      prefcast merge out.csv.shard-* -o out.csv
    """
    from prefcast.forecasts.predictions import open_writer, output_kind
    from prefcast.forecasts.scores import open_score_writer
    from prefcast.runs.loop import Tally
    from prefcast.runs.shards import open_shards, pieces_of

    output_kind(output)
    found = open_shards(shards)
    tally = Tally()
    with ExitStack() as stack:
        for shard in found:
            stack.callback(shard.close)
        header = found[0].header
        writer: Any = stack.enter_context(
            open_score_writer(output, header["numbers"])
            if header["verb"] == "score"
            else open_writer(output, with_text=bool(header["texts"]))
        )
        for piece in pieces_of(found):
            tally.add(piece, "keep")
            writer.write(piece)
    if sys.stderr.isatty():
        say(f"{tally.rows} rows of {len(found)} shards in {printable(str(output))}")
    end_failed(tally.report(0.0))

"""What the verbs with long runs share: the run, here, as a shard or on a cluster, and its closing lines; and `merge`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefcast.cli.clusters import check_engine, parts_asked, parts_run, placed
from prefcast.cli.requests import ALLOW_ALL_FAILED, SUBMISSION, Asked
from prefcast.cli.shared import (
    LOG,
    app,
    check_outputs,
    end_failed,
    opened,
    progress,
    say,
    say_escalated,
    say_literal,
    say_paid,
    say_restored,
    say_truncated,
)
from prefcast.cli.verbs import MISSING, argument, option, verb
from prefcast.errors import RunError, UsageError, printable

if TYPE_CHECKING:
    from prefcast.forecasts.forecaster import Forecaster
    from prefcast.measuring.rehearsal import RehearsedRows
    from prefcast.runs.loop import RunReport, Sink

__all__ = ["check_run", "done", "is_submission", "merge", "say_done"]

_LONG = 60.0


def check_run(asked: Asked, *inputs: Path | None, what: str, **local: object) -> None:
    """Raise UsageError for what can be refused before a model is loaded. `local` are the values of options that a
    cluster does not have."""
    from prefcast.forecasts.predictions import output_kind
    from prefcast.runs.shards import ShardOf

    LOG.as_json = asked.long.log == "json"
    check_engine(asked, shard=asked.long.shard, **local)
    if not parts_asked(asked) and asked.path is not None:
        output_kind(asked.path)
        check_outputs([asked.path], [*asked.pairs, *inputs], what)
    if asked.long.shard is not None:
        ShardOf.parse(asked.long.shard)
        if asked.output is None:
            raise UsageError("--shard needs an output file (-o FILE); the shard lies beside it")


def done(
    asked: Asked,
    forecaster: Forecaster,
    rows: RehearsedRows | None = None,
    opened_output: Callable[[], AbstractContextManager[Sink]] | None = None,
) -> RunReport:
    """One attempt at the run. `rows` are forecast in the place of the file's; `opened_output` gives the writer where it
    is not that of the output file."""
    from prefcast.runs.attempt import Target, attempt
    from prefcast.runs.jobs import job_of, open_output
    from prefcast.runs.log import Watch
    from prefcast.runs.shards import ShardOf

    if parts_asked(asked):
        with closing(forecaster.scorer):
            return parts_run(asked, forecaster)
    with (
        opened(asked.pairs, asked.reading, single=asked.verb == "score") as file,
        placed(asked, forecaster) as (scorer, store),
        progress(rows or file) as show,
    ):
        if file.single and not scorer.pointwise:
            problem = f"holds single answers, and {forecaster.scorer.name} compares two"
            raise UsageError(
                f"{file.name}: {problem}; only a pointwise reward model gives each answer a score of its own"
            )
        if asked.keep:
            file.keep(*asked.keep)
        job = job_of(asked.verb, replace(forecaster, scorer=scorer), single=file.single)
        facts = {
            "input": file.name if rows is None else f"a rehearsal for {file.name}",
            "columns": asked.reading.columns,
            "cells": asked.reading.cells,
            "label values": asked.reading.label_values,
            "megabytes of a row": asked.reading.max_row,
            **({"kept columns": list(asked.keep)} if asked.keep else {}),
        }
        shard = None if asked.long.shard is None else ShardOf.parse(asked.long.shard)
        write = opened_output or (
            lambda: open_output(str(asked.output), job.header, with_text=asked.with_text, own=asked.keep)
        )
        no_priors = asked.verb == "predict" and not asked.allow_all_failed and is_submission(asked.path)
        watch = Watch(LOG, show, lambda: (rows or file).progress, 1.0 if shard is None else 1 / shard.count)
        return attempt(
            job,
            file if rows is None else rows,
            Target(write, asked.path, shard, asked.with_text, facts, no_priors),
            log=LOG,
            watch=watch,
            on_error=asked.on_error,
            store=store,
        )


def is_submission(path: Path | None) -> bool:
    """Whether an output is a Kaggle submission."""
    return path is not None and path.suffix.lower() == ".csv"


def say_done(asked: Asked, report: RunReport, what: str, *, of: Forecaster | None = None, got: str = "") -> None:
    """The closing lines, for forecasts `of` a forecaster or for raw scores. Exit status 3 if rows failed.

    Forecasts have a line about the whole run on a terminal, or after more than a minute; raw scores always."""
    LOG.event(
        "finished",
        rows=report.rows,
        restored=report.restored,
        failed=report.failed,
        errors=dict(report.errors),
        truncated=report.truncated,
        literal=report.literal,
        escalated=report.escalated,
        seconds=round(report.seconds, 3),
        pairs_a_second=round(report.rate, 2),
        shares={part: round(share, 4) for part, share in report.shares.items()},
        requests=report.spent.requests,
        tokens_read=report.spent.tokens_read,
        tokens_written=report.spent.tokens_written,
        money=round(report.spent.money, 9),
    )
    if LOG.as_json:
        end_failed(report.failed)
        return
    if asked.output is not None and (of is None or sys.stderr.isatty() or report.seconds > _LONG):
        where = asked.output if asked.long.shard is None else f"shard {asked.long.shard} of {asked.output}"
        say(f"{report.rows} {what} in {where} ({_figures(report)})")
    else:
        say_restored(report.restored, report.rows)
    if of is not None:
        say_truncated(report.truncated, report.rows, of)
    say_literal(report.literal, report.rows)
    say_paid(report.spent)
    say_escalated(report.escalated, report.rows)
    end_failed(report.failed, f"{report.failed} of {report.rows} rows failed{got}; the first: {report.first_error}")


def _figures(report: RunReport) -> str:
    from prefcast.runs.log import duration_text

    took = f"{report.seconds:.1f} s" if report.seconds < 2 * _LONG else duration_text(report.seconds)
    parts = [took]
    if report.rate:
        parts.append(f"{report.rate:{',.0f' if report.rate > 10 else '.2g'}} pairs a second")
    if report.restored:
        parts.append(f"{report.restored:,} scored before")
    if report.truncated:
        parts.append(f"{report.truncated:,} truncated")
    if len(report.errors) > 1:
        parts.append("failed: " + ", ".join(f"{count:,} {kind}" for kind, count in sorted(report.errors.items())))
    return f"{', '.join(parts)}; {', '.join(f'{part} {share:.0%}' for part, share in report.shares.items())}"


@verb(app)
def merge(
    shards: list[Path] = argument("All shards of one run, in any order.", "SHARDS..."),
    output: Path = option(".csv, .jsonl or .parquet: what one run would have written.", None, "-o", default=MISSING),
    submission: str = SUBMISSION,
    allow_all_failed: bool = ALLOW_ALL_FAILED,
) -> None:
    """Join the shards of a run (--shard I/N) into the output that one run would have written, byte for byte.

    Neither the model nor the input is needed. A shard that is missing, there twice, damaged or of another run is named,
    and nothing is written.

    \b
    Examples:
      prefcast merge out.csv.shard-* -o out.csv
    """
    from prefcast.forecasts.predictions import output_kind
    from prefcast.runs.attempt import refuse_priors
    from prefcast.runs.jobs import open_output
    from prefcast.runs.shards import open_shards, rows_of

    output_kind(output)
    winner = submission == "winner"
    if winner and not is_submission(output):
        raise UsageError("--submission winner is for an output that ends in .csv")
    found = open_shards(shards)
    rows = failed = 0
    first: object = None
    try:
        with ExitStack() as stack:
            for shard in found:
                stack.callback(shard.close)
            header = found[0].header
            texts = bool(header["texts"])
            own = [str(name) for name in header.get("kept columns", [])]
            writer: Any = stack.enter_context(open_output(output, header, with_text=texts, winner=winner, own=own))
            for piece in rows_of(found):
                rows += len(piece)
                errors = [row["error"] for row in piece.rows if row["error"] is not None]
                failed += len(errors)
                first = first or next(iter(errors), None)
                writer.write(piece)
            if header["verb"] == "predict" and is_submission(output) and not allow_all_failed and failed:
                refuse_priors(printable(str(output)), rows, failed, first)
    except (ValueError, ArithmeticError, LookupError, TypeError, AttributeError, RuntimeError):
        # Whole by its checksum, and yet not what prefcast writes: a stranger made it.
        what = f"{found[0].path}: its run, or a row near row {rows}, is not one that this version writes"
        raise RunError(f"{what}; make the shards anew") from None
    if sys.stderr.isatty():
        say(f"{rows} rows of {len(found)} shards in {printable(str(output))}")
    end_failed(failed, f"{failed} of {rows} rows failed; the first: {first}")

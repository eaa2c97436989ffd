"""The verbs that forecast: predict, explain, check."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prefcast.cli.clusters import Remote, check_engine, parts_asked, parts_run, placed
from prefcast.cli.requests import (
    Choosing,
    Keeping,
    LogKind,
    LongRun,
    OnError,
    OnErrorOption,
    Pairs,
    Reading,
    ScoresFile,
    WithText,
)
from prefcast.cli.running import attempted, end_failed, say_finished, shard_of
from prefcast.cli.shared import (
    LOG,
    ROWS_FAILED,
    app,
    check_outputs,
    opened,
    progress,
    say,
    say_restored,
    say_truncated,
)
from prefcast.cli.verbs import verb
from prefcast.errors import UsageError, printable

if TYPE_CHECKING:
    from prefcast.forecasts.forecaster import Forecaster
    from prefcast.measuring.rehearsal import Rehearsal
    from prefcast.runs.loop import RunReport, Sink


@verb(app)
def predict(
    pairs: Pairs,
    output: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--output",
            help=".csv: Kaggle submission; .jsonl, .parquet: everything. Without it, a table is printed. With --engine ray also a folder or URI, for Parquet parts.",
            metavar="PATH",
        ),
    ] = None,
    scores: ScoresFile = None,
    on_error: OnErrorOption = OnError.keep,
    with_text: WithText = False,
    rehearse: Annotated[
        Path | None,
        typer.Option(
            help="If PAIRS is the competition's stub of three rows, forecast the first 1,000 rows of this labelled file instead, and measure.",
            metavar="TRAIN",
        ),
    ] = None,
    *,
    choosing: Choosing,
    reading: Reading,
    keeping: Keeping,
    long: LongRun,
) -> None:
    """Forecast every pair of a file.

    A run that was stopped or killed goes on when the same command is given again (docs/runs.md).

    \b
    Examples:
      prefcast predict test.csv -o submission.csv
      prefcast predict pairs.jsonl.zst -o forecasts.parquet --with-text
      zcat pairs.csv.gz | prefcast predict - -o forecasts.jsonl
      prefcast predict test.csv --model internlm2-20b-reward --preset notebook --rehearse train.csv -o submission.csv
    """
    from prefcast.forecasts.predictions import open_writer, output_kind
    from prefcast.forecasts.resolve import resolve
    from prefcast.measuring.rehearsal import Rehearsal, rehearsal_rows
    from prefcast.report.forecasts import TableWriter
    from prefcast.report.measurements import evaluation_text
    from prefcast.runs.attempt import Target
    from prefcast.runs.jobs import forecasting

    LOG.as_json = long.log == LogKind.json
    if output is None and with_text:
        raise UsageError("--with-text needs an output file (-o FILE.jsonl or FILE.parquet)")
    check_engine(long, pairs, output, rehearse=rehearse, scores=scores)
    if output is not None and parts_asked(long, pairs, output):
        chosen = resolve(choosing.choice())
        with closing(chosen.scorer):
            remote = Remote.of("predict", chosen.scorer, chosen, keeping, long)
        report = parts_run(remote, pairs, output, reading, fresh=keeping.fresh, on_error=on_error, with_text=with_text)
        say_forecast(report, chosen, Path(output), long)
        return
    path = None if output is None else Path(output)
    if path is not None:
        output_kind(path)
        check_outputs([path], [pairs, rehearse], "the forecasts")
    if rehearse is not None and long.shard is not None:
        raise UsageError("--rehearse is one small run; --shard has no part in it")
    shard = shard_of(long, path)
    train = (
        None
        if rehearse is None
        else rehearsal_rows(pairs, str(rehearse), reading.mapping, str(reading.cells), reading.labels)
    )
    chosen = resolve(choosing.choice(scores))
    rehearsal: Rehearsal | None = None

    @contextmanager
    def open_output() -> Iterator[Sink]:
        nonlocal rehearsal
        with nullcontext(TableWriter(sys.stdout)) if path is None else open_writer(path, with_text=with_text) as writer:
            rehearsal = None if train is None else Rehearsal(writer)
            yield rehearsal or writer

    with ExitStack() as stack:
        file = stack.enter_context(opened(pairs, reading))
        scorer, store = stack.enter_context(placed("predict", chosen.scorer, chosen, keeping, long))
        facts: dict[str, Any] = {
            "input": file.name if train is None else f"{rehearse} for {file.name}",
            "columns": reading.columns,
            "cells": str(reading.cells),
            "label values": reading.label_values,
        }
        report = attempted(
            forecasting(replace(chosen, scorer=scorer)),
            file if train is None else train,
            file,
            Target(open_output, path, shard, with_text, facts),
            on_error=on_error,
            store=store,
        )
    if rehearse is not None and train is None:
        say(f"{pairs} is not the stub of three rows: forecast as it is, {rehearse} was not needed")
    if rehearsal is not None:
        say(f"{pairs} is the stub: forecast the first {report.rows} rows of {rehearse} in its place")
        if report.failed < report.rows:
            print(evaluation_text(rehearsal.evaluation(), "rehearsal"))
    say_forecast(report, chosen, path, long)


def say_forecast(report: RunReport, chosen: Forecaster, output: Path | None, long: LongRun) -> None:
    """What is said at the end; exit status 3 if rows failed."""
    say_finished(report, "forecasts", output, long)
    if not LOG.as_json:
        say_truncated(report.truncated, report.rows, chosen)
        say_restored(report.restored, report.rows)
    got = "the class prior" if chosen.fallback is None else f"({', '.join(map(str, chosen.fallback))})"
    end_failed(report.failed, report.rows, report.first_error, f" and got {got}")


@verb(app)
def explain(
    pairs: Pairs,
    id: Annotated[str, typer.Option("--id", help="The id of the pair (the row number where the file has no ids).")],
    scores: ScoresFile = None,
    *,
    choosing: Choosing,
    reading: Reading,
) -> None:
    """Show one pair's forecast and what moved it.

    \b
    Example:
      prefcast explain examples/pairs.csv --id ex-07
    """
    from prefcast.forecasts.resolve import resolve
    from prefcast.pairs.sources import find_pair
    from prefcast.report.forecasts import explanation_text

    chosen = resolve(choosing.choice(scores))
    with opened(pairs, reading) as file:
        pair = find_pair(file, id)
    with closing(chosen.scorer):
        print(explanation_text(pair, chosen.explain(pair)))


@verb(app)
def check(pairs: Pairs, *, reading: Reading) -> None:
    """Read a file without forecasting it: its format, rows, turns, labels, every fault, and how long a forecast would take
    here.

    \b
    Example:
      prefcast check pairs.csv --columns prompt=question,response_a=left,response_b=right --cells text
    """
    from prefcast.forecasts.check import inspect
    from prefcast.report.descriptions import inspection_text

    with opened(pairs, reading) as file, progress(file) as show:
        found = inspect(file, on_fault=lambda error: print(printable(str(error))), progress=show)
    print(inspection_text(found))
    if found.failed:
        raise typer.Exit(ROWS_FAILED)

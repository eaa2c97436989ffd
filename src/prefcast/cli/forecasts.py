"""The verbs that forecast: predict, explain, check."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prefcast.cli.clusters import Remote, check_engine, parts_asked, parts_run, remote_forecasts
from prefcast.cli.run_options import Running, run_options
from prefcast.cli.running import attempted, end_failed, say_finished
from prefcast.cli.shared import (
    LOG,
    ROWS_FAILED,
    BudgetText,
    CellKind,
    Cells,
    Columns,
    Folder,
    LabelValues,
    Model,
    OnError,
    OnErrorOption,
    Pairs,
    Preset,
    ScoresFile,
    app,
    columns_of,
    opened,
    progress,
    reward_options,
    say,
    say_reused,
    say_truncated,
)
from prefcast.errors import UsageError, printable
from prefcast.scorers.reward import Options

if TYPE_CHECKING:
    from prefcast.forecasts.forecaster import Forecaster
    from prefcast.forecasts.predictions import Writer
    from prefcast.runs.loop import RunReport


@app.command()
@reward_options
@run_options
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
    model: Model = None,
    forecaster: Folder = None,
    scores: ScoresFile = None,
    budget: BudgetText = None,
    columns: Columns = None,
    cells: CellKind = Cells.json,
    label_values: LabelValues = None,
    on_error: OnErrorOption = OnError.keep,
    with_text: Annotated[
        bool, typer.Option("--with-text", help="Keep the texts in a .jsonl or .parquet output.")
    ] = False,
    preset: Preset = None,
    rehearse: Annotated[
        Path | None,
        typer.Option(
            help="If PAIRS is the competition's stub of three rows, forecast the first 1,000 rows of this labelled file instead, and measure.",
            metavar="TRAIN",
        ),
    ] = None,
    *,
    options: Options,
    running: Running,
) -> None:
    """Forecast every pair of a file.

    Stopped or killed, the same command goes on where it was (docs/runs.md).

    \b
    Examples:
      prefcast predict test.csv -o submission.csv
      prefcast predict pairs.jsonl.zst -o forecasts.parquet --with-text
      zcat pairs.csv.gz | prefcast predict - -o forecasts.jsonl
      prefcast predict test.csv --model internlm2-20b-reward --preset notebook --rehearse train.csv -o submission.csv
    """
    from prefcast.forecasts.predictions import open_writer, output_kind
    from prefcast.forecasts.resolve import resolve
    from prefcast.measuring.evaluation import Rehearsal, rehearsal_rows
    from prefcast.pairs.formats.labels import label_values_of
    from prefcast.pairs.sources import same_file
    from prefcast.report.tables import evaluation_text
    from prefcast.report.text import TableWriter
    from prefcast.runs.jobs import forecasting

    if output is None and with_text:
        raise UsageError("--with-text needs an output file (-o FILE.jsonl or FILE.parquet)")
    by_ray = check_engine(running, pairs, output, rehearse=rehearse, scores=scores, **{"label-values": label_values})
    if output is not None and parts_asked(by_ray, pairs, output):
        chosen = resolve(model, forecaster, budget, preset, options)
        with closing(chosen.scorer):
            made = remote_forecasts(chosen, options, running)
        report = parts_run(
            *made, pairs, output, columns, cells.value, running, on_error=on_error.value, with_text=with_text
        )
        say_forecast(report, chosen, Path(output), running)
        return
    if output is not None:
        output = str(Path(output))
        output_kind(output)
        if pairs != "-" and same_file(pairs, output):
            raise UsageError(f"{output}: is the input; write the forecasts to another file")
        if rehearse is not None and same_file(rehearse, output):
            raise UsageError(f"{output}: is the labelled file; write the forecasts to another file")
    if rehearse is not None and running.part is not None:
        raise UsageError("--rehearse is one small run; --shard has no part in it")
    train = (
        None
        if rehearse is None
        else rehearsal_rows(pairs, str(rehearse), columns_of(columns), cells.value, label_values_of(label_values))
    )
    chosen = resolve(model, forecaster, budget, preset, options, scores)
    remote = None
    if by_ray:
        remote = Remote(*remote_forecasts(chosen, options, running), pairs, columns_of(columns), cells.value)
    elif running.isolated:
        from prefcast.runs.isolated import isolated

        chosen = replace(chosen, scorer=isolated(chosen.scorer, running.time_limit))
    rehearsal: Rehearsal | None = None

    @contextmanager
    def open_output(room: Path | None) -> Iterator[Writer]:
        nonlocal rehearsal
        with (
            nullcontext(TableWriter(sys.stdout))
            if output is None
            else open_writer(output, with_text=with_text, room=room) as writer
        ):
            rehearsal = None if train is None else Rehearsal(writer)
            yield rehearsal or writer

    with opened(pairs, columns, cells, label_values) as file, closing(chosen.scorer):
        report = attempted(
            forecasting(chosen),
            file if train is None else train,
            file,
            None if output is None else Path(output),
            open_output,
            running,
            facts={
                "input": file.name if train is None else f"{rehearse} for {file.name}",
                "columns": columns,
                "cells": cells.value,
                "label values": label_values,
            },
            on_error=on_error.value,
            with_text=with_text,
            remote=remote,
        )
    if rehearse is not None and train is None:
        say(f"{pairs} is not the stub of three rows: forecast as it is, {rehearse} was not needed")
    if rehearsal is not None:
        say(f"{pairs} is the stub: forecast the first {report.rows} rows of {rehearse} in its place")
        if report.failed < report.rows:
            print(evaluation_text(rehearsal.evaluation(), "rehearsal"))
    say_forecast(report, chosen, None if output is None else Path(output), running)


def say_forecast(report: RunReport, chosen: Forecaster, output: Path | None, running: Running) -> None:
    """What is said at the end; exit status 3 if rows failed."""
    say_finished(report, "forecasts", output, running)
    if not LOG.as_json:
        say_truncated(report.truncated, report.rows, chosen)
        say_reused(chosen.scorer)
    got = "the class prior" if chosen.fallback is None else f"({', '.join(map(str, chosen.fallback))})"
    end_failed(report, f" and got {got}")


@app.command()
@reward_options
def explain(
    pairs: Pairs,
    id: Annotated[str, typer.Option("--id", help="The id of the pair (the row number where the file has no ids).")],
    model: Model = None,
    forecaster: Folder = None,
    scores: ScoresFile = None,
    budget: BudgetText = None,
    columns: Columns = None,
    cells: CellKind = Cells.json,
    preset: Preset = None,
    *,
    options: Options,
) -> None:
    """Show one pair's forecast and what moved it.

    \b
    Example:
      prefcast explain examples/pairs.csv --id ex-07
    """
    from prefcast.forecasts.resolve import resolve
    from prefcast.pairs.sources import find_pair
    from prefcast.report.text import explanation_text

    chosen = resolve(model, forecaster, budget, preset, options, scores)
    with opened(pairs, columns, cells) as file:
        pair = find_pair(file, id)
    with closing(chosen.scorer):
        print(explanation_text(pair, chosen.explain(pair)))


@app.command()
def check(pairs: Pairs, columns: Columns = None, cells: CellKind = Cells.json) -> None:
    """Read a file without forecasting: its format, rows, turns, labels, every fault, and how long a forecast would
    take here.

    \b
    Example:
      prefcast check pairs.csv --columns prompt=question,response_a=left,response_b=right --cells text
    """
    from prefcast.forecasts.check import inspect
    from prefcast.report.text import inspection_text

    with opened(pairs, columns, cells) as file, progress(file) as show:
        found = inspect(file, on_fault=lambda error: print(printable(str(error))), progress=show)
    print(inspection_text(found))
    if found.failed:
        raise typer.Exit(ROWS_FAILED)

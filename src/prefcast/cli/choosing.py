"""The verb that chooses among answers: best."""

from __future__ import annotations

import sys
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from prefcast.cli.shared import (
    ROWS_FAILED,
    BudgetText,
    CellKind,
    Cells,
    Columns,
    Folder,
    Model,
    OnError,
    OnErrorOption,
    Preset,
    app,
    columns_of,
    progress,
    reward_options,
    say,
)
from prefcast.errors import UsageError
from prefcast.scorers.reward import Options


@app.command()
@reward_options
def best(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="Prompts with their responses: CSV, TSV, JSON Lines or Parquet, also .gz or .zst; - is standard input.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help=".jsonl: everything; .csv: the best of each prompt. Without it, a table is printed."
        ),
    ] = None,
    model: Model = None,
    forecaster: Folder = None,
    budget: BudgetText = None,
    columns: Columns = None,
    cells: CellKind = Cells.json,
    on_error: OnErrorOption = OnError.keep,
    with_text: Annotated[bool, typer.Option("--with-text", help="Write the prompt and the best response too.")] = False,
    preset: Preset = None,
    *,
    options: Options,
) -> None:
    """Choose the best of several responses to each prompt (best of n), every two of them forecast.

    A row has a prompt and its responses (a list), or a row is one response, with prompt, response and perhaps id. The best
    one has the highest mean of P(wins) + P(tie) / 2 against the others. Positions are counted from 0.

    \b
    Examples:
      prefcast best samples.jsonl -o best.jsonl --with-text
      prefcast best samples.csv --cells text --model surface
    """
    from prefcast.forecasts.best import choice_kind, choices, open_choice_writer
    from prefcast.forecasts.resolve import resolve
    from prefcast.pairs.formats.candidates import CandidateFile
    from prefcast.pairs.sources import same_file
    from prefcast.report.forecasts import ChoiceTable

    if output is None and with_text:
        raise UsageError("--with-text needs an output file (-o FILE.jsonl or FILE.csv)")
    if output is not None:
        choice_kind(output)
        if file != "-" and same_file(file, output):
            raise UsageError(f"{output}: is the input; write the choices to another file")
    if file == "-" and sys.stdin is not None and sys.stdin.isatty():
        raise UsageError("standard input is a terminal; pipe a file into it")
    chosen = resolve(model, forecaster, budget, preset, options)
    rows = failed = truncated = 0
    first: object = None
    with (
        closing(chosen.scorer),
        CandidateFile(file, columns_of(columns), cells.value) as read,
        progress(read) as show,
        nullcontext(ChoiceTable(sys.stdout))
        if output is None
        else open_choice_writer(output, with_text=with_text) as opened,
    ):
        writer: Any = opened
        for choice in choices(read, chosen):
            if choice.error is not None:
                if on_error is OnError.stop:
                    raise choice.error
                failed += 1
                first = first or choice.error
            rows += 1
            truncated += choice.truncated > 0
            writer.write(choice)
            if show is not None:
                show(rows)
    if truncated:
        say(f"{truncated} of {rows} prompts have responses that were truncated ({chosen.budget})")
    if failed:
        say(f"{failed} of {rows} prompts failed and have no best response; the first: {first}")
        raise typer.Exit(ROWS_FAILED)

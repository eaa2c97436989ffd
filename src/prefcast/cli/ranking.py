"""The verb that ranks models: rank."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from prefcast.cli.shared import ROWS_FAILED, Columns, LabelValues, app, columns_of, say
from prefcast.errors import UsageError


class Of(StrEnum):
    forecasts = "forecasts"
    votes = "votes"


@app.command()
def rank(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="Votes or forecasts with model_a and model_b: CSV, TSV, JSON or Parquet, also .gz or .zst, or a folder of them; - is standard input.",
        ),
    ],
    of: Annotated[
        Of | None,
        typer.Option(
            "--from",
            help="Rank by the forecasts in the winner_ columns, or by the votes.  [default: forecasts where there are some]",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The leaderboard as .csv or .jsonl.", metavar="FILE")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="Ratings and win rates as a plot: .svg, .png or .pdf.", metavar="FILE"),
    ] = None,
    matrix: Annotated[
        Path | None,
        typer.Option(
            help="Votes, observed and predicted win rate of every model against every other, as .csv.", metavar="FILE"
        ),
    ] = None,
    json_output: Annotated[
        str | None, typer.Option("--json", help="Write everything as JSON; - is standard output.", metavar="OUT")
    ] = None,
    min_votes: Annotated[int, typer.Option(help="Leave out models with fewer votes.", min=0, metavar="N")] = 0,
    repeats: Annotated[int, typer.Option(help="Bootstrap draws.", min=1, metavar="N")] = 1000,
    seed: Annotated[int, typer.Option(help="The seed of the draws.", min=0, metavar="N")] = 0,
    columns: Columns = None,
    label_values: LabelValues = None,
) -> None:
    """Rank the models of a file by votes or forecasts: ratings with 95 % intervals, from a Bradley-Terry model with
    ties.

    Ratings are Elo points with a mean of 1000. Intervals and ranges of ranks hold 95 % of the draws of a bootstrap
    over first prompts (over rows where there is no prompt column: give forecasts their texts, --with-text). Of
    forecasts, intervals tell what other prompts would change, not how far the forecaster is from people.

    \b
    Examples:
      prefcast rank votes.csv
      prefcast rank votes.csv.gz -o leaderboard.csv --plot leaderboard.svg
      prefcast predict pairs.csv -o forecasts.jsonl --with-text && prefcast rank forecasts.jsonl
    """
    from prefcast.measuring.ranking import rank as ranked
    from prefcast.measuring.ranking import standings_kind, write_matrix, write_standings
    from prefcast.pairs.formats.labels import label_values_of
    from prefcast.pairs.sources import same_file
    from prefcast.report.text import leaderboard_text, write_json

    if output is not None:
        standings_kind(output)
    if matrix is not None and matrix.suffix.lower() != ".csv":
        raise UsageError(f"{matrix}: the matrix of win rates is written as .csv")
    if plot is not None:
        from prefcast.report.plots import plot_kind

        plot_kind(plot)
    outputs = [str(each) for each in (output, plot, matrix, json_output) if each is not None and str(each) != "-"]
    for number, each in enumerate(outputs):
        if file != "-" and same_file(file, each):
            raise UsageError(f"{each}: is the input; write the leaderboard to another file")
        if any(Path(each).absolute() == Path(other).absolute() for other in outputs[:number]):
            raise UsageError(f"{each}: is named for two outputs")
    if file == "-" and sys.stdin is not None and sys.stdin.isatty():
        raise UsageError("standard input is a terminal; pipe a file into it")
    board = ranked(
        file,
        of=None if of is None else of.value,
        columns=columns_of(columns),
        label_values=label_values_of(label_values),
        min_votes=min_votes,
        repeats=repeats,
        seed=seed,
    )
    if output is not None:
        write_standings(board, output)
    if matrix is not None:
        write_matrix(board, matrix)
    if plot is not None:
        from prefcast.report.plots import leaderboard_figure, save_figure

        save_figure(leaderboard_figure(board), plot)
    if json_output is not None:
        write_json(board.to_dict(), json_output)
    if json_output != "-":
        print(leaderboard_text(board))
    if board.faults:
        say(f"{board.faults} rows are at fault and not in the ratings; the first: {board.first_fault}")
        raise typer.Exit(ROWS_FAILED)

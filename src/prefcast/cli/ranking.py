"""The verb that ranks models: rank."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefcast.cli.requests import JSON_OUTPUT, Choosing, Keeping, Reading
from prefcast.cli.shared import app, check_outputs, end_failed, opened, progress, say_paid, source_of
from prefcast.cli.verbs import argument, option, verb
from prefcast.errors import UsageError

if TYPE_CHECKING:
    from prefcast.forecasts.forecaster import Forecaster


@dataclass(frozen=True, kw_only=True)
class Counted:
    """What ratings are made of."""

    of: str | None = option(
        "Rank by votes (labels), by forecasts (the winner_ columns of a predictions file), or by votes on some rows with forecasts of all.  [default: what there is]",
        None,
        "--from",
        choices=("votes", "forecasts", "both"),
    )
    votes: Path | None = option(
        "Votes instead of the labels, by id: id, votes_a, votes_b, votes_tie; or a vote a row: id and winner, as prefcast label writes it.",
        "FILE",
    )
    weights: Path | None = option("How much each row counts: id, weight.", "FILE")
    system_error: float | None = option(
        "For forecasts alone: the forecaster's error for two systems, a standard deviation in win minus loss, like 0.27.  [default: the record of --model or --forecaster]",
        "SHARE",
        least=0.0,
        most=0.99,
    )
    where: list[str] | None = option(
        "Count only the rows with this value in this column; may be given several times.", "COLUMN=VALUE"
    )
    by: str | None = option("A leaderboard for each value of this column too.", "COLUMN")


@dataclass(frozen=True, kw_only=True)
class Rating:
    """How models are rated."""

    anchor: str | None = option("Move all ratings so that this model has this one.", "MODEL=RATING")
    scale: str = option(
        "davidson: ties have a probability of their own. arena: a tie is half a win of either side, as on Arena's leaderboard; ratings lie closer together.",
        default="davidson",
        choices=("davidson", "arena"),
    )
    prior: float | None = option(
        "Expect ratings to differ by so many points (a standard deviation, like 400): a model that never lost then has a rating, with a wide interval.",
        "POINTS",
        least=1.0,
    )
    style: bool = option(
        "Control for the length, list items, headings and bold of the answers; shows the ratings with and without.",
        default=False,
    )
    onto: Path | None = option(
        "Rate only the models that this leaderboard (a file of rank --json) lacks; its own ratings stay.", "BOARD.json"
    )
    min_votes: int = option("Leave out models with fewer votes.", "N", default=0, least=0)
    repeats: int = option("Bootstrap draws.", "N", default=1000, least=1)
    seed: int = option("The seed of the draws.", "N", default=0, least=0)


@verb(app)
def rank(
    *,
    files: list[str] = argument(
        "Votes or forecasts with model_a and model_b, or with --model pairs: CSV, TSV, JSON or Parquet, also .gz or .zst, or a folder of them; several are read as one. - reads standard input.",
        "FILE...",
    ),
    output: Path | None = option("The leaderboard as .csv or .jsonl.", "FILE", "-o"),
    plot: Path | None = option("Ratings and win rates as a plot: .svg, .png or .pdf.", "FILE"),
    matrix: Path | None = option(
        "Votes, observed and predicted win rate of every model against every other, as .csv.", "FILE"
    ),
    json_output: str | None = JSON_OUTPUT,
    counted: Counted,
    rating: Rating,
    choosing: Choosing,
    reading: Reading,
    keeping: Keeping,
) -> None:
    """Rank the models of a file by votes, by forecasts, or by both: ratings with 95 % intervals, from a Bradley-Terry model with
    ties.

    Ratings are Elo points with a mean of 1000, unless --anchor fixes one of them. The intervals tell what other prompts would
    change. Where only some rows have votes, forecasts of all rows make the intervals narrower; they hold whatever the forecasts are
    worth. Intervals of forecasts alone cover the forecaster's own error, too, and are wide (docs/ranking.md).

    \b
    Examples:
      prefcast rank votes.csv
      prefcast rank votes.csv.gz -o leaderboard.csv --plot leaderboard.svg
      prefcast rank pairs.csv --model embedded --votes votes.csv
      prefcast rank battles.jsonl --where anony=true --by language --anchor mixtral-8x7b=1114
      prefcast rank arena.jsonl --style --scale arena
      prefcast rank new-votes.csv --onto board.json
    """
    from prefcast.measuring.ranking import matrix_kind, standings_kind, write_matrix, write_standings
    from prefcast.measuring.ranking import rank as ranked
    from prefcast.report.leaderboards import leaderboard_text
    from prefcast.report.measurements import write_json

    if output is not None:
        standings_kind(output)
    if matrix is not None:
        matrix_kind(matrix)
    if plot is not None:
        from prefcast.report.plots import plot_kind

        plot_kind(plot)
    beside = (counted.votes, counted.weights, rating.onto)
    check_outputs([output, plot, matrix, json_output], [*files, *beside], "the leaderboard")
    file = source_of(files)
    chosen_rows, fixed = _where(counted.where or []), _anchor(rating.anchor)
    choice = choosing.choice()
    with ExitStack() as stack:
        source: Any = file
        error = counted.system_error
        if choice.model is not None or choice.forecaster is not None:
            if counted.of == "votes" or rating.style:
                raise UsageError("--model forecasts the pairs, and this ranking needs none; leave out --model")
            if chosen_rows:
                raise UsageError(
                    "--where chooses rows of a file of votes or forecasts; leave out --model and --forecaster"
                )
            forecaster = _ready(stack, choosing, keeping)
            source = _forecast(stack, files, forecaster, reading, counted.by)
            if error is None and forecaster.calibration is not None:
                error = forecaster.calibration.net
        elif not choice.empty:
            raise UsageError("options of a model go with --model or --forecaster")
        board = ranked(
            source,
            of=counted.of,
            columns=None if source is not file else reading.mapping,
            cells=reading.cells,
            label_values=None if source is not file else reading.labels,
            max_row=reading.max_row,
            where=chosen_rows,
            by=counted.by,
            votes=counted.votes,
            weights=counted.weights,
            anchor=fixed,
            min_votes=rating.min_votes,
            repeats=rating.repeats,
            seed=rating.seed,
            scale=rating.scale,
            prior=rating.prior,
            system_error=error,
            style=rating.style,
            onto=rating.onto,
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
    end_failed(board.faults, f"{board.faults} rows are at fault and not in the ratings; the first: {board.first_fault}")


def _where(parts: list[str]) -> dict[str, str]:
    chosen: dict[str, str] = {}
    for part in parts:
        column, equals, value = part.partition("=")
        if not equals or not column.strip():
            raise UsageError(f"--where: {part!r} is not of the form COLUMN=VALUE, like anony=true")
        if column.strip() in chosen:
            raise UsageError(f"--where: {column.strip()!r} is given twice")
        chosen[column.strip()] = value
    return chosen


def _anchor(text: str | None) -> tuple[str, float] | None:
    from prefcast.pairs.formats.fields import as_number

    if text is None:
        return None
    model, _, rating = text.rpartition("=")
    number = as_number(rating)
    if not model or not isfinite(number):
        raise UsageError(f"--anchor: {text!r} is not of the form MODEL=RATING, like mixtral-8x7b=1114")
    return model, number


def _ready(stack: ExitStack, choosing: Choosing, keeping: Keeping) -> Forecaster:
    from prefcast.forecasts.resolve import resolve
    from prefcast.runs.ready import ready

    return stack.enter_context(ready(resolve(choosing.choice()), keeping.running()))


def _forecast(
    stack: ExitStack, files: Sequence[str], forecaster: Forecaster, reading: Reading, by: str | None
) -> Iterator[Mapping[str, Any]]:
    """The records of forecasts of the pairs in files, as they are made, with the column `by` of the pairs."""
    from prefcast.runs.jobs import forecasts_of
    from prefcast.runs.loop import Tally
    from prefcast.scorers.base import total_spent

    pairs = stack.enter_context(opened(files, reading))
    if by is not None:
        pairs.keep(by)
    show = stack.enter_context(progress(pairs))
    for forecasts in forecasts_of(pairs, forecaster, Tally(), progress=show):
        yield from forecasts.records(with_text=True)
    say_paid(total_spent(forecaster.scorer))

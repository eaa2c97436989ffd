"""The verb that ranks models: rank."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from math import isfinite
from pathlib import Path
from typing import Any

from prefcast.cli.requests import JSON_OUTPUT, Choosing, Keeping, Reading
from prefcast.cli.shared import app, check_outputs, end_failed, opened, progress, say_paid, source_of
from prefcast.cli.verbs import argument, option, verb
from prefcast.errors import UsageError


@verb(app)
def rank(
    *,
    files: list[str] = argument(
        "Votes or forecasts with model_a and model_b, or with --model pairs: CSV, TSV, JSON or Parquet, also .gz or .zst, or a folder of them; several are read as one. - reads standard input.",
        "FILE...",
    ),
    of: str | None = option(
        "Rank by the forecasts in the winner_ columns, or by the votes.  [default: forecasts, if there are any]",
        None,
        "--from",
        choices=("forecasts", "votes"),
    ),
    where: list[str] | None = option(
        "Count only the rows with this value in this column; may be given several times.", "COLUMN=VALUE"
    ),
    anchor: str | None = option("Move all ratings so that this model has this one.", "MODEL=RATING"),
    scale: str = option(
        "davidson: ties have a probability of their own. arena: a tie is half a win of either side, as on Arena's leaderboard; ratings lie closer together.",
        default="davidson",
        choices=("davidson", "arena"),
    ),
    prior: float | None = option(
        "Expect ratings to differ by so many points (a standard deviation, like 400): a model that never lost then has a rating, with a wide interval.",
        "POINTS",
        least=1.0,
    ),
    output: Path | None = option("The leaderboard as .csv or .jsonl.", "FILE", "-o"),
    plot: Path | None = option("Ratings and win rates as a plot: .svg, .png or .pdf.", "FILE"),
    matrix: Path | None = option(
        "Votes, observed and predicted win rate of every model against every other, as .csv.", "FILE"
    ),
    json_output: str | None = JSON_OUTPUT,
    min_votes: int = option("Leave out models with fewer votes.", "N", default=0, least=0),
    repeats: int = option("Bootstrap draws.", "N", default=1000, least=1),
    seed: int = option("The seed of the draws.", "N", default=0, least=0),
    choosing: Choosing,
    reading: Reading,
    keeping: Keeping,
) -> None:
    """Rank the models of a file by votes or forecasts: ratings with 95 % intervals, from a Bradley-Terry model with
    ties.

    Ratings are Elo points with a mean of 1000, unless --anchor fixes one of them. Intervals and ranges of ranks hold 95 % of the draws of a bootstrap
    over first prompts (over rows where there is no prompt column: give forecasts their texts, --with-text). Of
    forecasts, intervals tell what other prompts would change, not how far the forecaster is from people.

    \b
    Examples:
      prefcast rank votes.csv
      prefcast rank votes.csv.gz -o leaderboard.csv --plot leaderboard.svg
      prefcast rank pairs.csv --model embedded
      prefcast rank battles.jsonl --where anony=true --where language=English --anchor mixtral-8x7b=1114
    """
    from prefcast.measuring.ranking import matrix_kind, standings_kind, write_matrix, write_standings
    from prefcast.measuring.ranking import rank as ranked
    from prefcast.report.measurements import leaderboard_text, write_json

    if output is not None:
        standings_kind(output)
    if matrix is not None:
        matrix_kind(matrix)
    if plot is not None:
        from prefcast.report.plots import plot_kind

        plot_kind(plot)
    check_outputs([output, plot, matrix, json_output], files, "the leaderboard")
    file = source_of(files)
    chosen_rows, fixed = _where(where or []), _anchor(anchor)
    choice = choosing.choice()
    with ExitStack() as stack:
        source: Any = file
        if choice.model is not None or choice.forecaster is not None:
            if of == "votes":
                raise UsageError("--model ranks by forecasts; leave out --from votes")
            if chosen_rows:
                raise UsageError(
                    "--where chooses rows of a file of votes or forecasts; leave out --model and --forecaster"
                )
            source, of = _forecast(stack, files, choosing, reading, keeping), "forecasts"
        elif not choice.empty:
            raise UsageError("options of a model go with --model or --forecaster")
        board = ranked(
            source,
            of=of,
            columns=None if source is not file else reading.mapping,
            label_values=None if source is not file else reading.labels,
            max_row=reading.max_row,
            where=chosen_rows,
            anchor=fixed,
            min_votes=min_votes,
            repeats=repeats,
            seed=seed,
            scale=scale,
            prior=prior,
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


def _forecast(
    stack: ExitStack, files: Sequence[str], choosing: Choosing, reading: Reading, keeping: Keeping
) -> Iterator[Mapping[str, Any]]:
    """The records of forecasts of the pairs in files, as they are made."""
    from prefcast.forecasts.resolve import resolve
    from prefcast.runs.jobs import forecasts_of
    from prefcast.runs.loop import Tally
    from prefcast.runs.ready import ready
    from prefcast.scorers.base import total_spent

    pairs = stack.enter_context(opened(files, reading))
    show = stack.enter_context(progress(pairs))
    chosen = stack.enter_context(ready(resolve(choosing.choice()), keeping.running()))
    for forecasts in forecasts_of(pairs, chosen, Tally(), progress=show):
        yield from forecasts.records(with_text=True)
    say_paid(total_spent(chosen.scorer))

"""The verb that reports: report."""

from __future__ import annotations

import os
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated

import typer

from prefcast.cli.measuring import (
    Against,
    JsonOutput,
    Labelled,
    PredictionsFile,
    Repeats,
    measure_as_asked,
    stop_if_failed,
)
from prefcast.cli.shared import (
    BudgetText,
    CellKind,
    Cells,
    Columns,
    Folder,
    LabelValues,
    Model,
    Preset,
    ScoresFile,
    app,
    reward_options,
    say,
)
from prefcast.errors import UsageError, shown_path
from prefcast.scorers.reward import Options

_SURPRISES = 20


@app.command()
@reward_options
def report(
    labelled: Labelled = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="The page: a file that ends in .html.", metavar="OUT.html")
    ] = ...,  # type: ignore[assignment]
    title: Annotated[
        str | None, typer.Option(help="The heading of the page.  [default: names the forecasts]", metavar="TEXT")
    ] = None,
    model: Model = None,
    forecaster: Folder = None,
    scores: ScoresFile = None,
    predictions: PredictionsFile = None,
    against: Against = None,
    budget: BudgetText = None,
    columns: Columns = None,
    cells: CellKind = Cells.json,
    label_values: LabelValues = None,
    json_output: JsonOutput = None,
    preset: Preset = None,
    repeats: Repeats = 1000,
    *,
    options: Options,
) -> None:
    """Measure as `evaluate` does and write it as one HTML page, with charts and the most surprising pairs.

    The page needs no network and holds texts of up to 20 pairs; SOURCE_DATE_EPOCH sets its date.

    \b
    Examples:
      prefcast report train.csv -o report.html
      prefcast report train.csv --model ./skywork-8b --title "Skywork on our votes" -o report.html
      prefcast report --predictions forecasts.jsonl --against other.csv -o report.html
    """
    from prefcast.base.files import atomic_file
    from prefcast.pairs.sources import same_file
    from prefcast.report.html import report_html
    from prefcast.report.text import write_json

    if output.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"{shown_path(output)}: a report is an HTML page; name a file that ends in .html")
    if json_output is not None and (Path(json_output) == output or same_file(json_output, output)):
        raise UsageError(f"{shown_path(output)}: is also the file of --json; name two files")
    today = _today()
    # The file is opened first: a folder that cannot be written is found before hours of forecasting, not after.
    with atomic_file(output) as file:
        name, measured = measure_as_asked(
            labelled,
            model,
            forecaster,
            scores,
            predictions,
            against,
            budget,
            columns,
            cells,
            preset,
            options,
            label_values=label_values,
            outputs=(output,) if json_output is None else (output, json_output),
            surprises=_SURPRISES,
        )
        evaluation = measured.evaluation(repeats=repeats)
        page = report_html(
            evaluation,
            title=f"How good are the forecasts of {name}?" if title is None else title,
            forecaster=name,
            source=None if labelled is None else "standard input" if labelled == "-" else Path(labelled).name,
            date=today.isoformat(),
            surprises=None if labelled is None else measured.surprises,
        )
        if json_output is not None:
            write_json(evaluation.to_dict(), json_output)
        file.write(page.encode("utf-8", "backslashreplace"))
    if json_output != "-":
        print(f"report in {shown_path(output)}")
    if labelled is None:
        say(
            "the report shows no pairs: the predictions or scores came without texts; name the file of labelled pairs as well"
        )
    stop_if_failed(evaluation.failed)


def _today() -> date:
    """Today, or the day of SOURCE_DATE_EPOCH (https://reproducible-builds.org/specs/source-date-epoch/)."""
    seconds = os.environ.get("SOURCE_DATE_EPOCH", "")
    if not seconds:
        return date.today()
    try:
        return datetime.fromtimestamp(int(seconds), UTC).date()
    except (ValueError, OverflowError, OSError):
        raise UsageError(f"SOURCE_DATE_EPOCH must be seconds since 1970, found {seconds!r}") from None

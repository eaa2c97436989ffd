"""The verbs that measure: evaluate."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prefcast.cli.shared import (
    ROWS_FAILED,
    BudgetText,
    CellKind,
    Cells,
    Columns,
    Folder,
    Model,
    Preset,
    app,
    opened,
    progress,
    reward_options,
    say,
    say_truncated,
)
from prefcast.errors import UsageError
from prefcast.scorers.reward import Options

if TYPE_CHECKING:
    from prefcast.evaluation import Measured

__all__ = [
    "Against",
    "JsonOutput",
    "Labelled",
    "PredictionsFile",
    "Repeats",
    "check_no_model",
    "measure_as_asked",
    "stop_if_failed",
]

PredictionsFile = Annotated[
    Path | None,
    typer.Option(
        help="Measure these forecasts (a submission or predictions file) instead of making them.", metavar="FILE"
    ),
]
Against = Annotated[
    Path | None, typer.Option(help="Compare with these forecasts of the same rows, by id.", metavar="FILE")
]
Labelled = Annotated[
    str | None,
    typer.Argument(metavar="LABELLED", help="Labelled pairs; may be left out if the predictions hold labels."),
]
JsonOutput = Annotated[
    str | None, typer.Option("--json", help="Write the figures as JSON; - is standard output.", metavar="OUT")
]
Repeats = Annotated[int, typer.Option(help="Bootstrap repeats.", min=100)]


@app.command()
@reward_options
def evaluate(
    labelled: Labelled = None,
    model: Model = None,
    forecaster: Folder = None,
    predictions: PredictionsFile = None,
    against: Against = None,
    swapped: Annotated[
        Path | None,
        typer.Option(
            help="Forecasts of the same ids with A and B exchanged: tells how far PREDICTIONS depend on the order.",
            metavar="FILE",
        ),
    ] = None,
    slices: Annotated[bool, typer.Option("--slices", help="Show the figures of each kind of rows too.")] = False,
    budget: BudgetText = None,
    columns: Columns = None,
    cells: CellKind = Cells.json,
    json_output: JsonOutput = None,
    preset: Preset = None,
    repeats: Repeats = 1000,
    *,
    options: Options,
) -> None:
    """Measure forecasts on labelled pairs, next to forecasts that anyone can make.

    \b
    Examples:
      prefcast evaluate train.csv --slices
      prefcast evaluate train.csv --model length --json figures.json
      prefcast evaluate --predictions forecasts.jsonl --against other.csv
    """
    from prefcast.figures import evaluation_text
    from prefcast.show import write_json

    title, measured = measure_as_asked(
        labelled,
        model,
        forecaster,
        predictions,
        against,
        budget,
        columns,
        cells,
        preset,
        options,
        swapped=swapped,
        outputs=() if json_output is None else (json_output,),
    )
    evaluation = measured.evaluation(repeats=repeats)
    if json_output is not None:
        write_json(evaluation.to_dict(), json_output)
    if json_output != "-":
        print(evaluation_text(evaluation, title, slices=slices))
    stop_if_failed(evaluation.failed)


def measure_as_asked(
    labelled: str | None,
    model: str | None,
    forecaster: Path | None,
    predictions: Path | None,
    against: Path | None,
    budget: str | None,
    columns: str | None,
    cells: Cells,
    preset: str | None,
    options: Options,
    *,
    swapped: Path | None = None,
    outputs: Sequence[str | Path] = (),
    surprises: int = 0,
) -> tuple[str, Measured]:
    """What the options of `evaluate` name, measured, and what the forecasts are called.

    `outputs` are the files that will be written: UsageError if one of them is an input.
    """
    from prefcast.evaluation import measured_forecasts, measured_predictions
    from prefcast.predictions import read_predictions
    from prefcast.resolve import resolve
    from prefcast.run import same_file

    for output in outputs:
        for name in (labelled, predictions, against, swapped):
            if name is not None and same_file(name, output):
                raise UsageError(f"{output}: is the input; write the figures to another file")
    if swapped is not None and predictions is None:
        raise UsageError("--swapped goes with --predictions; forecasts made here are tried in both orders anyway")
    other = None if against is None else (against.name, read_predictions(against))
    if predictions is not None:
        check_no_model(model, forecaster, budget, preset, options)
        title = predictions.name
        measured = measured_predictions(
            predictions,
            None if labelled is None else opened(labelled, columns, cells),
            surprises=surprises,
            against=other,
            swapped=None if swapped is None else read_predictions(swapped),
        )
    elif labelled is None:
        raise UsageError("name the file of labelled pairs, or --predictions with labels of their own")
    else:
        title = model or (forecaster.name if forecaster else "surface")
        with opened(labelled, columns, cells) as file, progress(file) as show:
            chosen = resolve(model, forecaster, budget, preset, options)
            with closing(chosen.scorer):
                measured = measured_forecasts(file, chosen, progress=show, surprises=surprises, against=other)
        say_truncated(measured.truncated, measured.rows, chosen)
    return title, measured


def stop_if_failed(failed: int) -> None:
    """Exit status 3 if rows failed."""
    if failed:
        say(f"{failed} rows failed and are not in the figures; prefcast check names them")
        raise typer.Exit(ROWS_FAILED)


def check_no_model(
    model: str | None, forecaster: Path | None, budget: str | None, preset: str | None, options: Options
) -> None:
    """UsageError if forecasts that exist come with options that say how to make them."""
    if (model, forecaster, budget, preset) != (None,) * 4 or options != Options():
        raise UsageError(
            "--predictions measures forecasts that exist: leave out what says how to make them (--model, --budget, ...)"
        )

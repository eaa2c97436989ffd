"""The verbs that measure: evaluate."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Annotated

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
    say_reused,
    say_truncated,
)
from prefcast.errors import UsageError
from prefcast.scorers.reward import Options

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
    repeats: Annotated[int, typer.Option(help="Bootstrap repeats.", min=100)] = 1000,
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
    from prefcast.evaluation import measured_forecasts, measured_predictions
    from prefcast.figures import evaluation_text
    from prefcast.predictions import read_predictions
    from prefcast.resolve import resolve
    from prefcast.run import same_file
    from prefcast.show import write_json

    for name in (labelled, predictions, against, swapped):
        if json_output is not None and name is not None and same_file(name, json_output):
            raise UsageError(f"{json_output}: is the input; write the figures to another file")
    if swapped is not None and predictions is None:
        raise UsageError("--swapped goes with --predictions; forecasts made here are tried in both orders anyway")
    other = None if against is None else (against.name, read_predictions(against))
    if predictions is not None:
        check_no_model(model, forecaster, budget, preset, options)
        title = predictions.name
        measured = measured_predictions(
            predictions,
            None if labelled is None else opened(labelled, columns, cells),
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
                measured = measured_forecasts(file, chosen, progress=show, against=other)
        say_reused(chosen.scorer)
        say_truncated(measured.truncated, measured.rows, chosen)
    evaluation = measured.evaluation(repeats=repeats)
    if json_output is not None:
        write_json(evaluation.to_dict(), json_output)
    if json_output != "-":
        print(evaluation_text(evaluation, title, slices=slices))
    if evaluation.failed:
        say(f"{evaluation.failed} rows failed and are not in the figures; prefcast check names them")
        raise typer.Exit(ROWS_FAILED)


def check_no_model(
    model: str | None, forecaster: Path | None, budget: str | None, preset: str | None, options: Options
) -> None:
    """UsageError if forecasts that exist come with options that say how to make them."""
    if (model, forecaster, budget, preset) != (None,) * 4 or options != Options():
        raise UsageError(
            "--predictions measures forecasts that exist: leave out what says how to make them (--model, --budget, ...)"
        )

"""The verbs that measure: evaluate, compare."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, closing
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
    LabelValues,
    Model,
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
from prefcast.errors import UsageError
from prefcast.scorers import DEFAULT
from prefcast.scorers.reward import Options

if TYPE_CHECKING:
    from prefcast.measuring.evaluation import Measured

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
    scores: ScoresFile = None,
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
    label_values: LabelValues = None,
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
    from prefcast.report.tables import evaluation_text
    from prefcast.report.text import write_json

    title, measured = measure_as_asked(
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
        swapped=swapped,
        label_values=label_values,
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
    scores: Path | None,
    predictions: Path | None,
    against: Path | None,
    budget: str | None,
    columns: str | None,
    cells: Cells,
    preset: str | None,
    options: Options,
    *,
    swapped: Path | None = None,
    label_values: str | None = None,
    outputs: Sequence[str | Path] = (),
    surprises: int = 0,
) -> tuple[str, Measured]:
    """What the options of `evaluate` name, measured, and what the forecasts are called.

    `outputs` are the files that will be written: UsageError if one of them is an input.
    """
    from prefcast.forecasts.resolve import for_scores, resolve
    from prefcast.measuring.evaluation import measured_forecasts, measured_predictions, measured_scores
    from prefcast.pairs.formats.labels import label_values_of
    from prefcast.pairs.formats.saved import read_saved
    from prefcast.pairs.sources import same_file

    for output in outputs:
        for name in (labelled, predictions, scores, against, swapped):
            if name is not None and same_file(name, output):
                raise UsageError(f"{output}: is the input; write the figures to another file")
    if swapped is not None and predictions is not None and same_file(swapped, predictions):
        raise UsageError(
            "--swapped is the same file as --predictions; expected forecasts of the pairs with A and B exchanged"
        )
    if swapped is not None and predictions is None:
        raise UsageError("--swapped goes with --predictions; forecasts made here are tried in both orders anyway")
    other = None if against is None else (against.name, read_saved(against))
    if predictions is not None and scores is not None:
        raise UsageError("--predictions measures forecasts that exist, --scores makes them; give one of them")
    if predictions is not None:
        check_no_model(model, forecaster, budget, preset, options)
        title = predictions.name
        measured = measured_predictions(
            predictions,
            None if labelled is None else opened(labelled, columns, cells, label_values),
            surprises=surprises,
            against=other,
            swapped=None if swapped is None else read_saved(swapped),
            label_values=label_values_of(label_values),
        )
    elif labelled is None and scores is not None:
        # The scores hold the labels: they are read a block at a time, and never all held.
        chosen = for_scores(resolve(model, forecaster, budget, preset, options))
        title = scores.name
        measured = measured_scores(scores, chosen, against=other, label_values=label_values_of(label_values))
    elif labelled is None:
        raise UsageError("name the file of labelled pairs, or --predictions with labels of their own")
    else:
        title = Path(model).name if model else forecaster.name if forecaster else DEFAULT
        with opened(labelled, columns, cells, label_values) as file, progress(file) as show:
            chosen = resolve(model, forecaster, budget, preset, options, scores)
            with closing(chosen.scorer):
                measured = measured_forecasts(file, chosen, progress=show, surprises=surprises, against=other)
        say_reused(chosen.scorer)
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


@app.command()
@reward_options
def compare(
    left: Annotated[
        str, typer.Argument(metavar="LEFT", help="One system's answers: prompt and response (or messages), perhaps id.")
    ],
    right: Annotated[str, typer.Argument(metavar="RIGHT", help="The other's, to the same prompts.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Keep the forecast of each pair: .csv, .jsonl, .parquet.")
    ] = None,
    model: Model = None,
    forecaster: Folder = None,
    scores: ScoresFile = None,
    budget: BudgetText = None,
    columns: Annotated[
        str | None,
        typer.Option(help="Your own column names: prompt=instruction,response=output,...", metavar="OURS=YOURS,..."),
    ] = None,
    cells: CellKind = Cells.json,
    json_output: JsonOutput = None,
    preset: Preset = None,
    with_text: Annotated[
        bool, typer.Option("--with-text", help="Keep the texts in a .jsonl or .parquet output.")
    ] = False,
    *,
    options: Options,
) -> None:
    """Say which of two systems people would prefer, from their answers to the same prompts; no labels are needed.

    \b
    Examples:
      prefcast compare yesterday.jsonl today.jsonl
      prefcast compare v1.jsonl v2.jsonl --forecaster my-forecaster -o pairs.jsonl --with-text
    """
    from prefcast.forecasts.predictions import open_writer, output_kind
    from prefcast.forecasts.resolve import resolve
    from prefcast.measuring.comparison import compare as compare_pairs
    from prefcast.pairs.formats.answers import AnswerFile, JoinReport, joined
    from prefcast.pairs.sources import same_file
    from prefcast.report.tables import comparison_text
    from prefcast.report.text import write_json

    if output is not None:
        output_kind(output)
    elif with_text:
        raise UsageError("--with-text needs an output file (-o FILE.jsonl or FILE.parquet)")
    for name in (left, right):
        for written in (output, json_output):
            if written is not None and same_file(name, written):
                raise UsageError(f"{written}: is the input; write to another file")
    names = [Path(name).name for name in (left, right)]
    names = names if names[0] != names[1] else [left, right]
    chosen = resolve(model, forecaster, budget, preset, options, scores)
    report = JoinReport()
    with ExitStack() as stack:
        files = [stack.enter_context(AnswerFile(name, columns_of(columns), cells.value)) for name in (left, right)]
        show = stack.enter_context(progress(files[1]))
        stack.enter_context(closing(chosen.scorer))
        writer = None if output is None else stack.enter_context(open_writer(output, with_text=with_text))
        pairs = joined(files[0], files[1], names, report)
        found = compare_pairs(pairs, chosen, names=names, writer=writer, progress=show)
    if json_output is not None:
        write_json(
            {
                **found.to_dict(),
                "join": {**vars(report), "first_error": report.first_error and str(report.first_error)},
            },
            json_output,
        )
    if json_output != "-":
        print(comparison_text(found, report))
    say_reused(chosen.scorer)
    if failed := report.failed + found.failed:
        say(f"{failed} rows failed; the first: {report.first_error or found.first_error}")
        raise typer.Exit(ROWS_FAILED)

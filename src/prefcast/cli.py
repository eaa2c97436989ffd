"""The command line: one short function a verb.

Exit status 0: done; 2: a fault of the call or the file, nothing written; 3: done, but rows failed.
"""

from __future__ import annotations

import io
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prefcast.errors import PrefcastError, UsageError, printable

if TYPE_CHECKING:
    from prefcast.formats import PairFile

ROWS_FAILED = 3

app = typer.Typer(
    epilog="Start with: prefcast predict examples/pairs.csv",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"prefcast {version('prefcast')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Forecast which of two chatbot answers people will prefer: A, B or a tie."""


class Cells(StrEnum):
    json = "json"
    text = "text"


class OnError(StrEnum):
    keep = "keep"
    stop = "stop"


Pairs = Annotated[
    str, typer.Argument(metavar="PAIRS", help="CSV, TSV, JSON Lines or Parquet, also .gz or .zst; - is standard input.")
]
Columns = Annotated[
    str | None,
    typer.Option(help="Your own column names: prompt=question,response_a=left,...", metavar="OURS=YOURS,..."),
]
CellKind = Annotated[
    Cells, typer.Option(help="What a text cell holds: a JSON array of turns, or one turn as plain text.")
]
Model = Annotated[
    str | None,
    typer.Option(help="A built-in model; `prefcast models` lists them.  [default: surface]", show_default=False),
]
Folder = Annotated[
    Path | None,
    typer.Option("--forecaster", help="A folder with a forecaster, instead of a built-in model.", metavar="DIR"),
]
BudgetText = Annotated[
    str | None,
    typer.Option(
        "--budget",
        help="What is read of each pair: keep-last, proportional or notebook; keep-last:8000 sets the characters.",
        metavar="POLICY[:N]",
    ),
]


@app.command()
def predict(
    pairs: Pairs,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help=".csv: Kaggle submission; .jsonl, .parquet: everything. Without it, a table is printed.",
        ),
    ] = None,
    model: Model = None,
    forecaster: Folder = None,
    budget: BudgetText = None,
    columns: Columns = None,
    cells: CellKind = Cells.json,
    on_error: Annotated[
        OnError, typer.Option(help="A row that fails: keep it with the class prior (exit status 3), or stop (2).")
    ] = OnError.keep,
    with_text: Annotated[
        bool, typer.Option("--with-text", help="Keep the texts in a .jsonl or .parquet output.")
    ] = False,
) -> None:
    """Forecast every pair of a file.

    \b
    Examples:
      prefcast predict test.csv -o submission.csv
      prefcast predict pairs.jsonl.zst -o forecasts.parquet --with-text
      zcat pairs.csv.gz | prefcast predict - -o forecasts.jsonl
    """
    from prefcast.predictions import open_writer, output_kind
    from prefcast.run import predict_to, resolve, same_file
    from prefcast.show import TableWriter

    if output is None and with_text:
        raise UsageError("--with-text needs an output file (-o FILE.jsonl or FILE.parquet)")
    if output is not None:
        output_kind(output)
        if pairs != "-" and same_file(pairs, output):
            raise UsageError(f"{output}: is the input; write the forecasts to another file")
    chosen = resolve(model, forecaster, budget)
    with _opened(pairs, columns, cells) as file, _progress(file) as progress:
        if output is None:
            report = predict_to(TableWriter(sys.stdout), file, chosen, on_error=on_error.value, progress=progress)
        else:
            with open_writer(output, with_text=with_text) as writer:
                report = predict_to(writer, file, chosen, on_error=on_error.value, progress=progress)
    if output is not None and sys.stderr.isatty():
        truncated = f", {report.truncated} truncated" if report.truncated else ""
        _say(
            f"{report.rows} forecasts in {output} ({report.seconds:.1f} s, {report.rows / report.seconds:.0f} pairs a second{truncated})"
        )
    if report.failed:
        _say(f"{report.failed} of {report.rows} rows failed and got the class prior; the first: {report.first_error}")
        raise typer.Exit(ROWS_FAILED)


@app.command()
def evaluate(
    labelled: Annotated[
        str | None,
        typer.Argument(metavar="LABELLED", help="Labelled pairs; may be left out if the predictions hold labels."),
    ] = None,
    model: Model = None,
    forecaster: Folder = None,
    predictions: Annotated[
        Path | None,
        typer.Option(
            help="Measure these forecasts (a submission or predictions file) instead of making them.", metavar="FILE"
        ),
    ] = None,
    budget: BudgetText = None,
    columns: Columns = None,
    cells: CellKind = Cells.json,
    json_output: Annotated[
        str | None, typer.Option("--json", help="Write the figures as JSON; - is standard output.", metavar="OUT")
    ] = None,
) -> None:
    """Measure forecasts on labelled pairs, next to the class prior and to a uniform guess.

    \b
    Examples:
      prefcast evaluate train.csv
      prefcast evaluate train.csv --model length --json figures.json
      prefcast evaluate train.csv --predictions submission.csv
    """
    from prefcast.predictions import read_predictions
    from prefcast.run import evaluate as measure
    from prefcast.run import evaluate_predictions, same_file
    from prefcast.show import evaluation_text, write_json

    for name in (labelled, predictions):
        if json_output is not None and name is not None and same_file(name, json_output):
            raise UsageError(f"{json_output}: is the input; write the figures to another file")
    if predictions is not None:
        if model is not None or forecaster is not None or budget is not None:
            raise UsageError(
                "--predictions measures forecasts that exist: leave out --model, --forecaster and --budget"
            )
        read = read_predictions(predictions)
        title = predictions.name
        if labelled is None:
            evaluation = evaluate_predictions(read)
        else:
            with _opened(labelled, columns, cells) as file:
                evaluation = evaluate_predictions(read, file)
    elif labelled is None:
        raise UsageError("name the file of labelled pairs, or --predictions with labels of their own")
    else:
        title = model or (forecaster.name if forecaster else "surface")
        with _opened(labelled, columns, cells) as file, _progress(file) as progress:
            evaluation = measure(file, model=model, forecaster=forecaster, budget=budget, progress=progress)
    if json_output is not None:
        write_json(evaluation.to_dict(), json_output)
    if json_output != "-":
        print(evaluation_text(evaluation, title))
    if evaluation.failed:
        _say(f"{evaluation.failed} rows failed and are not in the figures; prefcast check names them")
        raise typer.Exit(ROWS_FAILED)


@app.command()
def explain(
    pairs: Pairs,
    id: Annotated[str, typer.Option("--id", help="The id of the pair (the row number where the file has no ids).")],
    model: Model = None,
    forecaster: Folder = None,
    budget: BudgetText = None,
    columns: Columns = None,
    cells: CellKind = Cells.json,
) -> None:
    """Show one pair's forecast and what moved it.

    \b
    Example:
      prefcast explain examples/pairs.csv --id ex-07
    """
    from prefcast.run import find_pair, resolve
    from prefcast.show import explanation_text

    chosen = resolve(model, forecaster, budget)
    with _opened(pairs, columns, cells) as file:
        pair = find_pair(file, id)
    print(explanation_text(pair, chosen.explain(pair)))


@app.command()
def check(pairs: Pairs, columns: Columns = None, cells: CellKind = Cells.json) -> None:
    """Read a file without forecasting: its format, rows, turns, labels, every fault, and how long a forecast would
    take here.

    \b
    Example:
      prefcast check pairs.csv --columns prompt=question,response_a=left,response_b=right --cells text
    """
    from prefcast.check import inspect
    from prefcast.show import inspection_text

    with _opened(pairs, columns, cells) as file, _progress(file) as progress:
        found = inspect(file, on_fault=lambda error: print(printable(str(error))), progress=progress)
    print(inspection_text(found))
    if found.failed:
        raise typer.Exit(ROWS_FAILED)


@app.command()
def models() -> None:
    """List the models that can be used and what each needs."""
    from prefcast.scorers import SCORERS
    from prefcast.show import models_text

    print(models_text(SCORERS))


def _opened(pairs: str, columns: str | None, cells: Cells) -> PairFile:
    from prefcast.formats import open_pairs

    if pairs == "-" and sys.stdin is not None and sys.stdin.isatty():
        raise UsageError("standard input is a terminal; pipe a file into it")
    file = open_pairs(pairs, columns=_mapping(columns), cells=cells.value)
    if file.shape.note:
        _say(f"{file.name}: {file.shape.note}")
    return file


def _mapping(columns: str | None) -> dict[str, str]:
    mapping: dict[str, str] = {}
    for part in columns.split(",") if columns else []:
        ours, equals, theirs = part.partition("=")
        if not equals or not ours.strip() or not theirs.strip():
            raise UsageError(f"--columns: {part!r} is not of the form prompt=question")
        if ours.strip() in mapping:
            raise UsageError(f"--columns: {ours.strip()!r} is mapped twice")
        mapping[ours.strip()] = theirs.strip()
    return mapping


@contextmanager
def _progress(file: PairFile) -> Iterator[Callable[[int], None] | None]:
    """A bar on a terminal, nothing in a pipe."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(
        TextColumn("{task.completed} rows"),
        BarColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        rows = bar.add_task("")
        size = file.progress[1]

        def show(done: int) -> None:
            read = file.progress[0]
            # The total is what the bytes read so far promise; standard input promises nothing.
            bar.update(rows, completed=done, total=done * size / read if read and size else None)

        yield show


def _say(text: str) -> None:
    print(f"prefcast: {printable(text)}", file=sys.stderr)


_STOPPING = ("SIGINT", "SIGTERM", "SIGHUP")


def _stop(number: int, frame: object) -> None:
    # Cleaning up is not to be interrupted by a second one.
    for name in _STOPPING:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    _say(f"stopped by {signal.Signals(number).name}; an output file is written whole or not at all")
    raise SystemExit(128 + number)


def main() -> None:
    """The entry point: a fault that the user can mend is one line and status 2, never a traceback."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    # As an exception a signal lets temporary files be removed.
    for name in _STOPPING:
        # What the parent said to ignore (nohup, a job in the background) stays ignored.
        if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) is not signal.SIG_IGN:
            signal.signal(getattr(signal, name), _stop)
    try:
        app()
    except PrefcastError as error:
        _say(str(error))
        raise SystemExit(2) from None
    except BrokenPipeError:
        # The reader of a pipe has gone; nothing more can be said to it.
        sys.stderr.close()
        raise SystemExit(1) from None
    except OSError as error:
        _say(f"{error.filename or 'writing'}: {error.strerror or error}")
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()

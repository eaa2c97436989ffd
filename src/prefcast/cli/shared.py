"""What the verbs share: the program, opened files, checks of outputs, bars, and lines on standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol

import typer

from prefcast.cli.requests import Reading
from prefcast.errors import UsageError, shown_path
from prefcast.runs.log import Log

if TYPE_CHECKING:
    from prefcast.forecasts.forecaster import Forecaster
    from prefcast.pairs.formats import PairFile
    from prefcast.scorers.base import Spent

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


def say_truncated(truncated: int, rows: int, forecaster: Forecaster) -> None:
    """Tell of rows that were not read whole."""
    if truncated:
        limit = forecaster.scorer.limit
        tokens = None if limit is None else limit.limit if limit.name.endswith("tokens") else str(limit)
        most = f"{forecaster.budget}" if tokens is None else f"{tokens} tokens, {forecaster.budget}"
        say(f"{truncated} of {rows} rows were truncated ({most}); .jsonl and .parquet outputs tell which")


def say_literal(literal: int, rows: int) -> None:
    """Tell of rows in which the literal reading of special tokens changes what the model's template does."""
    if literal:
        say(
            f"in {literal} of {rows} rows a text has a special token that the model's template would act on; it was read "
            "letter by letter (--special-tokens original parses it)"
        )


def say_escalated(escalated: int | None, rows: int) -> None:
    """Tell how many rows the second tier of a cascade scored."""
    if escalated is not None and rows:
        say(f"the second tier scored {escalated:,} of {rows:,} rows ({escalated / rows:.1%})")


def say_restored(restored: int, rows: int) -> None:
    """Tell of rows whose evidence was in the store."""
    if restored:
        say(f"{restored:,} of {rows:,} rows were scored before and not again (--fresh scores them again)")


def say_paid(spent: Spent, what: str = "judges") -> None:
    """Tell what a model that is paid for took in this run."""
    if spent.requests:
        money = f"; it cost {spent.money:.6g}" if spent.money else ""
        say(
            f"{spent.requests:,} requests to {what}; tokens: {spent.tokens_read:,} read, {spent.tokens_written:,} written{money}"
        )


def end_failed(failed: int, text: str = "") -> None:
    """Exit status 3 if rows failed; `text` says how many."""
    if failed:
        if text:
            say(text)
        raise typer.Exit(ROWS_FAILED)


def check_with_text(output: object, with_text: bool, endings: str = "FILE.jsonl or FILE.parquet") -> None:
    """UsageError where texts are asked for and no output can hold them."""
    if output is None and with_text:
        raise UsageError(f"--with-text needs an output file (-o {endings})")


def opened(pairs: str | Sequence[str], reading: Reading, *, single: bool = False) -> PairFile:
    """The file of pairs, or with `single` perhaps of single answers, opened; several files are read as one. A line says what its format means, where that
    needs one."""
    from prefcast.pairs.formats import open_pairs

    file = open_pairs(
        source_of([pairs] if isinstance(pairs, str) else pairs),
        columns=reading.mapping,
        cells=reading.cells,
        label_values=reading.labels,
        max_row=reading.max_row,
        single=single,
    )
    if file.shape.note:
        say(f"{file.name}: {file.shape.note}")
    return file


def source_of(files: Sequence[str]) -> str | list[str]:
    """What was named, as the library takes it: one file, or several that are read as one."""
    for each in files:
        check_input(each)
    if len(files) > 1 and "-" in files:
        raise UsageError("standard input (-) cannot be read together with other files")
    return files[0] if len(files) == 1 else list(files)


def one_file(pairs: Sequence[str], why: str) -> str:
    """The one file that was named; UsageError where there are several, which says `why` there must be one."""
    if len(pairs) > 1:
        raise UsageError(f"{why}; {len(pairs)} files were named")
    return pairs[0]


def check_input(file: str) -> None:
    """UsageError where the file is standard input and standard input is a terminal."""
    if file == "-" and sys.stdin is not None and sys.stdin.isatty():
        raise UsageError("standard input is a terminal; pipe a file into it")


def check_outputs(
    outputs: Iterable[str | Path | None], inputs: Iterable[str | Path | None], what: str = "the result"
) -> None:
    """UsageError where an output is an input, or two outputs are one file. None and - are never at fault."""
    from prefcast.pairs.sources import same_file

    named = [each for each in outputs if each is not None and str(each) != "-"]
    for number, output in enumerate(named):
        for name in inputs:
            if name is not None and str(name) != "-" and same_file(name, output):
                raise UsageError(f"{shown_path(output)}: is the input; write {what} to another file")
        if any(Path(output).absolute() == Path(other).absolute() for other in named[:number]):
            raise UsageError(f"{shown_path(output)}: is named for two outputs; name two files")


class HowFar(Protocol):
    """What says how far it has been read."""

    @property
    def progress(self) -> tuple[int, int]: ...

    @property
    def rows_read(self) -> int: ...


Draw = Callable[[str, int, float | None], object]


@contextmanager
def bar() -> Iterator[Draw | None]:
    """On a terminal, a function that draws a bar: a text, how much is done, and of how much. None in a pipe."""
    if LOG.as_json or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as drawn:
        task = drawn.add_task("")
        yield lambda text, done, total: drawn.update(task, description=text, completed=done, total=total)


@contextmanager
def progress(file: HowFar) -> Iterator[Callable[[int], None] | None]:
    """A bar of the rows of a file that are done."""
    with bar() as draw:
        if draw is None:
            yield None
            return

        def show(done: int) -> None:
            read, size = file.progress
            # The total is estimated from what was read so far; the size of standard input is unknown.
            draw(f"{done} rows", done, max(done, file.rows_read * size / read) if read and size else None)

        show(0)
        yield show


# Standard error; a run may want it as JSON.
LOG = Log()


def say(text: str) -> None:
    """A line on standard error."""
    LOG.say(text)

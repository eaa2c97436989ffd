"""What the verbs share: the program, options that several of them have, opening files, saying things."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol, get_type_hints

import typer

from prefcast.errors import UsageError
from prefcast.runs.log import Log
from prefcast.scorers.reward import Options

if TYPE_CHECKING:
    from prefcast.forecasts.forecaster import Forecaster
    from prefcast.pairs.formats import PairFile
    from prefcast.scorers import Scorer

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
    str,
    typer.Argument(
        metavar="PAIRS", help="CSV, TSV, JSON or Parquet, also .gz or .zst, or a folder of them; - is standard input."
    ),
]
Columns = Annotated[
    str | None,
    typer.Option(help="Your own column names: prompt=question,response_a=left,...", metavar="OURS=YOURS,..."),
]
LabelValues = Annotated[
    str | None,
    typer.Option(
        "--label-values",
        help="What your own labels in the columns winner and label mean: a, b or tie, as in 'A>B=a,B>A=b,A=B=tie'.",
        metavar="VALUE=a|b|tie,...",
    ),
]
CellKind = Annotated[
    Cells, typer.Option(help="What a text cell holds: a JSON array of turns, or one turn as plain text.")
]
Model = Annotated[
    str | None,
    typer.Option(
        help="A built-in model (`prefcast models` lists them), a folder with a reward model, or its hub id.  [default: embedded]",
        metavar="NAME|PATH|ID",
        show_default=False,
    ),
]
Folder = Annotated[
    Path | None,
    typer.Option("--forecaster", help="A folder with a forecaster, instead of a built-in model.", metavar="DIR"),
]
BudgetText = Annotated[
    str | None,
    typer.Option(
        "--budget",
        help="What is read of each pair: keep-last, proportional, notebook or whole; keep-last:8000 sets the characters.",
        metavar="POLICY[:N]",
    ),
]


ScoresFile = Annotated[
    Path | None,
    typer.Option(
        "--scores",
        help="Your own scores of these pairs, by id, for a forecaster that was fitted to such.",
        metavar="FILE",
    ),
]
OnErrorOption = Annotated[OnError, typer.Option(help="A row that fails: keep it, marked (exit status 3), or stop (2).")]
Preset = Annotated[
    str | None,
    typer.Option(
        help="notebook: the Kaggle notebook's budget, 4 bit weights and rule, for a reward model.", metavar="NAME"
    ),
]


class SpecialTokens(StrEnum):
    literal = "literal"
    original = "original"


class DType(StrEnum):
    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


class Quantize(StrEnum):
    nf4 = "nf4"
    int8 = "int8"


class Quantization(StrEnum):
    nf4 = "nf4"
    int8 = "int8"
    none = "none"


REWARD = "Reward models"
REWARD_OPTIONS: dict[str, tuple[Any, Any]] = {
    "dtype": (DType | None, typer.Option(help="What a reward model computes in.  [default: float32 on a CPU]")),
    "quantize": (Quantization | None, typer.Option(help="Hold the weights of a reward model in 4 or 8 bit.")),
    "devices": (
        str | None,
        typer.Option(help="Where: auto, cpu, cuda:0,cuda:1; one replica on each.  [default: auto]", metavar="LIST"),
    ),
    "shard": (bool, typer.Option("--spread", help="Spread one model over the devices instead.")),
    "special_tokens": (
        SpecialTokens | None,
        typer.Option(help="Special tokens inside a text: read letter by letter, or parsed.  [default: literal]"),
    ),
    "max_tokens": (
        int | None,
        typer.Option(help="The most tokens of a conversation that are read.  [default: the model's limit]", min=1),
    ),
    "template": (
        str | None,
        typer.Option(help="The prompt of a pair classifier: lmsys, rlhflow or a Jinja file.", metavar="NAME|FILE"),
    ),
    "labels": (
        str | None,
        typer.Option(help="The outputs of a pair classifier, in order.", metavar="a,b,tie"),
    ),
    "batch_tokens": (int | None, typer.Option(help="Tokens in a batch.", min=1)),
    "trust_remote_code": (
        bool,
        typer.Option("--trust-remote-code", help="Run Python code that comes with the checkpoint. It can do anything."),
    ),
    "keep": (
        bool,
        typer.Option("--keep-scores/--no-keep-scores", help="Keep scores, and do not score again what was scored."),
    ),
}


def with_options(
    verb: Callable[..., None], name: str, table: dict[str, tuple[Any, Any]], made: Callable[[dict[str, Any]], Any]
) -> Callable[..., None]:
    """Give a verb the options of a table; it receives what `made` makes of them as its argument `name`, whose default
    they take theirs from."""
    hints = get_type_hints(verb, include_extras=True)
    own = [
        each.replace(annotation=hints[each.name]) for each in signature(verb).parameters.values() if each.name != name
    ]
    defaults = hints[name]()
    more = [
        Parameter(option, Parameter.KEYWORD_ONLY, default=getattr(defaults, option), annotation=Annotated[kind, said])
        for option, (kind, said) in table.items()
    ]

    def command(**given: Any) -> None:
        said = {option: given.pop(option) for option in table}
        said = {option: value.value if isinstance(value, StrEnum) else value for option, value in said.items()}
        verb(**given, **{name: made(said)})

    command.__name__, command.__doc__ = verb.__name__, verb.__doc__
    command.__signature__ = Signature([each.replace(kind=Parameter.KEYWORD_ONLY) for each in [*own, *more]])  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in [*own, *more]}
    return command


def reward_options(verb: Callable[..., None]) -> Callable[..., None]:
    """Give a verb the options of reward models; it receives them as one `options`."""

    def made(said: dict[str, Any]) -> Options:
        if said["labels"] is not None:
            said["labels"] = tuple(label.strip() for label in said["labels"].split(","))
        return Options(**said)

    return with_options(verb, "options", REWARD_OPTIONS, made)


def say_truncated(truncated: int, rows: int, forecaster: Forecaster) -> None:
    """Tell of rows that were not read whole."""
    if truncated:
        limit = forecaster.scorer.limit
        tokens = None if limit is None else limit.limit if limit.name.endswith("tokens") else str(limit)
        most = f"{forecaster.budget}" if tokens is None else f"{tokens} tokens, {forecaster.budget}"
        say(f"{truncated} of {rows} rows were truncated ({most}); .jsonl and .parquet outputs tell which")


def say_reused(scorer: Scorer) -> None:
    """Tell of sequences that an earlier run had scored."""
    if scorer.reused:
        say(
            f"{scorer.reused:,} of {scorer.reused + scorer.computed:,} sequences were scored before and not again "
            "(--no-keep-scores scores anew)"
        )


def opened(pairs: str, columns: str | None, cells: Cells, label_values: str | None = None) -> PairFile:
    from prefcast.pairs.formats import open_pairs
    from prefcast.pairs.formats.labels import label_values_of

    if pairs == "-" and sys.stdin is not None and sys.stdin.isatty():
        raise UsageError("standard input is a terminal; pipe a file into it")
    values = label_values_of(label_values)
    file = open_pairs(pairs, columns=columns_of(columns), cells=cells.value, label_values=values)
    if file.shape.note:
        say(f"{file.name}: {file.shape.note}")
    return file


def columns_of(columns: str | None) -> dict[str, str]:
    """What --columns says: our names -> theirs."""
    mapping: dict[str, str] = {}
    for part in columns.split(",") if columns else []:
        ours, equals, theirs = part.partition("=")
        if not equals or not ours.strip() or not theirs.strip():
            raise UsageError(f"--columns: {part!r} is not of the form prompt=question")
        if ours.strip() in mapping:
            raise UsageError(f"--columns: {ours.strip()!r} is mapped twice")
        mapping[ours.strip()] = theirs.strip()
    return mapping


class HowFar(Protocol):
    """What says how far it has been read."""

    @property
    def progress(self) -> tuple[int, int]: ...


@contextmanager
def progress(file: HowFar) -> Iterator[Callable[[int], None] | None]:
    """A bar on a terminal, nothing in a pipe."""
    if LOG.as_json or not sys.stderr.isatty():
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


# Standard error; a run may want it as JSON.
LOG = Log()


def say(text: str) -> None:
    LOG.say(text)

"""The requests of which verbs are made, and the options that several verbs have.

A request's fields are options of the command line; its method gives the library's own request object.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, make_dataclass
from enum import StrEnum
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_type_hints

import typer

from prefcast.errors import UsageError
from prefcast.scorers.options import which
from prefcast.scorers.reward import Options

if TYPE_CHECKING:
    from prefcast.forecasts.resolve import Choice
    from prefcast.runs.ready import Running

__all__ = [
    "BudgetText",
    "Cells",
    "Choosing",
    "Engine",
    "JsonOutput",
    "Keeping",
    "LogKind",
    "LongRun",
    "OnError",
    "OnErrorOption",
    "Pairs",
    "Reading",
    "RewardOptions",
    "ScoresFile",
    "Storing",
    "WithText",
    "columns_of",
]

_REWARD, _EVIDENCE, _LONG, _CLUSTER = "Reward models", "Evidence and workers", "Long runs", "Cluster"


# Made from a list of names, which a type checker cannot follow.
_ENUM: Any = StrEnum


class Cells(StrEnum):
    json = "json"
    text = "text"


class OnError(StrEnum):
    keep = "keep"
    stop = "stop"


class LogKind(StrEnum):
    text = "text"
    json = "json"


class Engine(StrEnum):
    local = "local"
    ray = "ray"


Pairs = Annotated[
    str,
    typer.Argument(
        metavar="PAIRS",
        help="A file of pairs: CSV, TSV, JSON or Parquet, also .gz or .zst, or a folder of them. - reads standard input.",
    ),
]
JsonOutput = Annotated[
    str | None,
    typer.Option("--json", help="Write the result as JSON to this file; - is standard output.", metavar="OUT"),
]
OnErrorOption = Annotated[
    OnError, typer.Option(help="What a row that fails does: keep it, marked (exit status 3), or stop the run (2).")
]
WithText = Annotated[bool, typer.Option("--with-text", help="Keep the texts in a .jsonl or .parquet output.")]
BudgetText = Annotated[
    str | None,
    typer.Option(
        "--budget",
        help="How much of each pair is read: keep-last, proportional, notebook or whole; keep-last:8000 sets the characters.",
        metavar="POLICY[:N]",
    ),
]
ScoresFile = Annotated[
    Path | None,
    typer.Option(
        "--scores",
        help="Your own scores of these pairs, by id, for a forecaster that was fitted to scores.",
        metavar="FILE",
    ),
]


@dataclass(frozen=True)
class Reading:
    """How a file is read."""

    columns: Annotated[
        str | None,
        typer.Option(help="Your own column names: prompt=question,response_a=left,...", metavar="OURS=YOURS,..."),
    ] = None
    cells: Annotated[
        Cells, typer.Option(help="What a text cell holds: a JSON array of turns, or one turn as plain text.")
    ] = Cells.json
    label_values: Annotated[
        str | None,
        typer.Option(
            help="What your own labels in the columns winner and label mean: a, b or tie, as in 'A>B=a,B>A=b,A=B=tie'.",
            metavar="VALUE=a|b|tie,...",
        ),
    ] = None

    @property
    def labels(self) -> dict[str, str]:
        """Labels of the file -> a, b or tie."""
        from prefcast.pairs.formats.labels import label_values_of

        return label_values_of(self.label_values)

    @property
    def mapping(self) -> dict[str, str]:
        """Our column names -> those of the file."""
        return columns_of(self.columns)


def columns_of(columns: str | None) -> dict[str, str]:
    """What --columns says: our names -> those of the file. Raises UsageError."""
    mapping: dict[str, str] = {}
    for part in columns.split(",") if columns else []:
        ours, equals, theirs = part.partition("=")
        if not equals or not ours.strip() or not theirs.strip():
            raise UsageError(f"--columns: {part!r} is not of the form prompt=question")
        if ours.strip() in mapping:
            raise UsageError(f"--columns: {ours.strip()!r} is mapped twice")
        mapping[ours.strip()] = theirs.strip()
    return mapping


def _reward_fields() -> list[tuple[str, Any, Any]]:
    """The options of reward models as options of the command line."""
    hints, found = get_type_hints(Options), []
    for each in fields(Options):
        about = which(Options)[each.name]
        if not about.help:
            continue
        kinds = [kind for kind in get_args(hints[each.name]) or (hints[each.name],) if kind is not NoneType]
        # A list is one text with commas.
        kind: Any = next((simple for simple in kinds if simple in (bool, int, float)), str)
        if about.choices:
            kind = _ENUM(each.name, {choice: choice for choice in about.choices})
        flag = f"--{each.name.replace('_', '-')}"
        option = typer.Option(
            flag,
            help=about.help,
            metavar=about.metavar,
            min=about.least,
            rich_help_panel=_REWARD,
        )
        found.append((each.name, Annotated[kind if kind is bool else kind | None, option], each.default))
    more = typer.Option(
        help="An option of a scorer that another package adds; may be given several times.",
        metavar="NAME=VALUE",
        rich_help_panel=_REWARD,
    )
    return [*found, ("option", Annotated[list[str] | None, more], None)]


class _Reward:
    """The options of reward models, and of scorers that other packages add."""

    def options(self) -> Options:
        """The options of reward models."""
        said = {each.name: getattr(self, each.name) for each in fields(Options) if which(Options)[each.name].help}
        if said["labels"] is not None:
            said["labels"] = tuple(label.strip() for label in said["labels"].split(","))
        return Options(**said)

    def more(self) -> tuple[str, ...]:
        """The options of a scorer that another package adds, as texts."""
        return tuple(self.option or ())  # type: ignore[attr-defined]


@dataclass(frozen=True)
class _Choosing(_Reward):
    """What forecasts."""

    model: Annotated[
        str | None,
        typer.Option(
            help="A built-in model (`prefcast models` lists them), a folder with a reward model, or its hub id.  [default: embedded]",
            metavar="NAME|PATH|ID",
            show_default=False,
        ),
    ] = None
    forecaster: Annotated[
        Path | None, typer.Option(help="A folder with a forecaster, instead of a built-in model.", metavar="DIR")
    ] = None
    budget: BudgetText = None
    preset: Annotated[
        str | None,
        typer.Option(
            help="notebook: the Kaggle notebook's budget, 4 bit weights and rule, for a reward model.", metavar="NAME"
        ),
    ] = None

    def choice(self, scores: Path | None = None) -> Choice:
        """The library's request, with the options of the model."""
        from prefcast.forecasts.resolve import Choice

        return Choice(self.model, self.forecaster, scores, self.budget, self.preset, self.options(), self.more())


if TYPE_CHECKING:

    @dataclass(frozen=True)
    class RewardOptions(_Reward): ...

    @dataclass(frozen=True)
    class Choosing(_Choosing): ...

else:
    RewardOptions = make_dataclass("RewardOptions", _reward_fields(), bases=(_Reward,), frozen=True)
    Choosing = make_dataclass("Choosing", _reward_fields(), bases=(_Choosing,), frozen=True)


@dataclass(frozen=True)
class Storing:
    """Where evidence is kept."""

    store: Annotated[
        Path | None,
        typer.Option(
            help="The evidence store: what was scored is kept there and not scored again.  [default: in the user's cache folder]",
            metavar="FILE",
            rich_help_panel=_EVIDENCE,
            show_default=False,
        ),
    ] = None
    no_store: Annotated[
        bool, typer.Option("--no-store", help="Keep no evidence and use none.", rich_help_panel=_EVIDENCE)
    ] = False
    fresh: Annotated[
        bool,
        typer.Option(
            "--fresh", help="Score everything again and replace what the store has.", rich_help_panel=_EVIDENCE
        ),
    ] = False


@dataclass(frozen=True)
class Keeping(Storing):
    """Where evidence is kept, and which processes compute it."""

    isolate: Annotated[
        bool,
        typer.Option(
            "--isolate",
            help="Score in worker processes: a row that ends its process becomes an error of that row.",
            rich_help_panel=_EVIDENCE,
        ),
    ] = False
    time_limit: Annotated[
        float | None,
        typer.Option(
            help="The most seconds that a batch may take; implies --isolate.",
            metavar="SECONDS",
            min=0.1,
            rich_help_panel=_EVIDENCE,
        ),
    ] = None

    def running(self) -> Running:
        """The library's request."""
        from prefcast.runs.ready import Running

        return Running(self.store, not self.no_store, self.fresh, self.isolate, self.time_limit)


@dataclass(frozen=True)
class LongRun:
    """How a long run is carried out."""

    shard: Annotated[
        str | None,
        typer.Option(
            help="Do part I of N, into OUTPUT.shard-I-of-N; prefcast merge joins the parts.",
            metavar="I/N",
            rich_help_panel=_LONG,
        ),
    ] = None
    log: Annotated[
        LogKind,
        typer.Option(
            help="What standard error gets: text for people, or one JSON object an event.", rich_help_panel=_LONG
        ),
    ] = LogKind.text
    engine: Annotated[
        Engine,
        typer.Option(
            help="local: this machine. ray: Ray actors (pip install 'prefcast[ray]').", rich_help_panel=_CLUSTER
        ),
    ] = Engine.local
    ray_address: Annotated[
        str | None,
        typer.Option(
            help="A running Ray cluster: HOST:PORT, or auto.  [default: one started on this machine]",
            metavar="ADDRESS",
            rich_help_panel=_CLUSTER,
            show_default=False,
        ),
    ] = None
    actors: Annotated[
        int | None,
        typer.Option(
            help="How many Ray actors.  [default: as many as there is room for]",
            min=1,
            metavar="N",
            rich_help_panel=_CLUSTER,
            show_default=False,
        ),
    ] = None
    cpus_per_actor: Annotated[
        int | None,
        typer.Option(
            help="Processors, and threads, of each Ray actor.  [default: 1]",
            min=1,
            metavar="C",
            rich_help_panel=_CLUSTER,
            show_default=False,
        ),
    ] = None
    gpus_per_actor: Annotated[
        float | None,
        typer.Option(
            help="GPUs of each Ray actor; with 0.5 two actors share one GPU.  [default: 0]",
            min=0.0,
            metavar="G",
            rich_help_panel=_CLUSTER,
            show_default=False,
        ),
    ] = None

    @property
    def by_ray(self) -> bool:
        """Whether a cluster does the run."""
        return self.engine == Engine.ray

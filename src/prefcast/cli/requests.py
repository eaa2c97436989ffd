"""The options that several verbs have, alone or as requests. A method of a request gives the library's own request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from prefcast.base.limits import MAX_ROW
from prefcast.cli.verbs import argument, option
from prefcast.errors import UsageError
from prefcast.scorers import cascade
from prefcast.scorers.judge import PREFIX
from prefcast.scorers.judge import Options as JudgeOptions
from prefcast.scorers.remote import Options as Server
from prefcast.scorers.reward import Options

if TYPE_CHECKING:
    from prefcast.forecasts.resolve import Choice
    from prefcast.runs.ready import Running

__all__ = [
    "ALLOW_ALL_FAILED",
    "BUDGET",
    "JSON_OUTPUT",
    "LOG_KIND",
    "MARKDOWN",
    "ON_ERROR",
    "PAIRS",
    "SCORES",
    "SUBMISSION",
    "WITH_TEXT",
    "Asked",
    "Choosing",
    "Keeping",
    "LongRun",
    "ModelOptions",
    "Reading",
    "Storing",
]

PAIRS = argument(
    "A file of pairs: CSV, TSV, JSON or Parquet, also .gz or .zst, or a folder of them; several are read as one. - reads standard input.",
    "PAIRS...",
)
MARKDOWN = option("Write the result as tables in Markdown to this file; - is standard output.", "OUT")
JSON_OUTPUT = option("Write the result as JSON to this file; - is standard output.", "OUT", "--json")
ON_ERROR = option(
    "What to do when a row fails: keep the row, with its error (exit status 3), or stop the run (2).",
    default="keep",
    choices=("keep", "stop"),
)
ALLOW_ALL_FAILED = option(
    "Write a submission (.csv) even if every row failed. It then holds nothing but the class prior.", default=False
)
SUBMISSION = option(
    "What a submission (.csv) holds: the three probabilities, or the likelier winner, model_a or model_b (WSDM).",
    default="probabilities",
    choices=("probabilities", "winner"),
)
WITH_TEXT = option("Write the texts too, to a .jsonl or .parquet output.", default=False)
BUDGET = option(
    "How much of each pair is read: keep-last, proportional, notebook or whole. keep-last:8000 sets the number of characters.",
    "POLICY[:N]",
)
SCORES = option("Your own scores of these pairs, by id, for a forecaster that was fitted to scores.", "FILE")
LOG_KIND = option(
    "The form of the messages on standard error: text for people, or one JSON object per event.",
    default="text",
    choices=("text", "json"),
)


@dataclass(frozen=True)
class Reading:
    """How a file is read."""

    columns: str | None = option("Your own column names: prompt=question,response_a=left,...", "OURS=YOURS,...")
    cells: str = option(
        "What a text cell holds: a JSON array of turns, or one turn as plain text.",
        default="json",
        choices=("json", "text"),
    )
    label_values: str | None = option(
        "What your own labels in the columns winner and label mean: a, b or tie, as in 'left=a,right=b,same=tie'.",
        "VALUE=a|b|tie,...",
    )

    max_row: int = option(
        "The most megabytes that a row may have; a larger one is that row's error.", "MB", default=MAX_ROW, least=1
    )

    @property
    def labels(self) -> dict[str, str]:
        """Labels of the file -> a, b or tie."""
        from prefcast.pairs.formats.labels import label_values_of

        return label_values_of(self.label_values)

    @property
    def mapping(self) -> dict[str, str]:
        """Our column names -> those of the file. Raises UsageError."""
        mapping: dict[str, str] = {}
        for part in self.columns.split(",") if self.columns else []:
            ours, equals, theirs = (text.strip() for text in part.partition("="))
            if not equals or not ours or not theirs:
                raise UsageError(f"--columns: {part!r} is not of the form prompt=question")
            if ours in mapping:
                raise UsageError(f"--columns: {ours!r} is mapped twice")
            mapping[ours] = theirs
        return mapping


@dataclass(frozen=True, kw_only=True)
class Judging:
    """An LLM as a judge."""

    panel: ClassVar[str] = "Judges"

    judge: str | None = option(
        "An LLM as a judge, in the place of a model: the address of its API, like https://api.openai.com/v1.", "URL"
    )
    options: JudgeOptions

    @property
    def model(self) -> str | None:
        """The judge as a model."""
        named = f"#{self.options.judge_model}" if self.options.judge_model and "#" not in (self.judge or "") else ""
        return None if self.judge is None else f"{PREFIX}{self.judge}{named}"


@dataclass(frozen=True)
class ModelOptions:
    """The options of models, by kind, and of scorers that other packages add."""

    panel: ClassVar[str] = "Reward models"

    reward: Options
    server: Server
    judging: Judging
    cascade: cascade.Options
    option: list[str] | None = option(
        "An option of a scorer from another package; may be given several times.", "NAME=VALUE"
    )

    @property
    def every(self) -> tuple[Any, ...]:
        """The options of each kind of model."""
        return (self.reward, self.server, self.judging.options, self.cascade)

    @property
    def more(self) -> tuple[str, ...]:
        """The options of a scorer from another package, as texts."""
        return tuple(self.option or ())

    def named(self, model: str | None) -> str | None:
        """The model that a person named, or the judge. Raises UsageError for both."""
        if model is not None and self.judging.model is not None:
            raise UsageError("name a model or a judge: --model or --judge")
        return model or self.judging.model


@dataclass(frozen=True)
class Choosing:
    """What forecasts."""

    options: ModelOptions
    model: str | None = option(
        "A built-in model (`prefcast models` lists them), a folder with a reward model, its hub id, or the address of a server that has one.  [default: embedded]",
        "NAME|PATH|ID|URL",
    )
    forecaster: Path | None = option("A folder with a forecaster, instead of a built-in model.", "DIR")
    budget: str | None = BUDGET
    preset: str | None = option(
        "notebook: the settings of the Kaggle notebook (budget, 4-bit weights, rule) for a reward model.", "NAME"
    )

    def choice(self, scores: Path | None = None) -> Choice:
        """The library's request, with the options of the model."""
        from prefcast.forecasts.resolve import Choice

        options = self.options
        if options.cascade.then is not None:
            raise UsageError(
                "--then makes a cascade, which must be fitted to labelled pairs first: prefcast fit LABELLED --model FIRST "
                "--then SECOND -o DIR; then use --forecaster DIR"
            )
        model = options.named(self.model)
        return Choice(model, self.forecaster, scores, self.budget, self.preset, options.every, options.more)


@dataclass(frozen=True)
class Storing:
    """Where evidence is kept."""

    panel: ClassVar[str] = "Evidence and workers"

    store: Path | None = option(
        "The evidence store. It keeps what a model computed, so that no pair is scored twice.  [default: in the user's cache folder]",
        "FILE",
    )
    no_store: bool = option("Use no evidence store.", default=False)
    fresh: bool = option("Score everything again and replace what the store has.", default=False)


@dataclass(frozen=True)
class Keeping(Storing):
    """Where evidence is kept, and which processes compute it."""

    isolate: bool = option("Score in worker processes: if a row ends its process, only that row fails.", default=False)
    time_limit: float | None = option(
        "The most seconds that a batch may take; implies --isolate.", "SECONDS", least=0.1
    )

    def running(self) -> Running:
        """The library's request."""
        from prefcast.runs.ready import Running

        return Running(self.store, not self.no_store, self.fresh, self.isolate, self.time_limit)


@dataclass(frozen=True)
class OnCluster:
    """Which machines do a run."""

    panel: ClassVar[str] = "Cluster"

    engine: str = option(
        "Where the run is done: local is this machine, ray is Ray actors (pip install 'prefcast[ray]').",
        default="local",
        choices=("local", "ray"),
    )
    ray_address: str | None = option(
        "A running Ray cluster: HOST:PORT, or auto.  [default: one started on this machine]", "ADDRESS"
    )
    actors: int | None = option("How many Ray actors.  [default: as many as there is room for]", "N", least=1)
    cpus_per_actor: int | None = option("Processors, and threads, of each Ray actor.  [default: 1]", "C", least=1)
    gpus_per_actor: float | None = option(
        "GPUs of each Ray actor; with 0.5 two actors share one GPU.  [default: 0]", "G", least=0.0
    )


@dataclass(frozen=True)
class LongRun:
    """How a long run is carried out."""

    panel: ClassVar[str] = "Long runs"

    cluster: OnCluster
    shard: str | None = option("Do part I of N, into OUTPUT.shard-I-of-N; prefcast merge joins the parts.", "I/N")
    log: str = LOG_KIND


@dataclass(frozen=True)
class Asked:
    """A long run as a person asked for it. `verb` is predict or score."""

    verb: str
    pairs: Sequence[str]
    output: str | None
    reading: Reading
    keeping: Keeping
    long: LongRun
    on_error: str
    with_text: bool = False
    allow_all_failed: bool = False
    keep: Sequence[str] = ()

    @property
    def path(self) -> Path | None:
        """The output file."""
        return None if self.output is None else Path(self.output)

"""The verbs about models: score, quantize, models."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any

import typer

from prefcast.cli.requests import BUDGET, ON_ERROR, PAIRS, Asked, Keeping, LongRun, ModelOptions, Reading
from prefcast.cli.running import check_run, done, say_done
from prefcast.cli.shared import app, opened, say
from prefcast.cli.verbs import argument, option, verb
from prefcast.errors import ServiceError, UsageError, excerpt, printable
from prefcast.scorers.reward import Options


@verb(app)
def score(
    *,
    pairs: list[str] = PAIRS,
    model: str | None = option(
        "A folder with a reward model, its hub id, a built-in model, or the address of a server that has a model.",
        "PATH|ID|NAME|URL",
    ),
    output: str | None = option(
        ".csv, .jsonl or .parquet: the scores of each pair. With --engine ray also a folder or URI.", "PATH", "-o"
    ),
    budget: str | None = BUDGET,
    on_error: str = ON_ERROR,
    check_drift: int | None = option(
        "First score N rows quantised and unquantised, and print how far margins and log loss move.", "N", least=1
    ),
    options: ModelOptions,
    reading: Reading,
    keeping: Keeping,
    long: LongRun,
) -> None:
    """Write the raw scores of a model, without an outcome model.

    PAIRS may also hold single answers (prompt and response): a pointwise reward model gives each of them one score.

    If the run is stopped or killed, give the same command again to continue it (docs/runs.md).

    \b
    Examples:
      prefcast score pairs.csv --model ./skywork-reward-8b -o scores.parquet
      prefcast score pairs.csv --model ./internlm2-7b-reward --quantize nf4 --check-drift 200
      prefcast score pairs.csv --model ./gemma-2-9b-lmsys --labels a,b,tie -o scores.csv
    """
    from prefcast.forecasts.forecaster import Forecaster
    from prefcast.forecasts.resolve import Choice, resolve_scorer
    from prefcast.outcomes.models import NotebookRule

    if output is None and check_drift is None:
        raise UsageError("name the output: -o FILE.csv, FILE.jsonl or FILE.parquet (or --check-drift N)")
    asked = Asked("score", pairs, output, reading, keeping, long, on_error)
    check_run(asked, what="the scores", check_drift=check_drift)
    named = options.named(model)
    if named is None:
        raise UsageError("name a model or a judge: --model or --judge")
    choice = Choice(named, budget=budget, options=options.every, more=options.more)
    if check_drift is not None:
        _print_drift(pairs, choice, options.reward, reading, check_drift)
    if output is not None:
        scorer, read = resolve_scorer(choice)
        # A run takes a forecaster; raw scores do not use its outcome model.
        say_done(asked, done(asked, Forecaster(scorer, NotebookRule(), read)), "pairs scored")


def _print_drift(pairs: list[str], choice: Any, options: Options, reading: Reading, rows: int) -> None:
    from prefcast.forecasts.resolve import is_named_model, resolve_scorer
    from prefcast.measuring.drift import measure_drift
    from prefcast.pairs import Pair
    from prefcast.report.measurements import drift_text
    from prefcast.scorers.reward.checkpoint import open_checkpoint

    model = choice.model
    if "-" in pairs:
        raise UsageError("--check-drift reads the file twice; standard input can be read only once")
    if not is_named_model(model):
        raise UsageError(f"--check-drift is for reward models; {model} has one precision")
    if open_checkpoint(model, trust_remote_code=options.trust_remote_code).quantization:
        raise UsageError(
            f"{model}: is stored quantised; --check-drift needs the original to compare with (and --quantize)"
        )
    if options.quantize is None and options.dtype in (None, "float32"):
        raise UsageError("--check-drift compares a precision with float32: add --quantize or --dtype")
    with opened(pairs, reading) as file:
        sample = [item for item in islice(file, rows) if isinstance(item, Pair)]
    plain = replace(options, quantize=None, dtype="float32" if options.quantize is None else options.dtype)
    before, read = resolve_scorer(replace(choice, options=plain))
    after, _ = resolve_scorer(choice)
    with closing(before), closing(after):
        print(drift_text(measure_drift(sample, before, after, read)))


@verb(app)
def quantize(
    *,
    model: str = argument("A folder with a reward model, or its hub id.", "MODEL"),
    folder: Path = argument("Where the checkpoint goes; a new or empty folder.", "DIR"),
    kind: str = option(
        "4 bit (NF4, double quantisation) or 8 bit.", None, "--quantize", default="nf4", choices=("nf4", "int8")
    ),
) -> None:
    """Write a model in 4 or 8 bit as a new checkpoint, with its tokenizer. Loading it needs no option.

    \b
    Example:
      prefcast quantize ./internlm2-20b-reward ./internlm2-20b-reward-nf4
    """
    from prefcast.scorers.reward import require_extra

    require_extra()
    from prefcast.report.descriptions import size_text
    from prefcast.scorers.reward.store import quantize_checkpoint

    done = quantize_checkpoint(model, folder, kind)
    say(
        f"{folder}: {size_text(done.bytes)} instead of {size_text(done.bytes_before)}, {done.matrices} matrices in {kind}"
    )


models = typer.Typer(rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"]})
app.add_typer(models, name="models")


@models.callback(invoke_without_command=True)
def list_models(context: typer.Context) -> None:
    """List the models that can be used and what each needs; `prefcast models show MODEL` tells about one."""
    from prefcast.report.descriptions import models_text
    from prefcast.scorers.registry import scorer_infos

    if context.invoked_subcommand is None:
        print(models_text([info for info in scorer_infos().values() if info.listed]))


@verb(models)
def show(
    *,
    model: str = argument("A folder with a model, its hub id, or the name of a scorer.", "MODEL"),
    trust_remote_code: bool = option("Count Python code of the checkpoint as supported.", default=False),
    base: str | None = option("The base model of a LoRA adapter.", "FOLDER|ID", default=None),
) -> None:
    """Describe a model. For a checkpoint: architecture, parameters, template, labels, limits, and the memory at each
    precision. For the name of a scorer: what the scorer needs, and its options.

    The weights of a checkpoint are not loaded, and its code is not run.
    """
    from prefcast.report.descriptions import checkpoint_text, scorer_text
    from prefcast.scorers.registry import find_scorer, scorer_infos
    from prefcast.scorers.reward.checkpoint import open_checkpoint

    infos = scorer_infos()
    if model in infos or (get_close_matches(model, infos, n=1) and not Path(model).exists()):
        print(scorer_text(find_scorer(model)))
    else:
        print(checkpoint_text(open_checkpoint(model, trust_remote_code=trust_remote_code, base=base)))


@verb(models)
def probe(
    *,
    url: str = argument("The address of a server, http://HOST:PORT.", "URL"),
    options: ModelOptions,
) -> None:
    """Ask a server that has a reward model about 20 texts, and tell whether its scores are the model's own: raw and not
    squashed, of the tokens that were sent and no others, of whole texts, in order, and the same in every batch.

    Exit status 2 if they are not. Each run on a server begins with the same questions.

    \b
    Example:
      prefcast models probe http://127.0.0.1:8000 --protocol vllm --tokenizer ./skywork-reward-8b
    """
    from prefcast.report.descriptions import probe_text
    from prefcast.scorers.options import options_for
    from prefcast.scorers.remote import Options as ServerOptions
    from prefcast.scorers.remote import is_address, scorer_at

    if not is_address(url):
        raise UsageError(f"{excerpt(url)} is not the address of a server; expected one like http://127.0.0.1:8000")
    with closing(scorer_at(url, options_for(ServerOptions, options.every))) as scorer:
        report, about = scorer.probed(), scorer.server.introduced().about
        print(probe_text(scorer.server.shown, printable(about.model or "a model without a name"), report))
    if report.faults:
        raise ServiceError(
            f"{scorer.server.shown}: {len(report.faults)} fault(s): its scores must not be used as they are"
        )

"""The verbs about models: score, quantize, models."""

from __future__ import annotations

from contextlib import ExitStack, closing
from dataclasses import replace
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from prefcast.cli.clusters import Remote, check_engine, parts_asked, parts_run, placed
from prefcast.cli.requests import (
    BudgetText,
    Keeping,
    LogKind,
    LongRun,
    OnError,
    OnErrorOption,
    Pairs,
    Reading,
    RewardOptions,
)
from prefcast.cli.running import attempted, end_failed, say_finished, shard_of
from prefcast.cli.shared import LOG, app, check_outputs, opened, say, say_restored
from prefcast.cli.verbs import verb
from prefcast.errors import UsageError


class Quantize(StrEnum):
    nf4 = "nf4"
    int8 = "int8"


@verb(app)
def score(
    pairs: Pairs,
    model: Annotated[
        str, typer.Option(help="A folder with a reward model, its hub id, or a built-in model.", metavar="PATH|ID|NAME")
    ],
    output: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--output",
            help=".csv, .jsonl or .parquet: the scores of each pair. With --engine ray also a folder or URI.",
            metavar="PATH",
        ),
    ] = None,
    budget: BudgetText = None,
    on_error: OnErrorOption = OnError.keep,
    check_drift: Annotated[
        int | None,
        typer.Option(
            help="First score N rows quantised and unquantised, and print how far margins and log loss move.",
            metavar="N",
            min=1,
        ),
    ] = None,
    *,
    reward: RewardOptions,
    reading: Reading,
    keeping: Keeping,
    long: LongRun,
) -> None:
    """Write a model's raw scores: no outcome model, nothing squashed.

    A run that was stopped or killed goes on when the same command is given again (docs/runs.md).

    \b
    Examples:
      prefcast score pairs.csv --model ./skywork-reward-8b -o scores.parquet
      prefcast score pairs.csv --model ./internlm2-7b-reward --quantize nf4 --check-drift 200
      prefcast score pairs.csv --model ./gemma-2-9b-lmsys --labels a,b,tie -o scores.csv
    """
    from prefcast.forecasts.predictions import output_kind
    from prefcast.forecasts.resolve import Choice, resolve_scorer
    from prefcast.forecasts.scores import column_names, open_score_writer
    from prefcast.runs.attempt import Target
    from prefcast.runs.jobs import scoring

    LOG.as_json = long.log == LogKind.json
    if output is None and check_drift is None:
        raise UsageError("name the output: -o FILE.csv, FILE.jsonl or FILE.parquet (or --check-drift N)")
    check_engine(long, pairs, output, **{"check-drift": check_drift})
    choice = Choice(model, budget=budget, options=reward.options(), more=reward.more())
    if output is not None and parts_asked(long, pairs, output):
        scorer, read = resolve_scorer(choice)
        with closing(scorer):
            remote = Remote.of("score", scorer, read, keeping, long)
        report = parts_run(remote, pairs, output, reading, fresh=keeping.fresh, on_error=on_error)
        say_finished(report, "pairs scored", Path(output), long, always=True)
        end_failed(report.failed, report.rows, report.first_error)
        return
    path = None if output is None else Path(output)
    if path is not None:
        output_kind(path)
        check_outputs([path], [pairs], "the scores")
    shard = shard_of(long, path)
    if check_drift is not None:
        _print_drift(pairs, choice, reading, check_drift)
    if path is None:
        return
    scorer, read = resolve_scorer(choice)
    with ExitStack() as stack:
        file = stack.enter_context(opened(pairs, reading))
        scorer, store = stack.enter_context(placed("score", scorer, read, keeping, long))
        facts: dict[str, Any] = {"input": file.name, "columns": reading.columns, "cells": str(reading.cells)}
        report = attempted(
            scoring(scorer, read),
            file,
            file,
            Target(lambda: open_score_writer(path, column_names(scorer)), path, shard, facts=facts),
            on_error=on_error,
            store=store,
        )
    say_finished(report, "pairs scored", path, long, always=True)
    if not LOG.as_json:
        say_restored(report.restored, report.rows)
    end_failed(report.failed, report.rows, report.first_error)


def _print_drift(pairs: str, choice: Any, reading: Reading, rows: int) -> None:
    from prefcast.forecasts.resolve import is_named_model, resolve_scorer
    from prefcast.measuring.drift import measure_drift
    from prefcast.pairs import Pair
    from prefcast.report.measurements import drift_text
    from prefcast.scorers.reward.checkpoint import open_checkpoint

    model, options = choice.model, choice.options
    if pairs == "-":
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
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A folder with a reward model, or its hub id.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where the checkpoint goes; a new or empty folder.")],
    kind: Annotated[
        Quantize, typer.Option("--quantize", help="4 bit (NF4, double quantisation) or 8 bit.")
    ] = Quantize.nf4,
) -> None:
    """Write a model in 4 or 8 bit as a checkpoint of its own, tokenizer included; it loads with no flag.

    \b
    Example:
      prefcast quantize ./internlm2-20b-reward ./internlm2-20b-reward-nf4
    """
    from prefcast.scorers.reward import require_extra

    require_extra()
    from prefcast.report.descriptions import size_text
    from prefcast.scorers.reward.store import quantize_checkpoint

    done = quantize_checkpoint(model, folder, str(kind))
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
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A folder with a model, its hub id, or the name of a scorer.")
    ],
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Count Python code of the checkpoint as supported.")
    ] = False,
) -> None:
    """Describe a model: of a checkpoint the architecture, parameters, template, labels, limits and the memory at each
    precision; of a scorer by its name what it needs and its options.

    Nothing of a checkpoint is loaded or run.
    """
    from prefcast.report.descriptions import checkpoint_text, scorer_text
    from prefcast.scorers.registry import scorer_infos
    from prefcast.scorers.reward.checkpoint import open_checkpoint

    infos = scorer_infos()
    if model in infos:
        print(scorer_text(infos[model]))
    else:
        print(checkpoint_text(open_checkpoint(model, trust_remote_code=trust_remote_code)))

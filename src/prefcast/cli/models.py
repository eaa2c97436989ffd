"""The verbs about models: score, quantize, models."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from prefcast.cli.clusters import Remote, check_engine, parts_asked, parts_run, remote_scores
from prefcast.cli.run_options import Running, run_options
from prefcast.cli.running import attempted, end_failed, say_finished
from prefcast.cli.shared import (
    LOG,
    BudgetText,
    CellKind,
    Cells,
    Columns,
    OnError,
    OnErrorOption,
    Pairs,
    Quantize,
    app,
    columns_of,
    opened,
    reward_options,
    say,
    say_reused,
)
from prefcast.errors import UsageError
from prefcast.scorers.reward import Options


@app.command()
@reward_options
@run_options
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
    columns: Columns = None,
    cells: CellKind = Cells.json,
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
    options: Options,
    running: Running,
) -> None:
    """Keep a model's raw scores: no outcome model, nothing squashed.

    Stopped or killed, the same command goes on where it was (docs/runs.md).

    \b
    Examples:
      prefcast score pairs.csv --model ./skywork-reward-8b -o scores.parquet
      prefcast score pairs.csv --model ./internlm2-7b-reward --quantize nf4 --check-drift 200
      prefcast score pairs.csv --model ./gemma-2-9b-lmsys --labels a,b,tie -o scores.csv
    """
    from prefcast.forecasts.predictions import output_kind
    from prefcast.forecasts.resolve import resolve_scorer
    from prefcast.forecasts.scores import column_names, open_score_writer
    from prefcast.pairs.sources import same_file
    from prefcast.runs.jobs import scoring

    if output is None and check_drift is None:
        raise UsageError("name the output: -o FILE.csv, FILE.jsonl or FILE.parquet (or --check-drift N)")
    by_ray = check_engine(running, pairs, output, **{"check-drift": check_drift})
    if output is not None and parts_asked(by_ray, pairs, output):
        scorer, read = resolve_scorer(model, budget, options)
        with closing(scorer):
            made = remote_scores(scorer, read, options, running)
        report = parts_run(*made, pairs, output, columns, cells.value, running, on_error=on_error.value)
        say_finished(report, "pairs scored", Path(output), running, always=True)
        end_failed(report)
        return
    if output is not None:
        output = str(Path(output))
        output_kind(output)
        if pairs != "-" and same_file(pairs, output):
            raise UsageError(f"{output}: is the input; write the scores to another file")
    if check_drift is not None:
        _print_drift(pairs, model, budget, columns, cells, check_drift, options)
    if output is None:
        return
    scorer, read = resolve_scorer(model, budget, options)
    remote = None
    if by_ray:
        remote = Remote(*remote_scores(scorer, read, options, running), pairs, columns_of(columns), cells.value)
    elif running.isolated:
        from prefcast.runs.isolated import isolated

        scorer = isolated(scorer, running.time_limit)
    with closing(scorer), opened(pairs, columns, cells) as file:
        report = attempted(
            scoring(scorer, read),
            file,
            file,
            Path(output),
            lambda room: open_score_writer(output, column_names(scorer), room=room),
            running,
            facts={"input": file.name, "columns": columns, "cells": cells.value},
            on_error=on_error.value,
            remote=remote,
        )
    say_finished(report, "pairs scored", Path(output), running, always=True)
    if not LOG.as_json:
        say_reused(scorer)
    end_failed(report)


def _print_drift(
    pairs: str, model: str, budget: str | None, columns: str | None, cells: Cells, rows: int, options: Options
) -> None:
    from prefcast.forecasts.resolve import is_reward_model, resolve_scorer
    from prefcast.measuring.drift import measure_drift
    from prefcast.pairs import Pair
    from prefcast.report.measurements import drift_text
    from prefcast.scorers.reward.checkpoint import open_checkpoint

    if pairs == "-":
        raise UsageError("--check-drift reads the file twice; standard input can be read only once")
    if not is_reward_model(model):
        raise UsageError(f"--check-drift is for reward models; {model} has one precision")
    if open_checkpoint(model, trust_remote_code=options.trust_remote_code).quantization:
        raise UsageError(
            f"{model}: is stored quantised; --check-drift needs the original to compare with (and --quantize)"
        )
    if options.quantize is None and options.dtype in (None, "float32"):
        raise UsageError("--check-drift compares a precision with float32: add --quantize or --dtype")
    with opened(pairs, columns, cells) as file:
        sample = [item for item in islice(file, rows) if isinstance(item, Pair)]
    before, read = resolve_scorer(
        model, budget, replace(options, quantize=None, dtype="float32" if options.quantize is None else options.dtype)
    )
    after, _ = resolve_scorer(model, budget, options)
    with closing(before), closing(after):
        print(drift_text(measure_drift(sample, before, after, read)))


@app.command()
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

    done = quantize_checkpoint(model, folder, kind.value)
    say(
        f"{folder}: {size_text(done.bytes)} instead of {size_text(done.bytes_before)}, {done.matrices} matrices in {kind.value}"
    )


models = typer.Typer(rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"]})
app.add_typer(models, name="models")


@models.callback(invoke_without_command=True)
def list_models(context: typer.Context) -> None:
    """List the models that can be used and what each needs; `prefcast models show MODEL` tells about one."""
    from prefcast.report.descriptions import models_text
    from prefcast.scorers import SCORERS

    if context.invoked_subcommand is None:
        print(models_text(SCORERS))


@models.command()
def show(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A folder with a model, or its hub id.")],
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Count Python code of the checkpoint as supported.")
    ] = False,
) -> None:
    """What a checkpoint is: architecture, parameters, template, labels, limits, memory at each precision.

    Nothing of it is loaded or run.
    """
    from prefcast.report.descriptions import checkpoint_text
    from prefcast.scorers.reward.checkpoint import open_checkpoint

    print(checkpoint_text(open_checkpoint(model, trust_remote_code=trust_remote_code)))

"""The verbs that train: train embedded, train reward."""

from __future__ import annotations

import math
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from prefcast.cli.requests import JSON_OUTPUT, Keeping, Reading
from prefcast.cli.shared import app, bar, end_failed, say
from prefcast.cli.verbs import MISSING, argument, option, verb
from prefcast.errors import UsageError, excerpt

if TYPE_CHECKING:
    from prefcast.training.reward.loop import Progress
    from prefcast.training.vectors import Step

# Without a terminal a line is printed so often.
_LINE_SECONDS = 30.0

train = typer.Typer(
    rich_markup_mode=None, no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]}
)
app.add_typer(train, name="train")


@train.callback()
def _train() -> None:
    """Train a forecaster on labelled pairs of your own."""


@verb(train)
def embedded(
    *,
    data: list[Path] = option(
        "Labelled pairs: a folder, or a file (several with several --data).", "DIR|FILE", default=MISSING
    ),
    folder: Path = option("The folder to write the forecaster to.", "DIR", "-o", "--output", default=MISSING),
    start: str | None = option("The forecaster to start from.  [default: the shipped one]", "DIR", "--from"),
    encoder: Path | None = option(
        "Start from an untrained forecaster, with the encoder.onnx and tokenizer.json in this folder.", "DIR"
    ),
    seed: int = option("The seed that draws the held-out prompts if there is no DIR/dev.", default=0, least=0),
    tokens: int | None = option(
        "How many tokens of the prompts, and of the responses of each side, are read.  [default: as --from does]",
        least=16,
    ),
    json_output: str | None = JSON_OUTPUT,
    keeping: Keeping,
) -> None:
    """Train the embedded forecaster further on labelled pairs of your own: at least 500, better thousands.

    How far the weights move is chosen on DIR/dev/, or by cross-validation. If neither moved weights nor a new outcome model is better,
    nothing is written: keep the forecaster that you have. Pairs that it was fitted on are left out.
    DIR/dev/ holds the pairs that fit the probabilities and that are measured; without it 15 % of the prompts are held out.
    DIR/votes/NAME.votes.csv holds vote counts for the pairs in NAME. If the command is killed, give it again to continue.

    \b
    Examples:
      prefcast train embedded --data ./labelled -o my-forecaster
      prefcast predict new.csv --forecaster my-forecaster -o forecasts.jsonl
    """
    from prefcast.report.embedded import embedded_text
    from prefcast.report.measurements import write_json
    from prefcast.training.embedded import train_embedded

    with _shown() as show:
        trained = train_embedded(
            data,
            folder,
            start=start,
            encoder=encoder,
            seed=seed,
            tokens=tokens,
            running=keeping.running(),
            say=say,
            progress=show,
        )
    if json_output is not None:
        write_json(dict(trained.card), json_output)
    if json_output != "-":
        print(embedded_text(trained.card))
    if trained.card["kept"]:
        say(f"nothing is written to {folder}: keep {trained.card['start']['name']}")
    else:
        say(f"forecaster in {folder}; use it with --forecaster {folder}")


@contextmanager
def _shown() -> Iterator[Callable[[Step], None]]:
    """A bar on a terminal, a line every half minute elsewhere."""
    last = time.monotonic()
    with bar() as draw:

        def show(step: Step) -> None:
            nonlocal last
            text = f"read {step.done} of {step.of} pairs, {step.rate:.0f} a second"
            if draw is not None:
                draw(text, step.done, step.of)
            elif time.monotonic() - last >= _LINE_SECONDS:
                say(f"{text}, {step.left / 60:.0f} min left")
                last = time.monotonic()

        yield show


@verb(train)
def reward(
    *,
    pairs: list[str] = argument("Labelled pairs; each file is a source of its own.", "PAIRS..."),
    base: str = option("The model to start from: a folder or a hub id.", "FOLDER|ID", default=MISSING),
    folder: Path = option(
        "The folder to write the model and its forecaster to.", "DIR", "-o", "--output", default=MISSING
    ),
    kind: str = option(
        "One score for each answer, or a classifier that reads both answers.",
        default="pointwise",
        choices=("pointwise", "pair"),
    ),
    likelihood: str = option(
        "What the scores are fitted under. bradley-terry leaves ties out.",
        default="davidson",
        choices=("davidson", "rao-kupper", "bradley-terry"),
    ),
    lora: str = option(
        "The rank of the adapters on all linear layers; none trains all weights.", "RANK|none", default="16"
    ),
    quantize: str | None = option("Hold the base model in 4 bit while adapters are trained.", choices=("nf4",)),
    merge: bool = option("Write a whole model instead of an adapter.", default=False),
    folds: int | None = option(
        "Also train a model for each of K folds, and write out-of-fold.csv for prefcast fit --scores.", "K", least=2
    ),
    validation: float = option("The share of the first prompts that is held out.", "SHARE", default=0.15),
    validation_pairs: list[Path] | None = option(
        "Files of labelled pairs to hold out, in the place of a share.", "FILE"
    ),
    source: str | None = option("The column that names the source of a row.  [default: each file is one]", "COLUMN"),
    votes: Path | None = option("Vote counts instead of labels: id, votes_a, votes_b, votes_tie.", "FILE"),
    weights: Path | None = option("How much each row counts: id, weight.", "FILE"),
    strengths: Path | None = option("How strong each preference is: id, strength.", "FILE"),
    strength: str = option(
        "How strengths are used: as weights of rows, or as margins that a preference must have.",
        default="weight",
        choices=("weight", "margin"),
    ),
    teacher: list[Path] | None = option(
        "Forecasts or scores of a larger model to learn from too; those of several files are averaged. Out of fold only.",
        "FILE",
    ),
    teacher_forecaster: list[Path] | None = option(
        "The forecaster that made a teacher's forecasts: says how many of these rows it was fitted on.", "DIR"
    ),
    temperature: float = option("The temperature at which a teacher is learned.", "T", default=1.0),
    mixing: float = option("The share of the teacher in the loss of a labelled row.", "SHARE", default=0.5),
    epochs: int = option("How often each pair is learned at most.", "N", default=2, least=1),
    batch: int = option("Pairs in a step, over all processes together.", "PAIRS", default=32, least=1),
    batch_tokens: int | None = option("Tokens that are computed at once; less needs less memory.", "TOKENS", least=1),
    rate: float | None = option("The largest learning rate.  [default: by the size of the model]", "RATE"),
    decay: float = option("The weight decay.", "DECAY", default=0.0),
    smoothing: float = option("The share of a label that is spread over A, B and tie.", "SHARE", default=0.0),
    patience: int = option(
        "Stop after so many evaluations without a lower validation log loss.", "N", default=3, least=1
    ),
    evaluations: int = option("Evaluations in an epoch.", "N", default=4, least=1),
    max_tokens: int | None = option("The most tokens of a conversation.  [default: 2048]", "TOKENS", least=1),
    template: str | None = option(
        "The prompt of the model: a Jinja file or the name of a built-in template.", "NAME|FILE"
    ),
    dtype: str | None = option(
        "What the model computes in.  [default: float32 on a CPU, bfloat16 on a GPU]",
        choices=("float32", "float16", "bfloat16"),
    ),
    recompute: str = option(
        "Compute the layers again for the gradient: slower, far less memory.  [auto: models above 500 million weights]",
        default="auto",
        choices=("auto", "on", "off"),
    ),
    device: str | None = option("Where to train: cpu, cuda:0.  [default: a GPU if there is one]", "DEVICE"),
    shard: bool = option(
        "Share out the weights over the processes of torchrun (FSDP), for a model that does not fit one GPU.",
        default=False,
    ),
    save_minutes: float = option("How often the state of the training is written.", "MINUTES", default=5.0, least=0.0),
    log_to: list[str] | None = option(
        "Also log the curves to TensorBoard, W&B or MLflow (several with several --log-to).",
        "tensorboard|wandb|mlflow",
    ),
    seed: int = option("The seed of the order of the pairs and of the held-out prompts.", default=0, least=0),
    json_output: str | None = JSON_OUTPUT,
    reading: Reading,
) -> None:
    """Train a reward model on labelled pairs, with ties as data, and fit its forecaster.

    If the command is killed, give it again to continue. DIR is then a model and a forecaster at once.

    \b
    Examples:
      prefcast train reward votes.csv --base ./qwen3-0.6b -o my-model
      prefcast predict new.csv --forecaster my-model -o forecasts.jsonl
      torchrun --nproc-per-node 4 -m prefcast.cli train reward votes.csv --base ./qwen3-8b -o my-model
    """
    from prefcast.report.measurements import write_json
    from prefcast.report.training import draw_curves
    from prefcast.training.reward import Recipe, train_reward

    recipe = Recipe(
        kind=kind,
        likelihood=likelihood,
        lora=_rank(lora),
        quantize=quantize,
        epochs=epochs,
        batch=batch,
        batch_tokens=batch_tokens,
        rate=rate,
        decay=decay,
        smoothing=smoothing,
        strength=strength,
        temperature=temperature,
        mixing=mixing,
        evaluations=evaluations,
        patience=patience,
        validation=validation,
        max_tokens=max_tokens,
        template=template,
        dtype=dtype,
        recompute=recompute,
        seed=seed,
    )
    with _trained() as show:
        trained = train_reward(
            pairs,
            folder,
            base=base,
            recipe=recipe,
            validation_pairs=validation_pairs or (),
            source=source,
            votes=votes,
            weights=weights,
            strengths=strengths,
            teachers=teacher or (),
            teacher_forecasters=teacher_forecaster or (),
            merge=merge,
            folds=folds,
            device=device,
            command=shlex.join(["prefcast", *sys.argv[1:]]),
            saved_seconds=60 * save_minutes,
            trackers=log_to or (),
            shard=shard,
            reading={
                "columns": reading.mapping,
                "cells": reading.cells,
                "label_values": reading.labels,
                "max_row": reading.max_row,
            },
            say=say,
            progress=show,
        )
    if trained is None:
        return
    draw_curves(folder)
    card = trained.to_dict()
    if json_output is not None:
        write_json(card, json_output)
    if json_output != "-":
        found = card["figures"]
        print(f"log loss on the {found['n']} pairs held out ({found['prompts']} prompts), outcome model cross-fitted\n")
        for name, shown in (("log_loss", "this model"), ("gain", "gain over the class prior, paired")):
            print(f"{shown:<36}{found[name]['value']:.4f} [{found[name]['low']:.4f}, {found[name]['high']:.4f}]")
    if trained.unlabelled:
        say(f"{trained.unlabelled} rows have no label and were left out")
    say(f"model and forecaster in {folder}; use it with --forecaster {folder}")
    first = f"; the first: {trained.first_error}" if trained.first_error else ""
    end_failed(trained.failed, f"{trained.failed} rows failed and were not learned{first}")


def _rank(text: str) -> int | None:
    if text == "none":
        return None
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= 1024:
        raise UsageError(f"--lora is {excerpt(text)}; expected a rank from 1 to 1024, or none")
    return int(text)


@contextmanager
def _trained() -> Iterator[Callable[[Progress], None]]:
    """A bar on a terminal, a line every half minute elsewhere."""
    last = time.monotonic()
    with bar() as draw:

        def show(at: Progress) -> None:
            nonlocal last
            held = "" if math.isnan(at.validation) else f", validation {at.validation:.4f}"
            text = f"step {at.done} of {at.of}, loss {at.loss:.4f}{held}, {at.rate:,.0f} tokens a second"
            if draw is not None:
                draw(text, at.done, at.of)
            elif time.monotonic() - last >= _LINE_SECONDS:
                say(f"{text}, {at.memory / 1e9:.1f} GB, {at.left / 60:.0f} min left")
                last = time.monotonic()

        yield show

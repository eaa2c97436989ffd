"""The verbs that train: train embedded."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from prefcast.cli.requests import JSON_OUTPUT, Keeping
from prefcast.cli.shared import app, bar, say
from prefcast.cli.verbs import MISSING, option, verb

if TYPE_CHECKING:
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

    DIR/dev/ holds the pairs that fit the probabilities; without it 15 % of the prompts are held out.
    DIR/votes/NAME.votes.csv holds vote counts for the pairs in NAME. If the command is killed, give it again to continue.

    \b
    Examples:
      prefcast train embedded --data ./labelled -o my-forecaster
      prefcast predict new.csv --forecaster my-forecaster -o forecasts.jsonl
    """
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
    found = trained.card["figures"]["cross_fitted"]
    if json_output is not None:
        write_json(dict(trained.card), json_output)
    if json_output != "-":
        print(
            f"log loss on the {found['n']} pairs that fitted the outcome model ({found['prompts']} prompts), cross-fitted\n"
        )
        for name, shown in (
            ("log_loss", "embedded"),
            ("log_loss_of_surface", "the shipped surface model"),
            ("log_loss_of_class_prior", "class prior"),
            ("gain_over_surface", "gain over it, paired"),
        ):
            print(f"{shown:<28}{found[name]['value']:.4f} [{found[name]['low']:.4f}, {found[name]['high']:.4f}]")
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

"""The verbs that train: train embedded."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prefcast.cli.shared import app, say

if TYPE_CHECKING:
    from prefcast.training.vectors import Step

# Without a terminal: a line so often.
_LINE_SECONDS = 30.0

train = typer.Typer(
    rich_markup_mode=None, no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]}
)
app.add_typer(train, name="train")


@train.callback()
def _train() -> None:
    """Train a forecaster on labelled pairs of your own."""


@train.command()
def embedded(
    data: Annotated[
        list[Path],
        typer.Option(help="Labelled pairs: a folder, or a file (several with several --data).", metavar="DIR|FILE"),
    ],
    folder: Annotated[Path, typer.Option("-o", "--output", help="Where the forecaster goes.", metavar="DIR")],
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="The forecaster to start from.  [default: the shipped one]",
            metavar="DIR",
            show_default=False,
        ),
    ] = None,
    encoder: Annotated[
        Path | None,
        typer.Option(
            help="Start from nothing, with the encoder.onnx and tokenizer.json in this folder.",
            metavar="DIR",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Draws the prompts that are held out where there is no DIR/dev.", min=0)
    ] = 0,
    tokens: Annotated[
        int | None,
        typer.Option(
            help="How much of the prompts and of each side's responses is read.  [default: as --from does]",
            min=16,
            show_default=False,
        ),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over where a training was begun.")] = False,
    json_output: Annotated[
        str | None,
        typer.Option("--json", help="Write the forecaster's card as JSON; - is standard output.", metavar="OUT"),
    ] = None,
) -> None:
    """Move the embedded forecaster towards labelled pairs of your own: from 500 on, better with thousands.

    DIR/dev/ holds the pairs that fit the probabilities; without it 15 % of the prompts are held out.
    DIR/votes/NAME.votes.csv holds vote counts for the pairs in NAME. What was killed goes on when it is called again.

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
            fresh=fresh,
            say=say,
            progress=show,
        )
    found = trained.card["figures"]["cross_fitted"]
    if json_output is not None:
        write_json(dict(trained.card), json_output)
    if json_output != "-":
        print(f"log loss on the {found['n']} pairs that fitted the link ({found['prompts']} prompts), cross-fitted\n")
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
    """A bar on a terminal, a line now and then elsewhere."""

    def line(step: Step) -> str:
        return f"read {step.done} of {step.of} pairs, {step.rate:.0f} a second, {step.left / 60:.0f} min left"

    if not sys.stderr.isatty():
        last = time.monotonic()

        def tell(step: Step) -> None:
            nonlocal last
            if time.monotonic() - last >= _LINE_SECONDS:
                say(line(step))
                last = time.monotonic()

        yield tell
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    with Progress(BarColumn(), TextColumn("{task.description}"), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)

        def draw(step: Step) -> None:
            bar.update(task, completed=step.done, total=step.of, description=line(step))

        yield draw

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
    from prefcast.training.embedded.loop import Step

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
            help="Go on from a forecaster that was trained before.",
            metavar="DIR",
        ),
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option(
            help="A BERT checkpoint to start from.  [default: all-MiniLM-L6-v2]", metavar="DIR", show_default=False
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed and data give the same forecaster.", min=0)] = 0,
    epochs: Annotated[
        float | None, typer.Option(help="How often every pair is seen.  [default: 1.5]", show_default=False)
    ] = None,
    members: Annotated[
        int | None,
        typer.Option(
            help="How many encoders are trained and averaged.  [default: 2, or as --from has]",
            min=1,
            max=8,
            show_default=False,
        ),
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(
            help="How much of a conversation is read.  [default: 448, or as --from does]", min=16, show_default=False
        ),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over where a training was begun.")] = False,
    json_output: Annotated[
        str | None,
        typer.Option("--json", help="Write the forecaster's card as JSON; - is standard output.", metavar="OUT"),
    ] = None,
) -> None:
    """Train the embedded forecaster: from 500 labelled pairs on, better with thousands.

    DIR/dev/ holds the pairs that fit the probabilities; without it 15 % of the prompts are held out.
    DIR/votes/NAME.votes.csv holds vote counts for the pairs in NAME. What was killed goes on when it is called again.

    \b
    Examples:
      prefcast train embedded --data ./labelled -o my-forecaster
      prefcast predict new.csv --forecaster my-forecaster -o forecasts.jsonl
    """
    from prefcast.show import write_json
    from prefcast.training.embedded import train_embedded

    with _shown() as show:
        trained = train_embedded(
            data,
            folder,
            start=start,
            base=base,
            seed=seed,
            epochs=epochs,
            members=members,
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
            ("log_loss_of_encoder", "  its encoder alone"),
            ("log_loss_of_surface", "  its surface part alone"),
            ("log_loss_of_class_prior", "class prior"),
            ("gain_over_surface", "gain over the surface part"),
        ):
            print(f"{shown:<28}{found[name]['value']:.4f} [{found[name]['low']:.4f}, {found[name]['high']:.4f}]")
    say(f"forecaster in {folder}; use it with --forecaster {folder}")


@contextmanager
def _shown() -> Iterator[Callable[[Step], None]]:
    """A bar on a terminal, a line now and then elsewhere."""
    losses: list[float] = []

    def line(step: Step) -> str:
        mean = sum(losses) / len(losses)
        return f"step {step.done} of {step.of}, loss {mean:.4f}, {step.rate:.1f} pairs a second, {step.left / 60:.0f} min left"

    if not sys.stderr.isatty():
        last = time.monotonic()

        def tell(step: Step) -> None:
            nonlocal last
            losses.append(step.loss)
            if time.monotonic() - last >= _LINE_SECONDS or step.done == step.of:
                say(line(step))
                last = time.monotonic()
                losses.clear()

        yield tell
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    with Progress(BarColumn(), TextColumn("{task.description}"), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)

        def draw(step: Step) -> None:
            losses.append(step.loss)
            # The loss of one batch says little.
            del losses[:-50]
            bar.update(task, completed=step.done, total=step.of, description=line(step))

        yield draw

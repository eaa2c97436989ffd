"""The verb that makes forecasters: fit."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from prefcast.cli.requests import BudgetText, JsonOutput, Keeping, Reading, RewardOptions
from prefcast.cli.shared import ROWS_FAILED, app, check_outputs, opened, progress, say, say_restored
from prefcast.cli.verbs import verb
from prefcast.errors import UsageError


@verb(app)
def fit(
    labelled: Annotated[
        str | None,
        typer.Argument(metavar="LABELLED", help="Labelled pairs; may be left out if the scores hold labels."),
    ] = None,
    folder: Annotated[
        Path | None, typer.Option("-o", "--output", help="Where the forecaster goes.", metavar="DIR")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="A built-in model, a folder with a reward model, or its hub id; several make an ensemble.  [default: embedded]",
            metavar="NAME|PATH|ID",
            show_default=False,
        ),
    ] = None,
    scores: Annotated[
        Path | None,
        typer.Option(
            help="Your own scores instead of a model: id and score_a, score_b, or logits, or probabilities.",
            metavar="FILE",
        ),
    ] = None,
    votes: Annotated[
        Path | None,
        typer.Option(help="Vote counts instead of labels: id, votes_a, votes_b, votes_tie.", metavar="FILE"),
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="How much each row counts: id, weight.", metavar="FILE")] = None,
    target_prior: Annotated[
        float | None, typer.Option(help="The share of ties where the forecaster will be used.", metavar="SHARE")
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(help="Unlabelled pairs from there: the share of ties is estimated.", metavar="PAIRS"),
    ] = None,
    budget: BudgetText = None,
    json_output: JsonOutput = None,
    *,
    reward: RewardOptions,
    reading: Reading,
    keeping: Keeping,
) -> None:
    """Fit probabilities to a model's scores: from labelled pairs to a forecaster.

    \b
    Examples:
      prefcast fit votes.csv --model ./skywork-reward-8b -o my-forecaster
      prefcast fit votes.csv --model surface --model ./skywork-reward-8b -o ensemble
      prefcast fit --scores scores.csv -o my-forecaster
      prefcast predict new.csv --forecaster my-forecaster -o forecasts.jsonl
    """
    from prefcast.fitting import fit as fit_to
    from prefcast.forecasts.folder import check_folder
    from prefcast.report.measurements import fit_text, write_json

    if folder is None:
        raise UsageError("name the folder of the forecaster: -o DIR")
    check_outputs([json_output], [labelled, scores, votes, weights, target])
    # Scoring may take hours: what would be refused at the end is refused now.
    check_folder(folder)
    with ExitStack() as stack:
        source: Any = None
        show = None
        if labelled is not None:
            source = stack.enter_context(opened(labelled, reading))
            show = stack.enter_context(progress(source))
        fitted = fit_to(
            source,
            model=model,
            scores=scores,
            votes=votes,
            weights=weights,
            target_prior=target_prior,
            target=target,
            budget=budget,
            columns=reading.mapping,
            cells=str(reading.cells),
            label_values=reading.labels,
            options=reward.options(),
            more=reward.more(),
            running=keeping.running(),
            progress=show,
        )
    fitted.save(folder)
    if json_output is not None:
        write_json(dict(fitted.forecaster.card), json_output)
    if json_output != "-":
        print(fit_text(fitted))
    say_restored(fitted.restored, fitted.rows)
    if fitted.truncated:
        say(f"{fitted.truncated} of {fitted.rows} rows were truncated")
    if fitted.unmatched_votes:
        say(f"{fitted.unmatched_votes} rows of {votes} have ids that are not among the pairs")
    for name, said in fitted.forecaster.card["parameters"].items():
        if name.startswith("margin of") and said["high"] < 0:
            say(
                f"{name.removeprefix('margin of ')}: higher scores go with losing; are the columns swapped, or is it a cost?"
            )
    if fitted.fit.shares[2] == 1:
        say("every label is a tie: A and B are forecast as hardly possible; label some pairs that are no ties")
    if not fitted.fit.shares[2]:
        say("no label is a tie: ties are forecast as hardly possible; label some pairs that are ties")
    say(f"forecaster in {folder}; use it with --forecaster {folder}")
    if fitted.failed:
        first = f"; the first: {fitted.first_error}" if fitted.first_error else ""
        say(f"{fitted.failed} of {fitted.rows} rows failed and are not in the fit{first}")
        raise typer.Exit(ROWS_FAILED)

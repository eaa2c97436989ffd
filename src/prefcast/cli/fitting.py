"""The verb that makes forecasters: fit."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from prefcast.cli.requests import BUDGET, JSON_OUTPUT, Keeping, ModelOptions, Reading
from prefcast.cli.shared import app, check_outputs, end_failed, opened, progress, say, say_paid, say_restored
from prefcast.cli.verbs import argument, option, verb
from prefcast.errors import UsageError, excerpt


@verb(app)
def fit(
    *,
    labelled: list[str] | None = argument(
        "Labelled pairs; several files are read as one. Not needed if the scores hold labels.",
        "LABELLED...",
        default=None,
    ),
    folder: Path | None = option("The folder to write the forecaster to.", "DIR", "-o", "--output"),
    model: list[str] | None = option(
        "A built-in model, a folder with a reward model, its hub id, or the address of a server that has one; several make an ensemble.  [default: embedded]",
        "NAME|PATH|ID|URL",
    ),
    scores: Path | None = option(
        "Your own scores instead of a model: id and score_a, score_b, or logits, or probabilities.", "FILE"
    ),
    votes: Path | None = option("Vote counts instead of labels: id, votes_a, votes_b, votes_tie.", "FILE"),
    weights: Path | None = option("How much each row counts: id, weight.", "FILE"),
    target_prior: float | None = option("The share of ties where the forecaster will be used.", "SHARE"),
    target: str | None = option(
        "Unlabelled pairs from where the forecaster will be used; the share of ties is estimated from them, unless they differ in more than that share.",
        "PAIRS",
    ),
    cost: str | None = option(
        "What a pair costs in the first and in the second tier, in any unit; the curve then shows the cost.",
        "FIRST/SECOND",
    ),
    target_logloss: float | None = option(
        "Take the smallest share with at most this log loss, instead of --share.", "X"
    ),
    agree: float | None = option(
        "How often the most likely answer is to agree with people; half of the labels are held out to test it.", "RATE"
    ),
    confidence: float = option("How sure the promise of --agree is.", "LEVEL", default=0.95),
    budget: str | None = BUDGET,
    json_output: str | None = JSON_OUTPUT,
    options: ModelOptions,
    reading: Reading,
    keeping: Keeping,
) -> None:
    """Fit probabilities to a model's scores: from labelled pairs to a forecaster.

    \b
    Examples:
      prefcast fit votes.csv --model ./skywork-reward-8b -o my-forecaster
      prefcast fit votes.csv --model surface --model ./skywork-reward-8b -o ensemble
      prefcast fit votes.csv --model surface --then embedded --share 0.3 -o cascade
      prefcast fit --scores scores.csv -o my-forecaster
      prefcast predict new.csv --forecaster my-forecaster -o forecasts.jsonl
    """
    from prefcast.fitting import fit as fit_to
    from prefcast.forecasts.folder import check_folder
    from prefcast.report.measurements import fit_text, write_json

    if folder is None:
        raise UsageError("name the folder of the forecaster: -o DIR")
    check_outputs([json_output], [*(labelled or []), scores, votes, weights, target])
    # Scoring may take hours, so the folder is checked now.
    check_folder(folder)
    with ExitStack() as stack:
        source: Any = None
        show = None
        if labelled is not None:
            source = stack.enter_context(opened(labelled, reading))
            show = stack.enter_context(progress(source))
        fitted = fit_to(
            source,
            model=[*(model or []), *filter(None, [options.judging.model])],
            scores=scores,
            votes=votes,
            weights=weights,
            target_prior=target_prior,
            target=target,
            budget=budget,
            columns=reading.mapping,
            cells=reading.cells,
            label_values=reading.labels,
            max_row=reading.max_row,
            options=tuple(each for each in options.every if each is not options.cascade),
            more=options.more,
            running=keeping.running(),
            progress=show,
            then=options.cascade.then,
            share=options.cascade.share,
            cost=None if cost is None else _costs(cost),
            target_logloss=target_logloss,
            agree=agree,
            confidence=confidence,
        )
    fitted.save(folder)
    if json_output is not None:
        write_json(dict(fitted.forecaster.card), json_output)
    if json_output != "-":
        print(fit_text(fitted))
    say_restored(fitted.restored, fitted.rows)
    for name, spent in fitted.paid.items():
        say_paid(spent, name)
    if fitted.truncated:
        say(f"{fitted.truncated} of {fitted.rows} rows were truncated")
    if fitted.unmatched_votes:
        say(f"{fitted.unmatched_votes} rows of {votes} have ids that are not among the pairs")
    for name, said in fitted.forecaster.card["parameters"].items():
        if "margin of " in name and said["high"] < 0:
            say(
                f"{name.partition('margin of ')[2]}: higher scores go with losing; are the columns swapped, or is it a cost?"
            )
    if fitted.fit.shares[2] == 1:
        say("every label is a tie: A and B are forecast as hardly possible; label some pairs that are no ties")
    if not fitted.fit.shares[2]:
        say("no label is a tie: ties are forecast as hardly possible; label some pairs that are ties")
    say(f"forecaster in {folder}; use it with --forecaster {folder}")
    first = f"; the first: {fitted.first_error}" if fitted.first_error else ""
    end_failed(fitted.failed, f"{fitted.failed} of {fitted.rows} rows failed and are not in the fit{first}")


def _costs(text: str) -> tuple[float, float]:
    """The costs of a pair in the two tiers. Raises UsageError."""
    first, slash, second = text.partition("/")
    try:
        if not slash:
            raise ValueError
        return float(first), float(second)
    except ValueError:
        raise UsageError(f"--cost: {excerpt(text)} is not of the form FIRST/SECOND, like 1/50") from None

"""The verb that says which pairs to ask people about: label."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from prefcast.cli.requests import Choosing, Keeping, Reading
from prefcast.cli.shared import app, check_outputs, end_failed, opened, progress, say
from prefcast.cli.verbs import MISSING, argument, option, verb
from prefcast.errors import UsageError


@verb(app)
def label(
    *,
    left: str = argument("A file of pairs, or one system's answers: prompt and response (or messages).", "PAIRS|LEFT"),
    right: str | None = argument("The other system's answers to the same prompts.", "RIGHT", default=None),
    output: Path = option(
        "The pairs to vote on: .csv or .jsonl. Votes that are in it stay.", None, "-o", default=MISSING
    ),
    votes: int = option("How many pairs people are to vote on.", "N", default=100, least=1),
    see: str = option(
        "The preference that you want to see: the shares of RIGHT and LEFT, ties aside.", "R:L", default="55:45"
    ),
    uniform: bool = option("Draw all pairs alike, as compare --anytime needs it.", default=False),
    seed: int = option("The seed of the draw.", "N", default=0, least=0),
    choosing: Choosing,
    reading: Reading,
    keeping: Keeping,
) -> None:
    """Draw the pairs that people should vote on, and say how much their votes will tell.

    OUTPUT has a pair a row, blind: prompt, answer_1, answer_2, in random order. Write 1, 2 or tie into winner; leave it empty to
    skip. Give the same command with more votes to continue the file. `compare LEFT RIGHT --votes OUTPUT` reads the votes.

    \\b
    Examples:
      prefcast label yesterday.jsonl today.jsonl --votes 100 -o to_label.csv
      prefcast compare yesterday.jsonl today.jsonl --votes to_label.csv
    """
    import numpy as np

    from prefcast.forecasts.resolve import resolve
    from prefcast.measuring.sampling import draw, plan
    from prefcast.pairs.formats.answers import AnswerFile, JoinReport, joined
    from prefcast.pairs.formats.ballots import ballots_of, begun, write_ballots
    from prefcast.report.measurements import plan_text
    from prefcast.runs.jobs import forecasts_of
    from prefcast.runs.loop import Tally
    from prefcast.runs.ready import ready

    shares = _shares(see)
    check_outputs([output], [left, right], "the pairs to vote on")
    before = begun(output)
    join, tally = JoinReport(), Tally()
    pairs: list[Any] = []
    blocks = []
    with ExitStack() as stack:
        chosen = stack.enter_context(ready(resolve(choosing.choice()), keeping.running()))
        source: Any
        if right is None:
            file: Any = opened([left], reading)
            source = stack.enter_context(file)
        else:
            sides = [
                stack.enter_context(AnswerFile(name, reading.mapping, reading.cells, max_row=reading.max_row))
                for name in (left, right)
            ]
            file, source = sides[1], joined(sides[0], sides[1], (left, right), join)
        show = stack.enter_context(progress(file))
        for forecasts in forecasts_of(source, chosen, tally, progress=show):
            good = [index for index, error in enumerate(forecasts.errors) if error is None]
            pairs += [forecasts.pairs[index] for index in good]
            blocks.append(forecasts.probabilities[good])
    if not pairs:
        raise UsageError(f"no pair to vote on: of {tally.rows} pairs {tally.failed} failed ({tally.first})")
    p = np.concatenate(blocks)
    ids = [str(pair.id) for pair in pairs]
    sample = draw(ids, p, max(votes, len(before)), seed=seed, uniform=uniform)
    ids_drawn = {ids[place] for place in sample.places}
    if lost := [id for id, said in before.items() if said["winner"] and id not in ids_drawn]:
        raise UsageError(
            f"{output}: has votes on {len(lost)} pairs that this draw does not have (the first: {lost[0]!r}); give the same "
            "files, model and --seed, or another output"
        )
    drawn = [pairs[place] for place in sample.places]
    promised = plan(p, votes=len(drawn), see=shares, uniform=uniform)
    write_ballots(output, ballots_of(drawn, sample.inclusion[sample.places].tolist(), seed), before)
    print(plan_text(promised))
    voted = sum(bool(said["winner"]) for said in before.values())
    kept = f", {voted} of them voted on already" if voted else ""
    say(f"{len(drawn)} pairs to vote on in {output}{kept}; write 1, 2 or tie into winner")
    failed = tally.failed + join.failed
    end_failed(failed, f"{failed} rows failed and cannot be drawn; the first: {join.first_error or tally.first}")


def _shares(text: str) -> tuple[float, float]:
    try:
        right, left = (float(part) / 100 for part in text.split(":"))
    except ValueError:
        raise UsageError(f"--see: {text!r} is not of the form 55:45") from None
    return right, left

"""The verb that chooses among answers: best."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from prefcast.cli.requests import ON_ERROR, Choosing, Keeping, Reading
from prefcast.cli.shared import app, check_input, check_outputs, check_with_text, end_failed, progress, say, say_paid
from prefcast.cli.verbs import argument, option, verb
from prefcast.errors import UsageError

_RANKED = (
    "no outcome model was fitted to this model: the answers are ranked, and there are no probabilities (prefcast fit)"
)


@verb(app)
def best(
    *,
    file: str = argument(
        "Prompts with their responses: CSV, TSV, JSON Lines or Parquet, also .gz or .zst. - reads standard input.",
        "FILE",
    ),
    output: Path | None = option(
        ".jsonl: everything; .csv: the best of each prompt. Without it, a table is printed.", None, "-o"
    ),
    on_error: str = ON_ERROR,
    with_text: bool = option(
        "Write the prompt, the best response, the system message and the reference answer too.", default=False
    ),
    adaptive: bool = option(
        "Compare no more answers than the choice needs, with a model that reads two answers at once.",
        default=False,
    ),
    probabilities: bool = option("Write the probability of each answer to be the best; they sum to 1.", default=False),
    threshold: float | None = option(
        "Compare the best answer with the row's reference; none is good where it is no better with at least this probability.",
        "P",
    ),
    choosing: Choosing,
    reading: Reading,
    keeping: Keeping,
) -> None:
    """Choose the best of several responses to each prompt (best of n), by forecasts of every two of them.

    A row has a prompt and its responses (a list), or a row is one response, with prompt, response and perhaps id. The best
    response has the highest mean of P(wins) + P(tie) / 2 against the others. With a reward model to which no outcome model was
    fitted, that is the share of the others that score lower; it only ranks. Positions are counted from 0.

    \b
    Examples:
      prefcast best samples.jsonl -o best.jsonl --with-text
      prefcast best samples.csv --cells text --model surface
      prefcast best samples.jsonl -o best.jsonl --adaptive --probabilities
    """
    from prefcast.forecasts.best import Asked, choice_kind, choices, open_choice_writer
    from prefcast.forecasts.resolve import resolve
    from prefcast.outcomes.models import MarginSign
    from prefcast.pairs.formats.candidates import CandidateFile
    from prefcast.report.forecasts import ChoiceTable
    from prefcast.runs.ready import ready
    from prefcast.scorers.base import total_spent

    check_with_text(output, with_text, "FILE.jsonl or FILE.csv")
    asked = Asked(adaptive, probabilities, threshold)
    if probabilities and output is None:
        raise UsageError("--probabilities needs an output file (-o FILE.jsonl or FILE.csv)")
    if output is not None:
        choice_kind(output)
        check_outputs([output], [file], "the choices")
    check_input(file)
    rows = failed = truncated = none_good = compared = every = 0
    first: object = None
    right: list[float] = []
    with (
        ready(resolve(choosing.choice(), by_margin=True), keeping.running()) as chosen,
        CandidateFile(file, reading.mapping, reading.cells, max_row=reading.max_row) as read,
        progress(read) as show,
        nullcontext(ChoiceTable(sys.stdout))
        if output is None
        else open_choice_writer(output, with_text=with_text, asked=asked) as opened,
    ):
        writer: Any = opened
        for choice in choices(read, chosen, show, asked):
            if choice.error is not None:
                if on_error == "stop":
                    raise choice.error
                failed += 1
                first = first or choice.error
            rows += 1
            truncated += choice.truncated > 0
            none_good += bool(choice.more.get("none_good"))
            if choice.candidates is not None:
                n = len(choice.candidates.responses)
                compared, every = compared + (choice.more.get("comparisons") or 0), every + n * (n - 1) // 2
            right += [] if choice.right is None else [choice.right]
            writer.write(choice)
            if show is not None:
                show(rows)
    if right:
        _say_right(right)
    if isinstance(chosen.outcome, MarginSign):
        say(_RANKED)
    if adaptive and every:
        say(f"{compared:,} comparisons instead of {every:,} ({compared / every:.1%})")
    if threshold is not None:
        said = f"the best is no better than the reference with a probability of {threshold:g} or more"
        say(f"{none_good} of {rows - failed} prompts have no good answer: {said}")
    if truncated:
        say(f"{truncated} of {rows} prompts have responses that were truncated ({chosen.budget})")
    say_paid(total_spent(chosen.scorer))
    end_failed(failed, f"{failed} of {rows} prompts failed and have no best response; the first: {first}")


def _say_right(right: Sequence[float]) -> None:
    """How often the choice is one of the answers that people found best."""
    import numpy as np

    from prefcast.outcomes.statistics.bootstrap import group_keys, weighted_mean

    share = weighted_mean(np.array(right), np.ones(len(right)), group_keys(None, len(right)))
    sure = f"{share.value:.1%} [{share.low:.1%}, {share.high:.1%}] of {len(right)} prompts"
    say(f"the choice is an answer that people found best in {sure}")

"""The verb that makes preference data of several answers to each prompt: pairs."""

from __future__ import annotations

from pathlib import Path

from prefcast.cli.requests import JSON_OUTPUT, Choosing, Keeping, Reading
from prefcast.cli.shared import app, check_input, check_outputs, end_failed, progress, say, say_paid
from prefcast.cli.verbs import MISSING, argument, option, verb
from prefcast.errors import shown_path


@verb(app)
def pairs(
    *,
    file: str = argument(
        "Prompts with their responses, as prefcast best reads them: CSV, TSV, JSON Lines or Parquet, also .gz or .zst. - reads standard input.",
        "SAMPLES",
    ),
    output: Path = option("The pairs, one a line: .jsonl.", "FILE", "-o", default=MISSING),
    strategy: str = option(
        "best-worst, best-random (the best and one drawn at random), all, or hard (win probability in --band).",
        default="best-worst",
        choices=("best-worst", "best-random", "all", "hard"),
    ),
    margin: float = option(
        "P(chosen wins) - P(rejected wins) must be above this, with the lower end of its 95 % interval if the forecaster has one.",
        "M",
        default=0.0,
    ),
    band: tuple[float, float] = option(
        "With --strategy hard: between which P(chosen wins) + P(tie) / 2 a pair is taken.",
        "LOW HIGH",
        default=(0.55, 0.75),
    ),
    per_prompt: int | None = option(
        "At most K pairs of a prompt.  [default: 1 for best-worst and best-random, all for the others]", "K", least=1
    ),
    balance_length: bool = option(
        "Drop pairs until the chosen response is as often longer as shorter, by as much, and not longer on average.",
        default=False,
    ),
    ties: str = option(
        "What becomes of pairs of which a tie is the likeliest outcome; write needs --to prefcast.",
        default="drop",
        choices=("drop", "write"),
    ),
    to: str = option("Who reads the pairs.", default="trl", choices=("trl", "openrlhf", "llama-factory", "prefcast")),
    plain: bool = option(
        "Write texts instead of lists of messages (llama-factory: alpaca instead of sharegpt).", default=False
    ),
    seed: int = option("The seed of what is drawn at random.", "N", default=0, least=0),
    json_output: str | None = JSON_OUTPUT,
    on_error: str = option(
        "What to do when a prompt fails: leave it out and go on (exit status 3), or stop (2).",
        default="drop",
        choices=("drop", "stop"),
    ),
    choosing: Choosing,
    reading: Reading,
    keeping: Keeping,
) -> None:
    """Make pairs of a chosen and a rejected response from several responses to each prompt, by forecasts.

    A model that scores single responses reads each one once. Another one compares every two of a prompt: n (n - 1) / 2 pairs. If
    the run is killed, give the same command again to continue it. docs/pairs.md says what each trainer reads.

    \b
    Examples:
      prefcast pairs samples.jsonl -o pairs.jsonl
      prefcast pairs samples.jsonl --forecaster mine --margin 0.2 --balance-length -o pairs.jsonl
      prefcast pairs samples.jsonl --strategy hard --per-prompt 2 --to llama-factory -o pairs.jsonl
    """
    from prefcast.base.files import checked_ending
    from prefcast.forecasts.best import choices
    from prefcast.forecasts.preferences import Rule, write_preferences
    from prefcast.forecasts.resolve import resolve
    from prefcast.pairs.formats.candidates import CandidateFile
    from prefcast.report.measurements import write_json
    from prefcast.runs.ready import ready
    from prefcast.scorers.base import total_spent

    rule = Rule(strategy, margin, band, per_prompt, ties == "write", seed)
    checked_ending(output, "a file of pairs", ".jsonl")
    check_outputs([output, json_output], [file], "the pairs")
    check_input(file)
    found = resolve(choosing.choice(), by_margin=True)
    rule.check(found)
    with (
        ready(found, keeping.running()) as chosen,
        CandidateFile(file, reading.mapping, reading.cells, max_row=reading.max_row) as read,
        progress(read) as show,
    ):
        counts = write_preferences(
            output,
            choices(read, chosen, show, leads=True),
            rule,
            to,
            plain=plain,
            balance=balance_length,
            on_error="keep" if on_error == "drop" else on_error,
            name=read.name,
        )
    if json_output is not None:
        write_json({**counts.to_dict(), "rule": vars(rule), "to": to}, json_output)
    ties_said = f", {counts.ties:,} of them ties" if counts.ties else ""
    say(
        f"{counts.written:,} pairs of {counts.prompts:,} prompts in {shown_path(output)}{ties_said}; prompts without a "
        f"pair: {counts.without:,}"
    )
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in counts.dropped.items() if count)
    say(f"dropped of {counts.considered:,} pairs: {dropped or 'none'}")
    if counts.lengths.pairs:
        before = "before --balance-length the chosen response is" if balance_length else "the chosen response is"
        say(f"{before} {counts.lengths}")
    if balance_length and counts.balanced.pairs:
        say(f"after it {counts.balanced}")
    if counts.truncated:
        say(f"{counts.truncated} of {counts.prompts} prompts have responses that were truncated ({chosen.budget})")
    say_paid(total_spent(chosen.scorer))
    first = f"; the first: {counts.first_error}"
    end_failed(counts.failed, f"{counts.failed} of {counts.prompts} prompts failed and have no pairs{first}")

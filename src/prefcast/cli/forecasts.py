"""The verbs that forecast: predict, explain."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from prefcast.cli.requests import (
    ALLOW_ALL_FAILED,
    ON_ERROR,
    PAIRS,
    SCORES,
    SUBMISSION,
    WITH_TEXT,
    Asked,
    Choosing,
    Keeping,
    LongRun,
    Reading,
)
from prefcast.cli.running import check_run, done, is_submission, say_done
from prefcast.cli.shared import (
    app,
    check_outputs,
    check_with_text,
    one_file,
    opened,
    say,
    say_paid,
)
from prefcast.cli.verbs import MISSING, option, verb
from prefcast.errors import UsageError, shown_path

if TYPE_CHECKING:
    from prefcast.forecasts.handing import HandedOver
    from prefcast.measuring.rehearsal import Rehearsal
    from prefcast.runs.loop import Sink


@verb(app)
def predict(
    *,
    pairs: list[str] = PAIRS,
    output: str | None = option(
        ".csv: Kaggle submission; .jsonl, .parquet: everything. Without it, a table is printed. With --engine ray also a folder or URI, for Parquet parts.",
        "PATH",
        "-o",
    ),
    scores: Path | None = SCORES,
    on_error: str = ON_ERROR,
    with_text: bool = WITH_TEXT,
    keep: list[str] | None = option(
        "Copy this column of PAIRS to the output, under its name; may be given several times.", "COLUMN"
    ),
    submission: str = SUBMISSION,
    allow_all_failed: bool = ALLOW_ALL_FAILED,
    hand_over: Path | None = option(
        "Write the ids of the rows that people should judge, for a forecaster that was fitted with --agree.", "FILE"
    ),
    rehearse: Path | None = option(
        "If PAIRS is the competition's stub of three rows, forecast the first 1,000 rows of this labelled file instead, and measure.",
        "TRAIN",
    ),
    choosing: Choosing,
    reading: Reading,
    keeping: Keeping,
    long: LongRun,
) -> None:
    """Forecast every pair of a file.

    If the run is stopped or killed, give the same command again to continue it (docs/runs.md).

    \b
    Examples:
      prefcast predict test.csv -o submission.csv
      prefcast predict pairs.jsonl.zst -o forecasts.parquet --with-text
      zcat pairs.csv.gz | prefcast predict - -o forecasts.jsonl
      prefcast predict test.csv --model internlm2-20b-reward --preset notebook --rehearse train.csv -o submission.csv
    """
    from prefcast.forecasts.handing import check_handing_over, handing_over
    from prefcast.forecasts.predictions import check_kept, open_writer
    from prefcast.forecasts.resolve import resolve
    from prefcast.measuring.rehearsal import Rehearsal, rehearsal_rows
    from prefcast.report.evaluations import evaluation_text
    from prefcast.report.forecasts import TableWriter

    check_with_text(output, with_text)
    winner, kept = submission == "winner", tuple(dict.fromkeys(keep or ()))
    asked = Asked("predict", pairs, output, reading, keeping, long, on_error, with_text, allow_all_failed, kept)
    check_run(
        asked, rehearse, what="the forecasts", rehearse=rehearse, scores=scores, hand_over=hand_over, keep=keep or None
    )
    check_kept(kept)
    if kept and (output is None or rehearse is not None):
        raise UsageError(
            "--keep and --rehearse exclude each other"
            if output is not None
            else "--keep needs an output file (-o FILE.csv, FILE.jsonl or FILE.parquet)"
        )
    if rehearse is not None and long.shard is not None:
        raise UsageError("--rehearse and --shard exclude each other")
    if hand_over is not None:
        check_outputs([hand_over, output], [*pairs, rehearse, scores], "the ids")
        if long.shard is not None:
            raise UsageError("--hand-over and --shard exclude each other")
    if winner and not is_submission(asked.path):
        raise UsageError("--submission winner is for an output that ends in .csv")
    stub = pairs[0] if rehearse is None else one_file(pairs, "--rehearse looks at one file, the competition's stub")
    train = (
        None
        if rehearse is None
        else rehearsal_rows(stub, str(rehearse), reading.mapping, reading.cells, reading.labels, reading.max_row)
    )
    chosen = resolve(choosing.choice(scores))
    if hand_over is not None:
        check_handing_over(chosen)
    rehearsal: Rehearsal | None = None
    handed: HandedOver | None = None

    @contextmanager
    def opened_output() -> Iterator[Sink]:
        nonlocal rehearsal, handed
        out = (
            nullcontext(TableWriter(sys.stdout))
            if output is None
            else open_writer(output, with_text=with_text, winner=winner, own=kept)
        )
        with out as writer:
            rehearsal = None if train is None else Rehearsal(writer)
            sink = rehearsal or writer
            with nullcontext() if hand_over is None else handing_over(sink, hand_over) as handed:
                yield handed or sink

    report = done(asked, chosen, train, opened_output)
    if rehearse is not None and train is None:
        say(f"{stub} is not the stub of three rows: its own rows were forecast, and {rehearse} was not used")
    if rehearsal is not None:
        say(f"{stub} is the stub: the first {report.rows} rows of {rehearse} were forecast instead")
        if report.failed < report.rows:
            print(evaluation_text(rehearsal.evaluation(), "rehearsal"))
    if handed is not None:
        say(f"{handed.rows} of {report.rows} rows are for people; their ids are in {shown_path(str(hand_over))}")
    got = "the class prior" if chosen.fallback is None else f"({', '.join(map(str, chosen.fallback))})"
    say_done(asked, report, "forecasts", of=chosen, got=f" and got {got}")


@verb(app)
def explain(
    *,
    pairs: list[str] = PAIRS,
    id: str = option("The id of the pair (the row number where the file has no ids).", default=MISSING),
    scores: Path | None = SCORES,
    choosing: Choosing,
    reading: Reading,
) -> None:
    """Show one pair's forecast and what moved it.

    \b
    Example:
      prefcast explain examples/pairs.csv --id ex-07
    """
    from prefcast.forecasts.resolve import resolve
    from prefcast.pairs.sources import find_pair
    from prefcast.report.forecasts import explanation_text
    from prefcast.runs.ready import Running, ready
    from prefcast.scorers.base import costs_money, total_spent

    chosen = resolve(choosing.choice(scores))
    with opened(pairs, reading) as file:
        pair = find_pair(file, id)
    # What is paid for is kept, and not paid for again.
    with ready(chosen, Running(keep=costs_money(chosen.scorer))) as forecaster:
        print(explanation_text(pair, forecaster.explain(pair)))
    say_paid(total_spent(chosen.scorer))

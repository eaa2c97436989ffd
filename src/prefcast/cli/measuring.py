"""The verbs that measure: evaluate, report, compare."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from prefcast.cli.requests import JSON_OUTPUT, MARKDOWN, SCORES, WITH_TEXT, Choosing, Keeping, Reading
from prefcast.cli.shared import (
    app,
    check_outputs,
    check_with_text,
    end_failed,
    opened,
    progress,
    say,
    say_escalated,
    say_literal,
    say_paid,
    say_restored,
    say_truncated,
)
from prefcast.cli.verbs import MISSING, argument, option, verb
from prefcast.errors import UsageError, shown_path

if TYPE_CHECKING:
    from prefcast.measuring.collected import Measured
    from prefcast.measuring.evaluation import Wanted

_SURPRISES = 20
_FAILED = "{} rows failed and are not in the figures; prefcast check names them"
LABELLED = argument(
    "Labelled pairs; several files are read as one. Not needed if the predictions hold labels.",
    "LABELLED...",
    default=None,
)


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """What is measured, against what, and how forecasts are made for it."""

    scores: Path | None = SCORES
    predictions: Path | None = option(
        "Measure these forecasts (a submission or predictions file) instead of making them.", "FILE"
    )
    against: list[Path] | None = option(
        "Compare with these forecasts of the same rows, by id; may be given several times.", "FILE"
    )
    by: str | None = option(
        "Show the figures for each value of this column of LABELLED (or of the predictions) too.", "COLUMN"
    )
    votes: Path | None = option(
        "How many people said what, by id: id, votes_a, votes_b, votes_tie. Columns of these names in LABELLED count too.",
        "FILE",
    )
    weights: str | None = option(
        "How much each row counts: a column of LABELLED, or a file with id and weight.", "COLUMN|FILE"
    )
    export: Path | None = option(
        "Write each measured row with its loss and residuals: .csv, .jsonl or .parquet.", "FILE"
    )
    repeats: int = option("Bootstrap repeats.", default=1000, least=100)
    choosing: Choosing
    reading: Reading
    keeping: Keeping

    @property
    def files(self) -> tuple[Path | str | None, ...]:
        """The files that are read."""
        return self.predictions, self.scores, *(self.against or ()), self.votes, self.weights


@verb(app)
def evaluate(
    *,
    labelled: list[str] | None = LABELLED,
    swapped: Path | None = option(
        "Forecasts of the same ids with A and B swapped: tells how far PREDICTIONS depend on the order.", "FILE"
    ),
    slices: bool = option("Show the figures for each kind of row too.", default=False),
    json_output: str | None = JSON_OUTPUT,
    markdown: str | None = MARKDOWN,
    measuring: Measuring,
) -> None:
    """Measure forecasts on labelled pairs, next to forecasts that anyone can make.

    A reward model, or a file of scores, to which no outcome model was fitted is measured by pairwise accuracy alone: how
    often the preferred answer has the higher score.

    \b
    Examples:
      prefcast evaluate train.csv --slices
      prefcast evaluate train.csv --model length --json figures.json
      prefcast evaluate --predictions forecasts.jsonl --against other.csv
    """
    from prefcast.report.cascades import kept_lines
    from prefcast.report.evaluations import evaluation_text
    from prefcast.report.measurements import write_json, write_markdown

    _check_swapped(swapped, measuring)
    check_outputs(
        [json_output, markdown, measuring.export], [*(labelled or []), swapped, *measuring.files], "the figures"
    )
    _check_one_standard_output(json_output, markdown)
    title, measured = _measured(labelled, measuring, swapped=swapped, by_margin=True)
    evaluation = measured.evaluation(repeats=measuring.repeats)
    promised = measured.agreement
    if json_output is not None:
        write_json(evaluation.to_dict() | ({} if promised is None else {"agreement": promised}), json_output)
    if markdown is not None:
        write_markdown(evaluation, markdown)
    if "-" not in (json_output, markdown):
        print(evaluation_text(evaluation, title, slices=slices or measuring.by is not None))
        for line in [] if promised is None else kept_lines(promised):
            print(line)
    end_failed(evaluation.failed, _FAILED.format(evaluation.failed))


@verb(app)
def report(
    *,
    labelled: list[str] | None = LABELLED,
    output: Path = option("The page: a file that ends in .html.", "OUT.html", "-o", default=MISSING),
    title: str | None = option("The heading of the page.  [default: names the forecasts]", "TEXT"),
    json_output: str | None = JSON_OUTPUT,
    measuring: Measuring,
) -> None:
    """Measure as `evaluate` does and write the result as one HTML page, with charts and the most surprising pairs.

    The page needs no network and holds the texts of up to 20 pairs; SOURCE_DATE_EPOCH sets its date.

    \b
    Examples:
      prefcast report train.csv -o report.html
      prefcast report train.csv --model ./skywork-8b --title "Skywork on our votes" -o report.html
      prefcast report --predictions forecasts.jsonl --against other.csv -o report.html
    """
    from prefcast.base.files import atomic_file
    from prefcast.report.html import report_html
    from prefcast.report.measurements import write_json

    if output.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"{shown_path(output)}: a report is an HTML page; name a file that ends in .html")
    check_outputs([output, json_output, measuring.export], [*(labelled or []), *measuring.files], "the report")
    today = _today()
    # The file is opened first: a folder that cannot be written is found before hours of forecasting, not after.
    with atomic_file(output) as file:
        name, measured = _measured(labelled, measuring, surprises=_SURPRISES)
        evaluation = measured.evaluation(repeats=measuring.repeats)
        page = report_html(
            evaluation,
            title=f"How good are the forecasts of {name}?" if title is None else title,
            forecaster=name,
            source=None if labelled is None else _named(labelled),
            date=today.isoformat(),
            surprises=None if labelled is None else measured.surprises,
        )
        if json_output is not None:
            write_json(evaluation.to_dict(), json_output)
        file.write(page.encode("utf-8", "backslashreplace"))
    if json_output != "-":
        print(f"report in {shown_path(output)}")
    if labelled is None:
        say(
            "the report shows no pairs: the predictions or scores have no texts; name the file of labelled pairs as well"
        )
    end_failed(evaluation.failed, _FAILED.format(evaluation.failed))


def _named(files: Sequence[str]) -> str:
    """The files in a page's heading."""
    names = ["standard input" if each == "-" else Path(each).name for each in files]
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _today() -> date:
    """Today, or the day of SOURCE_DATE_EPOCH (https://reproducible-builds.org/specs/source-date-epoch/)."""
    seconds = os.environ.get("SOURCE_DATE_EPOCH", "")
    if not seconds:
        return date.today()
    try:
        return datetime.fromtimestamp(int(seconds), UTC).date()
    except (ValueError, OverflowError, OSError):
        raise UsageError(f"SOURCE_DATE_EPOCH must be seconds since 1970, found {seconds!r}") from None


def _check_one_standard_output(*outputs: str | None) -> None:
    if outputs.count("-") > 1:
        raise UsageError("--json and --markdown cannot both go to standard output")


def _check_swapped(swapped: Path | None, measuring: Measuring) -> None:
    from prefcast.pairs.sources import same_file

    if swapped is None:
        return
    if measuring.predictions is None:
        raise UsageError("--swapped goes with --predictions; forecasts made here are tried in both orders anyway")
    if same_file(swapped, measuring.predictions):
        raise UsageError(
            "--swapped is the same file as --predictions; expected forecasts of the pairs with A and B swapped"
        )


def _measured(
    labelled: list[str] | None,
    measuring: Measuring,
    *,
    swapped: Path | None = None,
    surprises: int = 0,
    by_margin: bool = False,
) -> tuple[str, Measured]:
    """What the options name, measured, and what the forecasts are called."""
    from prefcast.measuring.evaluation import Wanted, read_others
    from prefcast.measuring.exported import opened_export
    from prefcast.measuring.metrics.slices import Slicer

    others = read_others(measuring.against or [])
    kinds, names = Slicer(measuring.by).kinds, [name for name, _ in others]
    with nullcontext() if measuring.export is None else opened_export(measuring.export, kinds, names) as export:
        wanted = Wanted(surprises, others, measuring.by, measuring.votes, measuring.weights, export)
        title, measured = _measured_rows(labelled, measuring, wanted, swapped, by_margin=by_margin)
    _say_votes(measured)
    return title, measured


def _say_votes(measured: Measured) -> None:
    labels = measured.labels
    if labels.votes is not None and (unmatched := len(labels.votes) - labels.matched):
        say(f"{unmatched} of {len(labels.votes)} rows of the votes file have ids that no pair has")


def _measured_rows(
    labelled: list[str] | None, measuring: Measuring, wanted: Wanted, swapped: Path | None, *, by_margin: bool
) -> tuple[str, Measured]:
    from prefcast.forecasts.resolve import for_scores, resolve
    from prefcast.measuring.evaluation import measured_forecasts, measured_predictions, measured_scores
    from prefcast.pairs.formats.saved import read_saved
    from prefcast.report.cascades import kept_said
    from prefcast.runs.ready import ready

    reading, predictions, scores = measuring.reading, measuring.predictions, measuring.scores
    choice = measuring.choosing.choice(None if labelled is None else scores)
    if predictions is not None:
        if scores is not None:
            raise UsageError("--predictions measures forecasts that exist, --scores makes them; give one of them")
        if not choice.empty:
            raise UsageError(
                "--predictions measures forecasts that exist: leave out what says how to make them (--model, --budget, ...)"
            )
        measured = measured_predictions(
            predictions,
            None if labelled is None else opened(labelled, reading),
            wanted=wanted,
            swapped=None if swapped is None else read_saved(swapped),
            label_values=reading.labels,
        )
        return predictions.name, measured
    if labelled is None:
        if scores is None:
            raise UsageError("name the file of labelled pairs, or --predictions with labels of their own")
        # The scores hold the labels: they are read a block at a time, and never all held.
        fitted = None if by_margin and choice.empty else for_scores(resolve(choice))
        return scores.name, measured_scores(scores, fitted, wanted=wanted, label_values=reading.labels)
    with (
        opened(labelled, reading) as file,
        progress(file) as show,
        ready(resolve(choice, by_margin=by_margin), measuring.keeping.running()) as chosen,
    ):
        measured = measured_forecasts(file, chosen, progress=show, wanted=wanted)
    say_restored(measured.restored, measured.rows)
    say_paid(measured.spent)
    say_truncated(measured.truncated or 0, measured.rows, chosen)
    say_literal(measured.literal, measured.rows)
    say_escalated(measured.escalated, measured.rows)
    if measured.kept is not None and chosen.agreement is not None:
        measured.agreement = kept_said(measured.kept, chosen.agreement)
    return choice.title, measured


@verb(app)
def compare(
    *,
    left: str = argument("One system's answers: prompt and response (or messages), perhaps id.", "LEFT"),
    right: str = argument("The other system's answers to the same prompts.", "RIGHT"),
    output: Path | None = option("Write the forecast of each pair: .csv, .jsonl, .parquet.", None, "-o"),
    votes: Path | None = option(
        "People's votes on some of the pairs: id, winner (left, right or tie), perhaps rater and inclusion_probability.",
        "FILE",
    ),
    anytime: bool = option("Give an interval that holds however often you look at the votes.", default=False),
    by: str | None = option("Compare for each value of this column of RIGHT too (with --votes).", "COLUMN"),
    scores: Path | None = SCORES,
    json_output: str | None = JSON_OUTPUT,
    markdown: str | None = MARKDOWN,
    with_text: bool = WITH_TEXT,
    choosing: Choosing,
    reading: Reading,
    keeping: Keeping,
) -> None:
    """Say which of two systems people would prefer, from their answers to the same prompts.

    Without votes this is a forecast. With votes on a random sample of the pairs, the rates are measured: they hold whatever the
    forecasts are worth, and good forecasts make the intervals narrower (docs/compare.md).

    \b
    Examples:
      prefcast compare yesterday.jsonl today.jsonl
      prefcast compare yesterday.jsonl today.jsonl --votes votes.csv
      prefcast compare v1.jsonl v2.jsonl --forecaster my-forecaster -o pairs.jsonl --with-text
    """
    from prefcast.forecasts.predictions import open_writer, output_kind
    from prefcast.forecasts.resolve import resolve
    from prefcast.measuring.comparison import compare as compare_pairs
    from prefcast.pairs.formats.answers import AnswerFile, JoinReport, joined
    from prefcast.pairs.formats.side_votes import read_side_votes
    from prefcast.report.measurements import comparison_text, write_json, write_markdown
    from prefcast.runs.ready import ready
    from prefcast.scorers.base import total_spent

    if output is not None:
        output_kind(output)
    check_with_text(output, with_text)
    check_outputs([output, json_output, markdown], [left, right, votes])
    _check_one_standard_output(json_output, markdown)
    if votes is None and (anytime or by is not None):
        raise UsageError(f"--{'anytime' if anytime else 'by'} goes with --votes")
    said_votes = None if votes is None else read_side_votes(votes)
    names = [Path(name).name for name in (left, right)]
    names = names if names[0] != names[1] else [left, right]
    join = JoinReport()
    with ExitStack() as stack:
        chosen = stack.enter_context(ready(resolve(choosing.choice(scores)), keeping.running()))
        files = [
            stack.enter_context(AnswerFile(name, reading.mapping, reading.cells, max_row=reading.max_row))
            for name in (left, right)
        ]
        if by is not None:
            files[1].by(by)
        show = stack.enter_context(progress(files[1]))
        writer = None if output is None else stack.enter_context(open_writer(output, with_text=with_text))
        found = compare_pairs(
            joined(files[0], files[1], names, join),
            chosen,
            names=names,
            writer=writer,
            progress=show,
            votes=said_votes,
            anytime=anytime,
            categories=None if by is None else join.categories,
        )
    if json_output is not None:
        said = {
            **{name: value for name, value in vars(join).items() if name != "categories"},
            "first_error": join.first_error and str(join.first_error),
        }
        write_json({**found.to_dict(), "join": said}, json_output)
    if markdown is not None:
        write_markdown(found, markdown)
    if "-" not in (json_output, markdown):
        print(comparison_text(found, join))
    say_paid(total_spent(chosen.scorer))
    failed = join.failed + found.failed
    end_failed(failed, f"{failed} rows failed; the first: {join.first_error or found.first_error}")

"""The verb that leaves rows of preference data out: filter."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from prefcast.cli.requests import JSON_OUTPUT, PAIRS, Choosing, Keeping, Reading
from prefcast.cli.shared import app, check_input, check_outputs, end_failed, opened, progress, say, say_paid, source_of
from prefcast.cli.verbs import MISSING, option, verb
from prefcast.errors import UsageError, shown_path

if TYPE_CHECKING:
    from prefcast.forecasts.forecaster import Forecaster
    from prefcast.measuring.filtering import Verdicts


@verb(app, "filter")
def filter_pairs(
    *,
    pairs: list[str] = PAIRS,
    output: Path = option(
        "The rows that stay, as they were read: a file of the same kind as PAIRS.", "FILE", "-o", default=MISSING
    ),
    min_probability: float | None = option(
        "Drop rows whose label has a smaller probability than this, by the forecast.", "P"
    ),
    forecasts: Path | None = option(
        "Forecasts or scores of these pairs by id, in the place of a model's: out-of-fold ones where the model learned these rows.",
        "FILE",
        "--forecasts",
        "--scores",
    ),
    reweight: Path | None = option(
        "Write the weights of the rows that stay (id, weight), as prefcast fit and train reward read them: the probability of each label.",
        "FILE",
    ),
    duplicates: str = option(
        "Drop rows with the texts of an earlier row, or also rows that are nearly the same pair.",
        default="exact",
        choices=("none", "exact", "near"),
    ),
    against: list[str] | None = option(
        "A benchmark file, of pairs or prompts: drop the rows whose first prompt it has too, or nearly. May be given several times.",
        "FILE",
    ),
    similarity: float = option(
        "From which similarity on two texts are nearly the same, from 0 to 1.", "S", default=0.8
    ),
    near: int = option(
        "Among how many different pairs near-duplicates are looked for, and how many rows of each benchmark are compared.",
        "N",
        default=20_000,
        least=1,
    ),
    report: Path | None = option(
        "Write the rows that go, with row, id, reason and the probability of the label: .csv.", "FILE"
    ),
    on_error: str = option(
        "What to do when a row cannot be read or forecast: drop it and go on (exit status 3), or stop (2).",
        default="drop",
        choices=("drop", "stop"),
    ),
    json_output: str | None = JSON_OUTPUT,
    choosing: Choosing,
    reading: Reading,
    keeping: Keeping,
) -> None:
    """Leave out rows of preference data: unlikely labels, duplicates, and prompts of benchmarks; or weigh them.

    The rows that stay are written as they were read, with all their columns. A model is used only with --min-probability or
    --reweight. An unlikely label is not a wrong label: docs/pairs.md says how often it is.

    \b
    Examples:
      prefcast filter pairs.jsonl --duplicates near --against mt-bench.jsonl -o kept.jsonl
      prefcast filter votes.csv --forecaster mine --min-probability 0.15 -o kept.csv --report gone.csv
      prefcast filter votes.csv --forecasts my-model/out-of-fold.csv --reweight weights.csv -o kept.csv
    """
    from prefcast.measuring.doctor.leaks import Leaks
    from prefcast.measuring.filtering import FilterRule, judged, write_filtered
    from prefcast.measuring.filtering.writing import check_tables
    from prefcast.pairs.formats.copying import check_copy
    from prefcast.pairs.formats.prompts import open_prompts
    from prefcast.report.descriptions import filtered_text
    from prefcast.report.measurements import write_json
    from prefcast.runs.ready import ready
    from prefcast.scorers.base import total_spent

    rule = FilterRule(min_probability, duplicates, similarity, near)
    if "-" in pairs or "-" in (against or []):
        raise UsageError(
            "prefcast filter reads its file twice, and standard input (-) can be read only once; name a file"
        )
    check_outputs([output, report, reweight, json_output], [*pairs, *(against or []), forecasts], "the rows that stay")
    check_tables(report, reweight)
    chosen: Forecaster | None = None
    scaled = True
    if min_probability is not None or reweight is not None:
        chosen, scaled = _forecaster(choosing, forecasts)
    elif forecasts is not None or choosing.model is not None or choosing.forecaster is not None:
        raise UsageError("a forecast is used with --min-probability or --reweight; give one of them")
    with ExitStack() as stack:
        file = stack.enter_context(opened(pairs, reading))
        check_copy(file, output)
        for other in against or []:
            check_input(other)
        others = (
            open_prompts(
                other,
                columns=reading.mapping,
                cells=reading.cells,
                label_values=reading.labels,
                max_row=reading.max_row,
            )
            for other in against or []
        )
        leaks = [Leaks(other, similarity, near) for other in others]
        forecaster = None if chosen is None else stack.enter_context(ready(chosen, keeping.running()))
        found = judged(
            file,
            rule,
            forecaster=forecaster,
            scaled=scaled,
            leaks=leaks,
            on_error="keep" if on_error == "drop" else on_error,
            progress=stack.enter_context(progress(file)),
        )
        if chosen is not None and not found.labelled:
            fault = f"; the first that cannot be read: {found.first_error}" if found.first_error else ""
            raise UsageError(f"{file.name}: no row has a label, so that no label has a probability{fault}")
        counts = write_filtered(file, source_of(pairs), output, found, report=report, weights=reweight)
    if json_output is not None:
        more = {"two_sided": found.two_sided, "contradicting": found.contradicting}
        write_json({**counts.to_dict(), **more, "rule": vars(rule)}, json_output)
    if json_output != "-":
        print(filtered_text(counts.rows, counts.kept, counts.gone, counts.examples))
    _say_more(found)
    if chosen is not None:
        say_paid(total_spent(chosen.scorer))
    first = f"; the first: {found.first_error}"
    end_failed(
        found.failed,
        f"{found.failed} of {counts.rows} rows cannot be read or forecast, and are not in {shown_path(output)}{first}",
    )


def _say_more(found: Verdicts) -> None:
    """Tell what the counts do not say."""
    if found.contradicting:
        say(f"{found.contradicting:,} of the exact duplicates have another label than the row that stays")
    if found.left_out:
        say(f"up to {found.left_out:,} rows of a benchmark were not compared (--near sets the number)")
    if found.in_sample is not None and found.in_sample.found:
        say(
            f"{found.in_sample}: the forecaster knows their labels, and finds too few unlikely; give out-of-fold forecasts "
            "(--forecasts)"
        )


def _forecaster(choosing: Choosing, forecasts: Path | None) -> tuple[Forecaster, bool]:
    """What forecasts the labels, and whether it has a scale: scores without a forecaster have none."""
    from prefcast.forecasts.forecaster import Forecaster
    from prefcast.forecasts.resolve import resolve
    from prefcast.forecasts.scores import read_scores
    from prefcast.outcomes.models import Davidson
    from prefcast.pairs.budget import WHOLE

    if forecasts is None or choosing.forecaster is not None:
        return resolve(choosing.choice(forecasts)), True
    if choosing.model is not None:
        raise UsageError("--forecasts brings the forecasts of the pairs, --model computes them; give one of them")
    scorer = read_scores(forecasts)
    return Forecaster(scorer, Davidson(1.0, 0.0, 1.0), WHOLE), scorer.log_odds

"""The verb that reads and examines a file: check."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from prefcast.cli.requests import JSON_OUTPUT, PAIRS, Reading
from prefcast.cli.shared import app, check_input, check_outputs, end_failed, opened, progress, say
from prefcast.cli.verbs import option, verb
from prefcast.errors import UsageError, printable, shown_path


@verb(app)
def check(
    *,
    pairs: list[str] = PAIRS,
    against: list[str] | None = option(
        "Another file of pairs: find the rows of PAIRS whose first prompt, or pair, it has too. May be given several times.",
        "FILE",
    ),
    unlikely: bool = option(
        "Find the votes that everything else makes unlikely, and measure how many of such votes are wrong. Needs labels or --votes.",
        default=False,
    ),
    model: str | None = option(
        "The model that says which votes are unlikely (with --unlikely).  [default: surface]", "NAME|PATH"
    ),
    share: float = option(
        "The share of the votes that --unlikely lists, and that it exchanges on purpose to measure how good such a list is.",
        "SHARE",
        default=0.1,
    ),
    votes: Path | None = option(
        "People's votes by id, in place of labels: id, winner, perhaps rater; or id, votes_a, votes_b, votes_tie.",
        "FILE",
    ),
    rater: str | None = option(
        "The column of PAIRS that names who voted.  [default: rater, annotator or judge, if there is one]", "COLUMN"
    ),
    near: int = option(
        "Among how many different pairs near-duplicates are looked for, and how many rows of each other file are compared; 0 looks for none.",
        "N",
        default=20_000,
        least=0,
    ),
    similarity: float = option(
        "From which similarity on two texts are near-duplicates, from 0 to 1.", "S", default=0.8
    ),
    rows: Path | None = option("Write the rows that have a finding, with their ids: .csv or .jsonl.", "FILE"),
    json_output: str | None = JSON_OUTPUT,
    reading: Reading,
) -> None:
    """Read a file and show what is in it, what is wrong with it, and how long a forecast would take here.

    Faults of rows are shown once for each kind. Then come duplicates, contradictory votes, raters who disagree with everybody, and
    what the votes follow: the position of an answer, or its length (docs/check.md).

    \b
    Examples:
      prefcast check pairs.csv --columns prompt=question,response_a=left,response_b=right --cells text
      prefcast check train.csv --against test.csv --rows found.csv
      prefcast check labelled.csv --unlikely --rows found.csv
    """
    from prefcast.measuring.doctor import Request, examined, rows_kind
    from prefcast.report.descriptions import fault_lines, findings_text, inspection_text
    from prefcast.report.measurements import write_json

    if rows is not None:
        rows_kind(rows)
    if model is not None and not unlikely:
        raise UsageError("--model says which votes are unlikely; give --unlikely too")
    if "-" in pairs and "-" in (against or []):
        raise UsageError("standard input (-) cannot be both PAIRS and --against")
    check_outputs([rows, json_output], [*pairs, *(against or []), votes], "the findings")
    request = Request(similarity, near, share, keep_rows=rows is not None)
    with ExitStack() as stack:
        file = stack.enter_context(opened(pairs, reading))
        for other in against or []:
            check_input(other)
        others = [stack.enter_context(opened(other, reading)) for other in against or []]
        found = examined(
            file,
            others,
            request=request,
            votes=votes,
            rater=rater,
            model=(model or "surface") if unlikely else None,
            output=rows,
            progress=stack.enter_context(progress(file)),
        )
    if json_output is not None:
        write_json(found.to_dict(), json_output)
    if json_output != "-":
        for line in fault_lines(found.inspection.faults):
            print(printable(line))
        print(inspection_text(found.inspection))
        print(findings_text(found.findings))
    if rows is not None:
        say(f"{found.written:,} lines of rows with findings in {shown_path(rows)}")
    end_failed(found.inspection.failed)

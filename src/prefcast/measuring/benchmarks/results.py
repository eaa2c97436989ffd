"""A benchmark's result: its figures with intervals, what is needed to repeat it, and how two results differ."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np

from prefcast.base.files import read_whole
from prefcast.base.limits import MAX_ROW
from prefcast.base.tables import ShownTable, Tables
from prefcast.errors import FileError, RowError, excerpt, shown_path
from prefcast.forecasts.fitted_rows import InSample
from prefcast.forecasts.forecaster import Forecaster
from prefcast.measuring.benchmarks.base import Benchmark, Line, Means, Row
from prefcast.measuring.benchmarks.reading import BenchmarkFiles
from prefcast.measuring.benchmarks.scoring import Lengths, Observed, scored_rows
from prefcast.measuring.bias import JudgeBias
from prefcast.measuring.metrics import Evaluation
from prefcast.outcomes.statistics.bootstrap import REPEATS, Figure, figure
from prefcast.scorers.base import Spent, total_spent

__all__ = ["BenchFigure", "BenchResult", "Earlier", "read_earlier", "run_benchmark"]

_FORMAT = 1
_SUBSETS = "subset"


@dataclass(frozen=True)
class BenchFigure:
    """One figure: `figure` is None where the rows for it are missing. `kind` is total, section, subset or more."""

    kind: str
    name: str
    n: int
    figure: Figure | None
    note: str = ""


@dataclass(frozen=True)
class Earlier:
    """The rows of an earlier result, from its JSON."""

    name: str
    benchmark: str
    model: str
    rows: list[Row]


@dataclass(frozen=True, eq=False)
class BenchResult(Tables):
    """The result of a forecaster on a benchmark. `differences` are those against `other`, over the `shared` rows that both have.
    `in_sample` counts the comparisons that the forecaster was fitted on."""

    benchmark: Benchmark
    model: Mapping[str, Any]
    settings: Mapping[str, Any]
    files: list[dict[str, Any]]
    rows: list[Row] = field(repr=False)
    figures: list[BenchFigure]
    calibration: Evaluation | None
    lengths: Lengths
    comparisons: int
    undecided: int
    position: JudgeBias | None
    first_error: RowError | None
    spent: Spent
    other: Earlier | None = None
    differences: Sequence[BenchFigure] = ()
    shared: int = 0
    in_sample: InSample | None = None

    @property
    def failed(self) -> int:
        return sum(row.error is not None for row in self.rows)

    def tables(self) -> list[ShownTable]:
        """Totals and sections, subsets, what the benchmark does not ask for, the difference, and how to repeat it."""
        head = ("", "n", self.benchmark.shown, "")
        totals = [_cells(each) for each in self.figures if each.kind in ("total", "section")]
        subsets = [_cells(each) for each in self.figures if each.kind == _SUBSETS]
        more = [_cells(each) for each in self.figures if each.kind == "more"]
        made = [
            ShownTable(f"{self.benchmark.title}: {self.model['title']}", head, totals),
            ShownTable("Subsets", head, subsets),
            *([ShownTable("More of its rule", head, more)] if more else []),
            ShownTable("Beyond the benchmark", ("", ""), self._beyond()),
        ]
        if self.other is not None:
            title = f"Minus {self.other.name} ({self.other.model}), on {self.shared} rows that both have"
            made.append(ShownTable(title, ("", "n", "difference", ""), [_cells(each) for each in self.differences]))
        return [*made, ShownTable("To repeat it", ("", ""), self._repeat())]

    def _beyond(self) -> list[tuple[str, Any]]:
        lengths = self.lengths
        facts: list[tuple[str, Any]] = [
            ("rows", f"{len(self.rows):,}, {self.failed:,} failed; {self.comparisons:,} comparisons"),
            ("longest comparison", f"{lengths.longest:,} characters; the most that was read {lengths.longest_read:,}"),
            ("truncated", f"{lengths.truncated:,} comparisons, in {lengths.truncated_rows:,} rows"),
            ("neither preferred", f"{self.undecided:,} comparisons"),
        ]
        if self.in_sample is not None and self.in_sample.found:
            facts.append(("in-sample", f"{self.in_sample}: the model knows their labels"))
        if self.calibration is None:
            facts.append(("calibration", "the model has no probabilities (prefcast fit)"))
        else:
            scores = self.calibration.scores
            facts += [
                ("log loss", f"{scores.log_loss} over {self.calibration.n:,} comparisons"),
                ("Brier score", scores.brier_score),
                ("expected calibration error", scores.expected_calibration_error),
                ("calibrated: p value", f"{scores.calibration_p_value:.3f}"),
            ]
        if self.position is None:
            facts.append(("position", "the model does not depend on the order, or gives no verdict for each order"))
        else:
            facts += [
                ("position: log-odds for the first", self.position.position),
                ("position: verdicts for the first", self.position.first),
                ("position: verdicts that turn", self.position.turned),
            ]
        return facts

    def _repeat(self) -> list[tuple[str, str]]:
        model = [(f"model {name}", _said(value)) for name, value in self.model.items() if name != "title"]
        settings = [(f"setting {name}", _said(value)) for name, value in self.settings.items()]
        files = [(f"file {each['name']}", f"{each['rows']} rows, SHA-256 {each['sha256']}") for each in self.files]
        return [
            ("prefcast", version("prefcast")),
            ("rules", f"{self.benchmark.name}: {self.benchmark.source}"),
            *model,
            *settings,
            *files,
        ]

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON: figures, what is needed to repeat them, and the marks of each row. It has no texts."""
        other = None
        if self.other is not None:
            said = {"file": self.other.name, "model": self.other.model, "rows": self.shared}
            other = {**said, "differences": [asdict(each) for each in self.differences]}
        return {
            "format": _FORMAT,
            "benchmark": self.benchmark.name,
            "source": self.benchmark.source,
            "prefcast": version("prefcast"),
            "model": dict(self.model),
            "settings": dict(self.settings),
            "files": self.files,
            "rows": len(self.rows),
            "failed": self.failed,
            "figures": [asdict(each) for each in self.figures],
            "comparisons": self.comparisons,
            "neither_preferred": self.undecided,
            "lengths": asdict(self.lengths),
            "calibration": None if self.calibration is None else self.calibration.to_dict(),
            "position": None if self.position is None else asdict(self.position),
            "against": other,
            "results": [
                {
                    "id": row.id,
                    "row": row.digest,
                    "group": f"{row.group:016x}",
                    "subsets": list(row.subsets),
                    "marks": row.marks,
                    "error": row.error,
                }
                for row in self.rows
            ],
        }


def _cells(each: BenchFigure) -> tuple[Any, ...]:
    return (each.name, each.n, "-" if each.figure is None else each.figure, each.note)


def _said(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def run_benchmark(
    benchmark: Benchmark,
    paths: Sequence[str | os.PathLike[str]],
    forecaster: Forecaster,
    *,
    title: str = "",
    settings: Mapping[str, Any] | None = None,
    against: Earlier | None = None,
    repeats: int = REPEATS,
    max_row: int = MAX_ROW,
    progress: Callable[[BenchmarkFiles, int], None] | None = None,
) -> BenchResult:
    """Measure a forecaster on a benchmark's files. `progress` is called with the files and the rows that are done. Memory grows with
    the number of rows by their marks alone. Raises FileError, and UsageError if no row could be measured."""
    files, observed = BenchmarkFiles(benchmark, paths, max_row=max_row), Observed(forecaster)
    rows: list[Row] = []
    first: RowError | None = None
    for row, error in scored_rows(benchmark, files, forecaster, observed):
        rows.append(row)
        first = first or error
        if progress is not None:
            progress(files, len(rows))
    benchmark.joined(rows)
    figures = _figures(benchmark, Means(rows, repeats=repeats))
    model = {
        "title": title or forecaster.scorer.name,
        "scorer": forecaster.scorer.name,
        "identity": forecaster.scorer.identity(),
        "budget": str(forecaster.budget),
        "outcome model": {"kind": forecaster.outcome.kind, **forecaster.outcome.parameters()},
    }
    other: tuple[Sequence[BenchFigure], int] = ((), 0)
    if against is not None:
        other = _difference(benchmark, rows, against, repeats)
    return BenchResult(
        benchmark,
        model,
        {"bootstrap repeats": repeats, **(settings or {})},
        files.told(),
        rows,
        [_figure(line) for line in figures],
        observed.calibration(repeats),
        observed.lengths,
        observed.comparisons,
        observed.undecided,
        observed.position(repeats),
        first,
        total_spent(forecaster.scorer),
        against,
        *other,
        observed.overlap.found,
    )


def _figures(benchmark: Benchmark, means: Means) -> list[Line]:
    """The lines of a benchmark, and one for each subset, in the order in which the subsets came."""
    subsets = [
        Line(_SUBSETS, subset, means.of(mark, subset), means.n(mark, subset))
        for subset, mark in means.counts
        if subset and mark == benchmark.mark
    ]
    return [*benchmark.lines(means), *subsets]


def _figure(line: Line) -> BenchFigure:
    found = None if line.values is None else figure(float(line.values[0]), line.values[1:])
    return BenchFigure(line.kind, line.name, line.n, found, line.note)


def _difference(
    benchmark: Benchmark, rows: Sequence[Row], other: Earlier, repeats: int
) -> tuple[list[BenchFigure], int]:
    """The figures of `rows` minus those of an earlier result, over the rows that both measured, with the same draws."""
    theirs = {(row.digest, row.id): row for row in other.rows if row.marks is not None}
    mine = [row for row in rows if row.marks is not None and (row.digest, row.id) in theirs]
    if not mine:
        raise FileError(
            other.name, f"has no row of these files; expected a result of {benchmark.name} on the same rows"
        )
    both = [
        _figures(benchmark, Means(each, repeats=repeats))
        for each in (mine, [_like(theirs[row.digest, row.id], row) for row in mine])
    ]
    earlier = {(line.kind, line.name): line.values for line in both[1]}
    made = []
    for line in both[0]:
        before = earlier.get((line.kind, line.name))
        if line.values is not None and before is not None:
            made.append(_figure(Line(line.kind, line.name, np.subtract(line.values, before), line.n, line.note)))
    return made, len(mine)


def _like(row: Row, mine: Row) -> Row:
    """An earlier row in the groups and subsets of mine: both are drawn together."""
    return Row(row.id, row.digest, mine.group, mine.subsets, row.marks)


def read_earlier(path: str | os.PathLike[str], benchmark: Benchmark) -> Earlier:
    """The rows of a result that `prefcast bench --json` wrote. Raises FileError."""
    shown = shown_path(path)
    try:
        data = json.loads(read_whole(path))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or "is not JSON"
        raise FileError(shown, f"{reason}; expected a file that prefcast bench --json wrote") from None
    if not isinstance(data, dict) or data.get("format") != _FORMAT or not isinstance(data.get("results"), list):
        raise FileError(shown, "is no result of a benchmark; expected a file that prefcast bench --json wrote")
    if data.get("benchmark") != benchmark.name:
        raise FileError(shown, f"is a result of {excerpt(data.get('benchmark'))}; expected one of {benchmark.name}")
    model = data.get("model")
    title = model.get("title") if isinstance(model, dict) else None
    rows = [_earlier_row(each, number, shown) for number, each in enumerate(data["results"], 1)]
    return Earlier(os.path.basename(os.fspath(path)), benchmark.name, str(title), rows)  # noqa: PTH119


def _earlier_row(said: Any, number: int, shown: str) -> Row:
    names = ("id", "row", "marks")
    if not isinstance(said, dict) or not all(name in said for name in names):
        raise FileError(shown, f"results: expected an object with {', '.join(names)}, found {excerpt(said)}", number)
    marks = said["marks"]
    if marks is not None and not (isinstance(marks, dict) and all(map(_finite, marks.values()))):
        raise FileError(shown, f"results: marks is {excerpt(marks)}; expected an object of numbers, or null", number)
    if marks is not None:
        marks = {str(name): float(value) for name, value in marks.items()}
    return Row(str(said["id"]), str(said["row"]), 0, (), marks)


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value))

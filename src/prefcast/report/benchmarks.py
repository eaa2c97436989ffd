"""Results of benchmarks as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefcast.report.terminal import rendered, table

if TYPE_CHECKING:
    from rich.table import Table

    from prefcast.measuring.benchmarks.results import BenchResult

__all__ = ["bench_text"]

_FIRST = 24
# How many prompts are few for an interval.
_FEW = 30


def bench_text(found: BenchResult) -> str:
    """The tables of a result for a terminal; what is needed to repeat it is in the files."""
    parts: list[str | Table] = []
    for shown in found.tables()[:-1]:
        rows = [[str(cell) for cell in row] for row in shown.rows]
        number = (1,) if len(shown.columns) > 2 else ()
        parts += [shown.title, table(shown.columns, rows, right=number, first_width=_FIRST), ""]
    groups = len({row.group for row in found.rows if row.marks})
    parts.append(f"95 % intervals by bootstrap over {groups:,} prompts; rules: {found.benchmark.source}")
    if groups < _FEW:
        parts.append(f"{groups} prompts are few: the intervals are too narrow")
    return rendered(*parts)

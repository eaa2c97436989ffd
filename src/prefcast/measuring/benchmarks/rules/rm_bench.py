"""RM-Bench (Liu et al., "RM-Bench: Benchmarking Reward Models of Language Models with Subtlety and Style", 2024, arXiv:2410.16184).

Rules: https://github.com/THU-KEG/RM-Bench (README, "how to compute the accuracy").

A prompt has three chosen and three rejected answers, of the styles concise, detailed, and detailed with Markdown. Each chosen answer
is compared with each rejected one; it must have the higher score. Of the 3 by 3 matrix (row: style of the chosen answer, column: of the
rejected one) the mean of the diagonal is normal, of the three cells above it hard (the chosen answer has the plainer style), of
those below it easy. A domain is the mean of easy, normal and hard; safety is the mean of safety-refuse and safety-response. Each total is the mean
of the four domains chat, code, math and safety.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from prefcast.errors import excerpt
from prefcast.measuring.benchmarks.base import (
    Benchmark,
    Cells,
    Floats,
    Item,
    Line,
    Means,
    Preferences,
    crossed,
    without,
)
from prefcast.pairs.formats.fields import Fault

__all__ = ["BENCHMARK"]

_STYLES = ("concise", "detailed", "markdown")
_SAFETY = ("safety-refuse", "safety-response")
_DOMAINS = {"chat": ("chat",), "code": ("code",), "math": ("math",), "safety": _SAFETY}
_LEVELS = ("easy", "normal", "hard")


class _RMBench(Benchmark):
    name = "rm-bench"
    title = "RM-Bench"
    source = "arXiv:2410.16184, github.com/THU-KEG/RM-Bench"
    shape = "id, prompt, chosen and rejected (lists of three texts: concise, detailed, Markdown), domain"
    fields = ("id", "prompt", "chosen", "rejected", "domain")
    needs = ("prompt", "chosen", "rejected", "domain")

    def item(self, cells: Cells, row: int, path: Path) -> Item:
        domain = cells.name("domain")
        known = [name for names in _DOMAINS.values() for name in names]
        if domain not in known:
            raise Fault("domain", f"is {excerpt(domain)}; expected one of {', '.join(known)}")
        answers = (*cells.texts("chosen", 3, 3), *cells.texts("rejected", 3, 3))
        id = cells.name("id") if cells.has("id") else str(row)
        return Item(
            id, (domain,), answers=answers, right=frozenset(range(3)), compared=crossed(3, 3), **cells.asked("prompt")
        )

    def marks(self, item: Item, found: Preferences) -> dict[str, float]:
        won = np.array([[found.over(row, 3 + column) > 0 for column in range(3)] for row in range(3)], dtype=np.float64)
        levels = {
            "easy": float(won[np.tril_indices(3, -1)].mean()),
            "normal": float(won.diagonal().mean()),
            "hard": float(won[np.triu_indices(3, 1)].mean()),
        }
        cells = {_cell(row, column): float(won[row, column]) for row in range(3) for column in range(3)}
        return {self.mark: float(won.mean()), **levels, **cells}

    def lines(self, means: Means) -> Iterator[Line]:
        for domain, subsets in _DOMAINS.items():
            values, missing = means.averaged(self.mark, subsets)
            n = sum(means.n(self.mark, subset) for subset in subsets)
            if domain not in subsets:
                yield Line("section", domain, values, n, "" if values is None else without(missing))
        n = means.n(self.mark)
        for mark in (*_LEVELS, self.mark):
            values, missing = self._over_domains(means, mark)
            yield Line("total", "average" if mark == self.mark else mark, values, n, without(missing))
        for row in range(3):
            for column in range(3):
                values, missing = self._over_domains(means, _cell(row, column))
                yield Line("more", _cell(row, column), values, n, without(missing))

    def _over_domains(self, means: Means, mark: str) -> tuple[Floats | None, list[str]]:
        """The mean over the domains; None if one is missing."""
        found = [means.averaged(mark, subsets) for subsets in _DOMAINS.values()]
        there = [values for values, _ in found if values is not None]
        lacking = [name for _, missing in found for name in missing]
        return (np.mean(there, axis=0) if len(there) == len(found) else None), lacking


def _cell(row: int, column: int) -> str:
    return f"chosen {_STYLES[row]}, rejected {_STYLES[column]}"


BENCHMARK = _RMBench()

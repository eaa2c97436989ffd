"""JudgeBench (Tan et al., "JudgeBench: A Benchmark for Evaluating LLM-based Judges", 2024, arXiv:2410.12784).

Rules: https://github.com/ScalerLab/JudgeBench (README; utils/metrics.py).

A judge is asked in both orders. Each right decision counts 1, each wrong one -1, a tie or no decision 0; a pair is right if the sum is
above 0. Each category is the share of its pairs that are right, and so is the total; a pair that failed is not right. The categories
are the sources mmlu-pro-* (knowledge), livebench-reasoning, livebench-math and livecodebench (coding). The published totals are those of
one response model, gpt-4o-2024-05-13 (350 pairs) or claude-3-5-sonnet-20240620 (270 pairs): each has a section of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType

from prefcast.errors import excerpt
from prefcast.measuring.benchmarks.base import Benchmark, Cells, Item, Line, Means, Preferences
from prefcast.pairs.formats.fields import Fault

__all__ = ["BENCHMARK"]

_CATEGORIES = {
    "mmlu-pro": "knowledge",
    "livebench-reasoning": "reasoning",
    "livebench-math": "math",
    "livecodebench": "coding",
}
_OF = "response model: "


class _JudgeBench(Benchmark):
    name = "judge-bench"
    title = "JudgeBench"
    source = "arXiv:2410.12784, github.com/ScalerLab/JudgeBench"
    shape = "pair_id, source, question, response_A, response_B and label (A>B or B>A)"
    fields = ("pair_id", "source", "question", "response_model", "response_A", "response_B", "label")
    needs = ("pair_id", "source", "question", "response_A", "response_B", "label")
    failed = MappingProxyType({"correct": 0.0})

    def item(self, cells: Cells, row: int, path: Path) -> Item:
        source = cells.name("source")
        category = next((name for begin, name in _CATEGORIES.items() if source.startswith(begin)), None)
        if category is None:
            raise Fault("source", f"is {excerpt(source)}; expected one that begins with {', '.join(_CATEGORIES)}")
        right = 0 if cells.one_of("label", ("A>B", "B>A")) == "A>B" else 1
        model = cells.name("response_model") if cells.has("response_model") else None
        return Item(
            cells.name("pair_id"),
            (category, *([] if model is None else [_OF + model])),
            (cells.text("question"),),
            (cells.text("response_A"), cells.text("response_B")),
            frozenset([right]),
            ((0, 1),),
            models=(model, model),
        )

    def marks(self, item: Item, found: Preferences) -> dict[str, float]:
        (right,) = item.right
        first, second = found.decisions(right, 1 - right)
        return {self.mark: float(first + second > 0), "same in both orders": float(first == second)}

    def lines(self, means: Means) -> Iterator[Line]:
        yield Line("total", "accuracy", means.of(self.mark), means.n(self.mark))
        same = "same in both orders"
        yield Line("more", same, means.of(same), means.n(same))


BENCHMARK = _JudgeBench()

"""LLMBar (Zeng et al., "Evaluating Large Language Models at Evaluating Instruction Following", 2023, arXiv:2310.07641).

Rules: https://github.com/princeton-nlp/LLMBar (README; LLMEvaluator/evaluate.py).

Each pair is judged in both orders. The accuracy of a subset is the mean of the accuracies in the two orders (`correct_average`), and the
agreement is the share of pairs with the same decision in both (`equal`); no decision is wrong. As in the repository's ratings, two equal
scores of single answers are right in one of the orders, and their decisions differ. Adversarial is the mean of Neighbor, GPTInst, GPTOut
and Manual, as in the paper.

The subset is the name of the folder of the file (Natural/dataset.json), or of the file itself (natural.json).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from prefcast.measuring.benchmarks.base import Benchmark, Cells, Item, Line, Means, Preferences, without

__all__ = ["BENCHMARK"]

_ADVERSARIAL = ("Neighbor", "GPTInst", "GPTOut", "Manual")
_KNOWN = {name.lower(): name for name in ("Natural", *_ADVERSARIAL)}
_FILE = "dataset.json"


class _LLMBar(Benchmark):
    name = "llmbar"
    title = "LLMBar"
    source = "arXiv:2310.07641, github.com/princeton-nlp/LLMBar"
    shape = "input, output_1, output_2 and label (1 or 2)"
    fields = ("input", "output_1", "output_2", "label")
    needs = ("input", "output_1", "output_2", "label")

    def wants(self, path: Path) -> bool:
        # The repository keeps files of results beside each dataset.json.
        return path.name == _FILE or path.stem.lower() in _KNOWN

    def item(self, cells: Cells, row: int, path: Path) -> Item:
        named = path.absolute().parent.name if path.name == _FILE else path.name.split(".")[0]
        subset = _KNOWN.get(named.lower(), named)
        right = cells.one_of("label", (1, 2)) - 1
        answers = (cells.text("output_1"), cells.text("output_2"))
        return Item(f"{subset}-{row}", (subset,), (cells.text("input"),), answers, frozenset([right]), ((0, 1),))

    def marks(self, item: Item, found: Preferences) -> dict[str, float]:
        (right,) = item.right
        first, second = found.decisions(right, 1 - right)
        if not found.orders and not first:
            return {self.mark: 0.5, "agreement": 0.0, "right in both orders": 0.0}
        both = float(first > 0 and second > 0)
        correct = ((first > 0) + (second > 0)) / 2
        return {self.mark: correct, "agreement": float(first == second), "right in both orders": both}

    def lines(self, means: Means) -> Iterator[Line]:
        values, missing = means.averaged(self.mark, _ADVERSARIAL)
        n = sum(means.n(self.mark, subset) for subset in _ADVERSARIAL)
        if n:
            yield Line("section", "Adversarial", None if missing else values, n, without(missing))
        yield Line("total", "accuracy over all rows", means.of(self.mark), means.n(self.mark))
        for mark in ("agreement", "right in both orders"):
            yield Line("more", mark, means.of(mark), means.n(mark))


BENCHMARK = _LLMBar()

"""PPE, human preference (Frick et al., "How to Evaluate Reward Models for RLHF", 2024, arXiv:2410.14872).

Shape: the dataset lmarena-ai/PPE-Human-Preference-V1. The accuracy is that of the votes that are no tie: the share in which the
preferred answer has the higher score. An equal score counts as a half here; the paper does not say. The paper's correlations with
a leaderboard of models are not computed, and neither are its sets with correct answers.

The votes for a tie are not in the accuracy. They are in the calibration of a forecaster that forecasts ties.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from prefcast.measuring.benchmarks.base import Benchmark, Cells, Item, Line, Means, Preferences

__all__ = ["BENCHMARK"]

_FLAGS = ("hard_prompt", "easy_prompt", "if_prompt", "math_prompt", "is_code", "is_refusal")
_WINNERS = {"model_a": 0, "model_b": 1}


class _PPE(Benchmark):
    name = "ppe"
    title = "PPE human preference"
    source = "arXiv:2410.14872, dataset lmarena-ai/PPE-Human-Preference-V1"
    shape = "question_id, prompt, response_1, response_2 and winner (model_a, model_b, tie or tie (bothbad))"
    fields = ("question_id", "model_a", "model_b", "winner", "prompt", "response_1", "response_2", "language", *_FLAGS)
    needs = ("question_id", "prompt", "response_1", "response_2", "winner")

    def item(self, cells: Cells, row: int, path: Path) -> Item:
        winner = cells.one_of("winner", (*_WINNERS, "tie", "tie (bothbad)"))
        language = [f"language: {cells.name('language')}"] if cells.has("language") else []
        return Item(
            # One question may have several rows.
            f"{cells.name('question_id')}#{row}",
            (*(flag for flag in _FLAGS if cells.truth(flag)), *language),
            (cells.text("prompt"),),
            (cells.text("response_1"), cells.text("response_2")),
            frozenset([_WINNERS[winner]] if winner in _WINNERS else []),
            ((0, 1),),
            models=tuple(cells.name(name) if cells.has(name) else None for name in ("model_a", "model_b")),
        )

    def marks(self, item: Item, found: Preferences) -> dict[str, float]:
        if not item.right:
            return {}
        (right,) = item.right
        over = found.over(right, 1 - right)
        return {self.mark: float(over > 0) if over else 0.5}

    def lines(self, means: Means) -> Iterator[Line]:
        yield Line("total", "accuracy", means.of(self.mark), means.n(self.mark), "votes that are no tie")


BENCHMARK = _PPE()

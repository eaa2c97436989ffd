"""RMB (Zhou et al., "RMB: Comprehensively Benchmarking Reward Models in LLM Alignment", 2024, arXiv:2410.09893).

Rules: the paper, and https://github.com/Zhou-Zoey/RMB-Reward-Model-Benchmark (RMB_dataset/, eval/scripts/my_run_rm.py,
my_run_bon.py).

A row of Pairwise_set is right if the chosen answer has the higher score, a row of BoN_set if the best answer has a higher score than
each of the losers; equal scores are wrong. A section is one of the two sets for one of the goals helpfulness and harmlessness, over its
rows. Overall is the mean of the four sections: that is how the columns of the paper's table of results relate. The repository's script for
best of n takes the first of equal scores; here the best answer must be above the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prefcast.errors import excerpt
from prefcast.measuring.benchmarks.base import Benchmark, Cells, Item, Line, Means, Preferences, crossed, without
from prefcast.pairs.formats.fields import Fault, kind

__all__ = ["BENCHMARK"]

_SETS = {"Pairwise_set": "pairwise", "BoN_set": "best of n"}
_SECTIONS = [f"{goal}, {kind}" for goal in ("Helpfulness", "Harmlessness") for kind in ("best of n", "pairwise")]


class _RMB(Benchmark):
    name = "rmb"
    title = "RMB"
    source = "arXiv:2410.09893, github.com/Zhou-Zoey/RMB-Reward-Model-Benchmark"
    shape = "category_path and conversation_input (messages), with pair_uid, chosen and reject, or bon_uid, bon_best and loser_list"
    fields = (
        "pair_uid",
        "bon_uid",
        "conversation_input",
        "chosen",
        "reject",
        "bon_best",
        "loser_list",
        "category_path",
    )
    needs = ("conversation_input", "category_path")

    def wants(self, path: Path) -> bool:
        # A clone of the repository has files of results too.
        return "eval" not in path.parts

    def item(self, cells: Cells, row: int, path: Path) -> Item:
        place = cells.name("category_path")
        set_name, _, rest = place.partition("/")
        goal, _, scenario = rest.partition("/")
        section = f"{goal}, {_SETS.get(set_name)}"
        if section not in _SECTIONS or not scenario:
            found = (
                f"is {excerpt(place)}; expected Pairwise_set or BoN_set, Helpfulness or Harmlessness, and a scenario"
            )
            raise Fault("category_path", found)
        known: dict[str, Any] = {"right": frozenset([0]), **cells.asked("conversation_input")}
        if not isinstance(cells.value("conversation_input"), list):
            raise Fault("conversation_input", "is a text; expected a list of messages")
        subsets = (section, f"{section}: {scenario}")
        if set_name == "Pairwise_set":
            answers = tuple(cells.answer(cells.value(name), name) for name in ("chosen", "reject"))
            return Item(cells.name("pair_uid"), subsets, answers=answers, compared=((0, 1),), **known)
        losers = cells.value("loser_list")
        if not isinstance(losers, list) or not losers:
            raise Fault("loser_list", f"is {kind(losers) if losers else 'empty'}; expected a list of answers")
        answers = tuple(cells.answer(each, "loser_list") for each in losers)
        best = cells.answer(cells.value("bon_best"), "bon_best")
        return Item(
            cells.name("bon_uid"), subsets, answers=(best, *answers), compared=crossed(1, len(answers)), **known
        )

    def marks(self, item: Item, found: Preferences) -> dict[str, float]:
        return {self.mark: float(found.beats_all(0, range(1, len(item.answers))))}

    def lines(self, means: Means) -> Iterator[Line]:
        values, missing = means.averaged(self.mark, _SECTIONS)
        yield Line("total", "overall", None if missing else values, means.n(self.mark), without(missing))


BENCHMARK = _RMB()

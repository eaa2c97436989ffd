"""An example of a scorer in a package of its own: the answer with more courteous words has the higher margin.

After `pip install ./examples/own_scorer`, prefcast knows it by its name:

    prefcast fit votes.csv --model courtesy -o mine
    prefcast predict new.csv --forecaster mine -o forecasts.jsonl
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, Self

import numpy as np

from prefcast import Evidence, Pair, Scorer
from prefcast.scorers.options import Option, option, saved_options

_WORDS = re.compile(r"\b(?:please|thanks?|thank you|sorry|glad|welcome|of course)\b", re.IGNORECASE)
_FILE = "courtesy.json"


@dataclass(frozen=True)
class Options:
    """How much a courteous word counts."""

    weight: float = option(1.0, Option("How much a courteous word counts.", saved=True))


class CourtesyScorer(Scorer):
    """The example: counts courteous words."""

    name: ClassVar[str] = "courtesy"
    files: ClassVar[tuple[str, ...]] = (_FILE,)
    Options = Options

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or Options()

    def compute(self, pairs: Sequence[Pair]) -> Evidence:
        counts = [
            [sum(len(_WORDS.findall(text)) for text in side) for side in (p.response_a, p.response_b)] for p in pairs
        ]
        a, b = np.array(counts, dtype=np.float64).reshape(-1, 2).T
        margin = self.options.weight * (np.log1p(a) - np.log1p(b))
        return Evidence(margin, -np.abs(margin))

    def save(self, folder: Path) -> None:
        (folder / _FILE).write_text(json.dumps(asdict(self.options)) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, moved: str | None = None) -> Self:
        cls._check_unmoved(folder, moved)
        said = json.loads((folder / _FILE).read_text(encoding="utf-8"))
        return cls(saved_options(Options, said, str(folder / _FILE)))

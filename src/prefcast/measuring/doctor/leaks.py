"""Rows of one file whose prompt, or whose whole pair, stands in another file too."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from prefcast.errors import RowError
from prefcast.measuring.doctor.findings import Finding, FoundRow, Places, percent
from prefcast.measuring.doctor.repeats import NearPair, NearPairs
from prefcast.outcomes.statistics.columns import Columns
from prefcast.pairs import Pair
from prefcast.pairs.duplicates import NearDuplicates
from prefcast.pairs.formats import PairFile
from prefcast.pairs.formats.prompts import PromptFile
from prefcast.pairs.pair import group_key, pair_key

__all__ = ["KINDS", "Leaks"]

# From the closest to the least close; a row counts once, as the closest.
KINDS = ("same pair", "nearly the same pair", "same prompt", "nearly the same prompt")


class Leaks:
    """The rows that leak into the other file, `file`, which is read whole and closed. At most `most` different prompts and pairs
    of the other file are compared with.

    Prompts are first prompts, as in the folds of cross-validation: two rows with one prompt must not be in training and in
    test. Raises FileError.
    """

    def __init__(
        self,
        file: PairFile | PromptFile,
        threshold: float,
        most: int,
        *,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self.name = file.name
        self._prompts = NearDuplicates(threshold)
        self._exact: dict[int, int] = {}
        self._of: dict[int, NearPairs] = {}
        self._threshold, self._most = threshold, most
        self._where, self._ids = file.where, dict[int, str | int]()
        self._found = Columns(("row", "other", "kind", "similarity"))
        self._rows = 0
        self._prompts_here: set[int] = set()
        self.left_out = self.rows_there = 0
        with file:
            for number, pair in enumerate(file, 1):
                if progress and number % 256 == 0:
                    progress(number)
                if not isinstance(pair, RowError):
                    self._index(pair)

    def _index(self, pair: Pair) -> None:
        self.rows_there += 1
        if len(self._exact) >= self._most:
            self.left_out += 1
            return
        key, _ = pair_key(pair)
        if key in self._exact:
            return
        self._exact[key] = pair.row
        self._ids[pair.row] = pair.id
        found = self._prompts.add(pair.row, pair.prompt[0])
        alike = found and found[0].similarity == 1.0
        prompt = int(str(found[0].key)) if alike else pair.row
        self._of.setdefault(prompt, NearPairs(self._threshold)).add(pair.row, NearPair(pair))

    def see(self, pair: Pair, key: int) -> None:
        """Note a row of the file that is examined."""
        self._rows += 1
        if (other := self._exact.get(key)) is not None:
            self._note(pair, other, 0, 1.0)
            return
        matches = self._prompts.matches(pair.prompt[0])
        if not matches:
            return
        sketch = NearPair(pair)
        near = [found for match in matches if (found := self._of[int(str(match.key))].nearest(sketch))]
        if near:
            best = max(near)
            self._note(pair, best[2], 1, best[0])
            return
        match = matches[0]
        other = int(str(match.key))
        self._note(pair, other, 2 if match.similarity == 1.0 else 3, match.similarity)

    def _note(self, pair: Pair, other: int, kind: int, similarity: float) -> None:
        self._found.append(np.array([[pair.row, other, kind, similarity]], dtype=np.float64))
        self._prompts_here.add(group_key(pair.prompt[0]))

    def findings(self) -> Iterator[Finding]:
        """Leaks to the other file."""
        kinds = np.bincount(self._found.column("kind").astype(np.int64), minlength=len(KINDS)).tolist()
        total, prompts = sum(kinds), len(self._prompts_here)
        text = f"none of {self._rows:,} rows"
        if total:
            parts = [f"{count:,} {kind}" for kind, count in zip(KINDS, kinds, strict=True) if count]
            text = f"{total:,} rows ({percent(total, self._rows)}), {prompts:,} prompts: {', '.join(parts)}"
        if self.left_out:
            text += f"; {self.left_out:,} rows of {self.name} were not compared (--near sets the number)"
        figures = {
            "against": self.name,
            "prompts": prompts,
            "rows_there": self.rows_there,
            "left_out": self.left_out,
            **dict(zip(KINDS, kinds, strict=True)),
        }
        yield Finding(f"leaks to {self.name}", total, self._rows, text, figures)

    def rows(self, places: Places) -> Iterator[FoundRow]:
        """The rows, each with the closest row of the other file."""
        for block in self._found.blocks():
            for row, other, kind, similarity in block.tolist():
                here = places.found("leak", int(row))
                file, number = self._where(int(other))
                detail = KINDS[int(kind)] + ("" if similarity == 1.0 else f", similarity {similarity:.3f}")
                yield FoundRow(
                    "leak", here.file, here.row, here.id, detail, file, number, self._ids.get(int(other), number)
                )

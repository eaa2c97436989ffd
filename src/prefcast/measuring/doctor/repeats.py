"""Pairs that occur more than once, exactly or nearly, and what their labels say."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from prefcast.measuring.doctor.findings import Finding, FoundRow, Places, percent
from prefcast.outcomes.statistics.columns import Columns
from prefcast.pairs import Outcome, Pair
from prefcast.pairs.duplicates import Bands, Hashes, Sketch, sketched

__all__ = ["NearPair", "NearPairs", "NearRepeats", "Repeats"]

_NAMES = {Outcome.A: "A", Outcome.B: "B", Outcome.TIE: "tie"}
_NO_LABEL = -1
# The prompts of a near-duplicate are at least so similar, and so is each of its answers; the whole is at least as similar as the
# threshold.
_PROMPT, _ANSWER = 0.5, 0.7


class Repeats:
    """Rows whose texts are exactly those of an earlier row, rows of one pair with different labels, and rows with two equal
    answers of which one won."""

    def __init__(self) -> None:
        self._table = Columns(("key", "turned", "outcome", "row"))
        self._held: list[tuple[float, ...]] = []
        self._same: list[int] = []
        self._rows = 0

    def see(self, pair: Pair, key: int, *, turned: bool) -> None:
        """Note a row."""
        self._rows += 1
        outcome = _NO_LABEL if pair.outcome is None else int(pair.outcome)
        bits = float(np.array([key], dtype=np.uint64).view(np.float64)[0])
        self._held.append((bits, float(turned), float(outcome), float(pair.row)))
        if pair.response_a == pair.response_b and pair.outcome in (Outcome.A, Outcome.B):
            self._same.append(pair.row)
        if len(self._held) >= 4096:
            self._store()

    def _store(self) -> None:
        if self._held:
            self._table.append(np.array(self._held))
            self._held = []

    def _read(self) -> None:
        """Finds which rows repeat, and which disagree."""
        self._store()
        keys = self._table.column("key").view(np.uint64)
        turned = self._table.column("turned") > 0
        outcome = self._table.column("outcome").astype(np.int8)
        self._row = self._table.column("row").astype(np.int64)
        # As if the greater side were always first.
        self._said = np.where(turned & (outcome >= 0) & (outcome < 2), 1 - outcome, outcome)
        _, first, group = np.unique(keys, return_index=True, return_inverse=True)
        self._first = first[group]
        self._again = self._first != np.arange(len(keys))
        self._turned, self._other_way = turned, turned != turned[self._first]
        # The first row with each label, by pair.
        self._with = np.full((len(first), len(Outcome)), len(keys))
        labelled = np.flatnonzero(self._said >= 0)
        np.minimum.at(self._with, (group[labelled], self._said[labelled]), labelled)
        self._against = ((self._with < len(keys)).sum(axis=1) > 1)[group] & (self._said >= 0)
        self._groups = group

    def findings(self) -> Iterator[Finding]:
        """Exact duplicates, contradictory votes, equal answers with a winner."""
        self._read()
        n, again = self._rows, int(self._again.sum())
        exchanged = int((self._again & self._other_way).sum())
        text = "none" if not again else f"{again:,} rows ({percent(again, n)}) have the texts of an earlier row"
        text += f", {exchanged:,} of them with A and B exchanged" if exchanged else ""
        yield Finding("exact duplicates", again, n, text, {"exchanged": exchanged})
        against = int(self._against.sum())
        pairs = len(np.unique(self._groups[self._against]))
        several = int((np.bincount(self._groups)[self._groups] > 1).sum()) if n else 0
        text = f"none; {several:,} rows are of a pair that occurs more than once" if several else "none"
        if against:
            text = f"{against:,} rows of {pairs:,} pairs have labels that differ from another row of the same texts"
            text += f" ({percent(against, several)} of the rows whose pair occurs more than once)"
        yield Finding("contradictory votes", against, several, text, {"pairs": pairs})
        same = len(self._same)
        text = f"{same:,} rows ({percent(same, n)}) have a winner although both answers are the same text"
        yield Finding("winner of equal answers", same, n, text if same else "none")

    def rows(self, places: Places) -> Iterator[FoundRow]:
        """The rows, after `findings`."""
        for index in np.flatnonzero(self._again).tolist():
            detail = "A and B exchanged" if self._other_way[index] else "the same texts"
            yield places.found("exact duplicates", self._number(index), detail, self._number(self._first[index]))
        for index in np.flatnonzero(self._against).tolist():
            others = self._with[self._groups[index]].copy()
            others[self._said[index]] = len(self._row)
            other = int(others.min())
            detail = f"says {self._label(index)}; the other row says {self._label(other, like=index)}"
            yield places.found("contradictory votes", self._number(index), detail, self._number(other))
        for row in self._same:
            yield places.found("winner of equal answers", row, "both answers are the same text")

    def _number(self, index: int) -> int:
        return int(self._row[index])

    def _label(self, index: int, like: int | None = None) -> str:
        """The label of a row, as the row `like` would write it."""
        said = Outcome(int(self._said[index]))
        return _NAMES[said.swapped if self._turned[index if like is None else like] else said]


class NearPair:
    """The sketches of a pair's prompts and of its two answers."""

    def __init__(self, pair: Pair) -> None:
        texts = ("\n".join(each) for each in ((pair.system, *pair.prompt), pair.response_a, pair.response_b))
        (self.prompt, first), (self.a, second), (self.b, third) = map(sketched, texts)
        self.minima: Hashes | None = np.minimum(np.minimum(first, second), third)
        self.turns = len(pair.turns)

    def similarity(self, other: NearPair) -> tuple[float, bool]:
        """The similarity of two pairs and whether A and B are exchanged; 0 if a part is another text, or one has more turns."""
        if self.turns != other.turns:
            return 0.0, False
        straight = min(self.a.similarity(other.a), self.b.similarity(other.b))
        crossed = min(self.a.similarity(other.b), self.b.similarity(other.a))
        if max(straight, crossed) < _ANSWER or self.prompt.similarity(other.prompt) < _PROMPT:
            return 0.0, False
        whole = self._whole().similarity(other._whole())
        return whole, crossed > straight

    def _whole(self) -> Sketch:
        return Sketch.joined([self.prompt, self.a, self.b])


class NearPairs:
    """Different pairs, among which near-duplicates are found."""

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._bands = Bands(threshold)
        self._pairs: list[NearPair] = []
        self._rows: list[int] = []

    def __len__(self) -> int:
        return len(self._pairs)

    def nearest(self, pair: NearPair) -> tuple[float, bool, int] | None:
        """The most similar pair that was added: similarity, whether A and B are exchanged, and its row."""
        best = None
        for number in [] if pair.minima is None else self._bands.candidates(pair.minima):
            similarity, exchanged = pair.similarity(self._pairs[number])
            if similarity >= self._threshold and (best is None or similarity > best[0]):
                best = similarity, exchanged, self._rows[number]
        return best

    def add(self, row: int, pair: NearPair) -> None:
        """Add a pair."""
        if pair.minima is not None:
            self._bands.add(len(self._pairs), pair.minima)
        pair.minima = None  # the bands hold it
        self._pairs.append(pair)
        self._rows.append(row)


class NearRepeats:
    """Rows that are nearly the same pair as an earlier row: among the first `most` different pairs, and later rows with those.

    `threshold` is the least Jaccard similarity of all texts together.
    """

    def __init__(self, threshold: float, most: int) -> None:
        self._near, self._most, self._threshold = NearPairs(threshold), most, threshold
        self._seen: set[int] = set()
        self._found = Columns(("row", "other", "similarity", "exchanged"))
        self._looked = self._rows = 0

    def see(self, pair: Pair, key: int) -> None:
        """Note a row; exact duplicates are left out."""
        self._rows += 1
        if self._looked >= self._most or key in self._seen:
            return
        self._looked += 1
        self._seen.add(key)
        sketch = NearPair(pair)
        if found := self._near.nearest(sketch):
            similarity, exchanged, row = found
            self._found.append(np.array([[pair.row, row, similarity, exchanged]], dtype=np.float64))
        self._near.add(pair.row, sketch)

    def findings(self) -> Iterator[Finding]:
        """Near-duplicates."""
        count = len(self._found)
        exchanged = int(self._found.column("exchanged").sum())
        text = "none"
        if count:
            text = f"{count:,} rows ({percent(count, self._rows)}) are nearly the same pair as an earlier row"
            text += f", {exchanged:,} of them with A and B exchanged" if exchanged else ""
        if self._looked == self._most and self._rows > self._looked:
            text += f"; only the first {self._looked:,} different pairs were compared (--near sets the number)"
        figures = {"exchanged": exchanged, "compared": self._looked, "threshold": self._threshold}
        yield Finding("near-duplicates", count, self._rows, text, figures)

    def rows(self, places: Places) -> Iterator[FoundRow]:
        """The rows."""
        for block in self._found.blocks():
            for row, other, similarity, exchanged in block.tolist():
                detail = f"similarity {similarity:.3f}{', A and B exchanged' if exchanged else ''}"
                yield places.found("near-duplicates", int(row), detail, int(other))

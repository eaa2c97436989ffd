"""What votes follow besides the better answer: the side on which an answer stands, and its length."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from prefcast.measuring.doctor.findings import Finding, FoundRow, Places, percent
from prefcast.outcomes.statistics.bootstrap import Bootstrap, Figure
from prefcast.pairs import Outcome, Pair
from prefcast.pairs.pair import group_key

__all__ = ["Sides", "holm"]

Floats = NDArray[np.float64]
_LEVEL = 0.05
_MODELS = 10_000
_NAMES = ("rows", "a", "longer", "longer a", "longer b", "told", "told a", "told b")
_BLOCK = 1024
_SHOWN = 3


class Sides:
    """Sums over decided votes. `drawn`: the order of A and B was drawn while the file was read, so it says nothing."""

    def __init__(self, *, drawn: bool, repeats: int = 1000, seed: int = 0) -> None:
        self._drawn = drawn
        self._sums = Bootstrap(repeats, seed)
        self._held: list[tuple[float, ...]] = []
        self._keys: list[int] = []
        self._models: Counter[tuple[str, bool]] = Counter()

    def see(self, pair: Pair, counts: Floats) -> None:
        """Note a row and how many said A, B and tie (3,)."""
        for model, first in ((pair.model_a, True), (pair.model_b, False)):
            if model is not None and (len(self._models) < _MODELS or (model, first) in self._models):
                self._models[model, first] += 1
        won, lost = float(counts[Outcome.A]), float(counts[Outcome.B])
        if not won + lost:
            return
        a, b = (sum(map(len, texts)) for texts in (pair.response_a, pair.response_b))
        told = won + lost if a != b else 0.0
        longer = 0.0 if a == b else won if a > b else lost
        on_a = a > b
        self._held.append(
            (won + lost, won, longer, longer * on_a, longer * (not on_a), told, told * on_a, told * (not on_a))
        )
        self._keys.append(group_key(pair.prompt[0]))
        if len(self._held) == _BLOCK:
            self._store()

    def _store(self) -> None:
        if self._held:
            keys = np.array(self._keys, dtype=np.uint64)
            self._sums.add(keys, dict(zip(_NAMES, np.array(self._held).T, strict=True)))
            self._held, self._keys = [], []

    def findings(self) -> Iterator[Finding]:
        """Position bias, the models' sides, and length bias."""
        self._store()
        n = round(self._sums.total("rows")) if self._sums.names else 0
        if self._drawn:
            yield Finding("position bias", 0, n, "not measured: the order of A and B was drawn while the file was read")
        elif n:
            won = self._sums.ratio("a")
            count = round(self._sums.total("a"))
            yield Finding(
                "position bias", count, n, f"A wins {_said(won)} of {n:,} decided votes{_verdict(won)}", _plain(won)
            )
            yield self._balance()
        else:
            yield Finding("position bias", 0, 0, "not measured: there are no decided votes")
        told = round(self._sums.total("told")) if n else 0
        if not told:
            yield Finding(
                "length bias", 0, 0, "not measured: there are no decided votes on answers of different lengths"
            )
            return
        longer = self._sums.ratio("longer", "told")
        text = f"the longer answer wins {_said(longer)} of {told:,} decided votes{_verdict(longer)}"
        sides = {}
        for side in ("a", "b"):
            if self._sums.total(f"told {side}") and not self._drawn:
                sides[side] = self._sums.ratio(f"longer {side}", f"told {side}")
        if len(sides) == 2:
            text += "; " + ", ".join(f"{_said(found)} where it is {side.upper()}" for side, found in sides.items())
        figures = {**_plain(longer), "by_side": {side: _plain(found) for side, found in sides.items()}}
        yield Finding("length bias", round(self._sums.total("longer")), told, text, figures)

    def _balance(self) -> Finding:
        """The models that stand on one side more often than chance puts them there."""
        from scipy.special import bdtr

        found, chances = [], []
        for model in sorted({name for name, _ in self._models}):
            first, second = self._models[model, True], self._models[model, False]
            found.append((model, first, first + second))
            chances.append(min(1.0, 2 * float(bdtr(min(first, second), first + second, 0.5))))
        marked = [each for each, bad in zip(found, holm(chances), strict=True) if bad]
        marked.sort(key=lambda each: -abs(2 * each[1] - each[2]))
        shown = ", ".join(f"{name} is A in {percent(first, rows)} of {rows:,}" for name, first, rows in marked[:_SHOWN])
        text = f"{len(marked):,} of {len(found):,} models stand on one side too often: {shown}" if marked else "none"
        text += ", ..." if len(marked) > _SHOWN else ""
        if not found:
            text = "not measured: the file names no models"
        figures = {"models": [{"model": name, "a": first, "rows": rows} for name, first, rows in marked]}
        return Finding("models on one side", len(marked), len(found), text, figures)

    def rows(self, places: Places) -> Iterator[FoundRow]:
        """No row: these findings are about all of them."""
        yield from ()


def holm(chances: list[float], level: float = _LEVEL) -> list[bool]:
    """Which of the p-values (k,) Holm's method rejects, so that the probability of one false rejection is at most `level`.

    Holm, "A simple sequentially rejective multiple test procedure" (Scandinavian Journal of Statistics 6, 1979).
    """
    order = np.argsort(chances)
    rejected = [False] * len(chances)
    for place, index in enumerate(order.tolist()):
        if chances[index] > level / (len(chances) - place):
            break
        rejected[index] = True
    return rejected


def _said(found: Figure) -> str:
    return f"{100 * found.value:.1f} % [{100 * found.low:.1f}, {100 * found.high:.1f}]"


def _plain(found: Figure) -> dict[str, float]:
    return {"value": found.value, "low": found.low, "high": found.high}


def _verdict(found: Figure) -> str:
    return "" if found.low <= 0.5 <= found.high else ": not by chance"

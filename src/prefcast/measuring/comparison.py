"""Comparing two systems that answered the same prompts, without labels: which one people would prefer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from heapq import nlargest
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefcast.base.tables import ShownTable, Tables
from prefcast.errors import RowError, UsageError
from prefcast.forecasts.fitted_rows import InSample, Overlap
from prefcast.forecasts.forecaster import Forecaster
from prefcast.forecasts.predictions import UNLIKE, Forecasts, Writer
from prefcast.measuring.metrics import SMALL_SLICE
from prefcast.measuring.metrics.slices import KINDS, Slicer
from prefcast.measuring.voted import Voted, voted
from prefcast.outcomes.statistics.bootstrap import REPEATS, Figure, figure, poisson_weights
from prefcast.outcomes.statistics.columns import Columns
from prefcast.pairs import Outcome, Pair
from prefcast.pairs.formats.side_votes import SideVotes
from prefcast.pairs.pair import group_key
from prefcast.runs.jobs import forecasts_of
from prefcast.runs.loop import Progress, Tally

__all__ = ["Comparison", "Example", "SystemSlice", "compare"]

Floats = NDArray[np.float64]

_EXAMPLES = 5
_KINDS = ("turns", "length of both answers", "language of the prompt", "prompt about code", "answers")


@dataclass(frozen=True)
class Example:
    """A pair whose forecast is among the clearest."""

    pair: Pair
    probabilities: tuple[float, float, float]


@dataclass(frozen=True)
class SystemSlice:
    """The prompts of one kind: `net` is RIGHT's win rate minus its loss rate.

    The interval covers the choice of prompts and the link, but not the bias of the forecaster.
    """

    kind: str
    name: str
    n: int
    net: Figure
    small: bool


@dataclass(frozen=True)
class Comparison(Tables):
    """Expected rates of RIGHT (B) against LEFT (A) over `n` prompts.

    `net` is win minus loss. The intervals cover the choice of prompts (bootstrap over first prompts), the fitted link
    (its draws) and, if `calibrated`, the error of this forecaster for a whole system (`Calibration`), whose standard
    deviations are in `bias`. `in_sample` counts the pairs that the forecaster was fitted on, and `unlike` those that are unlike its
    training data; None if it does not say.
    `verdict` is `right` or `left` if the interval of `net` excludes 0, otherwise `none`.
    """

    left: str
    right: str
    n: int
    groups: int
    win: Figure
    loss: Figure
    tie: Figure
    net: Figure
    verdict: str
    calibrated: bool
    bias: dict[str, float]
    slices: tuple[SystemSlice, ...]
    failed: int
    examples: dict[str, tuple[Example, ...]]
    first_error: RowError | None = None
    voted: Voted | None = None
    in_sample: InSample | None = None
    unlike: int | None = None

    def tables(self) -> list[ShownTable]:
        """The rates, and the kinds of prompts."""
        rates = [("right preferred", self.win), ("left preferred", self.loss), ("tie", self.tie), ("net", self.net)]
        head = f"{self.right} (right) against {self.left} (left), {self.n} prompts, forecast"
        found = [ShownTable(head, ("", "rate"), rates)]
        if self.voted is not None:
            voted = [
                ("right preferred", self.voted.win),
                ("left preferred", self.voted.loss),
                ("tie", self.voted.tie),
                ("net", self.voted.net),
            ]
            found.insert(0, ShownTable(f"{head}, with {self.voted.votes} votes", ("", "rate"), voted))
        kinds = [(part.kind, part.name, part.n, part.net) for part in self.slices]
        return [*found, ShownTable("kinds of prompts", ("kind", "name", "n", "net"), kinds)]

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON types; examples are given by their ids. `net_rate` is from votes where there are any."""
        plain = asdict(replace(self, examples={}, first_error=None, voted=None))
        del plain["first_error"], plain["voted"]
        plain["net_rate"] = plain["net"]
        if self.voted is not None:
            plain["forecasts_alone"] = {**plain["net"], "net_rate": plain["net"], "verdict": self.verdict}
            plain |= self.voted.to_dict()
        plain["examples"] = {
            name: [{"id": example.pair.id, "probabilities": example.probabilities} for example in examples]
            for name, examples in self.examples.items()
        }
        return plain


def compare(
    pairs: Iterable[Pair | RowError],
    forecaster: Forecaster,
    *,
    names: Sequence[str] = ("LEFT", "RIGHT"),
    writer: Writer | None = None,
    progress: Progress | None = None,
    repeats: int = REPEATS,
    seed: int = 0,
    votes: SideVotes | None = None,
    anytime: bool = False,
    categories: Mapping[str, str] | None = None,
) -> Comparison:
    """Forecast pairs of LEFT's (A) and RIGHT's (B) answers and compare the systems; `writer` receives the forecasts.

    With `votes` on some of the pairs, `voted` is the comparison by votes and forecasts together, also by `categories`
    (id -> category, which is filled while the pairs are read). Raises UsageError if no pair could be forecast.
    """
    tally, sums = Tally(), _Sums(forecaster, repeats, seed)
    for forecasts in forecasts_of(pairs, forecaster, tally, progress=progress):
        if writer is not None:
            writer.write(forecasts)
        sums.add(forecasts)
    if not sums.n:
        raise UsageError(f"nothing to compare: of {tally.rows} pairs {tally.failed} failed ({tally.first})")
    found = sums.comparison(names, tally)
    if votes is None:
        return found
    return replace(found, voted=sums.voted(votes, always=anytime, categories=categories))


def _normal_draws(repeats: int, seed: int) -> tuple[Floats, Floats]:
    """Two arrays (repeats,) of standard normal quantiles in random order; each is symmetric around 0."""
    from scipy.special import ndtri

    quantiles = ndtri((np.arange(repeats) + 0.5) / repeats)
    rng = np.random.default_rng(seed)
    return quantiles[rng.permutation(repeats)], quantiles[rng.permutation(repeats)]


class _Sums:
    """Sums over prompts, for every draw of prompts and link."""

    def __init__(self, forecaster: Forecaster, repeats: int, seed: int) -> None:
        self._link, self._calibration = forecaster.link, forecaster.calibration
        self._repeats, self._seed = repeats, seed
        self._slicer = Slicer()
        self._places = [list(KINDS).index(kind) for kind in _KINDS]
        self._sums, self._weights = np.zeros((repeats, 3)), np.zeros(repeats)
        # For each slice: the rows, their sum of net, and in each draw the sum of net and the weight.
        self._slices: dict[tuple[int, int], list[Any]] = {}
        self._total = np.zeros(3)
        self._keys = Columns(["key"])
        # For votes: the id of each pair and its forecast.
        self._ids: list[str] = []
        self._forecasts: list[Floats] = []
        self._best: dict[str, list[tuple[float, int, Example]]] = {"left": [], "right": []}
        self._overlap = Overlap(forecaster.fitted_rows)
        self._unlike: int | None = None
        self.n = 0

    def add(self, forecasts: Forecasts) -> None:
        good = [index for index, error in enumerate(forecasts.errors) if error is None]
        pairs = [pair for pair in (forecasts.pairs[index] for index in good) if pair is not None]
        if not pairs:
            return
        p = forecasts.probabilities[good]
        keys = np.array([group_key(pair.prompt[0]) for pair in pairs], dtype=np.uint64)
        self._keys.append(keys.view(np.float64)[:, None])
        self._ids += [str(pair.id) for pair in pairs]
        self._forecasts.append(p)
        weights = poisson_weights(keys, self._repeats, self._seed).astype(np.float64)
        drawn = p[None]
        if self._link is not None and forecasts.columns is not None and len(self._link.draws):
            drawn = self._link.drawn(*(part[good] for part in forecasts.columns))
        net = np.empty((self._repeats, len(pairs)))
        for start in range(0, self._repeats, len(drawn)):
            part = slice(start, min(start + len(drawn), self._repeats))
            these = drawn[: part.stop - part.start]
            self._sums[part] += (
                np.einsum("nr,rno->ro", weights[:, part], these) if len(drawn) > 1 else weights[:, part].T @ p
            )
            net[part] = these[:, :, Outcome.B] - these[:, :, Outcome.A]
        self._weights += weights.sum(axis=0)
        self._total += p.sum(axis=0)
        self.n += len(pairs)
        self._overlap.add(pairs)
        if forecasts.unlike is not None:
            self._unlike = (self._unlike or 0) + int((forecasts.unlike[good] > UNLIKE).sum())
        self._slice(pairs, p, weights, net)
        self._remember(pairs, p)

    def _slice(self, pairs: Sequence[Pair], p: Floats, weights: Floats, net: Floats) -> None:
        codes = np.array([self._slicer.codes(pair, None) for pair in pairs])[:, self._places]
        for kind in range(len(_KINDS)):
            for code in np.unique(codes[:, kind]).astype(int).tolist():
                rows = codes[:, kind] == code
                found = self._slices.setdefault(
                    (kind, code), [0, 0.0, np.zeros(self._repeats), np.zeros(self._repeats)]
                )
                found[0] += int(rows.sum())
                found[1] += float((p[rows, Outcome.B] - p[rows, Outcome.A]).sum())
                found[2] += np.einsum("nr,rn->r", weights[rows], net[:, rows])
                found[3] += weights[rows].sum(axis=0)

    def _remember(self, pairs: Sequence[Pair], p: Floats) -> None:
        for side, own in (("left", Outcome.A), ("right", Outcome.B)):
            clear = np.flatnonzero(p[:, own] > np.delete(p, own, axis=1).max(axis=1)).tolist()
            new = [(float(p[row, own]), -self.n - row, Example(pairs[row], tuple(p[row].tolist()))) for row in clear]
            self._best[side] = nlargest(_EXAMPLES, [*self._best[side], *new])

    def comparison(self, names: Sequence[str], tally: Tally) -> Comparison:
        calibration = self._calibration
        rates = np.divide(
            self._sums, self._weights[:, None], out=np.full_like(self._sums, np.nan), where=self._weights[:, None] > 0
        )
        net = rates[:, Outcome.B] - rates[:, Outcome.A]
        tie = rates[:, Outcome.TIE]
        if calibration is not None:
            # The sign depends on the side, so that exchanging the systems mirrors the interval exactly.
            side = 1.0 if self._total[Outcome.B] >= self._total[Outcome.A] else -1.0
            of_net, of_tie = _normal_draws(self._repeats, self._seed)
            net = net + side * calibration.net * of_net
            tie = np.clip(tie + calibration.tie * of_tie, 0.0, 1.0)
        net = np.clip(net, tie - 1, 1 - tie)
        a, b, t = (self._total / self.n).tolist()
        found = figure(b - a, net)
        verdict = "right" if found.low > 0 else "left" if found.high < 0 else "none"
        return Comparison(
            left=names[0],
            right=names[1],
            n=self.n,
            groups=len(np.unique(self._keys.column("key").view(np.uint64))),
            win=figure(b, (1 - tie + net) / 2),
            loss=figure(a, (1 - tie - net) / 2),
            tie=figure(t, tie),
            net=found,
            verdict=verdict,
            calibrated=calibration is not None,
            bias={} if calibration is None else {"net": calibration.net, "tie": calibration.tie},
            slices=tuple(self._found_slices()),
            failed=tally.failed,
            examples={side: tuple(item for _, _, item in best) for side, best in self._best.items()},
            first_error=tally.first,
            in_sample=self._overlap.found,
            unlike=self._unlike,
        )

    def voted(self, votes: SideVotes, *, always: bool, categories: Mapping[str, str] | None) -> Voted:
        keys = self._keys.column("key").view(np.uint64)
        return voted(self._ids, np.concatenate(self._forecasts), keys, votes, always=always, categories=categories)

    def _found_slices(self) -> Iterable[SystemSlice]:
        for (kind, code), (n, total, sums, weights) in sorted(self._slices.items()):
            draws = np.divide(sums, weights, out=np.full(self._repeats, np.nan), where=weights > 0)
            name = self._slicer.names[_KINDS[kind]][code]
            yield SystemSlice(_KINDS[kind], name, n, figure(total / n, draws), n < SMALL_SLICE)

"""Votes that everything else makes unlikely, and how many of such votes are wrong: measured by exchanging votes on purpose.

What forecasts a vote is the evidence of a scorer, who answered (a strength for each model, as in Bradley and Terry's model),
and the other votes on the same pair. Davidson's model joins them, fitted to the other folds of first prompts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from prefcast.errors import FitError, RowError
from prefcast.fitting.evidence import spun
from prefcast.fitting.fitter import FOLDS, LEAST_LABELS
from prefcast.forecasts.scores import score_pairs
from prefcast.measuring.doctor.ballots import Ballots
from prefcast.measuring.doctor.findings import Finding, FoundRow, Places, percent
from prefcast.outcomes.models import FITTED_MODELS
from prefcast.outcomes.statistics.bootstrap import paired_error
from prefcast.outcomes.statistics.columns import Columns
from prefcast.outcomes.statistics.likelihood import cross_fitted
from prefcast.pairs import Outcome, Pair
from prefcast.pairs.budget import Budget
from prefcast.pairs.pieces import PIECE_CHARACTERS, PIECE_ROWS
from prefcast.scorers.base import SILENT, Scorer

__all__ = ["Planted", "Unlikely", "Votes", "odds_against", "planted"]

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

# A model with fewer votes has no strength of its own; more models than these neither.
_FEWEST, _MODELS = 10, 50
# Others' votes tell more than evidence does: their coefficients are held less tightly.
_PENALTY, _OTHERS_PENALTY, _LEVEL_PENALTY = 1.0, 0.3, 0.1
_WANTED = 0.8
_REPEATS, _WORK = 20, 40_000
_Z = 1.96


@dataclass(frozen=True)
class Votes:
    """n votes of which a scorer has an opinion. `outcome` (n,) is 0, 1, 2 for A, B, tie as in the row of the vote; `pair` (n,)
    numbers the pairs, and `side` (n,) is 1 or -1 for votes of one pair that stand in the two orders; `prompts` (n,) are the
    keys of the first prompts; `margin`, `tie` (n,) the evidence; `models` (n, 2) the numbers of the models, -1 if not named."""

    outcome: NDArray[np.int64]
    pair: NDArray[np.int64]
    side: Floats
    prompts: NDArray[np.uint64]
    margin: Floats
    tie: Floats
    models: NDArray[np.int64]
    count: Floats = field(default_factory=lambda: np.zeros(0))

    def __len__(self) -> int:
        return len(self.outcome)

    @property
    def decided(self) -> Bools:
        """Which votes (n,) are for A or B."""
        found: Bools = self.outcome < Outcome.TIE
        return found


def _standardised(column: Floats, *, centred: bool) -> Floats:
    column = column - column.mean() if centred else column
    spread = float(np.sqrt((column**2).mean()))
    return column / spread if spread > 1e-12 else np.zeros(len(column))


def _models(votes: Votes) -> Floats:
    """Antisymmetric columns (n, k): 1 where a model is A, -1 where it is B."""
    many = Counter(votes.models[votes.models >= 0].tolist()).most_common(_MODELS)
    chosen = [model for model, count in many if count >= _FEWEST]
    return np.column_stack(
        [np.zeros((len(votes), 0))]
        + [(votes.models[:, 0] == model).astype(float) - (votes.models[:, 1] == model) for model in chosen]
    )


def _others(votes: Votes, outcome: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """What other votes on the same pair say: antisymmetric columns (n, 2) and symmetric ones (n, 2)."""
    sign = np.where(outcome == Outcome.A, 1.0, np.where(outcome == Outcome.B, -1.0, 0.0)) * votes.side
    ties = (outcome == Outcome.TIE).astype(float)
    weight = votes.count
    n = int(votes.pair.max(initial=-1)) + 1
    net = (np.bincount(votes.pair, weight * sign, n)[votes.pair] - sign) * votes.side
    tied = np.bincount(votes.pair, weight * ties, n)[votes.pair] - ties
    many = np.bincount(votes.pair, weight, n)[votes.pair] - 1
    return np.column_stack([net, np.sign(net)]), np.column_stack([tied, many - tied])


def _cross_fitted(votes: Votes, outcome: NDArray[np.int64], *, models: bool, others: bool) -> Floats:
    """Log-probabilities (n, 3), each vote's from a fit to the other folds."""
    margin = [_standardised(votes.margin, centred=False)[:, None]]
    tie = [_standardised(votes.tie, centred=True)[:, None]]
    hold = [[_PENALTY], [_LEVEL_PENALTY], [_PENALTY]]
    if models:
        columns = _models(votes)
        margin.append(columns)
        hold[0] += [_PENALTY] * columns.shape[1]
    if others:
        for part, place, columns in zip((margin, tie), (0, 2), _others(votes, outcome), strict=True):
            part.append(columns)
            hold[place] += [_OTHERS_PENALTY] * columns.shape[1]
    m, t = np.hstack(margin), np.hstack(tie)
    said = np.eye(len(Outcome))[outcome] * votes.count[:, None]
    folds = np.unique(spun(votes.prompts), return_inverse=True)[1] % FOLDS
    size = m.shape[1] + 1 + t.shape[1]
    found = cross_fitted(
        FITTED_MODELS["davidson"].log_probabilities,
        lambda: [((m, t, said), folds)],
        FOLDS,
        np.eye(size),
        np.zeros(size),
        penalty=np.concatenate(hold),
        name="what makes votes unlikely",
    )
    return next(found)


def odds_against(votes: Votes, outcome: NDArray[np.int64], *, models: bool, others: bool) -> Floats:
    """The log-odds (n,) that a decided vote should have been for the other side; -inf for a tie."""
    log_p = _cross_fitted(votes, outcome, models=models, others=others)
    decided = np.flatnonzero(outcome < Outcome.TIE)
    found = np.full(len(outcome), -np.inf)
    found[decided] = log_p[decided, 1 - outcome[decided]] - log_p[decided, outcome[decided]]
    return found


def _chosen(votes: Votes) -> tuple[bool, bool]:
    """Whether the models' strengths, and other people's votes, forecast these votes better than the evidence alone: by more than
    the standard error of the gain, out of fold."""
    use = (False, False)

    def losses(models: bool, others: bool) -> Floats:
        log_p = _cross_fitted(votes, votes.outcome, models=models, others=others)
        return -log_p[np.arange(len(votes)), votes.outcome] * votes.count

    best = losses(*use)
    several = bool((np.bincount(votes.pair, votes.count) > 1).any())
    for each in ((_models(votes).shape[1] > 0, False), (False, several)):
        tried = (use[0] or each[0], use[1] or each[1])
        if tried != use:
            loss = losses(*tried)
            gain, error = paired_error(best, loss, votes.count, votes.prompts)
            if gain > error:
                use, best = tried, loss
    return use


@dataclass(frozen=True)
class Planted:
    """What planting showed: a `share` of the decided votes was exchanged, `repeats` times.

    Of a list of the `share` least likely votes the share `precision` [`low`, `high`] were exchanged; `area` is the probability
    that an exchanged vote is less likely than another. `odds` (k,) falls, and `right` (k,) is the share of exchanged votes among the
    votes with at least these log-odds, `held` (k,) the share of all exchanged votes that they are.
    """

    share: float
    repeats: int
    precision: float
    low: float
    high: float
    area: float
    odds: Floats = field(repr=False)
    right: Floats = field(repr=False)
    held: Floats = field(repr=False)

    def reached(self, wanted: float, fewest: int = 5) -> tuple[float, float] | None:
        """The lowest log-odds above which at least `wanted` of the votes were exchanged, and the share of all exchanged votes
        that they hold; None if there is no such threshold."""
        good = np.flatnonzero((self.right >= wanted) & (np.arange(1, len(self.odds) + 1) >= fewest * self.repeats))
        return (float(self.odds[good[-1]]), float(self.held[good[-1]])) if len(good) else None

    def right_at(self, odds: float) -> float:
        """The share of exchanged votes among votes with at least these log-odds."""
        place = int(np.searchsorted(-self.odds, -odds, side="right")) - 1
        return float(self.right[max(0, place)])


def planted(
    votes: Votes, share: float, *, models: bool, others: bool, repeats: int | None = None, seed: int = 0
) -> Planted:
    """Exchange a `share` of the decided votes, drawn at random, and see which votes are found unlikely; `repeats` times."""
    rng = np.random.default_rng(seed)
    decided = np.flatnonzero(votes.decided)
    repeats = max(2, min(_REPEATS, _WORK // max(1, len(votes)))) if repeats is None else repeats
    exchanged = max(1, round(share * len(decided)))
    odds, planted_ = [], []
    for _ in range(repeats):
        drawn = rng.choice(decided, exchanged, replace=False)
        outcome = votes.outcome.copy()
        outcome[drawn] = 1 - outcome[drawn]
        mark = np.zeros(len(votes), dtype=bool)
        mark[drawn] = True
        odds.append(odds_against(votes, outcome, models=models, others=others)[decided])
        planted_.append(mark[decided])
    every, mark = np.concatenate(odds), np.concatenate(planted_)
    order = np.argsort(-every, kind="stable")
    right = np.cumsum(mark[order])
    top = exchanged * repeats
    precision = float(right[top - 1] / top)
    ranks = np.empty(len(every))
    ranks[order] = np.arange(len(every), 0, -1)
    ones = int(mark.sum())
    area = (ranks[mark].sum() - ones * (ones + 1) / 2) / max(1, ones * (len(every) - ones))
    return Planted(
        share,
        repeats,
        precision,
        *_wilson(precision, exchanged),
        float(area),
        every[order],
        right / np.arange(1, len(every) + 1),
        right / ones,
    )


def _wilson(share: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share (Journal of the American Statistical Association 22, 1927)."""
    centre = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * np.sqrt(share * (1 - share) / n + _Z**2 / (4 * n * n))
    return float(max(0.0, centre - half)), float(min(1.0, centre + half))


class Unlikely:
    """Collects the evidence of rows that have votes, and finds the least likely `share` of the decided votes.

    The rows are scored in pieces as they come. A row that cannot be scored has no part in this, and is counted.
    """

    def __init__(self, votes: Ballots, scorer: Scorer, budget: Budget, share: float, *, seed: int = 0) -> None:
        self._votes, self._scorer, self._budget = votes, scorer, budget
        self._share, self._seed = share, seed
        self._evidence = Columns(("row", "margin", "tie", "model_a", "model_b"))
        self._numbers: dict[str, int] = {}
        self._held: list[Pair] = []
        self._characters = self.failed = 0
        self.first_error: RowError | None = None
        self._listed: list[tuple[int, str]] = []

    def see(self, pair: Pair) -> None:
        """Note a row."""
        if not self._votes.counts(pair):
            return
        self._held.append(pair)
        self._characters += pair.characters
        if len(self._held) >= PIECE_ROWS or self._characters >= PIECE_CHARACTERS:
            self._score()

    def _score(self) -> None:
        pairs, self._held, self._characters = self._held, [], 0
        if not pairs:
            return
        found = score_pairs(pairs, self._scorer, self._budget, SILENT, "check")
        rows = []
        for number, (pair, error) in enumerate(zip(pairs, found.errors, strict=True)):
            if error is not None:
                self.failed += 1
                self.first_error = self.first_error or error
                continue
            models = [
                -1 if model is None else self._numbers.setdefault(model, len(self._numbers))
                for model in (pair.model_a, pair.model_b)
            ]
            rows.append((pair.row, found.columns["margin"][number], found.columns["tie"][number], *models))
        if rows:
            self._evidence.append(np.array(rows, dtype=np.float64))

    def votes(self) -> tuple[Votes, NDArray[np.int64]]:
        """The votes, one for each person, and the rows (n,) in which they stand."""
        self._score()
        table = np.concatenate([np.zeros((0, 5)), *self._evidence.blocks()])
        table = table[np.argsort(table[:, 0])]
        row, count = self._votes.column("row"), self._votes.column("count")
        place = np.searchsorted(table[:, 0], row)
        known = np.flatnonzero(np.append(table[:, 0], -1)[place] == row)
        # A count of votes is so many votes; a part of a vote is one vote that counts less.
        times = np.maximum(1, np.rint(count[known])).astype(np.int64)
        index = np.repeat(known, times)
        evidence = table[place[index]]
        turned = self._votes.column("turned")[index] > 0
        return (
            Votes(
                self._votes.column("outcome").astype(np.int64)[index],
                np.unique(self._votes.keys("key")[index], return_inverse=True)[1],
                np.where(turned, -1.0, 1.0),
                self._votes.keys("prompt")[index],
                evidence[:, 1],
                evidence[:, 2],
                evidence[:, 3:].astype(np.int64),
                np.minimum(1.0, count[index]),
            ),
            row[index].astype(np.int64),
        )

    def findings(self) -> Iterator[Finding]:
        """Unlikely votes."""
        votes, rows = self.votes()
        decided = int(votes.decided.sum())
        if decided < LEAST_LABELS or len(np.unique(votes.prompts)) < 2:
            text = f"not measured: {decided:,} decided votes; at least {LEAST_LABELS} on different prompts are needed"
            yield Finding("unlikely votes", 0, decided, text, {"failed": self.failed})
            return
        try:
            models, others = _chosen(votes)
            test = planted(votes, self._share, models=models, others=others, seed=self._seed)
            odds = odds_against(votes, votes.outcome, models=models, others=others)
        except FitError as error:
            yield Finding("unlikely votes", 0, decided, f"not measured: {error}", {"failed": self.failed})
            return
        most = max(1, round(self._share * decided))
        listed = np.argsort(-odds, kind="stable")[:most]
        for index in listed.tolist():
            said = Outcome(int(votes.outcome[index])).name
            chance = 1 / (1 + float(np.exp(odds[index])))
            right = test.right_at(odds[index])
            detail = f"says {said}; probability of {said} against the other side {chance:.3f}; "
            detail += (
                f"{percent(right, 1)} of votes as unlikely were exchanged when {percent(self._share, 1)} of all were"
            )
            self._listed.append((int(rows[index]), detail))
        yield Finding(
            "unlikely votes",
            most,
            decided,
            self._text(test, most, decided, odds),
            {
                "planted": test.share,
                "repeats": test.repeats,
                "failed": self.failed,
                "precision": {"value": test.precision, "low": test.low, "high": test.high},
                "area": test.area,
                "models": models,
                "other_votes": others,
                "reaches": test.reached(_WANTED),
            },
        )

    def _text(self, test: Planted, most: int, decided: int, odds: Floats) -> str:
        share = percent(test.share, 1)
        text = (
            f"{most:,} votes are the least likely {share} of {decided:,} decided ones. When {share} of the votes were exchanged on "
            f"purpose, {100 * test.precision:.0f} % [{100 * test.low:.0f}, {100 * test.high:.0f}] of such a list were exchanged votes"
        )
        reached = test.reached(_WANTED)
        if reached is None:
            text += f"; no shorter list reaches {100 * _WANTED:.0f} %"
        else:
            surer = int((odds >= reached[0]).sum())
            text += f"; a list of the {surer:,} least likely reaches {100 * _WANTED:.0f} % and holds {100 * reached[1]:.0f} % of them"
        return text + (f"; {self.failed:,} rows could not be scored" if self.failed else "")

    def rows(self, places: Places) -> Iterator[FoundRow]:
        """The least likely votes, the least likely first."""
        for row, detail in self._listed:
            yield places.found("unlikely votes", row, detail)

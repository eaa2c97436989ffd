"""Budget + scorer + outcome model: from pairs to probabilities.

A forecaster is a folder: `forecaster.json` says of what it is made, with what data and figures; the scorer's own
files lie beside it.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefcast.errors import ForecasterError, ModelError, RowError, ScoringError, UsageError, shown_path
from prefcast.forecasts.predictions import Forecast, Forecasts
from prefcast.outcomes.calibration import Calibration
from prefcast.outcomes.models import (
    FITTED_MODELS,
    Davidson,
    FittedModel,
    Link,
    NotebookRule,
    OutcomeModel,
    outcome_model,
)
from prefcast.pairs import Outcome, Pair
from prefcast.pairs.budget import DEFAULT_BUDGET, WHOLE, Budget, Notebook, Truncation, parse_budget
from prefcast.scorers.base import SILENT, Evidence, Meter, Scorer, fingerprint, read_pair
from prefcast.scorers.registry import DEFAULT, find_scorer, is_scorer_file, scorer_class

__all__ = ["Explanation", "Forecaster", "Influence", "built_in", "load_forecaster"]

_FORMAT = 1
_CARD = "forecaster.json"
# What the uncertainty of a forecast is computed from; a forecaster may lack it.
_DRAWS = "uncertainty.json"
_BUILT_IN = Path(__file__).parent / "builtin"


@dataclass(frozen=True)
class Influence:
    """What one kind of feature did to a forecast: the change of (A, B, tie) against the same forecast without it.

    `margin` and `tie` are its terms in calibrated log-odds; `values` the features behind them that differ: (name, of
    A, of B).
    """

    name: str
    change: tuple[float, float, float]
    margin: float
    tie: float
    values: tuple[tuple[str, float, float], ...]


@dataclass(frozen=True)
class Explanation:
    """A forecast with what moved it, the largest change first."""

    forecast: Forecast
    influences: list[Influence]


@dataclass(frozen=True)
class Forecaster:
    """Reads what `budget` lets through, reduces it with `scorer` to evidence, turns that into probabilities with
    `outcome`.

    `prior_tie` is the share of ties where it was fitted: a row that fails gets the class prior, equal for A and B,
    unless `fallback` gives (A, B, tie) for it. `link` has the draws of the outcome model's bootstrap, in terms of the
    scorer's evidence, and `calibration` how far forecasts were off: both come from a fit and may be None. `card` says with what data, figures and versions it was made. Without a
    budget, a scorer with a limit of its own reads everything up to that, another one 24,000 characters.
    """

    scorer: Scorer
    outcome: OutcomeModel
    budget: Budget = None  # type: ignore[assignment]
    prior_tie: float = 1 / 3
    card: Mapping[str, Any] = field(default_factory=dict)
    fallback: tuple[float, float, float] | None = None
    link: Link | None = None
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        if self.budget is None:
            object.__setattr__(self, "budget", self.default_budget(self.scorer))

    @staticmethod
    def default_budget(scorer: Scorer) -> Budget:
        """What is read where nobody says otherwise: everything where the scorer has a limit of its own."""
        return DEFAULT_BUDGET if scorer.limit is None else WHOLE

    @classmethod
    def notebook(cls, scorer: Scorer) -> Forecaster:
        """The Kaggle notebook's forecaster: its character budget and its rule, and what it gives a row that failed."""
        return cls(scorer, NotebookRule(), Notebook(), fallback=(0.33334, 0.33333, 0.33333))

    @property
    def prior(self) -> tuple[float, float, float]:
        """(A, B, tie) of a row about which nothing is known."""
        if self.fallback is not None:
            return self.fallback
        side = (1 - self.prior_tie) / 2
        return side, side, self.prior_tie

    def with_budget(self, budget: Budget) -> Forecaster:
        """The same forecaster reading another part of each pair."""
        return replace(self, budget=budget)

    def read(self, pair: Pair) -> tuple[Pair, Truncation]:
        """The part of `pair` that the budget lets through, and its report."""
        return read_pair(pair, self.budget, self.scorer)

    def forecast(self, pairs: Iterable[Pair | RowError], meter: Meter = SILENT) -> Forecasts:
        """Forecast `pairs`, in their order; a RowError among them (as `open_pairs` yields) or a failed score keeps
        its place as an error."""
        items = list(pairs)
        errors: list[RowError | None] = [item if isinstance(item, RowError) else None for item in items]
        truncations: list[Truncation | None] = [None] * len(items)
        read: list[Pair] = []
        index: list[int] = []
        for position, item in enumerate(items):
            if isinstance(item, Pair):
                cut, truncations[position] = self.read(item)
                read.append(cut)
                index.append(position)
        margin, tie = np.full(len(items), np.nan), np.full(len(items), np.nan)
        spread = None
        columns: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
        probabilities = np.tile(np.array(self.prior), (len(items), 1))
        if read:
            evidence = self.scorer.evidence(read, meter)
            finite = np.isfinite(evidence.margin) & np.isfinite(evidence.tie)
            good = np.array(index, dtype=np.int64)[finite]
            margin[good], tie[good] = evidence.margin[finite], evidence.tie[finite]
            probabilities[good] = self.outcome.probabilities(margin[good], tie[good])
            if "member_spread" in evidence.raw:
                spread = np.full(len(items), np.nan)
                spread[good] = evidence.raw["member_spread"][finite]
            if self.link is not None:
                columns = _columns(evidence, self.link.margin), _columns(evidence, self.link.tie)
                columns = tuple(_spread(part, index, len(items)) for part in columns)  # type: ignore[assignment]
            for place, (position, pair) in enumerate(zip(index, read, strict=True)):
                if np.isnan(margin[position]):
                    errors[position] = ScoringError(
                        "forecast",
                        pair.row or position + 1,
                        "",
                        evidence.problems.get(place, f"the scorer {self.scorer.name} gave evidence that is not finite"),
                        pair.id,
                    )
        kept: list[Pair | None] = [item if isinstance(item, Pair) else None for item in items]
        return Forecasts(
            [item.id for item in items],
            probabilities,
            margin,
            tie,
            truncations,
            errors,
            kept,
            None if columns is None else self.link,
            columns,
            spread,
        )

    def evidence(self, pairs: Iterable[Pair]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Margin and tie evidence (n,) of `pairs` as the budget lets them through."""
        found = self.scorer.evidence([self.read(pair)[0] for pair in pairs])
        return found.margin, found.tie

    def fit(self, pairs: Iterable[Pair], model: type[FittedModel] = Davidson) -> Forecaster:
        """A forecaster with this scorer and budget and an outcome model of one kind, fitted to labelled `pairs` as it is:
        `prefcast.fit` chooses by cross-validation and says how uncertain the result is.

        Pairs without a label raise UsageError, a fit that fails FitError.
        """
        pairs = list(pairs)
        if any(pair.outcome is None for pair in pairs) or not pairs:
            raise UsageError("fit needs labelled pairs: every pair must have an outcome")
        outcomes = np.array([pair.outcome for pair in pairs], dtype=np.int64)
        margin, tie = self.evidence(pairs)
        return replace(
            self,
            outcome=model.fit(margin, tie, outcomes),
            prior_tie=float((outcomes == Outcome.TIE).mean()),
            # What was known of the old link's uncertainty says nothing of this one's.
            link=None,
            calibration=None,
            card={"outcome_fitted_on": len(pairs), "made_from": dict(self.card)},
        )

    def explain(self, pair: Pair) -> Explanation:
        """The forecast of `pair` and what moved it; no influences where the scorer cannot say."""
        forecast: Forecast = self.forecast([pair])[0]
        return Explanation(forecast, self.influences(pair, forecast))

    def influences(self, pair: Pair, forecast: Forecast) -> list[Influence]:
        """What moved `forecast`, which is that of `pair`; nothing where it failed or the scorer cannot say."""
        if forecast.error is not None:
            return []
        scale, weight = (
            (self.outcome.scale, self.outcome.tie_weight) if isinstance(self.outcome, FittedModel) else (1.0, 0.0)
        )
        found = []
        for push in self.scorer.explain(self.read(pair)[0]):
            without = self.outcome.probabilities(
                np.array([forecast.margin - push.margin]), np.array([forecast.tie - push.tie])
            )[0]
            a, b, tie = (float(now - then) for now, then in zip(forecast.probabilities, without, strict=True))
            found.append(Influence(push.name, (a, b, tie), scale * push.margin, weight * push.tie, push.values))
        found.sort(key=lambda influence: -max(map(abs, influence.change)))
        return found

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the forecaster as a folder, whole or not at all; a forecaster that is there is replaced.

        A folder that holds anything else is left alone. Raises UsageError.
        """
        shown = shown_path(folder)
        try:
            target = Path(os.path.realpath(folder))
            there = _check_folder(target, shown)
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".prefcast-", dir=target.parent) as room:
                made, old = Path(room) / "new", Path(room) / "old"
                made.mkdir()
                self._write(made)
                if there:
                    _exchange(made, target, old)
                elif not target.exists():
                    made.rename(target)
                else:
                    # An empty folder may be where somebody stands, or a mount: it is filled, the card last.
                    for path in sorted(made.iterdir(), key=lambda path: path.name == _CARD):
                        path.rename(target / path.name)
        except (OSError, ValueError) as error:
            raise UsageError(f"{shown}: cannot be written: {getattr(error, 'strerror', None) or error}") from None

    def _write(self, folder: Path) -> None:
        self.scorer.save(folder)
        versions = {
            "prefcast": metadata.version("prefcast"),
            "numpy": np.__version__,
            "python": platform.python_version(),
        }
        card = {
            "format": _FORMAT,
            "model": self.scorer.name,
            "scorer_sha256": fingerprint(folder, self.scorer),
            "budget": str(self.budget),
            "outcome": {"kind": self.outcome.kind, "parameters": self.outcome.parameters()},
            "prior_tie": self.prior_tie,
            **({} if self.fallback is None else {"fallback": list(self.fallback)}),
            **({} if self.calibration is None else {"calibration": asdict(self.calibration)}),
            "versions": versions,
            "card": dict(self.card),
        }
        if self.link is not None:
            draws = [[float(f"{value:.6g}") for value in draw] for draw in self.link.draws.tolist()]
            said = {"margin": self.link.margin, "tie": self.link.tie, "theta": self.link.theta.tolist(), "draws": draws}
            text = json.dumps({"format": _FORMAT, "kind": self.link.kind, **said})
            (folder / _DRAWS).write_text(text + "\n", encoding="utf-8")
        (folder / _CARD).write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | os.PathLike[str], model: str | None = None) -> Forecaster:
        """Read what `save` wrote; `model` says where its reward model lies now, if it has moved.

        Raises ForecasterError if it is not a forecaster, is damaged, or its scorer's files have changed.
        """
        path = Path(folder)
        shown = shown_path(path)
        try:
            card = json.loads((path / _CARD).read_text(encoding="utf-8"))
            if card["format"] != _FORMAT:
                raise ForecasterError(
                    f"{shown}: format {card['format']!r} is not one that this version reads ({_FORMAT})"
                )
            scorer_type = scorer_class(card["model"])
            if card["scorer_sha256"] != fingerprint(path, scorer_type):
                raise ForecasterError(
                    f"{shown}: the scorer's files are not those that the outcome model was fitted for"
                )
            scorer = scorer_type.load(path, model)
            outcome = outcome_model(card["outcome"]["kind"], card["outcome"]["parameters"])
            prior_tie = float(card["prior_tie"])
            if not 0 <= prior_tie <= 1:
                raise ForecasterError(f"{shown}: prior_tie is {prior_tie}; expected a share from 0 to 1")
            fallback = card.get("fallback")
            if fallback is not None:
                a, b, tie = map(float, fallback)
                fallback = a, b, tie
            budget, calibration, link = parse_budget(card["budget"]), card.get("calibration"), _read_link(path / _DRAWS)
            if link is not None and not {*link.margin, *link.tie} <= {"margin", "tie", *scorer.raw_names}:
                raise ForecasterError(f"{shown}/{_DRAWS}: damaged: it names evidence that the scorer does not give")
            return cls(
                scorer,
                outcome,
                budget,
                prior_tie,
                dict(card["card"]),
                fallback,
                link,
                None if calibration is None else Calibration(**calibration),
            )
        except OSError as error:
            raise ForecasterError(f"{shown}: not a forecaster folder: {error.strerror or error} ({_CARD})") from None
        except ModelError as error:
            raise ForecasterError(f"{shown}: its model cannot be used: {error}") from None
        except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError, UsageError) as error:
            raise ForecasterError(f"{shown}/{_CARD}: damaged: {type(error).__name__}: {error}") from None


def check_folder(folder: str | os.PathLike[str]) -> None:
    """UsageError if `save` would refuse the folder for what it holds."""
    try:
        _check_folder(Path(os.path.realpath(folder)), shown_path(folder))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{shown_path(folder)}: cannot be written: {getattr(error, 'strerror', None) or error}"
        ) from None


def _check_folder(target: Path, shown: str) -> set[str]:
    there = {path.name for path in target.iterdir()} if target.exists() else set()
    if not all(name in (_CARD, _DRAWS) or is_scorer_file(name) for name in there):
        raise UsageError(f"{shown}: holds other things than a forecaster; choose another folder")
    return there


def _columns(evidence: Evidence, names: Sequence[str]) -> NDArray[np.float64]:
    """The named columns of evidence (n, k)."""
    found = {"margin": evidence.margin, "tie": evidence.tie}
    return np.array([found[name] if name in found else evidence.raw[name] for name in names]).T.reshape(-1, len(names))


def _spread(values: NDArray[np.float64], index: Sequence[int], n: int) -> NDArray[np.float64]:
    """Rows (m, k) in their places among n; nan elsewhere."""
    out = np.full((n, values.shape[1]), np.nan)
    out[list(index)] = values
    return out


def _read_link(path: Path) -> Link | None:
    """The link whose draws lie in a file; None if there is no file."""
    if not path.exists():
        return None
    data = json.loads(path.read_text(encoding="utf-8"))
    if data["format"] != _FORMAT or data["kind"] not in FITTED_MODELS:
        raise ForecasterError(f"{shown_path(path)}: is not one that this version reads")
    theta, draws = np.array(data["theta"], dtype=np.float64), np.array(data["draws"], dtype=np.float64)
    size = len(data["margin"]) + 1 + len(data["tie"])
    if (
        theta.shape != (size,)
        or draws.ndim != 2
        or draws.shape[1] != size
        or not all(np.isfinite(part).all() for part in (theta, draws))
    ):
        raise ForecasterError(f"{shown_path(path)}: damaged: its numbers do not fit together")
    return Link(data["kind"], tuple(data["margin"]), tuple(data["tie"]), theta, draws)


def _exchange(made: Path, target: Path, old: Path) -> None:
    """Put `made` in the place of `target`, which moves to `old`; whatever interrupts it, `target` is there again."""
    made.chmod(target.stat().st_mode)
    target.rename(old)
    try:
        made.rename(target)
    except BaseException:
        old.rename(target)
        raise


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Whether there is a folder of that name; never raises."""
    try:
        return Path(path).is_dir()
    except (OSError, ValueError):
        return False


@cache
def built_in() -> tuple[str, ...]:
    """The names of the forecasters that are shipped, the default first."""
    names = sorted(path.name for path in _BUILT_IN.iterdir() if (path / _CARD).is_file())
    return tuple(sorted(names, key=lambda name: (name != DEFAULT, -len(name))))


def load_forecaster(name_or_folder: str | os.PathLike[str] = DEFAULT, *, model: str | None = None) -> Forecaster:
    """A built-in forecaster by its name (`embedded`, `surface`, `length`), or one from its folder; `model` says where the folder's
    reward model lies now, if it has moved.

    Raises UsageError or ForecasterError.
    """
    if isinstance(name_or_folder, str) and name_or_folder in built_in():
        return Forecaster.load(_BUILT_IN / name_or_folder)
    if is_folder(name_or_folder):
        return Forecaster.load(name_or_folder, model)
    if isinstance(name_or_folder, str) and os.sep not in name_or_folder:
        find_scorer(name_or_folder)
    raise ForecasterError(
        f"{shown_path(name_or_folder)}: no such forecaster folder; built in are {', '.join(built_in())}"
    )

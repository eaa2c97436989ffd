"""The folder of a forecaster: `forecaster.json` says what the forecaster is made of, and with what data and figures. The scorer's own
files lie beside it."""

from __future__ import annotations

import json
import os
import platform
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Self

import numpy as np

from prefcast.base.files import read_whole
from prefcast.errors import ForecasterError, ModelError, UsageError, shown_path
from prefcast.forecasts.fitted_rows import FITTED_ROWS, FittedRows
from prefcast.outcomes.agreement import Agreement
from prefcast.outcomes.calibration import Calibration
from prefcast.outcomes.models import FITTED_MODELS, Link, OutcomeModel, outcome_model
from prefcast.pairs.budget import DEFAULT_BUDGET, WHOLE, Budget, parse_budget
from prefcast.scorers.base import Scorer, fingerprint
from prefcast.scorers.registry import is_scorer_file, scorer_class

__all__ = ["CARD", "ForecasterParts", "check_folder"]

CARD = "forecaster.json"
# The draws of the outcome model, from which the uncertainty of a forecast is computed. A forecaster may have none.
_DRAWS = "uncertainty.json"
_FORMAT = 1


@dataclass(frozen=True)
class ForecasterParts:
    """All that a forecaster is made of, written as a folder and read from it."""

    scorer: Scorer
    outcome: OutcomeModel
    budget: Budget = None  # type: ignore[assignment]
    prior_tie: float = 1 / 3
    card: Mapping[str, Any] = field(default_factory=dict)
    fallback: tuple[float, float, float] | None = None
    link: Link | None = None
    calibration: Calibration | None = None
    agreement: Agreement | None = None
    fitted_rows: FittedRows | None = None

    def __post_init__(self) -> None:
        if self.budget is None:
            object.__setattr__(self, "budget", self.default_budget(self.scorer))

    @staticmethod
    def default_budget(scorer: Scorer) -> Budget:
        """The budget if nobody names one: everything, if the scorer has a limit of its own."""
        return DEFAULT_BUDGET if scorer.limit is None else WHOLE

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the forecaster as a folder, whole or not at all. A forecaster that is there is replaced.

        A folder that holds anything else stays as it is. Raises UsageError.
        """
        with _writable(folder) as target:
            there = _forecaster_files(target, shown_path(folder))
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
                    # An empty folder may be a mount, or somebody's current folder. It is filled, the card last.
                    for path in sorted(made.iterdir(), key=lambda path: path.name == CARD):
                        path.rename(target / path.name)

    def write_beside(self, folder: Path) -> None:
        """Write the forecaster's files into the folder of its own model, the card last."""
        self._write(folder)

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
            **({} if self.agreement is None else {"agreement": asdict(self.agreement)}),
            "versions": versions,
            "card": dict(self.card),
        }
        if self.link is not None:
            draws = [[float(f"{value:.6g}") for value in draw] for draw in self.link.draws.tolist()]
            said = {"margin": self.link.margin, "tie": self.link.tie, "theta": self.link.theta.tolist(), "draws": draws}
            text = json.dumps({"format": _FORMAT, "kind": self.link.kind, **said})
            (folder / _DRAWS).write_text(text + "\n", encoding="utf-8")
        if self.fitted_rows is not None:
            self.fitted_rows.write(folder)
        (folder / CARD).write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | os.PathLike[str], model: str | None = None) -> Self:
        """Read what `save` wrote. `model` is the present path of the forecaster's reward model, if it has moved.

        Raises ForecasterError if the folder is not a forecaster, if it is damaged, or if the scorer's files have changed.
        """
        path = Path(folder)
        shown = shown_path(path)
        try:
            card = json.loads(read_whole(path / CARD).decode())
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
            calibration = None if calibration is None else Calibration(**calibration)
            promise = None if card.get("agreement") is None else Agreement.read(card["agreement"], shown)
            rows = FittedRows.read(path)
            return cls(
                scorer, outcome, budget, prior_tie, dict(card["card"]), fallback, link, calibration, promise, rows
            )
        except OSError as error:
            raise ForecasterError(f"{shown}: not a forecaster folder: {error.strerror or error} ({CARD})") from None
        except ModelError as error:
            raise ForecasterError(f"{shown}: its model cannot be used: {error}") from None
        except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError, UsageError) as error:
            raise ForecasterError(f"{shown}/{CARD}: damaged: {type(error).__name__}: {error}") from None


def check_folder(folder: str | os.PathLike[str]) -> None:
    """UsageError if `save` would refuse the folder because of what it holds."""
    with _writable(folder) as target:
        _forecaster_files(target, shown_path(folder))


@contextmanager
def _writable(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """The folder behind a name. In the block, a fault of the file system is raised as UsageError."""
    try:
        yield Path(os.path.realpath(folder))
    except (OSError, ValueError) as error:
        problem = getattr(error, "strerror", None) or error
        raise UsageError(f"{shown_path(folder)}: cannot be written: {problem}") from None


def _forecaster_files(target: Path, shown: str) -> set[str]:
    """The names of the files in a folder. Raises UsageError if one of them does not belong to a forecaster."""
    there = {path.name for path in target.iterdir()} if target.exists() else set()
    if not all(name in (CARD, _DRAWS, FITTED_ROWS) or is_scorer_file(name) for name in there):
        raise UsageError(f"{shown}: holds other things than a forecaster; choose another folder")
    return there


def _read_link(path: Path) -> Link | None:
    """The link whose draws a file holds. None if there is no file."""
    if not path.exists():
        return None
    data = json.loads(read_whole(path).decode())
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
    """Put `made` in the place of `target`, which moves to `old`. If that is interrupted, `target` moves back."""
    made.chmod(target.stat().st_mode)
    target.rename(old)
    try:
        made.rename(target)
    except BaseException:
        old.rename(target)
        raise

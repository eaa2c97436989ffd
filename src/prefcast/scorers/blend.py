"""The scorer `blend`: weighted sums of the evidence of several scorers and of covariates of the pair."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from prefcast.base.files import read_whole
from prefcast.errors import ForecasterError, UsageError
from prefcast.outcomes.models import OutcomeModel, outcome_model
from prefcast.pairs import Pair, Turn
from prefcast.pairs.budget import Budget, Truncation, parse_budget
from prefcast.scorers.base import SILENT, Cost, Evidence, Meter, Part, Push, Scorer, fingerprint, read_pair
from prefcast.scorers.covariates import MARGIN_COVARIATES, TIE_COVARIATES, covariates, plain_covariate
from prefcast.scorers.info import ScorerInfo
from prefcast.scorers.options import given, which

__all__ = ["BlendScorer", "Member"]

_FILE = "blend.json"
_FORMAT = 1


@dataclass(frozen=True)
class Member:
    """A scorer with its budget, its weights, and the outcome model that was fitted to it alone."""

    scorer: Scorer
    budget: Budget
    margin_weight: float
    tie_weight: float
    alone: OutcomeModel | None = None


class BlendScorer(Scorer):
    """margin = sum of margin_weight * margin over members + weighted antisymmetric covariates; tie = sum of tie_weight * tie
    over members + weighted symmetric covariates.

    `weights` are the covariates' weights; without them covariates are not used. Raw numbers are each member's evidence,
    the covariates, and `member_spread`, the largest difference between the members' own probabilities of an outcome.
    """

    name: ClassVar[str] = "blend"
    files: ClassVar[tuple[str, ...]] = (_FILE,)
    # The evidence store keeps the members' evidence instead.
    cost = Cost.INSTANT
    # Each member decides what becomes of a system message, and of answers that call tools.
    takes_system = takes_tools = True

    def __init__(self, members: Sequence[Member], weights: Mapping[str, float] | None = None) -> None:
        self.parts = list(members)
        self.weights = dict(weights or {})
        numbers = range(len(self.parts))
        names = [f"{what}:{member}" for what in ("margin", "tie") for member in numbers]
        names += [*MARGIN_COVARIATES, *TIE_COVARIATES] if self.weights else []
        self.raw_names = (*names, "member_spread") if self._alone else tuple(names)
        # Every member cuts the pair itself.
        self.limit = _EachItsOwn(self.parts)
        self.brought = next((part.scorer.brought for part in self.parts if part.scorer.brought), ())
        self.workers = max(part.scorer.workers for part in self.parts)
        self.portable = all(part.scorer.portable for part in self.parts)

    @property
    def _alone(self) -> bool:
        return len(self.parts) > 1 and all(part.alone is not None for part in self.parts)

    def stream(self, pairs: Sequence[Pair], meter: Meter = SILENT) -> Iterator[Part]:
        n = len(pairs)
        margin, tie, problems, raw = np.zeros(n), np.zeros(n), dict[int, str](), dict[str, NDArray[np.float64]]()
        own = []
        for number, part in enumerate(self.parts):
            # Only the last member counts the pairs.
            shown = meter if number == len(self.parts) - 1 else meter.aside()
            found = part.scorer.evidence([read_pair(pair, part.budget, part.scorer)[0] for pair in pairs], shown)
            margin += part.margin_weight * found.margin
            tie += part.tie_weight * found.tie
            raw[f"margin:{number}"], raw[f"tie:{number}"] = found.margin, found.tie
            problems = {**found.problems, **problems}
            if self._alone and part.alone is not None:
                good = np.isfinite(found.margin) & np.isfinite(found.tie)
                p = np.full((n, 3), np.nan)
                p[good] = part.alone.probabilities(found.margin[good], found.tie[good])
                own.append(p)
        if self.weights and n:
            rows = [covariates(pair.joined()) for pair in pairs]
            for kind, names in enumerate((MARGIN_COVARIATES, TIE_COVARIATES)):
                raw |= {name: np.array([row[kind][index] for row in rows]) for index, name in enumerate(names)}
            margin += sum(self.weights[name] * raw[name] for name in MARGIN_COVARIATES)
            tie += sum(self.weights[name] * raw[name] for name in TIE_COVARIATES)
        if own and n:
            raw["member_spread"] = np.ptp(np.stack(own), axis=0).max(axis=1)
        if n:
            yield range(n), Evidence(margin, tie, problems, raw)

    def compute(self, pairs: Sequence[Pair]) -> Evidence:
        return self.evidence(pairs)

    def members(self) -> tuple[Scorer, ...]:
        return tuple(part.scorer for part in self.parts)

    def with_members(self, members: Sequence[Scorer]) -> Scorer:
        parts = [replace(part, scorer=scorer) for part, scorer in zip(self.parts, members, strict=True)]
        return BlendScorer(parts, self.weights)

    def with_options(self, options: Any) -> Scorer:
        """The same scorer with other options of those members that have them. Raises UsageError if no member has."""
        names = set(given(options))
        fits = [names <= which(type(member.options)).keys() for member in self.members()]
        if names and not any(fits):
            raise UsageError(f"no model of the forecaster has the option --{min(names).replace('_', '-')}")
        return self.with_members(
            [member.with_options(options) if fit else member for member, fit in zip(self.members(), fits, strict=True)]
        )

    def identity(self) -> str:
        said = [
            (
                member.scorer.identity(),
                str(member.scorer.limit),
                str(member.budget),
                member.margin_weight,
                member.tie_weight,
                _alone(member),
            )
            for member in self.parts
        ]
        return hashlib.sha256(json.dumps([said, self.weights]).encode()).hexdigest()

    def close(self) -> None:
        for part in self.parts:
            part.scorer.close()

    def use_threads(self, threads: int) -> None:
        for part in self.parts:
            part.scorer.use_threads(threads)

    def explain(self, pair: Pair) -> list[Push]:
        pushes = []
        for member in self.parts:
            read = read_pair(pair, member.budget, member.scorer)[0]
            parts = member.scorer.explain(read)
            if not parts:
                found = member.scorer.evidence([read])
                parts = [Push(member.scorer.name, float(found.margin[0]), float(found.tie[0]))]
            prefix = f"{member.scorer.name}: " if len(self.parts) > 1 else ""
            weights = member.margin_weight, member.tie_weight
            pushes += [
                Push(f"{prefix}{push.name}", weights[0] * push.margin, weights[1] * push.tie, push.values)
                for push in parts
            ]
        if self.weights:
            antisymmetric, symmetric = covariates(pair.joined())
            for name, value in zip(MARGIN_COVARIATES, antisymmetric, strict=True):
                pushes.append(Push(f"link: {name}", self.weights[name] * value, 0.0, ((name, value, value),)))
            for name, value in zip(TIE_COVARIATES, symmetric, strict=True):
                shown = plain_covariate(name, value)
                pushes.append(Push(f"link: {name}", 0.0, self.weights[name] * value, ((name, shown, shown),)))
        return sorted(pushes, key=lambda push: -(abs(push.margin) + abs(push.tie)))

    def save(self, folder: Path) -> None:
        members = []
        for number, member in enumerate(self.parts, 1):
            room = folder / f"member-{number}"
            room.mkdir()
            member.scorer.save(room)
            members.append(
                {
                    "model": member.scorer.name,
                    "sha256": fingerprint(room, member.scorer),
                    "budget": str(member.budget),
                    "margin_weight": member.margin_weight,
                    "tie_weight": member.tie_weight,
                    "alone": _alone(member),
                }
            )
        data = {"format": _FORMAT, "members": members, "covariates": self.weights}
        (folder / _FILE).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, moved: str | None = None) -> Self:
        """The blend in `folder`; `moved` says where its one reward model is now."""
        from prefcast.scorers.registry import scorer_class

        data = json.loads(read_whole(folder / _FILE).decode())
        if data["format"] != _FORMAT:
            raise ForecasterError(f"{folder / _FILE}: format {data['format']!r} is not one that this version reads")
        members = []
        if moved is not None:
            places = [said["model"] for said in data["members"] if scorer_class(said["model"]).may_lie_elsewhere]
            if len(places) != 1:
                raise ForecasterError(
                    f"{folder}: holds {len(places)} reward models; one path cannot say where they lie now"
                )
        for number, said in enumerate(data["members"], 1):
            room = folder / f"member-{number}"
            scorer = scorer_class(said["model"])
            if fingerprint(room, scorer) != said["sha256"]:
                raise ForecasterError(f"{room}: the scorer's files are not those that the outcome model was fitted for")
            alone = said["alone"] and outcome_model(said["alone"]["kind"], said["alone"]["parameters"])
            weights = _number(said["margin_weight"]), _number(said["tie_weight"])
            found = scorer.load(room, moved if scorer.may_lie_elsewhere else None)
            members.append(Member(found, parse_budget(said["budget"]), *weights, alone))
        weights_of = {str(name): _number(weight) for name, weight in data["covariates"].items()}
        if weights_of and set(weights_of) != {*MARGIN_COVARIATES, *TIE_COVARIATES}:
            raise ForecasterError(f"{folder / _FILE}: covariates {sorted(weights_of)} are not those of this version")
        return cls(members, weights_of)


def _alone(member: Member) -> dict[str, Any] | None:
    """The member's own outcome model as JSON."""
    if member.alone is None:
        return None
    return {"kind": member.alone.kind, "parameters": member.alone.parameters()}


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
        raise ForecasterError(f"{_FILE}: {value!r} where a finite number belongs")
    return float(value)


class _EachItsOwn(Budget):
    """Does not cut the pair, and reports how much the member that reads least reads of it."""

    name = "each member's own budget"
    limit = 10**12

    def __init__(self, members: Sequence[Member]) -> None:
        self._members = members

    def __str__(self) -> str:
        return self.name

    def apply(self, turns: tuple[Turn, ...]) -> tuple[tuple[Turn, ...], Truncation]:
        return turns, self.read(Pair(turns))[1]

    def read(self, pair: Pair) -> tuple[Pair, Truncation]:
        reports = [read_pair(pair, member.budget, member.scorer)[1] for member in self._members]
        # Members may count a system message or not: what counts is how much each left out.
        least = min(reports, key=lambda report: (report.kept - report.total, report.turns_kept))
        return pair, replace(least, literal=any(report.literal for report in reports))


SCORER = ScorerInfo(BlendScorer.name, f"{__name__}:BlendScorer", files=BlendScorer.files, listed=False)

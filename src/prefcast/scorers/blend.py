"""Several scorers as one: weighted sums of their margins and ties, and of facts about the pair."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from prefcast.errors import ForecasterError, UsageError
from prefcast.outcomes.models import OutcomeModel, outcome_model
from prefcast.pairs import Pair, Turn
from prefcast.pairs.budget import Budget, Measure, Truncation, parse_budget
from prefcast.scorers.base import Evidence, Push, Scorer, fingerprint, read_pair
from prefcast.scorers.covariates import MARGIN_COVARIATES, TIE_COVARIATES, covariates
from prefcast.scorers.given import GivenScorer

if TYPE_CHECKING:
    from prefcast.scorers.reward import Options

__all__ = ["BlendScorer", "Member"]

_FILE = "blend.json"
_FORMAT = 1


@dataclass(frozen=True)
class Member:
    """A scorer with the budget that it reads, its weights, and the outcome model that it would have alone."""

    scorer: Scorer
    budget: Budget
    margin_weight: float
    tie_weight: float
    alone: OutcomeModel | None = None


class BlendScorer(Scorer):
    """margin = sum of margin_weight * margin over members + antisymmetric covariates; tie alike with symmetric ones.

    `weights` gives the covariates' (none: they are not used). Raw numbers are each member's evidence, the covariates,
    and `member_spread`: by how much the members' own probabilities of an outcome differ at most.
    """

    name: ClassVar[str] = "blend"
    files: ClassVar[tuple[str, ...]] = (_FILE,)

    def __init__(self, members: Sequence[Member], weights: Mapping[str, float] | None = None) -> None:
        self.members = list(members)
        self.weights = dict(weights or {})
        numbers = range(len(self.members))
        names = [f"{what}:{member}" for what in ("margin", "tie") for member in numbers]
        names += [*MARGIN_COVARIATES, *TIE_COVARIATES] if self.weights else []
        self.raw_names = (*names, "member_spread") if self._alone else tuple(names)
        # Every member cuts for itself; the report is of the one that reads least.
        self.limit = _EachItsOwn(self.members)

    @property
    def _alone(self) -> bool:
        return len(self.members) > 1 and all(member.alone is not None for member in self.members)

    def evidence(self, pairs: Sequence[Pair]) -> Evidence:
        n = len(pairs)
        margin, tie, problems, raw = np.zeros(n), np.zeros(n), dict[int, str](), dict[str, NDArray[np.float64]]()
        own = []
        for number, member in enumerate(self.members):
            member.scorer.on_progress = self.on_progress if number == len(self.members) - 1 else None
            found = member.scorer.evidence([read_pair(pair, member.budget, member.scorer)[0] for pair in pairs])
            margin += member.margin_weight * found.margin
            tie += member.tie_weight * found.tie
            raw[f"margin:{number}"], raw[f"tie:{number}"] = found.margin, found.tie
            problems = {**found.problems, **problems}
            if self._alone and member.alone is not None:
                good = np.isfinite(found.margin) & np.isfinite(found.tie)
                p = np.full((n, 3), np.nan)
                p[good] = member.alone.probabilities(found.margin[good], found.tie[good])
                own.append(p)
        if self.weights and n:
            rows = [covariates(pair) for pair in pairs]
            for part, names in enumerate((MARGIN_COVARIATES, TIE_COVARIATES)):
                raw |= {name: np.array([row[part][index] for row in rows]) for index, name in enumerate(names)}
            margin += sum(self.weights[name] * raw[name] for name in MARGIN_COVARIATES)
            tie += sum(self.weights[name] * raw[name] for name in TIE_COVARIATES)
        if own and n:
            raw["member_spread"] = np.ptp(np.stack(own), axis=0).max(axis=1)
        return Evidence(margin, tie, problems, raw)

    @property
    def reused(self) -> int:  # type: ignore[override]
        return sum(member.scorer.reused for member in self.members)

    @property
    def computed(self) -> int:  # type: ignore[override]
        return sum(member.scorer.computed for member in self.members)

    @property
    def tokenising(self) -> float:  # type: ignore[override]
        return sum(member.scorer.tokenising for member in self.members)

    def identity(self) -> str:
        said = [
            (
                member.scorer.identity(),
                str(member.budget),
                member.margin_weight,
                member.tie_weight,
                member.alone and [member.alone.kind, member.alone.parameters()],
            )
            for member in self.members
        ]
        return hashlib.sha256(json.dumps([said, self.weights]).encode()).hexdigest()

    def close(self) -> None:
        for member in self.members:
            member.scorer.close()

    def use_threads(self, threads: int) -> None:
        for member in self.members:
            member.scorer.use_threads(threads)

    def explain(self, pair: Pair) -> list[Push]:
        pushes = []
        for member in self.members:
            read = read_pair(pair, member.budget, member.scorer)[0]
            parts = member.scorer.explain(read)
            if not parts:
                found = member.scorer.evidence([read])
                parts = [Push(member.scorer.name, float(found.margin[0]), float(found.tie[0]))]
            prefix = f"{member.scorer.name}: " if len(self.members) > 1 else ""
            pushes += [
                Push(
                    f"{prefix}{push.name}",
                    member.margin_weight * push.margin,
                    member.tie_weight * push.tie,
                    push.values,
                )
                for push in parts
            ]
        if self.weights:
            values = covariates(pair)
            for names, part in ((MARGIN_COVARIATES, 0), (TIE_COVARIATES, 1)):
                for name, value in zip(names, values[part], strict=True):
                    push = self.weights[name] * value
                    shown = ((name, value, value),)
                    pushes.append(Push(f"link: {name}", push if part == 0 else 0.0, push if part else 0.0, shown))
        return sorted(pushes, key=lambda push: -(abs(push.margin) + abs(push.tie)))

    def save(self, folder: Path) -> None:
        members = []
        for number, member in enumerate(self.members, 1):
            room = folder / f"member-{number}"
            room.mkdir()
            member.scorer.save(room)
            alone = None
            if member.alone is not None:
                alone = {"kind": member.alone.kind, "parameters": member.alone.parameters()}
            members.append(
                {
                    "model": member.scorer.name,
                    "sha256": fingerprint(room, type(member.scorer)),
                    "budget": str(member.budget),
                    "margin_weight": member.margin_weight,
                    "tie_weight": member.tie_weight,
                    "alone": alone,
                }
            )
        data = {"format": _FORMAT, "members": members, "covariates": self.weights}
        (folder / _FILE).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")

    def elsewhere(self, options: Options) -> BlendScorer:
        """The same with its reward models where `options` say. Raises UsageError if there is none."""
        if not any(hasattr(member.scorer, "elsewhere") for member in self.members):
            raise UsageError("the forecaster holds no reward model; such options are for reward models")
        moved = [
            replace(member, scorer=member.scorer.elsewhere(options)) if hasattr(member.scorer, "elsewhere") else member
            for member in self.members
        ]
        return BlendScorer(moved, self.weights)

    def with_scores(self, scores: GivenScorer) -> BlendScorer:
        """The same with the scores that a person brings now, in the place of those it was fitted to."""
        given = [
            replace(member, scorer=scores) if isinstance(member.scorer, GivenScorer) else member
            for member in self.members
        ]
        return BlendScorer(given, self.weights)

    @classmethod
    def load(cls, folder: Path, model: str | None = None) -> Self:
        """The blend in `folder`; `model` says where its one reward model lies now, if it has moved."""
        from prefcast.scorers import REWARD_MODEL, load_moved, scorer_class

        data = json.loads((folder / _FILE).read_text(encoding="utf-8"))
        if data["format"] != _FORMAT:
            raise ForecasterError(f"{folder / _FILE}: format {data['format']!r} is not one that this version reads")
        members = []
        rewards = [said["model"] for said in data["members"]].count(REWARD_MODEL)
        if model is not None and rewards != 1:
            raise ForecasterError(f"{folder}: holds {rewards} reward models; one path cannot say where they lie now")
        for number, said in enumerate(data["members"], 1):
            room = folder / f"member-{number}"
            scorer = scorer_class(said["model"])
            if fingerprint(room, scorer) != said["sha256"]:
                raise ForecasterError(f"{room}: the scorer's files are not those that the outcome model was fitted for")
            alone = said["alone"] and outcome_model(said["alone"]["kind"], said["alone"]["parameters"])
            weights = _number(said["margin_weight"]), _number(said["tie_weight"])
            moved = model is not None and said["model"] == REWARD_MODEL
            found = load_moved(said["model"], room, str(model)) if moved else scorer.load(room)
            members.append(Member(found, parse_budget(said["budget"]), *weights, alone))
        weights_of = {str(name): _number(weight) for name, weight in data["covariates"].items()}
        if weights_of and set(weights_of) != {*MARGIN_COVARIATES, *TIE_COVARIATES}:
            raise ForecasterError(f"{folder / _FILE}: covariates {sorted(weights_of)} are not those of this version")
        return cls(members, weights_of)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
        raise ForecasterError(f"{_FILE}: {value!r} where a finite number belongs")
    return float(value)


class _EachItsOwn(Budget):
    """Cuts nothing; reports what the member that reads least keeps."""

    name = "each member's own budget"
    limit = 10**12

    def __init__(self, members: Sequence[Member]) -> None:
        self._members = members

    def __str__(self) -> str:
        return self.name

    def cut(self, turns: Sequence[Turn], measure: Measure | None = None) -> tuple[tuple[Turn, ...], int]:
        return tuple(turns), sum(turn.characters for turn in turns)

    def apply(self, turns: tuple[Turn, ...]) -> tuple[tuple[Turn, ...], Truncation]:
        reports = [read_pair(Pair(turns), member.budget, member.scorer)[1] for member in self._members]
        least = min(reports, key=lambda report: (report.kept, report.turns_kept))
        return turns, least

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
from prefcast.errors import ForecasterError
from prefcast.outcomes.models import OutcomeModel, outcome_model
from prefcast.pairs import Pair
from prefcast.pairs.budget import Budget
from prefcast.scorers.base import SILENT, Conversation, Cost, Evidence, Meter, Part, Push, Scorer, read_pair
from prefcast.scorers.covariates import MARGIN_COVARIATES, TIE_COVARIATES, covariates, plain_covariate
from prefcast.scorers.info import ScorerInfo
from prefcast.scorers.members import EachItsOwn, check_moved, finite, load_member, save_member, with_options

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
        self.limit = EachItsOwn([(part.scorer, part.budget) for part in self.parts])
        self.brought = next((part.scorer.brought for part in self.parts if part.scorer.brought), ())
        scored = [part.scorer for part in self.parts if part.scorer.pointwise]
        # One reward model among the members gives single conversations their scores.
        self._scored = scored[0] if len(scored) == 1 else None
        self.pointwise = self._scored is not None
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

    def score(self, conversations: Sequence[Conversation]) -> NDArray[np.float64]:
        """The scores of the one member that has such. Raises UsageError where there is none, or several."""
        return super().score(conversations) if self._scored is None else self._scored.score(conversations)

    def members(self) -> tuple[Scorer, ...]:
        return tuple(part.scorer for part in self.parts)

    def with_members(self, members: Sequence[Scorer]) -> Scorer:
        parts = [replace(part, scorer=scorer) for part, scorer in zip(self.parts, members, strict=True)]
        return BlendScorer(parts, self.weights)

    def with_options(self, options: Any) -> Scorer:
        """The same scorer with other options of those members that have them. Raises UsageError if no member has."""
        return self.with_members(with_options(self.members(), options))

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
            weights = {"margin_weight": member.margin_weight, "tie_weight": member.tie_weight}
            kept = save_member(folder, number, member.scorer, member.budget)
            members.append({**kept, **weights, "alone": _alone(member)})
        data = {"format": _FORMAT, "members": members, "covariates": self.weights}
        (folder / _FILE).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, moved: str | None = None) -> Self:
        """The blend in `folder`; `moved` says where its one reward model is now."""
        data = json.loads(read_whole(folder / _FILE).decode())
        if data["format"] != _FORMAT:
            raise ForecasterError(f"{folder / _FILE}: format {data['format']!r} is not one that this version reads")
        members = []
        check_moved(folder, data["members"], moved)
        for number, said in enumerate(data["members"], 1):
            scorer, budget = load_member(folder, number, said, moved)
            alone = said["alone"] and outcome_model(said["alone"]["kind"], said["alone"]["parameters"])
            weights = finite(said["margin_weight"], _FILE), finite(said["tie_weight"], _FILE)
            members.append(Member(scorer, budget, *weights, alone))
        weights_of = {str(name): finite(weight, _FILE) for name, weight in data["covariates"].items()}
        if weights_of and set(weights_of) != {*MARGIN_COVARIATES, *TIE_COVARIATES}:
            raise ForecasterError(f"{folder / _FILE}: covariates {sorted(weights_of)} are not those of this version")
        return cls(members, weights_of)


def _alone(member: Member) -> dict[str, Any] | None:
    """The member's own outcome model as JSON."""
    if member.alone is None:
        return None
    return {"kind": member.alone.kind, "parameters": member.alone.parameters()}


SCORER = ScorerInfo(BlendScorer.name, f"{__name__}:BlendScorer", files=BlendScorer.files, listed=False)

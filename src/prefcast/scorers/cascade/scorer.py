"""The cascade itself: two tiers, a readout for each, and the rule that sends a pair to the second tier."""

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
from prefcast.errors import ForecasterError, UsageError, excerpt
from prefcast.pairs import Pair
from prefcast.pairs.budget import Budget
from prefcast.scorers.base import SILENT, Cost, Evidence, Meter, Part, Promise, Push, Scorer, read_pair
from prefcast.scorers.blend import BlendScorer, Member
from prefcast.scorers.cascade import FILE, Options
from prefcast.scorers.cascade.rule import LENGTHS, Readout, Rule, checked_share, facts_of, features
from prefcast.scorers.covariates import MARGIN_COVARIATES, TIE_COVARIATES, covariates
from prefcast.scorers.members import EachItsOwn, check_moved, finite, load_member, save_member, with_options

__all__ = ["ESCALATED", "CascadeScorer", "Tier", "columns_of", "raw_columns"]

Floats = NDArray[np.float64]

_FORMAT = 1
# The raw number that says which tiers scored a pair: 0 for the first alone, 1 for both.
ESCALATED = "escalated"
_NAMES = ("first", "both")


def columns_of(tiers: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The antisymmetric and the symmetric columns that a readout of so many tiers may use."""
    margin, tie = ([f"{what}:{tier}" for tier in range(tiers)] for what in ("margin", "tie"))
    return (*margin, *MARGIN_COVARIATES), (*tie, *TIE_COVARIATES)


def raw_columns(readout: Readout, which: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What the scorer's raw numbers call the columns of a readout, of the first tier (0) or of both (1).

    Such a number is 0 for a pair to which the readout does not apply: so one link describes both readouts.
    """
    return (
        tuple(f"margin:{name.removeprefix('margin:')}:{_NAMES[which]}" for name in readout.margin),
        tuple(f"tie:{name.removeprefix('tie:')}:{_NAMES[which]}" for name in readout.tie),
    )


@dataclass(frozen=True)
class Tier:
    """A scorer with its budget."""

    scorer: Scorer
    budget: Budget


class CascadeScorer(Scorer):
    """The first tier scores every pair. The second tier scores the pairs that `rule` chooses for `share`.

    `alone` reads the evidence of the first tier, `both` that of the two tiers, or of the second if the first adds nothing. The evidence is a forecast's log-odds. A pair
    that the second tier cannot score is an error of that pair. If a tier's numbers depend on its batches in the last digits,
    so may the choice for a pair whose score is at the threshold.
    """

    name: ClassVar[str] = "cascade"
    files: ClassVar[tuple[str, ...]] = (FILE,)
    # The evidence store keeps the tiers' evidence instead.
    cost = Cost.INSTANT
    # Each tier decides what becomes of a system message.
    takes_system = takes_tools = True
    log_odds = True

    def __init__(self, tiers: Sequence[Tier], alone: Readout, both: Readout, rule: Rule, share: float) -> None:
        self.first, self.second = tiers
        self.readouts, self.rule, self.share = (alone, both), rule, checked_share(share)
        names = [raw_columns(readout, which) for which, readout in enumerate(self.readouts)]
        self.raw_names = (*(name for pair in names for part in pair for name in part), ESCALATED)
        # Every tier cuts the pair itself.
        self.limit = EachItsOwn([(tier.scorer, tier.budget) for tier in tiers])
        self.options = Options(share=share)
        scorers = self.members()
        self.brought = next((scorer.brought for scorer in scorers if scorer.brought), ())
        self.workers = max(scorer.workers for scorer in scorers)
        self.portable = all(scorer.portable for scorer in scorers)
        promises = [scorer.promise for scorer in scorers]
        self.promise = Promise(
            max(each.swap for each in promises),
            max(each.batch for each in promises),
            all(each.repeatable for each in promises),
        )

    def stream(self, pairs: Sequence[Pair], meter: Meter = SILENT) -> Iterator[Part]:
        if pairs:
            # Numbers of a strange folder may be too large; then the pair has no finite evidence, which is its error.
            with np.errstate(over="ignore", invalid="ignore"):
                found = self._found(pairs, meter)
            yield range(len(pairs)), found

    def _found(self, pairs: Sequence[Pair], meter: Meter) -> Evidence:
        n = len(pairs)
        before = meter.aside()
        first = _evidence(self.first, pairs, before)
        columns = {"margin:0": first.margin, "tie:0": first.tie, **_facts(pairs)}
        margin, tie = self.readouts[0].log_odds(columns)
        picked = self.rule.chosen(features(margin, tie, columns), self.share)
        places = np.flatnonzero(picked)
        rest = n - len(places)
        kept = min(rest, before.spent.kept)
        meter.advance(kept, kept=True)
        meter.advance(rest - kept)
        problems = dict(first.problems)
        columns |= {"margin:1": np.zeros(n), "tie:1": np.zeros(n)}
        if len(places):
            second = _evidence(self.second, [pairs[place] for place in places.tolist()], meter)
            columns["margin:1"][places], columns["tie:1"][places] = second.margin, second.tie
            problems |= {int(places[row]): problem for row, problem in second.problems.items()}
            for kind, found in zip((margin, tie), self.readouts[1].log_odds(columns), strict=True):
                kind[places] = found[places]
        return Evidence(margin, tie, problems, self._raw(columns, picked))

    def _raw(self, columns: Mapping[str, Floats], picked: NDArray[np.bool_]) -> dict[str, Floats]:
        raw = {ESCALATED: picked.astype(np.float64)}
        for which, readout in enumerate(self.readouts):
            for names, found in zip((readout.margin, readout.tie), raw_columns(readout, which), strict=True):
                raw |= {
                    raw_name: np.where(picked == bool(which), columns[name], 0.0)
                    for name, raw_name in zip(names, found, strict=True)
                }
        return raw

    def compute(self, pairs: Sequence[Pair]) -> Evidence:
        return self.evidence(pairs)

    def members(self) -> tuple[Scorer, ...]:
        return self.first.scorer, self.second.scorer

    def with_members(self, members: Sequence[Scorer]) -> Scorer:
        tiers = [replace(tier, scorer=scorer) for tier, scorer in zip((self.first, self.second), members, strict=True)]
        return CascadeScorer(tiers, *self.readouts, self.rule, self.share)

    def with_options(self, options: Any) -> Scorer:
        """The same cascade with another share, or with other options of those tiers that have them. Raises UsageError."""
        if isinstance(options, Options):
            if options.then is not None:
                raise UsageError("--then: the tiers of a cascade are fixed by its fit; fit another cascade")
            if options.share is None:
                return self
            return CascadeScorer((self.first, self.second), *self.readouts, self.rule, options.share)
        return self.with_members(with_options(self.members(), options))

    def identity(self) -> str:
        tiers = [
            (tier.scorer.identity(), str(tier.scorer.limit), str(tier.budget)) for tier in (self.first, self.second)
        ]
        return hashlib.sha256(json.dumps([tiers, self._said()]).encode()).hexdigest()

    def _said(self) -> dict[str, Any]:
        alone, both = (readout.said() for readout in self.readouts)
        return {"first": alone, "both": both, "rule": self.rule.said(), "share": self.share}

    def prepare(self) -> None:
        for member in self.members():
            member.prepare()

    def close(self) -> None:
        for member in self.members():
            member.close()

    def use_threads(self, threads: int) -> None:
        for member in self.members():
            member.use_threads(threads)

    def explain(self, pair: Pair) -> list[Push]:
        found = self.evidence([pair])
        if found.problems:
            return []
        which = int(found.raw[ESCALATED][0])
        readout = self.readouts[which]
        weights = {**readout.margin, **readout.tie}
        facts = {name: weights[name] for name in (*MARGIN_COVARIATES, *TIE_COVARIATES) if name in weights}
        members = [
            Member(tier.scorer, tier.budget, weights[f"margin:{number}"], weights.get(f"tie:{number}", 0.0))
            for number, tier in enumerate((self.first, self.second)[: which + 1])
            if f"margin:{number}" in weights
        ]
        level = Push("link: tie level", 0.0, readout.level)
        pushes = [*BlendScorer(members, facts).explain(pair), level]
        return sorted(pushes, key=lambda push: -(abs(push.margin) + abs(push.tie)))

    def save(self, folder: Path) -> None:
        tiers = [
            save_member(folder, number, tier.scorer, tier.budget)
            for number, tier in enumerate((self.first, self.second), 1)
        ]
        data = {"format": _FORMAT, "tiers": tiers, **self._said()}
        (folder / FILE).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, moved: str | None = None) -> Self:
        """The cascade in `folder`; `moved` says where its one reward model is now."""
        data = json.loads(read_whole(folder / FILE).decode())
        if data["format"] != _FORMAT:
            raise ForecasterError(
                f"{folder / FILE}: format {excerpt(data['format'])} is not one that this version reads"
            )
        if len(data["tiers"]) != 2:
            raise ForecasterError(f"{folder / FILE}: a cascade has two tiers, found {len(data['tiers'])}")
        readouts = [Readout.read(data[name], *columns_of(count), FILE) for count, name in enumerate(_NAMES, 1)]
        for count, readout in enumerate(readouts, 1):
            # Of both tiers, the first may have no weight.
            tiers_said = {f"{what}:{tier}" for what in ("margin", "tie") for tier in range(count)}
            wanted = {f"margin:{count - 1}", f"tie:{count - 1}"}
            facts = {*readout.margin, *readout.tie} - tiers_said
            if not wanted <= {*readout.margin, *readout.tie} or facts not in (
                set(),
                {*MARGIN_COVARIATES, *TIE_COVARIATES},
            ):
                raise ForecasterError(f"{folder / FILE}: its readouts are not those of this version")
        rule, share = Rule.read(data["rule"], FILE), finite(data["share"], FILE)
        if not 0 <= share <= 1:
            raise ForecasterError(f"{folder / FILE}: the share is {share:g}; expected a number from 0 to 1")
        check_moved(folder, data["tiers"], moved)
        tiers = [Tier(*load_member(folder, number, said, moved)) for number, said in enumerate(data["tiers"], 1)]
        return cls(tiers, readouts[0], readouts[1], rule, share)


def _evidence(tier: Tier, pairs: Sequence[Pair], meter: Meter) -> Evidence:
    return tier.scorer.evidence([read_pair(pair, tier.budget, tier.scorer)[0] for pair in pairs], meter)


def _facts(pairs: Sequence[Pair]) -> dict[str, Floats]:
    """The covariates of the pairs and what else the rule knows of them, (n,) each, by name."""
    rows = []
    for pair in pairs:
        antisymmetric, symmetric = covariates(pair.joined())
        rows.append((*antisymmetric, *symmetric, *facts_of(pair)))
    names = (*MARGIN_COVARIATES, *TIE_COVARIATES, *LENGTHS)
    return dict(zip(names, np.array(rows).T, strict=True))

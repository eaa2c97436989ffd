"""The rows of a training: pairs with what people, and perhaps a teacher, said of them; and which rows are held out."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefcast.base.limits import MAX_ROW
from prefcast.errors import FileError, RowError, UsageError, shown_path
from prefcast.fitting.fitter import LEAST_LABELS
from prefcast.fitting.soft_labels import read_strengths, read_vote_counts, read_weights
from prefcast.pairs import Outcome, Pair
from prefcast.pairs.formats import PairFile
from prefcast.pairs.sources import opened_pairs
from prefcast.training.leaks import Leak, leaks_between
from prefcast.training.prompts import prompt_groups
from prefcast.training.reward.teachers import Teacher, taught
from prefcast.training.splits import apart, drawn, enough, shares, source_name

__all__ = ["Given", "LabelledRows", "deal", "read_rows", "split"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Path = str | os.PathLike[str]

# With fewer labelled pairs a reward model learns nothing that a fit of its scores would not.
LEAST_PAIRS = 100


@dataclass(frozen=True, kw_only=True)
class Given:
    """What a person gives: files of pairs (several are several sources), and files beside them, all by id.

    `held` are files of pairs that are held out for validation, in the place of a share of the others. `source` is a column of the
    pairs that names the source of a row. `teachers` are files of forecasts or scores of one or several
    larger models; their probabilities are averaged. `teacher_forecasters` are folders of forecasters that made them. `reading` are arguments
    of `open_pairs`.
    """

    pairs: Sequence[Any]
    held: Sequence[Any] = ()
    source: str | None = None
    votes: Path | None = None
    weights: Path | None = None
    strengths: Path | None = None
    teachers: Sequence[Path] = ()
    teacher_forecasters: Sequence[Path] = ()
    reading: Mapping[str, Any] = field(default_factory=dict)

    @property
    def how(self) -> dict[str, Any]:
        """The arguments of `opened_pairs`."""
        return {"columns": None, "cells": "json", "label_values": None, "max_row": MAX_ROW, **self.reading}


@dataclass(frozen=True, eq=False)
class LabelledRows:
    """n pairs: `target` (n, 3) are shares of outcomes, 0 in a row without a label; `votes` (n, 3) are the counts behind them.

    `weight` (n,) is how much a row counts, `strength` (n,) how strong its preference is (nan: not said), `source` (n,) indexes
    `names`, `group` (n,) numbers the groups of first prompts (`prefcast.training.prompts`). `teacher` (n, 3) are a teacher's
    probabilities, nan where it has none. `held` (n,) marks rows of files that are for validation. `unlabelled` and `failed` rows
    were left out; `first_error` is the first of those that failed. `leaks` is what the files share, `notes` are lines to be said.
    """

    pairs: list[Pair]
    target: Floats
    votes: Floats
    weight: Floats
    strength: Floats
    source: Ints
    names: tuple[str, ...]
    group: Ints
    teacher: Floats
    held: NDArray[np.bool_]
    unlabelled: int = 0
    failed: int = 0
    first_error: RowError | None = None
    leaks: tuple[Leak, ...] = ()
    notes: tuple[str, ...] = ()
    teachers: tuple[Teacher, ...] = ()

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def labelled(self) -> NDArray[np.bool_]:
        """Which rows (n,) people said something of."""
        found: NDArray[np.bool_] = self.votes.sum(axis=1) > 0
        return found

    @property
    def taught(self) -> NDArray[np.bool_]:
        """Which rows (n,) a teacher said something of."""
        found: NDArray[np.bool_] = np.isfinite(self.teacher[:, 0])
        return found

    def where(self, chosen: NDArray[Any]) -> LabelledRows:
        """The chosen rows: a mask (n,) or positions."""
        places = np.flatnonzero(chosen) if chosen.dtype == bool else chosen
        arrays = ("target", "votes", "weight", "strength", "source", "group", "teacher", "held")
        parts: dict[str, Any] = {name: getattr(self, name)[places] for name in arrays}
        return replace(self, pairs=[self.pairs[place] for place in places.tolist()], **parts)

    def taught_from(self, learned: NDArray[np.bool_]) -> LabelledRows:
        """The same rows, with teachers whose scores were read with the labels of the rows in `learned` (n,) alone."""
        if not self.teachers:
            return self
        return replace(self, teacher=taught(self.pairs, self.target * learned[:, None], self.teachers))

    def sha256(self) -> str:
        """A fingerprint of all that is learned from: texts, targets, weights, sources, teacher."""
        digest = hashlib.sha256()
        for pair in self.pairs:
            said = [str(pair.id), pair.system, pair.reference or "", *(pair.tools or ())]
            said += [text for turn in pair.turns for text in turn.texts]
            for text in said:
                data = text.encode("utf-8", "surrogatepass")
                digest.update(len(data).to_bytes(8, "little") + data)
        for values in (self.target, self.votes, self.weight, self.strength, self.source, self.teacher):
            digest.update(np.ascontiguousarray(values).tobytes())
        digest.update("\0".join(self.names).encode("utf-8", "surrogatepass"))
        return digest.hexdigest()


def read_rows(given: Given) -> LabelledRows:
    """The rows of a training. A row without a label is kept if a teacher has its id.

    Raises FileError, UsageError for too few rows and for an id that two of the files share.
    """
    votes = None if given.votes is None else read_vote_counts(given.votes)
    weights = None if given.weights is None else read_weights(given.weights)
    strengths = None if given.strengths is None else read_strengths(given.strengths)
    teachers = [Teacher.read(path) for path in given.teachers]
    pairs: list[Pair] = []
    counts: list[tuple[float, ...]] = []
    sources: list[str] = []
    failed = 0
    first: RowError | None = None
    file: list[int] = []
    for number, files in enumerate([*given.pairs, *given.held]):
        with opened_pairs(files, **given.how) as opened:
            if given.source is not None:
                if not isinstance(opened, PairFile):
                    raise UsageError("--source names a column; pairs that are objects have none")
                opened.keep(given.source)
            name = _name(files, number)
            if name in sources and given.source is None:
                name = f"{name}-{number + 1}"
            for row, item in enumerate(opened, 1):
                if isinstance(item, RowError):
                    failed, first = failed + 1, first or item
                    continue
                kept = None if given.source is None else dict(item.own).get(given.source)
                if isinstance(opened, PairFile) and given.source is not None and kept is None:
                    raise FileError(opened.name, f"{given.source} is empty; every row needs a source", item.row or row)
                pairs.append(item)
                counts.append(_counts(item, votes) or (0.0, 0.0, 0.0))
                file.append(number)
                sources.append(kept or name)
    _check_ids(pairs, len(given.pairs) + len(given.held))
    held = [number >= len(given.pairs) for number in file]
    if given.source is None and given.held and False in held:
        # A file for validation is no source of its own: nothing is learned from it. It is taken as the largest source.
        counted = Counter(name for name, out in zip(sources, held, strict=True) if not out)
        sources = [counted.most_common(1)[0][0] if out else name for name, out in zip(sources, held, strict=True)]
    names = tuple(dict.fromkeys(sources))
    found = np.array(counts, dtype=np.float64).reshape(-1, len(Outcome))
    target = shares(found)
    rows = LabelledRows(
        pairs,
        target,
        found,
        _by_id(pairs, weights, 1.0, "--weights"),
        _by_id(pairs, strengths, np.nan, "--strengths"),
        np.array([names.index(each) for each in sources], dtype=np.int64),
        names,
        np.zeros(len(pairs), dtype=np.int64),
        taught(pairs, target, teachers),
        np.array(held, dtype=bool),
        0,
        failed,
        first,
    )
    told = rows.labelled | rows.taught
    rows = replace(rows.where(told), unlabelled=int((~told).sum()))
    _check_size(rows)
    groups = prompt_groups(rows.pairs)
    files = [
        shown_path(each) if isinstance(each, str | os.PathLike) else f"pairs {number}"
        for number, each in enumerate([*given.pairs, *given.held], 1)
    ]
    leaks = leaks_between(rows.pairs, np.array(file, dtype=np.int64)[told], files, groups)
    notes = [*groups.lines(), *(line for teacher in teachers for line in teacher.lines(rows.pairs))]
    return replace(rows, group=groups.group, leaks=tuple(leaks), notes=tuple(notes), teachers=tuple(teachers))


def _name(files: Any, number: int) -> str:
    """The name of a source: that of its file."""
    return source_name(files) if isinstance(files, str | os.PathLike) else f"source {number + 1}"


def _counts(pair: Pair, votes: Mapping[str, tuple[float, ...]] | None) -> tuple[float, ...] | None:
    if votes is not None:
        return votes.get(str(pair.id))
    return None if pair.outcome is None else tuple(float(each == pair.outcome) for each in Outcome)


def _by_id(pairs: Sequence[Pair], values: Mapping[str, float] | None, otherwise: float, flag: str) -> Floats:
    if values is None:
        return np.full(len(pairs), otherwise)
    if flag == "--weights" and (missing := next((pair.id for pair in pairs if str(pair.id) not in values), None)):
        raise UsageError(f"--weights: id {str(missing)!r} has no weight; every labelled row needs one")
    return np.array([values.get(str(pair.id), otherwise) for pair in pairs])


def _check_ids(pairs: Sequence[Pair], files: int) -> None:
    if files < 2:
        return
    seen: set[str] = set()
    for pair in pairs:
        if str(pair.id) in seen:
            raise UsageError(f"two of the files have the id {str(pair.id)!r}; give every row an id of its own")
        seen.add(str(pair.id))


def _check_size(rows: LabelledRows) -> None:
    labelled = int(rows.labelled.sum())
    if labelled < LEAST_PAIRS:
        more = f" ({rows.unlabelled} without a label, {rows.failed} failed)" if rows.unlabelled or rows.failed else ""
        first = f"; the first that failed: {rows.first_error}" if rows.first_error else ""
        raise UsageError(
            f"{labelled} labelled pairs{more}; training takes at least {LEAST_PAIRS} (`prefcast fit` from 50){first}"
        )


def split(rows: LabelledRows, share: float, seed: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which rows (n,) are learned from, and which are held out: the labelled rows of the files for validation, or those of about
    that share of the groups of first prompts.

    A row whose group is among those held out is in neither part, unless it is held out itself. Raises UsageError if too few
    rows are left on either side.
    """
    said = f"--validation {share:g} holds out"
    if rows.held.any():
        out, said = rows.held & rows.labelled, "--validation-pairs holds"
    else:
        chosen = drawn(np.unique(rows.group[rows.labelled]), share, np.random.default_rng([seed, 1]))
        out = np.isin(rows.group, chosen) & rows.labelled
    learned = apart(rows.group, out) & ~rows.held
    if not enough(rows.group, out):
        prompts = len(np.unique(rows.group[out]))
        raise UsageError(
            f"{said} {int(out.sum())} labelled pairs of {prompts} prompts; the outcome model takes at least {LEAST_LABELS}, with "
            "different first prompts"
        )
    if not (rows.labelled & learned).any():
        raise UsageError("no labelled pair is left to learn from: every first prompt is among those held out")
    return learned, out


def deal(rows: LabelledRows, folds: int, seed: int) -> Ints:
    """The fold (n,) of each row; the rows of one group of first prompts are in one fold."""
    groups = np.unique(rows.group)
    if len(groups) < folds:
        raise UsageError(f"--folds is {folds}, but there are only {len(groups)} groups of first prompts")
    order = np.random.default_rng([seed, 2]).permutation(len(groups))
    fold: Ints = (order % folds)[np.searchsorted(groups, rows.group)].astype(np.int64)
    return fold

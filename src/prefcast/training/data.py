"""The training data of the embedded forecaster: labelled pairs by source, and which of them are kept for the link.

A folder whose `train/` has the sources named here is the project's own. Any other data are a person's: every file is a source,
and all sources have the same weight. The link is fitted to the labelled files in `dev/`. Without them a part of the prompts is held out
for it. `votes/NAME.votes.csv` (id, votes_a, votes_b, votes_tie) has the votes on the rows of source NAME.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prefcast.errors import UsageError, shown_path
from prefcast.fitting.fitter import LEAST_LABELS
from prefcast.fitting.soft_labels import read_vote_counts
from prefcast.pairs import Outcome, Pair
from prefcast.pairs.formats import open_pairs, read_pairs
from prefcast.training.leaks import Leak, leaks_between
from prefcast.training.prompts import prompt_groups
from prefcast.training.splits import apart, drawn, enough, shares, source_name

__all__ = ["LEAST_PAIRS", "WEIGHT", "Labelled", "read_labelled"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# The weight of a row of each source. The first five are votes of the Arena, or close to them.
WEIGHT = {
    "arena33k_sample574": 1.0,
    "arena33k_writing1277": 1.0,
    "arena_100k_first50": 1.0,
    "autoj_pairwise": 1.0,
    "arena_llama3_70b": 1.0,
    "mtbench_human": 0.15,
    "tulu_human_eval": 0.15,
    "faireval80": 0.5,
    "pandalm_test": 0.1,
    "vicuna80_human": 0.06,
    "oasst_ranked": 0.2,
    "llmfao_crowd": 0.1,
    "rmb_helpful": 0.1,
}
# Sources that a model judged, in `judged/`. Their margins have a scale of their own, and so many of their rows are drawn: more would
# take longer and hardly add anything.
JUDGED = {"rmb_helpful": 5_000}
# With fewer pairs the shipped weights are better.
LEAST_PAIRS = 500
HELD_OUT = 0.15
_ENDINGS = tuple(
    kind + packed for kind in (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet") for packed in ("", ".gz", ".zst")
)


@dataclass(frozen=True)
class Labelled:
    """Labelled pairs: `source` (n,) indexes `names`, `group` (n,) numbers the groups of first prompts, `outcome` (n,) is the label,
    `target` (n, 3) the shares of outcomes that are learned.

    `calibration` (n,) marks the rows that are only for the link. `weight` (n,) is the weight in training, 0 for rows that are not
    trained on. `own` says whether the pairs are a person's own. `leaks` is what the files share, `notes` are lines to be said.
    """

    pairs: list[Pair]
    names: tuple[str, ...]
    source: Ints
    group: Ints
    outcome: Ints
    target: Floats
    calibration: NDArray[np.bool_]
    weight: Floats
    own: bool
    leaks: tuple[Leak, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def tieless(self) -> NDArray[np.bool_]:
        """Which sources (k,) have no ties. Ties were left out there, so these sources say nothing about the chance of one."""
        ties = np.bincount(self.source, self.target[:, Outcome.TIE], len(self.names))
        tieless: NDArray[np.bool_] = ties == 0
        return tieless

    @property
    def scaled(self) -> NDArray[np.bool_]:
        """Which sources (k,) teach a direction alone: their margins have a scale of their own."""
        return np.array([not self.own and name in JUDGED for name in self.names])

    @property
    def left_out(self) -> int:
        """How many rows are used neither for the weights nor for the link, because the link has their first prompts."""
        return int(((self.weight == 0) & ~self.calibration).sum())

    def where(self, mask: NDArray[np.bool_]) -> Labelled:
        """The pairs in `mask`."""
        kept = {
            name: getattr(self, name)[mask]
            for name in ("source", "group", "outcome", "target", "calibration", "weight")
        }
        return replace(self, pairs=[pair for pair, keep in zip(self.pairs, mask, strict=True) if keep], **kept)


def read_labelled(given: Sequence[Path], *, votes: bool = True, seed: int = 0) -> Labelled:
    """The labelled pairs of one folder or of files. `seed` draws the prompts that are held out if there is no `dev/`.

    Raises UsageError for rows without labels, for fewer than LEAST_PAIRS pairs and for too few to fit a link, and the errors of
    reading a file.
    """
    folder = given[0] if len(given) == 1 and given[0].is_dir() else None
    own = folder is None or not any((folder / "train" / f"{name}.csv.gz").exists() for name in WEIGHT)
    if folder is None:
        files = given
    elif own:
        files = _files(folder / "train" if (folder / "train").is_dir() else folder)
    else:
        files = [folder / ("judged" if name in JUDGED else "train") / f"{name}.csv.gz" for name in WEIGHT]
    kept = [] if folder is None else _files(folder / "dev")
    by_source = {name: _read(path) for name, path in _named(files).items()}
    if not own:
        by_source |= {name: _drawn(by_source[name], most) for name, most in JUDGED.items()}
    for_link = {f"dev/{name}": _read(path) for name, path in _named(kept).items()}
    total = sum(map(len, [*by_source.values(), *for_link.values()]))
    shown = ", ".join(map(shown_path, given))
    if total < LEAST_PAIRS:
        raise UsageError(
            f"{shown}: has {total} labelled pairs; training takes at least {LEAST_PAIRS} (`prefcast fit` from 50)"
        )
    found = _joined(by_source, for_link, own, seed)
    link_rows = found.calibration
    if not enough(found.group, link_rows):
        raise UsageError(
            f"{shown}: leaves {int(link_rows.sum())} pairs to fit the link; that takes at least {LEAST_LABELS}, with different "
            "first prompts (put more into dev/)"
        )
    if not (found.weight > 0).any():
        raise UsageError(f"{shown}: leaves no pair to train on: every first prompt is one of dev/")
    return _with_votes(found, folder / "votes") if votes and folder is not None else found


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.name.lower().endswith(_ENDINGS))


def _named(files: Iterable[Path]) -> dict[str, Path]:
    """Files by the name of their source."""
    found: dict[str, Path] = {}
    for path in files:
        name = source_name(path)
        if name in found:
            raise UsageError(
                f"{shown_path(path)}: {shown_path(found[name].name)} is the same source, {name}; rename one"
            )
        found[name] = path
    return found


def _read(path: Path) -> list[Pair]:
    with open_pairs(path) as file:
        if not file.may_have_labels:
            raise UsageError(f"{shown_path(path)}: has no label columns; training takes labelled pairs")
    pairs = [pair.joined() for pair in read_pairs(path)]
    for pair in pairs:
        if pair.outcome is None:
            raise UsageError(f"{shown_path(path)}: row {pair.row}: has no label; every row needs one")
    return pairs


def _drawn(pairs: list[Pair], most: int) -> list[Pair]:
    """At most so many of the pairs, in their order."""
    return [pairs[row] for row in sorted(np.random.default_rng(0).permutation(len(pairs))[:most].tolist())]


def _joined(by_source: dict[str, list[Pair]], for_link: dict[str, list[Pair]], own: bool, seed: int) -> Labelled:
    named = {**by_source, **for_link}
    pairs = [pair for rows in named.values() for pair in rows]
    source = np.repeat(np.arange(len(named)), [len(rows) for rows in named.values()])
    # The shipped weights were made with groups of the same words, and can be made again to the byte.
    groups = prompt_groups(pairs, near=own)
    group = groups.group
    outcome = np.array([pair.outcome for pair in pairs], dtype=np.int64)
    calibration = source >= len(by_source)
    if not for_link:
        calibration = np.isin(group, drawn(np.unique(group), HELD_OUT, np.random.default_rng(seed)))
    # The weights must not be fitted to the prompts of the link.
    weight = np.array([1.0 if own else WEIGHT.get(name, 0.0) for name in named])
    return Labelled(
        pairs,
        tuple(named),
        source,
        group,
        outcome,
        np.eye(len(Outcome))[outcome],
        calibration,
        np.where(apart(group, calibration), weight[source], 0.0),
        own,
        tuple(leaks_between(pairs, source, list(named), groups)),
        tuple(groups.lines()),
    )


def _with_votes(labelled: Labelled, folder: Path) -> Labelled:
    """The same pairs with shares of votes as targets, for the rows that have votes."""
    target = labelled.target.copy()
    for number, name in enumerate(labelled.names):
        path = folder / f"{name}.votes.csv"
        if not path.exists():
            continue
        counts = read_vote_counts(path)
        for row in np.flatnonzero(labelled.source == number).tolist():
            if (found := counts.get(str(labelled.pairs[row].id))) is not None:
                target[row] = shares(np.array([found]))[0]
    return replace(labelled, target=target)

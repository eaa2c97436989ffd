"""Examines labelled pairs: duplicates, contradictory and unlikely votes, raters, biases, and leaks to other files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from prefcast.errors import UsageError
from prefcast.forecasts.check import Inspection, inspect
from prefcast.forecasts.resolve import Choice, resolve_scorer
from prefcast.measuring.doctor.ballots import Ballots, VotesFile, read_votes
from prefcast.measuring.doctor.findings import Finding, FoundRow, Part, Places, rows_kind, write_rows
from prefcast.measuring.doctor.leaks import Leaks
from prefcast.measuring.doctor.raters import Raters
from prefcast.measuring.doctor.repeats import NearRepeats, Repeats
from prefcast.measuring.doctor.sides import Sides
from prefcast.measuring.doctor.unlikely import Unlikely
from prefcast.pairs import Pair
from prefcast.pairs.budget import Budget
from prefcast.pairs.formats import PairFile, open_pairs
from prefcast.pairs.pair import pair_key
from prefcast.runs.ready import Running, ready_scorer
from prefcast.scorers.base import Scorer

__all__ = ["RATER_COLUMNS", "Checked", "Doctor", "Finding", "FoundRow", "Request", "check", "examined", "rows_kind"]

# What the column with the rater's name is called, the likeliest first.
RATER_COLUMNS = ("rater", "annotator", "rater_id", "annotator_id", "worker_id", "judge")


@dataclass(frozen=True)
class Request:
    """What is examined: near-duplicates with at least this `similarity` among the first `most` different pairs (0: none), and
    the rows, for `keep_rows`. `share` is that of the votes which are listed as unlikely, and of those that are exchanged to measure it."""

    similarity: float = 0.8
    most: int = 20_000
    share: float = 0.1
    keep_rows: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 0.5:
            raise UsageError(f"--share must be above 0 and at most 0.5; found {self.share:g}")
        if not 0 < self.similarity <= 1:
            raise UsageError(f"--similarity must be above 0 and at most 1; found {self.similarity:g}")


def find_rater(file: PairFile, named: str | None) -> str | None:
    """The column that names the rater of a row: the one that was `named`, or one of the usual names. Raises FileError."""
    column = named or next((name for name in RATER_COLUMNS if name in file.columns), None)
    if column is not None:
        file.keep(column)
    return column


class Doctor:
    """Examines the rows of `file` as they are read.

    `votes` are people's votes by id; without them the rows' labels are the votes. `leaks` are the files that must not share
    prompts with this one. With a `scorer` and its budget, unlikely votes are looked for. `rater` is the kept column that names
    the rater of a row.
    """

    def __init__(
        self,
        file: PairFile,
        request: Request,
        *,
        votes: VotesFile | None = None,
        leaks: Sequence[Leaks] = (),
        scorer: tuple[Scorer, Budget] | None = None,
        rater: str | None = None,
    ) -> None:
        self._rater = rater
        self._file, self._places = file, Places(file, keep=request.keep_rows)
        self.ballots = Ballots(votes)
        self._repeats = Repeats()
        self._near = NearRepeats(request.similarity, request.most) if request.most else None
        self._sides = Sides(drawn=not file.shape.labelled, seed=request.seed)
        self._leaks = tuple(leaks)
        self._unlikely = None if scorer is None else Unlikely(self.ballots, *scorer, request.share, seed=request.seed)
        raters = Raters(self.ballots)
        parts: list[Part | None] = [self._repeats, self._near, self._sides, raters, *self._leaks, self._unlikely]
        self._parts: list[Part] = [part for part in parts if part is not None]

    def see(self, pair: Pair) -> None:
        """Examine a row."""
        self._places.see(pair)
        rater = None if self._rater is None else dict(pair.own).get(self._rater)
        key, turned = pair_key(pair)
        counts = self.ballots.see(pair, key, rater, turned=turned)
        self._repeats.see(pair, key, turned=turned)
        self._sides.see(pair, counts)
        if self._near is not None:
            self._near.see(pair, key)
        for leak in self._leaks:
            leak.see(pair, key)
        if self._unlikely is not None:
            self._unlikely.see(pair)

    def findings(self) -> tuple[Finding, ...]:
        """What was found, after all rows were seen."""
        return tuple(finding for part in self._parts for finding in part.findings())

    def rows(self) -> Iterator[FoundRow]:
        """The rows that have a finding, after `findings`."""
        for part in self._parts:
            yield from part.rows(self._places)

    def write(self, path: str | os.PathLike[str]) -> int:
        """Write the rows that have a finding as .csv or .jsonl. Returns how many there are. Raises UsageError."""
        return write_rows(self.rows(), path)


@dataclass(frozen=True)
class Checked:
    """A file that was read: its contents, what was found in it, and the rows that have a finding."""

    inspection: Inspection
    findings: tuple[Finding, ...]
    rows: tuple[FoundRow, ...] = field(default=(), repr=False)
    written: int = 0

    def __getitem__(self, name: str) -> Finding:
        """The finding of that name. Raises KeyError."""
        for finding in self.findings:
            if finding.name == name:
                return finding
        raise KeyError(name)

    def to_dict(self) -> dict[str, Any]:
        """The contents and the findings as JSON types."""
        return {"inspection": self.inspection.to_dict(), "findings": [each.to_dict() for each in self.findings]}


def check(
    source: Any,
    *,
    against: Sequence[Any] = (),
    votes: str | os.PathLike[str] | None = None,
    rater: str | None = None,
    model: str | None = None,
    columns: Mapping[str, str] | None = None,
    cells: str = "json",
    label_values: Mapping[str, str] | None = None,
    request: Request | None = None,
) -> Checked:
    """Read pairs and examine them and their labels.

    `source` is what `open_pairs` takes; its first prompts and pairs are looked for in each source of `against`. `votes` is a file
    of votes by id, `rater` the column that names who voted. With a `model` (`surface` is fast) the votes are listed that
    everything else makes unlikely. Raises FileError and UsageError.
    """
    request = request or Request(keep_rows=True)
    with ExitStack() as stack:
        file = stack.enter_context(open_pairs(source, columns=columns, cells=cells, label_values=label_values))
        others = [open_pairs(other, columns=columns, cells=cells, label_values=label_values) for other in against]
        return examined(file, others, request=request, votes=votes, rater=rater, model=model)


def examined(
    file: PairFile,
    against: Sequence[PairFile] = (),
    *,
    request: Request,
    votes: str | os.PathLike[str] | None = None,
    rater: str | None = None,
    model: str | None = None,
    output: str | os.PathLike[str] | None = None,
    running: Running | None = None,
    progress: Callable[[int], None] | None = None,
) -> Checked:
    """As `check`, of files that are open already. `output` receives the rows with findings; then they are not held."""
    with ExitStack() as stack:
        rater = find_rater(file, rater)
        given = None if votes is None else read_votes(votes)
        scorer = None
        if model is not None:
            found, budget = resolve_scorer(Choice(model))
            scorer = stack.enter_context(ready_scorer(found, running))[0], budget
        leaks = [Leaks(other, request.similarity, request.most or Request.most) for other in against]
        doctor = Doctor(file, request, votes=given, leaks=leaks, scorer=scorer, rater=rater)
        inspection = inspect(file, progress=progress, each=doctor.see)
        if given is not None and not doctor.ballots.matched:
            raise UsageError(f"{given.name}: no vote has an id of {file.name}")
        findings = doctor.findings()
        if output is not None:
            return Checked(inspection, findings, written=doctor.write(output))
        rows = tuple(doctor.rows()) if request.keep_rows else ()
        return Checked(inspection, findings, rows, len(rows))

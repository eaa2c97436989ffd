"""Who beat whom: votes or forecasts of a file as sums over (group, pair of models, outcome).

Rows are never kept. What stays in memory are 24 bytes for each sum: at most one for each row of a file of votes, three
for each row of forecasts, and far fewer where prompts repeat.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefcast.base.limits import MAX_ROW
from prefcast.errors import FileError, RowError, UsageError, excerpt
from prefcast.pairs import Outcome, clean, group_key
from prefcast.pairs.formats.fields import Fault, Record, absent
from prefcast.pairs.formats.labels import LABEL_FIELDS, WINNERS, Labels, are_forecasts, normalised, three_numbers
from prefcast.pairs.formats.table import Table

__all__ = ["SOURCES", "Votes", "read_board_votes"]

SOURCES = ("forecasts", "votes")
_SETTLE = 1 << 18
# A model's number takes this many bits of a cell's key.
_BITS = 30

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Votes:
    """Sums of votes (or of forecast probabilities) between k models.

    A cell is a pair of models and an outcome: `left`, `right` and `outcome` (c,) with left < right as positions in
    `models` (sorted by name) and the outcome seen from the left one. `group`, `cell` and `weight` (m,) are the sums:
    the first two count from 0. `n` rows are in them, of `groups` groups, which `resampled` names: prompts or rows.
    `failed` rows had an error of their own, `unlabelled` no vote, and `faults` could not be used, `first_fault` among
    them.
    """

    models: tuple[str, ...]
    left: Ints
    right: Ints
    outcome: Ints
    group: Ints
    cell: Ints
    weight: Floats
    n: int
    groups: int
    resampled: str
    source: str
    failed: int
    unlabelled: int
    faults: int
    first_fault: RowError | None

    def matrices(self) -> tuple[Floats, Floats]:
        """Wins of row over column and ties of row with column, both (k, k); ties stand on both sides."""
        k = len(self.models)
        wins, ties = np.zeros((k, k)), np.zeros((k, k))
        sums = np.bincount(self.cell, self.weight, minlength=len(self.left))
        for matrix, which, rows, columns in (
            (wins, Outcome.A, self.left, self.right),
            (wins, Outcome.B, self.right, self.left),
            (ties, Outcome.TIE, self.left, self.right),
            (ties, Outcome.TIE, self.right, self.left),
        ):
            chosen = self.outcome == which
            np.add.at(matrix, (rows[chosen], columns[chosen]), sums[chosen])
        return wins, ties

    def only(self, kept: NDArray[np.bool_]) -> Votes:
        """The votes between the models that are `kept` (k,)."""
        place = np.cumsum(kept) - 1
        cells = kept[self.left] & kept[self.right]
        entries = cells[self.cell]
        groups, group = np.unique(self.group[entries], return_inverse=True)
        return replace(
            self,
            models=tuple(model for model, keep in zip(self.models, kept, strict=True) if keep),
            left=place[self.left[cells]],
            right=place[self.right[cells]],
            outcome=self.outcome[cells],
            group=group.astype(np.int64),
            cell=(np.cumsum(cells) - 1)[self.cell[entries]],
            weight=self.weight[entries],
            n=round(float(self.weight[entries].sum())),
            groups=len(groups),
        )


def _cell(left: Any, right: Any, outcome: Any) -> Any:
    return (left << _BITS | right) << 2 | outcome


def _models_of(cells: Ints) -> tuple[Ints, Ints]:
    return cells >> (2 + _BITS), cells >> 2 & ((1 << _BITS) - 1)


class _Sums:
    """Sums of weights by (group, cell), settled now and then so that they take little memory."""

    def __init__(self) -> None:
        self._keys: NDArray[np.uint64] = np.zeros((0, 2), np.uint64)
        self._weights: Floats = np.zeros(0)
        self._new_keys, self._new_weights = array("Q"), array("d")

    def add(self, group: int, left: int, right: int, outcome: int, weight: float) -> None:
        self._new_keys.extend((group, _cell(left, right, outcome)))
        self._new_weights.append(weight)
        # The sums settle when the new weights are as many as the old: the cost of a row stays small.
        if len(self._new_weights) >= max(_SETTLE, len(self._weights)):
            self.settle()

    def settle(self) -> tuple[NDArray[np.uint64], Floats]:
        """Keys (m, 2), sorted and each once, and their weights (m,)."""
        fresh = np.frombuffer(self._new_keys, np.uint64).reshape(-1, 2) if self._new_keys else self._keys[:0]
        keys = np.concatenate([self._keys, fresh])
        weights = np.concatenate([self._weights, np.array(self._new_weights)])
        order = np.lexsort((keys[:, 1], keys[:, 0]))
        keys, weights = keys[order], weights[order]
        first = np.ones(len(keys), bool)
        first[1:] = (keys[1:] != keys[:-1]).any(axis=1)
        self._keys = keys[first]
        self._weights = np.add.reduceat(weights, np.flatnonzero(first)) if len(keys) else weights
        self._new_keys, self._new_weights = array("Q"), array("d")
        return self._keys, self._weights


def read_board_votes(
    source: Any,
    *,
    of: str | None = None,
    columns: Mapping[str, str] | None = None,
    label_values: Mapping[str, str] | None = None,
    max_row: int = MAX_ROW,
    where: Mapping[str, str] | None = None,
) -> Votes:
    """The votes (or forecasts) of a file (`-` is standard input), a folder, a table, or records in memory.

    Rows need `model_a` and `model_b`, and one of: the columns winner_model_a, winner_model_b and winner_tie (a vote:
    one 1, two 0; or a forecast: probabilities that sum to 1 within 0.001); `winner` (model_a, model_b, tie,
    tie (bothbad), both_bad); `label` (0: A, 1: B, 2: tie). `of` chooses between "forecasts" and "votes"; without it
    the first row that has the three columns decides. Where there is a `prompt`, rows with the same first prompt are a
    group; a row without one is a group of its own. `columns` maps our names to the file's. `where` keeps
    the rows whose columns, under their names in the file, have these values as text, whatever the case.

    Raises FileError where the file or all its rows cannot be used, UsageError for a call that is wrong.
    """
    if of is not None and of not in SOURCES:
        raise UsageError(f"unknown source {of!r}; there are {', '.join(SOURCES)}")
    with _Reader(source, columns, max_row=max_row) as reader:
        reader.choose(of, Labels(label_values), where or {})
        return reader.read()


class _Reader(Table):
    fields = ("model_a", "model_b", *LABEL_FIELDS, "prompt", "error", "margin")

    def _find(self) -> None:
        self.need("model_a", "model_b", otherwise="a leaderboard needs model_a and model_b")
        self._three = bool(self.names & set(WINNERS))
        if self._three:
            self.need(*WINNERS, otherwise="the three winner columns go together")

    def choose(self, of: str | None, labels: Labels, where: Mapping[str, str]) -> None:
        """Say what is counted. Raises FileError where the file has none."""
        if (unknown := next((name for name in where if name not in self.columns), None)) is not None:
            raise FileError(self.name, f"column {excerpt(unknown)}, which chooses the rows, is missing; {self.found}")
        ours = {theirs: ours for ours, theirs in self._mapping.items()}
        self.read_too(*where)
        self._wanted = [(ours.get(name, name), value.strip().lower()) for name, value in where.items()]
        self._labels = labels
        self._labelled = "label" in self.names
        if not self._three and (of == "forecasts" or not self.names & {"winner", "label"}):
            expected = ", ".join(WINNERS) if of == "forecasts" else f"{', '.join(WINNERS)}; or winner; or label"
            raise FileError(self.name, f"has no column that says who won; expected {expected}")
        self._of = of or ("forecasts" if are_forecasts(self.names) else None if self._three else "votes")
        # Where votes are asked for, a label tells them, and the three columns may be a forecast.
        self._no_one_hot = not self._three or are_forecasts(self.names) or (of == "votes" and self._labelled)
        self._by_prompt = "prompt" in self.names

    def read(self) -> Votes:
        numbers: dict[str, int] = {}
        sums = _Sums()
        n = failed = unlabelled = faults = left_out = 0
        first_fault: RowError | None = None
        for row, record in self.rows():
            if isinstance(record, RowError):
                first_fault = first_fault or record
                faults += 1
                continue
            if any(_as_text(record.get(name)) != value for name, value in self._wanted):
                left_out += 1
                continue
            if not absent(record.get("error")):
                failed += 1
                continue
            try:
                weights = self._weights(record)
                if weights is None:
                    unlabelled += 1
                    continue
                left, right = (_model(record, field, numbers) for field in ("model_a", "model_b"))
                if left == right:
                    raise Fault("model_b", f"is {excerpt(record['model_b'])} as model_a is; expected another model")
            except Fault as fault:
                first_fault = first_fault or self.row_error(row, fault)
                faults += 1
                continue
            n += 1
            group = self._group(record.get("prompt"), row)
            for outcome, weight in zip(Outcome, weights, strict=True):
                if weight:
                    turned = outcome if left < right else outcome.swapped
                    sums.add(group, min(left, right), max(left, right), turned, weight)
        if not n:
            first = first_fault
            why = f"; the first, row {first.row}, {first.field}: {first.problem}" if first else ""
            raise FileError(
                self.name,
                f"no row has {'a forecast' if self._of == 'forecasts' else 'a vote'} between two models: "
                f"{failed} failed, {unlabelled} without a vote, {faults} at fault"
                f"{f', {left_out} not of the chosen rows' if self._wanted else ''}{why}",
            )
        keys, totals = sums.settle()
        names = sorted(numbers)
        place = np.empty(len(names), np.int64)
        place[[numbers[model] for model in names]] = np.arange(len(names))
        sums_of = keys[:, 1].astype(np.int64)
        left_of, right_of = (place[each] for each in _models_of(sums_of))
        swapped = np.array([int(each.swapped) for each in Outcome])
        outcome_of = np.where(left_of > right_of, swapped[sums_of & 3], sums_of & 3)
        # Cells are in the order of the models' names: the order of the rows, and who was A, do not affect the result.
        cells, cell = np.unique(
            _cell(np.minimum(left_of, right_of), np.maximum(left_of, right_of), outcome_of), return_inverse=True
        )
        groups, group_of = np.unique(keys[:, 0], return_inverse=True)
        order = np.lexsort((cell, group_of))
        left_of, right_of = _models_of(cells)
        met = np.isin(np.arange(len(names)), (left_of, right_of))
        return Votes(
            models=tuple(names),
            left=left_of,
            right=right_of,
            outcome=cells & 3,
            group=group_of[order],
            cell=cell[order],
            weight=totals[order],
            n=n,
            groups=len(groups),
            resampled="prompts" if self._by_prompt else "rows",
            source=self._of or "votes",
            failed=failed,
            unlabelled=unlabelled,
            faults=faults,
            first_fault=first_fault,
        ).only(met)

    def _weights(self, record: Record) -> tuple[float, ...] | None:
        """What the row says of (A, B, tie), or None where it says nothing."""
        if self._of != "votes" and self._three:
            numbers = three_numbers(record)
            if numbers is None:
                return None
            if self._of is None:
                self._of = "votes" if sorted(numbers) == [0, 0, 1] else "forecasts"
            if self._of == "forecasts":
                return normalised(numbers)
        try:
            vote = self._labels.of(record, forecasts=self._no_one_hot)
        except Fault as fault:
            hint = " (forecasts: --from forecasts)" if fault.field == ",".join(WINNERS) else ""
            raise Fault(fault.field, fault.problem + hint) from None
        return None if vote is None else tuple(float(outcome is vote) for outcome in Outcome)

    def _group(self, prompt: Any, row: int) -> int:
        # The key has 64 bits. Among a billion prompts the odds that two share a key are 3 %; the two would be one group.
        return group_key(f"row {row}" if not self._by_prompt or absent(prompt) else f"prompt {_first_turn(prompt)}")


def _as_text(value: Any) -> str:
    return "" if absent(value) else str(value).strip().lower()


def _model(record: Record, field: str, numbers: dict[str, int]) -> int:
    value = record.get(field)
    if absent(value) or not str(value).strip():
        raise Fault(field, "is missing; expected the model's name")
    return numbers.setdefault(clean(str(value)), len(numbers))


def _first_turn(prompt: Any) -> str:
    """The first turn of a prompt: of a list, of the JSON text of a list, or the text itself."""
    if isinstance(prompt, str) and prompt.lstrip().startswith("["):
        try:
            prompt = json.loads(prompt)
        except (ValueError, RecursionError):
            return clean(prompt)  # A text that begins with a bracket is a text.
    turn = prompt[0] if isinstance(prompt, list) and prompt else prompt
    return clean(turn) if isinstance(turn, str) else repr(turn)

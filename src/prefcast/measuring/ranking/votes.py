"""Who beat whom: votes or forecasts of a file as sums over (group, pair of models, outcome).

Rows are never kept. What stays in memory are 24 bytes for each sum: at most one for each row of a file of votes, three
for each row of forecasts, and far fewer where prompts repeat.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from array import array
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefcast.errors import FileError, RowError, UsageError, excerpt
from prefcast.pairs import Outcome, clean
from prefcast.pairs.formats.containers import open_records

__all__ = ["SOURCES", "Votes", "read_votes"]

SOURCES = ("forecasts", "votes")
LABELS = ("winner_model_a", "winner_model_b", "winner_tie")
_FIELDS = ("model_a", "model_b", *LABELS, "winner", "label", "prompt", "error")
_WINNERS = {"model_a": Outcome.A, "model_b": Outcome.B} | dict.fromkeys(
    ("tie", "tie (bothbad)", "both_bad", "bothbad"), Outcome.TIE
)
_SUM_TOLERANCE = 1e-3
_ROUNDING = 1e-9
_SETTLE = 1 << 18
_PEEKED = 16
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
        return Votes(
            models=tuple(model for model, keep in zip(self.models, kept, strict=True) if keep),
            left=place[self.left[cells]],
            right=place[self.right[cells]],
            outcome=self.outcome[cells],
            group=group.astype(np.int64),
            cell=(np.cumsum(cells) - 1)[self.cell[entries]],
            weight=self.weight[entries],
            n=round(float(self.weight[entries].sum())),
            groups=len(groups),
            resampled=self.resampled,
            source=self.source,
            failed=self.failed,
            unlabelled=self.unlabelled,
            faults=self.faults,
            first_fault=self.first_fault,
        )


class _Sums:
    """Sums of weights by (group, cell), settled now and then so that they take little memory."""

    def __init__(self) -> None:
        self._keys: NDArray[np.uint64] = np.zeros((0, 2), np.uint64)
        self._weights: Floats = np.zeros(0)
        self._new_keys, self._new_weights = array("Q"), array("d")

    def add(self, group: int, left: int, right: int, outcome: int, weight: float) -> None:
        self._new_keys.extend((group, (left << _BITS | right) << 2 | outcome))
        self._new_weights.append(weight)
        # As many again as there are: settling then costs little a row, however many there are.
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


class _Fault(Exception):  # noqa: N818 - it never leaves this module
    def __init__(self, field: str, problem: str) -> None:
        super().__init__(field, problem)
        self.field = field
        self.problem = problem


def read_votes(
    source: str | os.PathLike[str] | Iterable[Mapping[str, Any]],
    *,
    of: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> Votes:
    """The votes (or forecasts) of a file (`-` is standard input), or of records in memory.

    Rows need `model_a` and `model_b`, and one of: the columns winner_model_a, winner_model_b and winner_tie (a vote:
    one 1, two 0; or a forecast: probabilities that sum to 1 within 0.001); `winner` (model_a, model_b, tie,
    tie (bothbad), both_bad); `label` (0: A, 1: B, 2: tie). `of` chooses between "forecasts" and "votes"; without it
    the first row that has the three columns decides. Where there is a `prompt`, rows with the same first prompt are a
    group; a row without one is a group of its own. `columns` maps our names to the file's.

    Raises FileError where the file or all its rows cannot be used, UsageError for a call that is wrong.
    """
    if of is not None and of not in SOURCES:
        raise UsageError(f"unknown source {of!r}; there are {', '.join(SOURCES)}")
    with ExitStack() as stack:
        rows: Iterable[tuple[int, Mapping[str, Any] | RowError]]
        if isinstance(source, str | os.PathLike):
            file = stack.enter_context(open_records(source))
            name, found, rows = file.name, file.columns, file
        else:
            records = iter(source)
            first = list(islice(records, _PEEKED))
            if not all(isinstance(record, Mapping) for record in first):
                raise UsageError("rank needs a path, or records: an iterable of mappings from column to value")
            name, found = "records", list(dict.fromkeys(column for record in first for column in record))
            rows = enumerate(chain(first, records), 1)
        return _Reader(name, found, of, columns or {}).read(rows)


class _Reader:
    def __init__(self, name: str, found: list[str], of: str | None, mapping: Mapping[str, str]) -> None:
        self._name = name
        self._own = _checked(mapping, found, name)
        theirs = set(self._own.values())
        columns = {column for column in found if column not in theirs} | set(self._own)
        for field in ("model_a", "model_b"):
            if field not in columns:
                raise FileError(name, f"column '{field}' is missing; a leaderboard needs model_a and model_b")
        labels = [label for label in LABELS if label in columns]
        if 0 < len(labels) < len(LABELS):
            missing = next(label for label in LABELS if label not in columns)
            raise FileError(name, f"column '{missing}' is missing; the three winner columns go together")
        self._voted = [field for field in ("winner", "label") if field in columns]
        if not labels and (not self._voted or of == "forecasts"):
            expected = ", ".join(LABELS) if of == "forecasts" else f"{', '.join(LABELS)}; or winner; or label"
            raise FileError(name, f"has no column that says who won; expected {expected}")
        self._three = bool(labels)
        # A forecast has a margin; a label of a file of pairs has none.
        self._of = of or ("forecasts" if labels and "margin" in columns else None if labels else "votes")
        self._by_prompt = "prompt" in columns
        # A column that another field took is not read under its own name too.
        self._places = {ours: self._own.get(ours, None if ours in theirs else ours) for ours in _FIELDS}

    def read(self, rows: Iterable[tuple[int, Mapping[str, Any] | RowError]]) -> Votes:
        numbers: dict[str, int] = {}
        sums = _Sums()
        n = failed = unlabelled = faults = 0
        first_fault: RowError | None = None
        for row, record in rows:
            try:
                if isinstance(record, RowError):
                    raise _Fault(record.field, record.problem)
                fields = {ours: record.get(place) if place else None for ours, place in self._places.items()}
                if not _absent(fields["error"]):
                    failed += 1
                    continue
                weights = self._weights(fields)
                if weights is None:
                    unlabelled += 1
                    continue
                left, right = (_model(fields, field, numbers) for field in ("model_a", "model_b"))
                if left == right:
                    raise _Fault("model_b", f"is {excerpt(fields['model_b'])} as model_a is; expected another model")
            except _Fault as fault:
                field = ",".join(self._own.get(name, name) for name in fault.field.split(","))
                first_fault = first_fault or RowError(self._name, row, field, fault.problem)
                faults += 1
                continue
            n += 1
            group = self._group(fields["prompt"], row)
            for outcome, weight in zip(Outcome, weights, strict=True):
                if weight:
                    turned = outcome if left < right else outcome.swapped
                    sums.add(group, min(left, right), max(left, right), turned, weight)
        if not n:
            why = (
                f"; the first, row {first_fault.row}, {first_fault.field}: {first_fault.problem}" if first_fault else ""
            )
            raise FileError(
                self._name,
                f"no row has {'a forecast' if self._of == 'forecasts' else 'a vote'} between two models: "
                f"{failed} failed, {unlabelled} without a vote, {faults} at fault{why}",
            )
        keys, totals = sums.settle()
        groups, group_of = np.unique(keys[:, 0], return_inverse=True)
        cells, cell = np.unique(keys[:, 1], return_inverse=True)
        names = sorted(numbers)
        place = np.empty(len(names), np.int64)
        place[[numbers[model] for model in names]] = np.arange(len(names))
        left_of = place[(cells >> np.uint64(2 + _BITS)).astype(np.int64)]
        right_of = place[(cells >> np.uint64(2)).astype(np.int64) & ((1 << _BITS) - 1)]
        outcome_of = (cells & np.uint64(3)).astype(np.int64)
        turn = left_of > right_of
        votes = Votes(
            models=tuple(names),
            left=np.where(turn, right_of, left_of),
            right=np.where(turn, left_of, right_of),
            outcome=np.where(turn, np.array([int(each.swapped) for each in Outcome])[outcome_of], outcome_of),
            group=group_of.astype(np.int64),
            cell=cell.astype(np.int64),
            weight=totals,
            n=n,
            groups=len(groups),
            resampled="prompts" if self._by_prompt else "rows",
            source=self._of or "votes",
            failed=failed,
            unlabelled=unlabelled,
            faults=faults,
            first_fault=first_fault,
        )
        return _in_order(votes).only(_met(votes))

    def _weights(self, fields: Mapping[str, Any]) -> tuple[float, ...] | None:
        """What the row says of (A, B, tie), or None where it says nothing."""
        if self._of != "votes" and self._three:
            numbers = _three_numbers(fields)
            if numbers is None:
                return None
            if self._of is None:
                self._of = "votes" if sorted(numbers) == [0, 0, 1] else "forecasts"
            if self._of == "forecasts":
                return _forecast(numbers)
        said: dict[str, Outcome] = {}
        # In a predictions file the three columns are the forecast, and `label` is the vote.
        if self._three and "label" not in self._voted and (numbers := _three_numbers(fields)) is not None:
            if sorted(numbers) != [0, 0, 1]:
                shown = ", ".join(excerpt(fields[label], 20) for label in LABELS)
                raise _Fault(",".join(LABELS), f"are {shown}; expected one 1 and two 0 (forecasts: --from forecasts)")
            said[",".join(LABELS)] = Outcome(numbers.index(1))
        for field in self._voted:
            if not _absent(fields[field]):
                said[field] = _winner(fields[field]) if field == "winner" else _label(fields[field])
        if len(set(said.values())) > 1:
            (one, first), (other, second) = list(said.items())[:2]
            raise _Fault(other, f"says {second.name} where {one} says {first.name}; expected one vote")
        if not said:
            return None
        vote = next(iter(said.values()))
        return tuple(float(outcome is vote) for outcome in Outcome)

    def _group(self, prompt: Any, row: int) -> int:
        # Of 64 bits: that two prompts of a billion share theirs has odds of 3 %, and would make one group of two.
        text = f"row {row}" if not self._by_prompt or _absent(prompt) else f"prompt {_first_turn(prompt)}"
        return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def _met(votes: Votes) -> NDArray[np.bool_]:
    met = np.zeros(len(votes.models), bool)
    met[votes.left], met[votes.right] = True, True
    return met


def _in_order(votes: Votes) -> Votes:
    """Cells in the order of the models' names: then nothing depends on the order of the rows, or on who was A."""
    order = np.lexsort((votes.outcome, votes.right, votes.left))
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    cell = rank[votes.cell]
    entries = np.lexsort((cell, votes.group))
    fields = {name: getattr(votes, name) for name in votes.__dataclass_fields__}
    fields |= {name: getattr(votes, name)[order] for name in ("left", "right", "outcome")}
    fields |= {"group": votes.group[entries], "cell": cell[entries], "weight": votes.weight[entries]}
    return Votes(**fields)


def _checked(mapping: Mapping[str, str], found: list[str], name: str) -> dict[str, str]:
    for ours, theirs in mapping.items():
        if ours not in _FIELDS:
            raise UsageError(f"--columns: there is no field {ours!r} here (fields: {', '.join(_FIELDS)})")
        if theirs not in found:
            raise FileError(name, f"column {excerpt(theirs)}, named for {ours}, is missing")
    return dict(mapping)


def _absent(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _model(fields: Mapping[str, Any], field: str, numbers: dict[str, int]) -> int:
    value = fields[field]
    if _absent(value) or not str(value).strip():
        raise _Fault(field, "is missing; expected the model's name")
    return numbers.setdefault(clean(str(value)), len(numbers))


def _three_numbers(fields: Mapping[str, Any]) -> list[float] | None:
    if all(_absent(fields[label]) for label in LABELS):
        return None
    return [_number(fields[label], label) for label in LABELS]


def _number(value: Any, field: str) -> float:
    text = value.strip().lower() if isinstance(value, str) else value
    if isinstance(text, str) and text in ("true", "false"):
        return float(text == "true")
    try:
        number = float(text)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not -_ROUNDING <= number <= 1 + _ROUNDING:
        raise _Fault(field, f"is {excerpt(value)}; expected a probability from 0 to 1")
    return min(max(number, 0.0), 1.0)


def _forecast(numbers: list[float]) -> tuple[float, ...]:
    total = sum(numbers)
    if not math.isclose(total, 1.0, rel_tol=0, abs_tol=_SUM_TOLERANCE):
        raise _Fault(",".join(LABELS), f"sum to {total:.6g}; expected 1 (within {_SUM_TOLERANCE})")
    return tuple(number / total for number in numbers)


def _winner(value: Any) -> Outcome:
    outcome = _WINNERS.get(value.strip().lower()) if isinstance(value, str) else None
    if outcome is None:
        raise _Fault("winner", f"is {excerpt(value)}; expected one of model_a, model_b, tie, tie (bothbad), both_bad")
    return outcome


def _label(value: Any) -> Outcome:
    text = str(value).strip().removesuffix(".0")
    if text not in ("0", "1", "2"):
        raise _Fault("label", f"is {excerpt(value)}; expected 0 (A), 1 (B) or 2 (tie)")
    return Outcome(int(text))


def _first_turn(prompt: Any) -> str:
    """The first turn of a prompt: of a list, of the JSON text of a list, or the text itself."""
    if isinstance(prompt, str) and prompt.lstrip().startswith("["):
        try:
            prompt = json.loads(prompt)
        except (ValueError, RecursionError):
            return clean(prompt)  # A text that begins with a bracket is a text.
    turn = prompt[0] if isinstance(prompt, list) and prompt else prompt
    return clean(turn) if isinstance(turn, str) else repr(turn)

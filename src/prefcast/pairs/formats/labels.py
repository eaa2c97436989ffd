"""Labels in files: what people said of a pair, in three columns, in `winner` or in `label`."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from prefcast.errors import UsageError, excerpt
from prefcast.pairs import Outcome
from prefcast.pairs.formats.fields import Fault, Record, absent, as_number

__all__ = [
    "LABEL_COLUMNS",
    "LABEL_FIELDS",
    "ROUNDING",
    "SUM_TOLERANCE",
    "WINNERS",
    "Labels",
    "are_forecasts",
    "label_values_of",
    "normalised",
    "one_hot",
    "three_numbers",
]

# One 1 and two 0 are a label; probabilities are a forecast.
WINNERS = ("winner_model_a", "winner_model_b", "winner_tie")
LABEL_FIELDS = ("winner", "label", *WINNERS)
LABEL_COLUMNS = f"{', '.join(WINNERS)}, winner or label"
# How far probabilities that were rounded may be from a sum of 1, and from 0 and 1.
SUM_TOLERANCE = 1e-3
ROUNDING = 1e-9

_THREE = ",".join(WINNERS)
_BITS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}
_NAMES = {"model_a": Outcome.A, "model_b": Outcome.B} | dict.fromkeys(
    ("tie", "tie (bothbad)", "both_bad", "bothbad"), Outcome.TIE
)
# How judges write a verdict: JudgeBench, Arena-Hard.
_VERDICTS = {
    **dict.fromkeys(("a>b", "a>>b"), Outcome.A),
    **dict.fromkeys(("b>a", "b>>a"), Outcome.B),
    "a=b": Outcome.TIE,
}
_NUMBERS = {"0": Outcome.A, "1": Outcome.B, "2": Outcome.TIE}
_MEANINGS = {"a": Outcome.A, "b": Outcome.B, "tie": Outcome.TIE}
_EXPECTED = {
    "winner": "expected one of model_a, model_b, tie, tie (bothbad), both_bad",
    "label": "expected 0 (A), 1 (B) or 2 (tie)",
}


def are_forecasts(columns: Collection[str]) -> bool:
    """Whether the three columns are a forecast: it has a margin, a label has none."""
    return "margin" in columns and all(name in columns for name in WINNERS)


def label_values_of(text: str | None) -> dict[str, str]:
    """What --label-values says: "left=a,same=tie" is {"left": "a", "same": "tie"}. Raises UsageError."""
    values: dict[str, str] = {}
    for part in text.split(",") if text else []:
        value, equals, meaning = part.rpartition("=")
        if not equals or not value.strip():
            raise UsageError(f"--label-values: {part!r} is not of the form VALUE=a, VALUE=b or VALUE=tie")
        if value.strip() in values:
            raise UsageError(f"--label-values: {value.strip()!r} is given twice")
        values[value.strip()] = meaning.strip()
    return values


class Labels:
    """How the cells of `winner` and `label` are read. `values` gives the file's own values a meaning: a, b or tie.

    The usual values are known too, unless `values` gives one of a column's usual values a meaning of its own: then the
    column has no other values but the verdicts of judges, such as A>B.
    """

    def __init__(self, values: Mapping[str, str] | None = None) -> None:
        own: dict[str, Outcome] = {}
        for value, meaning in (values or {}).items():
            if str(meaning).lower() not in _MEANINGS:
                raise UsageError(f"label values: {value!r} is to mean {meaning!r}; expected a, b or tie")
            own[_key(value)] = _MEANINGS[str(meaning).lower()]
        self._own = own
        self._known = {
            column: {**_VERDICTS, **own} if own.keys() & usual.keys() else {**_VERDICTS, **usual, **own}
            for column, usual in (("winner", _NAMES), ("label", _NUMBERS))
        }

    def read(self, column: str, value: Any) -> Outcome | None:
        """What a cell of `winner` or `label` says; None if it is empty."""
        if value is None or value == "":
            return None
        known = self._known[column]
        found = known.get(value) if type(value) is str else None
        if found is None:
            found = known.get(_key(value))
        if found is None and not absent(value):
            more = f", or of the given values {', '.join(map(excerpt, self._own))}" if self._own else ""
            raise Fault(column, f"is {excerpt(value)}; {_EXPECTED[column]}{more}")
        return found

    def of(self, record: Record, *, forecasts: bool = False) -> Outcome | None:
        """The label of a row. Its label columns must agree; with `forecasts` the three columns are no label."""
        found = None if forecasts else one_hot(record)
        said = f"{', '.join(WINNERS)} say"
        for column in ("winner", "label"):
            other = self.read(column, record.get(column))
            if other is None:
                continue
            if found is not None and other is not found:
                raise Fault(column, f"says {other.name} where {said} {found.name}; expected one label")
            if found is None:
                found, said = other, f"{column} says"
        return found


def _key(value: Any) -> str:
    return str(value).strip().removesuffix(".0").lower()


def one_hot(record: Record) -> Outcome | None:
    """The label in the three columns; None if all are empty."""
    values = [record.get(name) for name in WINNERS]
    if all(map(absent, values)):
        return None
    if missing := next((name for name in WINNERS if name not in record), None):
        raise Fault(missing, "is missing from this row; the three winner columns go together")
    numbers = list(map(_as_share, values))
    if sorted(numbers) != [0, 0, 1]:
        found = ", ".join(excerpt(value, 20) for value in values)
        raise Fault(_THREE, f"are {found}; expected exactly one 1 and two 0")
    return Outcome(numbers.index(1))


def three_numbers(record: Record) -> list[float] | None:
    """The numbers from 0 to 1 in the three columns; None if all are empty."""
    values = [record.get(name) for name in WINNERS]
    if all(map(absent, values)):
        return None
    numbers = list(map(_as_share, values))
    for field, value, number in zip(WINNERS, values, numbers, strict=True):
        if not -ROUNDING <= number <= 1 + ROUNDING:
            raise Fault(field, f"is {excerpt(value)}; expected a probability from 0 to 1")
    return [min(max(number, 0.0), 1.0) for number in numbers]


def _as_share(value: Any) -> float:
    """A number, in figures or as a number; false is 0 and true is 1. nan if it is none."""
    if isinstance(value, str):
        if (bit := _BITS.get(value)) is not None:
            return bit
        text = value.strip().lower()
        value = _BITS.get(text, text)
    return float(value) if isinstance(value, bool) else as_number(value)


def normalised(numbers: Sequence[float]) -> tuple[float, ...]:
    """Three probabilities whose sum is 1 but for rounding, divided by their sum."""
    total = sum(numbers)
    if not math.isclose(total, 1.0, rel_tol=0, abs_tol=SUM_TOLERANCE):
        raise Fault(_THREE, f"sum to {total:.6g}; expected 1 (within {SUM_TOLERANCE})")
    return tuple(number / total for number in numbers)

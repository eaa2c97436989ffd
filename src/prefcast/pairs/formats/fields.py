"""One field of a record: whether it is there, and what its text holds."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from prefcast.errors import excerpt
from prefcast.pairs import clean

__all__ = [
    "DECODER",
    "Fault",
    "Record",
    "absent",
    "as_number",
    "cell",
    "json_problem",
    "kind",
    "number",
    "parsed",
    "present",
    "text_list",
]

Record = Mapping[str, Any]


class Fault(Exception):  # noqa: N818 - it never leaves this package
    """What is wrong with a record: the field and one clause that says what was found and what would be right."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(field, problem)
        self.field = field
        self.problem = problem


def cell(record: Record, field: str) -> Any:
    """The value of a field; a text that should hold JSON is parsed."""
    value = present(record, field)
    if not isinstance(value, str):
        return value
    if not value.strip():
        raise Fault(field, "is empty; expected a JSON array")
    try:
        return parsed(value)
    except (ValueError, RecursionError) as error:
        problem = f"is {json_problem(error)}, found {excerpt(value)}; expected a JSON array"
        if value.lstrip().startswith(("['", "[None")):
            problem += (
                " (this is Python's notation, which pandas writes into a CSV; save Parquet or JSON Lines instead)"
            )
        raise Fault(field, problem) from None


class _TwiceError(ValueError):
    """An object has a field twice: readers of JSON do not agree on which of the two counts."""


def _object(members: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(members)
    if len(found) < len(members):
        twice = Counter(name for name, _ in members).most_common(1)[0][0]
        raise _TwiceError(f"an object has the field {excerpt(twice)} twice")
    return found


# An object in which a field stands twice is a ValueError.
DECODER = json.JSONDecoder(object_pairs_hook=_object)
parsed = DECODER.decode


def json_problem(error: ValueError | RecursionError) -> str:
    """What the decoder found and where in the text; never the text itself."""
    if isinstance(error, _TwiceError):
        return f"not usable JSON: {error}"
    if isinstance(error, json.JSONDecodeError):
        return f"not valid JSON: {error.msg} at character {error.pos}"
    what = "nested too deeply" if isinstance(error, RecursionError) else "a number too long to read"
    return f"not usable JSON: {what}"


def present(record: Record, field: str) -> Any:
    if field not in record:
        raise Fault(field, "is missing from this row")
    if record[field] is None:
        raise Fault(field, "is null")
    return record[field]


def absent(value: Any) -> bool:
    """Whether a cell says nothing: null, empty or not a number."""
    return value is None or value == "" or value != value  # noqa: PLR0124 - nan


def as_number(value: Any) -> float:
    """A number, in figures or as a number; nan if it is none."""
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def number(record: Record, field: str, least: float = -math.inf) -> float:
    """The finite number of a field, in figures or as a number."""
    found = as_number(record.get(field))
    if not math.isfinite(found) or found < least:
        bound = "" if least == -math.inf else f", {least:g} or more"
        raise Fault(field, f"is {excerpt(record.get(field))}; expected a finite number{bound}")
    return found


def text_list(value: Any, field: str) -> list[str]:
    """A text, or a list of texts with one a turn; null stands for an empty text."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list):
        raise Fault(field, f"is {kind(value)}; expected a text, or a list of texts, one a turn")
    found = []
    for number, text in enumerate(texts, 1):
        if text is not None and not isinstance(text, str):
            raise Fault(field, f"turn {number} is {kind(text)}; expected a string or null")
        found.append(clean(text or ""))
    return found


_KINDS = {dict: "an object", list: "an array", bool: "a boolean", int: "a number", float: "a number", str: "a string"}


def kind(value: Any) -> str:
    return "null" if value is None else _KINDS.get(type(value), f"of type {type(value).__name__}")

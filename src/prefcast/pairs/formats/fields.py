"""One field of a record: is it there, what does its text hold."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from prefcast.errors import excerpt

__all__ = ["Fault", "Record", "absent", "cell", "kind", "number", "present"]

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
        parsed = json.loads(value)
    except RecursionError:
        raise Fault(field, "is not usable JSON: nested too deeply") from None
    except ValueError as error:
        where = (
            f"{error.msg} at character {error.pos}"
            if isinstance(error, json.JSONDecodeError)
            else "a number too long to read"
        )
        raise Fault(field, f"is not valid JSON: {where}, found {excerpt(value)}; expected a JSON array") from None
    return parsed


def present(record: Record, field: str) -> Any:
    if field not in record:
        raise Fault(field, "is missing from this row")
    if record[field] is None:
        raise Fault(field, "is null")
    return record[field]


def absent(value: Any) -> bool:
    """Whether a cell says nothing: null, empty or not a number."""
    return value is None or value == "" or value != value  # noqa: PLR0124 - nan


def number(record: Record, field: str, least: float = -math.inf) -> float:
    """The finite number of a field, in figures or as a number."""
    value = record.get(field)
    try:
        found = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found) or found < least:
        bound = "" if least == -math.inf else f", {least:g} or more"
        raise Fault(field, f"is {excerpt(value)}; expected a finite number{bound}")
    return found


def kind(value: Any) -> str:
    names = {
        dict: "an object",
        list: "an array",
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "a string",
        type(None): "null",
        bytes: "bytes",
    }
    return names.get(type(value), f"of type {type(value).__name__}")

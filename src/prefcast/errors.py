"""Every exception of prefcast.

An error of another library becomes one of these where it arises. All of them survive pickling, because worker processes
send them to their parent.
"""

from __future__ import annotations

import os

__all__ = [
    "FileError",
    "FitError",
    "ForecasterError",
    "MissingExtraError",
    "ModelError",
    "PrefcastError",
    "ResourceError",
    "RowError",
    "RunError",
    "ScoringError",
    "ServiceError",
    "UsageError",
    "WorkerError",
    "excerpt",
    "printable",
    "shown_path",
]

_EXCERPT = 60


def excerpt(value: object, limit: int = _EXCERPT) -> str:
    """A short form of untrusted text for messages: quoted, cut, control and other invisible characters escaped."""
    if isinstance(value, str):
        shown = repr(value[:limit])
        return shown if len(value) <= limit else f"{shown[:-1]}...{shown[-1]}"
    shown = printable(_repr(value)[: limit + 1])
    return shown if len(shown) <= limit else f"{shown[:limit]}..."


def _repr(value: object) -> str:
    try:
        return repr(value)
    except (RecursionError, ValueError):  # nested too deeply, or a number of too many digits
        return f"a value of type {type(value).__name__}"


def printable(text: str) -> str:
    """Untrusted text for a terminal: line ends become spaces, invisible characters are escaped."""
    return "".join(
        c if c.isprintable() else " " if c in "\r\n\t" else c.encode("unicode_escape").decode("ascii") for c in text
    )


def shown_path(path: str | os.PathLike[str]) -> str:
    """A path for messages, printable and of bounded length."""
    text = printable(os.fspath(path))
    return text if len(text) <= 200 else f"...{text[-200:]}"


class PrefcastError(Exception):
    """The root: `except PrefcastError` catches every error that prefcast raises on purpose."""


class FileError(PrefcastError):
    """A fault of the whole file: unreadable, a column missing, an id twice. `file` and, where known, `row` say where."""

    def __init__(self, file: str, problem: str, row: int | None = None) -> None:
        super().__init__(file, problem, row)
        self.file = file
        self.problem = problem
        self.row = row

    def __str__(self) -> str:
        where = "" if self.row is None else f"row {self.row}: "
        return f"{self.file}: {where}{self.problem}"


class RowError(PrefcastError):
    """A fault of one row; the other rows can be used. Rows are counted from 1, without the header.

    `id` is the row's id where it could be read, otherwise its row number.
    """

    def __init__(self, file: str, row: int, field: str, problem: str, id: str | int | None = None) -> None:
        super().__init__(file, row, field, problem, id)
        self.file = file
        self.row = row
        self.field = field
        self.problem = problem
        self.id = row if id is None else id

    def __str__(self) -> str:
        field = f", {self.field}" if self.field else ""
        return f"{self.file}: row {self.row}{field}: {self.problem}"


class ScoringError(RowError):
    """A row for which the scorer gave no finite evidence; it gets no forecast."""


class UsageError(PrefcastError):
    """The call is wrong; the message says what would be right."""


class MissingExtraError(PrefcastError):
    """An optional dependency is missing."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(what, extra)
        self.what = what
        self.extra = extra

    def __str__(self) -> str:
        return f"{self.what} is not installed: pip install 'prefcast[{self.extra}]'"


class ModelError(PrefcastError):
    """A checkpoint that is not supported, is damaged or lacks weights; the message says what would be right."""


class RunError(PrefcastError):
    """A shard or a folder of parts cannot be used: it belongs to another run, is held, is damaged, or its input changed."""


class ResourceError(PrefcastError):
    """Disk or memory ran out; the message says what is kept."""


class WorkerError(PrefcastError):
    """Every worker process has died; the message names the last one and how it ended."""


class ServiceError(PrefcastError):
    """A prefcast server that cannot be reached, refuses, or fails. `status` is its answer's (0 without an answer), `kind`
    the server's name for the error."""

    def __init__(self, problem: str, status: int = 0, kind: str = "") -> None:
        super().__init__(problem, status, kind)
        self.problem = problem
        self.status = status
        self.kind = kind

    def __str__(self) -> str:
        return self.problem


class ForecasterError(PrefcastError):
    """A forecaster folder that cannot be loaded or does not fit its scorer."""


class FitError(PrefcastError):
    """An outcome model that could not be fitted: too little data, or no convergence."""

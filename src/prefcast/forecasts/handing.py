"""The rows that a promise of agreement leaves to people, as a file of their ids."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from prefcast.base.files import atomic_file
from prefcast.errors import UsageError
from prefcast.forecasts.forecaster import Forecaster
from prefcast.pairs.formats.separated import csv_line

__all__ = ["HandedOver", "check_handing_over", "handing_over"]


class HandedOver:
    """Writes pieces of forecasts to another writer, and the ids of the rows that people should judge to a CSV file."""

    def __init__(self, writer: Any, file: BinaryIO) -> None:
        self._writer, self._file = writer, file
        self.rows = 0
        self._ids([["id"]])

    def write(self, piece: Any) -> None:
        self._writer.write(piece)
        found = [[id] for id, over in zip(piece.ids, piece.handed_over, strict=True) if over]
        self.rows += len(found)
        self._ids(found)

    def _ids(self, rows: list[list[Any]]) -> None:
        self._file.write("".join(map(csv_line, rows)).encode("utf-8", "backslashreplace"))


@contextmanager
def handing_over(writer: Any, path: str | os.PathLike[str]) -> Iterator[HandedOver]:
    """A `HandedOver` whose file appears whole or not at all."""
    with atomic_file(path) as file:
        yield HandedOver(writer, file)


def check_handing_over(forecaster: Forecaster) -> None:
    """Raise UsageError for a forecaster without a promise of agreement."""
    if forecaster.agreement is None:
        raise UsageError(
            "--hand-over: this forecaster has no promise of agreement: fit one with prefcast fit LABELLED --agree 0.85 -o DIR, "
            "and use it with the settings of its fit"
        )

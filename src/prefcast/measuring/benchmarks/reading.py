"""The files of a benchmark -> its items, one after another, with what is needed to know the files again."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prefcast.base.limits import MAX_ROW
from prefcast.errors import FileError, RowError, UsageError, shown_path
from prefcast.measuring.benchmarks.base import Benchmark, Cells, Item
from prefcast.pairs.formats.containers import named
from prefcast.pairs.formats.fields import Fault
from prefcast.pairs.formats.table import Table

__all__ = ["BenchmarkFiles", "FileFacts", "Placed"]


@dataclass(frozen=True)
class FileFacts:
    """A file that was read: its name, SHA-256, size in bytes, and rows."""

    name: str
    sha256: str
    bytes: int
    rows: int


@dataclass(frozen=True)
class Placed:
    """An item and where it stands."""

    item: Item
    file: str
    row: int


class BenchmarkFiles:
    """The items of a benchmark's files: iterate, once. `paths` are files, or folders in which the benchmark's files are looked
    for. A row that is not of the published shape is a fault of the file: a total over the other rows would not be the
    benchmark's. Raises FileError and UsageError."""

    def __init__(
        self, benchmark: Benchmark, paths: Sequence[str | os.PathLike[str]], *, max_row: int = MAX_ROW
    ) -> None:
        self.benchmark = benchmark
        self.facts: list[FileFacts] = []
        self.rows_read = 0
        self._max_row = max_row
        self._paths = [found for path in paths for found in self._found(Path(path))]
        if twice := next((path for path in self._paths if self._paths.count(path) > 1), None):
            raise UsageError(f"{shown_path(twice)}: is named twice")
        self._size = sum(path.stat().st_size for path in self._paths if path.is_file())
        self._done = 0

    def _found(self, path: Path) -> list[Path]:
        if not path.is_dir():
            return [path]
        found = [
            Path(place, name)
            for place, _, names in os.walk(path)
            for name in names
            if named(name) is not None and not name.startswith(".") and self.benchmark.wants(Path(place, name))
        ]
        if not found:
            raise FileError(shown_path(path), f"the folder holds no file of {self.benchmark.title}")
        return sorted(found)

    @property
    def progress(self) -> tuple[int, int]:
        """Bytes read, of how many."""
        return self._done, self._size

    def __iter__(self) -> Iterator[Placed]:
        for path in self._paths:
            rows = 0
            with Table(path, fields=self.benchmark.fields, max_row=self._max_row) as table:
                digest, size = _hashed(path)
                lacking = [name for name in self.benchmark.needs if name not in table.names]
                if lacking:
                    raise FileError(
                        table.name,
                        f"has no column {lacking[0]}; {table.found}; expected a file of {self.benchmark.title}: {self.benchmark.shape}",
                    )
                for row, record in table.rows():
                    rows = row
                    yield self._placed(table, row, record, path)
                    self.rows_read += 1
                if not rows:
                    raise FileError(table.name, "has no rows; expected at least one")
                if table.changed:
                    raise FileError(table.name, "was changed while it was read; give the command again")
            self.facts.append(FileFacts(path.name, digest, size, rows))
            self._done += size

    def _placed(self, table: Table, row: int, record: Any, path: Path) -> Placed:
        if isinstance(record, RowError):
            raise FileError(record.file, record.problem, record.row)
        try:
            item = self.benchmark.item(Cells(record, textual=table.textual), row, path)
            if not item.id:
                raise Fault("id", "is empty; expected a text or a number")
        except Fault as fault:
            raise table.fault(row, fault) from None
        return Placed(item, table.name, row)

    def told(self) -> list[dict[str, Any]]:
        """The facts of the files, for JSON."""
        return [asdict(each) for each in self.facts]


def _hashed(path: Path) -> tuple[str, int]:
    if not path.is_file():
        raise FileError(shown_path(path), "is not a regular file; a benchmark is read from files")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return digest, file.tell()

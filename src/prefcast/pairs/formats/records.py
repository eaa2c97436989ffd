"""A source of any kind -> its records: a file, a folder or several files as one, standard input, or a table in memory."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, Self

from prefcast.errors import FileError, UsageError, excerpt, shown_path
from prefcast.pairs.formats.containers import CONTAINERS, Container, Row, container_of, named
from prefcast.pairs.formats.memory import NAME, plain_rows, table_rows
from prefcast.pairs.formats.streams import open_bytes

__all__ = ["Records", "is_path", "open_records", "parquet_records", "shards_of"]

_Path = str | os.PathLike[str]


@dataclass(frozen=True)
class _File:
    """One open file of a source; `before` counts the bytes of the files before it."""

    name: str
    path: str
    container: Container
    compression: str
    columns: list[str]
    rows: Iterator[Row]
    raw: BinaryIO
    size: int
    before: int
    was: tuple[int, ...] | None
    opened: ExitStack

    @property
    def position(self) -> int:
        return self.raw.tell() if self.size and not self.raw.closed else 0


class Records:
    """The records of a source: iterate, once, for (row, record or RowError), rows counted from 1 over all its files.

    `columns` are those of the header, of the schema or of the first objects. `container` is None for a table in memory.
    `loose` tells whether later rows may have more. Close it, or use it in a `with` block.
    """

    def __init__(
        self, name: str, columns: list[str], rows: Iterator[Row], file: _File | None = None, *, loose: bool = False
    ) -> None:
        self.name = name
        self.columns = columns
        self.container = None if file is None else file.container
        self.loose = loose if file is None else file.container.loose
        self.compression = "" if file is None else file.compression
        self.files = 1
        self.size = 0 if file is None else file.size
        self._rows = rows
        self._file = file
        # Of each file that was opened: its name and how many rows are before it.
        self._names, self._starts = [name], [0]
        self._before: dict[str, tuple[int, ...] | None] = {}

    @classmethod
    def of_files(cls, name: str, paths: Sequence[_Path]) -> Records:
        """Several files as one source, opened one after another. Raises FileError."""
        file = _opened(paths[0])
        found = cls(name, file.columns, file.rows, file)
        found.files = len(paths)
        found._names = [file.name]
        found.size = sum(os.stat(path).st_size for path in paths if Path(path).is_file())  # noqa: PTH116
        if len(paths) > 1:
            found._rows = found._in_turn(file, paths[1:])
        return found

    def _in_turn(self, first: _File, others: Sequence[_Path]) -> Iterator[Row]:
        file, start = first, 0
        for path in (*others, None):
            row = 0
            for row, record in file.rows:
                yield start + row, record
            start += row
            if path is None:
                return
            file.opened.close()
            self._before[file.path] = file.was
            file = _opened(path, file.before + file.size)
            self._names.append(file.name)
            self._starts.append(start)
            self._file = file
            _check_alike(first, file)

    def __iter__(self) -> Iterator[Row]:
        return self._rows

    def where(self, row: int) -> tuple[str, int]:
        """The file that a row is in, and its row there."""
        index = bisect_right(self._starts, row - 1) - 1
        return self._names[index], row - self._starts[index]

    @property
    def position(self) -> int:
        """Bytes read so far, of `size` (0 where it is not known)."""
        return 0 if self._file is None else self._file.before + self._file.position

    @property
    def changed(self) -> bool:
        """Whether a file was written to or replaced since it was opened; ask before it is closed."""
        if self._file is None or self._file.was is None or self._file.raw.closed:
            return False
        for path, was in {**self._before, self._file.path: self._file.was}.items():
            with suppress(OSError):
                if _stamp(os.stat(path)) != was:  # noqa: PTH116 - one like fstat's
                    return True
        return _stamp(os.fstat(self._file.raw.fileno())) != self._file.was

    def close(self) -> None:
        if self._file is not None:
            self._file.opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _check_alike(first: _File, other: _File) -> None:
    """Raises FileError if two files cannot be one source."""
    if other.container is not first.container:
        found = f"is {other.container.title} where {first.name} is {first.container.title}"
        raise FileError(other.name, f"{found}; the files of one input are of one kind")
    if not first.container.loose and (differ := set(first.columns) ^ set(other.columns)):
        column = min(differ)
        found = "is missing here and is in" if column in first.columns else "is here and is missing in"
        raise FileError(
            other.name,
            f"column {excerpt(column)} {found} {first.name}; the files of one input have the same columns",
        )


def is_path(source: object) -> bool:
    return isinstance(source, str | os.PathLike)


def open_records(source: Any) -> Records:
    """Open a path (`-` is standard input), a folder, an iterable of paths, a table or an iterable of mappings, and read
    as far as the columns. Raises FileError and UsageError."""
    if isinstance(source, Records):
        return source
    if is_path(source):
        path = Path(source)
        with suppress(OSError, ValueError):
            if path.is_dir():
                return Records.of_files(shown_path(source), shards_of(path))
        file = _opened(source)
        return Records(file.name, file.columns, file.rows, file)
    if (found := table_rows(source)) is not None:
        return Records(NAME, *found)
    if not isinstance(source, Iterable):
        raise UsageError(f"expected a path, pairs or a table, found {excerpt(source)}")
    items = iter(source)
    first = next(items, None)
    if is_path(first):
        paths = [first, *items]
        if odd := next((path for path in paths if not is_path(path)), None):
            raise UsageError(f"expected a list of paths, found {excerpt(odd)} among them")
        files = [file for path in paths for file in (shards_of(Path(path)) if Path(path).is_dir() else [path])]
        return Records.of_files(f"{len(files)} files", files)
    if first is None:
        raise FileError(NAME, "has no rows; expected at least one")
    return Records(NAME, *plain_rows(chain([first], items)), loose=True)


def shards_of(folder: Path) -> list[Path]:
    """The files of a folder and its folders whose endings are known, by name; hidden ones and those that begin with `_`
    are not read. Raises FileError if there is none."""
    found = []
    for place, folders, files in os.walk(folder):
        folders[:] = [each for each in folders if not each.startswith((".", "_"))]
        found += [Path(place, each) for each in files if not each.startswith((".", "_")) and named(each) is not None]
    if not found:
        endings = ", ".join(ending for each in CONTAINERS.values() for ending in each.endings)
        raise FileError(shown_path(folder), f"the folder holds no file that can be read; expected {endings}")
    return sorted(found)


def _opened(path: _Path, before: int = 0) -> _File:
    with ExitStack() as stack:
        opened = open_bytes(path, stack)
        container = container_of(path, opened)
        columns, rows = container.rows(opened, stack)
        was = _stamp(os.fstat(opened.raw.fileno())) if opened.size else None
        return _File(
            name=opened.name,
            path=os.fspath(path),
            container=container,
            compression=opened.compression,
            columns=columns,
            rows=rows,
            raw=opened.raw,
            size=opened.size,
            before=before,
            was=was,
            opened=stack.pop_all(),
        )


def parquet_records(stream: Any, name: str) -> Records:
    """The records of a Parquet file that is open for reading and can seek, wherever it lies; whoever opened it closes it.

    Raises FileError.
    """
    container = CONTAINERS["parquet"]
    columns, rows = container.read(stream, name)
    return Records(name, columns, rows, _File(name, "", container, "", columns, rows, stream, 0, 0, None, ExitStack()))


def _stamp(found: os.stat_result) -> tuple[int, ...]:
    """What is another once a file has been written to or replaced."""
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns

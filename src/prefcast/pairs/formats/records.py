"""A source of any kind -> its records: a file, a folder or several files as one, standard input, or a table in memory."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Self

from prefcast.base.limits import MAX_ROW
from prefcast.errors import FileError, UsageError, excerpt, shown_path
from prefcast.pairs.formats.containers import CONTAINERS, Container, container_of, named
from prefcast.pairs.formats.memory import NAME, plain_rows, table_rows
from prefcast.pairs.formats.rows import Bounds, Row
from prefcast.pairs.formats.streams import Opened, open_bytes

__all__ = ["Records"]

_Path = str | os.PathLike[str]
_BESIDE = ("dataset_dict.json", "dataset_info.json", "state.json")


@dataclass(frozen=True)
class _File:
    """One open file of a source; `before` counts the bytes of the files before it."""

    opened: Opened
    kind: Container
    columns: list[str]
    rows: Iterator[Row]
    before: int = 0

    @property
    def name(self) -> str:
        return self.opened.name


class Records:
    """The records of a source: `records` gives, once, (row, record or RowError), rows counted from 1 over all its files.

    A source is a path (`-` is standard input), a folder, an iterable of paths, a table, an iterable of mappings, or a file
    that somebody else opened and closes. It is read as far as the columns: those of the header, of the schema or of the
    first objects. No row may have more than `max_row` megabytes. In a `textual` source every cell is a text; in a `loose` one later rows may have more columns. Close
    it, or use it in a `with` block. Raises FileError and UsageError.
    """

    def __init__(self, source: Any, max_row: int = MAX_ROW) -> None:
        self.name = NAME
        self.bounds = Bounds(max_row)
        self.textual = self.loose = False
        self._size = 0
        self._file: _File | None = None
        self._files: Sequence[_Path] = ()
        self._stack = ExitStack()
        # Of each file that was opened: its name, how many rows are before it, and its stamp.
        self._names, self._starts = [NAME], [0]
        self._stamps: dict[_Path, tuple[int, ...]] = {}
        paths: list[Any] = []
        found: tuple[list[str], Iterator[Row]] | None = None
        if isinstance(source, Opened):
            self._use(source)
        elif _is_path(source):
            paths = [source]
        elif (found := table_rows(source, self.bounds)) is None:
            if not isinstance(source, Iterable):
                raise UsageError(f"expected a path, pairs or a table, found {excerpt(source)}")
            items = iter(source)
            first = next(items, None)
            if first is None:
                raise FileError(NAME, "has no rows; expected at least one")
            if _is_path(first):
                paths = [first, *items]
            else:
                found = plain_rows(chain([first], items))
                self.loose = True
        if found is not None:
            self.columns, self.records = found
        elif paths:
            self._open_all(paths)

    def _open_all(self, paths: Sequence[Any]) -> None:
        if odd := next((path for path in paths if not _is_path(path)), None):
            raise UsageError(f"expected a list of paths, found {excerpt(odd)} among them")
        self._files = [file for path in paths for file in (_shards(path) if os.path.isdir(path) else [path])]  # noqa: PTH112
        file = self._open(self._files[0])
        if len(self._files) > 1:
            self.name = shown_path(paths[0]) if len(paths) == 1 else f"{len(self._files)} files"
            self._size = sum(os.stat(path).st_size for path in self._files if os.path.isfile(path))  # noqa: PTH113, PTH116
            self.records = self._in_turn(file)

    def _open(self, path: _Path, before: int = 0) -> _File:
        with ExitStack() as stack:
            opened = open_bytes(path, stack)
            if opened.size:
                self._stamps[path] = _stamp(os.fstat(opened.raw.fileno()))
            file = self._use(opened, stack, before)
            self._stack = stack.pop_all()
        return file

    def _use(self, opened: Opened, stack: ExitStack | None = None, before: int = 0) -> _File:
        kind = container_of(opened)
        file = _File(opened, kind, *kind.rows(opened, stack or self._stack, self.bounds), before)
        if self._file is None:
            self.name, self.columns, self.records = file.name, file.columns, file.rows
            self.textual, self.loose, self._size = kind.textual, kind.loose, opened.size
            self._names = [file.name]
        self._file = file
        return file

    def _in_turn(self, first: _File) -> Iterator[Row]:
        start, file = 0, first
        for path in (*self._files[1:], None):
            row = 0
            for row, record in file.rows:
                yield start + row, record
            start += row
            if path is not None:
                self._stack.close()
                file = self._open(path, file.before + file.opened.size)
                self._names.append(file.name)
                self._starts.append(start)
                _check_alike(first, file)

    def where(self, row: int) -> tuple[str, int]:
        """The file that a row is in, and its row there."""
        index = bisect_right(self._starts, row - 1) - 1
        return self._names[index], row - self._starts[index]

    @property
    def in_file(self) -> bool:
        """Whether the source is a file and not a table in memory."""
        return self._file is not None

    @property
    def kind(self) -> Container | None:
        """The kind of the file; None for a table in memory."""
        return None if self._file is None else self._file.kind

    @property
    def files(self) -> Sequence[_Path]:
        """The files that are read, those of a folder in their order."""
        return self._files

    @property
    def container(self) -> str:
        """What kind of file it is, in words: "CSV, gzip"; empty for a table in memory."""
        if self._file is None:
            return ""
        files = f"{len(self._files)} files" if len(self._files) > 1 else ""
        return ", ".join(filter(None, (self._file.kind.title, self._file.opened.compression, files)))

    @property
    def progress(self) -> tuple[int, int]:
        """Bytes read, of how many; (0, 0) where that is not known."""
        if self._file is None:
            return 0, 0
        opened = self._file.opened
        return self._file.before + (opened.raw.tell() if opened.size and not opened.raw.closed else 0), self._size

    @property
    def changed(self) -> bool:
        """Whether a file was written to or replaced since it was opened."""
        for path, was in self._stamps.items():
            with suppress(OSError):
                if _stamp(os.stat(path)) != was:  # noqa: PTH116 - one like fstat's
                    return True
        return False

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _check_alike(first: _File, other: _File) -> None:
    """Raises FileError if two files cannot be one source."""
    if other.kind is not first.kind:
        found = f"is {other.kind.title} where {first.name} is {first.kind.title}"
        raise FileError(other.name, f"{found}; the files of one input are of one kind")
    if not first.kind.loose and (differ := set(first.columns) ^ set(other.columns)):
        column = min(differ)
        found = "is missing here and is in" if column in first.columns else "is here and is missing in"
        raise FileError(
            other.name,
            f"column {excerpt(column)} {found} {first.name}; the files of one input have the same columns",
        )


def _is_path(source: object) -> bool:
    return isinstance(source, str | os.PathLike)


def _shards(folder: _Path) -> list[Path]:
    """The files of a folder and its folders whose endings are known, by name. Hidden ones, those that begin with `_`, and
    what the library datasets writes beside its data are not read. Raises FileError if there is none."""
    found = []
    for place, folders, files in os.walk(folder):
        folders[:] = [each for each in folders if not each.startswith((".", "_"))]
        read = (each for each in files if not each.startswith((".", "_")) and each not in _BESIDE)
        found += [Path(place, each) for each in read if named(each) is not None]
    if not found:
        endings = ", ".join(ending for each in CONTAINERS.values() for ending in each.endings)
        raise FileError(shown_path(folder), f"the folder holds no file that can be read; expected {endings}")
    return sorted(found)


def _stamp(found: os.stat_result) -> tuple[int, ...]:
    """What changes when a file is written to or replaced."""
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns

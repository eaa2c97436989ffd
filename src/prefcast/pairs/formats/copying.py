"""Copies chosen rows of a file, as they were read, into a file of the same kind: no value is changed, and every column stays."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from prefcast.base.files import atomic_file
from prefcast.errors import FileError, UsageError, shown_path
from prefcast.pairs.formats.arrow import faults, said
from prefcast.pairs.formats.containers import CONTAINERS, Container
from prefcast.pairs.formats.records import Records
from prefcast.pairs.formats.rows import Bounds, Record
from prefcast.pairs.formats.separated import csv_line
from prefcast.pairs.formats.streams import open_bytes, spooled

__all__ = ["check_copy", "opened_copy"]

_ROWS = 256
Write = Callable[[Record], None]


def check_copy(records: Records, path: str | os.PathLike[str]) -> Container:
    """The kind of a copy of these records at `path`. Raises UsageError if the ending is that of another kind."""
    kind = records.kind
    if kind is None or kind is CONTAINERS["arrow"]:
        raise UsageError(
            f"{records.name}: rows of {records.container or 'a table'} are not written; convert it to Parquet"
        )
    if Path(path).suffix.lower() not in kind.endings:
        raise UsageError(
            f"{shown_path(path)}: the rows are written as they were read, as {kind.title}; name a file that ends in "
            f"{' or '.join(kind.endings)}"
        )
    return kind


@contextmanager
def opened_copy(
    path: str | os.PathLike[str], records: Records, source: str | os.PathLike[str] | Sequence[Any]
) -> Iterator[Write]:
    """A function that writes one record after the other. `records` are read from `source`, a path or several.

    The file appears whole when the block ends without an exception. Raises UsageError and FileError.
    """
    kind = check_copy(records, path)
    with atomic_file(path) as file:
        if kind.textual:
            delimiter = "\t" if kind is CONTAINERS["tsv"] else ","
            file.write(csv_line(records.columns, delimiter).encode())
            yield lambda record: _put(file, csv_line((record[name] for name in records.columns), delimiter))
        elif kind is CONTAINERS["parquet"]:
            first = source if isinstance(source, str | os.PathLike) else next(iter(source))
            parquet = _Parquet(file, records, first)
            yield parquet.write
            parquet.close()
        elif kind is CONTAINERS["json"]:
            begun = False

            def write(record: Record) -> None:
                nonlocal begun
                _put(file, f"{',' if begun else '['}\n{_json(record)}")
                begun = True

            yield write
            file.write(b"\n]\n" if begun else b"[]\n")
        else:
            yield lambda record: _put(file, f"{_json(record)}\n")


def _put(file: BinaryIO, text: str) -> None:
    file.write(text.encode("utf-8", "surrogatepass"))


def _json(record: Record) -> str:
    text = json.dumps(record, ensure_ascii=False)
    try:
        text.isascii() or text.encode()
    except UnicodeEncodeError:  # half a character, which JSON can only escape
        return json.dumps(record)
    return text


class _Parquet:
    """Writes records with the schema of the file that they are read from, its metadata included."""

    def __init__(self, file: BinaryIO, records: Records, source: Any) -> None:
        from pyarrow import parquet

        self._name, self._held = records.name, list[Record]()
        path = source
        if os.path.isdir(path):  # noqa: PTH112
            path = records.files[0]
        try:
            with ExitStack() as stack:
                stream = spooled(open_bytes(path, stack), stack, Bounds(records.bounds.max_row))
                schema = parquet.ParquetFile(stream).schema_arrow
            self._writer = parquet.ParquetWriter(file, schema)
        except faults() as error:
            raise FileError(self._name, f"its schema cannot be written: {said(error)}") from None

    def write(self, record: Record) -> None:
        self._held.append(record)
        if len(self._held) >= _ROWS:
            self._flush()

    def _flush(self) -> None:
        import pyarrow

        if not self._held:
            return
        try:
            self._writer.write_table(pyarrow.Table.from_pylist(self._held, schema=self._writer.schema))
        except faults() as error:
            raise FileError(self._name, f"a row cannot be written as it was read: {said(error)}") from None
        self._held = []

    def close(self) -> None:
        self._flush()
        self._writer.close()

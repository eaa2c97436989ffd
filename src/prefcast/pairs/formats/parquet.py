"""Parquet -> rows. The pages that will be read are looked at first: a few bytes of a file may unpack to all memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, BinaryIO

from prefcast.errors import FileError, excerpt
from prefcast.pairs.formats.arrow import faults, file_rows, said
from prefcast.pairs.formats.pages import Chunk, Page, groups_of, pages_of
from prefcast.pairs.formats.rows import Bounds, Row, no_duplicates

__all__ = ["read_parquet"]

# How many rows are read at a time: the first number that memory allows.
_ROWS = (256, 64, 16, 4, 1)
# A list that is empty takes hardly a byte in the file and some in memory.
_VALUE = 16
# From so many bytes on a dictionary is kept as one, in lists and elsewhere. Smaller ones do no harm, and keeping is slow.
_LARGE_IN_LISTS, _LARGE = 1 << 16, 1 << 22


def read_parquet(stream: BinaryIO, name: str, bounds: Bounds) -> tuple[list[str], Iterator[Row]]:
    """The columns and rows of a Parquet file. Raises FileError."""
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(stream)
        columns = list(file.schema_arrow.names)
    except faults() as error:
        raise FileError(name, f"not a readable Parquet file, perhaps truncated: {said(error)}") from None
    no_duplicates(columns, name)

    def batches() -> Iterator[Any]:
        used = [each for each in columns if bounds.columns is None or each in bounds.columns]
        nested = [file.schema.column(index).max_repetition_level > 0 for index in range(len(file.schema))]
        for group, found in enumerate(groups_of(stream)):
            rows, repeated = _looked_at(found, nested, used, stream, name, bounds)
            reader = parquet.ParquetFile(stream, metadata=file.metadata, read_dictionary=repeated) if repeated else file
            yield from reader.iter_batches(rows, row_groups=[group], columns=used)

    return columns, file_rows(batches(), name, bounds, "Parquet")


def _looked_at(
    group: tuple[int, list[Chunk]], lists: list[bool], used: list[str], stream: BinaryIO, name: str, bounds: Bounds
) -> tuple[int, list[str]]:
    """How many rows of a row group to read at a time, and of which columns texts are to stay in their dictionaries. Raises
    FileError for a group that memory may not hold."""
    chunks: list[tuple[list[Page], int]] = []
    repeated = []
    for chunk, nested in zip(group[1], lists, strict=True):
        path = chunk.path
        if not any(path == each or path.startswith(f"{each}.") for each in used):
            continue
        pages = pages_of(stream, chunk)
        if any(page.size > bounds.once for page in pages):
            raise bounds.large(name, f"column {excerpt(path)}: a page has", bounds.once)
        values = sum(page.values for page in pages if not page.words)
        if nested and values * _VALUE > bounds.file:
            problem = f"a row group has {values:,} values in its lists; --max-row allows more"
            raise FileError(name, f"column {excerpt(path)}: {problem}")
        large = _LARGE_IN_LISTS if nested else _LARGE
        if any(page.words and page.size > large for page in pages):
            # Every value may be a text as large as the dictionary, and a list has any number of values.
            repeated.append(path)
            pages = [replace(page, indexed=False) for page in pages]
        chunks.append((pages, max(1, values // max(1, group[0]))))
    taken = ((rows, sum(_taken(pages, rows * values) for pages, values in chunks)) for rows in _ROWS)
    return next((rows for rows, most in taken if most <= bounds.once), 1), repeated


def _taken(pages: list[Page], values: int) -> int:
    """The most bytes that so many values of a column, one after another, may take when they are read."""
    words = max((page.size for page in pages if page.words), default=0)
    indexed = words * values if any(page.indexed for page in pages) else words
    prefixed = max((page.size * values for page in pages if page.prefixed), default=0)
    most = held = inside = begin = 0
    data = [page for page in pages if not page.words]
    for page in data:
        held += page.size
        inside += page.values
        # All values of the pages between the first and the last are among those that are read.
        while data[begin] is not page and inside - data[begin].values - page.values > values - 2:
            held -= data[begin].size
            inside -= data[begin].values
            begin += 1
        most = max(most, held)
    return most + indexed + prefixed

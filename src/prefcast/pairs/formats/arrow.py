"""Batches of Arrow -> rows: only the columns that are used, and no more at a time than memory should hold.

Arrow itself is imported by whoever has a batch.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefcast.errors import FileError, RowError, excerpt
from prefcast.pairs.formats.rows import Bounds, Record, Row

__all__ = ["arrow_rows", "faults", "file_rows", "said"]

# What a value takes besides its text: a number, or the place in a list.
_VALUE = 8


def arrow_rows(batches: Iterable[Any], name: str, bounds: Bounds) -> Iterator[Row]:
    """The rows of record batches. A row that is too large, or that has a value which Python cannot hold, is an error."""
    number = 0
    for batch in batches:
        sizes = sum(map(_sizes, batch.columns), np.zeros(batch.num_rows, np.int64))
        # Where texts are repeated, a small batch makes many rows: rows are made some at a time.
        small = int(sizes.sum()) <= bounds.row
        records = _records(batch) if small else None
        if records is not None:
            yield from enumerate(records, number + 1)
        else:
            for index, size in enumerate(sizes.tolist(), 1):
                row = number + index
                large = size > bounds.row
                yield row, bounds.large_row(name, row) if large else _record(batch, index - 1, name, row)
        number += batch.num_rows


def faults() -> tuple[type[Exception], ...]:
    """What Arrow raises for a damaged file. A footer may say anything, and a length may be more than memory has."""
    import pyarrow

    return (
        pyarrow.ArrowException,
        OSError,
        ValueError,
        ArithmeticError,
        LookupError,
        TypeError,
        MemoryError,
        struct.error,
    )


def file_rows(batches: Iterable[Any], name: str, bounds: Bounds, what: str) -> Iterator[Row]:
    """As `arrow_rows`, of a file whose data are called `what`. Raises FileError for damaged data."""
    number = 0
    try:
        for number, record in arrow_rows(batches, name, bounds):
            yield number, record
    except faults() as error:
        raise FileError(name, f"the {what} data are damaged after row {number}: {said(error)}") from None


def _records(batch: Any) -> list[Record] | None:
    """The rows of a batch; None if one has a value that Python cannot hold."""
    try:
        return list(batch.to_pylist())
    except Exception:  # which ones depends on the type: OverflowError, ValueError, and Arrow's own
        return None


def _record(batch: Any, index: int, name: str, row: int) -> Record | RowError:
    record = {}
    for column, values in zip(batch.schema.names, batch.columns, strict=True):
        try:
            record[column] = values[index].as_py()
        except Exception as error:
            kind = excerpt(str(values.type), 40)[1:-1]
            return RowError(name, row, column, f"holds a value of type {kind} that cannot be read: {said(error)}")
    return record


def said(error: BaseException) -> str:
    """The first line of a message of Arrow."""
    return excerpt(str(error).splitlines()[0] if str(error) else type(error).__name__, 120)[1:-1]


def _sizes(values: Any) -> NDArray[np.int64]:
    """About how many bytes each value of an array takes, without making it."""
    import pyarrow
    from pyarrow import compute, types

    kind = values.type
    least = np.full(len(values), _VALUE, np.int64)
    if isinstance(values, pyarrow.ExtensionArray):
        return _sizes(values.storage)
    if types.is_dictionary(kind):
        words = _sizes(values.dictionary)
        return words[np.asarray(values.indices.fill_null(0), np.int64)] if len(words) else least
    if types.is_struct(kind):
        return sum(map(_sizes, values.flatten()), least)
    if types.is_fixed_size_list(kind):
        begin, size = values.offset, kind.list_size
        return least + _sizes(values.values).reshape(-1, size)[begin : begin + len(values)].sum(1) if size else least
    if types.is_list(kind) or types.is_large_list(kind) or types.is_map(kind):
        offsets = np.asarray(values.offsets, np.int64)
        items = [values.keys, values.items] if types.is_map(kind) else [values.values]
        before: NDArray[np.int64] = np.concatenate([[0], np.cumsum(sum(map(_sizes, items)))])
        least += before[offsets[1:]] - before[offsets[:-1]]
        return least
    if kind in (pyarrow.string_view(), pyarrow.binary_view()):
        values = values.cast(pyarrow.large_binary())
    try:
        return least + np.asarray(compute.binary_length(values).fill_null(0), np.int64)
    except pyarrow.ArrowNotImplementedError:
        return least

"""Tables in memory -> their columns and rows: pandas, polars, Arrow, datasets.Dataset, and mappings.

None of these libraries is imported: whoever passes a table has imported its library.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from decimal import Decimal
from itertools import chain
from typing import Any

import numpy as np

from prefcast.errors import RowError, UsageError, excerpt
from prefcast.pairs.formats.arrow import arrow_rows
from prefcast.pairs.formats.containers import peeked
from prefcast.pairs.formats.rows import Bounds, Row, no_duplicates

__all__ = ["NAME", "kind_of_table", "plain_rows", "table_rows"]

NAME = "table"
_BATCH = 256


_Read = Callable[[Any, Bounds], tuple[list[str], Iterator[Row]]]


def _pandas(frame: Any, bounds: Bounds) -> tuple[list[str], Iterator[Row]]:
    names = [str(name) for name in frame.columns]
    rows = frame.itertuples(index=False, name=None)
    return names, enumerate((dict(zip(names, map(_plain, row), strict=True)) for row in rows), 1)


def _polars(frame: Any, bounds: Bounds) -> tuple[list[str], Iterator[Row]]:
    def used() -> Iterator[dict[str, Any]]:
        names = [name for name in frame.columns if bounds.columns is None or name in bounds.columns]
        yield from chain.from_iterable(part.to_dicts() for part in frame.select(names).iter_slices(_BATCH))

    return list(frame.columns), enumerate(used(), 1)


def _arrow(table: Any, bounds: Bounds, batches: Callable[[Any], Iterable[Any]]) -> tuple[list[str], Iterator[Row]]:
    def used() -> Iterator[Any]:
        names = [name for name in table.column_names if bounds.columns is None or name in bounds.columns]
        for part in batches(table):
            yield from part.select(names).to_batches()

    return list(table.column_names), arrow_rows(used(), NAME, bounds)


def _slices(table: Any) -> Iterator[Any]:
    return (table.slice(start, _BATCH) for start in range(0, table.num_rows, _BATCH))


# Of each library: the name of its table and how it is read.
_TABLES: dict[str, tuple[str, _Read]] = {
    "pandas": ("DataFrame", _pandas),
    "pyarrow": ("Table", lambda table, bounds: _arrow(table, bounds, _slices)),
    "polars": ("DataFrame", _polars),
    "datasets": ("Dataset", lambda table, bounds: _arrow(table, bounds, lambda t: t.with_format("arrow").iter(_BATCH))),
}


def kind_of_table(source: Any) -> str | None:
    """The library that a table is of, or None: pandas, pyarrow, polars or datasets."""
    for library, (name, _) in _TABLES.items():
        if library in sys.modules and isinstance(source, getattr(sys.modules[library], name, ())):
            return library
    return None


def table_rows(source: Any, bounds: Bounds) -> tuple[list[str], Iterator[Row]] | None:
    """The columns and rows of a table; None if `source` is none. Raises FileError and UsageError."""
    if (library := kind_of_table(source)) is not None:
        columns, rows = _TABLES[library][1](source, bounds)
        no_duplicates(columns, NAME)
        return columns, rows
    if isinstance(source, Mapping):
        names = ", ".join(excerpt(name, 20) for name in list(source)[:3])
        raise UsageError(f"expected a table or an iterable of rows, found a mapping; pass one of its values ({names})")
    return None


def plain_rows(records: Iterable[Any]) -> tuple[list[str], Iterator[Row]]:
    """The columns (of the first records) and rows of mappings from column to value."""

    def rows() -> Iterator[Row]:
        for number, record in enumerate(records, 1):
            if isinstance(record, Mapping):
                yield number, {str(name): _plain(value) for name, value in record.items()}
            else:
                yield number, RowError(NAME, number, "", f"is {excerpt(record)}; expected a mapping of column to value")

    return peeked(rows(), NAME, "records")


def _plain(value: Any) -> Any:
    """A cell as JSON would have it: arrays and tuples become lists, NumPy's numbers Python's, what is missing None."""
    if value is None or type(value) in (str, int, bool):
        return value
    if hasattr(value, "as_py"):
        value = value.as_py()
    if isinstance(value, np.datetime64):
        return None if np.isnat(value) else value.astype("datetime64[us]").tolist()
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    missing = (isinstance(value, float) and math.isnan(value)) or (isinstance(value, Decimal) and value.is_nan())
    return None if missing or type(value).__name__ in ("NAType", "NaTType") else value

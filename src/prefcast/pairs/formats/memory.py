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
from prefcast.pairs.formats.containers import Row, no_duplicates, peeked

__all__ = ["NAME", "kind_of_table", "plain_rows", "table_rows"]

NAME = "table"
_BATCH = 256


_Records = Iterable[dict[str, Any]]
_Read = Callable[[Any], tuple[list[str], _Records]]


def _pandas(frame: Any) -> tuple[list[str], _Records]:
    names = [str(name) for name in frame.columns]
    rows = frame.itertuples(index=False, name=None)
    return names, (dict(zip(names, map(_plain, row), strict=True)) for row in rows)


def _in_batches(columns: Any, batches: Iterable[Any], convert: str) -> tuple[list[str], _Records]:
    return list(columns), chain.from_iterable(getattr(batch, convert)() for batch in batches)


# Of each library: the name of its table and how it is read.
_TABLES: dict[str, tuple[str, _Read]] = {
    "pandas": ("DataFrame", _pandas),
    "pyarrow": ("Table", lambda t: _in_batches(t.column_names, t.to_batches(max_chunksize=_BATCH), "to_pylist")),
    "polars": ("DataFrame", lambda t: _in_batches(t.columns, t.iter_slices(_BATCH), "to_dicts")),
    "datasets": ("Dataset", lambda t: _in_batches(t.column_names, t.with_format("arrow").iter(_BATCH), "to_pylist")),
}


def kind_of_table(source: Any) -> str | None:
    """The library that a table is of, or None: pandas, pyarrow, polars or datasets."""
    for library, (name, _) in _TABLES.items():
        if library in sys.modules and isinstance(source, getattr(sys.modules[library], name, ())):
            return library
    return None


def table_rows(source: Any) -> tuple[list[str], Iterator[Row]] | None:
    """The columns and rows of a table; None if `source` is none. Raises FileError and UsageError."""
    if (library := kind_of_table(source)) is not None:
        columns, records = _TABLES[library][1](source)
        no_duplicates(columns, NAME)
        return columns, enumerate(records, 1)
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

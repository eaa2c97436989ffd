"""From what a person has (a path, a table, a list) to pairs."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from prefcast.errors import FileError, RowError, UsageError, excerpt
from prefcast.pairs.formats import PairFile, open_pairs, pairs_of_records
from prefcast.pairs.pair import Pair
from prefcast.pairs.pieces import PIECE_ROWS

__all__ = ["LABEL_COLUMNS", "find_pair", "is_table", "opened_pairs", "same_file"]

LABEL_COLUMNS = "winner_model_a, winner_model_b, winner_tie or winner"
_NEAR = 3


class _Given:
    """Pairs that are in memory already, under the same roof as a file."""

    def __init__(self, pairs: Iterable[Pair | RowError]) -> None:
        if not isinstance(pairs, Iterable):
            raise UsageError(f"expected a path, pairs or a table, found {excerpt(pairs)}")
        self._pairs = pairs

    def __iter__(self) -> Iterator[Pair | RowError]:
        for pair in self._pairs:
            if not isinstance(pair, Pair | RowError):
                raise UsageError(
                    f"expected pairs, found {excerpt(pair)}; prefcast.Pair.of(prompt, response_a, response_b) makes one"
                )
            yield pair

    def __enter__(self) -> _Given:
        return self

    def __exit__(self, *exc: object) -> None:
        pass


def opened_pairs(source: Any, columns: Mapping[str, str] | None, cells: str) -> PairFile | _Given:
    if isinstance(source, PairFile):
        return source
    if isinstance(source, str | os.PathLike):
        return open_pairs(source, columns=columns, cells=cells)
    if is_table(source, "pandas", "DataFrame"):
        names = [str(name) for name in source.columns]
        records = (dict(zip(names, map(_plain, row), strict=True)) for row in source.itertuples(index=False, name=None))
        return pairs_of_records(records, names, mapping=columns, cells=cells)
    if is_table(source, "pyarrow", "Table"):
        rows = chain.from_iterable(batch.to_pylist() for batch in source.to_batches(max_chunksize=PIECE_ROWS))
        return pairs_of_records(rows, source.column_names, mapping=columns, cells=cells)
    return _Given(source)


def is_table(source: Any, module: str, name: str) -> bool:
    # Whoever passes a table has imported its library; nobody else should have to.
    loaded = sys.modules.get(module)
    return loaded is not None and isinstance(source, getattr(loaded, name))


def _plain(value: Any) -> Any:
    """A cell of a data frame as JSON would have it: arrays and tuples become lists, NumPy's numbers Python's, what is
    missing None."""
    if hasattr(value, "as_py"):
        value = value.as_py()
    if isinstance(value, np.datetime64):
        return None if np.isnat(value) else value.astype("datetime64[us]").tolist()
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    missing = (isinstance(value, float) and math.isnan(value)) or (isinstance(value, Decimal) and value.is_nan())
    return None if missing or type(value).__name__ in ("NAType", "NaTType") else value


def find_pair(pairs: PairFile, id: str) -> Pair:
    """The pair whose id, as text, is `id`.

    Raises its RowError if that row is at fault, FileError if there is none.
    """
    near: list[str] = []
    for item in pairs:
        if str(item.id) == id:
            if isinstance(item, RowError):
                raise item
            return item
        if len(near) < _NEAR:
            near.append(str(item.id))
    raise FileError(
        pairs.name,
        f"has no row with the id {excerpt(id)}; its first ids are {', '.join(excerpt(other, 20) for other in near)}",
    )


def same_file(left: str | os.PathLike[str], right: str | os.PathLike[str]) -> bool:
    """Whether two paths name one existing file."""
    return Path(left).exists() and Path(right).exists() and Path(left).samefile(right)

"""From what a person has (a path, a table, a list) to pairs."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

from prefcast.base.limits import MAX_ROW
from prefcast.errors import FileError, RowError, UsageError, excerpt
from prefcast.pairs.formats import PairFile, open_pairs
from prefcast.pairs.formats.memory import kind_of_table
from prefcast.pairs.pair import Pair

__all__ = ["find_pair", "opened_pairs", "same_file", "table_like"]

_NEAR = 3


def _checked(pairs: Iterable[Any]) -> Iterator[Pair | RowError]:
    for pair in pairs:
        if not isinstance(pair, Pair | RowError):
            made = "prefcast.Pair.of(prompt, response_a, response_b) makes one"
            raise UsageError(f"expected pairs, found {excerpt(pair)}; {made}")
        yield pair


def opened_pairs(
    source: Any,
    columns: Mapping[str, str] | None,
    cells: str,
    label_values: Mapping[str, str] | None = None,
    max_row: int = MAX_ROW,
) -> PairFile | AbstractContextManager[Iterator[Pair | RowError]]:
    """Pairs of whatever the library takes: what `open_pairs` takes, pairs, or a PairFile."""
    if isinstance(source, PairFile):
        return source
    if kind_of_table(source) is None and isinstance(source, Iterable) and not isinstance(source, str | Mapping):
        items = iter(source)
        first = next(items, None)
        source = [] if first is None else chain([first], items)
        if not isinstance(first, Mapping | str | os.PathLike):
            return nullcontext(_checked(source))
    return open_pairs(source, columns=columns, cells=cells, label_values=label_values, max_row=max_row)


class Tabular(Protocol):
    """What can be had as a table of several libraries."""

    def records(self) -> Iterator[dict[str, Any]]: ...

    def to_arrow(self) -> Any: ...

    def to_pandas(self) -> Any: ...


def table_like(source: Any, found: Tabular) -> Any:
    """`found` as a table of the kind that `source` is; None if that is none."""
    kind = kind_of_table(source)
    if kind == "pandas":
        frame = found.to_pandas()
        frame.index = source.index
        return frame
    if kind == "polars":
        return sys.modules["polars"].from_arrow(found.to_arrow())
    if kind == "datasets":
        return sys.modules["datasets"].Dataset(found.to_arrow())
    if kind == "pyarrow":
        return found.to_arrow()
    records = isinstance(source, list | tuple) and source and isinstance(source[0], Mapping)
    return list(found.records()) if records else None


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
    """Whether two paths name one existing file, or `right` lies in the folder `left`."""
    if Path(left).is_dir() and Path(left).resolve() in Path(right).resolve().parents:
        return True
    return Path(left).exists() and Path(right).exists() and Path(left).samefile(right)

"""Rows of an output: what forecasts and raw scores have in common."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from prefcast.errors import RowError
from prefcast.pairs import Pair, clean
from prefcast.pairs.budget import Truncation

if TYPE_CHECKING:
    import pyarrow

__all__ = ["TAIL", "Rows", "columns_of"]

# What a record holds after its id and its numbers.
TAIL = ("label", "model_a", "model_b", "characters_kept", "characters", "turns_kept", "turns", "error")
_TEXTS = ("model_a", "model_b", "error")
_TURNS = ("prompt", "response_a", "response_b")


class Rows:
    """Rows of an input, in their order. A row that failed has an error, and its evidence is nan."""

    ids: list[str | int]
    truncations: list[Truncation | None]
    errors: list[RowError | None]
    pairs: list[Pair | None]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def failed(self) -> int:
        return sum(error is not None for error in self.errors)

    def _numbers(self) -> Mapping[str, list[float | None]]:
        """The numbers of all rows, by name."""
        raise NotImplementedError

    def _known(self, values: NDArray[np.float64]) -> list[float | None]:
        """Values (n,), with None for the rows that failed."""
        return [None if error else value for value, error in zip(values.tolist(), self.errors, strict=True)]

    def records(self, *, with_text: bool = False) -> Iterator[dict[str, Any]]:
        """A dict for each row, as the .jsonl and .parquet files hold it. Evidence that does not exist is None."""
        numbers = self._numbers()
        for id, pair, cut, error, *values in zip(
            self.ids, self.pairs, self.truncations, self.errors, *numbers.values(), strict=True
        ):
            record: dict[str, Any] = {
                "id": clean(id) if isinstance(id, str) else id,
                **dict(zip(numbers, values, strict=True)),
                "label": None if pair is None or pair.outcome is None else int(pair.outcome),
                "model_a": pair.model_a if pair else None,
                "model_b": pair.model_b if pair else None,
                "characters_kept": cut.kept if cut else None,
                "characters": cut.total if cut else None,
                "turns_kept": cut.turns_kept if cut else None,
                "turns": cut.turns_total if cut else None,
                "error": str(error) if error else None,
            }
            if with_text:
                record |= {name: [*map(clean, getattr(pair, name))] if pair else None for name in _TURNS}
            yield record


def columns_of(numbers: Sequence[str], *, whole_ids: bool, with_text: bool = False) -> pyarrow.Schema:
    """The columns of records with these numbers."""
    import pyarrow

    whole, text = pyarrow.int64(), pyarrow.string()
    columns = [("id", whole if whole_ids else text), *((name, pyarrow.float64()) for name in numbers)]
    columns += [(name, text if name in _TEXTS else whole) for name in TAIL]
    columns += [(name, pyarrow.list_(text)) for name in _TURNS] if with_text else []
    return pyarrow.schema(columns)

"""Forecasts of rows, and their files: a Kaggle submission (.csv), or everything (.jsonl, .parquet)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from html import escape
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from prefcast.errors import RowError, UsageError, printable, shown_path
from prefcast.forecasts.outputs import (
    ENDINGS,
    TAIL,
    Recordable,
    Rows,
    Writer,
    columns_of,
    opened_writer,
    output_kind,
    whole_numbers,
)
from prefcast.outcomes.models import Link
from prefcast.pairs import Outcome, Pair
from prefcast.pairs.budget import Truncation
from prefcast.pairs.formats.labels import WINNERS
from prefcast.pairs.formats.shapes import BESIDE

if TYPE_CHECKING:
    import pandas
    import pyarrow

__all__ = ["ENDINGS", "UNLIKE", "Forecast", "Forecasts", "Writer", "check_kept", "open_writer", "output_kind"]

# The interval of each probability, the difference between the members of an ensemble, and how unlike the training data a pair is.
UNCERTAINTY = (*(f"{name}_{end}" for name in WINNERS for end in ("low", "high")), "member_spread", "unlike")
NUMBERS = (*WINNERS, "margin", "tie", *UNCERTAINTY)
# The names of a forecast's own columns, which no kept column may have.
RESERVED = frozenset(("id", "winner", *NUMBERS, *TAIL, "prompt", "response_a", "response_b", *BESIDE))
_SHOWN, _SHOWN_TEXT = 10, 80
# A pair is unlike the training data above this: a tenth of the training votes are.
UNLIKE = 2.5


@dataclass(frozen=True)
class Forecast:
    """The forecast of one pair.

    If `error` is set, the probabilities are the class prior and the evidence is nan. `interval` has the lower and the upper end
    for each probability, `spread` the largest difference between the members of an ensemble. `escalated` says whether the second
    tier of a cascade scored the pair, `handed_over` whether the forecaster's promise of agreement leaves the pair to people. `unlike`
    says how little the training data tell about such a pair: 1 for a typical vote, more than UNLIKE for one in ten of them.
    """

    id: str | int
    probabilities: tuple[float, float, float]
    margin: float
    tie: float
    truncation: Truncation | None
    error: RowError | None
    outcome: Outcome | None
    interval: tuple[tuple[float, float], ...] | None = None
    spread: float | None = None
    escalated: bool | None = None
    handed_over: bool | None = None
    unlike: float | None = None

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr>{_cell(name)}{_bar(p)}</tr>" for name, p in zip(("A", "B", "tie"), self.probabilities, strict=True)
        )
        error = f"<p>{escape(str(self.error))}</p>" if self.error else ""
        return f"<table><caption>{escape(str(self.id))}</caption>{rows}</table>{error}"


@dataclass(frozen=True, eq=False)
class Forecasts(Rows, Sequence[Forecast]):
    """Forecasts of n rows, in their order: `probabilities` (n, 3) in Outcome's order, `margin` and `tie` (n,), which are nan if a
    row failed.

    The `interval` is computed from `link` and the `columns` of the evidence. `spread` (n,) is the largest difference between the
    members of an ensemble in a probability. `escalated`, `handed_over` and `unlike` (n,) are those of each Forecast. `doubt` (n,) is the
    standard error of each margin, for what the scorer's own weights do not know; the interval includes it. `evidence` has every number
    of the scorer (n,) by name; None if it was not kept.
    """

    ids: list[str | int]
    probabilities: NDArray[np.float64]
    margin: NDArray[np.float64]
    tie: NDArray[np.float64]
    truncations: list[Truncation | None]
    errors: list[RowError | None]
    pairs: list[Pair | None] = field(repr=False)
    link: Link | None = field(default=None, repr=False)
    columns: tuple[NDArray[np.float64], NDArray[np.float64]] | None = field(default=None, repr=False)
    spread: NDArray[np.float64] | None = None
    escalated: NDArray[np.bool_] | None = None
    handed_over: NDArray[np.bool_] | None = None
    unlike: NDArray[np.float64] | None = None
    doubt: NDArray[np.float64] | None = field(default=None, repr=False)
    evidence: Mapping[str, NDArray[np.float64]] | None = field(default=None, repr=False)

    @cached_property
    def interval(self) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        """The lower and upper ends (n, 3) of the 95 % interval of each probability, from the bootstrap of the fitted link. They are
        nan if a row failed. None if the forecaster has no draws."""
        if self.link is None or self.columns is None:
            return None
        good = np.isfinite(self.margin)
        low, high = np.full((len(self), 3), np.nan), np.full((len(self), 3), np.nan)
        if good.any():
            low[good], high[good] = self.link.interval(*self._known_columns(good))
        return low, high

    def lead_interval(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The lower and upper ends (n,) of the 95 % interval of P(A) - P(B), from the bootstrap of the fitted link. Both are the
        difference itself if the forecaster has no draws, and nan if a row failed."""
        good = np.isfinite(self.margin)
        lead = np.where(good, self.probabilities[:, Outcome.A] - self.probabilities[:, Outcome.B], np.nan)
        low, high = lead.copy(), lead.copy()
        if self.link is not None and self.columns is not None and good.any():
            low[good], high[good] = self.link.lead_interval(*self._known_columns(good))
        return low, high

    def _known_columns(self, good: NDArray[np.bool_]) -> tuple[NDArray[np.float64], ...]:
        """The columns of the rows in a mask, and the standard errors of their margins if the scorer knows them."""
        columns = () if self.columns is None else tuple(part[good] for part in self.columns)
        return columns if self.doubt is None else (*columns, self.doubt[good])

    def __getitem__(self, index: Any) -> Any:
        if not isinstance(index, SupportsIndex):
            raise TypeError("Forecasts takes a whole number; slice the arrays instead")
        pair = self.pairs[index]
        a, b, tie = map(float, self.probabilities[index])
        outcome = pair.outcome if pair is not None else None
        return Forecast(
            self.ids[index],
            (a, b, tie),
            float(self.margin[index]),
            float(self.tie[index]),
            self.truncations[index],
            self.errors[index],
            outcome,
            self._interval_of(int(index)),
            None if self.spread is None else float(self.spread[index]),
            None if self.escalated is None else bool(self.escalated[index]),
            None if self.handed_over is None else bool(self.handed_over[index]),
            None if self.unlike is None else float(self.unlike[index]),
        )

    def _interval_of(self, index: int) -> tuple[tuple[float, float], ...] | None:
        if self.interval is None:
            return None
        low, high = (part[index].tolist() for part in self.interval)
        return tuple(zip(low, high, strict=True))

    def _numbers(self) -> Mapping[str, list[float | None]]:
        numbers = dict(zip(WINNERS, self.probabilities.T.tolist(), strict=True))
        numbers |= {"margin": self._known(self.margin), "tie": self._known(self.tie)}
        numbers |= {name: [None] * len(self) for name in UNCERTAINTY}
        if self.interval is not None:
            ends = (part for pair in zip(*(part.T for part in self.interval), strict=True) for part in pair)
            numbers |= {name: self._known(values) for name, values in zip(UNCERTAINTY, ends, strict=False)}
        if self.spread is not None:
            numbers["member_spread"] = self._known(self.spread)
        if self.unlike is not None:
            numbers["unlike"] = self._known(self.unlike)
        return numbers

    def to_pandas(self) -> pandas.DataFrame:
        """A data frame with a row for each forecast and the columns of `records`."""
        import pandas

        return pandas.DataFrame(list(self.records()), columns=columns_of(NUMBERS, whole_ids=True, own=self._own).names)

    def to_arrow(self) -> pyarrow.Table:
        """An Arrow table with a row for each forecast and the columns of `records`. Ids become texts unless all are whole numbers."""
        import pyarrow

        whole = whole_numbers(self.ids)
        records = [record if whole else record | {"id": str(record["id"])} for record in self.records()]
        return pyarrow.Table.from_pylist(records, schema=columns_of(NUMBERS, whole_ids=whole, own=self._own))

    @property
    def _own(self) -> list[str]:
        """The names of the input's columns that were kept."""
        return list(dict.fromkeys(name for pair in self.pairs if pair is not None for name, _ in pair.own))

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{name}</th>" for name in ("id", "A", "B", "tie", "margin", "prompt", "note"))
        body = "".join(self._html_row(index) for index in range(min(len(self), _SHOWN)))
        more = (
            f"<p>{len(self)} forecasts, {self.failed} failed; the first {_SHOWN} are shown</p>"
            if len(self) > _SHOWN
            else ""
        )
        return f"<table><tr>{head}</tr>{body}</table>{more}"

    def _html_row(self, index: int) -> str:
        forecast, pair = self[index], self.pairs[index]
        prompt = "" if pair is None else printable(pair.turns[0].prompt[:_SHOWN_TEXT])
        cut = forecast.truncation is not None and forecast.truncation.truncated
        note = str(forecast.error) if forecast.error else "truncated" if cut else ""
        margin = "" if forecast.error else f"{forecast.margin:+.2f}"
        return f"<tr>{_cell(forecast.id)}{''.join(map(_bar, forecast.probabilities))}{''.join(map(_cell, (margin, prompt, note)))}</tr>"


def _cell(value: object) -> str:
    return f"<td>{escape(str(value))}</td>"


def _bar(probability: float) -> str:
    share = f"{100 * probability:.1f}"
    return f'<td style="min-width:6em;background:linear-gradient(90deg,rgba(90,140,220,.35) {share}%,transparent {share}%)">{share} %</td>'


def check_kept(own: Sequence[str]) -> None:
    """Raise UsageError if a column that is to be kept has the name of a column of the forecasts."""
    if taken := next((name for name in own if name in RESERVED), None):
        raise UsageError(f"the column {taken!r} cannot be kept: forecasts have a column of that name themselves")


@contextmanager
def open_writer(
    path: str | os.PathLike[str], *, with_text: bool = False, winner: bool = False, own: Sequence[str] = ()
) -> Iterator[Writer]:
    """A writer for `path`: a submission (.csv), or all that is known of each row (.jsonl, .parquet). A submission has the three
    probabilities, or with `winner` the likelier of model_a and model_b, as the competition WSDM wants it. `own` are the
    columns of the input that were kept (`PairFile.keep`).

    The file appears whole or not at all. Raises UsageError.
    """
    kind = output_kind(path)
    if with_text and kind == ".csv":
        raise UsageError("a submission (.csv) has no room for texts; write .jsonl or .parquet to keep them")
    if winner and kind != ".csv":
        raise UsageError(f"{shown_path(path)}: a submission of winners is a .csv; the other kinds have everything")
    check_kept(own)
    columns = ("id", "winner") if winner else ("id", *WINNERS)
    with opened_writer(path, kind, columns, NUMBERS, with_text=with_text, own=own) as writer:
        yield _Submission(writer, winner) if kind == ".csv" else writer


@dataclass(frozen=True)
class _Submission:
    """Writes forecasts without their uncertainty, which a submission does not hold and which takes time to compute."""

    writer: Writer
    winner: bool = False

    def write(self, rows: Recordable) -> None:
        bare = replace(rows, link=None, spread=None, unlike=None) if isinstance(rows, Forecasts) else rows
        self.writer.write(_Winners(bare) if self.winner else bare)


@dataclass(frozen=True)
class _Winners:
    """The likelier winner of each row. Where both are equally likely, it is A."""

    rows: Recordable

    @property
    def ids(self) -> list[str | int]:
        return self.rows.ids

    def records(self, *, with_text: bool = False) -> Iterator[dict[str, Any]]:
        for record in self.rows.records():
            a, b = record[WINNERS[0]], record[WINNERS[1]]
            yield {**record, "winner": "model_b" if b > a else "model_a"}

"""Whole files and tables, a piece at a time. `predict_to` writes as it goes, in memory that does not grow with the rows."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from hashlib import sha256
from importlib.metadata import version
from itertools import chain, islice
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from prefcast.budget import Budget
from prefcast.errors import FileError, RowError, UsageError, excerpt
from prefcast.forecaster import Forecaster
from prefcast.formats import PairFile, open_pairs, pairs_of_records
from prefcast.pairs import Pair
from prefcast.predictions import Forecasts, Writer
from prefcast.resolve import resolve
from prefcast.runs.log import Watch
from prefcast.runs.loop import (
    CHUNK_CHARACTERS,
    CHUNK_ROWS,
    Job,
    Progress,
    RunReport,
    Tally,
    chunks,
    pieces,
    run_to,
)
from prefcast.runs.packed import link_as_json
from prefcast.scorers import Scorer
from prefcast.scores import ScoreWriter, column_names, score_pairs

__all__ = [
    "Progress",
    "RunReport",
    "Tally",
    "chunks",
    "find_pair",
    "forecasting",
    "forecasts_of",
    "opened_pairs",
    "predict",
    "predict_to",
    "rehearsal_rows",
    "score_to",
    "scoring",
]

_NEAR = 3
_STUB_ROWS, _REHEARSED_ROWS = 3, 1000
LABEL_COLUMNS = "winner_model_a, winner_model_b, winner_tie or winner"


def forecasting(forecaster: Forecaster) -> Job:
    """Forecasting as a run's job; its header says all that a forecast depends on."""
    link = forecaster.link
    return Job(
        forecaster.forecast,
        forecaster.scorer,
        {
            "verb": "predict",
            **_scorer_header(forecaster.scorer, forecaster.budget),
            "outcome model": f"{forecaster.outcome.kind} {forecaster.outcome.parameters()}",
            "prior": list(forecaster.prior),
            "uncertainty": None if link is None else sha256(repr(link_as_json(link)).encode()).hexdigest()[:16],
        },
        link,
    )


def scoring(scorer: Scorer, budget: Budget) -> Job:
    """Raw scores as a run's job."""
    return Job(
        lambda items: score_pairs(items, scorer, budget),
        scorer,
        {"verb": "score", **_scorer_header(scorer, budget), "numbers": list(column_names(scorer))},
    )


def _scorer_header(scorer: Scorer, budget: Budget) -> dict[str, Any]:
    return {
        "version of prefcast": version("prefcast"),
        "piece": f"{CHUNK_ROWS} rows, {CHUNK_CHARACTERS} characters",
        "model": scorer.name,
        "scorer": scorer.identity(),
        "budget": str(budget),
        "limit": None if scorer.limit is None else str(scorer.limit),
    }


def forecasts_of(
    items: Iterable[Pair | RowError], forecaster: Forecaster, tally: Tally, on_error: str, progress: Progress | None
) -> Iterator[Forecasts]:
    job = Job(forecaster.forecast, forecaster.scorer)
    found = pieces(items, job, tally, on_error=on_error, watch=Watch(progress=progress))
    return cast(Iterator[Forecasts], found)


def predict_to(
    writer: Writer,
    pairs: Iterable[Pair | RowError],
    forecaster: Forecaster,
    *,
    on_error: str = "keep",
    progress: Progress | None = None,
) -> RunReport:
    """Forecast `pairs` into `writer`, a piece at a time.

    With `on_error="stop"` the first row that fails raises its RowError.
    """
    job = Job(forecaster.forecast, forecaster.scorer)
    return run_to(writer, pairs, job, on_error=on_error, watch=Watch(progress=progress))


def score_to(
    writer: ScoreWriter,
    pairs: Iterable[Pair | RowError],
    scorer: Scorer,
    budget: Budget,
    *,
    on_error: str = "keep",
    progress: Progress | None = None,
) -> RunReport:
    """Write the raw scores of `pairs`, a piece at a time; as `predict_to`."""
    job = Job(lambda items: score_pairs(items, scorer, budget), scorer)
    return run_to(writer, pairs, job, on_error=on_error, watch=Watch(progress=progress))


def rehearsal_rows(
    stub: str, train: str, columns: Mapping[str, str] | None, cells: str
) -> Iterable[Pair | RowError] | None:
    """The first 1,000 rows of `train` if `stub` is the competition's public test file of exactly three rows, otherwise
    None.

    Raises UsageError if `train` cannot have labels or the stub is standard input, which can be read only once.
    """
    if stub == "-":
        raise UsageError("--rehearse must look at the file first; standard input can be read only once")
    labelled = open_pairs(train, columns=columns, cells=cells)
    if not labelled.may_have_labels:
        labelled.close()
        raise UsageError(f"{labelled.name}: a rehearsal needs labels ({LABEL_COLUMNS})")
    with open_pairs(stub, columns=columns, cells=cells) as file:
        rows = sum(1 for _ in islice(file, _STUB_ROWS + 1))
    if rows != _STUB_ROWS:
        labelled.close()
        return None

    def rows_of() -> Iterator[Pair | RowError]:
        with labelled as file:
            yield from islice(file, _REHEARSED_ROWS)

    return rows_of()


def predict(
    source: Any,
    *,
    model: str | None = None,
    forecaster: Forecaster | str | os.PathLike[str] | None = None,
    budget: Budget | str | None = None,
    columns: Mapping[str, str] | None = None,
    cells: str = "json",
    on_error: str = "keep",
    preset: str | None = None,
) -> Any:
    """Forecast a file, pairs, or a table.

    All is held in memory, texts included; `predict_to` is for what does not fit.
    `source` is a path (any format that `read_pairs` takes), an iterable of Pair, a pandas data frame or an Arrow
    table. Paths and pairs give Forecasts; a table gives a table of its own kind, a row a forecast in the same order
    (a data frame keeps its index). `model` names a built-in forecaster (default `embedded`) or, with
    `preset="notebook"`, a reward model; `forecaster` is a Forecaster or its folder. Raises PrefcastError.
    """
    chosen = resolve(model, forecaster, budget, preset)
    with opened_pairs(source, columns, cells) as pairs:
        forecasts = _joined(list(forecasts_of(pairs, chosen, Tally(), on_error, None)))
    if _is_table(source, "pandas", "DataFrame"):
        frame = forecasts.to_pandas()
        frame.index = source.index
        return frame
    return forecasts.to_arrow() if _is_table(source, "pyarrow", "Table") else forecasts


def _joined(parts: list[Forecasts]) -> Forecasts:
    if not parts:
        empty = np.zeros(0)
        return Forecasts([], np.zeros((0, 3)), empty, empty, [], [], [])
    return Forecasts(
        ids=list(chain.from_iterable(part.ids for part in parts)),
        probabilities=np.concatenate([part.probabilities for part in parts]),
        margin=np.concatenate([part.margin for part in parts]),
        tie=np.concatenate([part.tie for part in parts]),
        truncations=list(chain.from_iterable(part.truncations for part in parts)),
        errors=list(chain.from_iterable(part.errors for part in parts)),
        pairs=list(chain.from_iterable(part.pairs for part in parts)),
        link=next((part.link for part in parts if part.link is not None), None),
        columns=_joined_columns(parts),
        spread=_joined_spread(parts),
    )


def _joined_columns(parts: list[Forecasts]) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    width = next(((part.columns[0].shape[1], part.columns[1].shape[1]) for part in parts if part.columns), None)
    if width is None:
        return None
    # A piece whose rows all failed has no columns.
    every = [part.columns or tuple(np.full((len(part), size), np.nan) for size in width) for part in parts]
    return np.concatenate([each[0] for each in every]), np.concatenate([each[1] for each in every])


def _joined_spread(parts: list[Forecasts]) -> NDArray[np.float64] | None:
    if all(part.spread is None for part in parts):
        return None
    return np.concatenate([np.full(len(part), np.nan) if part.spread is None else part.spread for part in parts])


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
    if _is_table(source, "pandas", "DataFrame"):
        names = [str(name) for name in source.columns]
        records = (dict(zip(names, map(_plain, row), strict=True)) for row in source.itertuples(index=False, name=None))
        return pairs_of_records(records, names, mapping=columns, cells=cells)
    if _is_table(source, "pyarrow", "Table"):
        rows = chain.from_iterable(batch.to_pylist() for batch in source.to_batches(max_chunksize=CHUNK_ROWS))
        return pairs_of_records(rows, source.column_names, mapping=columns, cells=cells)
    return _Given(source)


def _is_table(source: Any, module: str, name: str) -> bool:
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

"""Whole files and tables, a piece at a time. `predict_to` writes as it goes, in memory that does not grow with the rows."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from importlib.metadata import version
from itertools import chain
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from prefcast.errors import RowError
from prefcast.forecasts.forecaster import Forecaster
from prefcast.forecasts.predictions import Forecasts, Writer
from prefcast.forecasts.resolve import resolve
from prefcast.forecasts.scores import column_names, score_pairs
from prefcast.pairs import Pair
from prefcast.pairs.budget import Budget
from prefcast.pairs.pieces import PIECE_CHARACTERS, PIECE_ROWS
from prefcast.pairs.sources import opened_pairs, table_like
from prefcast.runs.log import Watch
from prefcast.runs.loop import Job, Progress, RunReport, Tally, run_to, scored_pieces
from prefcast.runs.packed import link_as_json
from prefcast.scorers import Scorer

__all__ = ["forecasting", "forecasts_of", "predict", "predict_to", "scoring"]


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
        "piece": f"{PIECE_ROWS} rows, {PIECE_CHARACTERS} characters",
        "model": scorer.name,
        "scorer": scorer.identity(),
        "budget": str(budget),
        "limit": None if scorer.limit is None else str(scorer.limit),
    }


def forecasts_of(
    items: Iterable[Pair | RowError], forecaster: Forecaster, tally: Tally, on_error: str, progress: Progress | None
) -> Iterator[Forecasts]:
    job = Job(forecaster.forecast, forecaster.scorer)
    found = scored_pieces(items, job, tally, on_error=on_error, watch=Watch(progress=progress))
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


def predict(
    source: Any,
    *,
    model: str | None = None,
    forecaster: Forecaster | str | os.PathLike[str] | None = None,
    budget: Budget | str | None = None,
    columns: Mapping[str, str] | None = None,
    cells: str = "json",
    label_values: Mapping[str, str] | None = None,
    on_error: str = "keep",
    preset: str | None = None,
) -> Any:
    """Forecast a file, pairs, or a table.

    All is held in memory, texts included; `predict_to` is for what does not fit.
    `source` is what `open_pairs` takes (a path, several, a table, dicts), or an iterable of Pair. Paths and pairs give
    Forecasts; a pandas or polars data frame, an Arrow table, a datasets.Dataset or a list of dicts gives one of its own kind,
    a row a forecast in the same order (a pandas data frame keeps its index). `model` names a built-in forecaster (default `embedded`) or, with
    `preset="notebook"`, a reward model; `forecaster` is a Forecaster or its folder. Raises PrefcastError.
    """
    chosen = resolve(model, forecaster, budget, preset)
    with opened_pairs(source, columns, cells, label_values) as pairs:
        forecasts = _joined(list(forecasts_of(pairs, chosen, Tally(), on_error, None)))
    table = table_like(source, forecasts)
    return forecasts if table is None else table


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

"""What a run does with each piece of the input: it forecasts or scores the piece. `predict` and `predict_to` are for Python."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from hashlib import sha256
from importlib.metadata import version
from itertools import chain
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from prefcast.base.limits import MAX_ROW
from prefcast.errors import RowError, UsageError
from prefcast.forecasts.forecaster import Forecaster
from prefcast.forecasts.predictions import Forecasts, Writer, open_writer
from prefcast.forecasts.resolve import Choice, resolve
from prefcast.forecasts.scores import SINGLE_SCORE, column_names, open_score_writer, score_pairs
from prefcast.pairs import Pair
from prefcast.pairs.budget import Budget
from prefcast.pairs.formats import PairFile
from prefcast.pairs.pieces import PIECE_CHARACTERS, PIECE_ROWS
from prefcast.pairs.sources import opened_pairs, table_like
from prefcast.runs.log import Watch
from prefcast.runs.loop import Job, Progress, RunReport, Sink, Tally, run_to, scored_pieces
from prefcast.runs.ready import Running, pieces_ahead, ready
from prefcast.scorers.base import Scorer

__all__ = ["forecasting", "forecasts_of", "job_of", "open_output", "predict", "predict_to", "scoring"]


def forecasting(forecaster: Forecaster) -> Job:
    """Forecasting as a run's job; its header says all that a forecast depends on."""
    link = forecaster.link
    drawn = None if link is None else sha256(f"{link.kind}{link.margin}{link.tie}".encode() + link.draws.tobytes())
    return Job(
        forecaster.forecast,
        {
            "verb": "predict",
            **_scorer_header(forecaster.scorer, forecaster.budget),
            "outcome model": f"{forecaster.outcome.kind} {forecaster.outcome.parameters()}",
            "prior": list(forecaster.prior),
            "uncertainty": None if drawn is None else drawn.hexdigest()[:16],
        },
        pieces_ahead(forecaster.scorer),
    )


def scoring(scorer: Scorer, budget: Budget, *, single: bool = False) -> Job:
    """Raw scores as a run's job; with `single` those of single answers."""
    return Job(
        lambda items, meter: score_pairs(items, scorer, budget, meter, single=single),
        {
            "verb": "score",
            **_scorer_header(scorer, budget),
            "numbers": [SINGLE_SCORE] if single else list(column_names(scorer)),
        },
        pieces_ahead(scorer),
    )


def job_of(verb: str, forecaster: Forecaster, *, single: bool = False) -> Job:
    """What the verb predict or score does; score needs no outcome model."""
    if verb == "predict":
        return forecasting(forecaster)
    return scoring(forecaster.scorer, forecaster.budget, single=single)


def open_output(
    path: str | os.PathLike[str],
    header: Mapping[str, Any],
    *,
    with_text: bool,
    winner: bool = False,
    own: Sequence[str] = (),
) -> AbstractContextManager[Sink]:
    """A writer for the output of a job with that header; `winner` is for a submission, `own` are the columns of the input that
    were kept. Raises UsageError."""
    if header["verb"] == "score":
        return open_score_writer(path, header["numbers"])
    return open_writer(path, with_text=with_text, winner=winner, own=own)


def _scorer_header(scorer: Scorer, budget: Budget) -> dict[str, Any]:
    return {
        "version of prefcast": version("prefcast"),
        "piece": f"{PIECE_ROWS} rows, {PIECE_CHARACTERS} characters",
        "model": scorer.name,
        "scorer": scorer.identity(),
        "budget": str(budget),
        "limit": None if scorer.limit is None else str(scorer.limit),
    }


def _plain_job(forecaster: Forecaster) -> Job:
    """Forecasting without a header, which only runs into a shard, a cluster or the log need."""
    return Job(forecaster.forecast, ahead=pieces_ahead(forecaster.scorer))


def forecasts_of(
    items: Iterable[Pair | RowError],
    forecaster: Forecaster,
    tally: Tally,
    on_error: str = "keep",
    progress: Progress | None = None,
) -> Iterator[Forecasts]:
    """The forecasts of `items`, a piece at a time."""
    found = scored_pieces(items, _plain_job(forecaster), tally, on_error=on_error, watch=Watch(progress=progress))
    return cast(Iterator[Forecasts], found)


def predict_to(
    writer: Writer,
    pairs: Iterable[Pair | RowError],
    forecaster: Forecaster,
    *,
    on_error: str = "keep",
    progress: Progress | None = None,
) -> RunReport:
    """Forecast `pairs` into `writer`, a piece at a time, in memory that does not grow with the rows.

    With `on_error="stop"` the first row that fails raises its RowError.
    """
    return run_to(writer, pairs, _plain_job(forecaster), on_error=on_error, watch=Watch(progress=progress))


def predict(
    source: Any,
    *,
    model: str | None = None,
    forecaster: Any = None,
    budget: Budget | str | None = None,
    columns: Mapping[str, str] | None = None,
    cells: str = "json",
    label_values: Mapping[str, str] | None = None,
    max_row: int = MAX_ROW,
    on_error: str = "keep",
    preset: str | None = None,
    running: Running | None = None,
    keep: Sequence[str] = (),
) -> Any:
    """Forecast a file, pairs, or a table.

    All of it is held in memory, texts included; `predict_to` is for what does not fit. `source` is what
    `open_pairs` takes (a path, several paths, a table, dicts), or an iterable of Pair. Paths and pairs give Forecasts. A
    pandas or polars data frame, an Arrow table, a datasets.Dataset or a list of dicts gives one of its own kind, a row a
    forecast in the same order (a pandas data frame keeps its index).

    `model` names a built-in forecaster (default `embedded`) or, with `preset="notebook"`, a reward model; `forecaster` is a
    Forecaster or its folder. `max_row` is the most megabytes that a row may have. `running` says how it is done: by default evidence is kept in the evidence store.
    `keep` names columns of a file whose values the records of the forecasts have too. Raises PrefcastError.
    """
    choice = Choice(model, forecaster, budget=budget, preset=preset)
    with (
        opened_pairs(source, columns, cells, label_values, max_row) as pairs,
        ready(resolve(choice), running) as chosen,
    ):
        if keep:
            if not isinstance(pairs, PairFile):
                raise UsageError("keep names columns of a file or a table; these pairs have none")
            pairs.keep(*keep)
        forecasts = _joined(list(forecasts_of(pairs, chosen, Tally(), on_error)))
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
        spread=_joined_numbers([part.spread for part in parts], parts),
        escalated=_joined_flags([part.escalated for part in parts]),
        handed_over=_joined_flags([part.handed_over for part in parts]),
        unlike=_joined_numbers([part.unlike for part in parts], parts),
        doubt=_joined_numbers([part.doubt for part in parts], parts),
    )


def _joined_columns(parts: list[Forecasts]) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    width = next(((part.columns[0].shape[1], part.columns[1].shape[1]) for part in parts if part.columns), None)
    if width is None:
        return None
    # A piece whose rows all failed has no columns.
    every = [part.columns or tuple(np.full((len(part), size), np.nan) for size in width) for part in parts]
    return np.concatenate([each[0] for each in every]), np.concatenate([each[1] for each in every])


def _joined_flags(parts: list[NDArray[np.bool_] | None]) -> NDArray[np.bool_] | None:
    there = [part for part in parts if part is not None]
    return np.concatenate(there) if len(there) == len(parts) else None


def _joined_numbers(numbers: list[NDArray[np.float64] | None], parts: list[Forecasts]) -> NDArray[np.float64] | None:
    if all(each is None for each in numbers):
        return None
    # A piece whose rows all failed has none.
    filled = [np.full(len(part), np.nan) if each is None else each for each, part in zip(numbers, parts, strict=True)]
    return np.concatenate(filled)

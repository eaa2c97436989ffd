"""Makes a forecaster or a scorer ready for a run: with worker processes if they are asked for, and with the evidence store."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from prefcast.errors import UsageError
from prefcast.forecasts.forecaster import Forecaster
from prefcast.runs.pool import pooled
from prefcast.scorers.base import Scorer
from prefcast.scorers.kept import kept, worth_keeping
from prefcast.scorers.store import EvidenceStore

__all__ = ["NOT_KEPT", "Running", "pieces_ahead", "ready", "ready_scorer"]


@dataclass(frozen=True)
class Running:
    """How evidence is computed and kept.

    With `keep` evidence is kept in the evidence store at `store` (default: in the user's cache folder). Evidence that is
    there is not computed again, unless `fresh`; without a store everything is computed anyway. With `isolate`, or with a `time_limit` (seconds per batch), pairs are scored
    in worker processes.
    """

    store: str | os.PathLike[str] | None = None
    keep: bool = True
    fresh: bool = False
    isolate: bool = False
    time_limit: float | None = None

    def __post_init__(self) -> None:
        if self.store is not None and not self.keep:
            raise UsageError("--store and --no-store exclude each other")


NOT_KEPT = Running(keep=False)


@contextmanager
def ready(forecaster: Forecaster, running: Running | None = None) -> Iterator[Forecaster]:
    """The forecaster with its scorer as `ready_scorer` makes it."""
    with ready_scorer(forecaster.scorer, running) as (scorer, _):
        yield replace(forecaster, scorer=scorer)


@contextmanager
def ready_scorer(scorer: Scorer, running: Running | None = None) -> Iterator[tuple[Scorer, EvidenceStore | None]]:
    """The scorer as `running` asks for it, and the store of its evidence if there is one; both are closed at the end."""
    running = running or Running()
    scorer = pooled(scorer, isolate=running.isolate, time_limit=running.time_limit)
    store = EvidenceStore(running.store) if running.keep and worth_keeping(scorer) else None
    try:
        yield kept(scorer, store, fresh=running.fresh), store
    finally:
        scorer.close()
        if store is not None:
            store.close()


def pieces_ahead(scorer: Scorer) -> int:
    """How many pieces are under way at a time: more than one if there are several workers, which would otherwise wait for
    each other at the end of each piece."""
    return 1 if scorer.workers == 1 else 1 + -(-scorer.workers // 2)

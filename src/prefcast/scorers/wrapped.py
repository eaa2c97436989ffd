"""A scorer around another one, which changes how evidence is computed, not the evidence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefcast.errors import UsageError
from prefcast.pairs import Pair
from prefcast.scorers.base import SILENT, Conversation, Evidence, Meter, Part, Push, Scorer
from prefcast.scorers.store import EvidenceStore

__all__ = ["WrappedScorer"]


class WrappedScorer(Scorer):
    """Everything is the `inner` scorer's; a subclass changes `stream`, and says in `again` how it wraps another scorer."""

    def __init__(self, inner: Scorer) -> None:
        self.inner = inner
        self._identity: str | None = None
        self.name, self.files = inner.name, inner.files  # type: ignore[misc]
        self.cost, self.promise, self.portable = inner.cost, inner.promise, inner.portable
        self.raw_names, self.batch_pairs, self.options = inner.raw_names, inner.batch_pairs, inner.options
        self.brought, self.log_odds, self.pointwise = inner.brought, inner.log_odds, inner.pointwise
        self.takes_system, self.takes_tools, self.judge = inner.takes_system, inner.takes_tools, inner.judge
        self.limit, self.time_limit, self.workers = inner.limit, inner.time_limit, inner.workers

    def again(self, inner: Scorer) -> Scorer:
        """Another scorer wrapped in the same way."""
        raise NotImplementedError

    def compute(self, pairs: Sequence[Pair]) -> Evidence:
        return self.evidence(pairs)

    def taken(self, pair: Pair) -> Pair:
        return self.inner.taken(pair)

    def batches(self, pairs: Sequence[Pair]) -> Sequence[Sequence[int]]:
        return self.inner.batches(pairs)

    def stream(self, pairs: Sequence[Pair], meter: Meter = SILENT) -> Iterator[Part]:
        return self.inner.stream(pairs, meter)

    def score(self, conversations: Sequence[Conversation]) -> NDArray[np.float64]:
        return self.inner.score(conversations)

    def explain(self, pair: Pair) -> list[Push]:
        return self.inner.explain(pair)

    def identity(self) -> str:
        # It may be a digest of many megabytes, and does not change during a run.
        self._identity = self._identity or self.inner.identity()
        return self._identity

    def bare(self) -> Scorer:
        return self.inner.bare()

    @classmethod
    def load(cls, folder: Path, moved: str | None = None) -> Any:
        raise UsageError("a scorer that wraps another one is not loaded from a folder")

    def save(self, folder: Path) -> None:
        self.inner.save(folder)

    def with_options(self, options: Any) -> Scorer:
        return self.again(self.inner.with_options(options))

    def with_scores(self, scores: Scorer) -> Scorer:
        return self.again(self.inner.with_scores(scores))

    def replicas(self) -> Sequence[Any]:
        return self.inner.replicas()

    def keep_parts(self, store: EvidenceStore, *, fresh: bool = False) -> None:
        self.inner.keep_parts(store, fresh=fresh)

    def use_threads(self, threads: int) -> None:
        self.inner.use_threads(threads)

    def close(self) -> None:
        self.inner.close()

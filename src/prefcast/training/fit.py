"""The weights of the embedded model: one penalised maximum-likelihood fit of all of them (Davidson's model, with a tie level for
each source).

The fit is convex but for the scales of judged sources (`fit_weights`), so the data alone decide its result. Each block of the design has a scale of its own: the smaller the scale,
the more strongly the penalty holds the weights of the block at zero. Scales and numbers of topics were chosen by leaving out
whole sources (docs/embedded-model.md).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from prefcast.outcomes.models import Davidson
from prefcast.scorers.embedded.model import CLIP, Doubt, TopicModel, Topics, several_turns
from prefcast.scorers.surface.model import SurfaceModel
from prefcast.training.shared import fit_weights

__all__ = ["Rows", "evidence", "fit", "refit", "unlike"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

PENALTY = 200.0
TOPICS, TIE_TOPICS, DIRECTIONS, DOUBTS = 24, 16, 48, 32
# The scales of the blocks: vectors, vectors by topic, surface by topic, the prompt's vector, pair features by topic.
_VECTOR, _VECTOR_BY_TOPIC, _SURFACE_BY_TOPIC, _PROMPT, _PAIR_BY_TOPIC = 0.17, 0.05, 0.085, 0.14, 0.07


@dataclass(frozen=True)
class Rows:
    """The data of n rows for a fit: surface features `a`, `b` (n, r) and `pair` (n, p), `vectors` (n, 3, h) of prompt, A and B,
    shares of outcomes `target` (n, 3), `weight` (n,) and `source` (n,). The fit of `tieless` (n,) rows has no tie. The margins of `scaled` (n,) rows have a scale of their
    source."""

    a: Floats
    b: Floats
    pair: Floats
    vectors: NDArray[np.float32]
    target: Floats
    weight: Floats
    source: Ints
    tieless: NDArray[np.bool_]
    scaled: NDArray[np.bool_]

    def where(self, mask: NDArray[np.bool_]) -> Rows:
        """The rows in `mask`."""
        return Rows(**{name: getattr(self, name)[mask] for name in self.__dataclass_fields__})


def fit(rows: Rows) -> TopicModel:
    """A model that is fitted to `rows` alone. Raises FitError."""
    share = rows.weight / rows.weight.sum()
    surface = _standardised(rows, share)
    z, bent, u = surface.design(rows.a, rows.b, rows.pair)
    prompts, a, b = _split(rows.vectors)
    difference, mean = a - b, share @ prompts
    spread, deviation = _scale(share, difference), _scale(share, prompts - mean)
    d = np.clip(difference / spread, -CLIP, CLIP)
    p = np.clip((prompts - mean) / deviation, -CLIP, CLIP)
    topics, directions = _principal(p, share, TOPICS), _principal(d, share, DIRECTIONS)
    q = p @ topics.T
    blocks_m = [z, bent, _VECTOR * d, _VECTOR_BY_TOPIC * _by_topic(q, d @ directions.T)]
    blocks_m += [_SURFACE_BY_TOPIC * _by_topic(q, each) for each in (z, bent)]
    blocks_t = [np.abs(bent), u, _PROMPT * p, _PAIR_BY_TOPIC * _by_topic(q[:, :TIE_TOPICS], u)]
    by_margin, by_tie = _fitted(rows, blocks_m, blocks_t)
    linear, saturating, vector, vectors, linears, saturatings = by_margin
    likeness, weight, prompt, pairs = by_tie
    k, r = len(topics), z.shape[1]
    made = TopicModel(
        replace(surface, linear=linear, saturating=saturating, likeness=likeness, weight=weight),
        Topics(
            spread=spread,
            mean=mean,
            deviation=deviation,
            vector=_VECTOR * vector,
            prompt=_PROMPT * prompt,
            topics=topics,
            vector_by_topic=_VECTOR_BY_TOPIC * vectors.reshape(k, -1) @ directions,
            linear_by_topic=_SURFACE_BY_TOPIC * linears.reshape(k, r),
            saturating_by_topic=_SURFACE_BY_TOPIC * saturatings.reshape(k, r),
            # A tie has weights for the first topics only.
            weight_by_topic=np.pad(
                _PAIR_BY_TOPIC * pairs.reshape(-1, u.shape[1]), ((0, k - min(k, TIE_TOPICS)), (0, 0))
            ),
        ),
        Doubt.none(d.shape[1]),
    )
    return replace(made, doubt=_doubt(rows, np.concatenate(blocks_m[:3], axis=1), evidence(made, rows)))


def refit(model: TopicModel, rows: Rows, hold: float = 1.0) -> TopicModel:
    """The model moved towards `rows`. The fit starts from the evidence of the model, and moves all weights but those by topic. The
    penalty of moving is `hold` times that of `fit`.

    Raises FitError.
    """
    s, t = model.surface, model.topics
    z, bent, u = s.design(rows.a, rows.b, rows.pair)
    d, p = t.standardised(*_split(rows.vectors))
    factor = model.doubt.factor(unlike(model, rows), several_turns(rows.pair))[:, None]
    blocks_m = [factor * each for each in (z, bent, _VECTOR * d)]
    blocks_t = [np.abs(bent), u, _PROMPT * p]
    (linear, saturating, vector), (likeness, weight, prompt) = _fitted(
        rows, blocks_m, blocks_t, evidence(model, rows), hold * PENALTY
    )
    return TopicModel(
        replace(
            s,
            linear=s.linear + linear,
            saturating=s.saturating + saturating,
            likeness=s.likeness + likeness,
            weight=s.weight + weight,
        ),
        replace(t, vector=t.vector + _VECTOR * vector, prompt=t.prompt + _PROMPT * prompt),
        model.doubt,
    )


def evidence(model: TopicModel, rows: Rows) -> tuple[Floats, Floats]:
    """Margin and tie (n,) of `rows`."""
    s, t = model.surface, model.topics
    z, bent, u = s.design(rows.a, rows.b, rows.pair)
    d, p = t.standardised(*_split(rows.vectors))
    q = p @ t.topics.T
    margin = ((s.linear + q @ t.linear_by_topic) * z + (s.saturating + q @ t.saturating_by_topic) * bent).sum(axis=1)
    margin += ((t.vector + q @ t.vector_by_topic) * d).sum(axis=1)
    if model.doubt.flattening or model.doubt.turns != 1:
        margin *= model.doubt.factor(unlike(model, rows), several_turns(rows.pair))
    return margin, np.abs(bent) @ s.likeness + ((s.weight + q @ t.weight_by_topic) * u).sum(axis=1) + p @ t.prompt


def unlike(model: TopicModel, rows: Rows) -> Floats:
    """How unlike the training data each of `rows` is (n,); see `Doubt`."""
    z, bent, _ = model.surface.design(rows.a, rows.b, rows.pair)
    d, _ = model.topics.standardised(*_split(rows.vectors))
    return _variance(model.doubt, np.concatenate([z, bent, model.doubt.vector_scale * d], axis=1))


def _variance(doubt: Doubt, x: Floats) -> Floats:
    """`Doubt.unlike` of the rows of a design (n, 2 r + h)."""
    known = (x @ doubt.directions.T) ** 2 @ doubt.share
    found: Floats = np.maximum(0.0, (x**2).sum(axis=1) - known) / (doubt.penalty * doubt.typical)
    return found


def _doubt(rows: Rows, x: Floats, found: tuple[Floats, Floats]) -> Doubt:
    """The doubt about the weights of a design (n, 2 r + h), given the evidence of the rows that it was fitted to. A typical row is
    the median of those with the largest weight. The levels and scales of single sources are left out: what counts is which directions
    were seen often."""
    p = np.exp(Davidson.log_probabilities(found[0], np.where(rows.tieless, -np.inf, found[1]))[0])
    # The second derivative of -log P by s: the variance of a vote that counts 1/2 for A and -1/2 for B.
    curvature = rows.weight * ((p[:, 0] + p[:, 1]) / 4 - ((p[:, 0] - p[:, 1]) / 2) ** 2)
    values, vectors = np.linalg.eigh((x * curvature[:, None]).T @ x)
    values, vectors = np.maximum(values[-DOUBTS:], 0.0), vectors[:, -DOUBTS:]
    made = Doubt(vectors.T, values / (values + PENALTY), PENALTY, _VECTOR)
    typical = float(np.median(_variance(made, x[rows.weight == rows.weight.max()])))
    return replace(made, typical=typical) if typical > 0 else made


def _standardised(rows: Rows, share: Floats) -> SurfaceModel:
    """A surface model with the spreads of the rows and without weights."""
    nothing = np.zeros(rows.a.shape[1])
    mean = share @ rows.pair
    deviation = _scale(share, rows.pair - mean)
    return SurfaceModel(
        _scale(share, rows.a - rows.b), nothing, nothing, nothing, mean, deviation, np.zeros(rows.pair.shape[1])
    )


def _scale(share: Floats, values: Floats) -> Floats:
    """The root mean square of each column (c,). It is 1 for a column that never varies, so that the column gets no weight."""
    spread: Floats = np.sqrt(share @ values**2)
    return np.where(spread > 0, spread, 1.0)


def _principal(values: Floats, share: Floats, count: int) -> Floats:
    """Principal directions (count, h) of values (n, h). One factor scales them, so that the coordinates have a mean square of 1."""
    _, directions = np.linalg.eigh((values * share[:, None]).T @ values)
    found: Floats = directions[:, ::-1][:, :count].T
    # A direction and its opposite are the same. The one with a positive largest entry is taken.
    found = found * np.sign(found[np.arange(len(found)), np.abs(found).argmax(axis=1)])[:, None]
    size = np.sqrt((share @ (values @ found.T) ** 2).mean())
    return found / size if size > 0 else found


def _by_topic(q: Floats, values: Floats) -> Floats:
    """Every product of a topic (n, k) and a value (n, m), as (n, k m)."""
    return (q[:, :, None] * values[:, None, :]).reshape(len(q), -1)


def _split(vectors: NDArray[np.float32]) -> tuple[Floats, Floats, Floats]:
    """The vectors (n, h) of prompts, of A and of B."""
    prompts, a, b = (vectors[:, part].astype(np.float64) for part in range(3))
    return prompts, a, b


def _fitted(
    rows: Rows,
    margin: list[Floats],
    tie: list[Floats],
    offset: tuple[Floats, Floats] | None = None,
    penalty: float = PENALTY,
) -> list[list[Floats]]:
    """The weights of each block of the margin's design and of the tie's."""
    m, t = (np.concatenate(blocks, axis=1) for blocks in (margin, tie))
    found = fit_weights(m, t, rows.source, rows.target, rows.weight, rows.tieless, penalty, offset, rows.scaled)
    ends = (np.cumsum([block.shape[1] for block in blocks])[:-1] for blocks in (margin, tie))
    return [np.split(weights, each) for weights, each in zip(found, ends, strict=True)]

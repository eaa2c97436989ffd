"""Which models can be rated: whether their votes give finite ratings, and what would help."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from prefcast.errors import UsageError, excerpt
from prefcast.measuring.ranking.cells import Votes
from prefcast.pairs import Outcome

__all__ = ["MOST_MODELS", "NAMED", "check_finite", "with_enough"]

Floats = NDArray[np.float64]

MOST_MODELS = 500
# So many models are named in a message.
NAMED = 5
_TRIED = (2, 3, 5, 10, 20, 30, 50, 100, 200, 300, 500, 1000)
_SAME = 1e-5


def with_enough(votes: Votes, least: int) -> Votes:
    """The votes between models that have at least `least` votes among themselves. Raises UsageError where fewer than two, or too
    many, remain."""
    found = _enough(votes, least)
    if len(found.models) < 2:
        raise UsageError(f"fewer than two models have {least} votes or more; a leaderboard needs two")
    if len(found.models) > MOST_MODELS:
        raise UsageError(
            f"there are {len(found.models)} models; at most {MOST_MODELS} can be ranked; a higher --min-votes leaves out "
            "models with few votes"
        )
    return found


def _enough(votes: Votes, least: int) -> Votes:
    while True:
        cells = votes.totals(*votes.counted)
        k = len(votes.models)
        counts = np.bincount(votes.left, cells, k) + np.bincount(votes.right, cells, k)
        enough = np.round(counts, 6) >= max(least, _SAME)
        if enough.all():
            return votes
        votes = votes.only(enough)


def _components(votes: Votes) -> tuple[NDArray[np.int64], int, Floats]:
    """The strong components of the graph of wins and ties: the component of each model (k,), their count, and the graph
    (k, k)."""
    from scipy.sparse.csgraph import connected_components

    wins, ties = votes.matrices()
    graph = (wins + ties > 0).astype(np.float64)
    count, label = connected_components(graph, connection="strong")
    return label, int(count), graph


def _ties_bounded(votes: Votes) -> bool:
    """Whether nu is finite, given one component. It is if there are no ties, or if wins outnumber ties around some
    circle of the graph.

    Otherwise the log strengths can be shifted so that every winner moves at least 2 above the loser and models that tied
    move at most 2 apart. If these shifts and log nu grow in proportion, no vote becomes less likely, so there is no
    maximum. A circle with more wins than ties makes such shifts impossible.
    """
    from scipy.sparse.csgraph import NegativeCycleError, bellman_ford, connected_components

    wins, ties = votes.matrices()
    if not ties.any() or connected_components(wins > 0, connection="strong")[0] < len(wins):
        return True
    try:
        bellman_ford(np.where(wins > 0, -1.0, (ties > 0).astype(np.float64)), indices=0)
    except NegativeCycleError:
        return True
    return False


def check_finite(votes: Votes, whole: Votes, *, halve: bool, prior: bool) -> None:
    """Raises UsageError unless all ratings and nu are finite. With a `prior` they are, if there is a win; where ties are half
    wins (`halve`) there is no nu.

    The ratings are finite if every model can be reached from every other by wins and ties (Ford 1957, "Solution of a
    ranking problem from binary comparisons", American Mathematical Monthly 64, 28-33).
    """
    if not (votes.outcome != Outcome.TIE).any():
        raise UsageError("every vote is a tie: the models cannot be ranked")
    if prior:
        return
    label, count, graph = _components(votes)
    if count == 1 and (halve or _ties_bounded(votes)):
        return
    if count == 1:
        raise UsageError(
            f"no finite ratings: no win contradicts the other wins, only ties do; more votes are needed{_advice(whole)}"
        )
    # Of the groups without a win or tie into them, or out of them, the smallest gives the clearest message.
    between = graph * (label[:, None] != label[None])
    closed = [
        (int((label == each).sum()), each)
        for each in range(count)
        if not between[label == each].any() or not between[:, label == each].any()
    ]
    size, each = min(closed)
    inside = label == each
    won, lost = between[inside].any(), between[:, inside].any()
    names = [excerpt(votes.models[i], 40) for i in np.flatnonzero(inside)[:NAMED]]
    more = f" and {size - NAMED} more" if size > NAMED else ""
    against = "" if size == 1 else " against the others"
    what = f"never {'lost' if won else 'won'} or tied{against}" if won or lost else "never met the others"
    raise UsageError(
        f"no finite rating for {', '.join(names)}{more} (of {len(votes.models)} models): {what}; "
        f"more votes are needed{_advice(whole)}; --prior 400 ranks them too, with wide intervals"
    )


def _advice(votes: Votes) -> str:
    """The effect of leaving out models with few votes, as the end of a message."""
    for least in _TRIED:
        votes = _enough(votes, least)
        if len(votes.models) < 2:
            break
        if (votes.outcome != Outcome.TIE).any() and _components(votes)[1] == 1 and _ties_bounded(votes):
            return f", or --min-votes {least}, which leaves {len(votes.models)} models and {votes.n} votes"
    return ""

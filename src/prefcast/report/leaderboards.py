"""Leaderboards as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefcast.report.terminal import rendered, short, table

if TYPE_CHECKING:
    from rich.table import Table

    from prefcast.measuring.ranking import Leaderboard
    from prefcast.outcomes.statistics.bootstrap import Figure

__all__ = ["leaderboard_text"]

_SCALES = {
    "davidson": "Elo points of Davidson's model, in which ties have a probability of their own (--scale arena: as Arena's)",
    "arena": "Elo points as on Arena's leaderboard: a tie is half a win of either side",
}
_MODEL, _LEFT_OUT = 60, 20
_COVERED = {
    "covariance": "the intervals of the new models cover the uncertainty of the old ratings",
    "intervals": "the intervals of the new models cover the old ratings' intervals, as if these were independent",
    "none": "the board has no intervals: those of the new models do not cover the uncertainty of the old ratings",
}


def leaderboard_text(board: Leaderboard) -> str:
    """The models, the best first, one per line; after them the leaderboards of categories."""
    parts = _board(board)
    for each in board.categories:
        name = short(each.name, _MODEL)
        parts += ["", f"== {name} =="]
        parts += [f"not ranked: {each.problem}"] if each.board is None else _board(each.board)
    return rendered(*parts)


def _board(board: Leaderboard) -> list[str | Table]:
    # Of votes with forecasts the first line says how many rows have votes.
    unlabelled = 0 if board.together is not None else board.unlabelled
    counts = ((board.failed, "failed"), (unlabelled, "without a vote"), (board.faults, "at fault"))
    left_out = "".join(f", {count} {what}" for count, what in counts if count)
    head, more = ("rank", "range", "model", "rating", "95 % interval", *_columns(board)), list(_rows(board))
    rows = [
        (
            str(standing.rank),
            f"{standing.rank_low}-{standing.rank_high}",
            short(standing.model, _MODEL),
            f"{standing.rating:.0f}",
            f"[{standing.low:.0f}, {standing.high:.0f}]",
            *beside,
        )
        for standing, beside in zip(board.standings, more, strict=True)
    ]
    return [
        _first_line(board) + left_out + _how(board),
        _SCALES[board.scale]
        + ("" if board.prior is None else f"; pulled towards the mean by a prior of {board.prior:g} points"),
        "",
        table(head, rows, right=(0, 3, *range(5, len(head)))),
        *_together(board),
        *_alone(board),
        *_style(board),
        *_added(board),
        *_left_out(board),
    ]


def _columns(board: Leaderboard) -> tuple[str, ...]:
    if board.style is not None:
        return "without control", "change", "interval of the change", "votes"
    counted = "votes" if board.source == "both" else board.source
    return (counted, "win rate", *(("votes alone",) if board.together is not None else ()))


def _rows(board: Leaderboard) -> list[tuple[str, ...]]:
    if board.style is not None:
        return [
            (f"{shift.raw.value:.0f}", f"{shift.change.value:+.0f}", _interval(shift.change, "+.0f"), str(standing.n))
            for standing, shift in zip(board.standings, board.style.shifts, strict=True)
        ]
    counts = [(str(standing.n), f"{standing.win_rate:.1%}") for standing in board.standings]
    if board.together is None:
        return [*counts]
    return [
        (*each, f"{alone.value:.0f} {_interval(alone, '.0f')}")
        for each, alone in zip(counts, board.together.alone, strict=True)
    ]


def _interval(figure: Figure, form: str) -> str:
    return f"[{figure.low:{form}}, {figure.high:{form}}]"


def _first_line(board: Leaderboard) -> str:
    models = len(board.standings)
    if board.together is not None:
        both = board.together
        return f"{board.n:,} votes on {both.voted:,} of {both.rows:,} rows with forecasts, between {models} models"
    return f"{board.n} {board.source} between {models} models"


def _how(board: Leaderboard) -> str:
    if board.together is not None:
        return f"; 95 % intervals over {board.groups} {board.resampled} with votes"
    return f"; 95 % intervals by bootstrap over {board.groups} {board.resampled}"


def _together(board: Leaderboard) -> list[str | Table]:
    lines: list[str | Table] = []
    if board.unused:
        lines.append(
            f"every row has a vote: its {board.unused} forecasts are not used (--from forecasts ranks by them)"
        )
    if board.unmatched:
        lines.append(f"{board.unmatched} rows of the file of votes have ids that no row has")
    if board.together is not None:
        both = board.together
        worth = f"the forecasts count {both.weight:.2f} (lambda, 0 to 1): {both.voted:,} rows with votes give as narrow intervals as "
        lines += [
            "(the intervals hold whatever the forecasts are worth, if the rows with votes are a random sample)",
            worth + f"{both.worth:,} would without forecasts",
        ]
    return ["", *lines] if lines else []


def _alone(board: Leaderboard) -> list[str | Table]:
    if board.source != "forecasts":
        return []
    return [
        "",
        "forecasts, not votes: the intervals cover which prompts, and the forecaster's own error for a whole system, which has a "
        f"standard deviation of {board.system_error or 0.0:.1%} in win minus loss",
    ]


def _style(board: Leaderboard) -> list[str | Table]:
    if board.style is None:
        return []
    slopes = [
        (
            slope.name,
            *(
                ("the answers never differ", "", "")
                if slope.points is None
                else (f"{slope.points.value:+.0f}", _interval(slope.points, "+.0f"), f"{slope.deviation:.2f}")
            ),
        )
        for slope in board.style.slopes
    ]
    return [
        "",
        "style control: ratings as if the answers looked alike; change is what the control changes",
        table(("an answer with more", "points", "95 % interval", "per difference of"), slopes, right=(1, 3)),
        "(an association: what usually comes with such answers, like more detail, counts as style too. A difference is (a - b) / (a + b))",
    ]


def _added(board: Leaderboard) -> list[str | Table]:
    if board.added is None:
        return []
    new = ", ".join(short(model, _MODEL) for model in board.added.models[:_LEFT_OUT])
    more = f" and {len(board.added.models) - _LEFT_OUT} more" if len(board.added.models) > _LEFT_OUT else ""
    ignored = board.added.ignored
    return [
        "",
        f"new: {new}{more}; the other ratings are those of the earlier board"
        + (f" ({ignored} votes between its models are not used)" if ignored else ""),
        _COVERED[board.added.uncertainty],
    ]


def _left_out(board: Leaderboard) -> list[str | Table]:
    if not board.left_out:
        return []
    shown = ", ".join(short(model, _MODEL) for model in board.left_out[:_LEFT_OUT])
    more = f" and {len(board.left_out) - _LEFT_OUT} more" if len(board.left_out) > _LEFT_OUT else ""
    counted = "forecasts" if board.source == "forecasts" else "votes"
    why = f"with fewer than {board.min_votes} {counted}" if board.min_votes else f"without {counted}"
    return ["", f"left out, {why}: {shown}{more}"]

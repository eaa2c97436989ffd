"""Out-of-fold scores: each row is scored by a model that learned from the other folds. `prefcast fit --scores` and ensembles read them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from prefcast.base.files import atomic_file
from prefcast.errors import RunError, shown_path
from prefcast.fitting.fitter import LEAST_LABELS
from prefcast.forecasts.scores import RawScores, open_score_writer
from prefcast.outcomes.models import Davidson
from prefcast.scorers.reward.scorer import RewardScorer
from prefcast.training.reward.loop import Progress
from prefcast.training.reward.network import Trainee
from prefcast.training.reward.processes import Processes
from prefcast.training.reward.rows import deal, split
from prefcast.training.reward.state import State
from prefcast.training.reward.task import Task, trained_task

__all__ = ["OUT_OF_FOLD", "write_out_of_fold"]

Floats = NDArray[np.float64]

OUT_OF_FOLD = "out-of-fold.csv"
_DONE = "scores.json"


def write_out_of_fold(
    task: Task,
    scorer: RewardScorer,
    processes: Processes,
    folds: int,
    *,
    progress: Callable[[Progress], None] | None,
    tell: Callable[[str], None],
) -> None:
    """Train a model for each fold of first prompts and write `out-of-fold.csv`: id, margin and tie in log-odds.

    A fold that is done is not trained again. Each fold's scale and tie level are fitted to rows of its other folds that its model
    did not learn, so that the rows of all folds have one scale. Raises FitError.
    """
    rows, fold = task.rows, deal(task.rows, folds, task.recipe.seed)
    margin, tie = np.full(len(rows), np.nan), np.full(len(rows), np.nan)
    for number in range(folds):
        folder = task.state.folder / "folds" / str(number + 1)
        mine = fold == number
        if not (folder / _DONE).exists():
            tell(f"fold {number + 1} of {folds}")
            others = rows.where(~mine)
            # Of few rows a larger share is held out, so that there are enough for an outcome model.
            share = max(task.recipe.validation, min(0.5, 2 * LEAST_LABELS / max(1, len(others))))
            learned, held = split(replace(others, held=np.zeros(len(others), bool)), share, task.recipe.seed)
            places = np.flatnonzero(~mine)
            state = State(folder / "training")
            if processes.first:
                state.folder.mkdir(parents=True, exist_ok=True)
            processes.wait()
            part = replace(
                task, learned=_mask(places[learned], len(rows)), held=_mask(places[held], len(rows)), state=state
            )
            trainee, _ = trained_task(part, scorer, processes, progress, tell)
            if processes.first or processes.sharded:
                scores = _scored(part, trainee, mine)
            if processes.first:
                _write(folder / _DONE, scores)
                for name in ("state.safetensors", "best.safetensors"):
                    (state.folder / name).unlink(missing_ok=True)
            del trainee
            processes.wait()
        if processes.first:
            margin[mine], tie[mine] = _read(folder / _DONE, int(mine.sum()))
    if processes.first:
        ids = [pair.id for pair in rows.pairs]
        nothing = [None] * len(ids)
        with open_score_writer(task.state.folder.parent / OUT_OF_FOLD, ("margin", "tie")) as writer:
            writer.write(RawScores(ids, {"margin": margin, "tie": tie}, [*nothing], [*nothing], [*nothing]))


def _mask(places: NDArray[np.int64], n: int) -> NDArray[np.bool_]:
    found = np.zeros(n, dtype=bool)
    found[places] = True
    return found


def _scored(task: Task, trainee: Trainee, chosen: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Margin and tie (n,) in log-odds of the chosen rows, by the fold's own outcome model."""
    held = _evidence(task, trainee, np.flatnonzero(task.held))
    outcomes = task.rows.target[task.held].argmax(axis=1)
    model = Davidson.fit(*held, outcomes, task.rows.weight[task.held])
    margin, tie = _evidence(task, trainee, np.flatnonzero(chosen))
    return model.scale * margin, model.level + model.tie_weight * tie


def _evidence(task: Task, trainee: Trainee, places: NDArray[np.int64]) -> tuple[Floats, Floats]:
    trainee.train(False)
    groups = [task.groups[place] for place in places.tolist()]
    margin, tie = np.zeros(len(groups)), np.zeros(len(groups))
    with torch.no_grad():
        for batch in trainee.scorer.planned(groups):
            found = trainee.evidence([groups[row] for row in batch])
            margin[batch], tie[batch] = (each.cpu().numpy() for each in found)
    return margin, tie


def _write(path: Path, scores: tuple[Floats, Floats]) -> None:
    with atomic_file(path) as file:
        file.write(json.dumps([each.tolist() for each in scores]).encode())


def _read(path: Path, n: int) -> Sequence[Floats]:
    try:
        margin, tie = (np.array(each, dtype=np.float64) for each in json.loads(path.read_text(encoding="utf-8")))
        if margin.shape != (n,) or tie.shape != (n,):
            raise ValueError("it is of other rows")
    except (OSError, ValueError, TypeError) as error:
        raise RunError(f"{shown_path(path)}: cannot be read: {error}; remove it to train the fold again") from None
    return margin, tie

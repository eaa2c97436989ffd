"""One training as a task: its rows with their sequences, which of them are learned, and how it is carried out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefcast.scorers.reward.engine import Group
from prefcast.scorers.reward.scorer import RewardScorer
from prefcast.training.reward.likelihood import shares_of_ties
from prefcast.training.reward.loop import Examples, Progress, Trained, train
from prefcast.training.reward.network import Trainee
from prefcast.training.reward.processes import Processes
from prefcast.training.reward.recipe import Recipe, learning_rate, recomputes
from prefcast.training.reward.rows import LabelledRows
from prefcast.training.reward.state import State
from prefcast.training.reward.trackers import tracked

__all__ = ["Say", "Task", "trained_task"]

Say = Callable[[str], None]


@dataclass(frozen=True)
class Task:
    """One training with everything that it needs: the rows with their sequences, and which of them are learned and held out.
    `shared` says for the card what files and teachers share with these rows."""

    rows: LabelledRows
    groups: Sequence[Group]
    learned: NDArray[np.bool_]
    held: NDArray[np.bool_]
    recipe: Recipe
    start: Path
    state: State
    saved_seconds: float
    shared: Mapping[str, Any] = field(default_factory=dict)

    def shares(self) -> list[float]:
        """The share of ties of each source among the rows that are learned."""
        use = self.learned & self.rows.labelled
        return shares_of_ties(self.rows.target[use], self.rows.source[use], len(self.rows.names))

    def examples(self, trainee: Trainee) -> tuple[Examples, Examples]:
        """The rows that are learned and those held out. Strengths are for learning: they do not change what is measured."""
        plain = replace(self.rows, strength=np.full(len(self.rows), np.nan))
        found = []
        for rows, chosen in ((self.rows, self.learned), (plain, self.held)):
            groups = [self.groups[place] for place in np.flatnonzero(chosen).tolist()]
            found.append(Examples(rows.where(chosen), groups, self.recipe, trainee.device))
        return found[0], found[1]


def trained_task(
    task: Task,
    scorer: RewardScorer,
    processes: Processes,
    progress: Callable[[Progress], None] | None,
    tell: Say,
    trackers: Sequence[str] = (),
) -> tuple[Trainee, Trained]:
    """Carry out one training, or the rest of one: the network with its best weights, and how the training ended. `trackers` get its
    curves."""
    recipe, parameters = task.recipe, scorer.checkpoint.parameters
    trainee = Trainee(scorer, recipe, task.shares(), processes.mesh)
    if recomputes(recipe, parameters):
        trainee.recompute()
    rate = learning_rate(recipe, parameters)
    count = sum(parameter.numel() for parameter in trainee.learned.values())
    tell(f"{count:,} of {parameters:,} weights are learned on {processes.device}, at a rate of up to {rate:g}")
    learned, held = task.examples(trainee)
    said = {**recipe.said(), "rate": rate, "rows": len(learned), "held_out": len(held)}
    trained = train(
        trainee,
        learned,
        held,
        task.state,
        processes,
        rate=rate,
        saved_seconds=task.saved_seconds,
        progress=progress,
        tracking=partial(tracked, trackers, task.state.folder.parent, said, warn=tell) if trackers else None,
    )
    return trainee, trained

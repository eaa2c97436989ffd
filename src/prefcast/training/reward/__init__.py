"""Trains reward models on labelled pairs: pointwise or of pairs, with ties as data, by adapters or whole."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from prefcast.errors import MissingExtraError
from prefcast.training.reward.recipe import Recipe

if TYPE_CHECKING:
    from prefcast.training.reward.loop import Progress
    from prefcast.training.reward.run import TrainedReward

__all__ = ["Recipe", "train_reward"]

Path = str | os.PathLike[str]


def train_reward(
    pairs: Any,
    output: Path,
    *,
    base: str,
    recipe: Recipe | None = None,
    validation_pairs: Sequence[Any] = (),
    source: str | None = None,
    votes: Path | None = None,
    weights: Path | None = None,
    strengths: Path | None = None,
    teachers: Sequence[Path] = (),
    teacher_forecasters: Sequence[Path] = (),
    merge: bool = False,
    folds: int | None = None,
    device: str | None = None,
    command: str = "",
    saved_seconds: float = 300.0,
    trackers: Sequence[str] = (),
    shard: bool = False,
    reading: dict[str, Any] | None = None,
    say: Callable[[str], None] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> TrainedReward | None:
    """Train the model `base` (a folder or hub id) on labelled `pairs` (a source that `open_pairs` takes, or a list of several, each a
    source of its own) and write it into the folder `output`.

    That folder is a model (`load_scorer`) and a forecaster (`load_forecaster`) at once: its outcome model is fitted to the pairs held
    out. `source` is a column that names the source of each row; a scale and a tie level are learned for each source. `votes`,
    `weights`, `strengths` and `teachers` are files with an id in each row. `teacher_forecasters` are the folders of the forecasters that made the
    teachers' forecasts; it is told how many of the rows they were fitted on. With `merge` the folder holds a whole model, otherwise an
    adapter. With `folds` one model is trained for each fold before, and `out-of-fold.csv` has the scores of all pairs by models that did
    not learn their prompts. A training that was killed goes on with the same arguments; `saved_seconds` is how often its state is written.
    `trackers` (tensorboard, wandb, mlflow) get the curves too.

    Several processes (torchrun, accelerate launch) train together; those that are not the first get None. With `shard` each of them
    holds a part of the weights. Raises MissingExtraError,
    UsageError, ModelError, FitError, RunError, and the errors of reading files.
    """
    from importlib.util import find_spec

    for module in ("torch", "transformers", "safetensors", "tokenizers", "jinja2", "accelerate"):
        if find_spec(module) is None:
            raise MissingExtraError(module, "train")
    from prefcast.training.reward.rows import Given
    from prefcast.training.reward.run import run

    several = list(pairs) if isinstance(pairs, list | tuple) and not _rows(pairs) else [pairs]
    given = Given(
        pairs=several,
        held=validation_pairs,
        source=source,
        votes=votes,
        weights=weights,
        strengths=strengths,
        teachers=teachers,
        teacher_forecasters=teacher_forecasters,
        reading=reading or {},
    )
    return run(
        given,
        base,
        output,
        recipe or Recipe(),
        merge=merge,
        folds=folds,
        device=device,
        command=command,
        saved_seconds=saved_seconds,
        trackers=trackers,
        shard=shard,
        say=say,
        progress=progress,
    )


def _rows(pairs: Sequence[Any]) -> bool:
    """Whether a list holds rows or pairs, not paths and tables."""
    from collections.abc import Mapping

    from prefcast.pairs import Pair

    return bool(pairs) and isinstance(pairs[0], Mapping | Pair)

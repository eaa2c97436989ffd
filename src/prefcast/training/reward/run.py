"""A whole training: from files of pairs and a base model to a folder with a trained reward model and its forecaster."""

from __future__ import annotations

import gc
import os
import platform
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from prefcast.errors import RowError, UsageError, shown_path
from prefcast.fitting import fit
from prefcast.forecasts.fitted_rows import FittedRows
from prefcast.forecasts.folder import CARD as FORECASTER
from prefcast.forecasts.forecaster import Forecaster, load_forecaster
from prefcast.pairs.budget import WHOLE
from prefcast.runs.ready import NOT_KEPT
from prefcast.scorers.base import read_pair
from prefcast.scorers.reward import Options
from prefcast.scorers.reward.devices import parse_devices
from prefcast.scorers.reward.engine import Group, free_memory
from prefcast.scorers.reward.scorer import RewardScorer
from prefcast.training.leaks import leak_lines
from prefcast.training.reward.folds import write_out_of_fold
from prefcast.training.reward.loop import CURVES, Progress, Trained, plain
from prefcast.training.reward.network import Trainee
from prefcast.training.reward.processes import Processes, check_shard, joined
from prefcast.training.reward.product import write_card, write_model
from prefcast.training.reward.recipe import Recipe
from prefcast.training.reward.rows import Given, LabelledRows, read_rows, split
from prefcast.training.reward.start import MADE_BASE, make_start, opened_start
from prefcast.training.reward.state import State
from prefcast.training.reward.task import Say, Task, trained_task
from prefcast.training.reward.teachers import learned_before, lines_of
from prefcast.training.reward.trackers import check_trackers
from prefcast.training.shared import plain_figure, versions
from prefcast.training.splits import said_of

__all__ = ["TrainedReward", "run"]

_WORK, _START = "training", "start"
_PACKAGES = ("prefcast", "torch", "transformers", "safetensors", "tokenizers")


@dataclass(frozen=True)
class TrainedReward:
    """A trained reward model in `folder`: its forecaster with the card, and what could not be used of the data."""

    folder: Path
    forecaster: Forecaster
    failed: int = 0
    unlabelled: int = 0
    first_error: RowError | None = None

    def to_dict(self) -> dict[str, Any]:
        return dict(self.forecaster.card)


def run(
    given: Given,
    base: str,
    output: str | os.PathLike[str],
    recipe: Recipe,
    *,
    merge: bool = False,
    folds: int | None = None,
    device: str | None = None,
    command: str = "",
    saved_seconds: float = 300.0,
    trackers: Sequence[str] = (),
    shard: bool = False,
    say: Say | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> TrainedReward | None:
    """See `prefcast.training.reward.train_reward`. Returns None in a process that is not the first."""
    if folds is not None and folds < 2:
        raise UsageError(f"--folds is {folds}; it must be at least 2")
    check_trackers(trackers)
    if shard:
        check_shard(recipe)
    state = State(Path(output) / _WORK)
    try:
        rows = read_rows(given)
        settings = {"base": base, "merge": merge, "folds": folds, "data": rows.sha256(), **recipe.said()}
        with joined(device, shard) as processes:
            # Only the first process speaks.
            tell: Say = say if say is not None and processes.first else _silent
            show = progress if processes.first else None
            done = _claimed(state, settings) if processes.first else None
            if processes.any(done is not None):
                tell(f"{shown_path(output)} is trained already")
                return None if done is None else TrainedReward(Path(output), done)
            if processes.first and not (state.folder / _START).exists():
                for line in _started(base, state.folder, recipe):
                    tell(line)
            processes.wait()
            scorer = opened_start(state.folder / _START, recipe, processes.device)
            if processes.first:
                state.claim_base(scorer.checkpoint.fingerprint())
            task = _task(rows, scorer, state, recipe, saved_seconds, given.teacher_forecasters, tell)
            if folds is not None:
                write_out_of_fold(task, scorer, processes, folds, progress=show, tell=tell)
            began = time.monotonic()
            trainee, trained = trained_task(task, scorer, processes, show, tell, trackers)
            seconds = time.monotonic() - began
            if not processes.first:
                del trainee, scorer
                gc.collect()
                free_memory()
            # From here on the first process may use the memory of the others.
            processes.wait()
        if not processes.first:
            return None
        how = {"command": command, "processes": processes.count, "sharded": shard, "device": processes.device}
        training = {**_card(base, task, trainee, trained), **how, "seconds": round(seconds, 1)}
        whole = merge or (state.folder / MADE_BASE).exists()
        write_model(trainee, task.start, Path(output), recipe, merge=whole, weights=state.best())
        most = scorer.max_tokens
        del trainee, scorer
        gc.collect()
        free_memory()
        tell("fitting the outcome model to the pairs held out")
        return _finished(task, training, _fitted(task, given, most, processes))
    finally:
        state.release()


def _silent(text: str) -> None:
    """Say nothing."""


def _task(
    rows: LabelledRows,
    scorer: RewardScorer,
    state: State,
    recipe: Recipe,
    saved_seconds: float,
    teacher_forecasters: Sequence[str | os.PathLike[str]],
    tell: Say,
) -> Task:
    """The rows that the model can read, and which of them are learned and held out. Tells what leaks."""
    for line in (*leak_lines(rows.leaks), *rows.notes):
        tell(line)
    rows, groups = _readable(rows, scorer)
    learned, held = split(rows, recipe.validation, recipe.seed)
    rows = rows.taught_from(learned)
    left = int((~learned & ~held).sum())
    tell(said_of(int(learned.sum()), int(held.sum()), left, "held out for validation"))
    known = learned_before(teacher_forecasters, rows.pairs, learned, held)
    if rows.taught.any():
        count, out = (int((rows.taught & each).sum()) for each in (learned, held))
        tell(
            f"teachers forecast {count:,} of the pairs to learn from; their forecasts of {out:,} held out are not used"
        )
    for line in lines_of(known):
        tell(line)
    shared = {"leaks": [each.to_dict() for each in rows.leaks], "left_out": left, "teacher_forecasters": known}
    return Task(rows, groups, learned, held, recipe, state.folder / _START, state, saved_seconds, shared)


def _finished(task: Task, training: dict[str, Any], fitted: Forecaster) -> TrainedReward:
    """Write the card and the forecaster beside the model, and remove what only the training needed."""
    work, folder, rows = task.state.folder, task.state.folder.parent, task.rows
    card = {**fitted.card, "training": training}
    write_card(folder, card)
    used = [pair for pair, use in zip(rows.pairs, task.learned | task.held, strict=True) if use]
    replace(fitted, card=card, fitted_rows=FittedRows.of(used)).write_beside(folder)
    found = load_forecaster(folder)
    for name in ("state.safetensors", "best.safetensors"):
        (work / name).unlink(missing_ok=True)
    for name in (_START, MADE_BASE, "folds"):
        shutil.rmtree(work / name, ignore_errors=True)
    return TrainedReward(folder, found, rows.failed, rows.unlabelled, rows.first_error)


def _claimed(state: State, settings: dict[str, Any]) -> Forecaster | None:
    """Take the folder for this training; the forecaster of one that is done already. Raises UsageError."""
    folder = state.folder.parent
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{shown_path(folder)}: is a file; name a folder")
    if there and _WORK not in there:
        raise UsageError(f"{shown_path(folder)}: holds other things than a training; choose another folder")
    try:
        state.claim(settings)
    except OSError as error:
        raise UsageError(f"{shown_path(folder)}: cannot be written: {error.strerror or error}") from None
    return load_forecaster(folder) if FORECASTER in there else None


def _started(base: str, work: Path, recipe: Recipe) -> list[str]:
    """Make the folder that the training starts from, whole or not at all."""
    part = work / f"{_START}.part"
    shutil.rmtree(part, ignore_errors=True)
    said = make_start(base, part, recipe)
    part.rename(work / _START)
    return said


def _readable(rows: LabelledRows, scorer: RewardScorer) -> tuple[LabelledRows, list[Group]]:
    """The rows whose sequences the model can read, cut as they are cut when they are scored, and those sequences."""
    read = [read_pair(pair, WHOLE, scorer)[0] for pair in rows.pairs]
    groups, problems = scorer.grouped(read)
    if not problems:
        return rows, [groups[place] for place in range(len(rows))]
    place, problem = next(iter(problems.items()))
    first = rows.first_error or RowError("train", rows.pairs[place].row or place + 1, "", problem, rows.pairs[place].id)
    kept = np.array(sorted(groups))
    rest = replace(rows.where(kept), failed=rows.failed + len(problems), first_error=first)
    return rest, [groups[place] for place in kept.tolist()]


def _fitted(task: Task, given: Given, most: int, processes: Processes) -> Forecaster:
    """The forecaster of the model as it lies in its folder: the outcome model is fitted to the rows held out.

    A model that was sharded is spread over all GPUs of this machine.
    """
    every = processes.sharded and processes.device.startswith("cuda")
    devices = tuple(map(str, parse_devices("auto"))) if every else (processes.device,)
    recipe, folder = task.recipe, task.state.folder.parent
    options = Options(
        dtype=recipe.dtype,
        quantize=recipe.quantize,
        devices=devices,
        spread=len(devices) > 1,
        max_tokens=most,
        batch_tokens=recipe.batch_tokens,
    )
    found = fit(
        task.rows.where(task.held).pairs,
        model=str(folder.resolve()),
        votes=given.votes,
        weights=given.weights,
        options=options,
        running=NOT_KEPT,
        seed=recipe.seed,
    )
    figures = {
        "n": found.fit.rows,
        "prompts": found.fit.groups,
        "log_loss": plain_figure(found.fit.log_loss),
        "gain": plain_figure(found.fit.gain),
    }
    return replace(found.forecaster, card={**found.forecaster.card, "figures": figures})


def _card(base: str, task: Task, trainee: Trainee, trained: Trained) -> dict[str, Any]:
    rows, link = task.rows, trainee.link.figures()
    learned = np.bincount(rows.source[task.learned], minlength=len(rows.names))
    recipe = task.recipe
    what = (
        "all weights" if recipe.lora is None else f"adapters of rank {recipe.lora} on every linear layer, and the head"
    )
    return {
        "base": base,
        "base_sha256": trainee.scorer.checkpoint.fingerprint(),
        "recipe": recipe.said(),
        "learned": what,
        "rows": int(task.learned.sum()),
        "held_out": int(task.held.sum()),
        "data_sha256": rows.sha256(),
        **task.shared,
        "sources": [
            {
                "name": name,
                "rows": int(learned[index]),
                "ties": round(task.shares()[index], 4),
                "scale": round(link["scale"][index], 4),
                "level": round(link["level"][index], 4),
            }
            for index, name in enumerate(rows.names)
        ],
        **{key: value for key, value in plain(trained).items() if key != "best"},
        "validation": trained.reached.best,
        "tokens_per_second": round(trained.tokens_per_second, 1),
        "memory_bytes": trained.memory,
        "curves": CURVES,
        "versions": {**versions(*_PACKAGES), "python": platform.python_version()},
    }

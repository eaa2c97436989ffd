"""The curves of a training in trackers, beside `curves.jsonl`: TensorBoard, Weights & Biases, MLflow.

A tracker that fails is left out from then on, with one warning: it never ends the training.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from prefcast.base.files import atomic_file
from prefcast.errors import UsageError, excerpt, printable
from prefcast.runs.stopping import Interrupted

__all__ = ["TRACKERS", "check_trackers", "tracked"]

_PROJECT = "prefcast"
# The runs that a training began with the trackers, so that it goes on in them after a kill.
_RUNS = "trackers.json"

Note = Callable[[Mapping[str, Any]], None]


class _Tracker(Protocol):
    def log(self, values: Mapping[str, float], step: int) -> None: ...

    def end(self, status: str) -> None: ...


class _Run:
    """What a tracker is told of a training: its folder and settings, the first step of this call, and the run that it began with
    the tracker before, if any."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], step: int) -> None:
        self.folder, self.settings, self.step = folder, settings, step
        self._path = folder / "training" / _RUNS

    def known(self, tracker: str) -> str | None:
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))[tracker]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return str(found)

    def keep(self, tracker: str, run: str) -> None:
        others = {name: found for name in TRACKERS if name != tracker and (found := self.known(name)) is not None}
        with atomic_file(self._path) as file:
            file.write(json.dumps({**others, tracker: run}).encode())


class _TensorBoard:
    def __init__(self, run: _Run) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # What was logged after the last state is logged again.
        self._writer: Any = SummaryWriter(str(run.folder / "tensorboard"), purge_step=run.step)

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def end(self, status: str) -> None:
        self._writer.close()


class _WandB:
    def __init__(self, run: _Run) -> None:
        import wandb

        if (id := run.known("wandb")) is None:
            id = secrets.token_hex(8)
            run.keep("wandb", id)
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or _PROJECT,
            name=run.folder.resolve().name,
            id=id,
            resume="allow",
            dir=os.environ.get("WANDB_DIR") or str(run.folder),
            config=dict(run.settings),
        )

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def end(self, status: str) -> None:
        self._run.finish(exit_code=int(status != "FINISHED"))


class _MLflow:
    def __init__(self, run: _Run) -> None:
        import mlflow

        self._mlflow: Any = mlflow
        # A run that the caller began is used, and is the caller's to end.
        self._own = mlflow.active_run() is None
        if not self._own:
            return
        if not any(
            os.environ.get(name) for name in ("MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID", "MLFLOW_RUN_ID")
        ):
            mlflow.set_experiment(_PROJECT)
        known = run.known("mlflow")
        begun = mlflow.start_run(run_id=known, run_name=run.folder.resolve().name)
        if known is None:
            run.keep("mlflow", begun.info.run_id)
            mlflow.log_params(dict(run.settings))

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._mlflow.log_metrics(dict(values), step=step)

    def end(self, status: str) -> None:
        if self._own:
            self._mlflow.end_run(status)


_KINDS: dict[str, Callable[[_Run], _Tracker]] = {"tensorboard": _TensorBoard, "wandb": _WandB, "mlflow": _MLflow}
TRACKERS = tuple(_KINDS)


def check_trackers(names: Sequence[str]) -> None:
    """Raise UsageError for a tracker that does not exist or is not installed."""
    for name in names:
        if name not in _KINDS:
            raise UsageError(f"--log-to is {excerpt(name)}; there are {', '.join(TRACKERS)}")
        # A folder of that name, as W&B makes one for its logs, is no package.
        if (spec := find_spec(name)) is None or spec.origin is None:
            raise UsageError(f"--log-to {name}: {name} is not installed: pip install {name}")


@contextmanager
def tracked(
    names: Sequence[str], folder: Path, settings: Mapping[str, Any], step: int, warn: Callable[[str], None]
) -> Iterator[Note]:
    """Takes the lines of `curves.jsonl` and gives them to the trackers `names`. `folder` is that of the trained model, `step` the
    first step of this call. `warn` is told of a tracker that fails."""
    run = _Run(folder, settings, step)
    open_: dict[str, _Tracker] = {}

    def tried(name: str, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:
            open_.pop(name, None)
            warn(
                f"--log-to {name} failed and is left out from here on: {printable(f'{type(error).__name__}: {error}')[:300]}"
            )

    def begin(name: str) -> None:
        open_[name] = _KINDS[name](run)

    def note(line: Mapping[str, Any]) -> None:
        values = _numbers(line)
        for name, tracker in list(open_.items()):
            tried(name, partial(tracker.log, values, int(line["step"])))

    for name in dict.fromkeys(names):
        tried(name, partial(begin, name))
    status = "FAILED"
    try:
        yield note
        status = "FINISHED"
    except Interrupted:
        status = "KILLED"
        raise
    finally:
        for name, tracker in list(open_.items()):
            tried(name, partial(tracker.end, status))


def _numbers(line: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line by name; of a list, each by its place."""
    found: dict[str, float] = {}
    for name, value in line.items():
        if isinstance(value, list):
            found |= {f"{name}/{place}": float(each) for place, each in enumerate(value)}
        elif name != "step":
            found[name] = float(value)
    return found

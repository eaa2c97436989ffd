"""The curves of a training in TensorBoard, W&B and MLflow: fakes of the last two, the real first where it is installed."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from planted import BASES, write_planted
from prefcast import Recipe, train_reward
from prefcast.errors import UsageError
from prefcast.runs.stopping import Interrupted
from prefcast.training.reward.trackers import TRACKERS, check_trackers, tracked

# The parts of the two APIs that are used, with their argument names; they note what they are told.
WANDB = """
told = []
class Run:
    def log(self, data, step=None, commit=None):
        told.append(("log", step, data))
        if step == 3 and "fails" in data: raise RuntimeError("no\\nnetwork")
    def finish(self, exit_code=None, quiet=None): told.append(("finish", exit_code))
def init(entity=None, project=None, dir=None, id=None, name=None, config=None, mode=None, resume=None, settings=None):
    told.append(("init", project, dir, id, name, dict(config), resume))
    return Run()
"""
MLFLOW = """
from types import SimpleNamespace
told, active = [], []
def active_run(): return active[-1] if active else None
def set_experiment(experiment_name=None, experiment_id=None): told.append(("experiment", experiment_name))
def start_run(run_id=None, experiment_id=None, run_name=None, nested=False):
    told.append(("start", run_id, run_name))
    active.append(SimpleNamespace(info=SimpleNamespace(run_id=run_id or "run-1")))
    return active[-1]
def log_params(params, synchronous=None, run_id=None): told.append(("params", dict(params)))
def log_metrics(metrics, step=None, synchronous=None, run_id=None): told.append(("metrics", step, metrics))
def end_run(status="FINISHED"):
    told.append(("end", status))
    active.pop()
"""


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    folder = tmp_path / "packages"
    folder.mkdir()
    for name, text in (("wandb", WANDB), ("mlflow", MLFLOW)):
        (folder / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
        for variable in (
            "WANDB_PROJECT",
            "WANDB_DIR",
            "MLFLOW_EXPERIMENT_NAME",
            "MLFLOW_EXPERIMENT_ID",
            "MLFLOW_RUN_ID",
        ):
            monkeypatch.delenv(variable, raising=False)
    monkeypatch.syspath_prepend(folder)
    import mlflow
    import wandb

    yield {"wandb": wandb.told, "mlflow": mlflow.told}
    for name in ("wandb", "mlflow"):
        sys.modules.pop(name, None)


def one(folder: Path, step: int, *lines: dict[str, Any], error: BaseException | None = None) -> list[str]:
    warned: list[str] = []
    (folder / "training").mkdir(parents=True, exist_ok=True)
    with tracked(("wandb", "mlflow"), folder, {"batch": 32, "lora": None}, step, warned.append) as note:
        for line in lines:
            note(line)
        if error is not None:
            raise error
    return warned


def test_a_training_logs_its_curves_and_goes_on_in_the_same_runs(tmp_path: Path, fakes: dict[str, Any]) -> None:
    out = tmp_path / "my-model"
    lines = {"step": 1, "loss": 0.5}, {"step": 1, "validation": 0.9, "scale": [1.0, 2.0]}
    assert one(out, 1, *lines) == []
    (_, project, folder, run, name, config, resume), *logged, finished = fakes["wandb"]
    assert (project, folder, name, resume) == ("prefcast", str(out), "my-model", "allow")
    assert config == {"batch": 32, "lora": None}
    expected = [(1, {"loss": 0.5}), (1, {"validation": 0.9, "scale/0": 1.0, "scale/1": 2.0})]
    assert [each[1:] for each in logged] == expected
    assert finished == ("finish", 0)
    assert [each[0] for each in fakes["mlflow"]] == ["experiment", "start", "params", "metrics", "metrics", "end"]
    assert [each[1:] for each in fakes["mlflow"] if each[0] == "metrics"] == expected
    assert fakes["mlflow"][-1] == ("end", "FINISHED")
    for told in fakes.values():
        told.clear()
    with pytest.raises(Interrupted):
        one(out, 2, {"step": 2, "loss": 0.4}, error=Interrupted(15))
    assert fakes["wandb"][0][3] == run
    assert fakes["wandb"][-1] == ("finish", 1)
    assert fakes["mlflow"][0] == ("experiment", "prefcast")
    assert fakes["mlflow"][1] == ("start", "run-1", "my-model")
    assert [each[0] for each in fakes["mlflow"]][2:] == ["metrics", "end"]
    assert fakes["mlflow"][-1] == ("end", "KILLED")


def test_a_tracker_that_fails_is_left_out_with_one_line(tmp_path: Path, fakes: dict[str, Any]) -> None:
    lines = [{"step": step, "fails": 1.0} for step in range(1, 6)]
    (warned,) = one(tmp_path / "out", 1, *lines)
    assert warned == "--log-to wandb failed and is left out from here on: RuntimeError: no network"
    assert [each[0] for each in fakes["wandb"]] == ["init", "log", "log", "log"]
    assert len([each for each in fakes["mlflow"] if each[0] == "metrics"]) == 5
    sys.modules["wandb"] = None  # type: ignore[assignment]
    (warned,) = one(tmp_path / "other", 1, *lines)
    assert warned.startswith("--log-to wandb failed and is left out from here on: ModuleNotFoundError")


def test_a_run_that_the_caller_began_is_used_and_not_ended(tmp_path: Path, fakes: dict[str, Any]) -> None:
    import mlflow

    mlflow.start_run()
    fakes["mlflow"].clear()
    one(tmp_path / "out", 1, {"step": 1, "loss": 0.5})
    assert fakes["mlflow"] == [("metrics", 1, {"loss": 0.5})]


@pytest.mark.filterwarnings("ignore")
def test_tensorboard_reads_what_was_logged(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for step, loss in ((1, 0.5), (2, 0.25)):
        with tracked(("tensorboard",), tmp_path, {}, step, pytest.fail) as note:
            note({"step": step, "loss": loss})
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert [(each.step, each.value) for each in found.Scalars("loss")] == [(1, 0.5), (2, 0.25)]


def test_a_tracker_that_is_not_there_is_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="--log-to is 'x'; there are tensorboard, wandb, mlflow"):
        check_trackers(["x"])
    # W&B makes a folder of its own name where it is called.
    for name in TRACKERS:
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    missing = [name for name in TRACKERS if (spec := find_spec(name)) is None or spec.origin is None]
    for name in missing:
        with pytest.raises(UsageError, match=f"--log-to {name}: {name} is not installed: pip install {name}"):
            train_reward(tmp_path / "none.csv", tmp_path / "out", base="none", trackers=[name])


def test_what_trackers_get_is_what_is_in_the_curves(tmp_path: Path, fakes: dict[str, Any]) -> None:
    pairs, base = write_planted(tmp_path / "p.jsonl", 160), BASES["llama"](tmp_path / "base")
    recipe = Recipe(epochs=1, batch=64, lora=4, evaluations=1)
    train_reward(pairs, tmp_path / "out", base=str(base), recipe=recipe, trackers=["wandb"], folds=2)
    curves = [json.loads(line) for line in (tmp_path / "out" / "curves.jsonl").read_text().splitlines()]
    logged = [each for each in fakes["wandb"] if each[0] == "log"]
    assert [step for _, step, _ in logged] == [line["step"] for line in curves]
    assert [each["loss"] for _, _, each in logged if "loss" in each] == [
        line["loss"] for line in curves if "loss" in line
    ]
    config = fakes["wandb"][0][5]
    assert (config["batch"], config["rows"], config["held_out"]) == (64, 136, 24)
    # The folds are not logged.
    assert [each[0] for each in fakes["wandb"]].count("init") == 1

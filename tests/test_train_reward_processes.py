"""Trainings in processes of their own: killed for good, and two that train together. The planted task, against its best log loss."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import PREFCAST, wait_for
from planted import BASES, best_log_loss, planted, write_planted
from prefcast import Recipe, load_forecaster, load_scorer, read_pairs, train_reward

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planted")
    write_planted(folder / "p.jsonl", 200)
    BASES["llama"](folder / "base")
    return folder


def call(
    made: Path, out: Path, *more: str, base: Path | None = None, lora: str = "4", rate: float = 0.005
) -> list[str]:
    data, settings = str(made / "p.jsonl"), ["--lora", lora, "--rate", str(rate), "--base", str(base or made / "base")]
    settings += ["--batch", "16", "--epochs", "2", "--save-minutes", "0"]
    return [*PREFCAST, "train", "reward", data, "-o", str(out), *settings, *more]


def lines(folder: Path) -> list[dict[str, Any]]:
    """The whole lines of the curves; the last one may be under way."""
    path = folder / "curves.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]


def run(command: list[str], **env: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **env})
    assert done.returncode == 0, done.stderr


def values(folder: Path, name: str) -> list[float]:
    return [line[name] for line in lines(folder) if name in line]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_training_that_was_killed_goes_on_as_if_it_had_not(tmp_path: Path, made: Path, number: int) -> None:
    run(call(made, tmp_path / "whole"))
    process = subprocess.Popen(call(made, tmp_path / "cut"), stderr=subprocess.PIPE, text=True)
    wait_for(lambda: len(values(tmp_path / "cut", "loss")) >= 5, process)
    process.send_signal(number)
    process.communicate()
    assert process.returncode in (-number, 128 + number)
    assert not (tmp_path / "cut" / "forecaster.json").exists()
    run(call(made, tmp_path / "cut"))
    for name in ("loss", "validation"):
        assert values(tmp_path / "cut", name) == pytest.approx(values(tmp_path / "whole", name), abs=1e-4)
    assert len(values(tmp_path / "whole", "loss")) == 22


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def launched(command: list[str]) -> list[str]:
    """The command in two processes."""
    port = str(free_port())
    return [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", port, *command[1:]]


@pytest.mark.parametrize("kind", ["pointwise", "pair"])
def test_two_processes_train_as_one(tmp_path: Path, made: Path, kind: str) -> None:
    run(call(made, tmp_path / "one", "--kind", kind, "--device", "cpu"))
    program = call(made, tmp_path / "two", "--kind", kind, "--device", "cpu")
    run(launched(program), OMP_NUM_THREADS="1")
    for name in ("loss", "validation"):
        one, two = values(tmp_path / "one", name), values(tmp_path / "two", name)
        assert len(one) > 2
        assert one == pytest.approx(two, abs=1e-3)
    assert json.loads((tmp_path / "two" / "forecaster.json").read_text())["card"]["training"]["processes"] == 2


SHARDED = {
    "adapters, pairs": ("two layers", "4", ["--kind", "pair"]),
    "all weights": ("two layers", "none", ["--decay", "0.01", "--recompute", "on"]),
    "all weights, small batches": ("internlm2", "none", ["--batch-tokens", "200"]),
}


@pytest.mark.parametrize("case", SHARDED)
def test_processes_that_share_out_the_weights_train_as_one(tmp_path: Path, made: Path, case: str) -> None:
    family, lora, more = SHARDED[case]
    base, rate = BASES[family](tmp_path / "base"), 0.005 if lora != "none" else 0.002
    settings = {"base": base, "lora": lora, "rate": rate}
    run(call(made, tmp_path / "one", "--device", "cpu", *more, **settings))
    sharded = call(made, tmp_path / "two", "--device", "cpu", "--shard", *more, **settings)
    process = subprocess.Popen(
        launched(sharded), stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    wait_for(lambda: len(values(tmp_path / "two", "loss")) >= 5, process)
    process.terminate()
    process.communicate()
    assert process.returncode != 0
    assert not (tmp_path / "two" / "forecaster.json").exists()
    assert (tmp_path / "two" / "training" / "state.safetensors").exists()
    run(launched(sharded), OMP_NUM_THREADS="1")
    for name in ("loss", "validation", "gradient"):
        one, two = values(tmp_path / "one", name), values(tmp_path / "two", name)
        assert len(one) > 2
        assert one == pytest.approx(two, abs=1e-3)
    training = json.loads((tmp_path / "two" / "forecaster.json").read_text())["card"]["training"]
    assert (training["processes"], training["sharded"]) == (2, True)
    rows = list(read_pairs(made / "p.jsonl"))
    one, two = (load_scorer(tmp_path / name).evidence(rows).margin for name in ("one", "two"))
    assert np.abs(one).max() > 0.01
    assert np.abs(one - two).max() < 1e-5 * max(1, np.abs(one).max())


@pytest.mark.parametrize("kind", ["pointwise", "pair"])
def test_the_planted_task_is_learned_within_a_little_of_the_best(tmp_path: Path, kind: str) -> None:
    base = BASES["two layers"](tmp_path / "base")
    pairs, test = write_planted(tmp_path / "p.jsonl", 2000, seed=3), write_planted(tmp_path / "t.jsonl", 500, seed=4)
    recipe = Recipe(kind=kind, lora=None, rate=2e-3, epochs=5, patience=100)
    train_reward(pairs, tmp_path / "out", base=str(base), recipe=recipe)
    truth = planted(500, seed=4)[1]
    p = load_forecaster(tmp_path / "out").forecast(read_pairs(test)).probabilities
    assert float(-(truth * np.log(p)).sum(axis=1).mean()) < best_log_loss(truth) + 0.03

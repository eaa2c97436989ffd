"""The script that checks a machine with a GPU runs through on a CPU."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT

SCRIPT = ROOT / "tools" / "check_gpu.py"


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = subprocess.run([sys.executable, SCRIPT], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "check-gpu: torch finds no CUDA device here; --device cpu runs the same checks on the CPU\n"


@pytest.fixture
def check_gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script as a module. What it changes on import for its own processes is put back."""
    for name in ("PYTHONPATH", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    monkeypatch.setattr(sys, "path", [str(SCRIPT.parent), *sys.path])
    import check_gpu

    return check_gpu


@pytest.mark.long
def test_a_training_whose_loss_falls_passes_and_leaves_no_files(tmp_path: Path, check_gpu: Any) -> None:
    import torch

    report = check_gpu.Report()
    check_gpu.training(report, tmp_path, torch.device("cpu"), check_gpu.Clock(time.monotonic() + 1000))
    [(name, passed, found)] = report.checks
    assert name == "training 50 steps of adapters, InternLM2 with the shape tiny"
    assert passed, found
    assert "tokens a second" in found
    assert not list(tmp_path.iterdir())


def test_a_training_stops_when_the_time_is_up(tmp_path: Path, check_gpu: Any) -> None:
    import torch

    class Short:
        seconds: Iterator[float] = iter([200.0, 100.0, 59.0])

        def left(self) -> float:
            return next(self.seconds)

    report = check_gpu.Report()
    check_gpu.training(report, tmp_path, torch.device("cpu"), Short())
    assert not report.checks
    assert "no time was left after 2 steps" in report.untested[0]
    assert not list(tmp_path.iterdir())


@pytest.mark.long
def test_it_runs_through_on_a_cpu(tmp_path: Path) -> None:
    command = [sys.executable, SCRIPT, "--device", "cpu", "--minutes", "30"]
    (tmp_path / "rooms").mkdir()
    env = os.environ | {"TMPDIR": str(tmp_path / "rooms")}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    # Only the report is left.
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["gpu-report.md", "rooms"]
    report = (tmp_path / "gpu-report.md").read_text()
    assert "two replicas on one device | passed" in report
    assert "training 50 steps of adapters, InternLM2 with the shape tiny | passed" in report
    assert "no time was left" not in report
    # What a CPU cannot show is told.
    assert "- a batch that does not fit the memory is halved: a CPU has no such limit" in report
    assert "- two devices: there is no GPU" in report

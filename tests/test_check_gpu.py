"""The script that checks a machine with a GPU runs through on a CPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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


@pytest.mark.long
def test_it_runs_through_on_a_cpu(tmp_path: Path) -> None:
    command = [sys.executable, SCRIPT, "--device", "cpu", "--minutes", "30"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    report = (tmp_path / "gpu-report.md").read_text()
    assert "two replicas on one device | passed" in report
    assert "no time was left" not in report
    # What a CPU cannot show is told.
    assert "- a batch that does not fit the memory is halved: a CPU has no such limit" in report
    assert "- two devices: there is no GPU" in report

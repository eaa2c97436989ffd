"""Processes of `prefcast`, and what each of them used: seconds, CPU seconds and memory. The other scripts import this one."""

from __future__ import annotations

import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

__all__ = ["Used", "machine", "median", "prefcast", "run"]


@dataclass(frozen=True)
class Used:
    """What a process and its own child processes used: wall-clock seconds, CPU seconds, and the peak memory in MB."""

    seconds: float
    cpu: float
    memory: float


def prefcast(*arguments: str | Path | int) -> list[str]:
    """The command of a `prefcast` process with this Python."""
    return [sys.executable, "-m", "prefcast.cli", *map(str, arguments)]


def run(command: Sequence[str], environment: Mapping[str, str] | None = None, folder: Path | None = None) -> Used:
    """Run a command to its end in `folder`. A command that fails ends the benchmark with the command's last words.

    Linux counts the memory of this process as its child's, so a script that prints memory must be small itself.
    """
    with tempfile.TemporaryFile() as said:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said, env=environment, cwd=folder)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            words = said.read().decode(errors="replace").strip()[-500:]
            raise SystemExit(f"{shlex.join(command)} ended with status {process.returncode}: {words}")
    # Kilobytes, on macOS bytes.
    memory = usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return Used(seconds, usage.ru_utime + usage.ru_stime, memory)


def median(runs: Sequence[Used]) -> Used:
    """The median of each figure."""
    return Used(*(statistics.median(column) for column in zip(*map(astuple, runs), strict=True)))


def machine() -> str:
    """The machine in one line: system, processor, Python, load."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (
        f"{platform.platform()}, {_processor()}, {count} processors, Python {platform.python_version()}, "
        f"load {os.getloadavg()[0]:.1f}"
    )


def _processor() -> str:
    facts = Path("/proc/cpuinfo")
    if facts.exists():
        for line in facts.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or "unknown processor"

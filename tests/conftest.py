"""What the tests share: making files of pairs, and running the program as a person would."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any

import pytest
from hypothesis import settings

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = [
    "EXAMPLES",
    "PEAK",
    "PREFCAST",
    "ROOT",
    "SURFACE",
    "Run",
    "Start",
    "kaggle_row",
    "labelled",
    "said_by",
    "wait_for",
    "write_csv",
    "write_jsonl",
    "writes",
    "zstd",
]

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples" / "pairs.csv"
PREFCAST = (sys.executable, "-m", "prefcast.cli")
# A model that starts in no time, for tests of anything but the forecasts of the default one.
SURFACE = ("--model", "surface")

# The networks here are tiny: more threads only wait for each other, and for the other test process.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Deadlines measure the machine, not the code. `make test-long` asks for the second by --hypothesis-profile.
settings.register_profile("quick", deadline=None, max_examples=30)
settings.register_profile("long", deadline=None, max_examples=1_000)
settings.load_profile("quick")

Rows = Sequence[dict[str, Any]]


def write_csv(path: Path, rows: Rows, columns: Sequence[str] | None = None) -> Path:
    """Rows as CSV; cells that are not text are written as JSON text."""
    names = list(columns or rows[0])
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        for row in rows:
            cells = (row.get(name, "") for name in names)
            writer.writerow([cell if isinstance(cell, str | int) else json.dumps(cell) for cell in cells])
    return path


def write_jsonl(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def kaggle_row(
    id: Any = 1, prompt: Any = ("Why?",), a: Any = ("Because.",), b: Any = ("So.",), **more: Any
) -> dict[str, Any]:
    """A row in the Kaggle shape, its texts as lists."""
    texts = {"prompt": prompt, "response_a": a, "response_b": b}
    return {"id": id, **{name: list(text) if isinstance(text, tuple) else text for name, text in texts.items()}, **more}


def labelled(outcome: int, **row: Any) -> dict[str, Any]:
    """A Kaggle row with its label: 0 (A), 1 (B), 2 (tie)."""
    names = ("winner_model_a", "winner_model_b", "winner_tie")
    return kaggle_row(**row) | {name: int(index == outcome) for index, name in enumerate(names)}


Run = Callable[..., subprocess.CompletedProcess[str]]
Start = Callable[..., subprocess.Popen[str]]

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(scope="session", autouse=True)
def default_signals() -> None:
    """Programs that tests start obey signals, whatever `nohup` or `&` lets this process ignore.

    A new program inherits the signals that are ignored, but not those that have a handler: so here they get a handler
    that does nothing. The programs have the defaults then, and this process still ignores the signals.
    """
    for number in _STOPPING:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda number, frame: None)


@pytest.fixture(scope="session", autouse=True)
def own_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What a fixture of a module starts keeps scores in a folder of this test run, never in the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFCAST_CACHE", str(tmp_path_factory.getbasetemp() / "kept"))
        yield


@pytest.fixture(autouse=True)
def kept_scores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Each test, with the processes that it starts, keeps scores in a folder of its own, which does not exist yet."""
    folder = tmp_path_factory.getbasetemp() / f"kept-{secrets.token_hex(8)}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFCAST_CACHE", str(folder))
        yield folder


@pytest.fixture
def prefcast(tmp_path: Path) -> Run:
    """Runs `prefcast ARGS` in a process of its own, in a folder of its own."""

    def run(*arguments: str | Path, stdin: bytes | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*PREFCAST, *map(str, arguments)],
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            cwd=tmp_path,
            env={**os.environ, **environment},
            timeout=600,
            check=False,
        )
        out, err = done.stdout.decode("utf-8"), done.stderr.decode("utf-8")
        return subprocess.CompletedProcess(done.args, done.returncode, out, err)

    return run


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts `prefcast ARGS`, or another `program`, and does not wait for its end. What still runs when the test ends is
    killed: nothing is left to another test."""
    with ExitStack() as stack:

        def begin(
            *arguments: str | Path,
            program: Sequence[str] = PREFCAST,
            stdin: int | IO[Any] = subprocess.DEVNULL,
            stdout: int | IO[Any] = subprocess.PIPE,
            stderr: int | IO[Any] = subprocess.PIPE,
            **environment: str,
        ) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [*program, *map(str, arguments)],
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                text=True,
                cwd=tmp_path,
                env={**os.environ, **environment},
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield begin


def said_by(code: str, *arguments: str | Path, cwd: Path | None = None, **environment: str) -> str:
    """What a new Python process prints that runs `code`. Its warnings are errors, and it must end well."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **environment},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# The peak of a process's resident memory, in bytes. On Linux, getrusage would tell that of the process that started it.
PEAK = """
import pathlib, resource, sys
status = pathlib.Path("/proc/self/status")
told = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM")] if status.exists() else []
print(int(told[0]) * 1024 if told else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def writes(process: subprocess.Popen[str], folder: Path) -> bool:
    """Whether a process has an output in work: a file without a name, or a hidden one."""
    for number in Path(f"/proc/{process.pid}/fd").glob("*"):
        with suppress(OSError):  # closed meanwhile
            if (held := os.readlink(number)).startswith(f"{folder}/") and held.endswith(" (deleted)"):  # noqa: PTH115
                return True
    return any(folder.glob(".prefcast-*"))


def wait_for(found: Callable[[], Any], process: subprocess.Popen[Any] | None = None) -> Any:
    """What `found` returns as soon as that is true. Fails where `process` ends before, or after five minutes."""
    end = time.monotonic() + 300
    while True:
        ended = process is not None and process.poll() is not None
        if value := found():
            return value
        assert not ended, process and process.communicate()
        assert time.monotonic() < end, "what the test waits for does not happen"
        time.sleep(0.01)


@pytest.fixture
def prefcast_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """As `prefcast`, in this process, which has loaded already what takes seconds: torch, transformers, pandas.

    For what the program says and writes; not for signals, standard input and variables that are read on import. A
    traceback is an exception of the test.
    """

    def run(
        *arguments: str | Path, stdin: IO[str] | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        from prefcast.cli import main
        from prefcast.cli.shared import LOG

        logger = logging.getLogger("prefcast")
        handlers, stopping = logger.handlers[:], {number: signal.getsignal(number) for number in _STOPPING}
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
        command = ["prefcast", *map(str, arguments)]
        status = 0
        with monkeypatch.context() as patch:
            patch.chdir(tmp_path)
            for name, value in environment.items():
                patch.setenv(name, value)
            patch.setattr(sys, "argv", command)
            patch.setattr(sys, "stdin", stdin or io.TextIOWrapper(io.BytesIO()))
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", err)
            patch.setattr(LOG, "as_json", False)
            try:
                main()
            except SystemExit as end:
                status = end.code if isinstance(end.code, int) else int(end.code is not None)
            finally:
                logger.handlers[:] = handlers
                for number, handler in stopping.items():
                    signal.signal(number, handler)
        said = (stream.buffer.getvalue().decode("utf-8") for stream in (out, err))  # type: ignore[attr-defined]
        return subprocess.CompletedProcess(command, status, *said)

    return run

"""Rows that end, hang or starve the process that scores them: each becomes that row's error, the rest is scored."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from prefcast.runs.isolated import IsolatedScorer, isolated

from conftest import Run, kaggle_row, write_jsonl
from prefcast import Pair, load_forecaster
from prefcast.errors import WorkerError
from prefcast.scorers.blend import BlendScorer, Member
from prefcast.scorers.given import GivenScorer

PAIRS = [Pair.of(f"Why {number}?", "Because. " * (number % 7), "So.") for number in range(40)]

# Read by every Python process that the test starts: the scorer of the worker does what a row says.
SITE = """
import os, signal, sys, time
import prefcast.scorers.surface as surface

plain = surface.SurfaceScorer.evidence

def evidence(self, pairs):
    for pair in pairs:
        said = pair.turns[0].prompt
        if said == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if said == "leave":
            os._exit(7)
        if said == "hang":
            time.sleep(3600)
        if said == "raise":
            raise ValueError("a fault of the scorer")
        if said == "memory":
            raise MemoryError
        if said.startswith("slow"):
            time.sleep(float(said[4:]))
    found = plain(self, pairs)
    for row, pair in enumerate(pairs):
        if pair.turns[0].prompt in ("nan", "inf"):
            found.margin[row] = float(pair.turns[0].prompt)
    return found

surface.SurfaceScorer.evidence = evidence
"""


@pytest.fixture
def site(tmp_path: Path) -> dict[str, str]:
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(SITE)
    return {"PYTHONPATH": os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))}


@pytest.fixture
def scorer() -> Iterator[IsolatedScorer]:
    made = IsolatedScorer(load_forecaster("surface").scorer)
    yield made
    made.close()


def test_another_process_gives_the_same_numbers(scorer: IsolatedScorer) -> None:
    plain = load_forecaster("surface").scorer
    expected, found = plain.evidence(PAIRS), scorer.evidence(PAIRS)
    np.testing.assert_array_equal(found.margin, expected.margin)
    np.testing.assert_array_equal(found.tie, expected.tie)
    assert scorer.identity() == plain.identity()
    assert len(scorer.evidence([])) == 0


def test_a_worker_that_is_killed_once_costs_nothing(scorer: IsolatedScorer) -> None:
    expected = scorer.evidence(PAIRS)
    first = scorer.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    time.sleep(0.2)
    found = scorer.evidence(PAIRS)
    assert not found.problems
    np.testing.assert_array_equal(found.margin, expected.margin)
    assert scorer.pid != first


def test_rows_that_end_hang_or_starve_their_worker(prefcast: Run, tmp_path: Path, site: dict[str, str]) -> None:
    bad = {3: "crash", 20: "leave", 50: "raise", 77: "memory", 78: "hang", 90: "nan", 91: "inf"}
    rows = [kaggle_row(number, prompt=(bad.get(number, f"Why {number}?"),)) for number in range(100)]
    good = [row for row in rows if row["id"] not in bad]
    done = prefcast(
        "predict", write_jsonl(tmp_path / "good.jsonl", good), "-o", "good.jsonl.out.jsonl", "--model", "surface"
    )
    assert done.returncode == 0, done.stderr
    path = write_jsonl(tmp_path / "f.jsonl", rows)
    done = prefcast(
        "predict", path, "-o", "out.jsonl", "--model", "surface", "--time-limit", "4", "--log", "json", **site
    )
    assert done.returncode == 3, done.stderr
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    errors = {row["id"]: row["error"].split(": ", 2)[-1] for row in found if row["error"]}
    assert errors == {
        3: "ended its worker process, which was killed by SIGSEGV",
        20: "ended its worker process, which ended with status 7",
        50: "cannot be scored: ValueError: a fault of the scorer",
        77: "needs more memory than there is",
        78: "took longer than 4 s to score",
        90: "the scorer surface gave evidence that is not finite",
        91: "the scorer surface gave evidence that is not finite",
    }
    # The others have the very numbers that they have alone.
    alone = [json.loads(line) for line in (tmp_path / "good.jsonl.out.jsonl").read_text().splitlines()]
    assert [row for row in found if row["id"] not in bad] == alone
    events = [json.loads(line) for line in done.stderr.splitlines()]
    assert events[-1]["errors"] == {"crash": 2, "memory": 1, "scoring": 3, "time limit": 1}
    failed = {event["row"]: event for event in events if event["event"] == "row_failed"}
    assert failed[4]["problem"] == "ended its worker process, which was killed by SIGSEGV"
    assert "problem" not in failed[51]


def test_a_row_that_ends_the_whole_process_is_told_of(prefcast: Run, tmp_path: Path, site: dict[str, str]) -> None:
    rows = [kaggle_row(number, prompt=("crash" if number == 300 else "Why?",)) for number in range(400)]
    path = write_jsonl(tmp_path / "f.jsonl", rows)
    for attempt in range(3):
        done = prefcast("predict", path, "-o", "out.csv", "--model", "surface", **site)
        assert done.returncode == -signal.SIGSEGV
        lines = done.stderr.splitlines()
        assert len(lines) == attempt
    assert lines == [
        "prefcast: out.csv.journal: 256 rows were scored before and are not scored again (--fresh starts over)",
        "prefcast: the attempt before ended without a word after 256 rows; where a row does that, --isolate finds it",
    ]
    done = prefcast("predict", path, "-o", "out.csv", "--model", "surface", "--isolate", **site)
    assert done.returncode == 3
    assert "1 of 400 rows failed and got the class prior; the first: forecast: row 301" in done.stderr


def test_out_of_memory_is_one_line(prefcast: Run, tmp_path: Path, site: dict[str, str]) -> None:
    rows = [kaggle_row(number, prompt=("memory" if number == 300 else "Why?",)) for number in range(400)]
    done = prefcast("predict", write_jsonl(tmp_path / "f.jsonl", rows), "-o", "out.csv", "--model", "surface", **site)
    assert (done.returncode, done.stderr) == (
        2,
        "prefcast: out of memory; a smaller --budget reads less of a pair, and --isolate finds a row that alone needs too "
        "much; 256 rows are kept: the same command goes on from there\n",
    )


def test_nothing_but_rows_at_fault_ends_the_run(prefcast: Run, tmp_path: Path, site: dict[str, str]) -> None:
    rows = [kaggle_row(number, prompt=("raise",)) for number in range(40)]
    done = prefcast(
        "predict", write_jsonl(tmp_path / "f.jsonl", rows), "-o", "out.csv", "--model", "surface", "--isolate", **site
    )
    assert (done.returncode, done.stderr) == (
        2,
        "prefcast: 16 rows on end could not be scored; the last cannot be scored: ValueError: a fault of the scorer\n",
    )


def test_a_worker_that_does_not_start_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = IsolatedScorer(load_forecaster("surface").scorer)
    with monkeypatch.context() as patch:
        (tmp_path / "sitecustomize.py").write_text("import os; os._exit(5)")
        patch.setenv("PYTHONPATH", str(tmp_path))
        with pytest.raises(WorkerError, match="the worker process ended with status 5 before it was ready, twice"):
            broken.evidence(PAIRS)
    broken._folder.cleanup()
    with pytest.raises(WorkerError, match=r"surface\.json: cannot be read"):
        broken.evidence(PAIRS)
    broken.close()


def test_a_worker_goes_with_its_parent(scorer: IsolatedScorer) -> None:
    scorer.evidence(PAIRS[:1])
    pid = scorer.pid
    assert pid is not None
    scorer.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_members_of_an_ensemble_are_isolated_and_scores_that_are_brought_are_not() -> None:
    given, surface = GivenScorer(("margin",)), load_forecaster("surface")
    blend = isolated(
        BlendScorer([Member(surface.scorer, surface.budget, 1.0, 1.0), Member(given, surface.budget, 1, 1)])
    )
    try:
        assert isinstance(blend, BlendScorer)
        assert isinstance(blend.members[0].scorer, IsolatedScorer)
        assert blend.members[1].scorer is given
    finally:
        blend.close()

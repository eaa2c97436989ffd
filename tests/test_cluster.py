"""The Ray engine: what actors score is what the local engine writes, whatever dies in between."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from prefcast.runs.isolated import IsolatedScorer
from prefcast.runs.packed import pack, pack_items, unpack_items

from conftest import EXAMPLES, Run, Start, kaggle_row, said_by, wait_for, write_jsonl
from prefcast import load_forecaster, open_pairs
from prefcast.errors import (
    FileError,
    JournalError,
    MissingExtraError,
    PrefcastError,
    ScoringError,
    UsageError,
    WorkerError,
)
from prefcast.outcomes.models import Outcome
from prefcast.pairs import Pair, Turn
from prefcast.pairs.budget import WHOLE
from prefcast.runs.cluster import Cluster, connected
from prefcast.runs.cluster.actors import TRIES, PieceScorer, Recipe, Source, raise_fault, read_pieces
from prefcast.runs.cluster.parts import Folder, Parts, _prepare, are_parts, listed
from prefcast.runs.jobs import forecasting, scoring
from prefcast.scorers.embedded import EmbeddedScorer
from prefcast.scorers.reward import Options

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray: pip install 'prefcast[ray]'")

# Read by every process of the cluster: a scorer that a row slows down or ends, and that tells what it was given.
SITE = """
import os, signal, sys, time
if "MARKS" in os.environ and any("default_worker" in each or "runs.worker" in each for each in sys.orig_argv):
    import prefcast.scorers.surface as surface
    plain = surface.SurfaceScorer.evidence

    def evidence(self, pairs):
        with open(os.environ["MARKS"], "a") as file:
            file.write(f"{os.getpid()} {pairs[0].id}\\n")
        for pair in pairs:
            said = pair.turns[0].prompt
            if said == "crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            if said == "wait":
                while not os.path.exists(os.environ["MARKS"] + ".gate"):
                    time.sleep(0.01)
        return plain(self, pairs)

    surface.SurfaceScorer.evidence = evidence
"""
CLUSTER = """
import logging, sys, ray
ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.CRITICAL)
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""


class RayCluster:
    """A cluster of two processors; `marks` is what its scorers tell: a process and the first id of a batch each.

    A row that says "wait" waits until the gate is open.
    """

    def __init__(self, folder: Path) -> None:
        # Ray lets nobody in without a token; this one is the cluster's own.
        self.environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        (folder / "site").mkdir()
        (folder / "site" / "sitecustomize.py").write_text(SITE)
        self.marks_file = folder / "marks"
        path = os.pathsep.join(filter(None, (str(folder / "site"), os.environ.get("PYTHONPATH"))))
        quiet = {
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",
            "PYTHONPATH": path,
            "MARKS": str(self.marks_file),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-c", CLUSTER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **quiet, **self.environment},
        )
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()
        assert self.address

    def arguments(self, *given: str | Path) -> list[str]:
        how = ["--engine", "ray", "--ray-address", self.address, "--actors", "2"]
        return [*map(str, given), "--model", "surface", *how]

    def marks(self) -> list[tuple[int, str]]:
        """What has been told since `forget`."""
        lines = self.marks_file.read_text().splitlines() if self.marks_file.exists() else []
        return [(int(pid), id) for pid, id in (line.split(" ", 1) for line in lines)]

    def workers(self) -> list[int]:
        """The processes that have told something, in the order of their first words."""
        return list(dict.fromkeys(pid for pid, _ in self.marks()))

    def open_gate(self) -> None:
        self.marks_file.with_name("marks.gate").touch()

    def forget(self) -> None:
        """Forget all marks, and close the gate."""
        self.marks_file.unlink(missing_ok=True)
        self.marks_file.with_name("marks.gate").unlink(missing_ok=True)


@pytest.fixture(scope="module")
def ray_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    made = RayCluster(tmp_path_factory.mktemp("cluster"))
    yield made
    assert made.process.stdin is not None
    made.process.stdin.close()
    made.process.wait(60)
    assert made.process.stdout is not None
    made.process.stdout.close()


def some_rows(count: int, waiting: int) -> list[dict[str, Any]]:
    """Rows of which, from `waiting` on, one a piece waits for the gate; a few are at fault."""
    rows = [
        kaggle_row(
            number,
            prompt=("wait" if number % 256 == 9 and number >= waiting else "Why?",),
            a=("word " * (number % 23),),
        )
        for number in range(count)
    ]
    for number in range(400, count, 401):
        rows[number]["prompt"] = 5
    return rows


@needs_ray
def test_ray_leaves_sigterm_as_it_was(ray_cluster: RayCluster) -> None:
    code = """
import signal, sys
from prefcast.runs.cluster import Cluster, connected
def ours(number, frame): pass
signal.signal(signal.SIGTERM, ours)
with connected(Cluster(sys.argv[1], 1)):
    assert signal.getsignal(signal.SIGTERM) is ours
"""
    said_by(code, ray_cluster.address, **ray_cluster.environment)


@needs_ray
def test_two_actors_write_what_the_local_engine_writes(prefcast: Run, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "f.jsonl", [*some_rows(20, 20), kaggle_row(99, a=5)])
    local = prefcast("predict", path, "-o", "local.parquet", "--with-text")
    done = prefcast("predict", path, "-o", "out.parquet", "--with-text", "--engine", "ray", "--actors", "2")
    assert (done.returncode, done.stdout, done.stderr) == (3, "", local.stderr)
    assert (tmp_path / "out.parquet").read_bytes() == (tmp_path / "local.parquet").read_bytes()
    assert not (tmp_path / "out.parquet.journal").exists()


@needs_ray
def test_a_killed_actor_costs_no_row(prefcast: Run, start: Start, tmp_path: Path, ray_cluster: RayCluster) -> None:
    path = write_jsonl(tmp_path / "f.jsonl", some_rows(2000, 0))
    local = prefcast("predict", path, "-o", "local.jsonl", "--model", "surface")
    ray_cluster.forget()
    arguments = ray_cluster.arguments("predict", path, "-o", "out.jsonl", "--log", "json")
    process = start(*arguments, **ray_cluster.environment)
    # Both actors have a piece; one is killed, and another one in its place gets a piece.
    wait_for(lambda: len(ray_cluster.workers()) == 2, process)
    os.kill(ray_cluster.workers()[1], signal.SIGKILL)
    wait_for(lambda: len(ray_cluster.workers()) == 3, process)
    ray_cluster.open_gate()
    out, said = process.communicate()
    assert (process.returncode, out) == (3, ""), said
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "local.jsonl").read_bytes()
    found = [json.loads(line) for line in said.splitlines()]
    assert {event["event"] for event in found} == {"cluster", "started", "chunk", "row_failed", "finished"}
    assert sorted(event["number"] for event in found if event["event"] == "chunk") == list(range(8))
    assert (found[-1]["rows"], found[-1]["failed"], found[-1]["restored"]) == (2000, 4, 0)
    assert "4 of 2000 rows failed" in local.stderr


@needs_ray
def test_a_killed_run_goes_on_and_scores_nothing_twice(
    prefcast: Run, start: Start, tmp_path: Path, ray_cluster: RayCluster
) -> None:
    path = write_jsonl(tmp_path / "f.jsonl", some_rows(2000, 1000))
    assert prefcast("predict", path, "-o", "local.csv", "--model", "surface").returncode == 3
    ray_cluster.forget()
    arguments = ray_cluster.arguments("predict", path, "-o", "out.csv")
    process = start(*arguments, "--log", "json", **ray_cluster.environment)
    assert process.stderr is not None
    # The later pieces wait: it cannot end before it is killed.
    assert any('"chunk"' in line for line in process.stderr)
    process.kill()
    process.communicate()
    ray_cluster.open_gate()
    # The journal is the local engine's: another model is refused, whoever asks.
    done = prefcast("predict", path, "-o", "out.csv", "--model", "length")
    assert (done.returncode, "its model is 'surface', here it is 'length'" in done.stderr) == (2, True)
    done = prefcast(*arguments, **ray_cluster.environment)
    assert done.returncode == 3, done.stderr
    resumed, failed = done.stderr.splitlines()[0], done.stderr.splitlines()[-1]
    kept = int(resumed.split("out.csv.journal: ")[1].split(" rows were scored before")[0].replace(",", ""))
    assert kept >= 256
    assert failed.startswith("prefcast: 4 of 2000 rows failed and got the class prior; the first: ")
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "local.csv").read_bytes()
    # Twice at most those that were at an actor, or on their way from it, when the run was killed.
    scored = Counter(id for _, id in ray_cluster.marks())
    assert len(scored) == 8
    assert sum(count - 1 for count in scored.values()) <= 8 - kept // 256


@needs_ray
def test_isolated_rows_are_found_on_a_cluster_too(prefcast: Run, tmp_path: Path, ray_cluster: RayCluster) -> None:
    rows = [kaggle_row(number, prompt=("crash" if number == 3 else "Why?",)) for number in range(6)]
    path = write_jsonl(tmp_path / "f.jsonl", rows)
    done = prefcast(*ray_cluster.arguments("predict", path, "-o", "out.csv", "--isolate"), **ray_cluster.environment)
    assert done.returncode == 3, done.stderr
    assert done.stderr == (
        "prefcast: 1 of 6 rows failed and got the class prior; the first: forecast: row 4: ended its worker process, which "
        "was killed by SIGSEGV\n"
    )


@needs_ray
@pytest.mark.long
def test_a_row_that_ends_every_actor_ends_the_run(prefcast: Run, tmp_path: Path, ray_cluster: RayCluster) -> None:
    rows = [kaggle_row(number, prompt=("crash" if number == 300 else "Why?",)) for number in range(700)]
    path = write_jsonl(tmp_path / "f.jsonl", rows)
    done = prefcast(*ray_cluster.arguments("predict", path, "-o", "out.csv"), **ray_cluster.environment)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        f"prefcast: rows 257 to 512 ended their actor {TRIES} times; where a row does that, --isolate finds it"
    )


def write_part(path: Path, first: int, count: int) -> Path:
    rows = [kaggle_row(number, a=("word " * (number % 23),)) for number in range(first, first + count)]
    rows[-1]["response_b"] = None
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


@needs_ray
def test_folders_of_parts(prefcast: Run, tmp_path: Path, ray_cluster: RayCluster) -> None:
    folder = tmp_path / "in"
    parts = [write_part(folder / name, 1000 * number, 300) for number, name in enumerate(("a.parquet", "x/b.parquet"))]
    (folder / "x" / "bad.parquet").write_bytes(b"PAR1 and no more")
    (folder / "_SUCCESS").touch()
    arguments = ray_cluster.arguments("predict", "in", "-o", f"{tmp_path.as_uri()}/out")
    done = prefcast(*arguments, **ray_cluster.environment)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("prefcast: in/x/bad.parquet: not a readable Parquet file, perhaps truncated: ")
    assert line.endswith("; 2 of 3 parts are written, and are kept")
    names = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert names == {"_prefcast.json", "a.parquet", "x/b.parquet"}
    for part in parts:
        name = part.relative_to(folder)
        assert prefcast("predict", f"in/{name}", "-o", "one.parquet", "--model", "surface").returncode == 3
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "one.parquet").read_bytes()
    # What was a fault of the file is mended: the run goes on, the others are left as they are.
    before = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in ("a.parquet", "x/b.parquet")}
    write_part(folder / "x" / "bad.parquet", 2000, 20)
    done = prefcast(*arguments, **ray_cluster.environment)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.splitlines() == [
        f"prefcast: file://{tmp_path}/out: 2 of 3 parts are there and are not scored again (--fresh starts over)",
        "prefcast: 3 of 620 rows failed and got the class prior; the first: in/a.parquet: row 300, response_b: is null",
    ]
    assert {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in before} == before


def recipe_of(model: str = "surface", **more: Any) -> Recipe:
    return Recipe.of("predict", load_forecaster(model), Options(), **more)


def test_rows_travel_whole() -> None:
    with open_pairs(EXAMPLES) as file:
        items = [
            *file,
            Pair((Turn("\ud800", "", "\u202e"),), "x", Outcome.TIE, "m", None, 7),
            ScoringError("f", 3, "prompt", "is bad", "id"),
        ]
    assert [repr(item) for item in unpack_items(pack_items(items))] == [repr(item) for item in items]


def test_an_actor_scores_as_this_process_does(tmp_path: Path) -> None:
    recipe = recipe_of()
    job = forecasting(load_forecaster("surface"))
    source = Source(str(tmp_path), str(EXAMPLES), {}, "json")
    here = Path.cwd()
    try:
        (piece,) = read_pieces(pyarrow.table({"of": ["file"]}), source, {})
        digest = piece["digest"][0].as_py()
        assert list(read_pieces(pyarrow.table({"of": ["file"]}), source, {0: digest})) == []
        (changed,) = read_pieces(pyarrow.table({"of": ["file"]}), source, {0: b"another"})
        with pytest.raises(JournalError, match="rows 1 to 42 changed since the run began"):
            raise_fault(changed["fault"][0].as_py())
        (missing,) = read_pieces(pyarrow.table({"of": ["file"]}), replace(source, path="none.csv"), {})
        with pytest.raises(FileError, match=r"none\.csv: cannot be read: No such file"):
            raise_fault(missing["fault"][0].as_py())
    finally:
        os.chdir(here)
    with open_pairs(EXAMPLES) as file:
        items = list(file)
    (done,) = PieceScorer(replace(recipe, header=job.header), lambda name: 1)(piece).to_pylist()
    assert (done["fault"], done["payload"]) == ("", pack(job.score(items)))
    raw = Recipe.of_scorer(job.scorer, WHOLE, Options())
    (done,) = PieceScorer(raw, lambda name: 1)(piece).to_pylist()
    assert done["payload"] == pack(scoring(job.scorer, WHOLE).score(items))


def fault(actor: PieceScorer) -> PrefcastError:
    blank = {"number": 0, "first": 257, "rows": 256, "digest": b"", "items": b"[]", "position": 0, "reading": 0.0}
    (row,) = actor(pyarrow.table({name: [value] for name, value in {**blank, "fault": ""}.items()})).to_pylist()
    with pytest.raises(PrefcastError) as raised:
        raise_fault(row["fault"])
    return raised.value


def test_faults_of_an_actor_travel_as_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of()
    header = {**forecasting(load_forecaster("surface")).header, "version of prefcast": "0.0.9"}
    found = fault(PieceScorer(replace(recipe, header=header), lambda name: 1))
    assert isinstance(found, JournalError)
    assert "is not like the other machines of the cluster: its version of prefcast is '0.0.9', here it is" in str(found)
    found = fault(PieceScorer(recipe, lambda name: TRIES + 1))
    assert isinstance(found, WorkerError)
    assert str(found) == "rows 257 to 512 ended their actor 3 times; where a row does that, --isolate finds it"
    actor = PieceScorer(recipe, lambda name: 1)

    def broken(items: object) -> None:
        raise ValueError("a fault\nof ours")

    monkeypatch.setattr(actor, "_job", replace(actor._job, score=broken))
    assert str(fault(actor)).startswith("rows 257 to 512 cannot be scored on ")
    assert str(fault(actor)).endswith(": ValueError: a fault of ours")
    with pytest.raises(WorkerError, match="an actor reported what this version does not know"):
        raise_fault('["os", []]')


def test_each_actor_has_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "RAYON_NUM_THREADS"):
        monkeypatch.setenv(name, "5")
    scorer = recipe_of("embedded", threads=3).job().scorer
    assert isinstance(scorer, EmbeddedScorer)
    assert (scorer.encoder.threads, os.environ["OMP_NUM_THREADS"], os.environ["RAYON_NUM_THREADS"]) == (3, "3", "3")
    isolated = recipe_of("surface", threads=3, isolate=True).job().scorer
    assert isinstance(isolated, IsolatedScorer)
    assert isolated._threads == 3
    isolated.close()


def test_without_ray_the_pip_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(MissingExtraError, match=r"ray is not installed: pip install 'prefcast\[ray\]'"),
        connected(Cluster()),
    ):
        pass


def test_parts_are_told_by_the_output() -> None:
    assert [are_parts(name) for name in ("out", "out/", "s3://b/o", "o.csv", "o.jsonl", "a/o.parquet")] == (
        [True, True, True, False, False, False]
    )


def test_no_password_of_a_uri_is_shown() -> None:
    folder = Folder.of("s3://key:secret@bucket/a/b?endpoint_override=host")
    assert folder.shown == "s3://bucket/a/b"
    with pytest.raises(UsageError, match=r"nowhere://b/c: no filesystem that Arrow can open") as raised:
        Folder.of("nowhere://key:secret@b/c").open()
    assert "secret" not in str(raised.value)


def test_another_runs_parts_are_refused(tmp_path: Path) -> None:
    source, target = write_part(tmp_path / "in" / "a.parquet", 0, 5).parent, tmp_path / "out"
    parts = Parts(Folder.of(str(source)), Folder.of(str(target)), {}, "json")

    def prepare(header: dict[str, Any], which: Parts = parts, fresh: bool = False) -> set[str]:
        return _prepare(which, header, listed(which.source), fresh)

    assert prepare({"model": "surface", "budget": "whole"}) == set()
    (target / "a.parquet").write_bytes(b"made")
    assert prepare({"model": "surface", "budget": "whole"}) == {"a.parquet"}
    with pytest.raises(
        JournalError, match="out: belongs to another run: its model is 'surface', here it is 'length'; --fresh"
    ):
        prepare({"model": "length", "budget": "whole"})
    with pytest.raises(JournalError, match="its cells is 'json', here it is 'text'"):
        prepare({"model": "surface", "budget": "whole"}, replace(parts, cells="text"))
    write_part(source / "b.parquet", 10, 5)
    assert prepare({"model": "surface", "budget": "whole"}) == {"a.parquet"}
    write_part(source / "a.parquet", 0, 6)
    with pytest.raises(JournalError, match=r"in/a\.parquet: changed since the run began; --fresh starts over"):
        prepare({"model": "surface", "budget": "whole"})
    (source / "a.parquet").unlink()
    with pytest.raises(JournalError, match=r"in/a\.parquet: is no longer there; --fresh starts over"):
        prepare({"model": "surface", "budget": "whole"})
    assert prepare({"model": "length"}, fresh=True) == set()
    assert [path.name for path in target.iterdir()] == ["_prefcast.json"]
    (target / "_prefcast.json").write_text("[]")
    with pytest.raises(JournalError, match=r"out/_prefcast\.json: is damaged, or of another version"):
        prepare({"model": "length"})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    with pytest.raises(UsageError, match="mine: holds other things than a run's parts; choose another folder"):
        prepare({}, replace(parts, target=Folder.of(str(tmp_path / "mine"))), fresh=True)


def test_what_holds_no_parts(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="none: cannot be read: there is no such file or folder"):
        listed(Folder.of(str(tmp_path / "none")))
    with pytest.raises(FileError, match=r"holds no Parquet files \(\*\.parquet\)"):
        listed(Folder.of(str(tmp_path)))
    (tmp_path / "a.csv").touch()
    with pytest.raises(UsageError, match=r"a\.csv: only Parquet \(\.parquet\) is read in parts; convert it"):
        listed(Folder.of((tmp_path / "a.csv").as_uri()))
    assert list(listed(Folder.of(str(write_part(tmp_path / "x" / "one.parquet", 0, 2))))) == ["one.parquet"]

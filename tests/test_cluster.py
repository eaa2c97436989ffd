"""The Ray engine: what actors score is what the local engine writes, whatever dies in between."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from conftest import EXAMPLES, SURFACE, Run, Start, kaggle_row, wait_for, write_jsonl
from prefcast import load_forecaster, read_pairs
from prefcast.errors import (
    FileError,
    MissingExtraError,
    PrefcastError,
    ResourceError,
    RunError,
    UsageError,
    WorkerError,
)
from prefcast.pairs import Pair, Turn
from prefcast.pairs.budget import WHOLE
from prefcast.runs import cluster
from prefcast.runs.cluster import Cluster, connected
from prefcast.runs.cluster.actors import TRIES, EvidenceActor, JobSpec, died, header_there, raise_fault
from prefcast.runs.cluster.parts import Folder, Parts, _prepare, are_parts, listed
from prefcast.runs.jobs import forecasting, scoring
from prefcast.runs.pool import PooledScorer
from prefcast.runs.worker import plain_pair
from prefcast.scorers.base import Problem
from prefcast.scorers.embedded import EmbeddedScorer
from prefcast.scorers.surface import SurfaceScorer

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray: pip install 'prefcast[ray]'")

# Every process of the cluster reads this: there a pair may end or hold its scorer, which tells what it was given.
SITE = """
import os, signal, sys, time
if "MARKS" in os.environ and any("default_worker" in each or "runs.worker" in each for each in sys.orig_argv):
    import prefcast.scorers.surface as surface
    plain = surface.SurfaceScorer.compute

    def compute(self, pairs):
        with open(os.environ["MARKS"], "a") as file:
            file.writelines(f"{os.getpid()} {pair.turns[0].prompt}\\n" for pair in pairs)
        for pair in pairs:
            said = pair.turns[0].prompt
            if said == "crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            while said.startswith("hold") and not os.path.exists(os.environ["MARKS"] + ".release"):
                time.sleep(0.01)
        return plain(self, pairs)

    surface.SurfaceScorer.compute = compute
"""
CLUSTER = """
import logging, sys, ray
ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.CRITICAL)
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""


class RayCluster:
    """A cluster of two processors; `marks` is what its scorers tell: a process and a prompt for each pair."""

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
        return [*map(str, given), *SURFACE, *how]

    def marks(self) -> list[tuple[int, str]]:
        """What has been told since `forget`."""
        lines = self.marks_file.read_text().splitlines() if self.marks_file.exists() else []
        return [(int(pid), prompt) for pid, prompt in (line.split(" ", 1) for line in lines)]

    def holding(self) -> list[int]:
        """The processes that hold a batch until `release`."""
        return [pid for pid, prompt in self.marks() if prompt.startswith("hold")]

    def release(self) -> None:
        self.marks_file.with_name("marks.release").touch()

    def forget(self) -> None:
        self.marks_file.unlink(missing_ok=True)
        self.marks_file.with_name("marks.release").unlink(missing_ok=True)


@pytest.fixture(scope="module")
def ray_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    made = RayCluster(tmp_path_factory.mktemp("cluster"))
    yield made
    assert made.process.stdin is not None
    made.process.stdin.close()
    made.process.wait(60)
    assert made.process.stdout is not None
    made.process.stdout.close()


def rows_of(count: int, *held: int) -> list[dict[str, Any]]:
    """Rows, no two alike; actors do not end those that are `held`, and a few are at fault."""
    rows = [
        kaggle_row(number, prompt=(f"{'hold' if number in held else 'Why'} {number}",), a=("word " * (number % 23),))
        for number in range(count)
    ]
    for number in range(400, count, 401):
        rows[number]["prompt"] = 5
    return rows


@needs_ray
@pytest.mark.long
def test_ray_leaves_sigterm_as_it_was(ray_cluster: RayCluster) -> None:
    code = """
import signal, sys
from prefcast.runs.cluster import Cluster, connected
def ours(number, frame): pass
signal.signal(signal.SIGTERM, ours)
with connected(Cluster(sys.argv[1], 1)):
    assert signal.getsignal(signal.SIGTERM) is ours
"""
    environment = {**os.environ, **ray_cluster.environment}
    subprocess.run([sys.executable, "-c", code, ray_cluster.address], env=environment, timeout=600, check=True)


@needs_ray
@pytest.mark.long
def test_a_caller_that_ends_early_leaves_all_actors_to_others(ray_cluster: RayCluster) -> None:
    code = """
import sys
from dataclasses import replace
import numpy as np
from prefcast import Pair, load_forecaster
from prefcast.runs.cluster import Cluster, connected
from prefcast.runs.cluster.actors import JobSpec
from prefcast.runs.cluster.driver import ClusterScorer, header_of_actors
from prefcast.runs.pool import pooled
from prefcast.scorers.base import Meter

made = load_forecaster("surface")
# A scorer that would ask for worker processes here: the actors are its workers.
made.scorer.replicas = lambda: [None, None]
pairs = [Pair.of(f"Why {number}?", "Because. " * (number % 7), "So.") for number in range(300)]
with connected(Cluster(sys.argv[1], 2)) as pool:
    spec = JobSpec.of("predict", made, time_limit=60.0)
    header = header_of_actors(pool, spec)
    scorer = ClusterScorer(made.scorer, pool, replace(spec, header=header))
    assert pooled(scorer) is scorer
    assert (scorer.workers, scorer.time_limit, scorer.identity()) == (2, 60.0, made.scorer.identity())
    parts = scorer.stream(pairs)
    next(parts)
    parts.close()
    assert scorer._idle.qsize() == 2
    meter = Meter()
    np.testing.assert_array_equal(scorer.evidence(pairs, meter).margin, made.scorer.evidence(pairs).margin)
    assert (meter.pairs, scorer._idle.qsize()) == (300, 2)
    scorer.close()
"""
    environment = {**os.environ, **ray_cluster.environment}
    subprocess.run([sys.executable, "-c", code, ray_cluster.address], env=environment, timeout=600, check=True)


@needs_ray
def test_two_actors_write_what_the_local_engine_writes(prefcast: Run, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "f.jsonl", [*rows_of(20), kaggle_row(99, a=5)])
    local = prefcast("predict", path, "-o", "local.parquet", "--with-text", "--no-store")
    ray = ("--engine", "ray", "--actors", "2")
    done = prefcast("predict", path, "-o", "out.parquet", "--with-text", *ray)
    assert (done.returncode, done.stdout, done.stderr) == (3, "", local.stderr)
    assert (tmp_path / "out.parquet").read_bytes() == (tmp_path / "local.parquet").read_bytes()
    # The actors' evidence is kept under the identity that the scorer has here: nothing is scored again.
    done = prefcast("predict", path, "-o", "again.parquet", "--with-text", "--log", "json")
    assert json.loads(done.stderr.splitlines()[-1])["restored"] == 20
    assert (tmp_path / "again.parquet").read_bytes() == (tmp_path / "local.parquet").read_bytes()


@needs_ray
@pytest.mark.long
def test_a_killed_actor_costs_no_row(prefcast: Run, start: Start, tmp_path: Path, ray_cluster: RayCluster) -> None:
    path = write_jsonl(tmp_path / "f.jsonl", rows_of(700, 5, 100, 300))
    local = prefcast("predict", path, "-o", "local.jsonl", *SURFACE, "--no-store")
    ray_cluster.forget()
    process = start(
        *ray_cluster.arguments("predict", path, "-o", "out.jsonl", "--log", "json"), **ray_cluster.environment
    )
    # Each actor has a batch that it cannot end.
    wait_for(lambda: len(set(ray_cluster.holding())) == 2, process)
    killed = ray_cluster.holding()[0]
    os.kill(killed, signal.SIGKILL)
    ray_cluster.release()
    out, said = process.communicate(timeout=120)
    assert (process.returncode, out) == (3, ""), said
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "local.jsonl").read_bytes()
    found = [json.loads(line) for line in said.splitlines()]
    assert {event["event"] for event in found} == {"cluster", "started", "piece", "row_failed", "finished"}
    assert [event["number"] for event in found if event["event"] == "piece"] == [0, 1, 2]
    assert (found[-1]["rows"], found[-1]["failed"], found[-1]["restored"]) == (700, 1, 0)
    assert "1 of 700 rows failed" in local.stderr
    # Another actor in the place of the one that was killed.
    assert len({pid for pid, _ in ray_cluster.marks()}) == 3


@needs_ray
@pytest.mark.long
def test_a_killed_run_goes_on_and_scores_nothing_twice(
    prefcast: Run, start: Start, tmp_path: Path, ray_cluster: RayCluster
) -> None:
    path = write_jsonl(tmp_path / "f.jsonl", rows_of(700, 600))
    assert prefcast("predict", path, "-o", "local.csv", *SURFACE, "--no-store").returncode == 3
    ray_cluster.forget()
    arguments = [*ray_cluster.arguments("predict", path, "-o", "out.csv", "--log", "json")]
    process = start(*arguments, **ray_cluster.environment)
    assert process.stderr is not None
    while '"number": 1' not in (line := process.stderr.readline()):
        assert line, "the run ended"
    wait_for(ray_cluster.holding, process)
    process.kill()
    process.communicate()
    assert not (tmp_path / "out.csv").exists()
    ray_cluster.forget()
    ray_cluster.release()
    done = prefcast(*arguments, **ray_cluster.environment)
    assert done.returncode == 3, done.stderr
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "local.csv").read_bytes()
    (resumed,) = [json.loads(line) for line in done.stderr.splitlines() if '"resumed"' in line]
    # The two whole pieces, row 401 of which is at fault, and perhaps some batches of the third.
    assert 511 <= resumed["rows"] < 700
    prompts = [prompt for _, prompt in ray_cluster.marks()]
    assert len(set(prompts)) == len(prompts) <= 700 - 512
    assert min(int(prompt.split()[1]) for prompt in prompts) >= 512


@needs_ray
@pytest.mark.long
def test_isolated_rows_are_found_on_a_cluster_too(prefcast: Run, tmp_path: Path, ray_cluster: RayCluster) -> None:
    rows = [kaggle_row(number, prompt=("crash" if number == 3 else f"Why {number}?",)) for number in range(6)]
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
    rows = [kaggle_row(number, prompt=("crash" if number == 3 else f"Why {number}?",)) for number in range(6)]
    path = write_jsonl(tmp_path / "f.jsonl", rows)
    done = prefcast(*ray_cluster.arguments("predict", path, "-o", "out.csv"), **ray_cluster.environment)
    assert (done.returncode, done.stdout, done.stderr) == (
        2,
        "",
        f"prefcast: a batch of 6 pairs ended its actor {TRIES} times; if a row causes that, --isolate finds it\n",
    )


@needs_ray
def test_an_interrupt_ends_a_run_at_once(start: Start, tmp_path: Path, ray_cluster: RayCluster) -> None:
    """Threads that wait for actors do not keep the process."""
    path = write_jsonl(tmp_path / "f.jsonl", rows_of(520, 5, 300))
    ray_cluster.forget()
    process = start(*ray_cluster.arguments("predict", path, "-o", "out.csv"), **ray_cluster.environment)
    wait_for(lambda: len(ray_cluster.holding()) == 2, process)
    process.send_signal(signal.SIGTERM)
    assert process.stderr is not None
    assert "stopping once the piece in flight is scored" in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    out, said = process.communicate(timeout=300)
    assert (process.returncode, out) == (128 + signal.SIGTERM, "")
    (line,) = said.splitlines()
    assert line.startswith("prefcast: stopped by SIGTERM")
    ray_cluster.release()


def write_part(path: Path, first: int, count: int) -> Path:
    rows = [kaggle_row(number, a=("word " * (number % 23),)) for number in range(first, first + count)]
    rows[-1]["response_b"] = None
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


@needs_ray
@pytest.mark.long
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
    lines = done.stderr.splitlines()
    assert lines == [
        "prefcast: 600 of 620 rows were scored before and not again (--fresh scores them again)",
        "prefcast: 3 of 620 rows failed and got the class prior; the first: in/a.parquet: row 300, response_b: is null",
    ]
    assert {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in before} == before


def spec_of(model: str = "surface", **more: Any) -> JobSpec:
    return JobSpec.of("predict", load_forecaster(model), **more)


def test_an_actor_scores_as_this_process_does() -> None:
    forecaster = load_forecaster("surface")
    pairs = [pair for pair in read_pairs(EXAMPLES) if isinstance(pair, Pair)]
    pairs.append(Pair((Turn("\ud800", "", "\u202e"), Turn("", "a", "b"))))
    expected = forecaster.scorer.evidence(pairs)
    for spec, header in (
        (spec_of(), forecasting(forecaster).header),
        (JobSpec.of("score", replace(forecaster, budget=WHOLE)), scoring(forecaster.scorer, WHOLE).header),
    ):
        assert header_there(spec) == {"header": header}
        said = EvidenceActor(replace(spec, header=header)).evidence([plain_pair(pair) for pair in pairs])
        assert (said["fault"], said["problems"], said["raw"]) == ("", {}, {})
        np.testing.assert_array_equal(said["margin"], expected.margin)
        np.testing.assert_array_equal(said["tie"], expected.tie)


def test_problems_of_an_actor_come_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(scorer: SurfaceScorer, pairs: list[Pair]) -> None:
        raise ValueError("a fault of the scorer")

    monkeypatch.setattr(SurfaceScorer, "compute", broken)
    said = EvidenceActor(spec_of()).evidence([plain_pair(Pair.of("Why?", "a", "b"))])
    problem = Problem(*said["problems"][0])
    assert (problem.kind, problem.limit, problem.about) == ("unforeseen", None, "ValueError")
    assert problem == "cannot be scored: ValueError: a fault of the scorer"


def fault(actor: EvidenceActor) -> PrefcastError:
    said = actor.evidence([plain_pair(Pair.of("Why?", "a", "b"))])
    with pytest.raises(PrefcastError) as raised:
        raise_fault(said["fault"])
    return raised.value


def test_faults_of_an_actor_travel_as_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of()
    header = {**forecasting(load_forecaster("surface")).header, "version of prefcast": "0.0.9"}
    found = fault(EvidenceActor(replace(spec, header=header)))
    assert isinstance(found, RunError)
    assert "differs from the other machines of the cluster: the version of prefcast is '0.0.9' there and" in str(found)
    assert died("in/a.parquet") == "in/a.parquet ended its actor 3 times; if a row causes that, --isolate finds it"
    actor = EvidenceActor(spec)
    for error, kind, message in (
        (
            ValueError("a fault\nof ours"),
            WorkerError,
            "a batch of 1 pairs cannot be scored on .*: ValueError: a fault of ours",
        ),
        (
            MemoryError(),
            ResourceError,
            "a batch of 1 pairs: out of memory on .*; a smaller --budget reads less of a pair",
        ),
        (RunError("ours"), RunError, "ours"),
    ):

        def broken(pairs: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(actor._scorer, "evidence", broken)
        with pytest.raises(kind, match=message):
            raise fault(actor)
    with pytest.raises(WorkerError, match="an actor reported an error that this version does not know"):
        raise_fault('["os", []]')


def test_each_actor_has_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "RAYON_NUM_THREADS"):
        monkeypatch.setenv(name, "5")
    scorer = spec_of("embedded", threads=3).made()[0].scorer
    assert isinstance(scorer, EmbeddedScorer)
    assert (scorer.encoder.threads, os.environ["OMP_NUM_THREADS"], os.environ["RAYON_NUM_THREADS"]) == (3, "3", "3")
    with closing(spec_of("surface", threads=3, isolate=True).made()[0].scorer) as isolated:
        assert isinstance(isolated, PooledScorer)
        assert json.loads(isolated.command(None))["threads"] == 3


def test_without_ray_the_pip_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "find_spec", lambda name: None)
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
        RunError, match="out: belongs to another run: the model is 'surface' there and 'length' here; --fresh"
    ):
        prepare({"model": "length", "budget": "whole"})
    with pytest.raises(RunError, match="the cells is 'json' there and 'text' here"):
        prepare({"model": "surface", "budget": "whole"}, replace(parts, cells="text"))
    write_part(source / "b.parquet", 10, 5)
    assert prepare({"model": "surface", "budget": "whole"}) == {"a.parquet"}
    write_part(source / "a.parquet", 0, 6)
    with pytest.raises(RunError, match=r"in/a\.parquet: changed since the run began; --fresh starts over"):
        prepare({"model": "surface", "budget": "whole"})
    (source / "a.parquet").unlink()
    with pytest.raises(RunError, match=r"in/a\.parquet: is no longer there; --fresh starts over"):
        prepare({"model": "surface", "budget": "whole"})
    assert prepare({"model": "length"}, fresh=True) == set()
    assert [path.name for path in target.iterdir()] == ["_prefcast.json"]
    (target / "_prefcast.json").write_text("[]")
    with pytest.raises(RunError, match=r"out/_prefcast\.json: is damaged, or of another version"):
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

"""Worker processes: the same numbers as without them, nothing lost when a worker dies, and a bad row fails alone."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from checkpoints import change_weights, save_ab, save_decoder, save_internlm2
from conftest import EXAMPLES, SURFACE, Run, Start, kaggle_row, wait_for, write_jsonl
from prefcast import Pair, load_forecaster, load_scorer, read_pairs
from prefcast.errors import ModelError, UsageError, WorkerError
from prefcast.runs import pool
from prefcast.runs.pool import PooledScorer, pooled
from prefcast.scorers.base import Evidence, Meter, Problem, Scorer
from prefcast.scorers.blend import BlendScorer, Member
from prefcast.scorers.given import GivenScorer
from prefcast.scorers.reward.devices import parse_devices, threads_each
from prefcast.scorers.reward.scorer import RewardScorer
from prefcast.scorers.surface import SurfaceScorer

PAIRS = [Pair.of(f"Why {number}?", "Because. " * (number % 7), "So.") for number in range(40)]

# Every Python process that a test starts reads this: there the scorer does what a pair's prompt says, and tells of it.
SITE = """
import os, signal, time
import prefcast.scorers.surface as surface

plain, folder = surface.SurfaceScorer.compute, os.environ["SITE"]

def tell(what):
    with open(os.path.join(folder, "told"), "a") as file:
        file.write(f"{os.getpid()} {what}\\n")

def prepare(self):
    tell("prepare")

def compute(self, pairs):
    for pair in pairs:
        said = pair.turns[0].prompt
        if said == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if said == "leave":
            os._exit(7)
        if said == "hang":
            tell(said)
            time.sleep(3600)
        if said == "raise":
            raise ValueError("a fault of the scorer")
        if said == "memory":
            raise MemoryError
        if said.startswith("hold"):
            tell(said)
            while not os.path.exists(os.path.join(folder, "release")):
                time.sleep(0.01)
    found = plain(self, pairs)
    for row, pair in enumerate(pairs):
        if pair.turns[0].prompt in ("nan", "inf"):
            found.margin[row] = float(pair.turns[0].prompt)
    return found

surface.SurfaceScorer.compute, surface.SurfaceScorer.prepare = compute, prepare
"""
# The same for a reward model's workers, whose network never answers.
REWARD_SITE = """
import os, sys, time
if "prefcast.runs.worker" in sys.orig_argv:
    from prefcast.scorers.reward.engine import Engine

    def run(self, groups):
        with open(os.path.join(os.environ["SITE"], "told"), "a") as file:
            file.write(f"{os.getpid()} run\\n")
        time.sleep(3600)

    Engine.run = run
"""


@dataclass
class Site:
    """A folder whose `sitecustomize.py` every new Python process reads, and what those processes tell."""

    folder: Path
    environment: dict[str, str]

    def told(self, what: str) -> list[int]:
        """The processes that told of it, in order."""
        file = self.folder / "told"
        lines = file.read_text().splitlines() if file.exists() else []
        return [int(line.split(" ", 1)[0]) for line in lines if line.split(" ", 1)[1].startswith(what)]

    def release(self) -> None:
        (self.folder / "release").touch()


def site_of(folder: Path, code: str) -> Site:
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(code)
    path = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    return Site(folder, {"PYTHONPATH": path, "SITE": str(folder)})


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return site_of(tmp_path / "site", SITE)


@pytest.fixture
def odd_workers(site: Site, monkeypatch: pytest.MonkeyPatch) -> Site:
    """The workers that this process starts read the site."""
    for name, value in site.environment.items():
        monkeypatch.setenv(name, value)
    return site


class Replicated(SurfaceScorer):
    """The surface scorer, which asks for `replicas` workers of its own kind."""

    asked = 2

    def replicas(self) -> Sequence[Any]:
        return [None] * self.asked


def surface(workers: int, batch: int, time_limit: float | None = None) -> PooledScorer:
    plain = load_forecaster("surface").scorer
    assert isinstance(plain, SurfaceScorer)
    made = Replicated(plain.model)
    made.asked, made.batch_pairs = workers, batch
    return PooledScorer(made, time_limit)


def plain_evidence(pairs: Sequence[Pair]) -> Evidence:
    return load_forecaster("surface").scorer.evidence(pairs)


def assert_same(found: Evidence, expected: Evidence) -> None:
    assert not found.problems
    np.testing.assert_array_equal(found.margin, expected.margin)
    np.testing.assert_array_equal(found.tie, expected.tie)


def idle(scorer: PooledScorer) -> bool:
    """Whether nobody waits for an answer, and nothing waits to be asked."""
    return not scorer._board.waiting and not scorer._board.callers


def is_gone(pid: int) -> bool:
    """Whether a process has ended. One whose parent is gone may be a zombie for a while."""
    try:
        os.kill(pid, 0)
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except (ProcessLookupError, FileNotFoundError):
        return True


def kill_all(pids: Sequence[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def test_two_workers_give_the_same_numbers() -> None:
    with closing(surface(2, batch=3)) as scorer:
        assert_same(scorer.evidence(PAIRS), plain_evidence(PAIRS))
        assert scorer.identity() == load_forecaster("surface").scorer.identity()
        assert len(scorer.evidence([])) == 0
        assert len(set(scorer.pids)) <= 2


def test_only_scorers_that_need_workers_get_them() -> None:
    plain = load_forecaster("surface").scorer
    assert pooled(plain) is plain
    for scorer in (pooled(plain, isolate=True), pooled(plain, time_limit=3.0), surface(2, 1)):
        assert isinstance(scorer, PooledScorer)
        scorer.close()


def test_members_of_an_ensemble_get_workers_and_scores_that_are_brought_do_not() -> None:
    given, made = GivenScorer(("margin",)), load_forecaster("surface")
    members = [Member(made.scorer, made.budget, 1.0, 1.0), Member(given, made.budget, 1, 1)]
    with closing(pooled(BlendScorer(members), isolate=True)) as blend:
        first, second = blend.members()
        assert isinstance(first, PooledScorer)
        assert second is given


def test_a_worker_loads_its_scorer_before_its_first_batch(odd_workers: Site) -> None:
    """So that loading takes nothing of a batch's time limit."""
    with closing(surface(1, batch=2)) as scorer:
        odd_workers.release()
        scorer.evidence([*PAIRS, Pair.of("hold", "a", "b")])
    lines = (odd_workers.folder / "told").read_text().splitlines()
    assert [line.split(" ", 1)[1] for line in lines] == ["prepare", "hold"]


@pytest.mark.parametrize("victims", [1, 2])
def test_workers_that_are_killed_lose_nothing(odd_workers: Site, victims: int) -> None:
    pairs = [Pair.of("hold 1", "a", "b"), Pair.of("hold 2", "a", "b b"), *PAIRS]
    with closing(surface(2, batch=1)) as scorer, ThreadPoolExecutor(1) as thread:
        found = thread.submit(scorer.evidence, pairs)
        # Both workers have a batch each, and cannot end it.
        wait_for(lambda: len(set(odd_workers.told("hold"))) == 2)
        doomed = odd_workers.told("hold")[:victims]
        kill_all(doomed)
        odd_workers.release()
        assert_same(found.result(), plain_evidence(pairs))
        assert not set(scorer.pids) & set(doomed)


def test_workers_that_die_with_nothing_to_do_cost_nothing() -> None:
    with closing(surface(2, batch=4)) as scorer:
        expected = scorer.evidence(PAIRS)
        children = [worker.child for worker in scorer._workers if worker.child is not None]
        kill_all(scorer.pids)
        wait_for(lambda: not any(child.alive for child in children))
        assert_same(scorer.evidence(PAIRS), expected)
        # Nobody waits here: a batch may still be handed to a worker that is about to die.
        kill_all(scorer.pids)
        assert_same(scorer.evidence(PAIRS), expected)


def test_rows_that_end_hang_or_starve_their_worker(prefcast: Run, tmp_path: Path, site: Site) -> None:
    bad = {1: "crash", 4: "leave", 6: "raise", 8: "memory", 9: "hang", 12: "nan", 13: "inf"}
    rows = [kaggle_row(number, prompt=(bad.get(number, f"Why {number}?"),)) for number in range(16)]
    good = [row for row in rows if row["id"] not in bad]
    done = prefcast("predict", write_jsonl(tmp_path / "good.jsonl", good), "-o", "alone.jsonl", *SURFACE, "--no-store")
    assert done.returncode == 0, done.stderr
    path = write_jsonl(tmp_path / "f.jsonl", rows)
    limits = ("--time-limit", "2", "--log", "json", "--no-store")
    done = prefcast("predict", path, "-o", "out.jsonl", *SURFACE, *limits, **site.environment)
    assert done.returncode == 3, done.stderr
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    errors = {row["id"]: row["error"].split(": ", 2)[-1] for row in found if row["error"]}
    assert errors == {
        1: "ended its worker process, which was killed by SIGSEGV",
        4: "ended its worker process, which ended with status 7",
        6: "cannot be scored: ValueError: a fault of the scorer",
        8: "needs more memory than there is",
        9: "took longer than 2 s to score",
        12: "the scorer surface gave evidence that is not finite",
        13: "the scorer surface gave evidence that is not finite",
    }
    # The others have the very numbers that they have alone.
    alone = [json.loads(line) for line in (tmp_path / "alone.jsonl").read_text().splitlines()]
    assert [row for row in found if row["id"] not in bad] == alone
    events = [json.loads(line) for line in done.stderr.splitlines()]
    assert events[-1]["errors"] == {"crash": 2, "memory": 1, "scoring": 3, "time limit": 1}
    failures = {event["row"]: event for event in events if event["event"] == "row_failed"}
    assert failures[2]["problem"] == "ended its worker process, which was killed by SIGSEGV"
    assert "problem" not in failures[7]


def test_problems_come_whole_out_of_a_worker(odd_workers: Site) -> None:
    with closing(surface(1, batch=2, time_limit=2.0)) as scorer:
        found = scorer.evidence([PAIRS[0], Pair.of("raise", "a", "b"), Pair.of("hang", "a", "b")])
    raised, late = found.problems[1], found.problems[2]
    assert isinstance(raised, Problem)
    assert isinstance(late, Problem)
    assert (raised.kind, raised.about, raised.limit) == ("unforeseen", "ValueError", None)
    # A pair alone is tried twice.
    assert (late.kind, late.limit, len(set(odd_workers.told("hang")))) == ("worker", 2.0, 2)


@pytest.mark.long
def test_a_row_that_ends_the_whole_process_is_told_of(prefcast: Run, tmp_path: Path, site: Site) -> None:
    rows = [kaggle_row(number, prompt=("crash" if number == 300 else f"Why {number}?",)) for number in range(400)]
    path = write_jsonl(tmp_path / "f.jsonl", rows)
    said = []
    for _ in range(3):
        done = prefcast("predict", path, "-o", "out.csv", *SURFACE, **site.environment)
        assert done.returncode == -signal.SIGSEGV
        said.append(done.stderr.splitlines())
    assert said == [
        [],
        [],
        [
            "prefcast: an earlier attempt at this output crashed or was killed before it had scored a new row; if a row causes "
            "that, --isolate finds it"
        ],
    ]
    done = prefcast("predict", path, "-o", "out.csv", *SURFACE, "--isolate", **site.environment)
    assert done.returncode == 3
    assert "1 of 400 rows failed and got the class prior; the first: forecast: row 301" in done.stderr


def test_a_row_that_needs_too_much_memory_fails_alone(prefcast: Run, tmp_path: Path, site: Site) -> None:
    rows = [kaggle_row(number, prompt=("memory" if number == 3 else f"Why {number}?",)) for number in range(5)]
    path = write_jsonl(tmp_path / "f.jsonl", rows)
    done = prefcast("predict", path, "-o", "out.csv", *SURFACE, **site.environment)
    assert (done.returncode, done.stderr) == (
        3,
        "prefcast: 1 of 5 rows failed and got the class prior; the first: forecast: row 4: needs more memory than there is\n",
    )


def test_many_bad_pairs_in_a_row_end_the_call(odd_workers: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next call is answered: a server does not stop for one bad request."""
    assert pool._IN_A_ROW == 16
    monkeypatch.setattr(pool, "_IN_A_ROW", 3)
    bad = [Pair.of("leave", "a", "b")] * 6
    with closing(surface(1, batch=1)) as scorer:
        with pytest.raises(WorkerError) as raised:
            scorer.evidence(bad)
        assert str(raised.value) == (
            "3 pairs in a row could not be scored; the last one ended its worker process, which ended with status 7"
        )
        assert idle(scorer)
        found = scorer.evidence([*bad[:2], PAIRS[1], *bad[:2]])
        assert list(found.problems) == [0, 1, 3, 4]
        assert found.margin[2] == plain_evidence(PAIRS[1:2]).margin[0]


def test_workers_that_do_not_start_end_the_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text("import os; os._exit(5)")
    with closing(surface(2, batch=4)) as scorer:
        with monkeypatch.context() as patch:
            patch.setenv("PYTHONPATH", str(tmp_path))
            with pytest.raises(WorkerError) as raised:
                scorer.evidence(PAIRS)
        assert str(raised.value) == (
            "the worker process ended with status 5 before it was ready; so did the one before it"
        )
        assert_same(scorer.evidence(PAIRS), plain_evidence(PAIRS))


def test_a_scorer_that_cannot_be_loaded_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    with closing(surface(1, batch=4)) as scorer:
        scorer._room.cleanup()
        with pytest.raises(ModelError, match=r"surface\.json"):
            scorer.evidence(PAIRS)
        # The worker says what is wrong before it ends.
        wait_for(lambda: scorer.pids == [])
    assert capfd.readouterr().err == ""


def test_a_worker_goes_with_its_parent(start: Start) -> None:
    code = """
import sys
from prefcast import Pair, load_forecaster
from prefcast.runs.pool import pooled
scorer = pooled(load_forecaster("surface").scorer, isolate=True)
scorer.evidence([Pair.of("Why?", "a", "b")])
print(*scorer.pids, flush=True)
sys.stdin.read()
"""
    parent = start(program=(sys.executable, "-c", code), stdin=-1)
    assert parent.stdout is not None
    (pid,) = map(int, parent.stdout.readline().split())
    parent.kill()
    wait_for(lambda: is_gone(pid))


def test_closing_ends_all_processes_and_whoever_waits(odd_workers: Site) -> None:
    scorer = surface(2, batch=1)
    with ThreadPoolExecutor(2) as threads:
        waiting = [threads.submit(scorer.evidence, [Pair.of(f"hold {name}", "a", "b")]) for name in "ab"]
        wait_for(lambda: len(set(odd_workers.told("hold"))) == 2)
        pids = scorer.pids
        scorer.close()
        for each in waiting:
            with pytest.raises(WorkerError, match="the worker processes were stopped"):
                each.result(timeout=300)
    assert len(pids) == 2
    assert all(map(is_gone, pids))
    with pytest.raises(WorkerError, match="the worker processes were stopped"):
        scorer.evidence(PAIRS)
    scorer.close()


def test_a_caller_that_ends_early_leaves_nothing_behind(odd_workers: Site) -> None:
    held = [Pair.of(f"hold {number}", "a", "b") for number in range(3)]
    with closing(surface(2, batch=2)) as scorer:
        parts = scorer.stream([PAIRS[0], PAIRS[1], *held, *PAIRS])
        positions, _ = next(parts)
        assert list(positions) == [0, 1]
        wait_for(lambda: len(set(odd_workers.told("hold"))) == 2)
        parts.close()  # type: ignore[attr-defined]
        assert idle(scorer)
        # What the workers still have is not tried again for nobody.
        kill_all(odd_workers.told("hold"))
        odd_workers.release()
        assert_same(scorer.evidence(PAIRS), plain_evidence(PAIRS))
        assert idle(scorer)
        assert len(odd_workers.told("hold")) == 2


def test_a_failing_meter_ends_the_call() -> None:
    def broken(pairs: int) -> None:
        raise OSError("the bar broke")

    with closing(surface(1, batch=2)) as scorer:
        with pytest.raises(OSError, match="the bar broke"):
            scorer.evidence(PAIRS, Meter(broken))
        assert idle(scorer)
        meter = Meter()
        assert_same(scorer.evidence(PAIRS, meter), plain_evidence(PAIRS))
        assert meter.pairs == meter.spent.computed == len(PAIRS)


def test_several_threads_ask_at_the_same_time() -> None:
    expected = plain_evidence(PAIRS)
    together = threading.Barrier(6)

    def ask(number: int) -> Evidence:
        together.wait()
        return scorer.evidence(PAIRS[number:])

    with closing(surface(2, batch=3)) as scorer, ThreadPoolExecutor(6) as threads:
        for number, found in enumerate(threads.map(ask, range(6))):
            np.testing.assert_array_equal(found.margin, expected.margin[number:])
        # The first questions came at the same time, and started no more workers than were asked for.
        assert len(scorer._workers) == 2
        assert sum(each.name.startswith("prefcast-worker") and each.is_alive() for each in threading.enumerate()) == 2


def test_an_interrupt_ends_the_worker(start: Start, tmp_path: Path, site: Site) -> None:
    path = write_jsonl(tmp_path / "f.jsonl", [kaggle_row(1, prompt=("hang",))])
    process = start("predict", path, "-o", "out.csv", *SURFACE, "--isolate", **site.environment)
    (pid,) = wait_for(lambda: site.told("hang"), process)
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    # The first signal waits for the rows that are being scored, the second one does not.
    assert "stopping once the piece in flight is scored" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGINT
    assert said.splitlines()[-1].startswith("prefcast: stopped by SIGINT")
    assert is_gone(pid)
    assert not (tmp_path / "out.csv").exists()


# Reward models, whose devices are what asks for several workers.


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_internlm2(tmp_path_factory.mktemp("pool") / "m", changes={"max_position_embeddings": 4096})


@pytest.fixture(scope="module")
def two(folder: Path) -> Iterator[Scorer]:
    with closing(pooled(load_scorer(folder, devices="cpu,cpu"))) as scorer:
        yield scorer


@pytest.fixture
def two_threads() -> Iterator[None]:
    """A model in this process computes with two threads, each of two replicas with one."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


ODD = [Pair.of("q " * (3 * n + 1), "a " * (5 * n + 2), "b " * (7 * n + 3)) for n in range(30)]


@pytest.mark.usefixtures("two_threads")
def test_two_replicas_give_the_numbers_of_one(folder: Path, two: Scorer) -> None:
    assert isinstance(two, PooledScorer)
    assert two.workers == 2
    with closing(load_scorer(folder)) as one:
        expected, found = one.evidence(ODD), two.evidence(ODD)
        for name in one.raw_names:
            np.testing.assert_array_equal(found.raw[name], expected.raw[name])
        np.testing.assert_array_equal(found.margin, expected.margin)
        assert two.identity() == one.identity()


@pytest.mark.long
@pytest.mark.usefixtures("two_threads")
def test_two_replicas_of_a_padded_model_give_the_numbers_of_one(tmp_path: Path) -> None:
    path = save_decoder(tmp_path / "m", "gemma2")
    with closing(load_scorer(path)) as one, closing(pooled(load_scorer(path, devices="cpu,cpu"))) as other:
        np.testing.assert_array_equal(other.evidence(ODD).margin, one.evidence(ODD).margin)


@pytest.mark.usefixtures("two_threads")
def test_two_replicas_give_the_same_bytes_as_one(folder: Path, tmp_path: Path, prefcast_here: Run) -> None:
    path = write_jsonl(tmp_path / "f.jsonl", [kaggle_row(number, a=("a " * number,)) for number in range(30)])
    for devices in ("cpu", "cpu,cpu"):
        how = ("--devices", devices, "--store", f"store-{devices}", "-o", f"{devices}.csv")
        done = prefcast_here("score", path, "--model", folder, *how)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "cpu.csv").read_bytes() == (tmp_path / "cpu,cpu.csv").read_bytes()


def test_conversations_are_scored_in_the_workers(folder: Path, two: Scorer) -> None:
    talk = [
        [{"role": "user", "content": f"Why {number}?"}, {"role": "assistant", "content": "So. " * number}]
        for number in range(5)
    ]
    with closing(load_scorer(folder)) as one:
        assert isinstance(two, PooledScorer)
        np.testing.assert_array_equal(two.score(talk), one.score(talk))
        assert two.score([]).shape == (0,)
        pids = two.pids
        with pytest.raises(UsageError) as said:
            one.score([[{"role": "nobody"}]])
        with pytest.raises(UsageError) as raised:
            two.score([[{"role": "nobody"}]])
        assert str(raised.value) == str(said.value)
        # A question that is wrong ends no worker.
        assert two.pids == pids


@pytest.mark.long
def test_a_model_that_cannot_be_loaded_is_said_once(tmp_path: Path, prefcast_here: Run) -> None:
    path = save_decoder(tmp_path / "m")
    change_weights(path, lambda weights: weights.pop("score.weight"))
    done = prefcast_here("score", EXAMPLES, "--model", path, "--devices", "cpu,cpu", "-o", "s.csv")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "its weights lack score.weight" in done.stderr
    assert not (tmp_path / "s.csv").exists()


@pytest.mark.long
def test_an_interrupt_ends_every_replica(folder: Path, start: Start, tmp_path: Path) -> None:
    site = site_of(tmp_path / "site", REWARD_SITE)
    rows = [kaggle_row(number, a=("a " * number,)) for number in range(600)]
    path = write_jsonl(tmp_path / "f.jsonl", rows)
    how = ("--devices", "cpu,cpu", "-o", "s.csv")
    process = start("score", path, "--model", folder, *how, **site.environment)
    wait_for(lambda: len(set(site.told("run"))) == 2, process)
    process.send_signal(signal.SIGTERM)
    assert process.stderr is not None
    assert "stopping once the piece in flight is scored" in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGTERM
    assert said.splitlines()[-1].startswith("prefcast: stopped by SIGTERM")
    assert all(map(is_gone, site.told("run")))
    assert not (tmp_path / "s.csv").exists()


def test_a_reward_model_is_loaded_by_prepare(folder: Path) -> None:
    with closing(load_scorer(folder)) as scorer:
        assert scorer._engine is None
        scorer.prepare()
        assert scorer._engine is not None


def test_a_worker_gets_the_options_of_a_reward_model(folder: Path, tmp_path: Path) -> None:
    scorer = load_scorer(folder, devices="cpu,cpu", dtype="bfloat16", max_tokens=99, batch_tokens=500)
    again = RewardScorer.from_spec(json.loads(json.dumps(scorer.spec(tmp_path))))
    assert (again.options, again.identity()) == (scorer.options, scorer.identity())
    each = scorer.replicas()
    assert [options.devices for options in each] == [("cpu",), ("cpu",)]


def test_one_model_spread_over_devices_scores_the_same(tmp_path: Path, folder: Path) -> None:
    pairs = [pair for pair in read_pairs(EXAMPLES) if isinstance(pair, Pair)][:6]
    for path in (folder, save_decoder(tmp_path / "m"), save_ab(tmp_path / "c")):
        spread = load_scorer(path, devices="cpu,cpu", spread=True)
        assert pooled(spread) is spread
        whole = load_scorer(path).evidence(pairs)
        np.testing.assert_allclose(spread.evidence(pairs).margin, whole.margin, rtol=0, atol=1e-5)
        small = load_scorer(path, devices="cpu,cpu", spread=True, quantize="nf4").evidence(pairs)
        expected = load_scorer(path, quantize="nf4").evidence(pairs)
        np.testing.assert_allclose(small.margin, expected.margin, rtol=0, atol=1e-5)


def test_more_devices_than_layers(folder: Path) -> None:
    with pytest.raises(UsageError, match="cannot be spread over 3 devices: it has 2 layers"):
        load_scorer(folder, devices="cpu,cpu,cpu", spread=True).evidence(PAIRS[:1])


def test_devices() -> None:
    assert parse_devices("cpu, cpu") == (torch.device("cpu"),) * 2
    assert len(parse_devices("auto")) >= 1
    assert parse_devices(["cpu"]) == parse_devices("cpu")
    for devices, message in (
        ("gpu", "unknown device 'gpu'"),
        ("meta", "device 'meta' is not supported here"),
        ("cuda:99", "this machine has"),
        ("", "unknown device ''"),
    ):
        with pytest.raises(UsageError, match=message):
            parse_devices(devices)


def test_replicas_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cpu = torch.device("cpu")
    assert threads_each([cpu]) is None
    assert threads_each([cpu] * 1000) == 1
    assert threads_each([torch.device("cuda", 0), torch.device("cuda", 1)]) is None
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads_each([cpu, cpu]) is None

"""Several processes, one queue: the same output, and nothing lost when one dies."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from prefcast.scorers.reward.replicas import Replicas

from checkpoints import change_weights, save_decoder, save_internlm2
from checkpoints import fresh_scorer as load_scorer
from conftest import EXAMPLES, Run
from prefcast import Pair, read_pairs
from prefcast.errors import ModelError, UsageError, WorkerError
from prefcast.scorers.reward.devices import parse_devices, threads_each
from prefcast.scorers.reward.engine import Group, Recipe

PAIRS = [pair for pair in read_pairs(EXAMPLES) if isinstance(pair, Pair)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_internlm2(tmp_path_factory.mktemp("replicas") / "m", changes={"max_position_embeddings": 4096})


@pytest.fixture
def two_threads() -> Iterator[None]:
    """One replica in this process computes with two threads, each of two replicas with one."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def groups(count: int, tokens: int = 200) -> list[list[Group]]:
    generator = np.random.default_rng(0)
    return [[Group((generator.integers(3, 900, tokens, dtype=np.int32),))] for _ in range(count)]


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("name", ["scores.csv", "scores.jsonl", "scores.parquet"])
def test_two_replicas_give_the_same_bytes_as_one(folder: Path, tmp_path: Path, prefcast_here: Run, name: str) -> None:
    for devices in ("cpu", "cpu,cpu"):
        done = prefcast_here(
            "score",
            EXAMPLES,
            "--model",
            folder,
            "--no-keep-scores",
            "--devices",
            devices,
            "-o",
            devices.replace(",", "-") + name,
        )
        assert done.returncode == 0, done.stderr
    assert (tmp_path / f"cpu{name}").read_bytes() == (tmp_path / f"cpu-cpu{name}").read_bytes()


def test_results_come_in_the_order_asked_for(folder: Path) -> None:
    batches = [[group] for size in (300, 20, 150, 7, 80) for (group,) in groups(1, size)]
    one = Replicas([Recipe(str(folder))])
    two = Replicas([Recipe(str(folder)), Recipe(str(folder))])
    try:
        seen: list[int] = []
        first, second = one.run(batches), two.run(batches, lambda number, results: seen.append(len(results)))
        for left, right in zip(first, second, strict=True):
            np.testing.assert_array_equal(left[0], right[0])
        assert sum(seen) == len(batches)
        assert two.run([]) == []
    finally:
        one.close()
        two.close()


@pytest.mark.parametrize("victims", [1, 2])
def test_a_dead_worker_loses_nothing(folder: Path, caplog: pytest.LogCaptureFixture, victims: int) -> None:
    batches = groups(60, 400)
    replicas = Replicas([Recipe(str(folder), threads=1), Recipe(str(folder), threads=1)])
    try:
        expected = replicas.run(batches)
        doomed = replicas.pids[:victims]
        begun = threading.Event()

        def kill() -> None:
            begun.wait()
            for pid in doomed:
                os.kill(pid, signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        with caplog.at_level(logging.WARNING, "prefcast"):
            found = replicas.run(batches, lambda number, results: begun.set())
        killer.join()
        for left, right in zip(expected, found, strict=True):
            np.testing.assert_array_equal(left[0], right[0])
        assert len(caplog.messages) == victims
        for pid in doomed:
            assert any(
                f"process {pid}) was killed by SIGKILL; its batch of 1 pairs goes back into the queue" in message
                for message in caplog.messages
            )
        assert not set(replicas.pids) & set(doomed)
    finally:
        replicas.close()


def test_a_batch_that_ends_its_workers_is_given_up(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A token id outside the vocabulary ends a worker's network, whoever takes it; the rest is scored."""
    batches = groups(6)
    poisoned = [Group((np.full(30, 10**8, dtype=np.int32),))]
    replicas = Replicas([Recipe(str(folder)), Recipe(str(folder))])
    try:
        with pytest.raises(ModelError, match="scoring failed: IndexError: index out of range"):
            replicas.run([*batches, poisoned])
    finally:
        replicas.close()


def test_a_pair_that_ends_or_hangs_its_worker_is_found_by_halving(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys, time\n"
        "if 'prefcast.scorers.reward.worker' in ' '.join(sys.orig_argv):\n"
        "    from prefcast.scorers.reward.engine import Engine\n"
        "    plain = Engine.run\n"
        "    def run(self, groups):\n"
        "        for group in groups:\n"
        "            if group.ids[0][0] == 5: os._exit(9)\n"
        "            if group.ids[0][0] == 6: time.sleep(3600)\n"
        "        return plain(self, groups)\n"
        "    Engine.run = run\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(tmp_path), os.environ.get("PYTHONPATH", ""))))
    every = [group for (group,) in groups(12, 30)]
    for group in every:
        group.ids[0][0] = 8
    every[3].ids[0][0], every[7].ids[0][0] = 5, 6
    seen: list[int] = []
    replicas = Replicas([Recipe(str(folder), threads=1)], time_limit=2.0)
    try:
        found = replicas.run([every[:6], every[6:8], every[8:]], lambda number, results: seen.append(number))
    finally:
        replicas.close()
    assert sorted(seen) == [0, 1, 2]
    assert [len(batch) for batch in found] == [6, 2, 4]
    flat = [result for batch in found for result in batch]
    problems = {row: result for row, result in enumerate(flat) if isinstance(result, str)}
    assert list(problems) == [3, 7]
    assert problems[3].endswith("ended with status 9 while scoring it")
    assert problems[7].endswith("took longer than 2 s while scoring it")


def test_workers_that_keep_dying_end_the_run(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    replicas = Replicas([Recipe(str(folder), threads=1)])
    stop = threading.Event()

    def kill() -> None:
        while not stop.is_set():
            for pid in replicas.pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        with pytest.raises(WorkerError, match="was killed by SIGKILL before it had loaded the model"):
            replicas.run(groups(3))
    finally:
        stop.set()
        killer.join()
        replicas.close()


def test_a_model_that_cannot_be_loaded_is_said_once(tmp_path: Path, prefcast_here: Run) -> None:
    folder = save_decoder(tmp_path / "m")
    change_weights(folder, lambda weights: weights.pop("score.weight"))
    done = prefcast_here("score", EXAMPLES, "--model", folder, "--devices", "cpu,cpu", "-o", "s.csv")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "its weights lack score.weight" in done.stderr
    assert not (tmp_path / "s.csv").exists()


def test_workers_end_with_their_parent(folder: Path) -> None:
    scorer = load_scorer(folder, devices="cpu,cpu")
    with scorer:
        scorer.evidence(PAIRS[:2])
        pids = scorer.replicas.pids
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_one_model_spread_over_devices_scores_the_same(tmp_path: Path, folder: Path) -> None:
    for path in (folder, save_decoder(tmp_path / "m"), save_decoder(tmp_path / "c", labels=None)):
        whole = load_scorer(path).evidence(PAIRS[:6])
        spread = load_scorer(path, devices="cpu,cpu", shard=True).evidence(PAIRS[:6])
        np.testing.assert_allclose(spread.margin, whole.margin, rtol=0, atol=1e-5)
        small = load_scorer(path, devices="cpu,cpu", shard=True, quantize="nf4").evidence(PAIRS[:6])
        np.testing.assert_allclose(
            small.margin, load_scorer(path, quantize="nf4").evidence(PAIRS[:6]).margin, rtol=0, atol=1e-5
        )


def test_more_devices_than_layers(folder: Path) -> None:
    with pytest.raises(UsageError, match="cannot be spread over 3 devices: it has 2 layers"):
        load_scorer(folder, devices="cpu,cpu,cpu", shard=True).evidence(PAIRS[:1])


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


def test_a_recipe_survives_json() -> None:
    recipe = Recipe("/m", ("cuda:0", "cuda:1"), "float16", "nf4", (1, 2), 3, True)
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert Recipe.from_json(Recipe("/m").to_json()) == Recipe("/m")


def test_workers_that_die_with_nothing_to_do_cost_nothing(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    batches = groups(4)
    replicas = Replicas([Recipe(str(folder), threads=1), Recipe(str(folder), threads=1)])
    try:
        expected = replicas.run(batches)
        for pid in replicas.pids:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.3)
        with caplog.at_level(logging.WARNING, "prefcast"):
            found = replicas.run(batches)
        for left, right in zip(expected, found, strict=True):
            np.testing.assert_array_equal(left[0], right[0])
        assert any("was killed by SIGKILL; a new one takes its place" in message for message in caplog.messages)
    finally:
        replicas.close()


def test_a_failing_progress_bar_ends_the_run(folder: Path) -> None:
    def broken(number: int, results: object) -> None:
        raise OSError("the bar broke")

    replicas = Replicas([Recipe(str(folder), threads=1)])
    with pytest.raises(OSError, match="the bar broke"):
        replicas.run(groups(2), broken)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_every_process(folder: Path, tmp_path: Path, number: signal.Signals) -> None:
    rows = tmp_path / "in.jsonl"
    # No two alike: they would be scored once, and the run be over too soon.
    rows.write_text(
        "".join(
            f'{{"id": {n}, "prompt": ["q"], "response_a": ["{n} {"a " * 900}"], "response_b": ["{n} {"b " * 900}"]}}\n'
            for n in range(2000)
        )
    )
    command = [
        sys.executable,
        "-m",
        "prefcast.cli",
        "score",
        str(rows),
        "--model",
        str(folder),
        "--devices",
        "cpu,cpu",
        "-o",
        str(tmp_path / "s.csv"),
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    children: list[int] = []
    deadline = time.monotonic() + 60
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while len(children) < 2 and time.monotonic() < deadline and path.exists():
        children = [int(pid) for pid in path.read_text().split()]
        time.sleep(0.1)
    if not path.exists():
        process.kill()
        pytest.skip("needs /proc")
    time.sleep(6)
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert said.splitlines()[-1].startswith(f"prefcast: stopped by {number.name}")
    # What has ended may lie there as a zombie until the first process of the machine looks after it.
    for pid in children:
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        assert "\nState:\tZ" in status
    assert not (tmp_path / "s.csv").exists()


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2"])
def test_odd_lengths_and_sizes_give_the_same_bytes_too(tmp_path: Path, family: str) -> None:
    folder = save_decoder(tmp_path / "m", family)
    pairs = [Pair.of("q " * (3 * n + 1), "a " * (5 * n + 2), "b " * (7 * n + 3)) for n in range(30)]
    with load_scorer(folder) as one, load_scorer(folder, devices="cpu,cpu") as two:
        np.testing.assert_array_equal(two.evidence(pairs).margin, one.evidence(pairs).margin)

"""Scores that are kept: never scored twice, never another score, and nothing that a broken file could do."""

from __future__ import annotations

import logging
import os
import re
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prefcast.scorers.reward.kept import KeptScores, kept_file
from prefcast.scorers.reward.replicas import LocalReplica

from checkpoints import FAMILIES, change_config, change_weights, save_decoder, save_gemma2_pair
from conftest import EXAMPLES, Run, kaggle_row, write_csv
from prefcast import Forecaster, Pair, load_scorer, read_pairs
from prefcast.outcomes.models import Davidson
from prefcast.scorers.reward.engine import Group

PAIRS = [pair for pair in read_pairs(EXAMPLES) if isinstance(pair, Pair)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_decoder(tmp_path_factory.mktemp("kept") / "m")


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sequences of each batch that was run in this process."""
    counts: list[int] = []
    run = LocalReplica.run

    def spy(self: LocalReplica, batches: Sequence[Sequence[Group]], done: Any = None) -> Any:
        counts.extend(sum(len(group.ids) for group in batch) for batch in batches)
        return run(self, batches, done)

    monkeypatch.setattr(LocalReplica, "run", spy)
    return counts


def scores(folder: Path, pairs: Sequence[Pair] = PAIRS[:6], **options: Any) -> Any:
    with load_scorer(folder, devices="cpu", **options) as scorer:
        return scorer.evidence([Forecaster(scorer, Davidson(1, 0, 0)).read(pair)[0] for pair in pairs])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_second_run_scores_nothing_and_says_the_same(tmp_path: Path, ran: list[int], family: str) -> None:
    folder = FAMILIES[family](tmp_path / "m")
    plain = scores(folder, keep=False)
    first = scores(folder)
    assert sum(ran) == 24
    second = scores(folder, batch_tokens=100, policy="proportional")
    assert sum(ran) == 24
    assert first.raw.keys() == second.raw.keys() == plain.raw.keys()
    for name in plain.raw:
        assert plain.raw[name].tobytes() == first.raw[name].tobytes() == second.raw[name].tobytes()


def test_the_counters_and_a_scorer_that_is_used_again(folder: Path, ran: list[int]) -> None:
    scorer = load_scorer(folder, devices="cpu")
    pair = Pair.of("Why?", "Because.", "Because.")
    scorer.evidence([PAIRS[0], pair])
    assert (scorer.reused, scorer.computed) == (0, 3)
    scorer.close()
    scorer.evidence([PAIRS[0], pair, PAIRS[1]])
    assert (scorer.reused, scorer.computed) == (3, 5)
    assert sum(ran) == 5


def test_one_changed_answer_scores_one_pair_as_if_nothing_was_kept(folder: Path, ran: list[int]) -> None:
    """Alone a conversation is computed without the beginning that it shares: in bfloat16 that is seen."""
    changed = [Pair.of(PAIRS[0].prompt, PAIRS[0].response_a, "Another answer."), *PAIRS[1:6]]
    scores(folder, dtype="bfloat16")
    ran.clear()
    found = scores(folder, changed, dtype="bfloat16")
    assert ran == [2]
    assert found.margin.tobytes() == scores(folder, changed, dtype="bfloat16", keep=False).margin.tobytes()


@pytest.mark.parametrize("devices", ["cpu", "cpu,cpu"])
def test_what_is_known_does_not_change_what_is_not(folder: Path, devices: str) -> None:
    plain = scores(folder, PAIRS, keep=False)
    scores(folder, PAIRS[::3])
    with load_scorer(folder, devices=devices) as scorer:
        found = scorer.evidence(PAIRS)
    # The head is computed in float64: only there does a batch of another size leave a trace.
    np.testing.assert_allclose(found.margin, plain.margin, rtol=0, atol=1e-13)
    assert scorer.reused == 2 * len(PAIRS[::3])
    with load_scorer(folder, devices=devices) as scorer:
        assert scorer.evidence(PAIRS).margin.tobytes() == found.margin.tobytes()
        assert scorer.computed == 0


def test_a_swapped_pair_and_one_that_comes_twice_are_scored_once(folder: Path, ran: list[int]) -> None:
    seen: list[int] = []
    with load_scorer(folder, devices="cpu", keep=False) as scorer:
        scorer.on_progress = seen.append
        found = scorer.evidence([PAIRS[0], PAIRS[1], PAIRS[0], PAIRS[0].swapped()])
        assert sum(ran) == 4
        assert seen[-1] == 4
        assert found.margin[0] == found.margin[2] == -found.margin[3]
        chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]
        assert len(set(scorer.score([chat, chat, chat]).tolist())) == 1
        assert sum(ran) == 5


def test_everything_that_changes_scores_keeps_apart(tmp_path: Path, ran: list[int]) -> None:
    folder = save_decoder(tmp_path / "m")

    def new(**options: Any) -> int:
        ran.clear()
        scores(folder, PAIRS[:2], **options)
        return sum(ran)

    for options in ({}, {"dtype": "bfloat16"}, {"quantize": "nf4"}, {"quantize": "int8"}):
        assert (new(**options), new(**options)) == (4, 0)
    # The default of a CPU, said aloud.
    assert new(dtype="float32") == 0
    change_config(folder, note="changed")
    assert new() == 4
    change_weights(folder, lambda weights: weights["score.weight"].mul_(2))
    assert (new(), new()) == (4, 0)
    # What is read of a pair is in the token ids.
    assert (new(max_tokens=80), new(max_tokens=80)) == (4, 0)


def test_the_tokens_that_are_compared_keep_apart() -> None:
    one, other = (KeptScores(f"model {columns}") for columns in ((1, 2), (1, 3)))
    one.put({b"x": np.array([1.5, -0.0, 1e300])})
    assert one.get([b"x", b"y"])[b"x"].tobytes() == np.array([1.5, -0.0, 1e300]).tobytes()
    assert other.get([b"x"]) == {}
    one.put({b"x": np.array([2.0])})
    assert one.get([b"x"])[b"x"][0] == 1.5
    one.close()
    other.close()
    assert one.get([b"x"]) == {}


def test_groups_with_the_same_bytes_are_told_apart() -> None:
    def ids(*values: int) -> Any:
        return np.array(values, dtype=np.int32)

    groups = [
        Group((ids(1, 2), ids(3))),
        Group((ids(1), ids(2, 3))),
        Group((ids(1, 2, 3),)),
        Group((ids(1, 2),), (ids(0, 1),)),
        Group((ids(1, 2), ids(0, 1))),
    ]
    assert len({group.content for group in groups}) == len(groups)


def test_a_score_that_is_not_finite_is_not_kept(tmp_path: Path, ran: list[int]) -> None:
    folder = save_decoder(tmp_path / "m")
    change_weights(folder, lambda weights: weights["score.weight"].fill_(float("nan")))
    for _ in range(2):
        assert "not finite" in scores(folder, PAIRS[:1]).problems[0]
    assert sum(ran) == 4


def test_models_with_code_of_their_own_are_not_kept(tmp_path: Path, kept_scores: Path) -> None:
    folder = save_decoder(tmp_path / "m")
    (folder / "own.py").write_text("from transformers import LlamaForSequenceClassification as Own\n")
    change_config(folder, architectures=["Own"], auto_map={"AutoModelForSequenceClassification": "own.Own"})
    scorer = load_scorer(folder, trust_remote_code=True)
    assert scorer.kept is None
    assert not kept_scores.exists()


@pytest.mark.parametrize("kind", ["damaged", "another version", "another program", "folder", "no folder", "value"])
def test_a_file_that_cannot_be_used_is_told_once(
    folder: Path, kept_scores: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    expected = scores(folder)
    path = kept_file()
    assert path.parent == kept_scores
    assert (kept_scores.stat().st_mode & 0o777, path.stat().st_mode & 0o777) == (0o700, 0o600)
    if kind == "damaged":
        path.write_bytes(b"no database at all, but long enough to be looked at" * 100)
    elif kind == "folder":
        path.unlink()
        path.mkdir()
    elif kind == "no folder":
        path.unlink()
        kept_scores.rmdir()
        kept_scores.write_text("a file")
    else:
        with sqlite3.connect(path) as connection:
            connection.executescript(
                {
                    "another version": "PRAGMA user_version = 9",
                    "another program": "PRAGMA user_version = 0",
                    "value": "UPDATE scores SET numbers = zeroblob(12)",
                }[kind]
            )
        connection.close()
    with caplog.at_level(logging.WARNING, "prefcast"):
        scorer = load_scorer(folder, devices="cpu")
        for _ in range(2):
            assert scorer.evidence(PAIRS[:6]).margin.tobytes() == expected.margin.tobytes()
    (message,) = caplog.messages
    assert message.startswith("scores are not kept: ")
    assert "\n" not in message


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder(folder: Path, kept_scores: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept_scores.mkdir(mode=0o500)
    with caplog.at_level(logging.WARNING, "prefcast"):
        assert np.isfinite(scores(folder).margin).all()
    assert len(caplog.messages) == 1
    assert "Permission denied" in caplog.messages[0]


@pytest.mark.parametrize(
    ("pragma", "said"),
    [("max_page_count = 2", "database or disk is full"), ("query_only = 1", "attempt to write a readonly database")],
)
def test_a_full_disk_and_one_that_cannot_be_written(
    folder: Path, caplog: pytest.LogCaptureFixture, pragma: str, said: str
) -> None:
    scorer = load_scorer(folder, devices="cpu")
    assert scorer.kept is not None
    scorer.kept._connection.execute(f"PRAGMA {pragma}")
    chats = [
        [{"role": "user", "content": f"q {n}"}, {"role": "assistant", "content": f"a {n * n}"}] for n in range(150)
    ]
    with caplog.at_level(logging.WARNING, "prefcast"):
        found = scorer.score(chats)
    assert len(caplog.messages) == 1
    assert said in caplog.messages[0]
    again = load_scorer(folder, devices="cpu")
    assert again.score(chats).shape == found.shape
    assert again.reused + again.computed == 150


def test_only_hashes_and_numbers_are_in_the_file(folder: Path, kept_scores: Path) -> None:
    text = "an unmistakable question 4711"
    with load_scorer(folder) as scorer:
        scorer.evidence([Pair.of(text, f"{text} a", f"{text} b")])
        ids = scorer.encode([{"role": "user", "content": text}, {"role": "assistant", "content": f"{text} a"}])
        data = b"".join(path.read_bytes() for path in kept_scores.iterdir())
    assert len(data) > 1000
    assert b"unmistakable" not in data
    for kind in (np.int32, np.int64, np.uint16):
        assert np.array(ids[5:9], dtype=kind).tobytes() not in data
    assert str(folder).encode() not in data


def test_several_processes_at_once(tmp_path: Path, kept_scores: Path) -> None:
    """They all make the file, and write and read the same and other keys."""
    code = textwrap.dedent(
        """
        import logging, sys
        import numpy as np
        from prefcast.scorers.reward.kept import KeptScores
        logging.basicConfig(level=logging.WARNING)
        kept, own = KeptScores("m"), sys.argv[1]
        for n in range(100):
            kept.put({f"{own} {n}".encode(): np.array([n]), f"all {n}".encode(): np.array([n])})
            assert kept.get([f"{own} {n}".encode()])
        """
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(n)], stderr=subprocess.PIPE, text=True) for n in range(4)
    ]
    for process in processes:
        _, said = process.communicate(timeout=100)
        assert (process.returncode, said) == (0, "")
    kept = KeptScores("m")
    asked = [f"{own} {n}".encode() for own in (*range(4), "all") for n in range(100)]
    assert len(kept.get(asked)) == 500
    kept.close()


def test_several_threads_at_once() -> None:
    kept = KeptScores("m")

    def work(own: int) -> None:
        for n in range(50):
            kept.put({f"{own} {n}".encode(): np.array([float(n)])})
            kept.get([b"1 1"])

    threads = [threading.Thread(target=work, args=(own,)) for own in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(kept.get([f"{own} {n}".encode() for own in range(4) for n in range(50)])) == 200


def test_a_killed_run_keeps_its_finished_batches(folder: Path, tmp_path: Path, prefcast_here: Run) -> None:
    rows = [kaggle_row(id=n, prompt=("q",), a=("a " * 300 + str(n),), b=("b " * 300,)) for n in range(250)]
    table = write_csv(tmp_path / "in.csv", rows)
    command = [
        sys.executable,
        "-m",
        "prefcast.cli",
        "score",
        table,
        "--model",
        folder,
        "--devices",
        "cpu",
        "-o",
        "s.csv",
    ]
    process = subprocess.Popen(list(map(str, command)), cwd=tmp_path)
    deadline = time.monotonic() + 60
    while _count() < 5 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = _count()
    assert 5 <= kept < 250
    done = prefcast_here("score", table, "--model", folder, "--devices", "cpu", "-o", "s.csv")
    assert done.returncode == 0
    assert f"{2 * kept} of 500 sequences were scored before and not again (--no-keep-scores scores anew)" in done.stderr


def _count() -> int:
    """The rows of the file, as another program reads them."""
    try:
        connection = sqlite3.connect(f"file:{kept_file()}?mode=ro", uri=True)
        try:
            return int(connection.execute("SELECT count(*) FROM scores").fetchone()[0])
        finally:
            connection.close()
    except sqlite3.Error:
        return 0


def test_the_command_line_tells(folder: Path, tmp_path: Path, prefcast_here: Run, kept_scores: Path) -> None:
    told = r"^prefcast: (\d+) of \1 sequences were scored before and not again \(--no-keep-scores scores anew\)$"

    def run(*arguments: str | Path) -> bool:
        done = prefcast_here(*arguments)
        assert done.returncode == 0, done.stderr
        return bool(re.search(told, done.stderr, re.MULTILINE))

    score = ("score", EXAMPLES, "--model", folder)
    assert not run(*score, "--no-keep-scores", "-o", "none.csv")
    assert not kept_scores.exists()
    assert not run(*score, "--devices", "cpu,cpu", "-o", "first.csv")
    assert run(*score, "-o", "second.csv")
    assert (tmp_path / "first.csv").read_bytes() == (tmp_path / "second.csv").read_bytes()
    Forecaster(load_scorer(folder), Davidson(1, 0, 0)).save(tmp_path / "f")
    assert '"keep"' not in (tmp_path / "f" / "reward-model.json").read_text()
    assert run("evaluate", EXAMPLES, "--forecaster", "f", "--json", "-")
    assert not run("predict", EXAMPLES, "--forecaster", "f", "--no-keep-scores", "-o", "p.csv")


def test_pair_classifiers_keep_both_orders(tmp_path: Path, ran: list[int]) -> None:
    folder = save_gemma2_pair(tmp_path / "m")
    first = scores(folder, PAIRS[:3])
    backward = scores(folder, [pair.swapped() for pair in PAIRS[:3]])
    assert sum(ran) == 6
    np.testing.assert_array_equal(backward.margin, -first.margin)
    np.testing.assert_array_equal(backward.tie, first.tie)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"PREFCAST_CACHE": "/own"}, "/own/scores.sqlite"),
        ({"PREFCAST_CACHE": "", "XDG_CACHE_HOME": "/shared"}, "/shared/prefcast/scores.sqlite"),
        ({"PREFCAST_CACHE": "", "XDG_CACHE_HOME": "", "HOME": "/home/me"}, "/home/me/.cache/prefcast/scores.sqlite"),
    ],
)
def test_where_the_file_lies(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: str) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert kept_file() == Path(expected)

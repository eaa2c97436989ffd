"""Long runs: what was scored is never lost and never scored twice, and the output is the same to the last byte."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prefcast.runs.journal import Entry, Journal
from prefcast.runs.lock import Lock
from prefcast.runs.packed import digest_of, link_as_json, link_of_json, pack, unpack

from conftest import EXAMPLES, Run, kaggle_row, labelled, write_csv, write_jsonl
from prefcast import load_forecaster, open_pairs
from prefcast.errors import JournalError, ResourceError, RowError, UsageError
from prefcast.forecasts.predictions import Forecasts
from prefcast.forecasts.scores import RawScores
from prefcast.pairs import Pair
from prefcast.pairs.pieces import pieces
from prefcast.runs.jobs import forecasting, scoring
from prefcast.runs.log import Watch, duration_text
from prefcast.runs.loop import Job, run_to
from prefcast.runs.shards import ShardOf

WORDS = ["the", "sky", "is", "blue", "because", "of", "light", "that", "scatters", "and", "nothing", "else"]


def rows_of(count: int, words: int = 60) -> list[dict[str, Any]]:
    """Rows that take a while: labels, models, ids, a few faults among them."""
    generator = random.Random(count)
    rows = []
    for number in range(count):
        texts = [" ".join(generator.choices(WORDS, k=generator.randrange(words))) for _ in range(3)]
        row = labelled(number % 3, id=f"id-{number}", prompt=(texts[0],), a=(texts[1],), b=(texts[2],))
        rows.append(row | {"model_a": f"m{number % 5}", "model_b": None if number % 4 else "\u202e"})
        if number % 401 == 400:
            rows[-1]["prompt"] = 5
    return rows


def quick(arguments: tuple[str | Path, ...]) -> list[str]:
    """With the instant model where none is named."""
    said = [*map(str, arguments)]
    named = {"--model", "--forecaster", "--scores"} & set(said)
    return said if named or said[0] not in ("predict", "score") else [*said, "--model", "surface"]


@pytest.fixture
def prefcast(prefcast: Run) -> Run:
    return lambda *arguments, **options: prefcast(*quick(arguments), **options)


def start(folder: Path, *arguments: str | Path, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "prefcast.cli", *quick(arguments)]
    return subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment})


def events(said: str) -> list[dict[str, Any]]:
    """The events of a log, its last line perhaps cut short by a kill."""
    lines = [line for line in said.splitlines() if line.startswith("{")]
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:
            assert line is lines[-1]
    return found


def pieces_in(journal: Path) -> int:
    """How many pieces a journal holds, read beside the process that writes it."""
    log = journal / "journal.sqlite-wal"
    return log.stat().st_size if log.exists() else 0


def killed_often(folder: Path, kills: int, *arguments: str | Path) -> None:
    """Kill the run at `kills` random moments, let it end, and compare with an undisturbed one."""
    whole, disturbed = folder / "whole.jsonl", folder / "out.jsonl"
    process = start(folder, *arguments, "-o", whole, "--log", "json")
    began = time.monotonic()
    undisturbed = events(process.communicate(timeout=600)[1])
    took = time.monotonic() - began
    assert process.returncode in (0, 3)
    expected = Counter(event["number"] for event in undisturbed if event["event"] == "chunk")
    assert set(expected.values()) == {1}
    scored: Counter[int] = Counter()
    moments = random.Random(kills)
    killed = lost = 0

    def check(code: int, said: str) -> None:
        """Count what an attempt scored; where it was the last, compare."""
        nonlocal lost
        scored.update(event["number"] for event in events(said) if event["event"] == "chunk")
        lost += code == -signal.SIGKILL
        # Beyond the piece in flight at each kill, whose event may lack, none was scored twice.
        assert all(count == 1 for count in scored.values()), scored
        if disturbed.exists():
            assert disturbed.read_bytes() == whole.read_bytes()
        if disturbed.exists() and not (folder / "out.jsonl.journal").exists():
            assert set(scored) <= set(expected)
            assert len(expected) - len(scored) <= lost
            scored.clear()
            disturbed.unlink()
            lost = 0

    for number in range(kills):
        process = start(folder, *arguments, "-o", disturbed, "--log", "json")
        assert process.stderr is not None
        # After some pieces, and then at any moment of the next; now and then while it still starts.
        some, said = moments.randrange(2 * len(expected) // kills + 1), ""
        while number % 5 and some and (line := process.stderr.readline()):
            said += line
            some -= '"chunk"' in line
        time.sleep(moments.uniform(0, took if number % 5 == 0 else 2 * took / len(expected)))
        process.send_signal(signal.SIGKILL)
        said += process.communicate(timeout=60)[1]
        killed += process.returncode == -signal.SIGKILL
        check(process.returncode, said)
    assert killed
    process = start(folder, *arguments, "-o", disturbed, "--log", "json")
    said = process.communicate(timeout=600)[1]
    assert process.returncode in (0, 3), said
    check(process.returncode, said)
    assert not list(folder.glob("out*"))


def test_kill_9_at_any_moment(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "f.jsonl", rows_of(2500))
    killed_often(tmp_path, 4, "predict", path, "--with-text")


@pytest.mark.long
def test_kill_9_at_30_random_moments(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "f.jsonl", rows_of(20_000))
    killed_often(tmp_path, 30, "predict", path)


@pytest.mark.long
def test_kill_9_at_30_random_moments_of_an_embedded_forecaster(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "f.jsonl", rows_of(6_000, 20))
    killed_often(tmp_path, 30, "predict", path, "--model", "embedded")


def test_an_embedded_forecaster_goes_on(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "f.jsonl", rows_of(1500, 20))
    killed_often(tmp_path, 2, "predict", path, "--model", "embedded")


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("verb", ["predict", "score"])
def test_shards_merge_into_the_single_run(prefcast: Run, tmp_path: Path, verb: str, ending: str) -> None:
    path = write_jsonl(tmp_path / "f.jsonl", rows_of(1000))
    arguments = [verb, path, "--model", "surface"]
    if verb == "predict" and ending != ".csv":
        arguments.append("--with-text")
    assert prefcast(*arguments, "-o", f"whole{ending}").returncode == 3
    count = 3
    for index in range(1, count + 1):
        done = prefcast(*arguments, "-o", f"out{ending}", "--shard", f"{index}/{count}")
        assert done.returncode == (0 if index == 3 else 3), done.stderr
    shards = sorted(tmp_path.glob("out*.shard-*"))
    assert [shard.name for shard in shards] == [f"out{ending}.shard-{index}-of-{count}" for index in (1, 2, 3)]
    done = prefcast("merge", *reversed(shards), "-o", f"out{ending}")
    assert done.returncode == 3
    assert done.stderr.startswith(f"prefcast: 2 of 1000 rows failed; the first: {path}: row 401, prompt: is a number")
    assert (tmp_path / f"out{ending}").read_bytes() == (tmp_path / f"whole{ending}").read_bytes()


def test_seven_shards_are_the_single_run_and_a_wrong_one_is_named(prefcast: Run, tmp_path: Path) -> None:
    path = write_csv(tmp_path / "f.csv", rows_of(2000)[:400] + rows_of(2000)[402:])
    assert prefcast("predict", path, "-o", "whole.csv").returncode == 3
    for index in range(1, 8):
        assert prefcast("predict", path, "-o", "out.csv", "--shard", f"{index}/7").returncode in (0, 3)
    shards = [tmp_path / f"out.csv.shard-{index}-of-7" for index in range(1, 8)]
    assert prefcast("merge", *shards, "-o", "out.csv").returncode == 3
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()

    def refused(*given: Path) -> str:
        done = prefcast("merge", *given, "-o", "none.csv")
        assert done.returncode == 2
        assert not (tmp_path / "none.csv").exists()
        (line,) = done.stderr.splitlines()
        return line.replace(f"{tmp_path}/", "")

    assert refused(*shards[:2], *shards[3:]) == "prefcast: shard 3 of 7 is missing"
    assert refused(shards[0], shards[6]) == "prefcast: shards 2, 3, 4, 5, 6 of 7 are missing"
    shutil.copy(shards[2], tmp_path / "copy")
    assert refused(*shards, tmp_path / "copy") == (
        "prefcast: shard 3 of 7 is there twice: out.csv.shard-3-of-7 and copy"
    )
    assert prefcast("predict", path, "-o", "b.csv", "--shard", "3/7", "--budget", "keep-last:100").returncode in (0, 3)
    assert refused(*shards[:2], tmp_path / "b.csv.shard-3-of-7", *shards[3:]) == (
        "prefcast: out.csv.shard-1-of-7 and b.csv.shard-3-of-7 are not of one run: its budget is 'keep-last:24000', in the "
        "second 'keep-last:100'"
    )
    write_csv(path, rows_of(2000)[:399] + rows_of(2000)[401:])
    assert prefcast("predict", path, "-o", "c.csv", "--shard", "4/7").returncode in (0, 3)
    assert "not of one run: its input held other rows" in refused(
        *shards[:3], tmp_path / "c.csv.shard-4-of-7", *shards[4:]
    )
    assert refused(EXAMPLES).endswith("is not a shard (prefcast predict --shard I/N makes them), or is damaged")
    data = bytearray(shards[1].read_bytes())
    where = data.rfind(b'"Forecasts"')
    data[where + 3] ^= 1
    shards[1].write_bytes(data)
    assert "out.csv.shard-2-of-7: is damaged" in refused(*shards)


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "a/b", "1/3/5", "-1/3", ""])
def test_what_is_no_shard(text: str) -> None:
    with pytest.raises(UsageError, match=r"--shard: .* is not of the form I/N, like 3/7"):
        ShardOf.parse(text)


def stopped_run(folder: Path, *arguments: str | Path, number: signal.Signals = signal.SIGINT) -> str:
    """What a run said that a signal stopped after some pieces were kept."""
    process = start(folder, *arguments)
    journal = folder / "out.csv.journal"
    end = time.monotonic() + 60
    while time.monotonic() < end and pieces_in(journal) < 100_000:
        time.sleep(0.002)
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + number, said
    return said


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Rows enough for a signal to come in between."""
    return write_jsonl(tmp_path / "f.jsonl", [kaggle_row(number, a=("word " * 300,)) for number in range(15_000)])


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_ends_the_piece_in_flight_and_says_how_to_go_on(tmp_path: Path, many: Path, name: str) -> None:
    said = stopped_run(tmp_path, "predict", many, "-o", "out.csv", number=getattr(signal, name))
    last = said.splitlines()[-1]
    assert last.startswith(f"prefcast: stopped by {name} after ")
    assert last.endswith("000 rows; the same command goes on from there")
    assert {path.name for path in tmp_path.iterdir()} == {"f.jsonl", "out.csv.journal"}
    assert {path.name for path in (tmp_path / "out.csv.journal").iterdir()} <= {"journal.sqlite", "lock"}
    kept = int(last.split(" after ")[1].split(" ")[0].replace(",", ""))
    assert kept % 256 == 0
    process = start(tmp_path, "predict", many, "-o", "out.csv", "--log", "json")
    found = events(process.communicate(timeout=120)[1])
    assert process.returncode == 0
    resumed = next(event for event in found if event["event"] == "resumed")
    assert resumed["rows"] == kept
    assert sum(event["rows"] for event in found if event["event"] == "chunk") == 15_000 - kept
    assert {path.name for path in tmp_path.iterdir()} == {"f.jsonl", "out.csv"}
    assert found[-1]["event"] == "finished"
    assert (found[-1]["rows"], found[-1]["restored"]) == (15_000, kept)


def test_another_run_is_refused_with_the_difference(prefcast: Run, tmp_path: Path, many: Path) -> None:
    stopped_run(tmp_path, "predict", many, "-o", "out.csv")
    (tmp_path / "g.jsonl").write_bytes(many.read_bytes())
    begin = "prefcast: out.csv.journal: belongs to another run: "
    for arguments, difference in (
        ((many, "--budget", "keep-last:100"), "its budget is 'keep-last:24000', here it is 'keep-last:100';"),
        ((many, "--model", "length"), "its model is 'surface', here it is 'length'; its scorer is "),
        (("g.jsonl",), f"its input is '{many}', here it is 'g.jsonl';"),
        ((many, "--cells", "text"), "its cells is 'json', here it is 'text';"),
    ):
        done = prefcast("predict", *arguments, "-o", "out.csv")
        assert done.returncode == 2
        assert begin + difference in done.stderr
        assert done.stderr.endswith("--fresh starts over, the same as before goes on\n")
    done = prefcast("score", many, "--model", "surface", "-o", "out.csv")
    assert done.stderr.startswith(f"{begin}its verb is 'predict', here it is 'score';")
    lines = many.read_text().splitlines(keepends=True)
    changed = [lines[0].replace("Why?", "How?"), *lines[1:]]
    many.write_text("".join(changed))
    done = prefcast("predict", many, "-o", "out.csv")
    assert (done.returncode, done.stderr.splitlines()[1:]) == (
        2,
        [f"prefcast: {many}: rows 1 to 256 changed since the run began; --fresh starts over"],
    )
    many.write_text("".join(lines[:100]))
    assert "rows 1 to 100 changed" in prefcast("predict", many, "-o", "out.csv").stderr
    many.write_text("".join(lines[:256]))
    assert "ends after 256 rows, but row 257 was scored since the run began" in (
        prefcast("predict", many, "-o", "out.csv").stderr
    )
    assert not (tmp_path / "out.csv").exists()
    done = prefcast("predict", many, "-o", "out.csv", "--fresh")
    assert (done.returncode, done.stderr) == (0, "")
    assert {path.name for path in tmp_path.iterdir()} == {"f.jsonl", "g.jsonl", "out.csv"}


def test_an_input_that_changes_during_the_run(prefcast: Run, tmp_path: Path, many: Path) -> None:
    process = start(tmp_path, "predict", many, "-o", "out.csv")
    end = time.monotonic() + 60
    while time.monotonic() < end and pieces_in(tmp_path / "out.csv.journal") < 60_000:
        time.sleep(0.002)
    with many.open("a") as file:
        file.write(json.dumps(kaggle_row(15_000)) + "\n")
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 2
    (line,) = said.splitlines()
    assert line.startswith(f"prefcast: {many}: changed while it was read, so nothing was written; 15,0")
    assert line.endswith(" rows are kept: the same command goes on from there")
    assert not (tmp_path / "out.csv").exists()
    done = prefcast("predict", many, "-o", "out.csv")
    assert done.returncode in (0, 2)
    if done.returncode == 2:
        # The reader had not seen the new row: the last piece is another one.
        assert "rows 14849 to 15001 changed since the run began" in done.stderr


def test_one_process_a_run(prefcast: Run, tmp_path: Path, many: Path) -> None:
    first = start(tmp_path, "predict", many, "-o", "out.csv")
    end = time.monotonic() + 60
    while time.monotonic() < end and not pieces_in(tmp_path / "out.csv.journal"):
        time.sleep(0.002)
    first.send_signal(signal.SIGSTOP)
    try:
        for fresh in ([], ["--fresh"]):
            second = prefcast("predict", many, "-o", "out.csv", *fresh)
            assert second.returncode == 2
            assert second.stderr.startswith(f"prefcast: {tmp_path}/out.csv.journal: process {first.pid} on ") or (
                second.stderr.startswith(f"prefcast: out.csv.journal: process {first.pid} on ")
            )
            assert second.stderr.endswith("is at work on this run; wait for it, or write to another file\n")
    finally:
        first.send_signal(signal.SIGKILL)
        first.communicate()
    # The lock of a process that is gone holds nobody up.
    done = prefcast("predict", many, "-o", "out.csv")
    assert done.returncode == 0, done.stderr


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 600 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    if (
        mount is None
        or subprocess.run([mount, "-t", "tmpfs", "-o", "size=600k", "none", folder], capture_output=True).returncode
    ):
        pytest.skip("needs leave to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)  # noqa: S607


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_a_full_disk_keeps_what_was_scored(prefcast: Run, tmp_path: Path, small_disk: Path, ending: str) -> None:
    path = write_jsonl(tmp_path / "f.jsonl", [kaggle_row(number, a=("word " * 20,)) for number in range(9_000)])
    assert prefcast("predict", path, "-o", f"whole{ending}").returncode == 0
    output = small_disk / f"out{ending}"
    done = prefcast("predict", path, "-o", output)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "cannot be written: " in line
    assert "No space left on device" in line or "database or disk is full" in line
    assert line.endswith(" rows are kept: the same command goes on from there")
    assert [found.name for found in small_disk.iterdir()] == [f"out{ending}.journal"]
    again = prefcast("predict", path, "-o", output)
    assert again.returncode == 2
    subprocess.run(["mount", "-o", "remount,size=20m", small_disk], check=True)  # noqa: S607
    process = start(tmp_path, "predict", path, "-o", output, "--log", "json")
    found = events(process.communicate(timeout=120)[1])
    assert process.returncode == 0
    kept = next(event for event in found if event["event"] == "resumed")["rows"]
    assert kept >= 256
    assert sum(event["rows"] for event in found if event["event"] == "chunk") == 9_000 - kept
    assert output.read_bytes() == (tmp_path / f"whole{ending}").read_bytes()


def test_a_limit_on_the_size_of_files_is_a_full_disk(tmp_path: Path, many: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    command = [sys.executable, "-m", "prefcast.cli", *quick(("predict", many, "-o", "out.csv"))]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, preexec_fn=limit)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "cannot be written" in line
    assert "rows are kept" in line


def test_a_folder_that_is_read_only(prefcast: Run, tmp_path: Path, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)  # noqa: S607
    done = prefcast("predict", EXAMPLES, "-o", small_disk / "out.csv")
    assert (done.returncode, done.stderr) == (
        2,
        f"prefcast: {small_disk}/out.csv: cannot be written: Read-only file system\n",
    )


def test_a_folder_of_the_journals_name_is_left_alone(prefcast: Run, tmp_path: Path) -> None:
    (tmp_path / "out.csv.journal").mkdir()
    (tmp_path / "out.csv.journal" / "mine.txt").write_text("mine")
    done = prefcast("predict", EXAMPLES, "-o", "out.csv", "--fresh")
    assert (done.returncode, done.stderr) == (
        2,
        "prefcast: out.csv.journal: is not a journal of ours; move it away, or write to another file\n",
    )
    assert (tmp_path / "out.csv.journal" / "mine.txt").read_text() == "mine"


def test_a_damaged_journal_is_refused(prefcast: Run, tmp_path: Path, many: Path) -> None:
    stopped_run(tmp_path, "predict", many, "-o", "out.csv")
    file = tmp_path / "out.csv.journal" / "journal.sqlite"
    data = bytearray(file.read_bytes())
    data[data.rfind(b'"Forecasts"') + 3] ^= 1
    file.write_bytes(data)
    done = prefcast("predict", many, "-o", "out.csv")
    assert done.returncode == 2
    assert "out.csv.journal: is damaged at rows " in done.stderr.splitlines()[-1]
    file.write_bytes(b"no database at all, but long enough to be looked at" * 100)
    done = prefcast("predict", many, "-o", "out.csv")
    assert done.returncode == 2
    assert done.stderr.startswith("prefcast: out.csv.journal: is damaged: file is not a database; --fresh starts over")


def test_standard_input_goes_on_too(tmp_path: Path, many: Path, prefcast: Run) -> None:
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "prefcast.cli", *quick(("predict", "-", "-o", "out.csv"))],
        cwd=tmp_path,
        stdin=reader,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(reader)
    data = many.read_bytes()
    os.write(writer, data[:100])
    with os.fdopen(writer, "wb") as pipe:
        pipe.write(data[100 : len(data) // 5])
        pipe.flush()
        end = time.monotonic() + 60
        while time.monotonic() < end and pieces_in(tmp_path / "out.csv.journal") < 60_000:
            time.sleep(0.01)
        # It waits for more to read: nothing is in flight, and it ends at once.
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=30)[1]
    assert process.returncode == 130
    assert " rows; the same command goes on from there" in said
    done = prefcast("predict", "-", "-o", "out.csv", stdin=data)
    assert done.returncode == 0
    assert "rows were scored before and are not scored again" in done.stderr
    assert prefcast("predict", many, "-o", "whole.csv").returncode == 0
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_the_log_has_no_texts_and_one_object_a_line(prefcast: Run, tmp_path: Path) -> None:
    hidden = "\u202esecret\x1b[31m"
    rows = [kaggle_row(f"{hidden}{number}", prompt=hidden if number == 5 else (hidden,)) for number in range(300)]
    done = prefcast("predict", write_jsonl(tmp_path / "f.jsonl", rows), "-o", "out.csv", "--log", "json")
    assert done.returncode == 3
    assert "secret" not in done.stderr
    found = [json.loads(line) for line in done.stderr.splitlines()]
    assert [event["event"] for event in found] == ["started", "row_failed", "chunk", "chunk", "finished"] or [
        event["event"] for event in found
    ] == ["started", "chunk", "row_failed", "chunk", "finished"]
    failed = next(event for event in found if event["event"] == "row_failed")
    assert (failed["row"], failed["field"], failed["kind"]) == (6, "prompt", "reading")
    finished = found[-1]
    assert (finished["rows"], finished["failed"], finished["errors"]) == (300, 1, {"reading": 1})
    assert sum(finished["shares"].values()) == pytest.approx(1, abs=0.001)
    refused = prefcast("predict", tmp_path / "none.jsonl", "-o", "out.csv", "--log", "json")
    assert json.loads(refused.stderr)["event"] == "message"


HEADER = {"verb": "test"}


def test_a_journal_holds_what_was_put(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "o", HEADER)
    journal.put(Entry(3, 10, 2, b"d", b"payload"))
    journal.note(a=1)
    journal.close()
    again = Journal(tmp_path / "o", HEADER)
    assert (again.rows, again.count, again.noted("a"), again.noted("b")) == (2, 1, 1, None)
    assert again.get(3) == Entry(3, 10, 2, b"d", b"payload")
    assert again.get(2) is None
    assert again.after(0) == again.get(3)
    with pytest.raises(JournalError, match=rf"process {os.getpid()} on "):
        Journal(tmp_path / "o", HEADER)
    again.remove()
    assert not any(tmp_path.iterdir())
    Journal(tmp_path / "o", HEADER).close()
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("model", "part"), [("surface", slice(None)), ("embedded", slice(395, None, 5))])
def test_pieces_survive_as_bytes(tmp_path: Path, model: str, part: slice) -> None:
    path = write_jsonl(tmp_path / "f.jsonl", [*rows_of(450), kaggle_row("last", prompt=("\ud800",), a=("x" * 30_000,))])
    with open_pairs(path) as file:
        items = list(file)[part]
    assert any(isinstance(item, RowError) for item in items)
    forecaster = load_forecaster(model)
    for job in (forecasting(forecaster), scoring(forecaster.scorer, forecaster.budget)):
        piece = job.score(items)
        for again in (
            unpack(pack(piece), items, job.link),
            unpack(pack(piece), None, link_of_json(json.loads(json.dumps(link_as_json(job.link))))),
            unpack(pack(piece, with_text=True), None, job.link),
        ):
            assert list(again.records()) == list(piece.records())
            assert (again.failed, [str(e) for e in again.errors]) == (piece.failed, [str(e) for e in piece.errors])
        if isinstance(piece, Forecasts):
            whole = unpack(pack(piece, with_text=True), None, job.link)
            assert isinstance(whole, Forecasts)
            assert list(whole.records(with_text=True)) == list(piece.records(with_text=True))
        else:
            assert isinstance(piece, RawScores)


def test_a_digest_tells_rows_apart() -> None:
    pairs = [
        Pair.of("a", "b", "c"),
        Pair.of("a", "bc", ""),
        Pair.of("ab", "", "c"),
        Pair.of("a", "b", "c", id=1),
        Pair.of("a", "b", "c", id="0"),
        Pair.of(["a", "b"], ["c", ""], ["", ""]),
    ]
    digests = {digest_of([pair]) for pair in pairs}
    digests |= {digest_of([RowError("f", 1, "", "x")]), digest_of([RowError("f", 2, "", "x")]), digest_of([])}
    assert len(digests) == len(pairs) + 3


def test_a_run_in_the_library_without_files(tmp_path: Path) -> None:
    """Who scores elsewhere and out of order gives the journal its pieces; the run then only collects them."""
    pairs = [Pair.of("Why?", f"Because {number}.", "So.", id=number) for number in range(600)]
    forecaster = load_forecaster("surface")
    job = forecasting(forecaster)
    journal = Journal(tmp_path / "o", job.header)
    every = list(enumerate(pieces(pairs)))
    for number, chunk in reversed(every):
        first = 256 * number + 1
        journal.put(Entry(number, first, len(chunk), digest_of(chunk), pack(job.score(chunk))))

    parts: list[Forecasts] = []

    class Collector:
        def write(self, piece: Forecasts) -> None:
            parts.append(piece)

    def unexpected(items: Any) -> Any:
        raise AssertionError("nothing is left to score")

    report = run_to(Collector(), pairs, Job(unexpected, forecaster.scorer, job.header, job.link), journal=journal)
    journal.remove()
    assert (report.rows, report.restored) == (600, 600)
    np.testing.assert_array_equal(
        np.concatenate([part.probabilities for part in parts]), forecaster.forecast(pairs).probabilities
    )


def test_stopping_at_an_error_keeps_what_went_before(prefcast: Run, tmp_path: Path) -> None:
    rows = [kaggle_row(number, prompt=5 if number == 300 else ("Why?",)) for number in range(400)]
    path = write_jsonl(tmp_path / "f.jsonl", rows)
    done = prefcast("predict", path, "-o", "out.csv", "--on-error", "stop")
    assert done.returncode == 2
    assert done.stderr.endswith("; 256 rows are kept: the same command goes on from there\n")
    rows[300] = kaggle_row(300)
    write_jsonl(path, rows)
    done = prefcast("predict", path, "-o", "out.csv", "--on-error", "stop")
    assert (done.returncode, done.stderr.count("\n")) == (0, 1)


def test_an_estimate_where_it_takes_long(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from prefcast.runs.log import Log

    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    watch = Watch(Log(), None, lambda: (1_000, 100_000))
    watch.rows_read = 256
    for second in range(8):
        now[0] = float(second)
        watch.done(100 + 10 * second, 100 + 10 * second)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("prefcast: about 42 minutes more for about 26,000 rows, in ")
    assert duration_text(30) == "30 seconds"
    assert duration_text(130) == "2.2 minutes"


def test_a_fault_of_the_disk_is_the_machines(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "o", HEADER)
    journal.put(Entry(0, 1, 1, b"", b"x"))
    journal._db.execute("PRAGMA max_page_count = 2")
    with pytest.raises(ResourceError, match=r"o\.journal: cannot be written: database or disk is full"):
        journal.put(Entry(1, 2, 1, b"", bytes(50_000)))
    journal.close()


def test_what_ends_leaves_alone_who_has_begun_since(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Journal(tmp_path / "out.csv", {})
    let_go, since = Lock.remove, list[Journal]()

    def remove(lock: Lock) -> None:
        let_go(lock)
        if not since:
            since.append(Journal(tmp_path / "out.csv", {}))

    monkeypatch.setattr(Lock, "remove", remove)
    first.remove()
    since[0].put(Entry(0, 1, 1, b"", b""))
    with pytest.raises(JournalError, match="is at work on this run"):
        Journal(tmp_path / "out.csv", {})
    since[0].close()
    assert Journal(tmp_path / "out.csv", {}).rows == 1


def test_a_journal_that_can_no_longer_be_read_is_one_line(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "out.csv", {})
    journal.put(Entry(0, 1, 1, b"", b""))
    # From here on SQLite gives up whatever it is asked.
    journal._db.set_progress_handler(lambda: 1, 1)
    for read in (journal.digests, lambda: journal.after(0), lambda: journal.get(0), lambda: journal.noted("rows")):
        with pytest.raises(JournalError, match="is damaged: interrupted; --fresh starts over"):
            read()
    journal.close()


def test_a_journal_whose_header_is_nonsense_is_refused(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "out.csv", {"verb": "predict"})
    journal.put(Entry(0, 1, 1, b"", b""))
    journal.close()
    db = sqlite3.connect(tmp_path / "out.csv.journal" / "journal.sqlite")
    with db:
        db.execute("UPDATE facts SET value = '{\"ver'")
    db.close()
    with pytest.raises(JournalError, match="is damaged in its header; --fresh starts over"):
        Journal(tmp_path / "out.csv", {"verb": "predict"})


def test_the_journal_of_an_unfinished_shard_is_named_as_such(prefcast: Run, tmp_path: Path) -> None:
    assert prefcast("predict", EXAMPLES, "-o", "out.csv", "--shard", "1/2").returncode == 0
    journal = Journal(tmp_path / "out.csv.shard-2-of-2", {})
    journal.put(Entry(1, 257, 1, b"", b""))
    journal.close()
    done = prefcast("merge", *sorted(path.name for path in tmp_path.glob("out.csv.shard-*")), "-o", "out.csv")
    assert (done.returncode, done.stderr) == (
        2,
        "prefcast: out.csv.shard-2-of-2.journal: is a run that is not finished; its own command goes on with it\n",
    )

"""Long runs: what was scored is never lost and never scored twice, and the output is the same to the last byte."""

from __future__ import annotations

import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkpoints import INTERNLM2
from conftest import EXAMPLES, PREFCAST, Run, Start, kaggle_row, labelled, wait_for, write_csv, write_jsonl, writes
from prefcast import load_forecaster
from prefcast.errors import RunError, UsageError
from prefcast.forecasts.predictions import Forecasts
from prefcast.pairs import Pair
from prefcast.runs.jobs import predict_to
from prefcast.runs.log import Watch, duration_text
from prefcast.runs.shards import Shard, ShardOf, open_shards
from prefcast.scorers.store import EvidenceStore

# Rows enough for a signal to come in between.
MANY = 6_000

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


def until(process: subprocess.Popen[str], name: str, count: int = 1) -> str:
    """What a process with --log json says until its `count`th event of that name."""
    assert process.stderr is not None
    said = ""
    while count:
        line = process.stderr.readline()
        assert line, said
        said += line
        count -= f'"event": "{name}"' in line
    return said


def killed_often(start: Start, folder: Path, kills: int, outputs: list[str], *arguments: str | Path) -> None:
    """Kill a command at `kills` random moments, let it end, and compare what it wrote with an undisturbed run.

    `{}` in an argument is the folder that it writes into.
    """
    moments = random.Random(kills)
    log = ("--log", "json") if arguments[0] in ("predict", "score") else ()

    def begin(where: str) -> subprocess.Popen[str]:
        (folder / where).mkdir(exist_ok=True)
        said = [str(argument).replace("{}", where) for argument in arguments]
        return start(*quick((*said, *log)), stdout=subprocess.DEVNULL, PREFCAST_CACHE=str(folder / f"{where}-store"))

    process, began = begin("whole"), time.monotonic()
    process.communicate(timeout=1200)
    took = time.monotonic() - began
    assert process.returncode in (0, 3)
    killed = 0
    for _ in range(10 * kills):
        if killed == kills:
            break
        process, began = begin("out"), time.monotonic()
        try:
            process.communicate(timeout=moments.uniform(0, took))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        killed += process.returncode == -signal.SIGKILL
        whole = [each for each in outputs if (folder / "out" / each).is_file()]
        for each in whole:
            assert (folder / "out" / each).read_bytes() == (folder / "whole" / each).read_bytes()
        if process.returncode != -signal.SIGKILL:
            # It had come so far that it ended: the next attempts begin again.
            assert process.returncode in (0, 3)
            took = min(took, time.monotonic() - began)
            shutil.rmtree(folder / "out-store", ignore_errors=True)
            shutil.rmtree(folder / "out")
    assert killed == kills
    process = begin("out")
    said = process.communicate(timeout=1200)[1]
    assert process.returncode in (0, 3), said
    assert not [event for event in events(said) if event["event"] == "message" and "store" in event["text"]]
    files = {path.relative_to(folder / "out") for path in (folder / "out").rglob("*") if path.is_file()}
    assert files == {path.relative_to(folder / "whole") for path in (folder / "whole").rglob("*") if path.is_file()}
    for each in files:
        assert (folder / "out" / each).read_bytes() == (folder / "whole" / each).read_bytes(), each
    again = begin("out")
    said = again.communicate(timeout=1200)[1]
    # Nothing is scored a second time.
    assert all(event["kept"] == event["rows"] - event["failed"] for event in events(said) if event["event"] == "piece")


def test_kill_9_at_any_moment(tmp_path: Path, start: Start) -> None:
    path = write_jsonl(tmp_path / "f.jsonl", rows_of(2500))
    killed_often(start, tmp_path, 2, ["o.jsonl"], "predict", path, "--with-text", "-o", "{}/o.jsonl")


CASES: dict[str, tuple[int, list[str], tuple[str | Path, ...]]] = {
    "surface": (20_000, ["o.jsonl"], ("predict", "f.jsonl", "-o", "{}/o.jsonl")),
    "embedded": (2_000, ["o.csv"], ("predict", "f.jsonl", "--model", "embedded", "-o", "{}/o.csv")),
    "internlm2": (
        300,
        ["o.csv"],
        ("score", "f.jsonl", "--model", INTERNLM2, "--trust-remote-code", "--devices", "cpu", "-o", "{}/o.csv"),
    ),
    "shard": (6_000, ["o.csv.shard-2-of-3"], ("predict", "f.jsonl", "-o", "{}/o.csv", "--shard", "2/3")),
    "merge": (6_000, ["o.csv"], ("merge", "m.csv.shard-1-of-2", "m.csv.shard-2-of-2", "-o", "{}/o.csv")),
    "evaluate": (2_000, ["o.json"], ("evaluate", "f.jsonl", "--model", "embedded", "--json", "{}/o.json")),
    "fit": (2_000, [], ("fit", "f.jsonl", "--model", "surface", "-o", "{}/forecaster")),
    "compare": (300, ["o.json"], ("compare", "l.jsonl", "r.jsonl", "--model", "embedded", "--json", "{}/o.json")),
}


@pytest.mark.long
@pytest.mark.parametrize("case", CASES)
def test_kill_9_at_30_random_moments(tmp_path: Path, start: Start, prefcast: Run, case: str) -> None:
    count, outputs, arguments = CASES[case]
    rows = rows_of(count, 20)
    write_jsonl(tmp_path / "f.jsonl", rows)
    if case == "compare":
        for name, response in (("l", "response_a"), ("r", "response_b")):
            answers = [{"id": row["id"], "prompt": row["prompt"], "response": row[response]} for row in rows]
            write_jsonl(tmp_path / f"{name}.jsonl", answers)
    if case == "merge":
        for index in (1, 2):
            assert prefcast("predict", "f.jsonl", "-o", "m.csv", "--shard", f"{index}/2").returncode in (0, 3)
    killed_often(start, tmp_path, 30, outputs, *arguments)


# A kill at every change to a file.

SHIM = Path(__file__).parent / "fixtures" / "kill_at.c"


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that ends a process at its nth change to a file under a folder."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs cc, on Linux")
    made = tmp_path_factory.mktemp("shim") / "kill_at.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", made, SHIM, "-ldl"], check=True)
    return made


def killed_everywhere(folder: Path, shim: Path, every: int, *arguments: str | Path) -> int:
    """Kill a command before, within and after every change to a file, run it again, and compare; how often it was killed.

    It writes into `{}`, where its store lies too.
    """
    here = folder / "cp"

    def run(**more: str) -> int:
        said = [str(argument).replace("{}", "cp") for argument in arguments]
        done = subprocess.run(
            [*PREFCAST, *said],
            cwd=folder,
            capture_output=True,
            text=True,
            env={**os.environ, "PREFCAST_CACHE": str(here / "store"), "KILL_UNDER": f"{here}/", **more},
        )
        assert done.returncode in (0, 3, -signal.SIGKILL), done.stderr
        assert done.returncode < 0 or "store" not in done.stderr, done.stderr
        return done.returncode

    def written() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in here.iterdir() if path.is_file()}

    def empty() -> None:
        shutil.rmtree(here, ignore_errors=True)
        here.mkdir()

    empty()
    run()
    want, kills = written(), 0
    for point in range(1, 10_000, every):
        way = ("before", "half", "after")[point // every % 3]
        ways = (way,) if every > 1 else ("before", "half", "after")
        ended = False
        for each in ways:
            empty()
            if run(LD_PRELOAD=str(shim), KILL_AT=str(point), KILL_HOW=each) >= 0:
                ended = True
                continue
            kills += 1
            for name, data in written().items():
                assert name not in want or data == want[name], (point, each)
            run()
            assert written() == want, (point, each, sorted(written()))
        if ended:
            break
    return kills


@pytest.mark.parametrize("model", ["length", "surface"])
@pytest.mark.parametrize("every", [13, pytest.param(1, marks=pytest.mark.long)])
def test_a_kill_at_every_change_to_a_file(tmp_path: Path, shim: Path, model: str, every: int) -> None:
    path = write_jsonl(tmp_path / "f.jsonl", rows_of(20))
    kills = killed_everywhere(tmp_path, shim, every, "predict", path, "--model", model, "-o", "{}/o.jsonl")
    # Without a store there are but a few changes.
    assert kills >= {"length": 1, "surface": 5}[model]


@pytest.mark.long
@pytest.mark.parametrize("what", ["shard", "merge", "fit"])
def test_a_kill_at_every_change_to_other_files(tmp_path: Path, shim: Path, prefcast: Run, what: str) -> None:
    path = write_jsonl(tmp_path / "f.jsonl", rows_of(300))
    arguments: dict[str, tuple[str | Path, ...]] = {
        "shard": ("predict", path, "--model", "surface", "-o", "{}/o.csv", "--shard", "1/2"),
        "merge": ("merge", "m.csv.shard-1-of-2", "m.csv.shard-2-of-2", "-o", "{}/o.csv"),
        "fit": ("fit", path, "--model", "surface", "-o", "{}/forecaster"),
    }
    for index in (1, 2):
        assert prefcast("predict", path, "-o", "m.csv", "--shard", f"{index}/2").returncode in (0, 3)
    assert killed_everywhere(tmp_path, shim, 1, *arguments[what]) > 3


# Shards.


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("verb", ["predict", "score"])
def test_shards_merge_into_the_single_run(prefcast_here: Run, tmp_path: Path, verb: str, ending: str) -> None:
    prefcast = prefcast_here
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


def test_seven_shards_are_the_single_run_and_a_wrong_one_is_named(prefcast_here: Run, tmp_path: Path) -> None:
    def prefcast(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return prefcast_here(*quick(arguments))

    path = write_csv(tmp_path / "f.csv", rows_of(900)[:400] + rows_of(900)[402:])
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
        "prefcast: out.csv.shard-1-of-7 and b.csv.shard-3-of-7 are not of one run: the budget is 'keep-last:24000' in the "
        "first and 'keep-last:100' in the second"
    )
    write_csv(path, rows_of(900)[:399] + rows_of(900)[401:])
    assert prefcast("predict", path, "-o", "c.csv", "--shard", "4/7").returncode in (0, 3)
    assert "not of one run: their inputs held different rows" in refused(
        *shards[:3], tmp_path / "c.csv.shard-4-of-7", *shards[4:]
    )
    assert refused(EXAMPLES).endswith(
        "is not a shard (prefcast predict --shard I/N makes them), or is damaged; make the shard anew"
    )


def test_any_changed_byte_of_a_shard_is_refused(tmp_path: Path, prefcast_here: Run) -> None:
    path = write_jsonl(tmp_path / "f.jsonl", rows_of(3, 5))
    arguments = quick(("predict", path, "-o", "o.jsonl", "--shard", "1/1", "--with-text"))
    assert prefcast_here(*arguments).returncode == 0
    shard = tmp_path / "o.jsonl.shard-1-of-1"
    data, chance = shard.read_bytes(), random.Random(1)
    open_shards([shard])[0].close()

    def refused(changed: bytes) -> None:
        # A new file: some file systems write a file that is cut and filled again to the disk at once.
        shard.unlink()
        shard.write_bytes(changed)
        with pytest.raises(RunError, match=r"is not a shard .*, or is damaged"):
            Shard.open(shard)

    for at in range(len(data)):
        refused(data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :])
        if at % 7 == 0:
            refused(data[:at])
    for more in (b"\n", b"x", data):
        refused(data + more)


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "a/b", "1/3/5", "-1/3", ""])
def test_what_is_no_shard(text: str) -> None:
    with pytest.raises(UsageError, match=r"--shard: .* is not of the form I/N, like 3/7"):
        ShardOf.parse(text)


# Signals, disks, inputs.


@pytest.fixture
def many(tmp_path: Path) -> Path:
    return write_jsonl(
        tmp_path / "f.jsonl", [kaggle_row(number, a=("word " * 300 + str(number),)) for number in range(MANY)]
    )


def stopped(start: Start, folder: Path, path: Path, number: signal.Signals = signal.SIGINT) -> list[dict[str, Any]]:
    """The events of a run that a signal stopped after some pieces were kept."""
    process = start(*quick(("predict", path, "-o", "out.csv", "--log", "json")))
    said = until(process, "piece", 3)
    process.send_signal(number)
    said += process.communicate(timeout=300)[1]
    assert process.returncode == 128 + number, said
    return events(said)


@pytest.mark.parametrize(
    "name", ["SIGTERM", *(pytest.param(name, marks=pytest.mark.long) for name in ("SIGINT", "SIGHUP"))]
)
def test_a_signal_ends_the_piece_in_flight_and_says_how_to_go_on(
    start: Start, prefcast: Run, tmp_path: Path, many: Path, name: str
) -> None:
    found = stopped(start, tmp_path, many, getattr(signal, name))
    assert found[-1]["event"] == "interrupted"
    assert found[-1]["signal"] == name
    kept = found[-1]["rows_kept"]
    assert kept >= 3 * 256
    assert kept % 256 == 0
    assert {path.name for path in tmp_path.iterdir()} == {"f.jsonl"}
    done = prefcast("predict", many, "-o", "out.csv", "--log", "json")
    assert done.returncode == 0
    again = events(done.stderr)
    (resumed,) = [event["rows"] for event in again if event["event"] == "resumed"]
    # The piece in flight may have come into the store after the rows were counted.
    assert resumed in (kept, kept + 256)
    assert not [event for event in again if event["event"] == "ended_before"]
    assert sum(event["rows"] - event["kept"] for event in again if event["event"] == "piece") == MANY - resumed
    assert (again[-1]["event"], again[-1]["rows"], again[-1]["restored"]) == ("finished", MANY, resumed)
    assert {path.name for path in tmp_path.iterdir()} == {"f.jsonl", "out.csv"}


def test_what_a_signal_says_to_people(start: Start, tmp_path: Path, many: Path) -> None:
    process = start(*quick(("predict", many, "-o", "out.csv")))
    store = Path(os.environ["PREFCAST_CACHE"]) / "evidence.sqlite"
    # Rows of the second piece are in the store: the first piece is counted.
    wait_for(lambda: store.exists() and entries(store) > 256, process)
    process.send_signal(signal.SIGINT)
    last = process.communicate(timeout=300)[1].splitlines()[-1]
    assert re.fullmatch(
        r"prefcast: stopped by SIGINT after [\d,]+ of about [\d,]+ rows; the same command continues", last
    )


def entries(path: Path) -> int:
    with EvidenceStore(path, strict=True) as store:
        return store.held().entries


@pytest.mark.parametrize("how", [("--model", "length"), ("--model", "surface", "--no-store")])
def test_what_is_not_kept_is_not_promised(start: Start, tmp_path: Path, how: tuple[str, ...]) -> None:
    (tmp_path / "pipe").mkdir()
    rows = [json.dumps(kaggle_row(number, a=("word " * 300,))) for number in range(700)]
    process = start("predict", "-", "-o", "out.csv", "--log", "text", *how, stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write("\n".join(rows) + "\n")
    process.stdin.flush()
    wait_for(lambda: writes(process, tmp_path), process)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=300)[1]
    assert process.returncode == 130
    assert said.splitlines()[-1] == "prefcast: stopped by SIGINT; an output file is written whole or not at all"


def test_an_input_that_changes_during_the_run(start: Start, prefcast: Run, tmp_path: Path, many: Path) -> None:
    process = start(*quick(("predict", many, "-o", "out.csv", "--log", "json")))
    said = until(process, "piece", 2)
    with many.open("a") as file:
        file.write(json.dumps(kaggle_row(MANY)) + "\n")
    said += process.communicate(timeout=300)[1]
    assert process.returncode == 2
    last = events(said)[-1]["text"]
    assert last.startswith(f"{many}: changed while it was read, so nothing was written; 6,0")
    assert last.endswith(" rows are kept: the same command continues")
    assert not (tmp_path / "out.csv").exists()
    assert prefcast("predict", many, "-o", "out.csv").returncode == 0
    assert (tmp_path / "out.csv").read_text().count("\n") == MANY + 2


def test_a_second_run_at_the_same_output_harms_nobody(start: Start, prefcast: Run, tmp_path: Path, many: Path) -> None:
    first = start(*quick(("predict", many, "-o", "out.csv", "--log", "json")))
    said = until(first, "piece")
    first.send_signal(signal.SIGSTOP)
    second = prefcast("predict", many, "-o", "out.csv", "--log", "json")
    assert second.returncode == 0
    assert "ended_before" not in second.stderr
    data = (tmp_path / "out.csv").read_bytes()
    first.send_signal(signal.SIGCONT)
    said += first.communicate(timeout=300)[1]
    assert first.returncode == 0, said
    assert (tmp_path / "out.csv").read_bytes() == data
    assert {path.name for path in tmp_path.iterdir()} == {"f.jsonl", "out.csv"}


def test_a_run_that_a_row_ended_is_told(start: Start, prefcast: Run, tmp_path: Path, many: Path) -> None:
    """A run that is killed before its first new row looks like one that the row ended."""
    killed = start(*quick(("predict", many, "-o", "out.csv", "--log", "json")))
    said = until(killed, "piece", 2)
    killed.kill()
    killed.communicate()
    # It had scored something: nothing is said.
    stuck = start(*quick(("predict", many, "-o", "out.csv", "--log", "json")))
    said = until(stuck, "started")
    wait_for(lambda: scored_in_store() == [0], stuck)
    stuck.send_signal(signal.SIGSTOP)
    if scored_in_store() == [0]:
        stuck.kill()
        said += stuck.communicate()[1]
        assert "ended_before" not in said
        done = prefcast("predict", many, "-o", "out.csv")
        assert done.returncode == 0
        assert done.stderr.splitlines()[0] == (
            "prefcast: an earlier attempt at this output crashed or was killed before it had scored a new row; if a row causes "
            "that, --isolate finds it"
        )
    assert prefcast("predict", many, "-o", "out.csv").stderr.count("or was killed") == 0


def scored_in_store() -> list[int]:
    import sqlite3

    path = Path(os.environ["PREFCAST_CACHE"]) / "evidence.sqlite"
    db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        return [row[0] for row in db.execute("SELECT scored FROM attempts")]
    finally:
        db.close()


def limited(size: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.parametrize("ending", [".csv", pytest.param(".parquet", marks=pytest.mark.long)])
def test_a_full_disk_keeps_what_was_scored(prefcast: Run, tmp_path: Path, ending: str) -> None:
    path = write_jsonl(
        tmp_path / "f.jsonl", [kaggle_row(number, a=(f"word {number} " * 20,)) for number in range(3_000)]
    )
    assert prefcast("predict", path, "-o", f"whole{ending}", "--no-store").returncode == 0
    room = (tmp_path / f"whole{ending}").stat().st_size // 2
    (tmp_path / "disk").mkdir()
    command = [*PREFCAST, *quick(("predict", path, "-o", f"disk/out{ending}", "--store", "e.sqlite"))]
    # The store has its room already.
    assert prefcast("predict", path, "-o", f"none{ending}", "--store", "e.sqlite").returncode == 0
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, preexec_fn=limited(room))
    assert done.returncode == 2
    line = done.stderr.splitlines()[-1]
    assert line.startswith(f"prefcast: disk/out{ending}: cannot be written: File too large")
    assert not list((tmp_path / "disk").iterdir())
    again = prefcast("predict", path, "-o", f"disk/out{ending}", "--store", "e.sqlite")
    assert again.returncode == 0
    assert (tmp_path / "disk" / f"out{ending}").read_bytes() == (tmp_path / f"whole{ending}").read_bytes()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_read_only(prefcast: Run, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    done = prefcast("predict", EXAMPLES, "-o", "closed/out.csv")
    assert (done.returncode, done.stderr) == (2, "prefcast: closed/out.csv: cannot be written: Permission denied\n")


@pytest.mark.long
def test_standard_input_goes_on_too(start: Start, tmp_path: Path, many: Path, prefcast: Run) -> None:
    process = start(*quick(("predict", "-", "-o", "out.csv", "--log", "json")), stdin=subprocess.PIPE)
    assert process.stdin is not None
    lines = many.read_text().splitlines(keepends=True)
    process.stdin.write("".join(lines[:2000]))
    process.stdin.flush()
    said = until(process, "piece", 2)
    # It may wait for more to read; then nothing is in flight, and it ends at once.
    process.send_signal(signal.SIGINT)
    said += process.communicate(timeout=300)[1]
    assert process.returncode == 130
    kept = events(said)[-1]["rows_kept"]
    assert kept >= 512
    done = prefcast("predict", "-", "-o", "out.csv", stdin=many.read_bytes())
    assert done.returncode == 0
    assert re.search(rf"prefcast: {kept:,} of [\d,]+ rows were scored before and not again", done.stderr)
    assert done.stderr.count("scored before") == 1
    assert prefcast("predict", many, "-o", "whole.csv", "--no-store").returncode == 0
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_the_log_has_no_texts_and_one_object_a_line(prefcast: Run, tmp_path: Path) -> None:
    hidden = "\u202esecret\x1b[31m"
    rows = [kaggle_row(f"{hidden}{number}", prompt=hidden if number == 5 else (hidden,)) for number in range(300)]
    done = prefcast("predict", write_jsonl(tmp_path / "f.jsonl", rows), "-o", "out.csv", "--log", "json")
    assert done.returncode == 3
    assert "secret" not in done.stderr
    found = [json.loads(line) for line in done.stderr.splitlines()]
    assert [event["event"] for event in found] == ["started", "row_failed", "piece", "piece", "finished"] or [
        event["event"] for event in found
    ] == ["started", "piece", "row_failed", "piece", "finished"]
    failed = next(event for event in found if event["event"] == "row_failed")
    assert (failed["row"], failed["field"], failed["kind"]) == (6, "prompt", "reading")
    finished = found[-1]
    assert (finished["rows"], finished["failed"], finished["errors"]) == (300, 1, {"reading": 1})
    assert sum(finished["shares"].values()) == pytest.approx(1, abs=0.001)
    refused = prefcast("predict", tmp_path / "none.jsonl", "-o", "out.csv", "--log", "json")
    assert json.loads(refused.stderr)["event"] == "message"


def test_a_run_in_the_library_without_files() -> None:
    pairs = [Pair.of("Why?", f"Because {number}.", "So.", id=number) for number in range(600)]
    forecaster, parts = load_forecaster("surface"), list[Forecasts]()

    class Collector:
        def write(self, piece: Forecasts) -> None:
            parts.append(piece)

    report = predict_to(Collector(), pairs, forecaster)  # type: ignore[arg-type]
    assert (report.rows, report.restored) == (600, 0)
    np.testing.assert_array_equal(
        np.concatenate([part.probabilities for part in parts]), forecaster.forecast(pairs).probabilities
    )


def test_stopping_at_an_error_keeps_what_went_before(prefcast: Run, tmp_path: Path) -> None:
    rows = [kaggle_row(number, prompt=5 if number == 300 else ("Why?",)) for number in range(400)]
    path = write_jsonl(tmp_path / "f.jsonl", rows)
    done = prefcast("predict", path, "-o", "out.csv", "--on-error", "stop")
    assert done.returncode == 2
    assert done.stderr.endswith("; 400 rows are kept: the same command continues\n")
    rows[300] = kaggle_row(300)
    write_jsonl(path, rows)
    done = prefcast("predict", path, "-o", "out.csv", "--on-error", "stop")
    assert done.returncode == 0
    assert "400 of 400 rows were scored before" in done.stderr


def test_a_rate_is_only_named_if_something_was_scored(prefcast: Run, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "f.jsonl", rows_of(20))
    first, again = (prefcast("score", path, "-o", "s.csv").stderr for _ in range(2))
    assert "pairs a second" in first
    assert "pairs a second" not in again
    assert "20 scored before" in again


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
    # Rows of the evidence store come fast: they say nothing of the time that a new row takes, and are not left to do.
    watch = Watch(Log(), None, lambda: (1_000, 100_000))
    watch.rows_read = 256 + 1_000
    now[0] = 1_000.0
    watch.done(0, 500)
    for second in range(8):
        now[0] = 2_000.0 + second
        watch.done(100 + 10 * second, 1_100 + 10 * second)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("prefcast: about 3.5 hours more for about 130,000 rows, in ")
    assert duration_text(30) == "30 seconds"
    assert duration_text(130) == "2.2 minutes"


@pytest.mark.long
def test_memory_does_not_grow_with_the_rows(prefcast: Run, tmp_path: Path) -> None:
    peaks = []
    for count in (20_000, 200_000):
        with (tmp_path / f"{count}.jsonl").open("w") as file:
            file.writelines(json.dumps(kaggle_row(number, a=(f"a {number}",))) + "\n" for number in range(count))
        code = (
            "import resource, sys\nfrom prefcast.cli import main\nsys.argv = sys.argv[1:]\ntry:\n    main()\n"
            "finally:\n    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        command = ["prefcast", *quick(("predict", f"{count}.jsonl", "-o", f"{count}.csv"))]
        done = subprocess.run([sys.executable, "-c", code, *command], cwd=tmp_path, capture_output=True, text=True)
        peaks.append(int(done.stdout.split()[-1]) * 1024)
    # What is remembered of each id, and nothing else.
    assert peaks[1] - peaks[0] < 30_000_000

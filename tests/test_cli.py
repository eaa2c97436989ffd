"""The program as a person runs it: in a process of its own."""

from __future__ import annotations

import csv
import gzip
import json
import os
import pty
import re
import signal
import subprocess
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from conftest import (
    EXAMPLES,
    PREFCAST,
    ROOT,
    SURFACE,
    Run,
    Start,
    kaggle_row,
    labelled,
    said_by,
    wait_for,
    write_csv,
    write_jsonl,
    writes,
)
from prefcast.base import files
from prefcast.base.files import atomic_file


@pytest.mark.parametrize(
    ("old", "said"), [("--no-keep-scores", "now --no-store"), ("--keep-scores", "the default now")]
)
def test_options_of_earlier_versions_are_accepted(prefcast: Run, tmp_path: Path, old: str, said: str) -> None:
    out = tmp_path / "out.csv"
    done = prefcast("score", EXAMPLES, *SURFACE, "-o", out, "--fresh", old)
    assert (done.returncode, done.stderr.splitlines()[0]) == (0, f"{old} is {said}")
    assert out.exists()
    # Behind `--` stands a file's name.
    assert "no such file" in prefcast("score", *SURFACE, "-o", out, "--", old).stderr.lower()


def test_a_submission(prefcast: Run, tmp_path: Path) -> None:
    done = prefcast("predict", EXAMPLES, "-o", "s.csv")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    with (tmp_path / "s.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["id", "winner_model_a", "winner_model_b", "winner_tie"]
    assert [row[0] for row in rows] == [f"ex-{number:02}" for number in range(1, 43)]
    assert all(abs(sum(map(float, row[1:])) - 1) < 1e-9 for row in rows)


def test_a_table_where_no_output_is_named(prefcast: Run) -> None:
    done = prefcast("predict", EXAMPLES, *SURFACE)
    assert done.returncode == 0
    assert done.stdout.splitlines()[0].split() == ["id", "A", "B", "tie", "prompt"]
    assert len(done.stdout.splitlines()) == 43


def test_standard_input(prefcast: Run, tmp_path: Path) -> None:
    assert prefcast("predict", EXAMPLES, *SURFACE, "-o", "file.csv").returncode == 0
    done = prefcast(
        "predict", "-", *SURFACE, "-o", "pipe.csv", "--no-store", stdin=gzip.compress(EXAMPLES.read_bytes())
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "pipe.csv").read_bytes() == (tmp_path / "file.csv").read_bytes()


def test_rows_at_fault_are_kept_counted_and_told_by_the_status(prefcast: Run, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "f.jsonl", [kaggle_row("a"), kaggle_row("b", prompt=5), kaggle_row("c", a=7)])
    done = prefcast("predict", "f.jsonl", *SURFACE, "-o", "out.jsonl")
    assert done.returncode == 3
    assert done.stderr == (
        "prefcast: 2 of 3 rows failed and got the class prior; the first: f.jsonl: row 2, prompt: is a number; "
        "expected a text, or a list of texts, one a turn\n"
    )
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == ["a", "b", "c"]
    assert rows[0]["error"] is None
    assert rows[1]["error"].startswith("f.jsonl: row 2, prompt: is a number")
    assert rows[1]["winner_model_a"] == rows[1]["winner_model_b"] == pytest.approx(0.35, abs=0.03)
    stopped = prefcast("predict", "f.jsonl", *SURFACE, "-o", "none.jsonl", "--on-error", "stop")
    assert stopped.returncode == 2
    assert stopped.stderr.startswith("prefcast: f.jsonl: row 2, prompt: is a number")
    assert not (tmp_path / "none.jsonl").exists()


def test_a_duplicate_id_at_the_end_leaves_no_output(prefcast: Run, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "f.jsonl", [kaggle_row(number % 600) for number in range(601)])
    done = prefcast("predict", "f.jsonl", *SURFACE, "-o", "out.csv")
    assert done.returncode == 2
    assert done.stderr == (
        "prefcast: f.jsonl: row 601: id 0 is the same as in row 1; every row needs an id of its own; 512 rows are kept: "
        "the same command continues\n"
    )
    assert {path.name for path in tmp_path.iterdir()} == {"f.jsonl"}


def test_chosen_and_rejected_say_that_their_order_was_drawn(prefcast: Run, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "f.jsonl", [{"prompt": "Why?", "chosen": "Because.", "rejected": "So."}])
    done = prefcast("predict", "f.jsonl", *SURFACE, "-o", "out.csv")
    assert (done.returncode, done.stderr) == (
        0,
        "prefcast: f.jsonl: which of chosen and rejected is A was drawn from each id with a fixed seed\n",
    )


def test_own_columns(prefcast: Run, tmp_path: Path) -> None:
    (tmp_path / "f.csv").write_text("key,question,left,right\nk,Why?,Because.,So.\n")
    mapping = "id=key,prompt=question,response_a=left,response_b=right"
    done = prefcast("predict", "f.csv", *SURFACE, "-o", "s.csv", "--columns", mapping, "--cells", "text")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "s.csv").read_text().splitlines()[1].startswith("k,")


def test_evaluate(prefcast: Run, tmp_path: Path) -> None:
    done = prefcast("evaluate", EXAMPLES, *SURFACE, "--json", "figures.json")
    assert done.returncode == 0
    assert "42 labelled pairs (A 36%, B 36%, tie 29%)" in done.stdout
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["n"] == 42
    assert (
        set(figures["log_loss"]) == set(figures["accuracy"]) == set(figures["brier_score"]) == {"value", "low", "high"}
    )
    assert f"{figures['log_loss']['value']:.4f} [" in done.stdout
    assert {"uniform", "class_prior", "length"} == set(figures["baselines"])
    prefcast("predict", EXAMPLES, *SURFACE, "-o", "s.csv")
    again = prefcast("evaluate", EXAMPLES, "--predictions", "s.csv", "--json", "-")
    assert json.loads(again.stdout)["log_loss"]["value"] == pytest.approx(figures["log_loss"]["value"], abs=1e-12)


def test_evaluating_rows_at_fault(prefcast: Run, tmp_path: Path) -> None:
    write_csv(tmp_path / "f.csv", [labelled(0, id=1), labelled(1, id=2), labelled(2, id=3, prompt=5)])
    done = prefcast("evaluate", "f.csv", *SURFACE)
    assert done.returncode == 3
    assert "2 labelled pairs" in done.stdout
    assert done.stderr == "prefcast: 1 rows failed and are not in the figures; prefcast check names them\n"


def test_check(prefcast_here: Run, tmp_path: Path) -> None:
    done = prefcast_here("check", EXAMPLES)
    assert done.returncode == 0
    assert "Kaggle pairs (prompt, response_a, response_b), CSV" in done.stdout
    assert "rows        42, 0 at fault" in done.stdout
    assert "labels      A 15, B 15, tie 12" in done.stdout
    assert "turns       33 with 1, 6 with 2, 2 with 3, 1 with 4" in done.stdout
    assert "pairs a second measured" in done.stdout
    write_jsonl(tmp_path / "f.jsonl", [kaggle_row(1), kaggle_row(2, prompt=5), kaggle_row(3, a="[oops")])
    done = prefcast_here("check", "f.jsonl")
    assert done.returncode == 3
    assert (
        done.stdout.splitlines()[0]
        == "f.jsonl: row 2, prompt: is a number; expected a text, or a list of texts, one a turn"
    )
    assert done.stdout.splitlines()[1].startswith("f.jsonl: row 3, response_a: is not valid JSON")
    assert "rows        3, 2 at fault" in done.stdout


def test_explain(prefcast: Run) -> None:
    done = prefcast("explain", EXAMPLES, *SURFACE, "--id", "ex-10")
    assert done.returncode == 0
    assert "the label says: B" in done.stdout
    assert "what moved it" in done.stdout
    assert "length" in done.stdout
    missing = prefcast("explain", EXAMPLES, *SURFACE, "--id", "ex-99")
    assert (missing.returncode, missing.stdout) == (2, "")
    assert "has no row with the id 'ex-99'; its first ids are 'ex-01', 'ex-02', 'ex-03'" in missing.stderr


def test_models(prefcast: Run) -> None:
    done = prefcast("models")
    assert [line.split()[0] for line in done.stdout.splitlines()] == [
        "embedded",
        "length",
        "surface",
        "PATH",
        "URL",
        "judge:URL",
    ]


def endless(start: Start, *arguments: str | Path) -> subprocess.Popen[str]:
    """`prefcast predict - ARGS` that has read 600 rows of its input and waits for more: it cannot end by itself."""
    process = start("predict", "-", *SURFACE, *arguments, stdin=subprocess.PIPE)
    assert process.stdin is not None
    for number in range(600):
        process.stdin.write(json.dumps(kaggle_row(number)) + "\n")
    process.stdin.flush()
    return process


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_leaves_no_half_output(start: Start, tmp_path: Path, name: str) -> None:
    """And without a store nothing at all; tests/test_runs.py has those with one."""
    process = endless(start, "-o", "out.csv", "--no-store")
    wait_for(lambda: writes(process, tmp_path), process)
    process.send_signal(getattr(signal, name))
    said = process.communicate()[1]
    assert process.returncode == 128 + getattr(signal, name)
    assert said.splitlines()[-1] == f"prefcast: stopped by {name}; an output file is written whole or not at all"
    assert not any(tmp_path.iterdir())


def test_what_the_parent_ignores_stays_ignored(start: Start, tmp_path: Path) -> None:
    shell = ("/bin/sh", "-c", "trap '' HUP INT; exec \"$@\"", "sh", *PREFCAST)
    process = endless(partial(start, program=shell), "-o", "out.csv", "--no-store")
    wait_for(lambda: writes(process, tmp_path), process)
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGINT)
    assert process.communicate()[1] == ""
    assert process.returncode == 0
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 601


def test_standard_input_that_is_closed(start: Start) -> None:
    process = start(program=("/bin/sh", "-c", 'exec "$@" predict - <&-', "sh", *PREFCAST))
    assert (process.communicate()[1], process.returncode) == ("prefcast: standard input: is closed\n", 2)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_is_one_line_and_leaves_nothing(start: Start, unbuffered: str) -> None:
    with Path("/dev/full").open("w") as full:
        process = start("predict", EXAMPLES, *SURFACE, stdout=full, PYTHONUNBUFFERED=unbuffered)
        said = process.communicate()[1]
    assert (process.returncode, said) == (2, "prefcast: writing: No space left on device\n")


def test_a_reader_that_goes_away_is_no_error_message(start: Start, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "f.jsonl", [kaggle_row(number) for number in range(5000)])
    process = start("predict", path, *SURFACE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 1


def test_a_bar_on_a_terminal_and_a_summary(start: Start, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "f.jsonl", [kaggle_row(number, a=("word " * 300,)) for number in range(1500)])
    leader, follower = pty.openpty()
    process = start("predict", path, "-o", "out.csv", *SURFACE, stderr=follower, TERM="xterm", COLUMNS="200")
    os.close(follower)
    shown = b""
    # Linux says that the other end is closed by an error.
    with suppress(OSError):
        while part := os.read(leader, 65536):
            shown += part
    os.close(leader)
    assert process.wait() == 0
    assert b"rows" in shown
    assert b"1500 forecasts in " in shown


def test_help_is_the_page_in_the_docs() -> None:
    code = "import make_cli; print(make_cli.TYPER); print(make_cli.text(), end='')"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT / "tools", capture_output=True, text=True, check=True)
    typer, made = done.stdout.split("\n", 1)
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    if f"with Typer {typer}." in page:
        assert made == page
    # Another Typer may lay it out in another way; the verbs and the options are the same all the same.
    assert set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", made)) == set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", page))


# What a shell may do to a program: streams that are closed, and signals at any moment


@pytest.mark.parametrize("streams", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-", "2>/dev/full"])
@pytest.mark.parametrize("more", [("-o", "out.csv"), pytest.param(("-o", "out.parquet"), marks=pytest.mark.long)])
def test_streams_that_are_closed_do_not_lose_the_output(
    start: Start, prefcast_here: Run, tmp_path: Path, streams: str, more: tuple[str, str]
) -> None:
    shell = ("/bin/sh", "-c", f'exec "$@" {streams}', "sh", *PREFCAST)
    said, errors = start("predict", EXAMPLES, *SURFACE, *more, program=shell).communicate()
    assert said == ""
    assert prefcast_here("predict", EXAMPLES, *SURFACE, "-o", f"whole-{more[1]}", "--no-store").returncode == 0
    assert (tmp_path / more[1]).read_bytes() == (tmp_path / f"whole-{more[1]}").read_bytes()
    assert "Traceback" not in errors


# A module whose import is hit by SIGINT: a plain one, and one that makes another error of it, as extensions in C do.
IMPORTED = """
import os, signal, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            sys.meta_path.remove(self)
            try:
                os.kill(os.getpid(), signal.SIGINT)
                for _ in range(1000): pass
            except BaseException:
                if {lost!r}:
                    raise ImportError("initialization failed") from None
                raise

sys.meta_path.insert(0, Finder())
sys.argv = ["prefcast", *sys.argv[1:]]
from prefcast.cli import main
main()
"""


@pytest.mark.parametrize("module", ["typer", "prefcast.cli.serving", "prefcast.pairs.formats", "numpy"])
@pytest.mark.parametrize("lost", [False, True])
def test_sigint_within_an_import(start: Start, tmp_path: Path, module: str, lost: bool) -> None:
    code = IMPORTED.format(module=module, lost=lost)
    process = start("predict", EXAMPLES, *SURFACE, "-o", "out.csv", "--no-store", program=(sys.executable, "-c", code))
    said = process.communicate()[1]
    assert (process.returncode, said.count("\n")) == (130, 1)
    assert said.startswith("prefcast: stopped by SIGINT")
    assert not any(tmp_path.iterdir())


def test_the_module_obeys_before_it_is_imported(tmp_path: Path) -> None:
    """`python -m prefcast.cli` sets its handler while the package is imported, and a library that imports it does not."""
    code = "import runpy, sys, signal\nsys.argv[0] = {!r}\nimport prefcast.cli\nprint(signal.getsignal(signal.SIGINT))"
    assert "_stop" in said_by(code.format("-m"))
    assert "_stop" not in said_by(code.format("x"))


def test_a_killed_merge_leaves_nothing(start: Start, tmp_path: Path) -> None:
    """And what an older version or another disk left goes with the next output in the folder, whatever its name."""
    process = endless(start, "-o", "out.csv", "--no-store")
    wait_for(lambda: writes(process, tmp_path), process)
    process.kill()
    process.communicate()
    if hasattr(os, "O_TMPFILE"):
        assert not any(tmp_path.iterdir())
    (tmp_path / ".prefcast-0123-abcd.part").write_bytes(b"half")
    with atomic_file(tmp_path / "other.csv") as file:
        file.write(b"whole")
    assert [path.name for path in tmp_path.iterdir()] == ["other.csv"]


@pytest.mark.parametrize("way", ["nameless", "named", "copied"])
def test_a_file_that_is_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    if way == "named":
        monkeypatch.setattr(files, "_nameless", lambda folder: None)
    if way == "copied":
        monkeypatch.setattr(os, "link", lambda *_, **__: (_ for _ in ()).throw(PermissionError()))
    for content in (b"first", b"second"):
        with atomic_file(tmp_path / "out") as file:
            file.write(content)
        assert (tmp_path / "out").read_bytes() == content
        (tmp_path / "out").chmod(0o640)
    with suppress(ZeroDivisionError), atomic_file(tmp_path / "out") as file:
        file.write(b"third")
        raise ZeroDivisionError
    assert ((tmp_path / "out").read_bytes(), (tmp_path / "out").stat().st_mode & 0o777) == (b"second", 0o640)
    assert len(list(tmp_path.iterdir())) == 1


def test_an_option_of_another_kind_of_model_is_refused(prefcast_here: Run) -> None:
    done = prefcast_here("predict", EXAMPLES, "--model", "surface", "--quantize", "nf4")
    assert done.returncode == 2
    assert "no option --quantize" in done.stderr

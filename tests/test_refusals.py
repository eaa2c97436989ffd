"""Calls that are refused, for every verb in one table: status 2, one line, nothing written, nothing changed."""

from __future__ import annotations

import os
import pty
from pathlib import Path

import pytest

from checkpoints import INTERNLM2
from conftest import EXAMPLES, Run, kaggle_row, labelled, write_csv, write_jsonl
from test_best import rows as candidates

REWARD = str(INTERNLM2)


@pytest.fixture
def refused(prefcast_here: Run, tmp_path: Path) -> Run:
    """Runs a command that must be refused among files of every kind, and gives the line that it says."""
    write_jsonl(tmp_path / "pairs.jsonl", [labelled(number % 3, id=number) for number in range(6)])
    write_jsonl(tmp_path / "unlabelled.jsonl", [kaggle_row(number) for number in range(6)])
    write_csv(tmp_path / "stub.csv", [kaggle_row(number) for number in range(3)])
    write_csv(tmp_path / "votes.csv", [{"model_a": "x", "model_b": "y", "label": number % 3} for number in range(9)])
    write_jsonl(tmp_path / "p.jsonl", [{"id": 1, "winner_model_a": 0.2, "winner_model_b": 0.3, "winner_tie": 0.5}])
    write_jsonl(tmp_path / "candidates.jsonl", candidates())
    for name in ("left", "right"):
        write_jsonl(tmp_path / f"{name}.jsonl", [{"prompt": f"q{number}", "response": name} for number in range(6)])
    for name in ("full", "in"):
        (tmp_path / name).mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("years of work")

    def files() -> dict[Path, bytes | None]:
        return {path: path.read_bytes() if path.is_file() else None for path in tmp_path.rglob("*")}

    def run(command: str, **options: object) -> str:
        before = files()
        done = prefcast_here(*(str(EXAMPLES) if word == "EXAMPLES" else word for word in command.split()), **options)
        assert (done.returncode, done.stdout) == (2, ""), done
        assert files() == before
        (line,) = done.stderr.splitlines()
        assert line.startswith("prefcast: ")
        return line.removeprefix("prefcast: ")

    return run


@pytest.mark.parametrize(
    "command",
    [
        "predict {} --model length",
        "predict {} --model length -o out.csv",
        "predict stub.csv --rehearse {} -o out.csv",
        "explain {} --model length --id 1",
        "check {}",
        "best {} --model length",
        "fit {} --model length -o mine",
        "fit pairs.jsonl --scores {} -o mine",
        "fit pairs.jsonl --votes {} --model length -o mine",
        "evaluate {} --model length",
        "evaluate --predictions {}",
        "report {} --model length -o out.html",
        "report --predictions {} -o out.html",
        "rank {}",
        "compare {} right.jsonl --model length",
        "compare left.jsonl {} --model length",
        "score {} --model length -o out.csv",
        "train embedded --data {} -o mine",
        "merge {} -o out.csv",
    ],
)
def test_a_file_that_is_not_there(refused: Run, command: str) -> None:
    assert refused(command.format("none.csv")).startswith("none.csv: cannot be read: ")


@pytest.mark.parametrize(
    "command",
    [
        "predict pairs.jsonl --forecaster none",
        "explain pairs.jsonl --id 1 --forecaster none",
        "best candidates.jsonl --forecaster none",
        "evaluate pairs.jsonl --forecaster none",
        "report pairs.jsonl --forecaster none -o out.html",
        "compare left.jsonl right.jsonl --forecaster none",
        "quantize none mine",
    ],
)
def test_a_folder_that_is_not_there(refused: Run, command: str) -> None:
    assert refused(command).startswith("none: no such ")


@pytest.mark.parametrize(
    "command",
    [
        "predict - --model length",
        "explain - --model length --id 1",
        "check -",
        "best - --model length",
        "fit - --model length -o mine",
        "evaluate - --model length",
        "report - --model length -o out.html",
        "rank -",
        "score - --model length -o out.csv",
    ],
)
def test_standard_input_that_is_a_terminal(refused: Run, command: str) -> None:
    leader, follower = pty.openpty()
    # Who reads it all the same sees its end, and does not wait for ever.
    os.write(leader, b"\x04")
    with os.fdopen(follower) as terminal:
        assert refused(command, stdin=terminal) == "standard input is a terminal; pipe a file into it"
    os.close(leader)


@pytest.mark.parametrize(
    "command",
    [
        "predict stub.csv --model length -o ./stub.csv",
        "best candidates.jsonl --model length -o candidates.jsonl",
        "fit votes.csv --model length -o mine --json votes.csv",
        "evaluate pairs.jsonl --model length --json pairs.jsonl",
        "evaluate --predictions p.jsonl --json p.jsonl",
        "rank votes.csv -o votes.csv",
        "compare left.jsonl right.jsonl --model length -o left.jsonl",
        "compare left.jsonl right.jsonl --model length --json right.jsonl",
        "score stub.csv --model length -o stub.csv",
    ],
)
def test_the_input_is_not_written_over(refused: Run, command: str) -> None:
    assert f"{Path(command.rsplit(maxsplit=1)[-1])}: is the input" in refused(command)


@pytest.mark.parametrize(
    "command",
    [
        "predict pairs.jsonl --model REWARD -o out.csv",
        "explain pairs.jsonl --id 1 --model REWARD",
        "report pairs.jsonl --model REWARD -o out.html",
        "compare left.jsonl right.jsonl --model REWARD",
    ],
)
def test_a_reward_model_without_a_rule(refused: Run, command: str) -> None:
    said = refused(command.replace("REWARD", REWARD))
    assert "no outcome model was fitted for it" in said
    assert f"prefcast fit LABELLED --model {REWARD} -o DIR" in said
    assert "--preset notebook" in said


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("predict EXAMPLES -o out.txt", "out.txt: the ending tells the format of the output"),
        ("predict EXAMPLES -o no/out.csv", "no/out.csv: cannot be written: No such file or directory"),
        ("predict EXAMPLES -o s.csv --with-text", "a submission (.csv) has no room for texts"),
        ("predict EXAMPLES --with-text", "--with-text needs an output file"),
        ("predict EXAMPLES --model surfase", "unknown model 'surfase'; did you mean 'surface'?"),
        ("predict EXAMPLES --model ./typo -o s.csv", "./typo: no such folder"),
        ("predict EXAMPLES --model owner/name -o s.csv", "no outcome model was fitted for it"),
        ("predict EXAMPLES --budget all", "unknown budget 'all'"),
        ("predict EXAMPLES --columns prompt", "--columns: 'prompt' is not of the form prompt=question"),
        ("predict EXAMPLES --columns prompt=id,prompt=id", "--columns: 'prompt' is mapped twice"),
        ("predict EXAMPLES --shard 1/2", "--shard needs an output file"),
        ("predict EXAMPLES --shard 1/2 -o o.csv --rehearse EXAMPLES", "--rehearse and --shard exclude each other"),
        ("predict stub.csv --rehearse stub.csv -o s.csv", "a rehearsal needs labels"),
        ("predict - --rehearse EXAMPLES -o s.csv", "standard input can be read only once"),
        ("best candidates.jsonl --model length -o out.parquet", ".csv or .jsonl"),
        ("best candidates.jsonl --with-text", "--with-text needs an output file"),
        ("fit nowhere.csv --model length -o full", "holds other things than a forecaster"),
        ("fit pairs.jsonl --model length", "name the folder of the forecaster: -o DIR"),
        ("evaluate", "name the file of labelled pairs, or --predictions"),
        ("evaluate EXAMPLES --predictions p.csv --model length", "--predictions measures forecasts that exist"),
        ("evaluate --predictions EXAMPLES", "holds pairs and their labels, not predictions"),
        ("evaluate EXAMPLES --swapped q.csv", "--swapped goes with --predictions"),
        ("evaluate --predictions p.jsonl --scores q.csv", "give one of them"),
        ("report pairs.jsonl -o out.txt", "ends in .html"),
        ("report pairs.jsonl -o no/out.html", "cannot be written"),
        ("report pairs.jsonl -o out.html --json out.html", "name two files"),
        ("report -o out.html", "name the file of labelled pairs"),
        ("report unlabelled.jsonl -o out.html", "nothing to evaluate"),
        ("rank votes.csv -o board.xlsx", "board.xlsx: a leaderboard is written as .csv or .jsonl"),
        ("rank votes.csv --plot b.gif", "b.gif: a plot is written as .svg, .png or .pdf"),
        ("rank votes.csv --matrix matrix.json", "matrix.json: the matrix of win rates is written as .csv"),
        ("rank votes.csv -o x.csv --matrix x.csv", "x.csv: is named for two outputs"),
        ("rank votes.csv --plot no/such/folder.svg", "folder.svg: cannot be written"),
        ("rank votes.csv --min-votes 999", "fewer than two models have 999 votes or more"),
        ("compare left.jsonl right.jsonl --with-text", "--with-text needs an output file"),
        ("compare left.jsonl right.jsonl -o x.txt", "the ending tells the format"),
        ("compare left.jsonl right.jsonl --columns prompt=nothing", "column 'nothing', named for prompt, is missing"),
        ("quantize REWARD full", "full: is not an empty folder"),
        ("score EXAMPLES --model REWARD", "name the output: -o FILE.csv"),
        (
            "score EXAMPLES --model REWARD --check-drift 5",
            "compares a precision with float32: add --quantize or --dtype",
        ),
        ("score EXAMPLES --model REWARD -o out.txt", "the ending tells the format"),
        ("score EXAMPLES --model REWARD -o s.csv --quantize nf4 --max-tokens 9999", "reads at most 256 tokens"),
        ("score EXAMPLES --model REWARD -o s.csv --labels a,b", "labels are for pair classifiers"),
        ("score EXAMPLES --model REWARD -o s.csv --devices tpu", "unknown device 'tpu'"),
        ("score EXAMPLES --model REWARD -o s.csv --budget some", "unknown budget 'some'"),
        ("predict stub.csv -o o.csv --actors 2", "--actors is for --engine ray"),
        ("predict stub.csv --engine ray", "--engine ray needs an output (-o FILE, or a folder of Parquet parts)"),
        (
            "predict stub.csv -o o.csv --engine ray --shard 1/2",
            "--shard is for the local engine; leave out --engine ray",
        ),
        ("predict stub.csv -o out --engine ray", "stub.csv: only Parquet is read in parts; write to one file (-o OUT"),
        ("predict stub.csv -o o.csv --engine ray --gpus-per-actor 1.5", "1.5 is neither a part of one GPU nor a whole"),
        ("predict in -o o.csv", "in: the folder holds no file that can be read"),
        (
            "predict in -o o.csv --engine ray",
            "o.csv: the parts of a folder or a URI go into a folder: -o DIR, or a URI",
        ),
        ("predict in -o in/out --engine ray", "in/out: lies in the input; write the parts to another folder"),
    ],
)
def test_a_call_that_is_wrong(refused: Run, command: str, said: str) -> None:
    assert said in refused(command.replace("REWARD", REWARD))


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("ray://a:1", "run the command on a machine of the cluster"),
        ("a:b", "'a:b' is not of the form HOST:PORT"),
        ("127.0.0.1:1", "cannot be reached: Connection refused"),
    ],
)
def test_an_address_of_no_cluster(refused: Run, address: str, said: str) -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install 'prefcast[ray]'")
    assert said in refused(f"predict stub.csv -o o.csv --engine ray --ray-address {address}")

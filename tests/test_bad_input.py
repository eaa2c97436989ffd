"""Forty ways in which a file can be wrong; each is answered by one line that says where, what, and what would be right."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from conftest import Run, kaggle_row, labelled, write_csv, write_jsonl, zstd
from prefcast import open_pairs
from prefcast.errors import FileError, RowError, UsageError

HEADER = b"id,prompt,response_a,response_b\n"
USER = {"role": "user", "content": "u"}
ASSISTANT = {"role": "assistant", "content": "a"}


def parquet_bytes(rows: list[dict[str, Any]]) -> bytes:
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def jsonl(*rows: Any) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


GOOD_CSV = HEADER + b'1,"[""p""]","[""a""]","[""b""]"\n'

# name: (file name, its bytes, the message after the file's name)
FILE_FAULTS: dict[str, tuple[str, bytes, str]] = {
    "empty": ("f.csv", b"", "the file is empty; expected a header and rows"),
    "only white space": ("f.csv", b"\n\n", "the file is empty; expected a header and rows"),
    "only a header": ("f.csv", HEADER, "has no rows; expected at least one"),
    "only bare commas": ("f.csv", HEADER + b",,,\n,,,\n", "has no rows; expected at least one"),
    "an empty object among rows with ids": (
        "f.jsonl",
        jsonl(kaggle_row(1), {}),
        "row 2: id is missing; expected a text or a number in every row",
    ),
    "empty JSON Lines": (
        "f.jsonl",
        b"\n\n",
        "the file is empty; expected JSON objects, one a line, or an array of them",
    ),
    "column missing, a near one there": (
        "f.csv",
        GOOD_CSV.replace(b"prompt", b"promt"),
        "column 'prompt' is missing; nearest found: 'promt' (--columns prompt=promt would map it)",
    ),
    "column missing, nothing near": (
        "f.csv",
        GOOD_CSV.replace(b"response_b", b"zzz"),
        "column 'response_b' is missing; found: 'id', 'prompt', 'response_a', 'zzz'",
    ),
    "half an Arena export": (
        "f.jsonl",
        jsonl({"conversation_a": []}),
        "column 'conversation_b' is missing; found: 'conversation_a'",
    ),
    "no column of any shape": (
        "f.csv",
        b"x,y\n1,2\n",
        "no pairs found in its columns; found: 'x', 'y'; expected prompt, response_a, response_b; or conversation_a,",
    ),
    "a label column missing": (
        "f.csv",
        GOOD_CSV.replace(b"response_b\n", b"response_b,winner_model_a,winner_tie\n").replace(b']"\n', b']",1,0\n'),
        "column 'winner_model_b' is missing; the three winner columns go together",
    ),
    "a column twice": (
        "f.csv",
        GOOD_CSV.replace(b"id,", b"prompt,"),
        "column 'prompt' appears twice; each name must be unique",
    ),
    "an id twice": (
        "f.csv",
        GOOD_CSV + b'1,"[""p""]","[""a""]","[""b""]"\n',
        "row 2: id '1' is the same as in row 1; every row needs an id of its own",
    ),
    "an id as number and as text": (
        "f.jsonl",
        jsonl(kaggle_row(7), kaggle_row("7")),
        "row 2: id '7' is the same as in row 1",
    ),
    "an empty id": (
        "f.csv",
        HEADER + b',"[""p""]","[""a""]","[""b""]"\n',
        "row 1: id is missing; expected a text or a number in every row",
    ),
    "an id that is none": ("f.jsonl", jsonl(kaggle_row([1])), "row 1: id is [1]; expected a text or a number"),
    "half a character in an id": (
        "f.jsonl",
        b'{"id": "\\ud83d", "chosen": "a b", "rejected": "a c"}\n',
        "row 1: id is '\\ud83d'; expected a text",
    ),
    "not UTF-8": (
        "f.csv",
        HEADER + b'1,"[""caf\xe9""]","[""a""]","[""b""]"\n',
        "not UTF-8: byte 0xe9 at offset 41 (line 2); save the file as UTF-8",
    ),
    "UTF-16": (
        "f.csv",
        "id,prompt".encode("utf-16"),
        "not UTF-8: byte 0xff at offset 0 (line 1); it looks like UTF-16",
    ),
    "an id that comes late": (
        "f.jsonl",
        jsonl(*[{"prompt": ["p"], "response_a": ["a"], "response_b": ["b"]}] * 16, kaggle_row(5)),
        "row 17: has an id where the first rows have none; every row needs one, or none",
    ),
    "a tar archive": (
        "f.csv",
        b"pairs.csv" + bytes(100) + b"id,prompt\n1,2\n",
        "is not text (a tar archive?); expected CSV",
    ),
    "compressed twice": ("f.csv.gz", gzip.compress(gzip.compress(GOOD_CSV)), "is compressed twice; expected CSV, TSV"),
    "a ZIP archive": (
        "f.csv",
        b"PK\x03\x04" + bytes(30),
        "is a ZIP archive or an Excel workbook; expected CSV, TSV, JSON Lines",
    ),
    "Parquet under another name": (
        "f.csv",
        parquet_bytes([kaggle_row()]),
        "is Parquet by its content; give it the ending .parquet",
    ),
    "semicolons": (
        "f.csv",
        b"id;prompt;response_a;response_b\n1;a;b;c\n",
        "its cells are separated by ';'; expected commas (or tabs",
    ),
    "carriage returns alone": (
        "f.csv",
        b"id,prompt\r1,a\r",
        "not valid CSV: a carriage return outside quotes",
    ),
    "a quote that never ends": (
        "f.csv",
        GOOD_CSV + b'2,"[""p""]\n3,x,y,z\n',
        "row 2: not valid CSV: a quoted cell that never ends; nothing after it can be told apart",
    ),
    "text after a quote": ("f.csv", HEADER + b'1,"a"b,c,d\n', "row 1: not valid CSV: ',' expected after '\"'"),
    "truncated Parquet": (
        "f.parquet",
        parquet_bytes([kaggle_row()])[:-20],
        "not a readable Parquet file, perhaps truncated: ",
    ),
    "Parquet in name only": ("f.parquet", b"hello there", "not a readable Parquet file, perhaps truncated: "),
    "truncated gzip": (
        "f.csv.gz",
        gzip.compress(GOOD_CSV)[:-30],
        "the compressed data end too early: the file is truncated",
    ),
    "damaged gzip": ("f.csv.gz", b"\x1f\x8b" + b"\x00" * 40, "the compressed data are damaged: "),
    "truncated zstd": (
        "f.csv.zst",
        zstd.compress(GOOD_CSV)[:-6],
        "the compressed data end too early: the file is truncated",
    ),
    "an array that never ends": (
        "f.json",
        json.dumps([kaggle_row()]).encode()[:-1],
        "row 1: not valid JSON: the array never ends; expected one array of objects",
    ),
    "an array that ends in an object": (
        "f.json",
        json.dumps([kaggle_row()]).encode()[:-9],
        "row 1: not valid JSON: ",
    ),
    "an array with something after it": (
        "f.json",
        json.dumps([kaggle_row()]).encode() + b"[]",
        "row 1: not valid JSON: there is more after the array",
    ),
    "an array without a comma": (
        "f.json",
        json.dumps([kaggle_row(1), kaggle_row(2)]).replace("}, {", "} {").encode(),
        "row 1: not valid JSON: found '{' after an item; expected one array of objects",
    ),
    "an array with a broken object": (
        "f.json",
        json.dumps([kaggle_row(1), "x"]).replace('"x"', "{oops}").encode(),
        "row 2: not valid JSON: Expecting property name enclosed in double quotes, found '{oops}]'; nothing after it",
    ),
    "an array that is not UTF-8": (
        "f.json",
        b'[{"a": "\xe9"}]',
        "not UTF-8: byte 0xe9 at offset 8; save the file as UTF-8",
    ),
    "an array of no objects": (
        "f.json",
        b"[1, 2]",
        "no JSON object in the first 2 items; the first says: 1 where a JSON object",
    ),
    "an empty array": ("f.json", b" [ ] ", "the file is empty; expected JSON objects, one a line, or an array of them"),
    "no JSON at all": (
        "f.jsonl",
        b"hello\nworld\n",
        "no JSON object in the first 2 lines; the first says: not valid JSON: Expecting value at character 0, found 'hello'",
    ),
}

# name: (file name, its bytes, the row, the message after file and row)
ROW_FAULTS: dict[str, tuple[str, bytes, int, str]] = {
    "broken JSON cell": (
        "f.csv",
        GOOD_CSV + b'2,"[""p""]","[""a"",]","[""b""]"\n',
        2,
        "response_a: is not valid JSON: ",
    ),
    "a cell of plain text": (
        "f.csv",
        HEADER + b"1,Why?,Because,So\n",
        1,
        "prompt: is 'Why?'; expected a JSON array of strings, one a turn (if the cells are plain text: --cells text)",
    ),
    "an empty cell": (
        "f.csv",
        HEADER + b'1,"[""p""]",,"[""b""]"\n',
        1,
        "response_a: is empty; expected a JSON array of strings",
    ),
    "a number too long": (
        "f.csv",
        HEADER + b"1,[" + b"9" * 5000 + b"],[],[]\n",
        1,
        "prompt: is not usable JSON: a number too long",
    ),
    "nested too deeply": (
        "f.csv",
        HEADER + b"1," + b"[" * 100_000 + b",[],[]\n",
        1,
        "prompt: is not usable JSON: nested too deeply",
    ),
    "code in a cell": (
        "f.csv",
        HEADER + b'1,"[__import__(\'os\').getcwd()]","[""a""]","[""b""]"\n',
        1,
        "prompt: is not valid JSON: Expecting value at character 1",
    ),
    "a turn that is no text": (
        "f.jsonl",
        jsonl(kaggle_row(a=["x", 3], prompt=("1", "2"))),
        1,
        "response_a: turn 2 is a number; expected a string or null",
    ),
    "an object for an array": (
        "f.jsonl",
        jsonl(kaggle_row(a={"x": 1})),
        1,
        "response_a: is an object; expected a text, or a list of texts",
    ),
    "turn counts that differ": (
        "f.jsonl",
        jsonl(kaggle_row(prompt=("1", "2"), a=("1", "2"))),
        1,
        "response_b: the numbers of turns differ: prompt 2, response_a 2, response_b 1; they must be equal",
    ),
    "no turn at all": (
        "f.jsonl",
        jsonl(kaggle_row(prompt=(), a=(), b=())),
        1,
        "prompt: has no turn; expected at least one",
    ),
    "a field missing": (
        "f.jsonl",
        jsonl(kaggle_row(), {"id": 2, "prompt": ["p"]}),
        2,
        "response_a: is missing from this row",
    ),
    "a null field": ("f.jsonl", jsonl(kaggle_row(b=None)), 1, "response_b: is null"),
    "too few cells": (
        "f.csv",
        GOOD_CSV + b"2,x\n",
        2,
        "has 2 cells where the header has 4; a comma or quote in a text",
    ),
    "a line that is no JSON": (
        "f.jsonl",
        jsonl(kaggle_row()) + b"{oops}\n",
        2,
        "not valid JSON: Expecting property name enclosed in double quotes at character 1, found '{oops}'; expected one JSON",
    ),
    "a line that is no object": ("f.jsonl", jsonl(kaggle_row(), 5), 2, "5 where a JSON object is expected"),
    "two winners": (
        "f.jsonl",
        jsonl(labelled(0) | {"winner_tie": 1}),
        1,
        "winner_model_a,winner_model_b,winner_tie: are 1, 0, 1; expected exactly one 1 and two 0",
    ),
    "no winner": (
        "f.jsonl",
        jsonl(labelled(0) | {"winner_model_a": 0}),
        1,
        "winner_model_a,winner_model_b,winner_tie: are 0, 0, 0;",
    ),
    "a share for a winner": (
        "f.jsonl",
        jsonl(labelled(0) | {"winner_model_a": 0.5}),
        1,
        "winner_model_a,winner_model_b,winner_tie: are 0.5,",
    ),
    "two labels that contradict": (
        "f.jsonl",
        jsonl(labelled(0) | {"winner": "tie"}),
        1,
        "winner: says TIE where winner_model_a, winner_model_b, winner_tie say A; expected one label",
    ),
    "an unknown winner": (
        "f.jsonl",
        jsonl(kaggle_row(winner="gpt-4")),
        1,
        "winner: is 'gpt-4'; expected one of model_a, model_b, tie, tie (bothbad), both_bad",
    ),
    "an unknown label": ("f.jsonl", jsonl(kaggle_row(label=3)), 1, "label: is 3; expected 0 (A), 1 (B) or 2 (tie)"),
    "a label that contradicts the columns": (
        "f.jsonl",
        jsonl(labelled(0) | {"label": 1}),
        1,
        "label: says B where winner_model_a, winner_model_b, winner_tie say A; expected one label",
    ),
    "a label that contradicts the winner": (
        "f.jsonl",
        jsonl(kaggle_row(label=2, winner="model_b")),
        1,
        "label: says TIE where winner says B; expected one label",
    ),
    "an item of an array that is no object": (
        "f.json",
        json.dumps([kaggle_row(1), ["x"], kaggle_row(3)]).encode(),
        2,
        "a JSON array where a JSON object is expected",
    ),
    "an item of an array that is nested too deeply": (
        "f.json",
        json.dumps([kaggle_row(1), "x", kaggle_row(3)]).replace('"x"', "[" * 100_000 + "]" * 100_000).encode(),
        2,
        "not usable JSON: nested too deeply",
    ),
}

CONVERSATION_FAULTS: dict[str, tuple[Any, str]] = {
    "a tool message": (
        [USER, {"role": "tool", "content": "42"}],
        "ends with the result of a tool; expected an assistant message at the end",
    ),
    "an image": (
        [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, ASSISTANT],
        "message 1 has a content part of type 'image_url'; only text can be compared",
    ),
    "a system message in the middle": (
        [USER, {"role": "system", "content": "s"}, ASSISTANT],
        "message 2 has the role 'system'; expected assistant (user and assistant alternate; only the first",
    ),
    "an unknown role": (
        [{"role": "narrator", "content": "x"}],
        "message 1 has the role 'narrator'; expected user",
    ),
    "two user messages": (
        [USER, USER, ASSISTANT],
        "message 2 has the role 'user'; expected assistant",
    ),
    "an answer to nothing": ([ASSISTANT], "message 1 has the role 'assistant'; expected user"),
    "no answer": ([USER], "ends without an assistant message"),
    "no messages": ([], "ends without an assistant message"),
    "no message list": (
        "hello",
        "is not valid JSON: Expecting value at character 0, found 'hello'; expected a JSON array",
    ),
    "a message without a role": ([{"content": "x"}], "message 1 is {'content': 'x'}; expected an object with"),
    "content that is a number": ([{"role": "user", "content": 5}], "message 1: content is a number; expected a text"),
    "fewer turns": (
        [USER, ASSISTANT, USER, ASSISTANT],
        "the numbers of turns differ: conversation_a 2, conversation_b 1",
    ),
    "another prompt": (
        [{"role": "user", "content": "v"}, ASSISTANT],
        "the prompt of turn 1 differs between conversation_a and",
    ),
}

PREFERENCE_FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "no prompt anywhere": (
        {"chosen": "Good", "rejected": "Bad"},
        "chosen and rejected share no beginning that could be the prompt",
    ),
    "answers without a prompt": (
        {"chosen": [ASSISTANT], "rejected": [ASSISTANT]},
        "has no user message, and there is no prompt",
    ),
    "another prompt inside": (
        {"prompt": "Why?", "chosen": [USER, ASSISTANT], "rejected": [USER, ASSISTANT]},
        "is not what chosen begins with; expected the same prompt in both, or only the answer in chosen",
    ),
    "a number": (
        {"prompt": "Why?", "chosen": 5, "rejected": "x"},
        "is a number; expected a text or a list of messages",
    ),
}


def test_there_are_at_least_forty() -> None:
    assert len(FILE_FAULTS) + len(ROW_FAULTS) + len(CONVERSATION_FAULTS) + len(PREFERENCE_FAULTS) >= 40


def rows_of(path: Path, **options: Any) -> list[Any]:
    with open_pairs(path, **options) as file:
        return list(file)


@pytest.mark.parametrize("fault", FILE_FAULTS)
def test_faults_of_the_file(tmp_path: Path, fault: str) -> None:
    name, data, message = FILE_FAULTS[fault]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(FileError) as caught:
        rows_of(tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name}: {message}")
    assert "\n" not in str(caught.value)


def the_error(rows: list[Any], row: int) -> RowError:
    errors = [item for item in rows if isinstance(item, RowError)]
    assert [error.row for error in errors] == [row]
    return errors[0]


@pytest.mark.parametrize("fault", ROW_FAULTS)
def test_faults_of_a_row(tmp_path: Path, fault: str) -> None:
    name, data, row, message = ROW_FAULTS[fault]
    (tmp_path / name).write_bytes(data)
    error = the_error(rows_of(tmp_path / name), row)
    found = str(error).removeprefix(f"{tmp_path / name}: row {row}").lstrip(",: ")
    assert found.startswith(message)
    assert "\n" not in found


@pytest.mark.parametrize("fault", CONVERSATION_FAULTS)
def test_faults_of_a_conversation(tmp_path: Path, fault: str) -> None:
    conversation, message = CONVERSATION_FAULTS[fault]
    row = {"conversation_a": conversation, "conversation_b": [USER, ASSISTANT]}
    error = the_error(rows_of(write_jsonl(tmp_path / "f.jsonl", [row])), 1)
    assert error.field in ("conversation_a", "conversation_b")
    assert error.problem.startswith(message)


@pytest.mark.parametrize("fault", PREFERENCE_FAULTS)
def test_faults_of_preference_data(tmp_path: Path, fault: str) -> None:
    row, message = PREFERENCE_FAULTS[fault]
    error = the_error(rows_of(write_jsonl(tmp_path / "f.jsonl", [row])), 1)
    assert error.problem.startswith(message)


def test_a_fault_names_the_persons_own_column(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "f.jsonl", [{"q": 5, "left": ["a"], "right": ["b"]}])
    error = the_error(rows_of(path, columns={"prompt": "q", "response_a": "left", "response_b": "right"}), 1)
    assert (error.field, error.problem) == ("q", "is a number; expected a text, or a list of texts, one a turn")


@pytest.mark.parametrize(
    ("columns", "error", "message"),
    [
        ({"promt": "q"}, UsageError, "--columns: there is no field 'promt'; did you mean 'prompt'?"),
        (
            {"prompt": "question"},
            FileError,
            "column 'question', named for prompt, is missing; nearest found: 'questions'",
        ),
    ],
)
def test_mappings_that_do_not_fit(
    tmp_path: Path, columns: dict[str, str], error: type[Exception], message: str
) -> None:
    path = write_jsonl(tmp_path / "f.jsonl", [{"questions": ["p"], "response_a": ["a"], "response_b": ["b"]}])
    with pytest.raises(error) as caught:
        open_pairs(path, columns=columns)
    assert message in str(caught.value)


def test_a_column_that_the_mapping_took_away(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "f.jsonl", [kaggle_row()])
    with pytest.raises(FileError, match="column 'prompt' is missing: --columns took it for id"):
        open_pairs(path, columns={"id": "prompt"})


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_row_that_cannot_be_read_gets_an_id_that_is_nobody_elses(tmp_path: Path, ending: str) -> None:
    data = {"csv": GOOD_CSV.replace(b"1,", b"2,") + b"5,x\n", "jsonl": jsonl(kaggle_row("2")) + b"{oops\n"}[ending]
    (tmp_path / f"f.{ending}").write_bytes(data)
    assert [item.id for item in rows_of(tmp_path / f"f.{ending}")] == ["2", "unreadable row 2"]
    (tmp_path / "g.jsonl").write_bytes(b"{oops\n" + jsonl({"prompt": ["p"], "response_a": ["a"], "response_b": ["b"]}))
    assert [item.id for item in rows_of(tmp_path / "g.jsonl")] == [1, 2]


def test_files_that_are_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "none.csv", tmp_path / "none" / "p.csv", "a\0b.csv"):
        with pytest.raises(FileError, match=r"cannot be read: |is not a name that a file can have"):
            open_pairs(path)


@pytest.mark.parametrize("verb", ["predict", "evaluate", "check"])
def test_no_fault_of_a_file_shows_a_traceback_or_leaves_output(prefcast: Run, tmp_path: Path, verb: str) -> None:
    data = GOOD_CSV.replace(b"response_b\n", b"response_b,winner\n").replace(b']"\n', b']",tie\n')
    (tmp_path / "f.csv").write_bytes(data + b'2,"[""p""]\n3,x,y,z\n')
    done = prefcast(verb, "f.csv", *(["-o", "out.csv", "--model", "surface"] if verb == "predict" else []))
    assert done.returncode == 2
    assert (
        done.stderr
        == "prefcast: f.csv: row 2: not valid CSV: a quoted cell that never ends; nothing after it can be told apart\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["f.csv"]


def test_messages_do_not_pass_on_terminal_escapes(prefcast: Run, tmp_path: Path) -> None:
    write_csv(tmp_path / "f.csv", [kaggle_row("\x1b[2J1", prompt='["\x1b]0;owned\x07', a="\x1b[31m", b="\u202e")])
    for command in (("predict", "f.csv", "--model", "surface"), ("check", "f.csv")):
        done = prefcast(*command)
        assert done.returncode == 3
        assert "\x1b" not in done.stdout + done.stderr
        assert "\u202e" not in done.stdout + done.stderr

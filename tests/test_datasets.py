"""Public datasets are recognised by their columns, without --columns: each reads as the pairs that it means."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.ipc
import pytest

from conftest import kaggle_row, write_csv, write_jsonl
from prefcast import open_pairs, read_pairs
from prefcast.errors import FileError, RowError
from prefcast.pairs import Outcome, Pair
from prefcast.pairs.formats.answers import AnswerFile
from prefcast.pairs.formats.candidates import CandidateFile, Candidates


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def bot(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def said(pair: Pair) -> tuple[Any, ...]:
    return (pair.id, pair.prompt, pair.response_a, pair.response_b, pair.outcome)


HELPSTEER3 = {"context": [user("A?"), bot("x"), user("B?")], "response1": "one", "response2": "two"}
SHAREGPT = {"conversations": [{"from": "human", "value": "Hi?"}]}
PAIRS: dict[str, tuple[dict[str, Any], tuple[Any, ...]]] = {
    "HelpSteer3, the first preferred": (
        {**HELPSTEER3, "overall_preference": -2},
        (1, ("A?", "B?"), ("x", "one"), ("x", "two"), Outcome.A),
    ),
    "HelpSteer3, the second preferred": (
        {**HELPSTEER3, "overall_preference": 1},
        (1, ("A?", "B?"), ("x", "one"), ("x", "two"), Outcome.B),
    ),
    "HelpSteer3, equal, as a float": (
        {**HELPSTEER3, "overall_preference": 0.0},
        (1, ("A?", "B?"), ("x", "one"), ("x", "two"), Outcome.TIE),
    ),
    "HelpSteer2": (
        {"prompt": "[1] Hi", "response_1": "a", "response_2": "b", "preference_strength": 3},
        (1, ("[1] Hi",), ("a",), ("b",), Outcome.B),
    ),
    "PKU-SafeRLHF": (
        {"prompt": "Hi", "response_0": "a", "response_1": "b", "better_response_id": 1, "safer_response_id": 0},
        (1, ("Hi",), ("a",), ("b",), Outcome.B),
    ),
    "JudgeBench": (
        {"pair_id": "p-7", "question": "Q", "response_A": "x", "response_B": "y", "label": "A>B"},
        ("p-7", ("Q",), ("x",), ("y",), Outcome.A),
    ),
    "JudgeBench with a prompt and a winner": (
        {"prompt": "Q", "response_A": "x", "response_B": "y", "winner": "B>A"},
        (1, ("Q",), ("x",), ("y",), Outcome.B),
    ),
    "Arena's question_id": (
        {"question_id": "58210e39", "conversation_a": [user("Q"), bot("x")], "conversation_b": [user("Q"), bot("y")]},
        ("58210e39", ("Q",), ("x",), ("y",), None),
    ),
    "MT-bench's question_id, which is not the row's": (
        {
            "question_id": 81,
            "turn": 1,
            "conversation_a": [user("Q"), bot("x")],
            "conversation_b": [user("Q"), bot("y")],
        },
        (1, ("Q",), ("x",), ("y",), None),
    ),
    "our names, and a prompt of messages": (
        kaggle_row(1, [user("A?"), bot("x"), user("B?")], "one", "two", winner="tie"),
        (1, ("A?", "B?"), ("x", "one"), ("x", "two"), Outcome.TIE),
    ),
}
CHOSEN: dict[str, tuple[dict[str, Any], tuple[Any, ...]]] = {
    "ShareGPT, the answers as messages": (
        {
            **SHAREGPT,
            "chosen": {"from": "gpt", "value": "Hello."},
            "rejected": {"from": "gpt", "value": "No."},
        },
        (("Hi?",), ("Hello.",), ("No.",)),
    ),
    "ShareGPT, whole conversations": (
        {
            "chosen": [*SHAREGPT["conversations"], {"from": "gpt", "value": "Hello."}],
            "rejected": [*SHAREGPT["conversations"], {"from": "gpt", "value": "No."}],
        },
        (("Hi?",), ("Hello.",), ("No.",)),
    ),
    "roles in capitals": (
        {
            name: [{"role": "Human", "content": "Hi?"}, {"role": "Assistant", "content": answer}]
            for name, answer in (("chosen", "Hello."), ("rejected", "No."))
        },
        (("Hi?",), ("Hello.",), ("No.",)),
    ),
    "a question": ({"question": "Hi?", "chosen": "Hello.", "rejected": "No."}, (("Hi?",), ("Hello.",), ("No.",))),
    "lists of one answer": (
        {"prompt": "Hi?", "chosen": ["Hello."], "rejected": ["No."]},
        (("Hi?",), ("Hello.",), ("No.",)),
    ),
    "HH-RLHF that parts before the last answer": (
        {
            "chosen": "\n\nHuman: a?\n\nAssistant: x\n\nHuman: b?\n\nAssistant: y",
            "rejected": "\n\nHuman: a?\n\nAssistant: z",
        },
        (("a?",), ("x\n\nHuman: b?\n\nAssistant: y",), ("z",)),
    ),
    "HH-RLHF that goes on with another question": (
        {
            "chosen": "\n\nHuman: a?\n\nAssistant: o\n\nHuman: b?\n\nAssistant: x\n\nHuman: c?\n\nAssistant: y",
            "rejected": "\n\nHuman: a?\n\nAssistant: o\n\nHuman: b?\n\nAssistant: z\n\nHuman: d?\n\nAssistant: w",
        },
        (("a?", "b?"), ("o", "x\n\nHuman: c?\n\nAssistant: y"), ("o", "z\n\nHuman: d?\n\nAssistant: w")),
    ),
}


@pytest.mark.parametrize("kind", PAIRS)
def test_pairs(tmp_path: Path, kind: str) -> None:
    row, expected = PAIRS[kind]
    row = {name: value for name, value in row.items() if value is not None}
    (pair,) = read_pairs(write_jsonl(tmp_path / "p.jsonl", [row]))
    assert said(pair) == expected


@pytest.mark.parametrize("kind", ["HelpSteer3, the first preferred", "HelpSteer2", "PKU-SafeRLHF", "JudgeBench"])
def test_pairs_in_a_csv(tmp_path: Path, kind: str) -> None:
    row, expected = PAIRS[kind]
    (pair,) = read_pairs(write_csv(tmp_path / "p.csv", [row]))
    assert said(pair) == expected


@pytest.mark.parametrize("kind", CHOSEN)
def test_chosen_and_rejected(tmp_path: Path, kind: str) -> None:
    row, expected = CHOSEN[kind]
    # Which of the two is A is drawn from the id; both happen among these.
    pairs = list(read_pairs(write_jsonl(tmp_path / "p.jsonl", [{"id": number, **row} for number in range(8)])))
    assert {pair.outcome for pair in pairs} == {Outcome.A, Outcome.B}
    for pair in pairs:
        _, prompt, a, b, outcome = said(pair)
        assert (prompt, *((a, b) if outcome is Outcome.A else (b, a))) == expected


def test_a_developer_is_the_system(tmp_path: Path) -> None:
    rows = [
        {"prompt": [{"role": role, "content": "Be brief."}, user("Hi")], "response_a": "a", "response_b": "b"}
        for role in ("developer", "system")
    ]
    one, other = read_pairs(write_jsonl(tmp_path / "p.jsonl", rows))
    assert one.turns == other.turns


def test_names_that_a_person_gives_go_before_those_of_the_dataset(tmp_path: Path) -> None:
    row = {"prompt": "Hi", "response_0": "a", "response_1": "b", "better_response_id": 1, "safer_response_id": 0}
    path = write_jsonl(tmp_path / "p.jsonl", [row])
    with open_pairs(path, columns={"winner": "safer_response_id"}) as file:
        assert [item.outcome for item in file if isinstance(item, Pair)] == [Outcome.A]
    with open_pairs(path, label_values={"0": "b", "1": "a"}) as file:
        assert [item.outcome for item in file if isinstance(item, Pair)] == [Outcome.A]
    swapped = {"response_a": "response_1", "response_b": "response_0"}
    with open_pairs(path, columns=swapped, cells="text") as file:
        assert file.dataset is None
        assert [item.response_a for item in file if isinstance(item, Pair)] == [("b",)]


def test_a_fault_names_the_column_of_the_file(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "p.jsonl", [{**HELPSTEER3, "overall_preference": 4}])
    with open_pairs(path) as file:
        (fault,) = file
    assert isinstance(fault, RowError)
    assert "row 1, overall_preference: is 4; expected" in str(fault)


@pytest.mark.parametrize(
    "message",
    [{"from": "function_call", "value": "{}"}, {"from": "observation", "value": "42"}],
)
def test_a_tool_in_a_form_of_its_own_is_an_error_of_its_row(tmp_path: Path, message: dict[str, Any]) -> None:
    good = {"prompt": "Hi?", "chosen": "a", "rejected": "b"}
    bad = {"prompt": [user("Weather?")], "chosen": [bot(""), message, bot("Sun.")], "rejected": [bot("No.")]}
    with open_pairs(write_jsonl(tmp_path / "p.jsonl", [bad, good])) as file:
        fault, pair = file
    assert isinstance(fault, RowError)
    assert isinstance(pair, Pair)
    assert "chosen: message 3 has the role" in str(fault)
    assert "expected tool, or assistant with tool_calls" in str(fault)


NECTAR = {
    "prompt": "\n\nHuman: Hi?\n\nAssistant: ",
    "answers": [
        {"answer": "x", "model": "m1", "rank": 2.0},
        {"answer": "y", "model": "m2", "rank": 1.0},
        {"answer": "z", "model": "m3", "rank": 3.0},
    ],
}
CANDIDATES: dict[str, tuple[dict[str, Any], tuple[Any, ...]]] = {
    "RewardBench 2": (
        {"id": "r-1", "prompt": "2+2?", "chosen": ["4"], "rejected": ["5", "6", "7"], "subset": "Math"},
        (("2+2?",), (("4",), ("5",), ("6",), ("7",)), {0}),
    ),
    "RewardBench 2 with two right answers": (
        {"id": "r-1", "prompt": "A colour?", "chosen": ["red", "blue"], "rejected": ["dog"], "subset": "Ties"},
        (("A colour?",), (("red",), ("blue",), ("dog",)), {0, 1}),
    ),
    "Nectar": (NECTAR, (("Hi?",), (("x",), ("y",), ("z",)), {1})),
    "Nectar, a second turn": (
        {**NECTAR, "prompt": "\n\nHuman: Hi?\n\nAssistant: Yes?\n\nHuman: Why?\n\nAssistant:"},
        (("Hi?", "Why?"), (("Yes?", "x"), ("Yes?", "y"), ("Yes?", "z")), {1}),
    ),
    "UltraFeedback": (
        {"instruction": "Hi?", "completions": [{"response": "x"}, {"response": "y"}]},
        (("Hi?",), (("x",), ("y",)), set()),
    ),
    "a prompt of messages": (
        {"prompt": [user("A?"), bot("o"), user("B?")], "responses": ["x", "y"]},
        (("A?", "B?"), (("o", "x"), ("o", "y")), set()),
    ),
}


@pytest.mark.parametrize("kind", CANDIDATES)
def test_several_answers(tmp_path: Path, kind: str) -> None:
    row, expected = CANDIDATES[kind]
    with CandidateFile(write_jsonl(tmp_path / "p.jsonl", [row])) as file:
        (found,) = file
    assert isinstance(found, Candidates), found
    assert (found.prompt, found.responses, found.right) == expected


def test_answers_of_sharegpt(tmp_path: Path) -> None:
    messages = [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Hello."}]
    with AnswerFile(write_jsonl(tmp_path / "p.jsonl", [{"conversations": messages}])) as file:
        (found,) = file
    assert not isinstance(found, RowError)
    assert found.turns == (("Hi?", "Hello."),)


REFUSED: dict[str, tuple[Any, str]] = {
    "one answer to a prompt": (
        [{"prompt": "Hi", "response": "Hello"}],
        "holds one answer to each prompt, in 'response'; expected two answers",
    ),
    "a conversation a row": (
        [{"id": 1, "messages": [user("Hi"), bot("a")]}],
        "holds one answer to each prompt, in 'messages'; expected two answers",
    ),
    "several answers": (
        [{"prompt": "Hi", "responses": ["a", "b", "c"]}],
        "holds several answers to each prompt, in 'responses'; expected two answers, such as response_a and response_b; prefcast best",
    ),
    "columns, as pandas writes them": (
        [{name: {"0": ["x"], "1": ["y"]} for name in ("prompt", "response_a", "response_b")}],
        "is one object with a whole table, as pandas writes it (to_json with orient='records' writes rows)",
    ),
    "pandas' split": ([{"columns": ["a"], "index": [0], "data": [[1]]}], "is one object with a whole table"),
    "rows inside an object": ([{"data": [{"prompt": "a"}]}], "is one object with the rows in 'data'"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_holds_no_pairs_is_told_by_what_it_is(tmp_path: Path, kind: str) -> None:
    rows, message = REFUSED[kind]
    with pytest.raises(FileError) as caught:
        open_pairs(write_jsonl(tmp_path / "p.jsonl", rows))
    assert message in str(caught.value)


def test_a_row_of_one_object_is_a_row(tmp_path: Path) -> None:
    row = kaggle_row(1, [user("Hi?")], [bot("a")], [bot("b")])
    (tmp_path / "p.json").write_text(json.dumps(row))
    (pair,) = read_pairs(tmp_path / "p.json")
    assert said(pair)[1:4] == (("Hi?",), ("a",), ("b",))


@pytest.mark.parametrize("ending", [".arrow", ".feather", ".ipc", ""])
@pytest.mark.parametrize("form", ["file", "stream"])
def test_arrow_files_in_both_forms(tmp_path: Path, form: str, ending: str) -> None:
    rows = [kaggle_row(number, ("Hi?",), (f"a{number}",), ("b",), winner="tie") for number in range(600)]
    table = pyarrow.Table.from_pylist(rows)
    path = tmp_path / f"p{ending}"
    new = pyarrow.ipc.new_file if form == "file" else pyarrow.ipc.new_stream
    with pyarrow.OSFile(str(path), "wb") as sink, new(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=500)
    found = list(read_pairs(path))
    assert [pair.response_a[0] for pair in found] == [f"a{number}" for number in range(600)]
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(FileError, match="Arrow"):
        list(read_pairs(path))


def test_arrow_under_another_ending(tmp_path: Path) -> None:
    table = pyarrow.Table.from_pylist([kaggle_row()])
    with pyarrow.OSFile(str(tmp_path / "p.csv"), "wb") as sink, pyarrow.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(FileError, match=r"is Arrow by its content; give it the ending \.arrow"):
        open_pairs(tmp_path / "p.csv")


def test_a_folder_that_the_library_datasets_saved(tmp_path: Path) -> None:
    table = pyarrow.Table.from_pylist([kaggle_row()])
    with (
        pyarrow.OSFile(str(tmp_path / "data-00000-of-00001.arrow"), "wb") as sink,
        pyarrow.ipc.new_stream(sink, table.schema) as writer,
    ):
        writer.write_table(table)
    for name in ("state.json", "dataset_info.json"):
        (tmp_path / name).write_text("{}")
    assert len(list(read_pairs(tmp_path))) == 1

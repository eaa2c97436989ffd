"""Whatever the bytes, the readers give pairs or an error of the tree in errors.py: never anything else."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.ipc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import EXAMPLES, kaggle_row, write_jsonl, zstd
from prefcast.errors import FileError, RowError
from prefcast.pairs import Pair
from prefcast.pairs.budget import KeepLast
from prefcast.pairs.formats import open_pairs
from prefcast.pairs.formats.answers import Answer, AnswerFile
from prefcast.pairs.formats.candidates import CandidateFile, Candidates
from prefcast.pairs.formats.saved import read_saved
from test_bad_input import ASSISTANT, USER, parquet_bytes


def arrow_bytes(rows: list[dict[str, Any]], form: Any) -> bytes:
    table, sink = pyarrow.Table.from_pylist(rows), pyarrow.BufferOutputStream()
    with form(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


EXAMPLE = EXAMPLES.read_bytes()
LINES = b"".join(json.dumps(kaggle_row(number)).encode() + b"\n" for number in range(3))
SEEDS = [
    EXAMPLE[:3000],
    LINES,
    json.dumps({"conversation_a": [USER, ASSISTANT], "conversation_b": [USER, ASSISTANT], "winner": "tie"}).encode(),
    json.dumps({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}).encode(),
    parquet_bytes([kaggle_row()]),
    arrow_bytes([kaggle_row()], pyarrow.ipc.new_file),
    arrow_bytes([kaggle_row()], pyarrow.ipc.new_stream),
    gzip.compress(EXAMPLE[:500]),
    zstd.compress(LINES),
    b"id,winner_model_a,winner_model_b,winner_tie,label\n1,0.2,0.3,0.5,2\n",
]
ENDINGS = ("csv", "tsv", "jsonl", "parquet", "arrow", "bin")

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["user", "assistant"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
message = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", "tool"]), "content": json_values}
)
cells = st.one_of(
    json_values,
    json_values.map(json.dumps),
    st.just('["\ud83d"]'),
    st.lists(st.text(max_size=5), max_size=3),
    st.lists(message, max_size=4),
)
fields = st.sampled_from(
    [
        "id",
        "prompt",
        "response_a",
        "response_b",
        "conversation_a",
        "conversation_b",
        "chosen",
        "rejected",
        "winner",
        "model_a",
        "winner_model_a",
        "winner_tie",
    ]
)


def read_all(path: Path) -> None:
    """Reads as pairs and as predictions, and holds every result to its contract."""
    errors: list[FileError] = []
    for cells_kind in ("json", "text"):
        try:
            with open_pairs(path, cells=cells_kind) as file:
                for item in file:
                    assert isinstance(item, Pair | RowError)
                    assert str(item) != ""
                    if isinstance(item, Pair):
                        assert item.turns
                        for text in (*item.prompt, *item.response_a, *item.response_b):
                            text.encode("utf-8")
                        KeepLast(10).apply(item.turns)
                    else:
                        assert str(item).isprintable()
        except FileError as error:
            errors.append(error)
    try:
        read_saved(path)
    except FileError as error:
        errors.append(error)
    assert all(str(error).isprintable() for error in errors)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A good file with some bytes changed, removed or repeated."""
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(data)))
        kind = draw(st.integers(0, 3))
        if kind == 0:
            data[at : at + 1] = draw(st.binary(max_size=4))
        elif kind == 1:
            del data[at : at + draw(st.integers(1, 40))]
        elif kind == 2:
            data[at:at] = data[at : at + draw(st.integers(1, 40))]
        else:
            data[at:at] = draw(
                st.sampled_from([b'"', b"\n", b"\r", b"[", b"\\ud800", b"null", b",", b"\x00", b"\xff", b"1e999"])
            )
    return bytes(data)


often = settings(
    max_examples=4 * settings.default.max_examples, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@often
@given(damaged(), st.sampled_from(ENDINGS))
def test_damaged_files(tmp_path: Path, data: bytes, ending: str) -> None:
    path = tmp_path / f"f.{ending}"
    path.write_bytes(data)
    read_all(path)


@often
@given(st.binary(max_size=200), st.sampled_from(ENDINGS))
def test_random_bytes(tmp_path: Path, data: bytes, ending: str) -> None:
    path = tmp_path / f"f.{ending}"
    path.write_bytes(data)
    read_all(path)


@often
@given(st.lists(st.dictionaries(fields, cells, max_size=6), min_size=1, max_size=4))
def test_random_objects(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    read_all(write_jsonl(tmp_path / "f.jsonl", rows))


# The columns of public datasets, and values as they have them.
shared_messages = st.lists(
    st.one_of(
        message,
        st.fixed_dictionaries({"from": st.sampled_from(["human", "gpt", "function_call"]), "value": json_values}),
        json_values,
    ),
    max_size=4,
)
answers = st.lists(
    st.one_of(st.fixed_dictionaries({"answer": json_values, "rank": json_values}), st.text(max_size=5), json_values),
    max_size=4,
)
transcripts = st.lists(st.sampled_from(["\n\nHuman: ", "\n\nAssistant: ", "a", "b"]), max_size=6).map("".join)
values = st.one_of(shared_messages, answers, transcripts, cells)
datasets = st.sampled_from(
    [
        ("context", "response1", "response2", "overall_preference"),
        ("prompt", "response_0", "response_1", "better_response_id"),
        ("question", "response_A", "response_B", "label"),
        ("conversations", "chosen", "rejected"),
        ("prompt", "chosen", "rejected"),
        ("prompt", "answers"),
        ("prompt", "response"),
        ("messages",),
    ]
).flatmap(lambda names: st.fixed_dictionaries({}, optional=dict.fromkeys(names, values)))


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(datasets, min_size=1, max_size=4))
def test_rows_of_datasets(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    path = write_jsonl(tmp_path / "d.jsonl", rows)
    errors: list[FileError] = []
    for kind in (
        lambda: open_pairs(path),
        lambda: open_pairs(path, single=True),
        lambda: CandidateFile(path),
        lambda: AnswerFile(path),
    ):
        try:
            with kind() as file:
                for item in file:
                    assert isinstance(item, Pair | RowError | Candidates | Answer)
        except FileError as error:
            errors.append(error)
    assert all(str(error).isprintable() for error in errors)

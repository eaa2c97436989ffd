"""Every shape in every container reads as the same pairs."""

from __future__ import annotations

import gzip
import io
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from conftest import EXAMPLES, kaggle_row, labelled, write_csv, write_jsonl, zstd
from prefcast import open_pairs, read_pairs
from prefcast.errors import FileError, RowError, UsageError
from prefcast.pairs import Outcome, Pair, Turn
from prefcast.pairs.formats.ids import SeenIds

# Text that breaks careless readers: quotes, commas, line ends, a formula, other scripts, a NUL, a byte-order mark inside.
NASTY = [
    'He said "no, never"\n\nthen\r\nleft',
    "=cmd|' /C calc'!A0",
    "日本語 مرحبا 🙂 e\u0301",
    "a\x00b\ufeffc\u2028d",
    "{}[],:",
    "",
]

ROWS = [
    labelled(0, id="x-1", prompt=("Why?", "And?"), a=("Because.", ""), b=("So.", "Yes.")),
    labelled(1, id="x-2", prompt=(NASTY[0],), a=(NASTY[1],), b=(NASTY[2],)),
    labelled(2, id="x-3", prompt=(NASTY[3],), a=(NASTY[4],), b=(NASTY[5],)),
]
PAIRS = [
    Pair((Turn("Why?", "Because.", "So."), Turn("And?", "", "Yes.")), "x-1", Outcome.A, row=1),
    Pair((Turn(NASTY[0], NASTY[1], NASTY[2]),), "x-2", Outcome.B, row=2),
    Pair((Turn(NASTY[3], NASTY[4], NASTY[5]),), "x-3", Outcome.TIE, row=3),
]


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def as_text(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {name: json.dumps(value) if isinstance(value, list) else value for name, value in row.items()} for row in rows
    ]


WRITERS: dict[str, Callable[[Path], Path]] = {
    "csv": lambda folder: write_csv(folder / "p.csv", ROWS),
    "jsonl-native": lambda folder: write_jsonl(folder / "p.jsonl", ROWS),
    "jsonl-text": lambda folder: write_jsonl(folder / "p.ndjson", as_text(ROWS)),
    "parquet-native": lambda folder: write_parquet(folder / "p.parquet", ROWS),
    "parquet-text": lambda folder: write_parquet(folder / "p.parquet", as_text(ROWS)),
}
COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {"": lambda data: data, ".gz": gzip.compress, ".zst": zstd.compress}


@pytest.mark.parametrize("compression", COMPRESSORS)
@pytest.mark.parametrize("writer", WRITERS)
def test_every_container_reads_the_same(tmp_path: Path, writer: str, compression: str) -> None:
    plain = WRITERS[writer](tmp_path)
    path = plain.with_name(plain.name + compression)
    path.write_bytes(COMPRESSORS[compression](plain.read_bytes()))
    assert list(read_pairs(path)) == PAIRS
    with open_pairs(path) as file:
        assert file.shape.name == "kaggle"
        assert file.has_id
        assert file.may_have_labels


@pytest.mark.parametrize("compression", COMPRESSORS)
@pytest.mark.parametrize("writer", WRITERS)
def test_standard_input_is_told_by_its_first_bytes(
    tmp_path: Path, writer: str, compression: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = COMPRESSORS[compression](WRITERS[writer](tmp_path).read_bytes())

    class Standard:
        buffer = io.BufferedReader(io.BytesIO(data))

    monkeypatch.setattr(sys, "stdin", Standard)
    assert list(read_pairs("-")) == PAIRS


def test_files_of_several_compressed_parts_are_read_to_their_end(tmp_path: Path) -> None:
    whole = write_csv(tmp_path / "p.csv", ROWS).read_bytes()
    for name, compress in (("p.csv.gz", gzip.compress), ("q.csv.zst", zstd.compress)):
        (tmp_path / name).write_bytes(compress(whole[:50]) + compress(whole[50:]))
        assert list(read_pairs(tmp_path / name)) == PAIRS


def test_tabs(tmp_path: Path) -> None:
    (tmp_path / "p.tsv").write_text('prompt\tresponse_a\tresponse_b\n["a, b"]\t["c"]\t["d"]\n')
    assert list(read_pairs(tmp_path / "p.tsv")) == [Pair((Turn("a, b", "c", "d"),), 1, row=1)]


def test_byte_order_mark_windows_line_ends_and_blank_lines_are_simply_read(tmp_path: Path) -> None:
    text = write_csv(tmp_path / "p.csv", [kaggle_row(1), kaggle_row(2)]).read_text().replace("\n", "\r\n")
    (tmp_path / "p.csv").write_bytes(b"\xef\xbb\xbf" + text.encode() + b"\r\n\r\n")
    assert [pair.id for pair in read_pairs(tmp_path / "p.csv")] == ["1", "2"]
    lines = "\r\n\r\n".join(json.dumps(kaggle_row(number)) for number in (1, 2))
    (tmp_path / "p.jsonl").write_bytes(b"\xef\xbb\xbf" + lines.encode())
    assert [pair.id for pair in read_pairs(tmp_path / "p.jsonl")] == [1, 2]


def test_a_cell_of_20_megabytes(tmp_path: Path) -> None:
    long = "x" * 20_000_000
    path = write_csv(tmp_path / "p.csv", [kaggle_row(a=(long,)), kaggle_row(2)])
    first, second = read_pairs(path)
    assert first.response_a == (long,)
    assert second.response_a == ("Because.",)


def test_null_is_an_empty_turn_and_half_a_character_is_replaced(tmp_path: Path) -> None:
    row = '1,"[null, ""a""]","[""x\\ud83d"", ""\\ud83d\\ude00""]","[""\\udc00y"", null]"'
    (tmp_path / "p.csv").write_text(f"id,prompt,response_a,response_b\n{row}\n")
    write_jsonl(tmp_path / "p.jsonl", [kaggle_row(prompt='["p\ud83d"]')])
    assert next(read_pairs(tmp_path / "p.jsonl")).prompt == ("p\ufffd",)
    (pair,) = read_pairs(tmp_path / "p.csv")
    assert pair.turns == (Turn("", "x\ufffd", "\ufffdy"), Turn("a", "😀", ""))
    pair.response_a[0].encode("utf-8")


def test_without_ids_the_row_number_is_the_id(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "p.csv", [kaggle_row(), kaggle_row()], ["prompt", "response_a", "response_b"])
    assert [pair.id for pair in read_pairs(path)] == [1, 2]


@pytest.mark.parametrize("ids", [["007", "7"], ["a b", "ä"], [" 1", "1"], ["1e3", "1000"]])
def test_ids_are_kept_verbatim(tmp_path: Path, ids: list[str]) -> None:
    path = write_csv(tmp_path / "p.csv", [kaggle_row(id) for id in ids])
    assert [pair.id for pair in read_pairs(path)] == ids


def test_whole_numbers_stay_whole_numbers(tmp_path: Path) -> None:
    rows = [kaggle_row(2**60), kaggle_row(-1)]
    assert [pair.id for pair in read_pairs(write_jsonl(tmp_path / "p.jsonl", rows))] == [2**60, -1]
    assert [pair.id for pair in read_pairs(write_parquet(tmp_path / "p.parquet", rows))] == [2**60, -1]


def test_ids_of_other_types_are_kept_as_their_text(tmp_path: Path) -> None:
    values = [1.0, Decimal("2.50"), date(2026, 1, 2), datetime(2026, 1, 2, 3, 4)]
    expected = ["1.0", "2.50", "2026-01-02", "2026-01-02 03:04:00"]
    for value, text in zip(values, expected, strict=True):
        path = write_parquet(tmp_path / "p.parquet", [kaggle_row(value)])
        assert [pair.id for pair in read_pairs(path)] == [text]


def test_an_answer_may_begin_like_its_prompt(tmp_path: Path) -> None:
    row = {"prompt": "Hello", "chosen": "Hello! How can I help?", "rejected": "Hi."}
    (pair,) = read_pairs(write_jsonl(tmp_path / "p.jsonl", [row]))
    assert {pair.response_a[0], pair.response_b[0]} == {"Hello! How can I help?", "Hi."}


def test_a_prompt_that_begins_the_answer(tmp_path: Path) -> None:
    row = {"prompt": "\n\nHuman: Why?\n\nAssistant: Well,", "chosen": " it is so.", "rejected": " no."}
    (pair,) = read_pairs(write_jsonl(tmp_path / "p.jsonl", [row]))
    assert {pair.response_a[0], pair.response_b[0]} == {"Well, it is so.", "Well, no."}


@pytest.mark.parametrize("text", ['[{"name": "x"}]', "[{name: x}]", '[{"a": 1}] sort this', "\n\nHuman: no"])
def test_an_answer_may_be_json_or_anything(tmp_path: Path, text: str) -> None:
    row = {"prompt": "Give me text.", "chosen": text, "rejected": "No."}
    (pair,) = read_pairs(write_jsonl(tmp_path / "p.jsonl", [row]))
    assert {pair.response_a[0], pair.response_b[0]} == {text, "No."}
    (again,) = read_pairs(write_csv(tmp_path / "p.csv", [row]))
    assert {again.response_a[0], again.response_b[0]} == {text, "No."}


def test_a_pair_of_empty_texts_is_a_pair(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text('prompt,response_a,response_b\n"","",""\nq,a,b\n')
    assert [pair.id for pair in read_pairs(tmp_path / "p.csv", cells="text")] == [1, 2]


def test_the_bytes_of_a_pipe_may_come_one_at_a_time(tmp_path: Path) -> None:
    data = b"\xef\xbb\xbf" + write_jsonl(tmp_path / "p.jsonl", ROWS).read_bytes()
    for name, sent in (("pipe", data), ("pipe2", gzip.compress(data))):
        os.mkfifo(tmp_path / name)

        def write(name: str = name, sent: bytes = sent) -> None:
            with (tmp_path / name).open("wb", buffering=0) as pipe:
                for start in range(0, 40):
                    pipe.write(sent[start : start + 1])
                    time.sleep(0.001)
                pipe.write(sent[40:])

        writer = threading.Thread(target=write)
        writer.start()
        assert [pair.turns for pair in read_pairs(tmp_path / name)] == [pair.turns for pair in PAIRS]
        writer.join()


def test_what_excel_leaves_behind(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text('id,prompt,response_a,response_b,,\n1,"[""p""]","[""a""]","[""b""]",,\n,,,,,\n')
    assert [pair.id for pair in read_pairs(tmp_path / "p.csv")] == ["1"]


def test_a_file_is_read_once(tmp_path: Path) -> None:
    with open_pairs(write_jsonl(tmp_path / "p.jsonl", ROWS)) as file:
        assert len(list(file)) == 3
        with pytest.raises(UsageError, match="was read already; open it again"):
            list(file)


def test_own_column_names_and_plain_text(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("question,left,right,prompt,best\nWhy?,[Because],So,unused,tie\n")
    mapping = {"prompt": "question", "response_a": "left", "response_b": "right", "winner": "best"}
    assert list(read_pairs(path, columns=mapping, cells="text")) == [
        Pair((Turn("Why?", "[Because]", "So"),), 1, Outcome.TIE, row=1)
    ]


@pytest.mark.parametrize(
    ("winner", "outcome"),
    [
        ("model_a", Outcome.A),
        ("model_b", Outcome.B),
        ("tie", Outcome.TIE),
        ("tie (bothbad)", Outcome.TIE),
        ("both_bad", Outcome.TIE),
        ("Tie", Outcome.TIE),
        (None, None),
        ("", None),
    ],
)
def test_winners(tmp_path: Path, winner: str | None, outcome: Outcome | None) -> None:
    path = write_jsonl(tmp_path / "p.jsonl", [kaggle_row(winner=winner)])
    assert next(read_pairs(path)).outcome == outcome


@pytest.mark.parametrize(
    "values", [("0", "1", "0"), (0, 1, 0), (0.0, 1.0, 0.0), (False, True, False), ("0.0", "1.0", "0.0")]
)
def test_one_hot_labels_in_the_types_that_files_have(tmp_path: Path, values: tuple[Any, ...]) -> None:
    row = kaggle_row(**dict(zip(("winner_model_a", "winner_model_b", "winner_tie"), values, strict=True)))
    assert next(read_pairs(write_jsonl(tmp_path / "p.jsonl", [row]))).outcome == Outcome.B


def messages(*texts: str, system: str | None = None) -> list[dict[str, Any]]:
    out = [{"role": "system", "content": system}] if system is not None else []
    return out + [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(texts)]


@pytest.mark.parametrize("container", ["csv", "jsonl", "parquet"])
def test_arena_exports(tmp_path: Path, container: str) -> None:
    row = {
        "question_id": "q",
        "conversation_a": messages("u1", "a1", "u2", "a2", system="Be kind."),
        "conversation_b": messages("u1", "b1", "u2", "b2", system="Be kind."),
        "winner": "model_b",
        "model_a": "x",
        "model_b": "y",
    }
    writers: dict[str, Any] = {"csv": write_csv, "jsonl": write_jsonl, "parquet": write_parquet}
    path = writers[container](tmp_path / f"p.{container}", [row])
    turns = (Turn("u1", "a1", "b1"), Turn("u2", "a2", "b2"))
    (pair,) = read_pairs(path)
    assert pair == Pair(turns, "q", Outcome.B, "x", "y", row=1, system="Be kind.")
    assert pair.joined().prompt == ("Be kind.\n\nu1", "u2")


def test_content_as_text_parts(tmp_path: Path) -> None:
    def parts(text: str) -> list[dict[str, Any]]:
        half = len(text) // 2
        return [{"type": "text", "text": text[:half]}, {"type": "text", "text": text[half:]}]

    a = [{"role": "user", "content": parts("ab")}, {"role": "assistant", "content": parts("cd")}]
    b = [{"role": "user", "content": "a\nb"}, {"role": "assistant", "content": None}]
    path = write_jsonl(tmp_path / "p.jsonl", [{"conversation_a": a, "conversation_b": b}])
    assert next(read_pairs(path)).turns == (Turn("a\nb", "c\nd", ""),)


PREFERENCES = {
    "text, explicit prompt": {"prompt": "Why?", "chosen": "Good.", "rejected": "Bad."},
    "text, implicit prompt": {"chosen": "Why? Good.", "rejected": "Why? Bad."},
    "transcripts that begin at once": {
        "chosen": "Human: Why?\n\nAssistant: Good.",
        "rejected": "Human: Why?\n\nAssistant: Bad.",
    },
    "transcripts that repeat their prompt": {
        "prompt": "\n\nHuman: Why?",
        "chosen": "\n\nHuman: Why?\n\nAssistant: Good.",
        "rejected": "\n\nHuman: Why?\n\nAssistant: Bad.",
    },
    "a prompt that ends in a blank": {
        "prompt": "\n\nHuman: Why?\n\nAssistant: ",
        "chosen": "Good.",
        "rejected": "Bad.",
    },
    "answers with the mark": {
        "prompt": "\n\nHuman: Why?",
        "chosen": "\n\nAssistant: Good.",
        "rejected": "\n\nAssistant: Bad.",
    },
    "messages whose prompt is in parts": {
        "prompt": "Why?",
        "chosen": [
            {"role": "user", "content": [{"type": "text", "text": "Why?"}]},
            {"role": "assistant", "content": "Good."},
        ],
        "rejected": messages("Why?", "Bad."),
    },
    "an empty prompt column": {"prompt": "", "chosen": "Why? Good.", "rejected": "Why? Bad."},
    "transcripts": {"chosen": "\n\nHuman: Why?\n\nAssistant: Good.", "rejected": "\n\nHuman: Why?\n\nAssistant: Bad."},
    "transcript as the prompt": {"prompt": "\n\nHuman: Why?\n\nAssistant:", "chosen": " Good.", "rejected": " Bad."},
    "messages, implicit prompt": {"chosen": messages("Why?", "Good."), "rejected": messages("Why?", "Bad.")},
    "messages and their prompt": {
        "prompt": "Why?",
        "chosen": messages("Why?", "Good."),
        "rejected": messages("Why?", "Bad."),
    },
    "answers as messages": {
        "prompt": messages("Why?"),
        "chosen": [{"role": "assistant", "content": "Good."}],
        "rejected": [{"role": "assistant", "content": "Bad."}],
    },
    "text prompt, answers as messages": {
        "prompt": "Why?",
        "chosen": [{"role": "assistant", "content": "Good."}],
        "rejected": [{"role": "assistant", "content": "Bad."}],
    },
    "prompt as messages, answers as text": {"prompt": messages("Why?"), "chosen": "Good.", "rejected": "Bad."},
}


@pytest.mark.parametrize("kind", PREFERENCES)
@pytest.mark.parametrize("container", ["csv", "jsonl"])
def test_chosen_and_rejected(tmp_path: Path, kind: str, container: str) -> None:
    rows = [{"id": number, **PREFERENCES[kind]} for number in range(20)]
    path = write_csv(tmp_path / "p.csv", rows) if container == "csv" else write_jsonl(tmp_path / "p.jsonl", rows)
    pairs = list(read_pairs(path))
    assert {pair.outcome for pair in pairs} == {Outcome.A, Outcome.B}
    for pair in pairs:
        assert pair.prompt == ("Why?",)
        better, worse = (
            (pair.response_a, pair.response_b) if pair.outcome is Outcome.A else (pair.response_b, pair.response_a)
        )
        assert (better, worse) == (("Good.",), ("Bad.",))


def test_chosen_and_rejected_of_several_turns_with_their_models(tmp_path: Path) -> None:
    row = {
        "chosen": messages("u1", "a1", "u2", "good"),
        "rejected": messages("u1", "a1", "u2", "bad"),
        "chosen_model": "x",
        "rejected_model": "y",
    }
    pairs = list(read_pairs(write_jsonl(tmp_path / "p.jsonl", [row] * 12)))
    for pair in pairs:
        if pair.outcome is Outcome.A:
            assert (pair.model_a, pair.model_b, pair.turns[1]) == ("x", "y", Turn("u2", "good", "bad"))
        else:
            assert (pair.model_a, pair.model_b, pair.turns[1]) == ("y", "x", Turn("u2", "bad", "good"))


def test_the_order_of_chosen_and_rejected_is_drawn_with_a_fixed_seed(tmp_path: Path) -> None:
    rows = [{"prompt": "Why?", "chosen": "Good.", "rejected": "Bad."}] * 400
    path = write_jsonl(tmp_path / "p.jsonl", rows)
    first, second = ([pair.outcome for pair in read_pairs(path)] for _ in range(2))
    assert first == second
    assert 150 < first.count(Outcome.A) < 250
    with open_pairs(path) as file:
        assert "fixed seed" in file.shape.note


def test_reading_stops_at_a_bad_row_or_goes_on_past_it(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "p.jsonl", [kaggle_row(1), kaggle_row(2, prompt=3), kaggle_row(3)])
    with pytest.raises(RowError, match="row 2, prompt: is a number"):
        list(read_pairs(path))
    with open_pairs(path) as file:
        kinds = [(type(item), item.id) for item in file]
    assert kinds == [(Pair, 1), (RowError, 2), (Pair, 3)]


def test_reading_streams(tmp_path: Path) -> None:
    pairs = read_pairs(write_jsonl(tmp_path / "p.jsonl", [kaggle_row(number) for number in range(5000)]))
    assert next(pairs).id == 0
    assert sum(1 for _ in pairs) == 4999


@pytest.mark.parametrize(
    ("first", "second"), [(1, 2), (1, 5000), (4096, 4097), (3, 20_000), (8192, 16_384), (19_999, 20_000)]
)
def test_a_duplicate_id_is_found_wherever_it_stands(first: int, second: int) -> None:
    seen = SeenIds()
    found: tuple[int, int] | None = None
    for row in range(1, 20_001):
        id = f"id-{first if row == second else row}"
        found = found or seen.add(id, row)
    assert (found or seen.settle()) == (second, first)


def test_ids_without_duplicates_cost_16_bytes_a_row() -> None:
    seen = SeenIds()
    for row in range(1, 100_001):
        assert seen.add(row, row) is None
    assert seen.settle() is None
    assert len(seen._held) == 16 * 100_000


def test_duplicates_across_blocks_end_the_file(tmp_path: Path) -> None:
    rows = [kaggle_row(number % 5000) for number in range(5001)]
    with pytest.raises(FileError, match=r"row 5001: id is the same as in row 1;"):
        list(read_pairs(write_jsonl(tmp_path / "p.jsonl", rows)))


def test_the_shipped_examples_are_what_the_readme_says() -> None:
    pairs = list(read_pairs(EXAMPLES))
    assert len(pairs) == 42
    assert {len(pair.turns) for pair in pairs} >= {1, 2, 3}
    assert {pair.outcome for pair in pairs} == set(Outcome)
    assert any(pair.response_a == pair.response_b for pair in pairs)
    assert any(not "".join(pair.response_b) for pair in pairs)

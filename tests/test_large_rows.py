"""A small file may unpack to anything: rows and files have bounds, and what is beyond them is an error of its row or file."""

from __future__ import annotations

import io
import json
import random
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest

import prefcast as library
from conftest import Run, kaggle_row, labelled, write_csv, write_jsonl, zstd
from prefcast import open_pairs
from prefcast.errors import FileError, RowError, UsageError
from prefcast.pairs import Pair
from prefcast.pairs.formats.saved import saved_blocks
from prefcast.pairs.formats.table import Table

GOOD = json.dumps(kaggle_row(1)).encode()
LAST = json.dumps(kaggle_row(9)).encode()
HEADER = b"id,prompt,response_a,response_b\n"
ROW = b'%d,"[""p""]","[""a""]","[""b""]"\n'
# With max_row=1, ten times more than a row may have; the whole file has a few kilobytes. Then more than is passed over.
LONG, ENDLESS = 3_000_000, 12_000_000


@contextmanager
def least_memory(most: int) -> Iterator[None]:
    """What the block takes at its peak, in Python and in Arrow, is at most so many bytes."""
    before, pool = pyarrow.default_memory_pool(), pyarrow.proxy_memory_pool(pyarrow.default_memory_pool())
    pyarrow.set_memory_pool(pool)
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        pyarrow.set_memory_pool(before)
    assert peak + (pool.max_memory() or 0) <= most


def read(path: Path, max_row: int = 1) -> list[Pair | RowError]:
    with open_pairs(path, max_row=max_row) as file:
        return list(file)


def ids(items: list[Pair | RowError]) -> list[Any]:
    says = ("has more than 1 MB; --max-row allows larger rows", "nested too deeply")
    assert all(any(each in item.problem for each in says) for item in items if isinstance(item, RowError))
    return [None if isinstance(item, RowError) else int(item.id) for item in items]


TEXTS: dict[str, tuple[str, Callable[[int], bytes]]] = {
    "a line": ("jsonl", lambda n: GOOD + b'\n{"id": 2, "prompt": ["' + b"x" * n + b'"]}\n' + LAST + b"\n"),
    "a line of brackets": ("jsonl", lambda n: GOOD + b"\n" + b"[" * n + b"\n" + LAST + b"\n"),
    "a line of characters of three bytes": (
        "jsonl",
        lambda n: GOOD + b'\n["' + "语".encode() * (n // 3) + b'"]\n' + LAST,
    ),
    "a text in an array": ("json", lambda n: b"[" + GOOD + b', ["' + b'\\"{[' * (n // 4) + b'"], ' + LAST + b"]"),
    "a text alone in an array": ("json", lambda n: b"[" + GOOD + b', "' + b"x" * n + b'", ' + LAST + b"]"),
    "brackets in an array": ("json", lambda n: b"[" + GOOD + b"," + b"[" * n + b"]" * n + b"," + LAST + b"]"),
    "lists in an array": ("json", lambda n: b"[" + GOOD + b', ["]", ' + b"[],{}," * (n // 6) + b"1], " + LAST + b"]"),
    "a cell": ("csv", lambda n: HEADER + ROW % 1 + b'2,"[""' + b"x" * n + b'""]",b,c\n' + ROW % 9),
    "a plain cell": ("csv", lambda n: HEADER + ROW % 1 + b"2," + b"x" * n + b",b,c\n" + ROW % 9),
    "a cell of quotes": ("csv", lambda n: HEADER + ROW % 1 + b'2,"' + b'""' * (n // 2) + b'",b,"c\n"\n' + ROW % 9),
    "a cell of lines": (
        "csv",
        lambda n: HEADER + ROW % 1 + b'2,"' + (b'""a"",' * 99 + b"\n") * (n // 595) + b'",b,c\n' + ROW % 9,
    ),
    "cells": ("csv", lambda n: HEADER + ROW % 1 + b",b" * (n // 2) + b',"a,\n""b"\n' + ROW % 9),
}


@pytest.mark.parametrize("kind", TEXTS)
def test_a_text_that_is_too_long_is_an_error_of_its_row(tmp_path: Path, kind: str) -> None:
    ending, made = TEXTS[kind]
    path = tmp_path / f"p.{ending}.zst"
    path.write_bytes(zstd.compress(made(LONG)))
    # A row of one megabyte may hold many small lists.
    with least_memory(32_000_000):
        assert ids(read(path)) == [1, None, 9]
    if "brackets" not in kind and "lists" not in kind:
        assert len(read(path, 64)) == 3
    path.write_bytes(zstd.compress(made(ENDLESS)))
    with least_memory(32_000_000), pytest.raises(FileError, match=r"row 2: has more than 8 MB; --max-row allows more"):
        read(path)


@pytest.mark.parametrize("cut", range(1, 40))
def test_a_long_row_ends_where_its_quotes_say(tmp_path: Path, cut: int) -> None:
    """Wherever the parts meet in which a row is passed over: in a text, between two quotes, before a line end."""
    cell = b"x" * (1_000_001 + cut) + b'"","" \n,"",""\n""' + b"y" * 20
    (tmp_path / "p.csv").write_bytes(HEADER + b'1,"' + cell + b'",b,"c,""\n"\n' + ROW % 9)
    assert ids(read(tmp_path / "p.csv"))[-1] == 9
    assert len(read(tmp_path / "p.csv")) == 2


def test_the_bound_is_one_of_bytes(tmp_path: Path) -> None:
    row = json.dumps(kaggle_row(a=("",)))
    for text, fits in (("x" * (999_996 - len(row)), True), ("x" * (1_000_001 - len(row)), False)):
        write_jsonl(tmp_path / "p.jsonl", [kaggle_row(a=(text,)), kaggle_row(9)])
        assert ids(read(tmp_path / "p.jsonl")) == [1 if fits else None, 9]


def test_a_header_that_is_too_long(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_bytes(b"a," * 600_000)
    with pytest.raises(FileError, match="the header has more than 1 MB"):
        read(tmp_path / "p.csv")
    (tmp_path / "p.csv").write_bytes(b",".join(b"%d" % n for n in range(20_000)) + b"\n")
    with pytest.raises(FileError, match="has 20,000 columns; expected at most 10,000"):
        read(tmp_path / "p.csv")


# Parquet


def table(answers: pyarrow.Array, **more: Any) -> pyarrow.Table:
    """Pairs with these answers, in which everything else is short."""
    n = len(answers)
    short = pyarrow.array(['["x"]'] * n)
    return pyarrow.table({"id": range(n), "prompt": short, "response_a": answers, "response_b": short, **more})


def repeated(text: str, n: int) -> pyarrow.Array:
    """A text n times, of which a file holds one."""
    return pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * n, pyarrow.int32()), pyarrow.array([text]))


def lists(values: pyarrow.Array, *lengths: int) -> pyarrow.Array:
    return pyarrow.ListArray.from_arrays(pyarrow.array([0, *np.cumsum(lengths)], pyarrow.int32()), values)


PARQUET: dict[str, tuple[Callable[[], pyarrow.Array], dict[str, Any]]] = {
    "a dictionary of one text": (lambda: repeated(json.dumps(["a" * 6_000_000]), 300), {}),
    "the same text in one list": (lambda: lists(repeated("a" * 100_000, 100_000), 100_000), {}),
    "and in many lists": (lambda: lists(repeated("a" * 500_000, 3_000), *([3] * 1000)), {}),
    "texts as they are": (
        lambda: pyarrow.array([json.dumps(["a" * 1_100_000])] * 60),
        {"use_dictionary": False, "data_page_size": 1, "write_batch_size": 1},
    ),
    "texts that begin alike": (
        lambda: pyarrow.array([json.dumps(["a" * 1_100_000])] * 60),
        {"use_dictionary": False, "column_encoding": {"response_a": "DELTA_BYTE_ARRAY"}},
    ),
    "messages": (
        lambda: pyarrow.StructArray.from_arrays([repeated("u" * 900_000, 9), repeated("u" * 900_000, 9)], ["a", "b"]),
        {},
    ),
}


@pytest.mark.parametrize("kind", PARQUET)
def test_texts_of_parquet_that_are_too_long_are_errors_of_their_rows(tmp_path: Path, kind: str) -> None:
    made, options = PARQUET[kind]
    answers = made()
    path = tmp_path / "p.parquet"
    pyarrow.parquet.write_table(table(answers), path, compression="zstd", store_schema=False, **options)
    assert path.stat().st_size < 100_000
    with least_memory(40_000_000):
        assert ids(read(path)) == [None] * len(answers)


def test_pages_of_parquet_have_a_bound(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    whole = {"use_dictionary": False, "compression": "zstd", "store_schema": False}
    texts = pyarrow.array([json.dumps(["a" * 100_000])] * 200)
    pyarrow.parquet.write_table(table(texts), path, **whole)
    with least_memory(8_000_000), pytest.raises(FileError, match="column 'response_a': a page has more than 8 MB"):
        read(path)
    pyarrow.parquet.write_table(table(lists(pyarrow.nulls(5_000_000, pyarrow.string()), 5_000_000)), path, **whole)
    with least_memory(8_000_000), pytest.raises(FileError, match="has 5,000,000 values in its lists"):
        read(path)
    # Columns that nobody uses are not looked at.
    pyarrow.parquet.write_table(table(pyarrow.array(['["a"]'] * 200), more=texts), path, **whole)
    with least_memory(8_000_000):
        assert len(read(path)) == 200


def test_what_the_footer_says_is_not_believed(tmp_path: Path) -> None:
    """The footer says that a column is small; its page says otherwise."""
    path = tmp_path / "p.parquet"
    texts = pyarrow.array([json.dumps(["a" * 100_000])] * 200)
    pyarrow.parquet.write_table(table(texts), path, use_dictionary=False, compression="zstd")
    size = pyarrow.parquet.read_metadata(path).row_group(0).column(2).total_uncompressed_size
    said = [_varint(2 * size), _varint(2 * 1000)]
    said[1] = said[1][:-1] + bytes([said[1][-1] | 0x80]) + b"\x80" * (len(said[0]) - len(said[1]) - 1) + b"\0"
    data = path.read_bytes()
    at = data.rindex(said[0])
    path.write_bytes(data[:at] + said[1] + data[at + len(said[0]) :])
    assert pyarrow.parquet.read_metadata(path).row_group(0).column(2).total_uncompressed_size == 1000
    with pytest.raises(FileError, match="a page has more than 8 MB"):
        read(path)


def _varint(number: int) -> bytes:
    low, high = number & 127, number >> 7
    return bytes([low | 128]) + _varint(high) if high else bytes([low])


@pytest.mark.parametrize("kind", ["file", "pipe"])
def test_a_file_that_has_to_be_unpacked_has_a_bound(prefcast: Run, tmp_path: Path, kind: str) -> None:
    data = zstd.compress(b"PAR1" + b"\0" * 40_000_000)
    (tmp_path / "p.parquet.zst").write_bytes(data)
    asked = ("check", "p.parquet.zst") if kind == "file" else ("check", "-")
    done = prefcast(*asked, "--max-row", "1", stdin=data if kind == "pipe" else None)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "unpacked it takes more than 32 MB; --max-row allows more" in done.stderr


# Dates, and fields that stand twice

FAR = pyarrow.array([0, 2_000_000_000, 1], pyarrow.int32()).cast(pyarrow.date32())
SECONDS = pyarrow.array([0, 2**61, 1], pyarrow.int64()).cast(pyarrow.timestamp("us"))


@pytest.mark.parametrize("values", [FAR, SECONDS])
@pytest.mark.parametrize("how", ["file", "table"])
def test_a_value_that_python_cannot_hold(tmp_path: Path, values: pyarrow.Array, how: str) -> None:
    def source(found: pyarrow.Table) -> Any:
        pyarrow.parquet.write_table(found, tmp_path / "p.parquet")
        return tmp_path / "p.parquet" if how == "file" else found

    answers = pyarrow.array(['["a"]'] * 3)
    with open_pairs(source(table(answers, asked=values))) as file:
        assert [item.id for item in file] == [0, 1, 2]
    with open_pairs(source(table(answers, model_a=values))) as file:
        first, error, last = file
    assert isinstance(first, Pair)
    assert isinstance(last, Pair)
    assert isinstance(error, RowError)
    assert (error.row, error.field) == (2, "model_a")
    assert "that cannot be read" in error.problem


def test_dates_are_ids_as_their_text(tmp_path: Path) -> None:
    days = pyarrow.array([date(2024, 1, 1), date(2024, 1, 2)])
    found = table(pyarrow.array(['["a"]'] * 2)).set_column(0, "id", days)
    with open_pairs(found) as file:
        assert [item.id for item in file] == ["2024-01-01", "2024-01-02"]


@pytest.mark.parametrize(
    ("ending", "bad"),
    [
        ("jsonl", '{"id": 2, "prompt": ["a"], "prompt": ["b"], "response_a": ["c"], "response_b": ["d"]}'),
        ("json", '{"id": 2, "prompt": ["a"], "prompt": ["a"], "response_a": ["c"], "response_b": ["d"]}'),
        ("jsonl", '{"id": 2, "x": {"a": 1, "a": 2}, "prompt": ["b"], "response_a": ["c"], "response_b": ["d"]}'),
    ],
)
def test_a_field_that_stands_twice_is_an_error_of_its_row(tmp_path: Path, ending: str, bad: str) -> None:
    rows = [GOOD.decode(), bad, LAST.decode()]
    text = "\n".join(rows) if ending == "jsonl" else f"[{','.join(rows)}]"
    (tmp_path / f"p.{ending}").write_text(text)
    first, error, last = read(tmp_path / f"p.{ending}")
    assert (first.id, last.id) == (1, 9)
    assert isinstance(error, RowError)
    assert "an object has the field" in error.problem
    assert " twice" in error.problem


def test_a_field_that_stands_twice_in_a_cell(tmp_path: Path) -> None:
    cell = '[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "content": "c"}]'
    write_csv(tmp_path / "p.csv", [{"id": 1, "conversation_a": cell, "conversation_b": cell, "winner": "tie"}])
    (error,) = read(tmp_path / "p.csv")
    assert "an object has the field 'content' twice" in str(error)


# The option


def test_max_row_in_every_reader(prefcast: Run, tmp_path: Path) -> None:
    rows = [labelled(n % 3, id=n, a=("x" * (1_100_000 if n == 4 else 9 + n),), prompt=(f"p{n}",)) for n in range(30)]
    path = write_jsonl(tmp_path / "p.jsonl", rows)
    with pytest.raises(UsageError, match="--max-row: found 0; expected a whole number of megabytes"):
        open_pairs(path, max_row=0)
    assert library.evaluate(path, model="length", max_row=1).failed == 1
    assert library.predict(path, model="length", max_row=1).failed == 1
    assert library.fit(path, model="length", max_row=1).failed == 1
    for verb in (("check",), ("predict", "--model", "length", "-o", "o.csv")):
        done = prefcast(verb[0], path, *verb[1:], "--max-row", "1")
        assert done.returncode == 3
        assert "row 5: has more than 1 MB" in done.stdout + done.stderr
        assert "Traceback" not in done.stderr


def test_blocks_of_long_texts_are_short(tmp_path: Path) -> None:
    text = "x" * 900_000
    row = {"winner_model_a": 0.2, "winner_model_b": 0.3, "winner_tie": 0.5, "margin": 0.0}
    path = write_jsonl(tmp_path / "p.jsonl", [{"id": n, **row, "prompt": [text]} for n in range(90)])
    with least_memory(60_000_000):
        assert sum(len(block.ids) for block in saved_blocks(path)) == 90


def test_a_value_of_any_depth_is_shown(tmp_path: Path) -> None:
    value: Any = []
    for _ in range(900):
        value = [value]
    (tmp_path / "p.jsonl").write_text(GOOD.decode() + "\n" + json.dumps({"id": 2, "prompt": value}) + "\n")
    with Table(tmp_path / "p.jsonl", fields=("id", "prompt")) as found:
        rows = list(found.rows())
    assert len(rows) == 2


# Arrow files, whose buffers say how much they unpack to.

FORMS = {"file": pyarrow.ipc.new_file, "stream": pyarrow.ipc.new_stream}


def arrow_bytes(table: pyarrow.Table, form: str, compression: str | None) -> bytes:
    sink = io.BytesIO()
    with FORMS[form](sink, table.schema, options=pyarrow.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table, max_chunksize=20)
    return sink.getvalue()


@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
@pytest.mark.parametrize("form", FORMS)
def test_an_arrow_file_that_unpacks_to_too_much_is_refused(tmp_path: Path, form: str, compression: str | None) -> None:
    path = tmp_path / "p.arrow"

    def only(answer: str) -> Pair | RowError:
        row = {"id": 1, "prompt": "p", "response_a": answer, "response_b": "b"}
        path.write_bytes(arrow_bytes(pyarrow.Table.from_pylist([row]), form, compression))
        with open_pairs(path, cells="text", max_row=1) as file:
            (found,) = file
        return found

    assert isinstance(only("a"), Pair)
    # A row that is too large is its error; a batch that is too large is one of the file, and is not unpacked.
    error = only("a" * LONG)
    assert isinstance(error, RowError)
    assert "has more than 1 MB" in error.problem
    with pytest.raises(FileError, match="a batch of rows has 12 MB, more than 8 MB"):
        only("a" * ENDLESS)


def check_mutated_arrow(path: Path, count: int) -> None:
    words = pyarrow.array(["a", "b"] * 25).dictionary_encode()
    table = pyarrow.table({"id": range(50), "prompt": [["p"]] * 50, "response_a": words, "response_b": ["c"] * 50})
    draw = random.Random(0)
    for form in FORMS:
        for compression in (None, "lz4", "zstd"):
            whole = arrow_bytes(table, form, compression)
            for _ in range(count):
                data = bytearray(whole)
                for _ in range(draw.randint(1, 4)):
                    at, long = draw.randrange(len(data)), draw.choice((b"\xff" * 8, bytes(8), b"\0\0\0\0\0\0\0\x40"))
                    new = draw.choice((bytes([draw.randrange(256)]), long, b""))
                    data[at : at + draw.choice((len(new), 0, 9))] = new
                path.write_bytes(data)
                with suppress(FileError), open_pairs(path, cells="text") as file:
                    list(file)


def test_mutated_arrow_files_are_read_or_refused(tmp_path: Path) -> None:
    check_mutated_arrow(tmp_path / "p.arrow", 60)


@pytest.mark.long
def test_many_mutated_arrow_files_are_read_or_refused(tmp_path: Path) -> None:
    check_mutated_arrow(tmp_path / "p.arrow", 850)

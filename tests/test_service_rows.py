"""/v1/rows: a client's file is read as the library reads it, some rows at a time, and no file takes the server's memory or time."""

from __future__ import annotations

import gzip
import io
import json
import random
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conftest import EXAMPLES, Run, kaggle_row, labelled, write_csv, write_jsonl
from prefcast.pairs.formats import read_pairs
from prefcast.service import rows
from prefcast.service.rows import FileRows, read_rows
from servers import PAIR, Reply, Server, serving

BYTES = {"Content-Type": "application/octet-stream"}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving("--model", "surface", "--max-body", "3000000", "--time-limit", "300") as found:
        yield found


def send(server: Server, data: bytes, query: str = "") -> Reply:
    return server.ask("POST", f"/v1/rows{query}", data, BYTES)


def answer(server: Server, data: bytes, query: str = "") -> Any:
    reply = send(server, data, query)
    assert reply.status == 200, reply.body
    FileRows.model_validate_json(reply.body)
    return reply.json


def csv_bytes(tmp_path: Path, many: list[dict[str, Any]]) -> bytes:
    return write_csv(tmp_path / "x.csv", many).read_bytes()


def test_the_rows_are_those_of_the_library(server: Server) -> None:
    found = answer(server, EXAMPLES.read_bytes(), "?ending=.csv")
    assert found["next"] is None
    assert found["description"] == "Kaggle pairs (prompt, response_a, response_b), CSV"
    for row, pair in zip(found["rows"], read_pairs(EXAMPLES), strict=True):
        assert row["id"] == str(pair.id)
        texts = [tuple(row[name]) for name in ("prompt", "response_a", "response_b")]
        assert texts == [pair.prompt, pair.response_a, pair.response_b]
        assert (row["model_a"], row["model_b"]) == (pair.model_a, pair.model_b)
        assert row["label"] == (None if pair.outcome is None else ("a", "b", "tie")[pair.outcome])
        assert row["error"] is None


def test_forecasts_with_and_without_texts(server: Server, prefcast: Run, tmp_path: Path) -> None:
    assert prefcast("predict", EXAMPLES, "--model", "surface", "-o", "all.parquet", "--with-text").returncode == 0
    every = pq.read_table(tmp_path / "all.parquet").to_pylist()
    texts = ("prompt", "response_a", "response_b")
    write_jsonl(tmp_path / "bare.jsonl", [{name: row[name] for name in row if name not in texts} for row in every])
    write_csv(tmp_path / "submission.csv", every, ("id", "winner_model_a", "winner_model_b", "winner_tie"))
    for name in ("all.parquet", "bare.jsonl", "submission.csv"):
        data = (tmp_path / name).read_bytes()
        found = answer(server, data, f"?ending={Path(name).suffix}")
        assert found["forecasts"]
        assert found["texts"] is (name == "all.parquet")
        for row, wrote in zip(found["rows"], every, strict=True):
            a, b, tie = (wrote[f"winner_{key}"] for key in ("model_a", "model_b", "tie"))
            assert list(row["probabilities"].values()) == pytest.approx([a, b, tie], abs=1e-12)
            if name == "submission.csv":
                assert row["interval"] is row["margin"] is row["label"] is None
                continue
            assert row["margin"] == wrote["margin"]
            assert row["interval"]["tie"] == [wrote["winner_tie_low"], wrote["winner_tie_high"]]
            assert row["label"] == ("a", "b", "tie")[wrote["label"]]
            assert row["truncated"] is (wrote["characters_kept"] < wrote["characters"])
            assert (row["prompt"] == wrote["prompt"]) is (name == "all.parquet")


def test_faults_stand_in_their_rows(tmp_path: Path) -> None:
    good = labelled(0)
    many = [
        {**good, "id": 1, "model_a": "m"},
        {**good, "id": 2, "prompt": "plain"},
        {**good, "id": 3, "response_b": ["x", "y"]},
        {**good, "id": 4, "winner_tie": 1},
        {**good, "id": 1},
        {**good, "id": None},
        {**good, "id": 7, "prompt": [], "response_a": [], "response_b": []},
    ]
    found = read_rows(write_jsonl(tmp_path / "x.jsonl", many).read_bytes() + b"[1]\n{\n", ".jsonl")
    told = [(row.row, row.id, row.error.field, row.error.message) if row.error else None for row in found.rows]
    assert told[0] is None
    assert found.rows[0].model_a == "m"
    expected = [
        (2, "2", "prompt", "expected a JSON array of strings"),
        (3, "3", "response_b", "the numbers of turns differ"),
        (4, "4", "winner_model_a,winner_model_b,winner_tie", "expected exactly one 1 and two 0"),
        (5, "1", "id", "the same as in row 1"),
        (6, "6", "", "is missing"),
        (7, "7", "prompt", "has no turn"),
        (8, "8", "", "a JSON array where a JSON object is expected"),
        (9, "9", "", "not valid JSON"),
    ]
    for one, (row, id, field, message) in zip(told[1:], expected, strict=True):
        assert one is not None
        assert one[:3] == (row, id, field)
        assert message in one[3]
    forecasts = [{"id": 1, "winner_model_a": 0.2, "winner_model_b": 0.3, "winner_tie": 0.5}]
    forecasts += [{**forecasts[0], "id": 2, "winner_tie": 0.9}, {**forecasts[0], "id": 3, "winner_tie": None}]
    forecasts += [{**forecasts[0], "id": 4, "error": "too long"}, {**forecasts[0], "id": 5, "label": 7}]
    rows = read_rows(write_jsonl(tmp_path / "f.jsonl", forecasts).read_bytes(), ".jsonl").rows
    assert [row.error.message if row.error else "" for row in rows[:4:3]] == ["", "too long"]
    assert [row.probabilities is None for row in rows] == [False, True, True, True, True]
    # One row of plain text among lists is a fault of that row, and so is one list among plain texts.
    mixed = [kaggle_row(id=1, prompt="Why?", a="a", b="b"), kaggle_row(id=2)]
    assert [row.error is None for row in read_rows(write_jsonl(tmp_path / "m.jsonl", mixed).read_bytes()).rows] == [
        False,
        True,
    ]


@pytest.mark.parametrize(
    ("cell", "asked", "found", "faults"),
    [
        ("Why?", "", "text", 0),
        ('["Why?"]', "", "json", 0),
        ("[broken", "", "json", 3),
        ("Why?", "json", "json", 3),
        ('["Why?"]', "text", "text", 0),
    ],
)
def test_what_the_cells_hold_is_found_out(
    server: Server, tmp_path: Path, cell: str, asked: str, found: str, faults: int
) -> None:
    data = csv_bytes(tmp_path, [{"id": at, "prompt": cell, "response_a": cell, "response_b": cell} for at in range(3)])
    said = answer(server, data, f"?ending=.csv&cells={asked}" if asked else "?ending=.csv")
    assert said["cells"] == found
    assert sum(row["error"] is not None for row in said["rows"]) == faults


def test_an_answer_has_a_bound_and_says_where_to_go_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    many = [kaggle_row(id=at, a=("x" * (400 if at == 7 else 20),), prompt=("p",), b=("b",)) for at in range(10)]
    data = csv_bytes(tmp_path, many)
    whole = read_rows(data, ".csv")
    assert whole.next is None
    for name, value, most in (("MOST_ROWS", 4, 4), ("MOST_CHARACTERS", 90, 4)):
        monkeypatch.setattr(rows, name, value)
        found, first, times = [], 1, 0
        while first:
            part = read_rows(data, ".csv", first)
            assert 0 < len(part.rows) <= most
            found += part.rows
            first, times = part.next or 0, times + 1
        assert times >= 3
        assert [row.id for row in found] == [row.id for row in whole.rows]
    # A row that no answer could hold says so.
    assert found[7].error is not None
    assert "has 403 characters" in found[7].error.message
    assert found[7].prompt is None
    # So does one whose id, model or error is as long as that.
    odd = [kaggle_row(id="i" * 500, model_a="m"), kaggle_row(id=2, model_a="m" * 500)]
    odd.append(kaggle_row(id=3, prompt=("",) * 200, a=("",) * 200, b=("",) * 200, model_a="m"))
    for shown in read_rows(csv_bytes(tmp_path, odd), ".csv").rows:
        assert shown.error is not None
        assert "500" not in shown.id
        assert len(shown.id) + len(shown.model_a or "") < 5
    assert read_rows(data, ".csv", 11).rows == []


def parquet_bytes(**columns: Any) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out, compression="zstd", store_schema=False)
    return out.getvalue()


def unpacks_to(begin: bytes, size: int, rest: bytes = b"x") -> bytes:
    out = pa.BufferOutputStream()
    with pa.CompressedOutputStream(out, "zstd") as file:
        file.write(begin)
        for _ in range(size >> 24):
            file.write(rest * (1 << 24))
    return bytes(out.getvalue())


def check_refused(server: Server, data: bytes, ending: str, problem: str) -> None:
    reply = send(server, data, f"?ending={ending}" if ending else "")
    assert reply.status in (413, 422), (ending, reply.body[:300])
    message = reply.error["message"]
    assert problem in message
    assert "\n" not in message
    assert "Traceback" not in message
    assert len(message) < 600


@pytest.mark.long
def test_a_file_that_unpacks_to_too_much_is_one_line(server: Server, tmp_path: Path) -> None:
    good = csv_bytes(tmp_path, [kaggle_row()])
    cases = (
        (unpacks_to(b"PAR1", 150_000_000), ".parquet.zst", "cannot be unpacked: File too large"),
        (unpacks_to(good + b'2,"', 1_200_000_000), ".csv.zst", "memory"),
    )
    for data, ending, problem in cases:
        check_refused(server, data, ending, problem)
    assert server.metric("process_resident_memory_bytes") < 700_000_000


def test_a_file_that_cannot_be_read_is_one_line(server: Server, tmp_path: Path) -> None:
    good = csv_bytes(tmp_path, [kaggle_row()])
    huge = parquet_bytes(
        id=list(range(400)),
        prompt=["x"] * 400,
        response_a=pa.DictionaryArray.from_arrays(pa.array([0] * 400, pa.int32()), pa.array(["a" * 40_000_000])),
        response_b=["x"] * 400,
    )
    dates = parquet_bytes(
        id=[1], prompt=["a"], response_a=["b"], response_b=["c"], day=pa.array([2**31 - 2], pa.date32())
    )
    cases: list[tuple[bytes, str, str]] = [
        (b"", "", "is empty"),
        (b"\x89PNG\r\n\x1a\n", ".csv", "UTF-8"),
        (b"PK\x03\x04" + b"\0" * 50, ".csv", "Excel"),
        (good.rstrip()[:-1], ".csv", "never ends"),
        (good, ".parquet", "Parquet"),
        (b"PAR1" + b"\0" * 100 + b"PAR1", ".parquet", "Parquet"),
        (b"[" * 100_000, ".json", ""),
        (b'{"prompt":' * 50_000, ".jsonl", ""),
        (b"\x1f\x8b" + b"\0" * 50, ".csv.gz", "damaged"),
        (b"a,b\n1,2\n", ".csv", "no pairs found"),
    ]
    for data, ending, problem in cases:
        check_refused(server, data, ending, problem)
    # A row that is too large is that row's error, and a column that nothing uses is not read.
    large = answer(server, huge, "?ending=.parquet")["rows"]
    assert {row["error"]["message"] for row in large} == {"has more than 32 MB; --max-row allows larger rows"}
    assert [row["error"] for row in answer(server, dates, "?ending=.parquet")["rows"]] == [None]
    assert server.ask("POST", "/v1/forecast", PAIR).status == 200
    assert server.metric("process_resident_memory_bytes") < 700_000_000


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("?ending=../../etc/passwd", "ending"),
        ("?ending=.csv%00", "ending"),
        ("?ending=.a.b.c", "ending"),
        ("?first=0", "first"),
        ("?first=-1", "first"),
        ("?first=1e3", "first"),
        ("?first=٣", "first"),
        ("?first=99999999999999999999", "first"),
        ("?cells=", "cells"),
        ("?cells=both", "cells"),
        ("?name=x", "name"),
    ],
)
def test_what_the_address_may_ask(server: Server, query: str, field: str) -> None:
    reply = send(server, EXAMPLES.read_bytes(), query.replace("٣", "%D9%A3"))
    assert reply.status == 422
    assert reply.error["field"] == field


def test_it_is_checked_like_every_route() -> None:
    with serving(
        "--model", "surface", "--max-body", "1000", token="a-token-of-tests", PREFCAST_TOKEN="a-token-of-tests"
    ) as server:
        data = b"id,prompt,response_a,response_b\n1,a,b,c\n"
        assert send(server, data).status == 200
        for headers, status in (
            ({**BYTES, "Authorization": "Bearer wrong-token"}, 401),
            ({**BYTES, "Host": "attacker.example"}, 421),
            # What a form of another page can send.
            ({"Content-Type": "text/plain"}, 415),
            ({"Content-Type": "multipart/form-data; boundary=x"}, 415),
            ({**BYTES, "Content-Encoding": "gzip"}, 415),
        ):
            assert server.ask("POST", "/v1/rows", data, headers).status == status, headers
        assert send(server, data * 100).status == 413
        assert server.ask("GET", "/v1/rows").status == 405
        reply = send(server, data)
        assert reply.headers["cache-control"] == "no-store"
        assert "content-security-policy" in reply.headers
        assert not any("prompt" in line or "ending" in line for line in server.lines)


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_a_file_that_takes_long_is_given_up_and_others_are_answered() -> None:
    data = slow_file()
    with serving("--model", "surface", "--time-limit", "4") as server:
        replies: list[Reply] = []
        threads = [
            Thread(target=lambda: replies.append(send(server, data, "?ending=.csv.zst&first=2"))) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        assert server.ask("POST", "/v1/forecast", PAIR).status == 200
        assert not any(reply.status == 504 for reply in replies)
        for thread in threads:
            thread.join()
        # Two are read at a time; the client of another is told when to come again.
        assert sorted(reply.status for reply in replies) == [429, 429, 504, 504]
        assert all(reply.headers["retry-after"] == "1" for reply in replies if reply.status == 429)
        # Their processes are gone.
        while (status := send(server, EXAMPLES.read_bytes(), "?ending=.csv").status) in (429, 504):
            time.sleep(0.1)
        assert status == 200
        assert children(server) == []


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_one_who_leaves_takes_the_work_along(server: Server) -> None:
    data = slow_file()
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        head = f"POST /v1/rows?ending=.csv.zst&first=2 HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}"
        connection.sendall(f"{head}\r\nContent-Type: application/octet-stream\r\n\r\n".encode() + data)
        until = time.monotonic() + 100
        while not children(server) and time.monotonic() < until:
            time.sleep(0.01)
        assert children(server)
    # Long before the file is read.
    until = time.monotonic() + 20
    while children(server) and time.monotonic() < until:
        time.sleep(0.02)
    assert children(server) == []


def slow_file() -> bytes:
    """Work for a minute: millions of empty lines between the first row and the second."""
    return unpacks_to(b"id,prompt,response_a,response_b\n1,a,b,c\n", 400_000_000, b"\n")


def children(server: Server) -> list[str]:
    """The processes that a server has started and that are still there."""
    own = str(server.process.pid)
    return Path(f"/proc/{own}/task/{own}/children").read_text().split()


def check_mutations(server: Server, tmp_path: Path, count: int) -> None:
    """Files with some bytes changed: an answer or one line, never a fault of the server."""
    draw = random.Random(count)
    columns = {
        name: [json.dumps([f"{name} {at}"]) for at in range(30)] for name in ("prompt", "response_a", "response_b")
    }
    sound = [
        (".csv", csv_bytes(tmp_path, [labelled(at % 3, id=at) for at in range(30)])),
        (".jsonl", write_jsonl(tmp_path / "x.jsonl", [labelled(at % 3, id=at) for at in range(30)]).read_bytes()),
        (".parquet", parquet_bytes(id=list(range(30)), **columns)),
        (".csv.gz", gzip.compress(EXAMPLES.read_bytes())),
    ]
    statuses = set()
    for number in range(count):
        ending, data = sound[number % len(sound)]
        changed = bytearray(data)
        for _ in range(draw.randrange(1, 5)):
            at = draw.randrange(len(changed))
            changed[at : at + draw.randrange(3)] = draw.randbytes(draw.randrange(3))
        reply = send(server, bytes(changed), f"?ending={ending}")
        assert reply.status in (200, 413, 422), reply.body
        assert reply.status == 200 or "\n" not in reply.error["message"]
        statuses.add(reply.status)
    assert 422 in statuses


def test_mutated_files(server: Server, tmp_path: Path) -> None:
    check_mutations(server, tmp_path, 6)


@pytest.mark.long
def test_300_mutated_files(server: Server, tmp_path: Path) -> None:
    check_mutations(server, tmp_path, 300)

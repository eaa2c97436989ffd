"""Files that a stranger changed where their structure is: whatever they say, the answer is an error of errors.py, soon, and
in little memory."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
import random
import shutil
import sqlite3
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import typer

from conftest import EXAMPLES, Run, kaggle_row
from prefcast import Pair
from prefcast.cli.running import merge
from prefcast.errors import ForecasterError, PrefcastError, RowError, RunError
from prefcast.fitting import fit
from prefcast.forecasts.folder import fingerprint
from prefcast.forecasts.forecaster import load_forecaster
from prefcast.pairs.formats import open_pairs
from prefcast.scorers.registry import scorer_class
from prefcast.scorers.store import EvidenceStore

# How many changes of each kind `make test` makes, and `make test-long`.
FEW, MANY = 75, 5_000
SECONDS, BYTES = 5.0, 200_000_000
PAIR = Pair.of("Why is the sky blue?", "Because of Rayleigh scattering.", "No idea.")


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


ODD: list[Callable[[], Any]] = [
    lambda: None,
    lambda: True,
    lambda: -1,
    lambda: 0,
    lambda: 10**30,
    lambda: 10**400,
    lambda: 1e308,
    lambda: float("nan"),
    lambda: float("inf"),
    lambda: "",
    lambda: "x",
    lambda: "x" * 10_000,
    lambda: "\ud800",
    lambda: "\0",
    lambda: "../../../etc/passwd",
    lambda: "/dev/zero",
    lambda: "1" * 5_000,
    list,
    dict,
    lambda: deep(50),
    lambda: deep(600),
    lambda: [0] * 10_000,
    lambda: [None, {}, "x"],
    lambda: {"": None, "format": 1},
]


def changed(chance: random.Random, document: Any) -> Any:
    """The document with one or two of its values exchanged, taken away, doubled or added."""
    document = copy.deepcopy(document)
    for _ in range(chance.choice((1, 1, 2))):
        parent, key = None, None
        value = document
        while isinstance(value, dict | list) and value and (parent is None or chance.random() < 0.8):
            parent, key = value, chance.choice(list(value) if isinstance(value, dict) else range(len(value)))
            value = parent[key]
        if parent is None:
            return chance.choice(ODD)()
        what = chance.randrange(5)
        if what == 0:
            del parent[key]
        elif what == 1 and isinstance(parent, dict):
            parent[f"{key}x"] = parent.pop(key)
        elif what == 2 and isinstance(parent, list):
            parent.append(value)
        else:
            parent[key] = chance.choice(ODD)()
    return document


def bent(chance: random.Random, data: bytes) -> bytes:
    """Bytes with a few of them changed."""
    found = bytearray(data)
    for _ in range(chance.randrange(1, 5)):
        at = chance.randrange(len(found))
        found[at] = chance.choice((0, 1, 127, 128, 255, found[at] ^ (1 << chance.randrange(8))))
    return bytes(found)


@contextmanager
def bounded(what: object) -> Iterator[None]:
    """An error of ours, or none; soon; in little memory."""
    start = time.process_time()
    tracemalloc.reset_peak()
    with suppress(PrefcastError, typer.Exit):
        yield
    assert time.process_time() - start < SECONDS, what
    assert tracemalloc.get_traced_memory()[1] < BYTES, what


def rounds(count: int, kind: str) -> Iterator[random.Random]:
    tracemalloc.start()
    try:
        for number in range(count):
            yield random.Random(f"{kind} {number}")
    finally:
        tracemalloc.stop()


def read_pairs_of(path: Path) -> None:
    with open_pairs(path) as file:
        for item in file:
            assert isinstance(item, Pair | RowError)
            assert str(item).isprintable() or isinstance(item, Pair)


def lines(folder: Path, count: int) -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": [{"type": "text", "text": "b"}]}]
    rows = [
        kaggle_row(1, winner_model_a=1, winner_model_b=0, winner_tie=0),
        {"id": 1, "conversation_a": messages, "conversation_b": messages, "winner": "tie", "model_a": "m"},
        {"id": 1, "chosen": messages, "rejected": messages, "prompt": "a"},
    ]
    for chance in rounds(count, "lines"):
        row = chance.choice(rows)
        texts = [json.dumps({**row, "id": "first"}), *(json.dumps(changed(chance, {**row, "id": n})) for n in range(3))]
        if chance.random() < 0.3:
            texts[1] = bent(chance, texts[1].encode()).decode("latin-1")
        array = chance.random() < 0.3
        path = folder / ("p.json" if array else "p.jsonl")
        path.write_text(f"[{','.join(texts)}]" if array else "\n".join(texts), encoding="utf-8")
        with bounded(texts):
            read_pairs_of(path)


def columns(chance: random.Random, n: int) -> pyarrow.Array:
    """A column of any type, its values at the edges of it."""
    whole = [chance.choice((None, 0, 1, -1, 2**31 - 1, -(2**31))) for _ in range(n)]
    large = [chance.choice((None, 0, 1, 2**63 - 1, -(2**63))) for _ in range(n)]
    texts = [chance.choice((None, "", "x", '["a"]', '["a", "b"]', "[", "\0")) for _ in range(n)]
    bad = pyarrow.array([b"\xff\xfe", b'["a"]', b"", None][:n], pyarrow.binary())
    made: list[Callable[[], pyarrow.Array]] = [
        lambda: pyarrow.array(whole, pyarrow.int32()).cast(pyarrow.date32()),
        lambda: pyarrow.array(large, pyarrow.int64()).cast(
            pyarrow.timestamp(chance.choice(("ms", "us", "ns")), tz=chance.choice((None, "UTC")))
        ),
        lambda: pyarrow.array(large, pyarrow.int64()),
        lambda: pyarrow.array(texts),
        lambda: pyarrow.array(texts).dictionary_encode(),
        lambda: bad if n <= 4 else pyarrow.nulls(n),
        lambda: pyarrow.nulls(n),
        lambda: pyarrow.array([[text, None] if text else None for text in texts]),
        lambda: pyarrow.array([{"role": "user", "content": text} for text in texts]),
        lambda: pyarrow.array([[{"role": "user", "content": text}, {"role": "assistant", "content": text}] for text in texts]),
        lambda: pyarrow.array([[("a", 1)] if text else None for text in texts], pyarrow.map_(pyarrow.string(), pyarrow.int8())),
        lambda: pyarrow.array([float("nan")] * n),
        lambda: pyarrow.array([[1.5, 2.5]] * n, pyarrow.list_(pyarrow.float64(), 2)),
        lambda: pyarrow.array([text == "x" for text in texts]),
    ]  # fmt: skip
    return chance.choice(made)()


def parquet(folder: Path, count: int) -> None:
    names = ["id", "prompt", "response_a", "response_b", "winner", "model_a", "winner_model_a", "conversation_a"]
    path = folder / "p.parquet"
    for chance in rounds(count, "parquet"):
        good = pyarrow.array(['["a"]', '["b"]', '["c"]', '["d"]'])
        found = dict.fromkeys(("prompt", "response_a", "response_b"), good)
        for name in chance.sample(names, chance.randrange(1, 5)):
            found[name] = columns(chance, 4)
        pyarrow.parquet.write_table(
            pyarrow.table(found),
            path,
            compression=chance.choice(("none", "zstd", "snappy")),
            use_dictionary=chance.random() < 0.5,
            data_page_version=chance.choice(("1.0", "2.0")),
            row_group_size=chance.choice((1, 4)),
        )
        if chance.random() < 0.6:
            path.write_bytes(bent(chance, path.read_bytes()))
        with bounded(found):
            read_pairs_of(path)


def shards(folder: Path, count: int) -> None:
    whole = [sorted(folder.glob(f"*out{ending}.shard-*"))[0] for ending in (".csv", ".parquet")]
    texts = [path.read_text(encoding="utf-8").splitlines()[:-1] for path in whole]
    for chance in rounds(count, "shards"):
        said = [json.loads(line) for line in chance.choice(texts)]
        at = chance.randrange(len(said))
        said[at] = changed(chance, said[at])
        if chance.random() < 0.2:
            del said[chance.randrange(len(said))]
        data = "".join(f"{json.dumps(line)}\n" for line in said).encode()
        (folder / "bent").write_bytes(data + hashlib.sha256(data).hexdigest().encode() + b"\n")
        output = folder / f"merged{chance.choice(('.csv', '.jsonl', '.parquet'))}"
        with bounded(said):
            merge([folder / "bent"], output)
        output.unlink(missing_ok=True)


def stores(folder: Path, count: int) -> None:
    key = bytes(16)
    with EvidenceStore(folder / "good.sqlite") as store:
        store.put((bytes([n]) * 16, b"value" * n) for n in range(200))
    good = (folder / "good.sqlite").read_bytes()
    path = folder / "bent.sqlite"
    odd = (None, -1, 2**63 - 1, 1e300, "text", b"", b"x" * 100_000, "\ud800".encode("utf-8", "surrogatepass"))
    for chance in rounds(count, "stores"):
        for left in folder.glob("bent.sqlite*"):
            left.unlink()
        path.write_bytes(good if chance.random() < 0.5 else bent(chance, good))
        with suppress(sqlite3.Error), sqlite3.connect(path) as db:
            for _ in range(chance.randrange(3)):
                value = chance.choice(odd)
                change = chance.choice(
                    [
                        "UPDATE evidence SET value = ? WHERE abs(random() % 4) = 0",
                        "UPDATE evidence SET stamp = ? WHERE abs(random() % 4) = 0",
                        "UPDATE OR IGNORE evidence SET key = ? WHERE abs(random() % 40) = 0",
                        "INSERT OR REPLACE INTO facts VALUES ('limit', ?)",
                        "INSERT OR REPLACE INTO facts VALUES ('room', ?)",
                        "INSERT OR REPLACE INTO attempts VALUES (x'00', ?, ?1)",
                        "CREATE TRIGGER t AFTER INSERT ON evidence BEGIN DELETE FROM facts; END -- ?",
                        "CREATE VIEW v AS SELECT ? -- ",
                        "DROP TABLE facts -- ?",
                    ]
                )
                with suppress(sqlite3.Error, UnicodeDecodeError):
                    db.execute(change, (value,) if "--" not in change else ())
        db.close()
        for strict in (False, True):
            with bounded(chance), EvidenceStore(path, strict=strict) as store:
                store.get([bytes([n]) * 16 for n in range(200)])
                store.put([(key, b"new"), (b"k" * 16, b"x" * 1000)])
                store.begin(key)
                store.end(key)
                with suppress(PrefcastError):
                    store.held()
                with suppress(PrefcastError):
                    store.bound(chance.choice((1000, 10_000_000)))


def forecasters(folder: Path, count: int) -> None:
    made = sorted(path for path in folder.iterdir() if path.name != "room" and (path / "forecaster.json").exists())
    for chance in rounds(count, "forecasters"):
        room = folder / "room"
        shutil.rmtree(room, ignore_errors=True)
        shutil.copytree(chance.choice(made), room)
        path = chance.choice(sorted(room.rglob("*.json")))
        document = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(changed(chance, document)), encoding="utf-8")
        # A stranger computes the fingerprints anew.
        with suppress(PrefcastError, ValueError, TypeError, KeyError, AttributeError, OSError):
            card = json.loads((room / "forecaster.json").read_text(encoding="utf-8"))
            card["scorer_sha256"] = fingerprint(room, scorer_class(card["model"]))
            (room / "forecaster.json").write_text(json.dumps(card), encoding="utf-8")
        with bounded(path):
            found = load_forecaster(room)
            found.forecast([PAIR]).probabilities.tolist()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whole shards and forecasters."""
    folder = tmp_path_factory.mktemp("made")
    load_forecaster("surface").save(folder / "surface")
    fit(EXAMPLES, model="length").save(folder / "length")
    fit(EXAMPLES, model=["length", "surface"]).save(folder / "blend")
    scores = folder / "scores.csv"
    scores.write_text("id,score_a,score_b\n" + "".join(f"ex-{n:02},{n % 7},{n % 5}\n" for n in range(1, 43)))
    fit(EXAMPLES, scores=scores).save(folder / "given")
    return folder


@pytest.fixture
def sharded(prefcast_here: Run, made: Path) -> None:
    for ending in (".csv", ".parquet"):
        if not (made / f"out{ending}.shard-1-of-1").exists():
            to = ("-o", made / f"out{ending}", "--shard", "1/1", "--no-store")
            assert prefcast_here("predict", EXAMPLES, "--model", "surface", *to).returncode == 0


@pytest.fixture
def quiet() -> Iterator[None]:
    """No line for each of thousands of stores that cannot be used."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


KINDS = {"lines": lines, "parquet": parquet, "shards": shards, "stores": stores, "forecasters": forecasters}


@pytest.mark.usefixtures("sharded")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=pytest.mark.long)])
def test_files_that_were_changed(made: Path, kind: str, count: int) -> None:
    KINDS[kind](made, count)


@pytest.mark.parametrize("kind", ["pipe", "endless", "large", "folder", "loop"])
@pytest.mark.parametrize("name", ["forecaster.json", "surface.json", "uncertainty.json"])
def test_a_forecaster_of_special_files(made: Path, tmp_path: Path, kind: str, name: str) -> None:
    """A file of a folder that would never end, or fill all memory."""
    shutil.copytree(made / "surface", tmp_path / "room")
    path = tmp_path / "room" / name
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "endless":
        path.symlink_to("/dev/zero")
    elif kind == "large":
        with path.open("wb") as file:
            file.truncate(1 << 40)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(path)
    tracemalloc.start()
    try:
        if kind == "loop" and name == "uncertainty.json":
            load_forecaster(tmp_path / "room")  # as if it were not there
        else:
            with pytest.raises(ForecasterError):
                load_forecaster(tmp_path / "room")
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (("header", "shard"), "1 of 999999999999999999"),
        (("header", "verb"), "score"),
        (("header", "texts"), None),
        (("pieces",), -1),
        (("pieces",), 10**18),
        (("rows", 0, "id"), {}),
        (("rows", 0, "winner_model_a"), "x"),
        (("rows", 0), 7),
    ],
)
@pytest.mark.usefixtures("sharded")
def test_a_shard_of_a_stranger(made: Path, tmp_path: Path, at: tuple[Any, ...], value: Any) -> None:
    """Its checksum is right, and it says what no shard of ours does: one line, and no output."""
    said = [json.loads(line) for line in (made / "out.csv.shard-1-of-1").read_text("utf-8").splitlines()[:-1]]
    document = next(each for each in said if at[0] in each)
    for key in at[:-1]:
        document = document[key]
    if value is None:
        del document[at[-1]]
    else:
        document[at[-1]] = value
    data = "".join(f"{json.dumps(line)}\n" for line in said).encode()
    (tmp_path / "bent").write_bytes(data + hashlib.sha256(data).hexdigest().encode() + b"\n")
    with pytest.raises(RunError):
        merge([tmp_path / "bent"], tmp_path / "out.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["bent"]

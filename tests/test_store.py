"""The evidence store: nothing is scored twice, no score is another's, and whatever happens to the file harms nobody."""

from __future__ import annotations

import logging
import os
import random
import resource
import sqlite3
import stat
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoints import save_decoder
from conftest import EXAMPLES, PREFCAST, Run, labelled, write_csv
from prefcast import Forecaster, Pair, evaluate, load_forecaster, load_scorer, predict, read_pairs
from prefcast.errors import UsageError
from prefcast.outcomes.models import Davidson
from prefcast.pairs.budget import parse_budget
from prefcast.runs.ready import Running, ready_scorer
from prefcast.scorers import base, store
from prefcast.scorers.base import Cost, Evidence, Meter, Problem, Promise, Scorer
from prefcast.scorers.blend import BlendScorer, Member
from prefcast.scorers.kept import KeptScorer, kept, worth_keeping
from prefcast.scorers.store import EvidenceStore, default_path
from prefcast.training.vectors import PART, read_vectors

PAIRS = [pair for pair in read_pairs(EXAMPLES) if isinstance(pair, Pair)]
QUOTED = "an unmistakable question 4711"


class Counting(Scorer):
    """Counts what it computes. Not a function of lengths alone: margin, tie and two numbers of each pair."""

    name: ClassVar[str] = "counting"
    raw_names = ("score_a", "score_b", "margin:words", "words")
    pointwise = True
    batch_pairs = 3

    def __init__(self, said: str = "", promise: Promise = base.EXACT) -> None:
        self.said, self.promise = said, promise
        self.computed: list[Pair] = []
        self.conversations: list[Any] = []
        self.problems: dict[str, str] = {}
        self.break_at: str | None = None

    def identity(self) -> str:
        return f"counting {self.said}"

    def compute(self, pairs: Sequence[Pair]) -> Evidence:
        self.computed += pairs
        if any(pair.response_a[0] == self.break_at for pair in pairs):
            raise ValueError(f"does not like {self.break_at}")
        a, b = (
            np.array([random.Random(repr(side)).uniform(-2, 2) for side in sides])
            for sides in ([pair.response_a for pair in pairs], [pair.response_b for pair in pairs])
        )
        problems = {
            row: self.problems[pair.response_a[0]]
            for row, pair in enumerate(pairs)
            if pair.response_a[0] in self.problems
        }
        margin, tie = a - b, np.abs(a * b)
        for row in problems:
            for column in (margin, tie, a, b):
                column[row] = np.nan
        return Evidence(
            margin, tie, problems, {"score_a": a, "score_b": b, "margin:words": (a - b) / 3, "words": a + b}
        )

    def score(self, conversations: Sequence[Any]) -> Any:
        self.conversations += conversations
        return np.array([random.Random(repr(each)).random() for each in conversations])


def some(count: int, begin: str = "") -> list[Pair]:
    return [Pair.of("Why?", f"{begin}a {n}", f"{begin}b {n * n}") for n in range(count)]


def same(one: Evidence, other: Evidence, rounding: float = 0.0) -> None:
    for name in ("margin", "tie"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=0, atol=rounding)
    assert one.raw.keys() == other.raw.keys()
    for name in one.raw:
        np.testing.assert_allclose(one.raw[name], other.raw[name], rtol=0, atol=rounding)
    assert dict(one.problems) == dict(other.problems)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[EvidenceStore]:
    with EvidenceStore(tmp_path / "e.sqlite") as made:
        yield made


# What is found again.


def test_what_was_computed_is_found_again(opened: EvidenceStore) -> None:
    plain, scorer = Counting().evidence(some(10)), Counting()
    same(kept(scorer, opened).evidence(some(10)), plain)
    assert len(scorer.computed) == 10
    meter = Meter()
    same(kept(scorer, opened).evidence(some(10), meter), plain)
    assert (len(scorer.computed), meter.spent.kept, meter.spent.computed) == (10, 10, 0)
    # Some are there and some are not; their order is another.
    mixed = [*some(14)[::-1], Pair.of(["a", "b"], ["c", ""], ["", "\ud800"])]
    same(kept(scorer, opened).evidence(mixed, meter := Meter()), Counting().evidence(mixed))
    assert (len(scorer.computed), meter.spent.kept, meter.spent.computed) == (15, 10, 5)


def test_a_swapped_pair_is_found_where_the_scorer_is_exact(opened: EvidenceStore) -> None:
    exact, other = Counting(), Counting("not exact", Promise(swap=1e-6))
    turned = [pair.swapped() for pair in some(8)]
    for scorer in (exact, other):
        same(kept(scorer, opened).evidence(some(8)), Counting().evidence(some(8)))
        same(kept(scorer, opened).evidence(turned), Counting().evidence(turned))
    assert (len(exact.computed), len(other.computed)) == (8, 16)


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=20), st.booleans())
def test_equal_pairs_of_one_call_are_computed_once(chosen: list[tuple[int, bool]], before: bool) -> None:
    pairs = [some(6)[n].swapped() if turned else some(6)[n] for n, turned in chosen]
    scorer = Counting()
    with EvidenceStore(Path(os.environ["PREFCAST_CACHE"]) / f"{uuid4()}.sqlite") as opened:
        if before:
            kept(scorer, opened).evidence(some(3))
        meter = Meter()
        same(kept(scorer, opened).evidence(pairs, meter), Counting().evidence(pairs))
        assert len(scorer.computed) == len({n for n, _ in chosen} | set(range(3) if before else ()))
        assert meter.pairs == len(pairs)


def test_with_fresh_everything_is_computed_and_replaced(opened: EvidenceStore) -> None:
    scorer = Counting()
    kept(scorer, opened).evidence(some(4))
    key = kept(scorer, opened)._key(some(1)[0])[0]  # type: ignore[attr-defined]
    opened.put([(key, b"another value")])
    same(kept(scorer, opened, fresh=True).evidence(some(4)), Counting().evidence(some(4)))
    assert len(scorer.computed) == 8
    same(kept(scorer, opened).evidence(some(4)), Counting().evidence(some(4)))
    assert len(scorer.computed) == 8


def test_conversations_are_kept_and_equal_ones_are_scored_once(opened: EvidenceStore) -> None:
    chats = [[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": f"Hello {n}!"}] for n in (0, 1, 0, 0)]
    scorer = Counting()
    first = kept(scorer, opened).score(chats)
    assert len(scorer.conversations) == 2
    assert first[0] == first[2] == first[3] != first[1]
    assert kept(scorer, opened).score(chats[::-1]).tolist() == first[::-1].tolist()
    assert len(scorer.conversations) == 2
    kept(scorer, opened, fresh=True).score(chats)
    assert len(scorer.conversations) == 4


def test_a_score_that_is_no_number_is_not_kept(opened: EvidenceStore, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Counting):
        def score(self, conversations: Sequence[Any]) -> Any:
            super().score(conversations)
            return np.full(len(conversations), np.nan)

        def compute(self, pairs: Sequence[Pair]) -> Evidence:
            found = super().compute(pairs)
            return Evidence(found.margin * np.inf, found.tie, {}, found.raw)

    scorer = Broken()
    for _ in range(2):
        assert np.isnan(kept(scorer, opened).score([[{"role": "user", "content": "Hi"}]])).all()
        assert not np.isfinite(kept(scorer, opened).evidence(some(2)).margin).any()
    assert (len(scorer.conversations), len(scorer.computed)) == (2, 4)
    assert opened.held().entries == 0


def test_what_another_scorer_said_is_not_found(opened: EvidenceStore) -> None:
    scorers = [Counting(), Counting("other")]
    for scorer in scorers:
        kept(scorer, opened).evidence(some(3))
        assert len(scorer.computed) == 3


def test_the_key_is_of_what_was_read_of_a_pair(opened: EvidenceStore) -> None:
    """A text that the budget cuts to the same is the same; a budget that cuts otherwise is another pair."""
    pair, longer = (Pair.of("Why?", "word " * 100 + end, "So.") for end in ("", "and more"))
    scorer = Counting()
    wrapped = Forecaster(kept(scorer, opened), Davidson(1, 0, 0), budget=parse_budget("keep-last:60"))
    wrapped.forecast([pair])
    wrapped.forecast([Pair.of("Why?", "word " * 100, "So.", id="x")])
    assert len(scorer.computed) == 1
    wrapped.forecast([longer])
    assert len(scorer.computed) == 2
    Forecaster(kept(scorer, opened), Davidson(1, 0, 0), budget=parse_budget("keep-last:70")).forecast([pair])
    assert len(scorer.computed) == 3


def test_texts_that_join_to_the_same_are_told_apart(opened: EvidenceStore) -> None:
    pairs = [
        Pair.of("a", "b", "c"),
        Pair.of("a", "bc", ""),
        Pair.of("ab", "", "c"),
        Pair.of(["a", "b"], ["c", ""], ["", ""]),
        Pair.of("", "a", "bc"),
    ]
    scorer = Counting()
    kept(scorer, opened).evidence(pairs)
    assert len(scorer.computed) == len(pairs)


def test_identity_says_all_that_numbers_depend_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    surface = load_forecaster("surface").scorer
    folder = save_decoder(tmp_path / "m")
    said = [surface.identity()]
    said += [load_scorer(folder, devices="cpu", **more).identity() for more in ({}, {"dtype": "bfloat16"})]
    # Evidence is kept for a pair as it was read, so what cuts the texts makes no difference; nor does the batch.
    for same in ({"max_tokens": 80}, {"batch_tokens": 100}):
        assert load_scorer(folder, devices="cpu", **same).identity() == said[1]
    for module in [
        module for name, module in sys.modules.items() if name.startswith("prefcast.") and hasattr(module, "version")
    ]:
        if callable(getattr(module, "version", None)):
            monkeypatch.setattr(module, "version", lambda name: "0.0.0")
    said.append(load_forecaster("surface").scorer.identity())
    assert len(set(said)) == 4


def test_a_reward_model_is_found_again(tmp_path: Path) -> None:
    folder = save_decoder(tmp_path / "m")

    def scored(meter: Meter, keep: bool = True) -> Evidence:
        with ready_scorer(load_scorer(folder, devices="cpu"), Running(keep=keep)) as (scorer, _):
            return scorer.evidence([*PAIRS[:6], PAIRS[0].swapped()], meter)

    plain = scored(Meter(), keep=False)
    computed = scored(first := Meter())
    # Other batches: on some processors a score then differs in its last bits.
    same(computed, plain, 1e-5)
    same(scored(second := Meter()), computed)
    assert (first.spent.kept, second.spent.kept, second.spent.computed) == (0, 7, 0)


def test_members_keep_their_own_evidence(opened: EvidenceStore) -> None:
    members = [Counting("one"), Counting("two")]

    def blend(*scorers: Scorer) -> Evidence:
        made = BlendScorer(
            [
                Member(scorer, parse_budget("whole"), weight, weight)
                for scorer, weight in zip(scorers, (0.5, 0.25), strict=True)
            ]
        )
        return kept(made, opened).evidence(some(5))

    plain = blend(*(Counting(each.said) for each in members))
    assert plain.margin.shape == (5,)
    same(blend(*members), plain)
    assert [len(each.computed) for each in members] == [0, 0]
    third = Counting("three")
    blend(members[0], third)
    assert (len(members[0].computed), len(third.computed)) == (0, 5)


def test_evaluate_after_predict_computes_nothing(tmp_path: Path) -> None:
    rows = [labelled(n % 3, id=n, prompt=("Why?",), a=(f"a {n}",), b=(f"b {n}",)) for n in range(600)]
    path, scorer = write_csv(tmp_path / "f.csv", rows), Counting()
    forecaster = Forecaster(scorer, Davidson(1, 0, 0))
    forecasts = predict(path, forecaster=forecaster)
    assert len(scorer.computed) == 600
    found = evaluate(path, forecaster=forecaster)
    assert len(scorer.computed) == 600
    assert (
        found.to_dict()
        == evaluate(path, forecaster=Forecaster(Counting(), Davidson(1, 0, 0)), running=Running(keep=False)).to_dict()
    )
    again = predict(path, forecaster=forecaster, running=Running(fresh=True))
    assert len(scorer.computed) == 1200
    assert again.probabilities.tobytes() == forecasts.probabilities.tobytes()
    predict(path, forecaster=forecaster, running=Running(keep=False))
    predict(path, forecaster=forecaster, running=Running(store=tmp_path / "other.sqlite"))
    assert len(scorer.computed) == 2400


@pytest.mark.parametrize(("cost", "repeatable"), [(Cost.INSTANT, True), (Cost.KEPT, False)])
def test_what_is_not_worth_it_opens_no_store(kept_scores: Path, cost: Cost, repeatable: bool) -> None:
    scorer = Counting(promise=Promise(repeatable=repeatable))
    scorer.cost = cost
    assert not worth_keeping(scorer)
    with ready_scorer(scorer) as (same_one, opened):
        assert (same_one, opened) == (scorer, None)
    assert not kept_scores.exists()
    assert not worth_keeping(load_forecaster("length").scorer)
    assert worth_keeping(load_forecaster("surface").scorer)


# Problems.


def test_problems_of_workers_are_kept_and_no_others(opened: EvidenceStore, tmp_path: Path) -> None:
    scorer = Counting()
    scorer.break_at = QUOTED
    scorer.problems = {
        "slow": Problem("took longer than 2 s to score", "worker", 2.0),
        "crash": Problem("ended", "worker"),
        "pair": "bad",
    }
    pairs = [Pair.of("Why?", a, "b") for a in (QUOTED, "slow", "crash", "pair", "fine")]
    first = kept(scorer, opened).evidence(pairs)
    assert QUOTED in first.problems[0]
    scorer.computed.clear()
    same(kept(scorer, opened).evidence(pairs), first)
    # Those without a limit of their time and with a longer one have it scored again.
    assert {pair.response_a[0] for pair in scorer.computed} == {QUOTED, "pair", "slow"}
    for limit, asked in ((1.0, False), (2.0, False), (2.5, True)):
        scorer.computed.clear()
        scorer.time_limit = limit
        found = kept(scorer, opened).evidence(pairs[1:2])
        assert (found.problems[0], bool(scorer.computed)) == ("took longer than 2 s to score", asked)
    assert np.isnan(found.margin).all()
    data = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"unmistakable" not in data


# The file.


def test_only_hashes_and_numbers_are_in_the_file(kept_scores: Path, tmp_path: Path, prefcast_here: Run) -> None:
    rows = [
        labelled(n % 3, id=f"{QUOTED} {n}", prompt=(QUOTED,), a=(f"{QUOTED} a {n}",), b=(f"b {QUOTED}",))
        | {"model_a": QUOTED}
        for n in range(300)
    ]
    table = write_csv(tmp_path / "unmistakable.csv", rows)
    assert prefcast_here("predict", table, "--model", "surface", "-o", "unmistakable.jsonl").returncode == 0
    data = b"".join(path.read_bytes() for path in kept_scores.iterdir())
    assert len(data) > 300 * 16
    assert b"unmistakable" not in data
    assert b"pytest" not in data
    assert (kept_scores.stat().st_mode & 0o777, default_path().stat().st_mode & 0o777) == (0o700, 0o600)


def filled(path: Path, count: int = 300) -> dict[bytes, bytes]:
    values = {random.Random(n).randbytes(16): random.Random(n).randbytes(40) for n in range(count)}
    with EvidenceStore(path) as made:
        made.put(values.items())
        assert made.begin(b"r" * 16) is False
    return values


def used(path: Path, values: dict[bytes, bytes]) -> None:
    """Everything that can be done with a store, whatever its file is; nothing is found that was not put."""
    with EvidenceStore(path) as opened:
        asked = [*values, b"x" * 16]
        assert opened.get(asked).items() <= values.items()
        opened.begin(b"r" * 16)
        opened.scored(b"r" * 16)
        opened.put([(bytes([n]) * 16, bytes(40)) for n in range(0, 256, 5)])
        opened.get([bytes([n]) * 16 for n in range(0, 256, 5)])
        opened.end(b"r" * 16)
    for ask in (lambda opened: opened.held(), lambda opened: opened.bound(200_000), lambda opened: opened.empty()):
        try:
            with EvidenceStore(path, strict=True) as opened:
                ask(opened)
        except UsageError as error:
            assert "\n" not in str(error)  # noqa: PT017


def damages(data: bytes, count: int) -> Iterator[tuple[str, bytes]]:
    chance = random.Random(4)
    for _ in range(count):
        at, kind = chance.randrange(len(data)), chance.choice(("flip", "flip", "byte", "cut", "zeros", "swap"))
        page = at // 4096 * 4096
        if kind == "flip":
            # Half of them where the structure of the file is.
            at = at if chance.random() < 0.5 else page + chance.randrange(120)
            yield f"{kind} {at}", data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]
        elif kind == "byte":
            yield f"{kind} {at}", data[:at] + bytes([chance.randrange(256)]) + data[at + 1 :]
        elif kind == "cut":
            yield f"{kind} {at}", data[:at]
        elif kind == "zeros":
            yield f"{kind} {page}", data[:page] + bytes(4096) + data[page + 4096 :]
        else:
            other = chance.randrange(len(data) // 4096) * 4096
            yield f"{kind} {page} {other}", data[:page] + data[other : other + 4096] + data[page + 4096 :]


@pytest.mark.parametrize("count", [400, pytest.param(5_000, marks=pytest.mark.long)])
def test_a_damaged_store_harms_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture, count: int) -> None:
    path = tmp_path / "e.sqlite"
    values = filled(path)
    data, told = path.read_bytes(), 0
    for what, damaged in damages(data, count):
        for left in tmp_path.iterdir():
            left.unlink()
        path.write_bytes(damaged)
        caplog.clear()
        with caplog.at_level(logging.WARNING, "prefcast"):
            try:
                used(path, values)
            except BaseException as error:
                raise AssertionError(what) from error
        assert len(caplog.messages) <= 1, (what, caplog.messages)
        assert "\n" not in "".join(caplog.messages)
        told += len(caplog.messages)
    assert told > count / 5


def others_database(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE mine (x)")
    db.close()


def another_format(path: Path) -> None:
    filled(path)
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 9")
    db.close()


def value_of_another_size(path: Path) -> None:
    filled(path)
    with sqlite3.connect(path) as db:
        db.execute("UPDATE evidence SET value = zeroblob(12)")
    db.close()


def planted(*statements: str) -> Callable[[Path], None]:
    """A whole store to which a stranger added something."""

    def make(path: Path) -> None:
        filled(path)
        with sqlite3.connect(path) as db:
            for statement in statements:
                db.execute(statement)
        db.close()

    return make


TRIGGER = "CREATE TRIGGER t AFTER UPDATE ON facts BEGIN DELETE FROM evidence; END"
VIEW = "CREATE VIEW v AS SELECT load_extension('/tmp/x.so') FROM facts"
REPLACED = ("DROP TABLE attempts", "CREATE VIEW attempts AS SELECT key, 0 AS scored, 1 AS process FROM evidence")


UNUSABLE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no database": (
        lambda path: path.write_bytes(b"no database at all, but long enough to be looked at" * 100),
        "file is not a database",
    ),
    "another program's": (others_database, "the file belongs to another program"),
    "a trigger": (planted(TRIGGER), "the file belongs to another program"),
    "a view": (planted(VIEW), "the file belongs to another program"),
    "an index": (planted("CREATE INDEX i ON evidence (abs(stamp))"), "the file belongs to another program"),
    "another column": (planted("ALTER TABLE facts ADD COLUMN more"), "the file belongs to another program"),
    "a view in the place of a table": (planted(*REPLACED), "the file belongs to another program"),
    "another format": (another_format, "the file has format 9, this version uses format 1; delete it"),
    "a folder": (lambda path: path.mkdir(), "is not a regular file"),
    "a pipe": (os.mkfifo, "is not a regular file"),
    "a loop": (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_a_file_that_cannot_be_used_is_told_in_one_line(tmp_path: Path, prefcast_here: Run, kind: str) -> None:
    make, said = UNUSABLE[kind]
    path = tmp_path / "own.sqlite"
    make(path)
    mode = path.lstat().st_mode
    before = path.read_bytes() if stat.S_ISREG(mode) else None
    run = ("predict", EXAMPLES, "--model", "surface")
    assert prefcast_here(*run, "-o", "whole.jsonl", "--no-store").returncode == 0
    done = prefcast_here(*run, "-o", "out.jsonl", "--store", path)
    assert (done.returncode, done.stderr) == (
        0,
        f"prefcast: {path}: {said}: evidence is neither kept nor found there (--store FILE names another file, "
        "--no-store uses none)\n",
    )
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    done = prefcast_here("store", "--store", path)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"prefcast: {path}: {said}\n")
    assert path.lstat().st_mode == mode
    assert before is None or path.read_bytes() == before


def test_a_value_of_another_size_is_damage(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    value_of_another_size(tmp_path / "e.sqlite")
    with EvidenceStore(tmp_path / "e.sqlite") as opened:
        assert opened.get(list(filled(tmp_path / "other.sqlite"))) == {}
        assert not opened.usable
    assert ["damaged" in message for message in caplog.messages] == [True]


def test_no_folder_for_it(tmp_path: Path, prefcast_here: Run) -> None:
    (tmp_path / "taken").write_text("a file")
    done = prefcast_here(
        "predict", EXAMPLES, "--model", "surface", "-o", "o.csv", PREFCAST_CACHE=str(tmp_path / "taken")
    )
    assert (done.returncode, done.stderr.count("\n")) == (0, 1)
    assert "taken/evidence.sqlite: " in done.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
@pytest.mark.parametrize("what", ["file", "folder"])
def test_one_that_cannot_be_written(tmp_path: Path, prefcast_here: Run, what: str) -> None:
    path = tmp_path / "cache" / "e.sqlite"
    path.parent.mkdir()
    if what == "file":
        filled(path)
        path.chmod(0o400)
    else:
        path.parent.chmod(0o500)
    done = prefcast_here("predict", EXAMPLES, "--model", "surface", "-o", "o.csv", "--store", path)
    assert (done.returncode, done.stderr.count("\n")) == (0, 1)
    assert f"{path}: Permission denied: evidence is neither kept" in done.stderr


def test_a_locked_store_is_told_after_some_patience(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_PATIENCE", 0.1)
    path = tmp_path / "e.sqlite"
    values = filled(path)
    holder = sqlite3.connect(path, isolation_level=None)
    try:
        holder.execute("BEGIN IMMEDIATE")
        with EvidenceStore(path) as opened:
            # Reading goes on beside a writer.
            assert opened.get(list(values)) == values
            assert caplog.messages == []
            opened.put([(b"x" * 16, b"1")])
            opened.put([(b"y" * 16, b"1")])
        assert [message.split(": ")[1:3] for message in caplog.messages] == [
            [
                "database is locked",
                "evidence is neither kept nor found there (--store FILE names another file, --no-store uses none)",
            ]
        ]
        holder.execute("ROLLBACK")
        holder.execute("PRAGMA locking_mode = EXCLUSIVE")
        holder.execute("BEGIN EXCLUSIVE")
        caplog.clear()
        with EvidenceStore(path) as opened:
            opened.get(list(values))
            opened.put([(b"x" * 16, b"1")])
        assert len(caplog.messages) <= 1
    finally:
        holder.close()


def limited(size: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_a_full_disk_costs_the_store_alone(tmp_path: Path, prefcast_here: Run) -> None:
    table = write_csv(
        tmp_path / "f.csv", [labelled(0, id=n, prompt=("Why?",), a=(f"a {n}",), b=(f"b {n}",)) for n in range(1000)]
    )
    run = ("predict", str(table), "--model", "surface", "-o")
    assert prefcast_here(*run, "whole.csv", "--no-store").returncode == 0
    size = (tmp_path / "whole.csv").stat().st_size
    for limit in (size + 100, size + 40_000):
        done = subprocess.run(
            [*PREFCAST, *run, f"{limit}.csv", "--store", f"{limit}.sqlite"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            preexec_fn=limited(limit),
        )
        assert (done.returncode, done.stderr.count("\n")) == (0, 1), done.stderr
        assert "evidence is neither kept nor found there" in done.stderr
        assert (tmp_path / f"{limit}.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    # What is left of it can be used.
    done = prefcast_here(*run, "again.csv", "--store", f"{limit}.sqlite")
    assert (done.returncode, done.stderr.count("neither kept")) == (0, 0)
    assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_a_disk_that_fills_in_between(opened: EvidenceStore, caplog: pytest.LogCaptureFixture) -> None:
    opened.put([(b"0" * 16, b"1")])
    assert opened._db is not None
    opened._db.execute("PRAGMA max_page_count = 6")
    for number in range(50):
        opened.put([(random.Random(n).randbytes(16), bytes(100)) for n in range(100 * number, 100 * number + 100)])
    assert [message.split(": ")[1] for message in caplog.messages] == ["database or disk is full"]
    with EvidenceStore(opened.path) as again:
        assert again.get([b"0" * 16]) == {b"0" * 16: b"1"}


def test_several_processes_at_once(kept_scores: Path) -> None:
    """They all make the file, and write and read the same and other keys."""
    code = textwrap.dedent(
        """
        import logging, sys
        from prefcast.scorers.store import EvidenceStore
        logging.basicConfig(level=logging.WARNING)
        opened, own = EvidenceStore(), sys.argv[1]
        for n in range(60):
            key = f"{own} {n:014}".encode()
            opened.put([(key, b"own"), (f"all {n:012}".encode(), b"all")])
            assert opened.get([key]) == {key: b"own"}
        """
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(n)], stderr=subprocess.PIPE, text=True) for n in range(4)
    ]
    for process in processes:
        _, said = process.communicate(timeout=300)
        assert (process.returncode, said) == (0, "")
    with EvidenceStore() as opened:
        assert opened.held().entries == 5 * 60


def test_several_threads_at_once(opened: EvidenceStore) -> None:
    def work(own: int) -> None:
        for n in range(50):
            opened.put([(f"{own} {n:014}".encode(), b"x")])
            opened.get([b"1 1"])

    threads = [threading.Thread(target=work, args=(own,)) for own in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert opened.held().entries == 200


# Its size, and `prefcast store`.


def keys(count: int, begin: int = 0) -> list[bytes]:
    return [random.Random(n).randbytes(16) for n in range(begin, begin + count)]


def test_the_oldest_go_first_and_no_more_than_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit, now = 400_000, [6_000_000.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    most, fewest = 0, 10**9
    for step in range(200):
        now[0] += 60
        # Each of these processes writes little: the bound holds nevertheless.
        with EvidenceStore(tmp_path / "e.sqlite", limit=limit) as opened:
            opened.put([(key, bytes(60)) for key in keys(100, 100 * step)])
            if step >= 100:
                held = opened.held()
                most, fewest = max(most, held.bytes), min(fewest, held.entries)
                if step % 10 == 0:
                    there = [len(opened.get(keys(100, 100 * each))) for each in range(step + 1)]
                    # All of the newest, none of the oldest, and one minute at most in between.
                    first = next(each for each, count in enumerate(there) if count)
                    assert there[:first] == [0] * first
                    assert there[first + 1 :] == [100] * (step - first)
    assert most <= 1.15 * limit
    # About 100 bytes an entry, in pages that are half full at the least.
    assert fewest >= 0.4 * limit / 100


def test_one_minutes_entries_go_too(tmp_path: Path) -> None:
    with EvidenceStore(tmp_path / "e.sqlite", limit=200_000) as opened:
        for step in range(100):
            opened.put([(key, bytes(60)) for key in keys(100, 100 * step)])
        held = opened.held()
    assert 500 < held.entries < 3_000
    assert held.bytes <= 1.15 * 200_000


def test_show_bound_copy_move_and_empty(tmp_path: Path, prefcast_here: Run, kept_scores: Path) -> None:
    values = filled(default_path(), 4_000)

    def run(*arguments: str | Path) -> str:
        done = prefcast_here("store", *arguments)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    shown = run()
    assert shown.splitlines()[0].strip() == str(default_path())
    assert "4,000" in shown
    assert "of at most 2.00 GB" in shown
    assert "at most 1.0 MB" in run("--limit", "1MB")
    assert "4,000" in run("--copy-to", "copy.sqlite")
    assert (tmp_path / "copy.sqlite").stat().st_mode & 0o777 == 0o600
    with EvidenceStore(tmp_path / "copy.sqlite") as copy:
        assert copy.get(list(values)) == values
        assert copy.limit == 10**6
    run("--limit", "200kB")
    with EvidenceStore() as opened:
        assert 1_000 < opened.held().entries < 4_000
        assert default_path().stat().st_size <= 250_000
    assert " 0" in run("--store", "copy.sqlite", "--move-to", "moved.sqlite")
    with EvidenceStore(tmp_path / "moved.sqlite") as moved:
        assert moved.get(list(values)) == values
    run("--store", "moved.sqlite", "--empty")
    assert (tmp_path / "moved.sqlite").stat().st_size < 30_000
    with EvidenceStore(tmp_path / "moved.sqlite") as moved:
        assert moved.held().entries == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--limit", "big"],
            "--limit: 'big' is not a size; expected for example 500MB or 2GB, at least 100kB, at most 1000TB",
        ),
        (["--limit", "9" * 400], "is not a size"),
        (["--limit", "99999999999TB"], "is not a size"),
        (["--limit", "10"], "'10' is not a size"),
        (["--copy-to", "taken"], "taken: is there already; name a new file"),
        (["--copy-to", "none/at/all"], "none/at/all: cannot be written: No such file or directory"),
        (["--store", "none.sqlite", "--copy-to", "x"], "none.sqlite: there is no evidence store yet"),
    ],
)
def test_what_store_refuses(tmp_path: Path, prefcast_here: Run, arguments: list[str], said: str) -> None:
    filled(default_path())
    (tmp_path / "taken").write_text("mine")
    done = prefcast_here("store", *arguments)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert said in done.stderr
    assert (tmp_path / "taken").read_text() == "mine"
    assert not (tmp_path / "x").exists()


def test_a_copy_that_fails_leaves_nothing(tmp_path: Path) -> None:
    filled(tmp_path / "e.sqlite", 2_000)
    done = subprocess.run(
        [*PREFCAST, "store", "--store", "e.sqlite", "--copy-to", "copy.sqlite"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        preexec_fn=limited(60_000),
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert done.stderr.startswith("prefcast: copy.sqlite: cannot be written: ")
    assert not (tmp_path / "copy.sqlite").exists()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"PREFCAST_CACHE": "/own"}, "/own/evidence.sqlite"),
        ({"PREFCAST_CACHE": "", "XDG_CACHE_HOME": "/shared"}, "/shared/prefcast/evidence.sqlite"),
        ({"PREFCAST_CACHE": "", "XDG_CACHE_HOME": "", "HOME": "/home/me"}, "/home/me/.cache/prefcast/evidence.sqlite"),
    ],
)
def test_where_the_file_lies(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: str) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert default_path() == Path(expected)


def test_the_options_of_the_command_line(tmp_path: Path, prefcast_here: Run, kept_scores: Path) -> None:
    count = len(PAIRS)
    before = f"prefcast: {count} of {count} rows were scored before and not again (--fresh scores them again)\n"

    def run(*arguments: str) -> str:
        done = prefcast_here("predict", EXAMPLES, "--model", "surface", "-o", "s.csv", *arguments)
        assert done.returncode == 0, done.stderr
        return done.stderr

    assert run("--no-store") == ""
    assert not kept_scores.exists()
    data = (tmp_path / "s.csv").read_bytes()
    assert [run(), run(), run("--fresh"), run()] == ["", before, "", before]
    assert [run("--store", "own.sqlite"), run("--store", "own.sqlite")] == ["", before]
    assert (tmp_path / "s.csv").read_bytes() == data
    # Without a store everything is computed anyway: --fresh changes nothing.
    assert run("--no-store", "--fresh") == ""
    done = prefcast_here("predict", EXAMPLES, "--model", "surface", "-o", "s.csv", "--no-store", "--store", "x")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "--store and --no-store exclude each other" in done.stderr


# Attempts, and the training's vectors.


def test_attempts(opened: EvidenceStore) -> None:
    key, living = b"a" * 16, "INSERT OR REPLACE INTO attempts VALUES (?, 0, ?)"
    assert [opened.begin(key), opened.begin(key)] == [False, True]
    opened.scored(key)
    assert [opened.begin(key), opened.begin(key)] == [False, True]
    opened.end(key)
    assert opened.begin(key) is False
    # A run that is under way has not ended, and ends by itself.
    assert opened._db is not None
    opened._db.execute(living, (key, os.getppid()))
    assert opened.begin(key) is False
    opened._db.execute(living, (key, os.getppid()))
    opened.end(key)
    assert opened._db.execute("SELECT count(*) FROM attempts").fetchone() == (1,)


def test_a_training_reads_on_where_it_was(opened: EvidenceStore) -> None:
    texts: Any = [tuple(np.array([n, side], dtype=np.int32) for side in range(3)) for n in range(2 * PART + 5)]

    class Encoder:
        width, read, most = 4, 0, 10**9

        def vectors(self, some: Any) -> Iterator[Any]:
            for each in some:
                if self.read == self.most:
                    raise KeyboardInterrupt
                self.read += 1
                yield np.array(each, dtype=np.float32).repeat(2, axis=1) / 3

    plain: Any = read_vectors(texts, Encoder(), "e", None)  # type: ignore[arg-type]
    killed, second, third = Encoder(), Encoder(), Encoder()
    killed.most = PART + 7
    with pytest.raises(KeyboardInterrupt):
        read_vectors(texts, killed, "e", opened)  # type: ignore[arg-type]
    assert read_vectors(texts, second, "e", opened).tobytes() == plain.tobytes()  # type: ignore[arg-type]
    assert second.read == PART + 5
    assert read_vectors(texts, third, "another", opened).tobytes() == plain.tobytes()  # type: ignore[arg-type]
    assert third.read == len(texts)
    fresh = Encoder()
    read_vectors(texts, fresh, "e", opened, fresh=True)  # type: ignore[arg-type]
    assert fresh.read == len(texts)


def test_the_wrapped_scorer_may_be_given_options(opened: EvidenceStore) -> None:
    scorer = kept(Counting(), opened, fresh=True)
    again = scorer.with_options(scorer.options)
    assert isinstance(again, KeptScorer)
    assert again._fresh

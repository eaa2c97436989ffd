from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

from conftest import EXAMPLES
from prefcast import Pair, open_pairs
from prefcast.base.files import atomic_file
from prefcast.errors import FileError, RowError, UsageError
from prefcast.forecasts.forecaster import load_forecaster
from prefcast.forecasts.predictions import Forecasts, open_writer
from prefcast.pairs import Turn
from prefcast.pairs.formats.labels import WINNERS
from prefcast.pairs.formats.saved import read_saved


@pytest.fixture
def forecasts() -> Forecasts:
    with open_pairs(EXAMPLES) as file:
        items = list(file)
    items[2] = Pair.of("<script>alert(1)</script>\x1b", "a", "b", id="<i>")
    items[3] = RowError("f.csv", 4, "prompt", "is <b>bad</b>", 'i,"4')
    return load_forecaster("surface").forecast(items)


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_what_is_written_is_read_back(tmp_path: Path, forecasts: Forecasts, ending: str) -> None:
    path = tmp_path / f"out{ending}"
    with open_writer(path) as writer:
        writer.write(forecasts)
    found = read_saved(path)
    assert found.ids == [str(id) for id in forecasts.ids]
    np.testing.assert_allclose(found.probabilities, forecasts.probabilities, rtol=0, atol=1e-12)
    if ending != ".csv":
        outcomes = (None if pair is None else pair.outcome for pair in forecasts.pairs)
        labels = [-1 if outcome is None else int(outcome) for outcome in outcomes]
        assert found.labels.tolist() == labels
        assert np.flatnonzero(found.failed).tolist() == [3]


def test_a_submission_is_exactly_what_kaggle_takes(tmp_path: Path, forecasts: Forecasts) -> None:
    with open_writer(tmp_path / "s.csv") as writer:
        writer.write(forecasts)
    with (tmp_path / "s.csv").open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["id", "winner_model_a", "winner_model_b", "winner_tie"]
    assert [row[0] for row in rows] == [str(id) for id in forecasts.ids]
    for row in rows:
        assert abs(sum(map(float, row[1:])) - 1) < 1e-9


@pytest.mark.parametrize("id", ["a\rb", "a\nb", 'a"b', "a,b", " a", "=1+1", "ä", "x" * 5000, "a\r\nb"])
def test_any_id_survives_a_submission(tmp_path: Path, id: str) -> None:
    with open_writer(tmp_path / "s.csv") as writer:
        writer.write(load_forecaster("length").forecast([Pair.of("p", "a", "b", id=id)]))
    with (tmp_path / "s.csv").open(newline="", encoding="utf-8") as file:
        assert [row[0] for row in csv.reader(file)] == ["id", id]
    assert read_saved(tmp_path / "s.csv").ids == [id]


def test_half_characters_from_a_program_are_written_all_the_same(tmp_path: Path) -> None:
    pair = Pair((Turn("p\ud83d", "a", "b"),), id="\ud83d")
    for name in ("f.csv", "f.jsonl", "f.parquet"):
        with open_writer(tmp_path / name, with_text=name != "f.csv") as writer:
            writer.write(load_forecaster("length").forecast([pair]))
        assert read_saved(tmp_path / name).ids == ["\ufffd"]
    assert Pair.of("p\ud83d", "a", "b").prompt == ("p\ufffd",)


def test_everything_is_in_the_other_formats(tmp_path: Path, forecasts: Forecasts) -> None:
    for name in ("p.jsonl", "p.parquet"):
        with open_writer(tmp_path / name, with_text=True) as writer:
            writer.write(forecasts)
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines == pyarrow.parquet.read_table(tmp_path / "p.parquet").to_pylist()
    pair = forecasts.pairs[0]
    assert pair is not None
    assert lines[0]["response_a"] == list(pair.response_a)
    assert (lines[0]["label"], lines[0]["model_a"], lines[0]["error"]) == (pair.outcome, pair.model_a, None)
    assert (lines[0]["margin"], lines[0]["tie"]) == (forecasts.margin[0], forecasts.tie[0])
    assert (lines[0]["characters"], lines[0]["turns"]) == (pair.characters, len(pair.turns))
    assert (lines[3]["id"], lines[3]["margin"], lines[3]["prompt"]) == ('i,"4', None, None)
    assert lines[3]["error"] == "f.csv: row 4, prompt: is <b>bad</b>"


def test_pieces_make_the_same_file_as_the_whole(tmp_path: Path) -> None:
    forecaster = load_forecaster("surface")
    with open_pairs(EXAMPLES) as file:
        items = list(file)
    for name in ("whole.jsonl", "whole.parquet", "whole.csv"):
        with open_writer(tmp_path / name) as writer:
            writer.write(forecaster.forecast(items))
        other = tmp_path / name.replace("whole", "pieces")
        with open_writer(other) as writer:
            for start in range(0, len(items), 5):
                writer.write(forecaster.forecast(items[start : start + 5]))
        if name.endswith("parquet"):
            assert pyarrow.parquet.read_table(tmp_path / name).equals(pyarrow.parquet.read_table(other))
        else:
            assert (tmp_path / name).read_bytes() == other.read_bytes()


def test_ids_keep_their_type_in_parquet(tmp_path: Path) -> None:
    forecaster = load_forecaster("length")
    for ids, name in (([1, 2], "whole"), (["1", "b"], "text"), ([1, "b"], "mixed")):
        with open_writer(tmp_path / f"{name}.parquet") as writer:
            writer.write(forecaster.forecast([Pair.of("p", "a", "b", id=id) for id in ids]))
        found = pyarrow.parquet.read_table(tmp_path / f"{name}.parquet")["id"].to_pylist()
        assert found == ([1, 2] if name == "whole" else [str(id) for id in ids])


def test_an_id_that_is_no_number_may_come_late(tmp_path: Path) -> None:
    forecaster = load_forecaster("length")
    with open_writer(tmp_path / "late.parquet") as writer:
        for ids in (range(20_000), ["b"], [2**70]):
            writer.write(forecaster.forecast([Pair.of("p", "a", "b", id=id) for id in ids]))
    table = pyarrow.parquet.read_table(tmp_path / "late.parquet")
    assert table["id"].to_pylist() == [*map(str, range(20_000)), "b", str(2**70)]
    assert table["winner_tie"].null_count == 0


def test_an_output_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    path.write_text("before")
    with pytest.raises(RuntimeError), open_writer(path):
        raise RuntimeError
    assert path.read_text() == "before"
    assert [found.name for found in tmp_path.iterdir()] == ["out.csv"]


def test_a_signal_just_as_the_file_is_made_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = os.open

    def interrupted(*given: Any, **more: Any) -> int:
        os.close(plain(*given, **more))
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "open", interrupted)
    with pytest.raises(KeyboardInterrupt), atomic_file(tmp_path / "out.csv"):
        pass
    monkeypatch.undo()
    assert not any(tmp_path.iterdir())


def test_a_new_file_has_ordinary_rights_and_an_old_one_keeps_its_own(tmp_path: Path) -> None:
    os.umask(mask := os.umask(0))
    with atomic_file(tmp_path / "new") as file:
        file.write(b"x")
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o666 & ~mask
    (tmp_path / "new").chmod(0o600)
    (tmp_path / "link").symlink_to(tmp_path / "new")
    with atomic_file(tmp_path / "link") as file:
        file.write(b"y")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "new").read_bytes() == b"y"
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o600


def test_outputs_that_cannot_be(tmp_path: Path) -> None:
    with (
        pytest.raises(UsageError, match=r"the ending tells the format of the output: \.csv"),
        open_writer(tmp_path / "out.txt"),
    ):
        pass
    with (
        pytest.raises(UsageError, match=r"a submission .* has no room for texts"),
        open_writer(tmp_path / "s.csv", with_text=True),
    ):
        pass
    with (
        pytest.raises(UsageError, match="cannot be written: No such file or directory"),
        open_writer(tmp_path / "no" / "s.csv"),
    ):
        pass
    (tmp_path / "dir.csv").mkdir()
    with pytest.raises(UsageError, match="it is not a regular file"), open_writer(tmp_path / "dir.csv"):
        pass


GOOD = "id,winner_model_a,winner_model_b,winner_tie"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "id,a,b,c\n1,1,0,0\n",
            "column 'winner_model_a' is missing; expected id, winner_model_a, winner_model_b, winner_tie",
        ),
        (f"{GOOD}\n1,0.5,0.5,x\n", "row 1: winner_tie is 'x'; expected a probability"),
        (f"{GOOD}\n1,0.5,0.5,nan\n", "row 1: winner_tie is 'nan'; expected a probability from 0 to 1"),
        (f"{GOOD}\n1,1.5,-0.5,0\n", "row 1: winner_model_a is '1.5'; expected a probability from 0 to 1"),
        (
            f"{GOOD}\n1,0.5,0.4,0\n",
            "row 1: winner_model_a,winner_model_b,winner_tie sum to 0.9; expected 1 (within 0.001)",
        ),
        (f"{GOOD}\n1,1,0,0\n1,0,1,0\n", "row 2: id '1' is the same as in row 1"),
        (f"{GOOD},label\n1,1,0,0,1.9\n", "row 1: label is '1.9'; expected 0 (A), 1 (B) or 2 (tie)"),
        (f"{GOOD}\n,1,0,0\n", "row 1: id is missing; expected a text or a number in every row"),
        (f"{GOOD},label\n1,1,0,0,5\n", "row 1: label is '5'; expected 0 (A), 1 (B) or 2 (tie)"),
        (f"{GOOD}\n1,1\n", "row 1: has 2 cells where the header has 4"),
        (f"{GOOD}\n", "has no rows; expected at least one"),
    ],
)
def test_predictions_that_are_none(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(FileError) as caught:
        read_saved(tmp_path / "p.csv")
    assert message in str(caught.value)


def test_rounded_probabilities_are_normalised(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text(f"{GOOD}\n1,0.6090,0.1139,0.2770\n")
    found = read_saved(tmp_path / "p.csv").probabilities[0]
    assert found.sum() == pytest.approx(1, abs=1e-15)
    assert found[0] == pytest.approx(0.6090 / 0.9999)


def test_labels_as_other_programs_write_them(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text(f"{GOOD},label\n1,1.0000000000000002,0,0,2.0\n2,1,0,0,\n")
    assert read_saved(tmp_path / "p.csv").labels.tolist() == [2, -1]


def test_results_show_themselves_with_their_texts_escaped(forecasts: Forecasts) -> None:
    assert len(forecasts) == 42
    assert forecasts.failed == 1
    for shown in (forecasts._repr_html_(), forecasts[3]._repr_html_()):
        assert "<b>bad" not in shown
        assert "&lt;b&gt;bad" in shown
    assert "<script" not in forecasts._repr_html_()
    assert "&lt;script&gt;" in forecasts._repr_html_()
    assert "<i>" not in forecasts._repr_html_() + forecasts[2]._repr_html_()
    assert "\x1b" not in forecasts._repr_html_()
    with pytest.raises(TypeError, match="slice the arrays instead"):
        forecasts[1:3]
    assert "42 forecasts, 1 failed" in forecasts._repr_html_()
    first = forecasts[0]
    assert first.probabilities == tuple(forecasts.probabilities[0])
    assert [each.id for each in forecasts] == forecasts.ids


def test_results_become_tables(forecasts: Forecasts) -> None:
    table, frame = forecasts.to_arrow(), forecasts.to_pandas()
    assert table.column_names == list(frame.columns)
    np.testing.assert_array_equal(frame[list(WINNERS)].to_numpy(), forecasts.probabilities)
    assert table["id"].to_pylist() == forecasts.ids

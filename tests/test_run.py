"""Whole files and tables through the library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet
import pytest

import prefcast
from conftest import EXAMPLES, kaggle_row, labelled, write_csv, write_jsonl
from prefcast import Forecaster, Pair, read_pairs
from prefcast.errors import FileError, RowError, UsageError
from prefcast.forecasts.predictions import Forecasts
from prefcast.measuring.evaluation import measured_predictions
from prefcast.pairs.budget import KeepLast
from prefcast.pairs.formats.labels import WINNERS
from prefcast.pairs.pieces import pieces
from prefcast.runs.jobs import predict_to


def test_a_path_pairs_and_tables_give_the_same_forecasts() -> None:
    by_path = prefcast.predict(EXAMPLES, model="surface")
    by_pairs = prefcast.predict(read_pairs(EXAMPLES), model="surface")
    np.testing.assert_array_equal(by_path.probabilities, by_pairs.probabilities)
    frame = pd.read_csv(EXAMPLES).set_index(np.arange(100, 142))
    table = pyarrow.Table.from_pandas(frame, preserve_index=False)
    from_frame, from_table = prefcast.predict(frame, model="surface"), prefcast.predict(table, model="surface")
    assert isinstance(from_frame, pd.DataFrame)
    assert isinstance(from_table, pyarrow.Table)
    assert from_frame.index.tolist() == list(range(100, 142))
    for name in WINNERS:
        np.testing.assert_array_equal(from_frame[name], by_path.probabilities[:, WINNERS.index(name)])
        np.testing.assert_array_equal(from_table[name].to_numpy(), from_frame[name])


def test_frames_with_lists_arrays_and_holes() -> None:
    frame = pd.DataFrame(
        {
            "id": np.array([3, 4]),
            "prompt": [["p"], np.array(["p"], dtype=object)],
            "response_a": [["a"], ["a"]],
            "response_b": [["b"], ["b"]],
            "winner": ["model_a", np.nan],
            "model_a": [np.nan, "m"],
        }
    )
    found = prefcast.predict(frame, model="surface")
    assert found["id"].tolist() == [3, 4]
    assert found["error"].isna().all()
    assert found["label"].iloc[0] == 0
    assert pd.isna(found["label"].iloc[1])
    assert pd.isna(found["model_a"].iloc[0])


def test_an_arena_export_read_with_pandas(tmp_path: Path) -> None:
    def talk(answer: str) -> list[dict[str, Any]]:
        parts = [{"type": "text", "text": "Why?"}]
        return [
            {"role": "user", "content": parts},
            {"role": "assistant", "content": [{"type": "text", "text": answer}]},
        ]

    rows = [{"id": "x", "conversation_a": talk("Because."), "conversation_b": talk("So, so."), "winner": "tie"}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "f.parquet")
    from_frame = prefcast.predict(pd.read_parquet(tmp_path / "f.parquet"), model="surface")
    assert from_frame["error"].isna().all()
    np.testing.assert_array_equal(
        from_frame[list(WINNERS)], prefcast.predict(tmp_path / "f.parquet", model="surface").probabilities
    )


def test_tables_with_odd_columns() -> None:
    frame = pd.DataFrame([[("p",), ["a"], ["b"]]], columns=[0, 1, 2])
    found = prefcast.predict(frame, columns={"prompt": "0", "response_a": "1", "response_b": "2"}, model="surface")
    assert found["error"].isna().all()
    twice = pd.DataFrame([[["p"], ["a"], ["b"], ["c"]]], columns=["prompt", "response_a", "response_b", "response_b"])
    with pytest.raises(FileError, match="column 'response_b' appears twice"):
        prefcast.predict(twice, model="surface")
    for empty in (
        frame.iloc[:0].rename(columns=dict(enumerate(["prompt", "response_a", "response_b"]))),
        twice.iloc[:0, :3],
    ):
        assert len(prefcast.predict(empty, model="surface")) == 0
        assert "winner_tie" in prefcast.predict(empty, model="surface").columns


def test_a_frame_with_own_names_and_plain_text() -> None:
    frame = pd.DataFrame({"q": ["Why?"], "left": ["Because."], "right": ["So."]})
    found = prefcast.predict(
        frame, columns={"prompt": "q", "response_a": "left", "response_b": "right"}, cells="text", model="surface"
    )
    expected = prefcast.predict([Pair.of("Why?", "Because.", "So.")], model="surface")
    np.testing.assert_array_equal(found[list(WINNERS)].to_numpy(), expected.probabilities)


def test_models_forecasters_and_budgets(tmp_path: Path) -> None:
    prefcast.load_forecaster("length").save(tmp_path / "f")
    expected = prefcast.predict(EXAMPLES, model="length").probabilities
    for forecaster in (tmp_path / "f", str(tmp_path / "f"), prefcast.load_forecaster("length")):
        np.testing.assert_array_equal(prefcast.predict(EXAMPLES, forecaster=forecaster).probabilities, expected)
    short = prefcast.predict(EXAMPLES, model="length", budget="keep-last:50")
    assert sum(truncation.truncated for truncation in short.truncations) > 30
    again = prefcast.predict(EXAMPLES, model="length", budget=KeepLast(50))
    np.testing.assert_array_equal(short.probabilities, again.probabilities)
    with pytest.raises(UsageError, match="name a model or a forecaster, not both"):
        prefcast.predict(EXAMPLES, model="length", forecaster=tmp_path / "f")


def test_rows_that_fail_are_kept_or_stop_the_run(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "f.jsonl", [kaggle_row(1), kaggle_row(2, prompt=5)])
    assert prefcast.predict(path, model="surface").failed == 1
    with pytest.raises(RowError, match="row 2, prompt: is a number"):
        prefcast.predict(path, on_error="stop", model="surface")
    with pytest.raises(UsageError, match="unknown on_error 'ignore'; there are keep, stop"):
        prefcast.predict(path, on_error="ignore", model="surface")


def test_what_is_no_pair() -> None:
    with pytest.raises(UsageError, match="expected pairs, found 5"):
        prefcast.predict([5], model="surface")
    with pytest.raises(UsageError, match="expected a path, pairs or a table, found 5"):
        prefcast.predict(5, model="surface")
    assert len(prefcast.predict([], model="surface")) == 0


def test_chunks_are_bounded_in_rows_and_characters() -> None:
    short, long = Pair.of("p", "a", "b"), Pair.of("p", "a" * 3_000_000, "b")
    assert [len(chunk) for chunk in pieces([short] * 600)] == [256, 256, 88]
    assert [len(chunk) for chunk in pieces([short, long, long, long, short])] == [3, 2]


class Collector:
    def __init__(self) -> None:
        self.parts: list[Forecasts] = []

    def write(self, forecasts: Forecasts) -> None:
        self.parts.append(forecasts)


def test_the_report_of_a_run(tmp_path: Path) -> None:
    rows = [
        kaggle_row(number, prompt=5 if number in (7, 400) else ("Why?",), a=("a" * (600 if number == 9 else 5),))
        for number in range(500)
    ]
    path = write_jsonl(tmp_path / "f.jsonl", rows)
    collector, seen = Collector(), []
    with prefcast.open_pairs(path) as file:
        report = predict_to(
            collector, file, prefcast.load_forecaster("surface").with_budget(KeepLast(100)), progress=seen.append
        )
    assert (report.rows, report.failed, report.truncated) == (500, 2, 1)
    assert report.first_error is not None
    assert report.first_error.row == 8
    assert seen == sorted(seen)
    assert {256, 500} <= set(seen)
    assert [id for part in collector.parts for id in part.ids] == list(range(500))


def test_evaluating(tmp_path: Path) -> None:
    found = prefcast.evaluate(EXAMPLES, model="surface")
    forecasts = prefcast.predict(EXAMPLES, model="surface")
    labels = [pair.outcome for pair in read_pairs(EXAMPLES)]
    expected = -np.log(forecasts.probabilities[np.arange(42), labels]).mean()
    assert found.scores.log_loss.value == pytest.approx(expected, abs=1e-12)
    assert (found.n, found.failed, found.unlabelled) == (42, 0, 0)
    assert prefcast.evaluate(read_pairs(EXAMPLES), model="surface").scores == found.scores


def test_rows_that_fail_or_have_no_label_are_left_out_and_counted(tmp_path: Path) -> None:
    good = [labelled(number % 3, id=number, a=(f"answer {number}",)) for number in range(6)]
    bad = [
        labelled(0, id=7, prompt=5),
        {**kaggle_row(8), **dict.fromkeys(("winner_model_a", "winner_model_b", "winner_tie"), "")},
    ]
    path = write_csv(tmp_path / "f.csv", [*good, *bad])
    found = prefcast.evaluate(path, model="surface")
    assert (found.n, found.failed, found.unlabelled) == (6, 1, 1)
    assert found.scores == prefcast.evaluate(write_csv(tmp_path / "g.csv", good), model="surface").scores
    with pytest.raises(UsageError, match="of 1 rows 0 failed and 1 have no label"):
        prefcast.evaluate(write_jsonl(tmp_path / "h.jsonl", [kaggle_row(winner=None)]), model="surface")
    with pytest.raises(UsageError, match="nothing to evaluate: the file has no label columns"):
        prefcast.evaluate(write_csv(tmp_path / "i.csv", [kaggle_row()]), model="surface")
    late = [kaggle_row(number) for number in range(20)] + [labelled(2, id=20)]
    assert prefcast.evaluate(write_jsonl(tmp_path / "j.jsonl", late), model="surface").n == 1


def test_evaluating_predictions_is_evaluating_the_model(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    from prefcast.forecasts.predictions import open_writer

    with open_writer(path) as writer, prefcast.open_pairs(EXAMPLES) as file:
        predict_to(writer, file, prefcast.load_forecaster("surface"))
    with prefcast.open_pairs(EXAMPLES) as file:
        by_id = measured_predictions(path, file).evaluation()
    expected = prefcast.evaluate(EXAMPLES, model="surface")
    assert by_id.scores.log_loss.value == pytest.approx(expected.scores.log_loss.value, abs=1e-12)
    own = measured_predictions(path).evaluation()
    assert own.scores.log_loss.value == pytest.approx(expected.scores.log_loss.value, abs=1e-12)


def test_predictions_that_lack_a_row(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("id,winner_model_a,winner_model_b,winner_tie\n1,1,0,0\n")
    predictions = tmp_path / "p.csv"
    path = write_csv(tmp_path / "f.csv", [labelled(0, id=1), labelled(1, id=2)])
    with (
        prefcast.open_pairs(path) as file,
        pytest.raises(FileError, match="row 2: id '2' is not among the predictions"),
    ):
        measured_predictions(predictions, file)
    with pytest.raises(UsageError, match="the file of predictions has no labels"):
        measured_predictions(predictions)


def test_prediction_is_deterministic() -> None:
    pairs = [pair for pair in read_pairs(EXAMPLES) if isinstance(pair, Pair)][:8]
    one, other = prefcast.predict(pairs), prefcast.predict(pairs)
    assert one.probabilities.tobytes() == other.probabilities.tobytes()
    assert isinstance(prefcast.load_forecaster(), Forecaster)

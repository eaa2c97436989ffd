"""Several files, folders, JSON arrays and tables of four libraries, read as one source; labels of every kind."""

from __future__ import annotations

import csv
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas
import pyarrow
import pyarrow.parquet
import pytest

import prefcast as library
from conftest import EXAMPLES, SURFACE, Run, kaggle_row, labelled, write_csv, write_jsonl
from prefcast import open_pairs, read_pairs
from prefcast.errors import FileError, RowError, UsageError
from prefcast.fitting import fit
from prefcast.forecasts.scores import score_blocks
from prefcast.measuring.ranking.reading import Asked, read_board_votes
from prefcast.pairs import Outcome, Pair
from prefcast.pairs.formats.labels import label_values_of
from prefcast.pairs.formats.saved import read_saved

VALUES = {"left": "a", "right": "b", "same": "tie"}
SIGNS = tuple(VALUES)


def numbered(first: int, n: int, **more: Any) -> list[dict[str, Any]]:
    """Rows with labels in their three columns; the texts differ."""
    return [
        labelled(id % 3, id=id, prompt=(f"Why {id}?",), a=(f"Because {'very ' * (id % 7)}{id}.",), **more)
        for id in range(first, first + n)
    ]


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


WRITERS: dict[str, Callable[[Path, list[dict[str, Any]]], Path]] = {
    "csv": write_csv,
    "jsonl": write_jsonl,
    "parquet": write_parquet,
}


@pytest.mark.parametrize("ending", WRITERS)
def test_a_folder_is_one_file(tmp_path: Path, ending: str) -> None:
    folder = tmp_path / "in"
    (folder / "b").mkdir(parents=True)
    (folder / "_old").mkdir()
    write = WRITERS[ending]
    first = write(folder / f"a-0.{ending}", numbered(0, 3))
    second = write(folder / f"a-1.{ending}", numbered(3, 4))
    third = write(folder / "b" / f"c.{ending}", numbered(7, 2))
    for skipped in ("_success.csv", ".part.csv", "_old/x.csv", "README.md"):
        (folder / skipped).write_text("not pairs")
    whole = list(read_pairs(write(tmp_path / f"whole.{ending}", numbered(0, 9))))
    assert list(read_pairs(folder)) == whole
    assert list(read_pairs([first, str(second), third])) == whole
    assert list(read_pairs([folder])) == whole
    with open_pairs(folder) as file:
        assert file.progress == (file.progress[0], sum(path.stat().st_size for path in (first, second, third)))
        assert file.description.endswith(", 3 files")
        assert len(list(file)) == 9
        assert not file.changed
        first.write_text("other")
        assert file.changed


def test_faults_in_a_folder_name_the_file_and_its_row(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", numbered(0, 3))
    other = write_jsonl(tmp_path / "b.jsonl", [*numbered(3, 1), kaggle_row(4, prompt=5), *numbered(5, 1)])
    with open_pairs(tmp_path) as file:
        found = list(file)
    (error,) = [item for item in found if isinstance(item, RowError)]
    assert str(error) == f"{other}: row 2, prompt: is a number; expected a text, or a list of texts, one a turn"
    assert (error.id, [item.row for item in found if isinstance(item, Pair)]) == (4, [1, 2, 3, 4, 6])
    write_jsonl(other, [*numbered(3, 1), *numbered(2, 1)])
    with pytest.raises(FileError) as caught:
        list(read_pairs(tmp_path))
    first = tmp_path / "a.jsonl"
    assert (
        str(caught.value)
        == f"{other}: row 2: id 2 is the same as in row 3 of {first}; every row needs an id of its own"
    )
    other.write_text(json.dumps(kaggle_row(9)) + "\n{oops\n")
    with open_pairs(tmp_path) as file:
        assert str(list(file)[-1]).startswith(f"{other}: row 2: not valid JSON")


def test_rows_of_a_folder_without_ids_are_counted_through(tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv"):
        write_csv(tmp_path / name, [kaggle_row(), kaggle_row()], ["prompt", "response_a", "response_b"])
    assert [pair.id for pair in read_pairs(tmp_path)] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("name", "rows", "says"),
    [
        ("b.csv", [kaggle_row(2)], "column 'winner' is missing here and is in "),
        ("b.csv", [kaggle_row(2, winner="tie", extra=1)], "column 'extra' is here and is missing in "),
        ("b.jsonl", [kaggle_row(2)], "is JSON Lines where "),
    ],
)
def test_files_that_are_not_one_input(tmp_path: Path, name: str, rows: list[dict[str, Any]], says: str) -> None:
    write_csv(tmp_path / "a.csv", [kaggle_row(1, winner="tie")])
    (write_csv if name.endswith("csv") else write_jsonl)(tmp_path / name, rows)
    with pytest.raises(FileError) as caught:
        list(read_pairs(tmp_path))
    assert str(caught.value).startswith(f"{tmp_path / name}: {says}")
    assert "\n" not in str(caught.value)


def test_a_folder_of_nothing(tmp_path: Path) -> None:
    (tmp_path / "_x.csv").touch()
    with pytest.raises(FileError, match=r"the folder holds no file that can be read; expected \.csv, \.tsv, "):
        open_pairs(tmp_path)


def test_verbs_take_folders(prefcast: Run, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_jsonl(tmp_path / "in" / "a.jsonl", numbered(0, 30, model_a="x", model_b="y"))
    write_jsonl(tmp_path / "in" / "b.jsonl", numbered(30, 30, model_a="x", model_b="y"))
    write_jsonl(tmp_path / "whole.jsonl", numbered(0, 60, model_a="x", model_b="y"))
    for name in ("in", "whole.jsonl"):
        done = prefcast("predict", name, "-o", f"{name}.csv", "--model", "surface", "--no-store")
        assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "in.csv").read_bytes() == (tmp_path / "whole.jsonl.csv").read_bytes()
    assert prefcast("rank", "in", "--repeats", "3").stdout.startswith("60 votes between 2 models")
    done = prefcast("predict", "in", "-o", "in/out.csv", "--model", "surface")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert sorted(path.name for path in (tmp_path / "in").iterdir()) == ["a.jsonl", "b.jsonl"]


# JSON arrays


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_a_json_array(tmp_path: Path, indent: int | None, ending: str) -> None:
    rows = [*numbered(0, 700), kaggle_row(700, a=('"}{\\ ]é🙂\n' * 9000,)), *numbered(701, 2)]
    path = tmp_path / f"p.{ending}"
    path.write_text("\ufeff \n" + json.dumps(rows, indent=indent, ensure_ascii=False), encoding="utf-8")
    assert list(read_pairs(path)) == list(read_pairs(write_jsonl(tmp_path / "q.jsonl", rows)))


def test_json_lines_may_end_in_json(tmp_path: Path) -> None:
    assert len(list(read_pairs(write_jsonl(tmp_path / "p.json", numbered(0, 3))))) == 3


def test_an_array_is_read_in_little_memory(tmp_path: Path) -> None:
    text = "word " * 100
    (tmp_path / "p.json").write_text(json.dumps([kaggle_row(number, a=(text,)) for number in range(12_000)]))
    size = (tmp_path / "p.json").stat().st_size
    with open_pairs(tmp_path / "p.json") as file:
        tracemalloc.start()
        rows = sum(1 for _ in file)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert (rows, size > 6_000_000) == (12_000, True)
    assert peak < 2_500_000


# Tables


def plain(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return rows


# How a table is made of dicts, and dicts of it.
TABLES: dict[str, tuple[Callable[[Any], Any], Callable[[Any], list[dict[str, Any]]]]] = {
    "pandas": (pandas.DataFrame, lambda table: table.to_dict("records")),
    "pyarrow": (pyarrow.Table.from_pylist, lambda table: table.to_pylist()),
    "polars": (lambda rows: pytest.importorskip("polars").DataFrame(rows), lambda table: table.to_dicts()),
    "datasets": (lambda rows: pytest.importorskip("datasets").Dataset.from_list(rows), list),  # noqa: PLW0108
    "dicts": (plain, plain),
}


@pytest.mark.parametrize("kind", TABLES)
def test_tables_are_read_alike_and_come_back_as_their_own_kind(tmp_path: Path, kind: str) -> None:
    make, take = TABLES[kind]
    rows = numbered(0, 30, model_a="x", model_b="y")
    table, path = make(rows), write_jsonl(tmp_path / "p.jsonl", rows)
    found = library.predict(table, model="surface")
    assert type(found) is type(table)
    expected = library.predict(path, model="surface").records()
    assert [(row["id"], row["winner_tie"], row["label"]) for row in take(found)] == [
        (row["id"], row["winner_tie"], row["label"]) for row in expected
    ]
    assert library.evaluate(table, model="surface").scores == library.evaluate(path, model="surface").scores
    assert fit(table, model="surface").fit.chosen == fit(path, model="surface").fit.chosen
    assert library.rank(table, repeats=3).to_dict() == library.rank(path, repeats=3).to_dict()


def test_dicts_may_come_one_at_a_time() -> None:
    found = library.predict((row for row in numbered(0, 3)), model="surface")
    assert found.ids == [0, 1, 2]


def test_a_record_that_is_none_is_a_fault_of_its_row() -> None:
    with open_pairs([*numbered(0, 1), 5, *numbered(2, 1)]) as file:
        kinds = [type(item) for item in file]
    assert kinds == [Pair, RowError, Pair]


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (5, "expected a path, pairs or a table, found 5"),
        ([5], "expected pairs, found 5"),
        ({"train": []}, r"found a mapping; pass one of its values \('train'\)"),
        (["a.csv", 5], "expected a list of paths, found 5 among them"),
    ],
)
def test_what_is_no_source(source: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        library.predict(source, model="surface")


# Labels


@pytest.mark.parametrize(
    ("value", "outcome"),
    [(0, Outcome.A), ("1", Outcome.B), (2.0, Outcome.TIE), ("2.0", Outcome.TIE), (None, None), ("", None)],
)
def test_a_label_column(tmp_path: Path, value: Any, outcome: Outcome | None) -> None:
    with open_pairs(write_jsonl(tmp_path / "p.jsonl", [kaggle_row(label=value)])) as file:
        assert file.may_have_labels
        assert [item.outcome for item in file if isinstance(item, Pair)] == [outcome]


@pytest.mark.parametrize("column", ["winner", "label"])
def test_values_of_ones_own(tmp_path: Path, column: str) -> None:
    rows = [kaggle_row(number, **{column: sign}) for number, sign in enumerate([*SIGNS, " LEFT "])]
    path = write_csv(tmp_path / "p.csv", rows)
    assert [pair.outcome for pair in read_pairs(path, label_values=VALUES)] == [*Outcome, Outcome.A]
    with open_pairs(path) as file:
        assert all(isinstance(item, RowError) for item in file)


def test_who_gives_a_number_another_meaning_has_to_give_all() -> None:
    def label(value: Any, values: dict[str, str]) -> Any:
        with open_pairs([kaggle_row(label=value)], label_values=values) as file:
            (item,) = file
        return item.problem if isinstance(item, RowError) else item.outcome

    assert label(1, {"1": "a", "2": "b"}) is Outcome.A
    assert "is 0; expected" in label(0, {"1": "a", "2": "b"})
    assert label(0, VALUES) is Outcome.A


def test_values_of_ones_own_in_every_reader(tmp_path: Path) -> None:
    rows = [{"id": number, "model_a": "x", "model_b": "y", "label": sign} for number, sign in enumerate(SIGNS)]
    assert read_board_votes(rows, Asked(label_values=VALUES)).votes.n == 3
    scores = write_csv(tmp_path / "s.csv", [{**row, "score_a": 1, "score_b": 0} for row in rows])
    (block,) = score_blocks(scores, label_values=VALUES)
    assert block.labels.tolist() == [0, 1, 2]
    with pytest.raises(FileError, match="row 1: label is 'left'; expected 0"):
        list(score_blocks(scores))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("left=a, right=b,same=tie", VALUES),
        ("1=a", {"1": "a"}),
        (None, {}),
        ("left", "is not of the form"),
        ("=a", "is not of the form"),
        ("x=a,x=b", "'x' is given twice"),
    ],
)
def test_label_values_of_the_command_line(text: str | None, found: Any) -> None:
    if isinstance(found, dict):
        assert label_values_of(text) == found
    else:
        with pytest.raises(UsageError, match=found):
            label_values_of(text)


def test_verbs_take_label_values(prefcast_here: Run, tmp_path: Path) -> None:
    rows = [
        kaggle_row(n, (f"Why {n}?",), (f"So {'very ' * (n % 7)}",), winner=SIGNS[n % 3], model_a="x", model_b="y")
        for n in range(60)
    ]
    write_jsonl(tmp_path / "p.jsonl", rows)
    values = ("--label-values", "left=a,right=b,same=tie")
    for command in (
        ("evaluate", "p.jsonl", "--model", "length"),
        ("report", "p.jsonl", "--model", "length", "-o", "r.html"),
        ("fit", "p.jsonl", "--model", "length", "-o", "fitted"),
        ("rank", "p.jsonl", "--repeats", "3"),
        ("predict", "p.jsonl", "--model", "length", "-o", "out.csv"),
    ):
        done = prefcast_here(*command, *values)
        assert done.returncode == 0, done.stderr
    done = prefcast_here("rank", "p.jsonl", "--label-values", "left=c")
    assert (done.returncode, done.stderr) == (
        2,
        "prefcast: label values: 'left' is to mean 'c'; expected a, b or tie\n",
    )


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_forecasts_with_their_texts_are_pairs(prefcast_here: Run, tmp_path: Path, ending: str) -> None:
    path = write_jsonl(tmp_path / "p.jsonl", [*numbered(0, 5), kaggle_row(5)])
    assert prefcast_here("predict", path, "-o", f"out.{ending}", "--with-text", "--model", "surface").returncode == 0
    out = tmp_path / f"out.{ending}"
    found, expected = list(read_pairs(out)), list(read_pairs(path))
    assert found == expected
    assert [pair.outcome for pair in found] == [*(Outcome(id % 3) for id in range(5)), None]
    assert read_saved(out).labels.tolist() == [0, 1, 2, 0, 1, -1]


def test_several_files_are_read_as_one_on_the_command_line(prefcast_here: Run, tmp_path: Path) -> None:
    with EXAMPLES.open(newline="") as file:
        header, *rows = list(csv.reader(file))
    for name, some in (("one.csv", rows[:8]), ("two.csv", rows[8:])):
        with (tmp_path / name).open("w", newline="") as file:
            csv.writer(file).writerows([header, *some])
    two = tmp_path / "one.csv", tmp_path / "two.csv"
    for verb, *more in (
        ("evaluate", *SURFACE),
        ("check",),
        ("explain", "--id", "ex-10", *SURFACE),
        ("rank",),
        ("predict", *SURFACE),
    ):
        one, several = prefcast_here(verb, EXAMPLES, *more), prefcast_here(verb, *two, *more)
        assert several.returncode == one.returncode == 0, several.stderr
        # `check` measures a speed.
        assert [line for line in several.stdout.splitlines()[1:] if not line.startswith(("time", "rows"))] == [
            line for line in one.stdout.splitlines()[1:] if not line.startswith(("time", "rows"))
        ]
    prefcast_here("score", *two, *SURFACE, "-o", tmp_path / "several.csv")
    prefcast_here("score", EXAMPLES, *SURFACE, "-o", tmp_path / "one.out.csv")
    assert (tmp_path / "several.csv").read_bytes() == (tmp_path / "one.out.csv").read_bytes()
    for arguments, said in (
        (("predict", *two, "-o", two[1]), "two.csv: is the input"),
        (("evaluate", two[0], "-"), "standard input (-) cannot be read together with other files"),
        (
            ("predict", *two, "--rehearse", EXAMPLES, "-o", tmp_path / "o.csv"),
            "one file, the competition's stub; 2 files",
        ),
        (("predict", two[0], two[0]), "id"),
    ):
        refused = prefcast_here(*arguments)
        assert refused.returncode == 2
        assert said in refused.stderr

"""`evaluate` for real tables: own columns, votes, weights, several forecasts, rows of the fit, and its outputs."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest

import prefcast
from conftest import EXAMPLES, Run, labelled, write_csv, write_jsonl
from prefcast.errors import ForecasterError
from prefcast.forecasts.fitted_rows import FITTED_ROWS, FittedRows, Hashes, InSample, Overlap, hashes_of, row_key
from prefcast.measuring.metrics import row_log_loss
from prefcast.pairs import Pair

QUICK = ("--model", "length", "--no-store", "--repeats", "100")


def rows(n: int = 36, **more: Any) -> list[dict[str, Any]]:
    """Labelled pairs with columns of their own."""
    return [
        labelled(
            row % 3,
            id=f"r{row}",
            prompt=(f"question {row // 2}",),
            a=("a" * (1 + 7 * row % 11),),
            b=("b" * (1 + 5 * row % 13),),
            lang=("en", "de", "=cmd()")[row % 3],
            **more,
        )
        for row in range(n)
    ]


def figures(done: Any) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_own_columns_come_through_predict(prefcast_here: Run, tmp_path: Path, ending: str) -> None:
    write_jsonl(tmp_path / "f.jsonl", [*rows(), {"id": "bad", "lang": "fr"}])
    out = f"p.{ending}"
    done = prefcast_here("predict", "f.jsonl", *QUICK[:3], "--keep", "lang", "-o", out)
    assert done.returncode == 3, done.stderr
    assert prefcast_here("predict", "f.jsonl", *QUICK[:3], "-o", f"bare.{ending}").returncode == 3
    read = pandas.read_parquet if ending == "parquet" else pandas.read_csv if ending == "csv" else pandas.read_json
    more = {"lines": True} if ending == "jsonl" else {}
    kept, bare = (read(tmp_path / name, **more) for name in (out, f"bare.{ending}"))
    assert [*kept] == [*bare, "lang"]
    formula = "'=cmd()" if ending == "csv" else "=cmd()"
    assert kept["lang"][:3].tolist() == ["en", "de", formula]
    assert kept["lang"].isna().tolist() == [False] * 36 + [True]
    pandas.testing.assert_frame_equal(kept.drop(columns="lang"), bare)
    if ending != "csv":
        by = figures(prefcast_here("evaluate", "--predictions", out, "--by", "lang", "--repeats", "100", "--json", "-"))
        assert [(part["kind"], part["name"], part["n"]) for part in by["slices"]] == [
            ("lang", "en", 12),
            ("lang", "de", 12),
            ("lang", "=cmd()", 12),
        ]


def test_own_columns_come_through_shards(prefcast_here: Run, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "f.jsonl", rows())
    command = ("predict", "f.jsonl", *QUICK[:3], "--keep", "lang", "-o", "p.jsonl")
    assert prefcast_here(*command).returncode == 0
    whole = (tmp_path / "p.jsonl").read_bytes()
    for shard in ("1/2", "2/2"):
        assert prefcast_here(*command, "--shard", shard).returncode == 0
    parts = [f"p.jsonl.shard-{number}-of-2" for number in (1, 2)]
    assert prefcast_here("merge", *parts, "-o", "p.jsonl").returncode == 0
    assert (tmp_path / "p.jsonl").read_bytes() == whole
    # The shards of a run without the column are of another run.
    assert prefcast_here(*command[:5], "-o", "p.jsonl", "--shard", "2/2").returncode == 0
    done = prefcast_here("merge", *parts, "-o", "p.jsonl")
    assert done.returncode == 2
    assert "kept columns" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--keep", "nope", "-o", "p.csv"), "column 'nope' is missing"),
        (("--keep", "label", "-o", "p.jsonl"), "'label'"),
        (("--keep", "lang"), "needs an output file"),
        (("--keep", "lang", "--rehearse", "f.jsonl", "-o", "p.csv"), "exclude each other"),
    ],
)
def test_columns_that_cannot_be_kept(
    prefcast_here: Run, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    write_jsonl(tmp_path / "f.jsonl", rows(4, label=0))
    done = prefcast_here("predict", "f.jsonl", *QUICK[:3], *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert not [*tmp_path.glob("p.*")]


def test_pandas_has_the_kept_columns(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "f.jsonl", rows(6))
    frame = prefcast.predict(path, model="length", keep=["lang"]).to_pandas()
    assert frame["lang"].tolist() == ["en", "de", "=cmd()"] * 2
    with pytest.raises(prefcast.PrefcastError, match="these pairs have none"):
        prefcast.predict([Pair.of("p", "a", "b")], model="length", keep=["lang"])


def test_votes_of_a_file_are_those_of_the_columns(prefcast_here: Run, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    counts = [rng.multinomial(4, [0.5, 0.3, 0.2]).tolist() for _ in range(36)]
    columns = ("votes_a", "votes_b", "votes_tie")
    bare = rows()
    write_jsonl(tmp_path / "f.jsonl", bare)
    write_csv(
        tmp_path / "v.csv",
        [{"id": row["id"], **dict(zip(columns, each, strict=True))} for row, each in zip(bare, counts, strict=True)]
        + [{"id": "elsewhere", "votes_a": 1, "votes_b": 0, "votes_tie": 0}],
    )
    with_votes = [row | dict(zip(columns, each, strict=True)) for row, each in zip(bare, counts, strict=True)]
    write_jsonl(tmp_path / "g.jsonl", [{k: v for k, v in row.items() if "winner" not in k} for row in with_votes])
    done = prefcast_here("evaluate", "f.jsonl", *QUICK, "--votes", "v.csv", "--json", "-")
    by_file = figures(done)
    assert "1 of 37 rows of the votes file" in done.stderr
    by_columns = figures(prefcast_here("evaluate", "g.jsonl", *QUICK, "--json", "-"))
    assert by_columns == by_file
    p = prefcast.predict(tmp_path / "f.jsonl", model="length").probabilities
    expected = row_log_loss(p, np.array(counts) / 4).mean()
    assert by_file["log_loss"]["value"] == pytest.approx(expected)
    assert by_file["people"]["pairs"] == 36
    assert by_file["people"]["forecast"]["value"] == pytest.approx(expected)
    text = prefcast_here("evaluate", "g.jsonl", *QUICK).stdout
    assert "36 pairs have several votes (144 in all)" in text
    assert "best possible" in text


def test_rows_with_the_same_texts_are_votes_on_one_pair(prefcast_here: Run, tmp_path: Path) -> None:
    # Every pair three times, with two labels for A and one for B.
    every = [
        row
        | labelled(vote, id=f"{row['id']}-{number}")
        | {name: row[name] for name in ("prompt", "response_a", "response_b")}
        for row in rows()
        for number, vote in enumerate((0, 0, 1))
    ]
    write_jsonl(tmp_path / "f.jsonl", every)
    people = figures(prefcast_here("evaluate", "f.jsonl", *QUICK, "--json", "-"))["people"]
    # A few of the pairs have the same texts as another one.
    assert people["votes"] == 108
    assert people["agree"]["value"] == pytest.approx(1 / 3, abs=0.02)


def test_a_bad_vote_is_the_rows_error(prefcast_here: Run, tmp_path: Path) -> None:
    every = [row | {"votes_a": 1, "votes_b": 1, "votes_tie": 0} for row in rows(8)]
    every[2]["votes_b"] = "many"
    every[5] |= {"votes_a": -1}
    every[6] |= {"votes_a": 0, "votes_b": 0}
    write_jsonl(tmp_path / "f.jsonl", every)
    done = prefcast_here("evaluate", "f.jsonl", *QUICK, "--json", "-")
    assert done.returncode == 3
    found = json.loads(done.stdout)
    assert (found["n"], found["failed"], found["unlabelled"]) == (5, 2, 1)


def test_weights_are_a_column_or_a_file(prefcast_here: Run, tmp_path: Path) -> None:
    every = [row | {"heft": 1 + number % 3} for number, row in enumerate(rows())]
    write_jsonl(tmp_path / "f.jsonl", every)
    write_csv(tmp_path / "w.csv", [{"id": row["id"], "weight": row["heft"]} for row in every])
    by_column = figures(prefcast_here("evaluate", "f.jsonl", *QUICK, "--weights", "heft", "--json", "-"))
    by_file = figures(prefcast_here("evaluate", "f.jsonl", *QUICK, "--weights", "w.csv", "--json", "-"))
    plain = figures(prefcast_here("evaluate", "f.jsonl", *QUICK, "--json", "-"))
    assert by_column["weighted"] is True
    assert plain["weighted"] is False
    assert by_column["log_loss"]["value"] == pytest.approx(by_file["log_loss"]["value"])
    assert by_column["log_loss"]["value"] != pytest.approx(plain["log_loss"]["value"], abs=1e-6)
    done = prefcast_here("evaluate", "f.jsonl", *QUICK, "--weights", "nothing")
    assert (done.returncode, done.stdout) == (2, "")
    assert "no column and no file 'nothing'" in done.stderr
    assert "weighted" in prefcast_here("evaluate", "f.jsonl", *QUICK, "--weights", "heft").stdout


def test_several_forecasts_are_compared_on_the_rows_that_all_have(prefcast_here: Run, tmp_path: Path) -> None:
    every = rows()
    write_jsonl(tmp_path / "f.jsonl", every)
    y = [row % 3 for row in range(36)]
    head = "id,winner_model_a,winner_model_b,winner_tie\n"

    def forecast(name: str, right: float, n: int) -> None:
        lines = [
            ",".join([f"r{row}", *(f"{right if outcome == y[row] else (1 - right) / 2:.6f}" for outcome in range(3))])
            for row in range(n)
        ]
        (tmp_path / name).write_text(head + "\n".join(lines) + "\n")

    forecast("good.csv", 0.8, 30)
    forecast("better.csv", 0.9, 33)
    forecast("bad.csv", 0.1, 36)
    against = [part for name in ("good.csv", "better.csv", "bad.csv") for part in ("--against", name)]
    found = figures(prefcast_here("evaluate", "f.jsonl", *QUICK, *against, "--json", "-"))
    compared = found["compared"]
    assert compared["n"] == 30
    assert found["n"] == 36
    others = {each["name"]: each for each in compared["others"]}
    assert others["good.csv"]["theirs"]["value"] == pytest.approx(-np.log(0.8), abs=1e-5)
    assert {name: each["may_be_best"] for name, each in others.items()} == {
        "good.csv": False,
        "better.csv": True,
        "bad.csv": False,
    }
    assert compared["may_be_best"] is False
    for each in others.values():
        wide, narrow = each["together"], each["log_loss"]
        assert wide["value"] == pytest.approx(narrow["value"])
        # These differences have almost the same draws, so the intervals are about as wide.
        assert wide["high"] - wide["low"] > 0.9 * (narrow["high"] - narrow["low"])
    assert found["against"]["name"] == "good.csv"
    # A forecast that is the same as another one makes no interval wider.
    (tmp_path / "same.csv").write_text((tmp_path / "good.csv").read_text())
    again = figures(prefcast_here("evaluate", "f.jsonl", *QUICK, *against, "--against", "same.csv", "--json", "-"))
    for one, other in zip(again["compared"]["others"], compared["others"], strict=False):
        assert one["together"] == pytest.approx(other["together"], abs=1e-6)
    text = prefcast_here("evaluate", "f.jsonl", *QUICK, *against).stdout
    assert "4 forecasts on the 30 rows that all of them have" in text
    forecast("none.csv", 0.5, 0)
    (tmp_path / "none.csv").write_text(head + "x,0.2,0.3,0.5\n")
    done = prefcast_here("evaluate", "f.jsonl", *QUICK, *against, "--against", "none.csv")
    assert done.returncode == 2
    assert "none of the measured ids" in done.stderr
    done = prefcast_here("evaluate", "f.jsonl", *QUICK, *against[:2], *against[:2])
    assert done.returncode == 2
    assert "twice" in done.stderr


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_the_measured_rows_as_a_file(prefcast_here: Run, tmp_path: Path, ending: str) -> None:
    write_jsonl(tmp_path / "f.jsonl", [row | {"id": f"={row['id']}"} for row in rows()])
    done = prefcast_here("evaluate", "f.jsonl", *QUICK, "--by", "lang", "--export", f"rows.{ending}", "--json", "-")
    found = figures(done)
    if ending == "csv":
        with (tmp_path / "rows.csv").open(newline="") as file:
            read = list(csv.DictReader(file))
        assert read[0]["id"] == "'=r0"
        assert read[2]["slice_lang"] == "'=cmd()"
    elif ending == "jsonl":
        read = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
        assert read[2]["slice_lang"] == "=cmd()"
    else:
        read = pandas.read_parquet(tmp_path / "rows.parquet").to_dict("records")
    assert len(read) == 36
    assert np.mean([float(row["log_loss"]) for row in read]) == pytest.approx(found["log_loss"]["value"])
    for row in read:
        assert sum(float(row[f"residual_{name}"]) for name in ("a", "b", "tie")) == pytest.approx(0)
        assert float(row["residual_a"]) == pytest.approx(float(row["a"]) - float(row["share_a"]))
    assert len({row["group"] for row in read}) == 18


def test_rows_of_the_fit_are_noticed(prefcast_here: Run, tmp_path: Path) -> None:
    every = rows(60)
    write_jsonl(tmp_path / "fit.jsonl", every[:40])
    swapped = [
        row | {"response_a": row["response_b"], "response_b": row["response_a"]} if number % 2 else row
        for number, row in enumerate(every)
    ]
    write_jsonl(tmp_path / "test.jsonl", swapped)
    assert prefcast_here("fit", "fit.jsonl", *QUICK[:3], "-o", "mine").returncode == 0
    fit = [len(np.unique(part)) for part in hashes_of(prefcast.read_pairs(tmp_path / "fit.jsonl")).T]
    before = prefcast.load_forecaster(QUICK[1]).fitted_rows
    after = prefcast.load_forecaster(tmp_path / "mine").fitted_rows
    assert before is not None
    assert after is not None
    assert before.prompts is not None
    assert after.prompts is not None
    # It knows the rows of the model it started from, too.
    assert [after.rows.number - before.rows.number, after.prompts.number - before.prompts.number] == fit
    quick = ("--forecaster", "mine", *QUICK[2:])
    found = figures(prefcast_here("evaluate", "test.jsonl", *quick, "--json", "-"))
    fitted = {row_key(pair) for pair in prefcast.read_pairs(tmp_path / "fit.jsonl")}
    expected = sum(row_key(pair) in fitted for pair in prefcast.read_pairs(tmp_path / "test.jsonl"))
    assert expected >= 40
    assert found["in_sample"] == {"found": expected, "rows": 60, "exact": True, "prompts": 0}
    text = prefcast_here("evaluate", "test.jsonl", *quick).stdout
    assert f"{expected} of these 60 rows were in the fit: these figures are in-sample" in text
    assert prefcast_here("report", "test.jsonl", *quick, "-o", "r.html").returncode == 0
    assert f"{expected} of these 60 rows were in the fit" in (tmp_path / "r.html").read_text()


def test_a_fit_says_which_rows_a_shipped_model_knows(
    prefcast_here: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = rows(60)
    write_jsonl(tmp_path / "all.jsonl", every)
    assert "in the fit" not in prefcast_here("fit", "all.jsonl", *QUICK[:3], "-o", "mine").stdout
    pairs = list(prefcast.read_pairs(tmp_path / "all.jsonl"))
    monkeypatch.setattr(FittedRows, "read", lambda folder: FittedRows.of(pairs[:21]))
    done = prefcast_here("fit", "all.jsonl", *QUICK[:3], "-o", "mine")
    assert "21 of these 60 rows were in the fit: length knows their labels, so the figures are in-sample" in done.stdout
    # Two rows have one prompt.
    assert "1 more row has a first prompt of the fit" in done.stdout
    card = json.loads((tmp_path / "mine" / "forecaster.json").read_text())["card"]
    assert card["fitted_on"]["in_sample"]["length"] == {"found": 21, "rows": 60, "exact": True, "prompts": 1}


def test_rows_with_a_first_prompt_of_the_fit_are_counted_apart(prefcast_here: Run, tmp_path: Path) -> None:
    every = rows(60)
    for number, row in enumerate(every):
        row["prompt"] = [f"Prompt {number}"]
    write_jsonl(tmp_path / "fit.jsonl", every[:30])
    for number, row in enumerate(every[10:30]):
        row["prompt"], row["response_a"] = [f"PROMPT, {number + 10}?"], [f"another answer {number}"]
    write_jsonl(tmp_path / "test.jsonl", every)
    assert prefcast_here("fit", "fit.jsonl", *QUICK[:3], "-o", "mine").returncode == 0
    quick = ("--forecaster", "mine", *QUICK[2:])
    found = figures(prefcast_here("evaluate", "test.jsonl", *quick, "--json", "-"))
    assert found["in_sample"] == {"found": 10, "rows": 60, "exact": True, "prompts": 20}
    text = prefcast_here("evaluate", "test.jsonl", *quick).stdout
    assert "20 more rows have a first prompt of the fit, with other answers" in text
    assert prefcast_here("report", "test.jsonl", *quick, "-o", "r.html").returncode == 0
    assert "20 more rows have a first prompt of the fit" in (tmp_path / "r.html").read_text()
    write_jsonl(tmp_path / "prompts.jsonl", every[10:30])
    text = prefcast_here("evaluate", "prompts.jsonl", *quick).stdout
    assert "20 of these 20 rows have a first prompt of the fit" in text


@pytest.mark.parametrize("name", ["embedded", "surface", "length"])
def test_the_shipped_forecasters_know_their_rows(name: str) -> None:
    forecaster = prefcast.load_forecaster(name)
    card, fitted = forecaster.card, forecaster.fitted_rows
    assert fitted is not None
    assert fitted.prompts is not None
    assert fitted.rows.exact
    learned = sum(each["n"] for each in card.get("trained_on", {}).values()) + sum(card["link_fitted_on"].values())
    # Some pairs were judged by several people.
    assert 0.4 * learned < fitted.rows.number <= learned
    assert 0 < fitted.prompts.number < fitted.rows.number
    assert not fitted.rows.holds(hashes_of(prefcast.read_pairs(EXAMPLES))[:, 0]).any()


def test_of_many_fitted_rows_a_sample_is_known(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    keys = rng.integers(0, 2**64, 250_000, dtype=np.uint64)
    rows = Hashes.of(keys)
    assert (rows.exact, rows.number, len(rows.keys)) == (False, len(np.unique(keys)), 100_000)
    few = Hashes.of(keys[:5])
    FittedRows(rows, few).write(tmp_path)
    read = FittedRows.read(tmp_path)
    assert read is not None
    assert read.prompts is not None
    assert (read.prompts.exact, read.prompts.keys.tolist()) == (True, few.keys.tolist())
    again = read.rows
    np.testing.assert_array_equal(again.keys, rows.keys)
    # Of two samples together, the smallest hashes are those of both sets.
    halves = Hashes.of(keys[:125_000]).joined(Hashes.of(keys[125_000:]))
    np.testing.assert_array_equal(halves.keys, rows.keys)
    assert (halves.exact, halves.number) == (False, rows.number)
    assert few.joined(Hashes.of(keys[3:8])).number == 8
    assert set(again.holds(keys[:1000]).tolist()) == {1, -1}
    assert (again.holds(keys[:1000]) == 1).mean() == pytest.approx(0.4, abs=0.06)
    others = again.holds(rng.integers(0, 2**64, 1000, dtype=np.uint64))
    assert set(others.tolist()) == {0, -1}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"prefcast rows 1\n",
        b"prefcast rows 1\n" + b"\x02" + bytes(7) + bytes(7),
        b"prefcast rows 1\n" + b"\x01" + bytes(7) + bytes(16),
        b"prefcast rows 1\n" + b"\x02" + bytes(7) + b"\x05" + bytes(7) + b"\x03" + bytes(7),
        b"prefcast rows 1\n" + b"\x09" + bytes(7) + b"\x05" + bytes(7),
        b"prefcast rows 2\n" + bytes(8),
        b"prefcast rows 2\n" + bytes(8) + b"\x01" + bytes(7),
        b"prefcast rows 2\n" + bytes(8) + b"\xff" * 16,
        b"prefcast rows 3\n" + bytes(16),
    ],
    ids=[
        "empty",
        "no number",
        "half a hash",
        "more than it says",
        "out of order",
        "fewer than it says",
        "no prompts",
        "fewer prompts than it says",
        "endless prompts",
        "another format",
    ],
)
def test_a_strangers_list_of_fitted_rows(tmp_path: Path, data: bytes) -> None:
    (tmp_path / FITTED_ROWS).write_bytes(data)
    with pytest.raises(ForecasterError, match="damaged"):
        FittedRows.read(tmp_path)


def test_the_first_format_knows_no_prompts(tmp_path: Path) -> None:
    pairs = list(prefcast.read_pairs(EXAMPLES))
    FittedRows(FittedRows.of(pairs).rows, None).write(tmp_path)
    data = (tmp_path / FITTED_ROWS).read_bytes()
    assert (data[:16], len(data)) == (b"prefcast rows 1\n", 16 + 8 + 8 * len(pairs))
    read = FittedRows.read(tmp_path)
    assert read is not None
    assert read.prompts is None
    both = read.joined(FittedRows.of(pairs[:2]))
    assert both.prompts is not None
    assert (both.rows.number, both.prompts.number) == (len(pairs), 2)
    overlap = Overlap(read)
    overlap.add(pairs[:5])
    assert overlap.found == InSample(5, 5, True, None)


def test_a_huge_list_of_fitted_rows_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / FITTED_ROWS).open("wb") as file:
        file.truncate(1 << 34)
    with pytest.raises(OSError, match=r"large|bytes|more"):
        FittedRows.read(tmp_path)


def test_markdown_html_and_data_frames(prefcast_here: Run, tmp_path: Path) -> None:
    evil = "<script>|x`[a](b)\u202e"
    write_jsonl(tmp_path / "f.jsonl", [row | {"lang": evil} for row in rows()])
    done = prefcast_here("evaluate", "f.jsonl", *QUICK, "--by", "lang", "--markdown", "-")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("**36 labelled pairs**\n\n| forecast | log loss |")
    assert "\\<script\\>\\|x\\`\\[a\\]\\(b\\)" in done.stdout
    assert "\u202e" not in done.stdout
    tables = [part.splitlines() for part in done.stdout.split("\n\n") if part.startswith("| ")]
    assert all(len({line.replace("\\|", "").count("|") for line in table}) == 1 for table in tables)
    found = prefcast.evaluate(tmp_path / "f.jsonl", model="length", by="lang")
    page = found._repr_html_()
    assert "&lt;script&gt;" in page
    assert not {"<script", "\u202e"} & {page[at : at + 7] for at in range(len(page))}
    frame = found.to_pandas()
    assert frame["forecast"].tolist()[0] == "this forecast"
    assert frame["log loss low"][0] <= frame["log loss"][0] <= frame["log loss high"][0]
    assert evil.replace("\u202e", "") in found.to_pandas("slices")["name"].tolist()[-1]
    with pytest.raises(prefcast.PrefcastError, match="there is no table 'nope'"):
        found.to_pandas("nope")
    fitted = prefcast.fit(tmp_path / "f.jsonl", model="length")
    assert "candidates" in fitted._repr_html_()
    assert "log loss" in fitted.to_pandas("candidates")
    done = prefcast_here("evaluate", "f.jsonl", *QUICK, "--json", "-", "--markdown", "-")
    assert done.returncode == 2
    assert "cannot both go to standard output" in done.stderr


def test_a_leaderboard_and_a_comparison_are_tables() -> None:
    board = prefcast.rank(EXAMPLES)
    assert board.to_pandas()["model"].tolist() == list(board.models)
    assert "rating" in board.to_markdown()
    pairs = [pair for pair in prefcast.read_pairs(EXAMPLES) if isinstance(pair, Pair)]
    compared = prefcast.compare(pairs[:8], prefcast.load_forecaster("length"))
    assert compared.to_pandas().iloc[:, 0].tolist() == ["right preferred", "left preferred", "tie", "net"]
    assert "<table>" in compared._repr_html_()

"""What `check` finds in pairs and votes: planted faults are found, clean data have none, and what strangers wrote does no harm."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import prefcast
from conftest import EXAMPLES, Run, write_csv, write_jsonl
from prefcast.errors import RowError, UsageError
from prefcast.measuring.doctor import Doctor, Finding, Request
from prefcast.measuring.doctor.ballots import VotesFile
from prefcast.measuring.doctor.findings import FoundRow, write_rows
from prefcast.measuring.doctor.leaks import Leaks
from prefcast.measuring.doctor.sides import holm
from prefcast.measuring.doctor.unlikely import Votes, odds_against, planted
from prefcast.pairs import Outcome, Pair
from prefcast.pairs.formats import open_pairs
from prefcast.pairs.pair import pair_key

WORDS = ("river", "garden", "window", "yellow", "seven", "answer", "never", "mountain", "paper", "bridge", "silver")


def text(draw: random.Random, words: int = 40) -> str:
    return " ".join(f"{draw.choice(WORDS)}{draw.randint(0, 99)}" for _ in range(words))


def rows_of(count: int, seed: int = 0, **more: Any) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    return [
        {
            "id": f"p{number}",
            "prompt": text(draw, 12),
            "response_a": text(draw),
            "response_b": text(draw),
            "winner": draw.choice(("a", "b", "tie")),
            **more,
        }
        for number in range(count)
    ]


def named(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with the names that files have for winners."""
    names = {"a": "model_a", "b": "model_b"}
    return [{**row, "winner": names.get(row["winner"], row["winner"])} if "winner" in row else row for row in rows]


def examined(
    rows: Sequence[dict[str, Any]],
    against: Sequence[Sequence[dict[str, Any]]] = (),
    rater: str | None = None,
    **more: Any,
) -> tuple[dict[str, Finding], list[FoundRow]]:
    """The findings by name, and the rows that have one."""
    votes = more.pop("votes", None)
    with open_pairs(named(rows), cells="text") as file:
        if rater:
            file.keep(rater)
        request = Request(keep_rows=True, **more)
        leaks = [Leaks(open_pairs(named(other), cells="text"), request.similarity, 1000) for other in against]
        doctor = Doctor(file, request, votes=votes, leaks=leaks, rater=rater)
        for pair in file:
            assert not isinstance(pair, RowError), pair
            doctor.see(pair)
        return {each.name: each for each in doctor.findings()}, list(doctor.rows())


def about(found: Sequence[FoundRow], finding: str) -> list[tuple[Any, Any]]:
    return [(row.id, row.other_id) for row in found if row.finding == finding]


# Duplicates


def test_clean_pairs_have_no_finding() -> None:
    found, rows = examined(rows_of(60))
    for name in ("exact duplicates", "contradictory votes", "winner of equal answers", "near-duplicates"):
        assert found[name].count == 0
        assert found[name].text.startswith("none")
    assert rows == []


def test_rows_with_the_texts_of_an_earlier_row_are_found_also_exchanged() -> None:
    rows = rows_of(20)
    turned = {**rows[4], "id": "x", "response_a": rows[4]["response_b"], "response_b": rows[4]["response_a"]}
    turned["winner"] = {"a": "b", "b": "a"}.get(turned["winner"], "tie")
    found, listed = examined([*rows, {**rows[3], "id": "again"}, turned, {**rows[3], "id": "third"}])
    assert found["exact duplicates"].count == 3
    assert found["exact duplicates"].figures == {"exchanged": 1}
    assert about(listed, "exact duplicates") == [("again", "p3"), ("x", "p4"), ("third", "p3")]
    assert found["contradictory votes"].count == 0
    assert found["near-duplicates"].count == 0, "an exact duplicate is not told twice"


@pytest.mark.parametrize("kind", ["system", "turn border", "answer"])
def test_pairs_that_differ_anywhere_are_different(kind: str) -> None:
    one = Pair.of(["a b", "c"], ["x", "y"], ["z", "w"])
    other = {
        "system": replace(one, system="You are kind."),
        "turn border": Pair.of(["a", "b c"], ["x", "y"], ["z", "w"]),
        "answer": Pair.of(["a b", "c"], ["xy", ""], ["z", "w"]),
    }[kind]
    assert pair_key(one)[0] != pair_key(other)[0]
    assert pair_key(one)[0] == pair_key(one.swapped())[0]
    assert pair_key(one)[1] != pair_key(one.swapped())[1]


def test_contradictory_votes_are_told_in_the_order_of_each_row() -> None:
    rows = rows_of(3)
    rows[0]["winner"] = "a"
    turned = {**rows[0], "id": "x", "response_a": rows[0]["response_b"], "response_b": rows[0]["response_a"]}
    found, listed = examined([*rows, {**turned, "winner": "a"}, {**rows[1], "id": "same"}])
    assert found["contradictory votes"].count == 2
    assert found["contradictory votes"].of == 4
    told = {row.id: row for row in listed if row.finding == "contradictory votes"}
    assert told["p0"].detail == "says A; the other row says B"
    assert told["x"].detail == "says A; the other row says B"
    assert (told["p0"].other_id, told["x"].other_id) == ("x", "p0")


def test_a_winner_of_two_equal_answers_is_found() -> None:
    rows = rows_of(5)
    rows[1] |= {"response_b": rows[1]["response_a"], "winner": "b"}
    rows[2] |= {"response_b": rows[2]["response_a"], "winner": "tie"}
    found, listed = examined(rows)
    assert found["winner of equal answers"].count == 1
    assert about(listed, "winner of equal answers") == [("p1", None)]


def test_edited_copies_are_found_and_pairs_with_one_answer_in_common_are_not() -> None:
    rows = rows_of(30)
    words = rows[5]["response_b"].split()
    words[7] = "otherwise"
    copies = [
        {**rows[2], "id": "case", "prompt": rows[2]["prompt"].upper()},
        {**rows[5], "id": "word", "response_b": " ".join(words)},
        {**rows[6], "id": "turned", "response_a": rows[6]["response_b"] + "!", "response_b": rows[6]["response_a"]},
    ]
    others = [
        {**rows[8], "id": "half", "response_b": rows[9]["response_b"]},
        {**rows[10], "id": "prompt", "response_a": rows[11]["response_a"], "response_b": rows[12]["response_b"]},
        {**rows[13], "id": "asked", "prompt": rows[14]["prompt"]},
    ]
    found, listed = examined([*rows, *copies, *others])
    assert about(listed, "near-duplicates") == [("case", "p2"), ("word", "p5"), ("turned", "p6")]
    assert found["near-duplicates"].figures["exchanged"] == 1
    assert [row.detail for row in listed][2].endswith("A and B exchanged")


def test_near_duplicates_are_looked_for_among_as_many_pairs_as_asked() -> None:
    rows = rows_of(10)
    rows.append({**rows[2], "id": "case", "prompt": rows[2]["prompt"].upper()})
    assert examined(rows, most=11)[0]["near-duplicates"].count == 1
    short = examined(rows, most=5)[0]["near-duplicates"]
    assert short.count == 0
    assert "only the first 5 different pairs were compared" in short.text
    assert "near-duplicates" not in examined(rows, most=0)[0]


# Leaks


def test_leaks_are_found_by_how_close_they_are() -> None:
    test = rows_of(20, seed=1)
    train = rows_of(20, seed=2)
    train[0] = {**test[3], "id": "p0"}
    train[1] = {**test[4], "id": "p1", "response_a": test[4]["response_b"].upper(), "response_b": test[4]["response_a"]}
    train[2]["prompt"] = "  " + test[5]["prompt"].upper() + "?"
    train[3]["prompt"] = test[6]["prompt"] + " ok"
    found, listed = examined(train, [test])
    first = found["leaks to table"]
    assert first.count == 4
    assert [
        first.figures[kind] for kind in ("same pair", "nearly the same pair", "same prompt", "nearly the same prompt")
    ] == [1, 1, 1, 1]
    assert about(listed, "leak") == [("p0", "p3"), ("p1", "p4"), ("p2", "p5"), ("p3", "p6")]
    assert examined(train, [rows_of(5, seed=3)])[0]["leaks to table"].text == "none of 20 rows"


def test_every_row_with_a_prompt_of_the_other_file_is_told_and_the_prompt_counted_once() -> None:
    test, train = rows_of(4, seed=1), rows_of(9, seed=2)
    for row in train[:5]:
        row["prompt"] = test[2]["prompt"]
    leak = examined(train, [test])[0]["leaks to table"]
    assert (leak.count, leak.figures["prompts"]) == (5, 1)


# What the votes follow


@pytest.mark.parametrize(("winner", "share"), [("a", 1.0), ("b", 0.0)])
def test_a_position_that_always_wins_is_not_by_chance(winner: str, share: float) -> None:
    found, _ = examined(rows_of(60, winner=winner))
    assert found["position bias"].figures["value"] == share
    assert found["position bias"].text.endswith("not by chance")


def test_votes_without_a_bias_have_none() -> None:
    rows = rows_of(200)
    for number, row in enumerate(rows):
        row["winner"] = "ab"[number % 2]
    found, _ = examined(rows)
    assert "not by chance" not in found["position bias"].text
    assert found["position bias"].of == 200


def test_length_bias_is_told_for_each_side() -> None:
    rows = rows_of(80)
    for number, row in enumerate(rows):
        row["response_a"] += " more" * 60 * (number % 2)
        row["response_b"] += " more" * 60 * (1 - number % 2)
        row["winner"] = "a" if number % 2 else "b"
    length = examined(rows)[0]["length bias"]
    assert length.figures["value"] == 1.0
    assert set(length.figures["by_side"]) == {"a", "b"}
    assert length.text.startswith("the longer answer wins 100.0 %")


def test_chosen_and_rejected_have_no_position() -> None:
    rows = [{"prompt": text(random.Random(n), 8), "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(30)]
    found, _ = examined(rows)
    assert found["position bias"].text.startswith("not measured: the order of A and B was drawn")
    assert "where it is A" not in found["length bias"].text


def test_a_model_that_stands_on_one_side_is_found() -> None:
    rows = rows_of(60, model_a="left", model_b="right")
    for row in rows[:20]:
        row |= {"model_a": "even", "model_b": "odd"}
    for row in rows[:10]:
        row |= {"model_a": "odd", "model_b": "even"}
    found = examined(rows)[0]["models on one side"]
    assert {each["model"] for each in found.figures["models"]} == {"left", "right"}
    assert found.of == 4


def test_holm_rejects_what_it_should() -> None:
    assert holm([0.01, 0.04, 0.03]) == [True, False, False]
    assert holm([0.01, 0.02, 0.04]) == [True, True, True]
    assert holm([]) == []


# Raters


def votes_of(rater: str, rows: Sequence[dict[str, Any]], says: dict[str, str]) -> list[dict[str, Any]]:
    return [
        {**row, "id": f"{rater}-{row['id']}", "rater": rater, "winner": says.get(row["winner"], row["winner"])}
        for row in rows
    ]


@pytest.mark.parametrize("how", ["column", "file"])
def test_a_rater_who_disagrees_with_everybody_is_named(how: str) -> None:
    rows = rows_of(40)
    against = {"a": "b", "b": "tie", "tie": "a"}
    voters = {"ann": {}, "bob": {}, "cem": {}, "dora": against}
    if how == "column":
        all_rows = [row for name, says in voters.items() for row in votes_of(name, rows, says)]
        found, listed = examined(all_rows, rater="rater")
    else:
        said = {"a": Outcome.A, "b": Outcome.B, "tie": Outcome.TIE}
        given = VotesFile(
            "votes.csv",
            {
                row["id"]: [(said[says.get(row["winner"], row["winner"])], 1.0, name) for name, says in voters.items()]
                for row in rows
            },
        )
        found, listed = examined(rows, votes=given)
    raters = found["raters who disagree"]
    assert [each["rater"] for each in raters.figures["raters"]] == ["dora"]
    assert raters.figures["raters"][0]["agreement"] == 0.0
    assert (raters.count, raters.of) == (1, 4)
    assert len(about(listed, "raters who disagree")) == 40


def test_raters_who_differ_by_chance_are_not_named() -> None:
    draw = random.Random(8)
    rows = rows_of(60)
    everyone = []
    for name in range(20):
        mine = votes_of(f"rater {name}", draw.sample(rows, 20), {})
        for row in mine:
            if draw.random() < 0.4:
                row["winner"] = draw.choice(("a", "b", "tie"))
        everyone += mine
    assert examined(everyone, rater="rater")[0]["raters who disagree"].count == 0


def test_raters_who_share_no_pair_are_not_compared() -> None:
    rows = rows_of(20)
    for number, row in enumerate(rows):
        row["rater"] = f"r{number % 3}"
    assert "no pair has votes of two" in examined(rows, rater="rater")[0]["raters who disagree"].text
    assert "no column names the rater" in examined(rows)[0]["raters who disagree"].text


# Unlikely votes


def simulated(n: int, strength: float, seed: int = 0, people: int = 1) -> Votes:
    """Votes that follow their evidence with this strength."""
    rng = np.random.default_rng(seed)
    margin = rng.standard_normal(n)
    pair = np.repeat(np.arange(n), people)
    chance = 1 / (1 + np.exp(-strength * margin[pair]))
    outcome = np.where(rng.random(n * people) < 0.2, 2, (rng.random(n * people) > chance).astype(int))
    return Votes(
        outcome,
        pair,
        np.ones(n * people),
        np.arange(n, dtype=np.uint64)[pair],
        margin[pair],
        np.zeros(n * people),
        np.full((n * people, 2), -1),
        np.ones(n * people),
    )


def test_planted_exchanges_of_votes_with_strong_evidence_are_found() -> None:
    test = planted(simulated(800, 8.0), 0.1, models=False, others=False, repeats=3)
    assert test.precision > 0.75
    assert test.low < test.precision < test.high
    reached = test.reached(0.8)
    assert reached is not None
    assert reached[1] > 0.5, "half of the exchanged votes, at precision .8"
    assert test.right_at(reached[0]) >= 0.8


def test_evidence_that_says_nothing_finds_nothing() -> None:
    test = planted(simulated(800, 0.0), 0.1, models=False, others=False, repeats=3)
    assert test.precision < 0.25
    assert test.area == pytest.approx(0.5, abs=0.07)
    assert test.reached(0.8) is None


def test_the_other_votes_on_a_pair_make_a_vote_unlikely() -> None:
    votes = simulated(200, 8.0, people=5)
    blind = replace(votes, margin=np.zeros(len(votes)))
    alone, together = (planted(blind, 0.1, models=False, others=others, repeats=2) for others in (False, True))
    assert together.area > alone.area + 0.2


def test_votes_of_one_pair_in_two_orders_are_compared_in_one() -> None:
    votes = simulated(200, 6.0, people=4)
    turned = np.arange(len(votes)) % 2 == 1
    sign = np.where(turned, -1.0, 1.0)
    outcome = np.where(turned & (votes.outcome < 2), 1 - votes.outcome, votes.outcome)
    other = replace(votes, outcome=outcome, side=sign, margin=votes.margin * sign)
    one, two = (odds_against(each, each.outcome, models=False, others=True) for each in (votes, other))
    decided = votes.decided
    assert np.allclose(one[decided], two[decided], atol=1e-6)
    assert np.isneginf(one[~decided]).all()


def test_a_model_that_wins_makes_votes_against_it_unlikely() -> None:
    rng = np.random.default_rng(3)
    votes = simulated(300, 0.0)
    models = rng.permuted(np.tile([0, 1], (300, 1)), axis=1)
    outcome = np.where(models[:, 0] == 0, 0, 1)
    outcome[:10] = 1 - outcome[:10]
    odds = odds_against(replace(votes, models=models), outcome, models=True, others=False)
    assert set(np.argsort(-odds)[:10].tolist()) == set(range(10))


# The verb


def test_the_verb_says_counts_and_writes_the_rows(prefcast_here: Run, tmp_path: Path) -> None:
    rows = rows_of(30)
    write_jsonl(tmp_path / "train.jsonl", named([*rows, {**rows[3], "id": "=cmd()"}, {**rows[4], "id": "p\u202e4"}]))
    write_jsonl(tmp_path / "test.jsonl", named([*rows_of(5, seed=4), {**rows[7], "id": "leak"}]))
    done = prefcast_here(
        "check",
        "train.jsonl",
        "--against",
        "test.jsonl",
        "--rows",
        "found.csv",
        "--json",
        "found.json",
        "--unlikely",
        "--cells",
        "text",
    )
    assert done.returncode == 0, done.stderr
    lines = {line[:25].strip(): line[25:].strip() for line in done.stdout.splitlines()}
    assert lines["exact duplicates"].startswith("2 rows (6.2 %) have the texts of an earlier row")
    assert lines["leaks to test.jsonl"] == "1 rows (3.1 %), 1 prompts: 1 same pair"
    assert "were exchanged votes" in lines["unlikely votes"] or "not measured" in lines["unlikely votes"]
    with (tmp_path / "found.csv").open(newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    assert [(row["id"], row["other_id"]) for row in found if row["finding"] == "exact duplicates"] == [
        ("'=cmd()", "p3"),
        ("p\\u202e4", "p4"),
    ]
    assert [
        (row["file"], row["row"], row["id"], row["other_file"], row["other_row"], row["other_id"])
        for row in found
        if row["finding"] == "leak"
    ] == [("train.jsonl", "8", "p7", "test.jsonl", "6", "leak")]
    said = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert said["inspection"]["rows"] == 32
    assert {each["name"]: each["count"] for each in said["findings"]}["leaks to test.jsonl"] == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--model", "surface"), "give --unlikely too"),
        (("--share", "0.7"), "--share must be above 0 and at most 0.5; found 0.7"),
        (("--similarity", "nan"), "--similarity must be above 0 and at most 1; found nan"),
        (("--rows", "found.parquet"), ".csv or .jsonl"),
        (("--rows", "p.csv"), "is the input"),
        (("--against", "none.csv"), "none.csv"),
        (("--rater", "who"), "column 'who' is missing"),
        (("--votes", "votes.csv"), "no vote has an id of p.csv"),
    ],
)
def test_mistakes_are_one_line(prefcast_here: Run, tmp_path: Path, options: tuple[str, ...], said: str) -> None:
    write_csv(
        tmp_path / "p.csv",
        [
            {**row, **{name: json.dumps([row[name]]) for name in ("prompt", "response_a", "response_b")}}
            for row in named(rows_of(5))
        ],
    )
    (tmp_path / "votes.csv").write_text("id,winner\nother,a\n")
    done = prefcast_here("check", "p.csv", *options)
    assert done.returncode == 2
    assert done.stdout == ""
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_library_checks_as_the_verb_does() -> None:
    found = prefcast.check(str(EXAMPLES), against=[str(EXAMPLES)])
    assert found["exact duplicates"].count == 0
    assert found.findings[-1].count == 42
    assert len([row for row in found.rows if row.finding == "leak"]) == 42
    with pytest.raises(UsageError):
        prefcast.check(str(EXAMPLES), request=Request(share=0.0))
    with pytest.raises(KeyError):
        found["no such finding"]


@pytest.mark.parametrize("ending", [".csv", ".jsonl"])
def test_rows_are_written_whole_with_whatever_they_hold(tmp_path: Path, ending: str) -> None:
    row = FoundRow("leak", "a.csv", 1, "+1\x1b[31m", 'says "A", \n B', "b.csv", 2, "@x")
    path = tmp_path / f"rows{ending}"
    assert write_rows([row] * 5000, path) == 5000
    shown = path.read_text(encoding="utf-8")
    assert "\x1b" not in shown
    if ending == ".jsonl":
        assert json.loads(shown.splitlines()[4999])["id"] == row.id
    else:
        assert list(csv.reader(shown.splitlines()))[5000][3] == "'+1\\x1b[31m"

"""Two systems without labels: joining their files, and saying no more than the answers bear."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import Run, write_csv, write_jsonl
from prefcast import Forecaster, Pair
from prefcast.errors import FileError, PrefcastError, RowError, UsageError
from prefcast.measuring.comparison import compare
from prefcast.outcomes.calibration import Calibration
from prefcast.outcomes.models import Davidson, Link
from prefcast.pairs import Turn
from prefcast.pairs.formats.answers import AnswerFile, JoinReport, joined
from prefcast.report.measurements import comparison_text
from prefcast.scorers.base import Evidence, Scorer


class Stub(Scorer):
    """The margin is what the answers say: a number each."""

    name: ClassVar[str] = "stub"

    def compute(self, pairs: Sequence[Pair]) -> Evidence:
        margin = np.array([float(pair.response_a[0]) - float(pair.response_b[0]) for pair in pairs])
        return Evidence(margin, -np.abs(margin))


def forecaster(bias: float | None = 0.02, draws: int = 50) -> Forecaster:
    theta = np.array([1.0, -0.4, 0.2])
    link = Link(
        "davidson", ("margin",), ("tie",), theta, theta + 0.03 * np.random.default_rng(0).normal(size=(draws, 3))
    )
    calibration = None if bias is None else Calibration(bias, bias, "models", 1, bias)
    return Forecaster(Stub(), Davidson(*theta), link=link, calibration=calibration)


def answers(better: float, n: int = 200, seed: int = 0, prompts: int | None = None) -> list[Pair]:
    """RIGHT is better by so much on average; prompts may occur often."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(n, 2)) + np.array([0, better])
    return [
        Pair((Turn(f"question {row % (prompts or n)}", repr(float(a)), repr(float(b))),), row)
        for row, (a, b) in enumerate(values)
    ]


class Doubtful(Stub):
    """Every tenth pair is unlike the training pairs, and its margin has a standard error."""

    raw_names = ("unlike", "doubt")

    def compute(self, pairs: Sequence[Pair]) -> Evidence:
        found = super().compute(pairs)
        far = np.array([float(pair.id) % 10 == 0 for pair in pairs])
        return replace(found, raw={"unlike": np.where(far, 4.0, 1.0), "doubt": np.where(far, 1.5, 0.0)})


def test_pairs_that_are_unlike_the_training_pairs_are_counted() -> None:
    pairs, doubtful = answers(0.3, 200), replace(forecaster(), scorer=Doubtful())
    found = compare(pairs, doubtful, repeats=100)
    assert found.unlike == 20
    assert "20 of 200 pairs are unlike the training pairs" in comparison_text(found, JoinReport())
    assert compare(pairs, forecaster(), repeats=100).unlike is None
    forecasts, plain = doubtful.forecast(pairs[:11]), forecaster().forecast(pairs[:11])
    assert [each.unlike for each in forecasts] == [4.0, *[1.0] * 9, 4.0]
    assert next(forecasts.records())["unlike"] == 4.0
    assert next(plain.records())["unlike"] is None
    (low, high), (narrow_low, narrow_high) = forecasts.interval or ((), ()), plain.interval or ((), ())
    widths, narrow = high[:, 0] - low[:, 0], narrow_high[:, 0] - narrow_low[:, 0]
    assert (widths[[0, 10]] > 3 * narrow[[0, 10]]).all()
    np.testing.assert_allclose(widths[1:10], narrow[1:10], rtol=0.1)
    assert forecasts.lead_interval()[0][0] < plain.lead_interval()[0][0]


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.floats(-1, 1), st.sampled_from([None, 0.03]), st.integers(1, 300))
def test_exchanging_the_systems_mirrors_everything(seed: int, better: float, bias: float | None, n: int) -> None:
    pairs = answers(better, n, seed)
    one = compare(pairs, forecaster(bias), names=("l", "r"), repeats=100)
    other = compare([pair.swapped() for pair in pairs], forecaster(bias), names=("r", "l"), repeats=100)
    for there, back in ((one.win, other.loss), (one.loss, other.win), (one.tie, other.tie)):
        assert (back.value, back.low, back.high) == pytest.approx((there.value, there.low, there.high), abs=1e-9)
    assert other.net.value == pytest.approx(-one.net.value, abs=1e-12)
    assert (other.net.low, other.net.high) == pytest.approx((-one.net.high, -one.net.low), abs=1e-9)
    assert other.verdict == {"left": "right", "right": "left", "none": "none"}[one.verdict]
    for there, back in zip(one.slices, other.slices, strict=True):
        assert (there.kind, there.name, there.n) == (back.kind, back.name, back.n)
        assert back.net.value == pytest.approx(-there.net.value, abs=1e-12)
        assert (back.net.low, back.net.high) == pytest.approx((-there.net.high, -there.net.low), abs=1e-6)
    assert [each.pair.id for each in one.examples["left"]] == [each.pair.id for each in other.examples["right"]]
    assert one.win.value + one.loss.value + one.tie.value == pytest.approx(1)
    assert all(figure.low <= figure.value <= figure.high for figure in (one.win, one.loss, one.tie, one.net))
    for kind in {part.kind for part in one.slices}:
        assert sum(part.n for part in one.slices if part.kind == kind) == one.n


def test_systems_that_are_the_same() -> None:
    same = [Pair((Turn(pair.prompt[0], pair.response_a[0], pair.response_a[0]),), pair.id) for pair in answers(0)]
    found = compare(same, forecaster(), repeats=200)
    assert found.net.value == 0
    assert found.win.value == found.loss.value
    assert found.verdict == "none"
    assert found.net.low == pytest.approx(-found.net.high, abs=1e-9)
    assert found.net.high > 0.03  # the forecaster's own error
    assert compare(same, forecaster(None), repeats=200).net.high == 0


def test_two_halves_of_one_system_differ_in_nothing() -> None:
    found = compare(answers(0.0, 1000), forecaster(), repeats=300)
    assert found.verdict == "none"
    better = compare(answers(0.5, 1000), forecaster(), repeats=300)
    assert (better.verdict, better.net.low > 0) == ("right", True)
    assert compare(answers(-0.5, 1000), forecaster(), repeats=300).verdict == "left"


def test_the_interval_is_the_choice_of_prompts() -> None:
    rates = [compare(answers(0.2, 150, seed), forecaster(None, 0), repeats=200).net for seed in range(60)]
    truth = np.mean([each.value for each in rates])
    assert sum(each.low <= truth <= each.high for each in rates) >= 51
    # Ten rows of a prompt are one prompt.
    few, many = (compare(answers(0.2, 400, 1, prompts), forecaster(None, 0), repeats=300) for prompts in (40, None))
    assert (few.groups, many.groups) == (40, 400)
    copies = [pair for pair in answers(0.2, 40, 2) for _ in range(10)]
    wide, narrow = compare(copies, forecaster(None, 0), repeats=300), many
    assert wide.net.high - wide.net.low > 2 * (narrow.net.high - narrow.net.low)


@pytest.mark.long
def test_two_hundred_comparisons_of_equals_are_rarely_decided() -> None:
    """Two systems that are as good as each other, for a forecaster with a bias for whole systems that it knows of."""
    rng = np.random.default_rng(0)
    wrong = found = 0
    for seed in range(200):
        taste = 0.04 * rng.standard_normal()
        made = compare(answers(taste / 0.42, 1000, seed), forecaster(0.04), repeats=300)
        wrong += made.verdict != "none"
        found += compare(answers(0.6 + taste / 0.42, 1000, seed), forecaster(0.04), repeats=300).verdict == "right"
    assert wrong <= 18  # 5 % of 200 is 10, with a standard deviation of 3
    assert found >= 195


def test_known_bias_keeps_equals_undecided() -> None:
    rng = np.random.default_rng(1)
    wrong = 0
    for seed in range(30):
        taste = 0.04 * rng.standard_normal()
        wrong += compare(answers(taste / 0.42, 300, seed), forecaster(0.04, 20), repeats=200).verdict != "none"
    assert wrong <= 5


def test_rows_that_fail_and_nothing_left() -> None:
    error = RowError("right.jsonl", 3, "response", "is a number")
    found = compare([*answers(0.1, 10), error], forecaster(), repeats=50)
    assert (found.n, found.failed, found.first_error) == (10, 1, error)
    json.dumps(found.to_dict(), allow_nan=False)
    with pytest.raises(UsageError, match="of 1 pairs 1 failed"):
        compare([error], forecaster())
    with pytest.raises(UsageError, match="nothing to compare: of 0 pairs"):
        compare([], forecaster())


def answer(prompt: Any = "Why?", response: Any = "Because.", **more: Any) -> dict[str, Any]:
    return {**more, "prompt": prompt, "response": response}


def join(tmp_path: Path, left: Any, right: Any) -> tuple[list[Pair], JoinReport]:
    report = JoinReport()
    paths = [write_jsonl(tmp_path / f"{name}.jsonl", rows) for name, rows in (("left", left), ("right", right))]
    with AnswerFile(paths[0]) as one, AnswerFile(paths[1]) as other:
        return list(joined(one, other, ("left", "right"), report)), report


def test_joined_by_id(tmp_path: Path) -> None:
    left = [answer(f"q{n}", f"left {n}", id=n) for n in range(5)]
    right = [answer(f"q{n}", f"right {n}", id=str(n)) for n in (4, 2, 9, 0)]
    pairs, report = join(tmp_path, left, right)
    assert [(pair.id, pair.response_a, pair.response_b) for pair in pairs] == [
        (str(n), (f"left {n}",), (f"right {n}",)) for n in (4, 2, 0)
    ]
    assert (report.by, report.only_left, report.only_right, report.failed) == ("id", 2, 1, 0)
    assert (pairs[0].model_a, pairs[0].model_b, pairs[0].outcome) == ("left", "right", None)


def test_joined_by_prompt_where_one_has_no_ids(tmp_path: Path) -> None:
    left = [answer("q1", "a", id=1), answer(["q2", "and?"], ["b", "c"], id=2), answer("q3", "d", id=3)]
    right = [answer(["q2", "and?"], ["x", "y"]), answer("q1", "z"), answer("q2", "w")]
    pairs, report = join(tmp_path, left, right)
    assert [pair.prompt for pair in pairs] == [("q2", "and?"), ("q1",)]
    assert pairs[0].response_b == ("x", "y")
    assert (report.by, report.only_left, report.only_right) == ("prompt", 1, 1)


def test_a_row_at_fault_is_counted_once(tmp_path: Path) -> None:
    left = [answer("q1", "a", id=1), answer("q2", 5, id=2), answer("q3", "c", id=3)]
    right = [answer("q1", 5, id=1), answer("q2", "y", id=2), answer("q3?", "z", id=3)]
    pairs, report = join(tmp_path, left, right)
    assert pairs == []
    assert (report.only_left, report.only_right, report.failed) == (0, 0, 3)
    assert str(report.first_error).endswith(
        "left.jsonl: row 2, response: is a number; expected a text, or a list of texts, one a turn"
    )


def test_messages_and_turns(tmp_path: Path) -> None:
    def talk(*texts: str) -> dict[str, Any]:
        return {
            "messages": [
                {"role": role, "content": text} for role, text in zip(("user", "assistant") * 3, texts, strict=False)
            ]
        }

    pairs, report = join(
        tmp_path, [talk("q", "a", "more?", "b"), talk("p", "c")], [talk("q", "x", "more?", "y"), answer("p", "c")]
    )
    assert report.by == "prompt"
    assert [(pair.prompt, pair.response_a, pair.response_b) for pair in pairs] == [
        (("q", "more?"), ("a", "b"), ("x", "y"))
    ]
    assert report.failed == 1  # the second row of the right file has no messages
    pairs, _ = join(tmp_path, [talk("q", "a")], [answer("q", "x")])
    assert len(pairs) == 1


@pytest.mark.parametrize(
    ("left", "right", "message"),
    [
        ([{"text": "x"}], [answer()], r"left\.jsonl: holds no answers; expected prompt and response, or messages"),
        ([answer(), answer()], [answer()], r"left\.jsonl: row 2: has the prompt of row 1 again; give both files ids"),
        ([answer()], [answer(), answer()], r"right\.jsonl: row 2: has the prompt of row 1 again"),
        ([answer("q", id=1), answer("p", id=1)], [answer(id=1)], r"left\.jsonl: row 2: id 1 is the same as in row 1"),
        ([answer("q", id=None)], [answer(id=1)], r"left\.jsonl: row 1: id is missing; expected a text or a number"),
        ([answer("q", id=[1])], [answer(id=1)], r"left\.jsonl: row 1: id is .*; expected a text or a number"),
    ],
)
def test_files_that_cannot_be_joined(tmp_path: Path, left: Any, right: Any, message: str) -> None:
    with pytest.raises(FileError, match=message) as caught:
        join(tmp_path, left, right)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (answer(5), "prompt: is a number; expected a text"),
        (answer("q", [1]), "response: turn 1 is a number; expected a string or null"),
        (answer(["q", "p"], ["a"]), "response: has 1 turns where prompt has 2"),
        (answer([], []), "response: has 0 turns where prompt has 0; they must be equal, at least one"),
        (answer("q", {"a": 1}), "response: is an object; expected a text"),
        ({"prompt": "q"}, "response"),
    ],
)
def test_rows_at_fault(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    good = answer("another", "one")
    pairs, report = join(tmp_path, [good, row], [good])
    assert len(pairs) == 1
    assert report.failed == 1
    with pytest.raises(RowError, match=message):
        raise report.first_error or AssertionError
    assert "\n" not in str(report.first_error)


def test_no_answer_is_an_empty_one(tmp_path: Path) -> None:
    pairs, report = join(tmp_path, [answer("q", [None])], [answer("q", "")])
    assert (pairs[0].response_a, pairs[0].response_b, report.failed) == (("",), ("",), 0)


@settings(max_examples=30)
@given(
    st.lists(
        st.one_of(
            st.none(),
            st.integers(),
            st.text(max_size=4),
            st.lists(st.text(max_size=3), max_size=3),
            st.lists(st.dictionaries(st.sampled_from(["role", "content"]), st.text(max_size=9)), max_size=2),
        ),
        min_size=3,
        max_size=3,
    )
)
def test_any_row_is_a_pair_or_a_clear_error(tmp_path_factory: pytest.TempPathFactory, values: list[Any]) -> None:
    room = tmp_path_factory.mktemp("fuzz")
    for names in (("id", "prompt", "response"), ("id", "messages", "prompt")):
        row = dict(zip(names, values, strict=True))
        try:
            pairs, report = join(room, [row], [row])
        except PrefcastError as error:
            assert "\n" not in str(error)  # noqa: PT017
        else:
            assert len(pairs) * 2 + report.failed == 2


HOSTILE = "\x1b[31mred\x07\u202e\r\nnext line"


def test_the_program(prefcast_here: Run, tmp_path: Path) -> None:
    prompts = [f"How does thing {n} work? {HOSTILE}" for n in range(30)]
    write_jsonl(
        tmp_path / "old.jsonl",
        [answer(text, f"Like {HOSTILE} {n}.", id=f"{n}{HOSTILE}") for n, text in enumerate(prompts)],
    )
    long = "It works in three steps:\n\n1. First, it starts.\n2. Then it runs.\n3. At last it stops.\n" * 3
    write_jsonl(
        tmp_path / "new.jsonl", [answer(text, f"{long} {n}", id=f"{n}{HOSTILE}") for n, text in enumerate(prompts)]
    )
    done = prefcast_here("compare", "old.jsonl", "new.jsonl", "-o", "pairs.jsonl", "--with-text", "--json", "c.json")
    assert (done.returncode, done.stderr) == (0, "")
    # The shipped forecaster is off by so much for whole systems that it leaves this open.
    assert "no difference that this forecaster can see" in done.stdout
    assert "30 prompts that both answered (joined by id)" in done.stdout
    assert not {"\x1b", "\x07", "\r", "\u202e"} & set(done.stdout)
    assert "\nnext line" not in done.stdout
    found = json.loads((tmp_path / "c.json").read_text(), parse_constant=pytest.fail)
    assert (found["n"], found["verdict"], found["join"]["by"]) == (30, "none", "id")
    assert found["net"]["low"] < 0 < found["net"]["high"]
    kept = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert len(kept) == 30
    assert kept[0]["model_a"] == "old.jsonl"
    assert kept[0]["prompt"] == [prompts[0]]
    rates = np.mean([[row[f"winner_{name}"] for name in ("model_a", "model_b", "tie")] for row in kept], axis=0)
    assert [found[name]["value"] for name in ("loss", "win", "tie")] == pytest.approx(rates)
    # The forecasts are a predictions file like any other.
    again = prefcast_here("compare", "old.jsonl", "old.jsonl", "--json", "-")
    assert again.returncode == 0
    same = json.loads(again.stdout, parse_constant=pytest.fail)
    assert (same["net"]["value"], same["verdict"]) == (0, "none")


def test_an_output_is_whole_or_not_at_all(prefcast_here: Run, tmp_path: Path) -> None:
    rows = [answer(f"q{n}", f"a{n}") for n in range(600)]
    write_jsonl(tmp_path / "left.jsonl", rows)
    # A fault of the file in its last row, after two pieces were forecast.
    write_jsonl(tmp_path / "right.jsonl", [*rows, rows[0]])
    (tmp_path / "out.jsonl").write_text("kept")
    done = prefcast_here("compare", "left.jsonl", "right.jsonl", "-o", "out.jsonl", "--json", "c.json")
    assert done.returncode == 2
    assert done.stderr == "prefcast: right.jsonl: row 601: has the prompt of row 1 again; give both files ids\n"
    assert (tmp_path / "out.jsonl").read_text() == "kept"
    assert {path.name for path in tmp_path.iterdir()} == {"left.jsonl", "right.jsonl", "out.jsonl"}


def test_csv_with_plain_text_and_own_names(prefcast_here: Run, tmp_path: Path) -> None:
    write_csv(tmp_path / "l.csv", [{"instruction": f"[q{n}", "output": "[1] yes"} for n in range(5)])
    write_csv(tmp_path / "r.csv", [{"instruction": f"[q{n}", "output": "null"} for n in range(4)])
    mapping = ("--columns", "prompt=instruction,response=output")
    done = prefcast_here("compare", "l.csv", "r.csv", *mapping, "--cells", "text", "--json", "c.json")
    assert (done.returncode, done.stderr) == (0, "")
    join = json.loads((tmp_path / "c.json").read_text())["join"]
    assert (join["by"], join["only_left"], join["only_right"]) == ("prompt", 1, 0)
    assert "1 only in l.csv" in done.stdout

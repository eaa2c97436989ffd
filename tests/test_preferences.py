"""From n answers to chosen and rejected pairs: which pairs, what is dropped and why, the formats, the kills."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import PEAK, SURFACE, Run, Start, said_by, write_jsonl
from prefcast import open_pairs
from prefcast.errors import RowError, UsageError
from prefcast.forecasts.best import choices
from prefcast.forecasts.forecaster import Forecaster
from prefcast.forecasts.preferences import Counts, Rule, balanced, write_preferences
from prefcast.outcomes.models import Davidson, Link, MarginSign
from prefcast.pairs import Pair
from prefcast.pairs.budget import WHOLE
from prefcast.pairs.formats.candidates import CandidateFile
from prefcast.scorers.base import Evidence, Scorer
from prefcast.scorers.kept import kept
from prefcast.scorers.store import EvidenceStore


class Said(Scorer):
    """An answer's score is its first word. It counts the pairs that it reads, and may stop as a killed process does."""

    name: ClassVar[str] = "said"
    batch_pairs = 8

    def __init__(self, stop_at: int | None = None) -> None:
        self.read, self.stop_at = 0, stop_at

    def identity(self) -> str:
        return "said"

    def compute(self, pairs: Sequence[Pair]) -> Evidence:
        self.read += len(pairs)
        if self.stop_at is not None and self.read > self.stop_at:
            raise KeyboardInterrupt
        a, b = (
            np.array([float(getattr(pair.turns[-1], side).split()[0]) for pair in pairs])
            for side in ("response_a", "response_b")
        )
        raw = {"score_a": a, "score_b": b} if self.raw_names else {}
        return Evidence(a - b, np.zeros(len(pairs)), raw=raw)


class Alone(Said):
    """The same, one answer at a time."""

    pointwise = True
    raw_names = ("score_a", "score_b")


# P(A) : P(B) : P(tie) = exp(m / 2) : exp(-m / 2) : 2. By hand, for m = 1, 2, 3, 4:
#   m = 1: 1.649 : 0.607 : 2  a tie is the likeliest
#   m = 2: 2.718 : 0.368 : 2  P(A) 0.534, P(B) 0.072, lead 0.462, win probability 0.731
#   m = 3: 4.482 : 0.223 : 2  P(A) 0.668, P(B) 0.033, lead 0.635, win probability 0.818
#   m = 4: 7.389 : 0.135 : 2  P(A) 0.776, P(B) 0.014, lead 0.762, win probability 0.881
LEVEL = float(np.log(2))
LEADS = {2: 0.462, 3: 0.635, 4: 0.762}
WINS = {2: 0.731, 3: 0.818, 4: 0.881}
# The scores of the answers to 20 prompts. The best and the worst differ by 3 or 4 in eight, by 2 in five, by 0 or 1 in four; in
# three the answers are the same text.
TWENTY = (
    ["0 a", "3 b"], ["4 a", "0 b"], ["1 a", "2 b", "4 c"], ["5 a", "4 b", "1 c"], ["0 a", "1 b", "3 c", "4 d"],
    ["3 a", "0 b"], ["4 a", "1 b"], ["0 a", "2 b", "3 c"],
    ["0 a", "2 b"], ["3 a", "1 b"], ["2 a", "3 b", "4 c"], ["1 a", "3 b"], ["5 a", "7 b"],
    ["0 a", "1 b"], ["2 a", "2 b"], ["3 a", "2 b"], ["4 a", "4 b", "5 c"],
    ["2 a", "2 a"], ["0 x", "0 x"], ["1 y", "1 y"],
)  # fmt: skip


def forecaster(scorer: Scorer | None = None, draws: Sequence[float] = ()) -> Forecaster:
    """The rule above; with `draws` of its scale it has intervals."""
    link = Link(
        "davidson", ("margin",), (), np.array([1.0, LEVEL]), np.array([[scale, LEVEL] for scale in draws or (1.0,)])
    )
    return Forecaster(scorer or Said(), Davidson(1.0, LEVEL, 0.0), WHOLE, link=link if draws else None)


def samples(path: Path, answers: Sequence[Sequence[str]] = TWENTY, **more: Any) -> Path:
    rows = [
        {"id": f"q{number}", "prompt": f"Question {number}?", "responses": list(each), **more}
        for number, each in enumerate(answers)
    ]
    return write_jsonl(path, rows)


def made(
    tmp_path: Path, rule: Rule, answers: Sequence[Sequence[str]] = TWENTY, of: Forecaster | None = None, **how: Any
) -> tuple[list[dict[str, Any]], Counts]:
    out = tmp_path / "pairs.jsonl"
    with CandidateFile(samples(tmp_path / "samples.jsonl", answers)) as file:
        counts = write_preferences(out, choices(file, of or forecaster(), leads=True), rule, **how)
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()], counts


def ids(rows: list[dict[str, Any]]) -> list[str]:
    return [row["id"] for row in rows]


def test_twenty_prompts_by_hand(tmp_path: Path) -> None:
    rows, counts = made(tmp_path, Rule(margin=0.5))
    expected = ["q0:1-0", "q1:0-1", "q2:2-0", "q3:0-2", "q4:3-0", "q5:0-1", "q6:0-1", "q7:2-0"]
    assert ids(rows) == expected
    assert dict(counts.dropped) == {"below the margin": 5, "tie": 4, "same text": 3}
    assert (counts.prompts, counts.considered, counts.written, counts.without) == (20, 20, 8, 12)
    by_gap = {0: 3, 1: 4, 2: 3, 3: 4, 4: 4, 5: 3, 6: 3, 7: 3}
    for number, row in enumerate(rows):
        assert row["probability"] == pytest.approx(WINS[by_gap[number]], abs=5e-4)
        gap = float(row["chosen"][0]["content"].split()[0]) - float(row["rejected"][0]["content"].split()[0])
        assert gap == by_gap[number]
    # With a margin below 0.462 the five of gap 2 stay too.
    assert made(tmp_path, Rule(margin=LEADS[2] - 0.01))[1].written == 13
    assert made(tmp_path, Rule(margin=LEADS[2] + 0.01))[1].written == 8
    assert made(tmp_path, Rule(margin=LEADS[3] + 0.01))[1].written == 3


def test_the_margin_holds_for_the_lower_end_of_the_interval(tmp_path: Path) -> None:
    # At a scale of 0.5 a gap of 4 has the lead that a gap of 2 has at 1: 0.462. Of a few draws the least is the lower end.
    unsure = forecaster(draws=(0.5, 1.0, 1.5))
    assert made(tmp_path, Rule(margin=0.5), of=unsure)[1].dropped["below the margin"] == 13
    rows, _ = made(tmp_path, Rule(margin=0.45), of=unsure)
    assert ids(rows) == ["q1:0-1", "q3:0-2", "q4:3-0"]
    # The win probability that is written is the forecast itself.
    assert rows[0]["probability"] == pytest.approx(WINS[4], abs=5e-4)


def test_all_and_hard_pairs(tmp_path: Path) -> None:
    answers = [["0 a", "1 b", "3 c", "4 d"], ["0 a", "2 b", "3 c"]]
    # Gaps: 1 3 4 2 3 1 and 2 3 1.
    rows, counts = made(tmp_path, Rule("all"), answers)
    assert ids(rows) == ["q0:2-0", "q0:3-0", "q0:2-1", "q0:3-1", "q1:1-0", "q1:2-0"]
    assert (counts.considered, dict(counts.dropped)) == (9, {"tie": 3})
    rows, counts = made(tmp_path, Rule("hard", band=(0.55, 0.75)), answers)
    assert ids(rows) == ["q0:2-1", "q1:1-0"]
    assert dict(counts.dropped) == {"tie": 3, "outside the band": 4}
    rows, counts = made(tmp_path, Rule("all", per_prompt=2, seed=1), answers)
    assert len(rows) == 4
    assert counts.dropped["above --per-prompt"] == 2
    drawn = {tuple(ids(made(tmp_path, Rule("all", per_prompt=2, seed=seed), answers)[0])) for seed in range(20)}
    assert len(drawn) > 3  # the seed decides
    # Best and worst, then second best and second worst (a gap of 2).
    assert ids(made(tmp_path, Rule(per_prompt=5), answers[:1])[0]) == ["q0:3-0", "q0:2-1"]
    drawn = {tuple(ids(made(tmp_path, Rule("best-random", seed=seed), answers[:1])[0])) for seed in range(30)}
    assert drawn == {("q0:3-0",), ("q0:3-1",), ()}  # the third one is a tie


def test_equal_answers_make_a_pair_once(tmp_path: Path) -> None:
    rows, counts = made(tmp_path, Rule("all"), [["0 a", "3 b", "0 a", "3 b"]])
    assert ids(rows) == ["q0:1-0"]
    assert dict(counts.dropped) == {"same text": 2, "repeated": 3}


def test_ties_are_written_where_the_format_has_them(tmp_path: Path) -> None:
    rows, counts = made(tmp_path, Rule(ties=True), trainer="prefcast")
    assert counts.ties == 4
    assert [row["winner"] for row in rows].count("tie") == 4
    with open_pairs(tmp_path / "pairs.jsonl") as file:
        read = [pair for pair in file if isinstance(pair, Pair)]
    assert len(read) == 17
    for pair in read:
        a, b = (float(each[0].split()[0]) for each in (pair.response_a, pair.response_b))
        assert pair.outcome is not None
        assert pair.outcome.name == ("TIE" if abs(a - b) <= 1 else "A" if a > b else "B")
    assert len({pair.outcome for pair in read}) == 3  # the better answer is not always first
    with pytest.raises(UsageError, match="trl has no place for ties; --to prefcast has"):
        made(tmp_path, Rule(ties=True))


def test_one_answer_at_a_time_gives_the_same_pairs(tmp_path: Path) -> None:
    alone, both = Alone(), Said()
    for rule in (Rule(margin=0.5), Rule("all")):
        one, other = (made(tmp_path, rule, of=forecaster(each))[0] for each in (alone, both))
        assert one == other
    # Different answers, and one pair to see that a margin is a difference of scores.
    assert alone.read == 2 * (sum(len(set(x)) for x in TWENTY) + 1)
    assert both.read == 2 * sum(len(x) * (len(x) - 1) // 2 for x in TWENTY)
    bad = [["1 a", "0 b"], ["nothing", "1 b", "2 c"], ["3 a", "0 b"]]
    rows, counts = made(tmp_path, Rule(), bad, forecaster(Alone()))
    assert ids(rows) == ["q2:0-1"]
    assert (counts.failed, counts.dropped["tie"]) == (1, 1)
    assert "responses 1 and 2: cannot be scored" in str(counts.first_error)


def test_a_model_without_probabilities(tmp_path: Path) -> None:
    plain = Forecaster(Alone(), MarginSign(), WHOLE, prior_tie=0.0)
    rows, counts = made(tmp_path, Rule(), of=plain)
    # Only equal scores are ties.
    assert (len(rows), dict(counts.dropped)) == (16, {"tie": 1, "same text": 3})
    for rule in (Rule(margin=0.1), Rule("hard")):
        with pytest.raises(UsageError, match="needs probabilities, and no outcome model was fitted"):
            rule.check(plain)
    Rule("all").check(plain)


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ({"margin": 1.0}, "--margin is a difference of two probabilities"),
        ({"band": (0.4, 0.6)}, "--band takes two win probabilities"),
        ({"band": (0.7, 0.6)}, "--band takes two win probabilities"),
        ({"strategy": "worst"}, "unknown strategy 'worst'"),
    ],
)
def test_wrong_rules(wrong: dict[str, Any], problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        Rule(**wrong)


# The length of the chosen answers


@given(st.lists(st.tuples(st.integers(-3000, 3000), st.integers(0, 2**64 - 1)), max_size=80))
def test_balance_in_every_bin(found: list[tuple[int, int]]) -> None:
    difference = np.array([each for each, _ in found], dtype=np.float64)
    mark = np.array([each for _, each in found], dtype=np.uint64)
    keep = balanced(difference, mark)
    assert keep[difference == 0].all()
    assert difference[keep].sum() <= 0
    # As many are kept as a bin allows, but for those that the last step drops.
    sizes = np.abs(difference)
    bins = np.where(sizes > 0, np.floor(np.log(np.maximum(sizes, 1)) / np.log(1.25)), -1)
    for each in set(bins[bins >= 0].tolist()):
        of = bins == each
        longer, shorter = int((keep & of & (difference > 0)).sum()), int((keep & of & (difference < 0)).sum())
        assert longer <= shorter == min(int((of & (difference > 0)).sum()), int((of & (difference < 0)).sum()))
    # The order of the pairs does not matter.
    if len(set(mark.tolist())) == len(mark):
        turned = balanced(difference[::-1], mark[::-1])[::-1]
        assert difference[keep].sum() == difference[turned].sum()


def test_balance_keeps_most_of_what_is_balanced() -> None:
    rng = np.random.default_rng(0)
    difference = np.round(rng.normal(0, 400, 4000))
    keep = balanced(difference, rng.integers(0, 2**63, 4000).astype(np.uint64))
    assert keep.mean() > 0.9
    # And of pairs in which the chosen answer is longer three times out of four, about half.
    difference = np.abs(difference) * np.where(rng.random(4000) < 0.75, 1, -1)
    keep = balanced(difference, rng.integers(0, 2**63, 4000).astype(np.uint64))
    assert 0.45 < keep.mean() < 0.52
    assert -1 < difference[keep].mean() <= 0


def test_balanced_pairs_are_written_in_their_order(tmp_path: Path) -> None:
    draw = random.Random(0)
    answers = [
        [f"{draw.randint(0, 9)} {'x' * draw.randint(0, 50)}", f"{draw.randint(0, 9)} {'y' * draw.randint(0, 90)}"]
        for _ in range(300)
    ]
    whole, before = made(tmp_path, Rule(), answers)
    rows, counts = made(tmp_path, Rule(), answers, balance=True)
    places = [ids(whole).index(each) for each in ids(rows)]
    assert places == sorted(places)
    assert len(rows) == counts.written == before.written - counts.dropped["length balance"]
    difference = [len(row["chosen"][0]["content"]) - len(row["rejected"][0]["content"]) for row in rows]
    assert sum(difference) == counts.balanced.total <= 0
    assert counts.lengths == before.lengths
    assert counts.without == 300 - len({each.partition(":")[0] for each in ids(rows)})
    assert made(tmp_path, Rule(), answers, balance=True)[0] == rows
    assert made(tmp_path, Rule(seed=1), answers, balance=True)[0] != rows


# The formats


def two_turns(path: Path, *, parting: bool = False) -> Path:
    """A system message, a first turn, and two answers to the second prompt."""
    first = ("0 no", "1 yes") if parting else ("0 no", "0 no")
    row = {
        "id": 7,
        "prompt": ["Hi?", "And?"],
        "system": "Be brief.",
        "responses": [[first[0], "0 worse"], [first[1], "4 better"]],
    }
    return write_jsonl(path, [row])


def record_of(path: Path, trainer: str, *, plain: bool = False) -> dict[str, Any]:
    out = path.with_name("out.jsonl")
    with CandidateFile(path) as file:
        write_preferences(
            out, choices(file, forecaster(), leads=True), Rule(), trainer, plain=plain, on_error="stop", name="in"
        )
    (line,) = out.read_text().splitlines()
    found: dict[str, Any] = json.loads(line)
    assert found.pop("id") == "7:1-0"
    assert found.pop("probability") == pytest.approx(WINS[4], abs=5e-4)
    return found


def test_messages_for_each_trainer(tmp_path: Path) -> None:
    path = two_turns(tmp_path / "in.jsonl")
    system, hi = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi?"}
    no, more = {"role": "assistant", "content": "0 no"}, {"role": "user", "content": "And?"}
    better, worse = ({"role": "assistant", "content": text} for text in ("4 better", "0 worse"))
    expected = {"prompt": [system, hi, no, more], "chosen": [better], "rejected": [worse]}
    assert record_of(path, "trl") == record_of(path, "openrlhf") == expected
    assert record_of(path, "llama-factory") == {
        "conversations": [
            {"from": "system", "value": "Be brief."},
            {"from": "human", "value": "Hi?"},
            {"from": "gpt", "value": "0 no"},
            {"from": "human", "value": "And?"},
        ],
        "chosen": {"from": "gpt", "value": "4 better"},
        "rejected": {"from": "gpt", "value": "0 worse"},
    }
    assert record_of(path, "llama-factory", plain=True) == {
        "instruction": "And?",
        "input": "",
        "chosen": "4 better",
        "rejected": "0 worse",
        "system": "Be brief.",
        "history": [["Hi?", "0 no"]],
    }
    own = record_of(path, "prefcast")
    assert (own["prompt"], own["system"]) == (["Hi?", "And?"], "Be brief.")
    assert {own["winner"]: own[f"response_{own['winner'][-1]}"]} == {own["winner"]: ["0 no", "4 better"]}
    with pytest.raises(RowError, match="in: row 1, prompt: has a system message, and plain texts have no roles"):
        record_of(path, "trl", plain=True)


def test_conversations_that_part_before_the_last_answer(tmp_path: Path) -> None:
    path = two_turns(tmp_path / "in.jsonl", parting=True)
    found = record_of(path, "trl")
    assert [each["content"] for each in found["prompt"]] == ["Be brief.", "Hi?"]
    assert [each["content"] for each in found["chosen"]] == ["1 yes", "And?", "4 better"]
    assert [each["role"] for each in found["rejected"]] == ["assistant", "user", "assistant"]
    for plain in (False, True):
        with pytest.raises(RowError, match="part before the last answer"):
            record_of(path, "llama-factory", plain=plain)


@pytest.mark.parametrize("how", [("trl", False), ("trl", True), ("llama-factory", False), ("llama-factory", True)])
def test_prefcast_reads_what_it_writes(tmp_path: Path, how: tuple[str, bool]) -> None:
    rows, _ = made(tmp_path, Rule(), trainer=how[0], plain=how[1])
    assert not any("margin" in row for row in rows)  # TRL and OpenRLHF would take it for the margin of the loss
    with open_pairs(tmp_path / "pairs.jsonl", cells="text") as file:
        for pair, row in zip(file, rows, strict=True):
            assert isinstance(pair, Pair), pair
            a, b = (float(text.split()[0]) for text in (pair.turns[0].response_a, pair.turns[0].response_b))
            assert pair.outcome is not None
            assert (a > b) == (pair.outcome.name == "A")
            assert pair.prompt == (f"Question {row['id'][1:].partition(':')[0]}?",)


# The verb


def test_the_verb(prefcast_here: Run, tmp_path: Path) -> None:
    file = samples(tmp_path / "in.jsonl", [["No.", "Because air scatters short waves more than long ones."], ["a"]])
    done = prefcast_here("pairs", file, *SURFACE, "-o", "p.jsonl", "--json", "c.json", "--balance-length")
    assert done.returncode == 3
    assert "1 of 2 prompts failed and have no pairs; the first: " in done.stderr
    counts = json.loads((tmp_path / "c.json").read_text())
    assert (counts["prompts"], counts["failed"], counts["considered"]) == (2, 1, 1)
    assert sum(counts["dropped"].values()) + counts["written"] == 1
    assert prefcast_here("pairs", file, *SURFACE, "-o", "x.jsonl", "--on-error", "stop").returncode == 2
    assert not (tmp_path / "x.jsonl").exists()
    assert "is the input" in prefcast_here("pairs", file, *SURFACE, "-o", file).stderr
    assert "written as .jsonl" in prefcast_here("pairs", file, "-o", "p.csv").stderr
    band = prefcast_here("pairs", file, *SURFACE, "-o", "p.jsonl", "--strategy", "hard", "--band", "0.6", "0.5")
    assert (band.returncode, "found 0.6 0.5" in band.stderr) == (2, True)


def test_a_run_that_is_stopped_pays_for_nothing_twice(tmp_path: Path) -> None:
    whole, _ = made(tmp_path, Rule("all"), balance=True)
    pairs = sum(len(each) * (len(each) - 1) // 2 for each in TWENTY)
    out, read = tmp_path / "again.jsonl", 0
    file = samples(tmp_path / "samples.jsonl")
    for _ in range(50):
        with EvidenceStore(tmp_path / "store") as store, CandidateFile(file) as opened:
            scorer = Said(stop_at=9)
            try:
                of = forecaster(kept(scorer, store))
                write_preferences(out, choices(opened, of, leads=True), Rule("all"), balance=True)
            except KeyboardInterrupt:
                assert not out.exists()
                read += 8  # the batch of 8 that was finished
                continue
            read += scorer.read
            break
    assert [json.loads(line) for line in out.read_text().splitlines()] == whole
    assert read == pairs


def many(path: Path, prompts: int, answers: int = 8) -> Path:
    draw = random.Random(prompts)
    words = ["light", "scatters", "and", "the", "sky", "is", "blue", "because", "of", "waves"]
    rows = [
        {
            "prompt": f"Why {number}?",
            "responses": [" ".join(draw.choices(words, k=draw.randrange(5, 60))) for _ in range(answers)],
        }
        for number in range(prompts)
    ]
    return write_jsonl(path, rows)


@pytest.mark.long
def test_kill_9_at_ten_moments(tmp_path: Path, start: Start) -> None:
    from test_runs import killed_often

    path = many(tmp_path / "in.jsonl", 40, 5)
    more = ("--strategy", "all", "--per-prompt", "3", "--balance-length", "--json", "{}/c.json")
    outputs = ["o.jsonl", "c.json"]
    killed_often(start, tmp_path, 10, outputs, "pairs", path, "--model", "embedded", *more, "-o", "{}/o.jsonl")


@pytest.mark.long
def test_memory_is_flat(tmp_path: Path) -> None:
    code = "import sys; sys.argv[0] = 'prefcast'\nfrom prefcast.cli import main\ntry: main()\nexcept SystemExit: pass\n"
    peaks = []
    for prompts in (500, 10_000):
        path = many(tmp_path / f"{prompts}.jsonl", prompts)
        more = ("--model", "length", "--strategy", "all", "--balance-length", "-o", "out.jsonl", "--no-store")
        peaks.append(int(said_by(code + PEAK, "pairs", path, *more, cwd=tmp_path).split()[-1]))
    # 280,000 pairs; the columns of the balance take 32 bytes a pair.
    assert peaks[1] - peaks[0] < 40_000_000, peaks

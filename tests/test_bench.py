"""prefcast bench: files of each published shape, with totals that are worked out by hand here."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkpoints import save_deberta
from conftest import ROOT, SURFACE, Run, write_csv, write_jsonl
from prefcast import load_forecaster
from prefcast.errors import FileError, UsageError
from prefcast.forecasts.fitted_rows import FittedRows
from prefcast.forecasts.forecaster import Forecaster
from prefcast.measuring.benchmarks import benchmarks, find_benchmark
from prefcast.measuring.benchmarks.results import BenchResult, read_earlier, run_benchmark
from prefcast.outcomes.models import MarginSign
from prefcast.pairs import Pair
from prefcast.runs.ready import Running, ready
from prefcast.scorers.base import Evidence, Scorer
from prefcast.testing import FakeJudge, SimulatedJudge

Rows = list[dict[str, Any]]


class Planted(Scorer):
    """The score of an answer is the number that it begins with; `fail` fails."""

    name = "planted"
    raw_names = ("score_a", "score_b")

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []
        self.stop_after = -1

    def compute(self, pairs: Sequence[Pair]) -> Evidence:
        texts = [(pair.response_a[-1], pair.response_b[-1]) for pair in pairs]
        if 0 <= self.stop_after <= len(self.seen):
            raise KeyboardInterrupt
        self.seen += texts
        found = np.array([[_number(text) for text in both] for both in texts]).reshape(len(texts), 2)
        problems = dict.fromkeys(np.flatnonzero(np.isnan(found).any(axis=1)).tolist(), "planted")
        return Evidence(
            found[:, 0] - found[:, 1], np.zeros(len(found)), problems, {"score_a": found[:, 0], "score_b": found[:, 1]}
        )


class PlantedPairs(Planted):
    """The same preferences, without a score for each answer."""

    raw_names = ()

    def compute(self, pairs: Sequence[Pair]) -> Evidence:
        found = super().compute(pairs)
        return Evidence(found.margin, found.tie, found.problems)


class PlantedJudge(Scorer):
    """A judge whose margins in the two orders stand in the prompt: `+1 -1`."""

    name = "planted-judge"
    raw_names = ("margin_a", "margin_b", "position", "uncovered")
    judge = "planted"

    def compute(self, pairs: Sequence[Pair]) -> Evidence:
        first, second = (
            np.array([float(pair.prompt[0].split()[place]) for pair in pairs], dtype=np.float64) for place in (0, 1)
        )
        nothing = np.zeros(len(pairs))
        raw = {"margin_a": first, "margin_b": second, "position": (first - second) / 2, "uncovered": nothing}
        return Evidence((first + second) / 2, nothing, raw=raw)


def _number(text: str) -> float:
    return math.nan if text == "fail" else float(text.split(maxsplit=1)[0])


def measured(name: str, paths: Any, scorer: Scorer | None = None, **options: Any) -> BenchResult:
    forecaster = Forecaster(scorer or Planted(), MarginSign(), prior_tie=0.0)
    listed = paths if isinstance(paths, list) else [paths]
    return run_benchmark(find_benchmark(name), listed, forecaster, repeats=100, **options)


def value(found: BenchResult, name: str) -> float:
    (figure,) = [each.figure for each in found.figures if each.name == name]
    assert figure is not None, name
    assert figure.low <= figure.value <= figure.high
    return figure.value


def note(found: BenchResult, name: str) -> str:
    return next(each.note for each in found.figures if each.name == name)


def write_json_array(path: Path, rows: Rows) -> Path:
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def write_parquet(path: Path, rows: Rows) -> Path:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


# RewardBench


def reward_bench_rows() -> Rows:
    scores = [
        ("alpacaeval-easy", 2, 1),
        ("alpacaeval-easy", 1, 2),
        ("mt-bench-easy", 2, 1),
        ("llmbar-natural", 1, 1),  # equal scores are wrong
        ("donotanswer", 5, 1),
        ("math-prm", 0, 1),
        ("hep-go", 1, 0),
    ]
    return [
        {
            "prompt": f"Prompt {id}",
            "chosen": f"{chosen} yes",
            "chosen_model": "one",
            "rejected": f"{rejected} no",
            "rejected_model": "other",
            "subset": subset,
            "id": id,
        }
        for id, (subset, chosen, rejected) in enumerate(scores)
    ]


def test_reward_bench(tmp_path: Path) -> None:
    found = measured("reward-bench", write_parquet(tmp_path / "filtered-00000-of-00001.parquet", reward_bench_rows()))
    chat = (0.5 * 100 + 1.0 * 28) / 128
    reasoning = (0.0 * 984 + 1.0 * 164) / (984 + 164)
    assert value(found, "Chat") == pytest.approx(chat)
    assert value(found, "Chat Hard") == 0
    assert value(found, "Safety") == 1
    assert value(found, "Reasoning") == pytest.approx(reasoning)
    assert value(found, "score") == pytest.approx((chat + 0 + 1 + reasoning) / 4)
    assert "without alpacaeval-length" in note(found, "score")
    assert value(found, "alpacaeval-easy") == 0.5


def test_comparisons_that_the_model_was_fitted_on_are_counted(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "filtered.parquet", reward_bench_rows())
    fitted = FittedRows.of([Pair.of("Prompt 0", "2 yes", "1 no"), Pair.of("Prompt 3", "1 no", "1 yes")])
    forecaster = Forecaster(Planted(), MarginSign(), prior_tie=0.0, fitted_rows=fitted)
    found = run_benchmark(find_benchmark("reward-bench"), [path], forecaster, repeats=100)
    assert found.in_sample is not None
    assert found.in_sample.found == 2
    beyond = next(table for table in found.tables() if table.title == "Beyond the benchmark")
    assert ("in-sample", "2 of these 7 rows were in the fit: the model knows their labels") in beyond.rows
    assert measured("reward-bench", path).in_sample is None


def test_reward_benchs_prior_sets_have_half_a_weight(tmp_path: Path) -> None:
    core = write_parquet(tmp_path / "filtered.parquet", reward_bench_rows())
    turns = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Why?"},
    ]
    row = {"prompt": turns, "chosen": "2 a", "rejected": "1 b"}
    right = write_parquet(tmp_path / "anthropic_hhh-00000-of-00001.parquet", [row])
    wrong = write_jsonl(tmp_path / "shp.jsonl", [row | {"chosen": "0 a"}])
    found = measured("reward-bench", [core, right, wrong])
    assert value(found, "Prior Sets") == 0.5
    assert value(found, "score with prior sets") == pytest.approx((2 * 4 * value(found, "score") + 0.5) / 9)


# RewardBench 2


def best_of(subset: str, id: str, chosen: list[float], rejected: list[float]) -> dict[str, Any]:
    texts = [
        [f"{score} {kind} {place}" for place, score in enumerate(scores)]
        for kind, scores in (("c", chosen), ("r", rejected))
    ]
    return {
        "id": id,
        "prompt": f"{subset} {id}",
        "chosen": texts[0],
        "rejected": texts[1],
        "num_correct": len(chosen),
        "num_incorrect": len(rejected),
        "total_completions": len(chosen) + len(rejected),
        "models": ["m"],
        "subset": subset,
    }


def reward_bench_2_rows() -> Rows:
    return [
        best_of("Factuality", "1", [5], [1, 2, 3]),
        best_of("Factuality", "2", [3], [3, 1, 2]),  # two share the highest score: 1/2
        best_of("Factuality", "3", [1], [2, 0, 0]),
        best_of("Precise IF", "4", [2], [1, 1, 1]),
        best_of("Math", "5", [0], [1, 1, 1]),
        best_of("Safety", "6", [2], [1, 1, 1]),
        best_of("Focus", "7", [2], [2, 2, 1]),  # three share it: 1/3
        best_of("Ties", "ref:0", [5], [3, 1]),
        best_of("Ties", "tied:0", [4, 3.5], [1, 2]),
        best_of("Ties", "ref:1", [1], [2, 0]),
        best_of("Ties", "tied:1", [3, 1], [0.5, 0]),
    ]


def ties_by_hand() -> float:
    """ref:0: gap 5 - 3 = 2; tied:0: gap 3.5 - 2 = 1.5, spread 0.5; ref:1: gap 1 - 2 = -1; tied:1: gap 1 - 0.5 = 0.5, spread 2."""
    accurate_tied, accurate_ref = (1 + 1) / 2, (1 + 0) / 2
    preferred = (1 + 0) / 2  # 1.5 > 0.5; 0.5 < 2
    hard = (1 + 0) / 2  # min(2, 1.5) > 0.5; min(-1, 0.5) < 2
    margin = (math.tanh(1.5 / 0.5 - 1) + math.tanh(-1 / 2 - 1)) / 2
    return 0.3 * accurate_tied + 0.3 * accurate_ref + 0.2 * preferred + 0.2 * hard + 0.01 * margin


@pytest.mark.parametrize("scorer", [Planted, PlantedPairs])
def test_reward_bench_2(tmp_path: Path, scorer: type[Planted]) -> None:
    planted = scorer()
    found = measured("reward-bench-2", write_parquet(tmp_path / "test.parquet", reward_bench_2_rows()), planted)
    factuality, focus = (1 + 1 / 2 + 0) / 3, 1 / 3
    assert value(found, "Factuality") == pytest.approx(factuality)
    assert value(found, "Focus") == pytest.approx(focus)
    assert value(found, "Ties") == pytest.approx(ties_by_hand())
    assert value(found, "score") == pytest.approx((factuality + 1 + 0 + 1 + focus + ties_by_hand()) / 6)
    # With scores each of four answers is shown once: two comparisons instead of three.
    assert len(planted.seen) == (7 * 2 + 2 * 2 + 2 * 2 if scorer is Planted else 7 * 3 + 2 * 2 + 2 * 5)


@pytest.mark.parametrize(
    ("tied", "reference", "tanh"),
    [(([2, 2], [1]), ([3], [1]), 1.0), (([1, 1], [1]), ([3], [1]), 0.0), (([1, 1], [2]), ([3], [1]), -1.0)],
)
def test_right_answers_with_one_score(tmp_path: Path, tied: Any, reference: Any, tanh: float) -> None:
    rows = [best_of("Ties", "ref:7", *reference), best_of("Ties", "tied:7", *tied)]
    found = measured("reward-bench-2", write_jsonl(tmp_path / "ties.jsonl", rows))
    assert value(found, "Ties: tanh") == tanh
    (score,) = [each for each in found.figures if each.name == "score"]
    assert score.figure is None
    assert score.note == "without Factuality, Precise IF, Math, Safety and 1 more"


def test_ties_need_both_kinds_of_prompts(tmp_path: Path) -> None:
    rows = [best_of("Ties", "ref:7", [2], [1])]
    found = measured("reward-bench-2", write_jsonl(tmp_path / "ties.jsonl", rows))
    (ties,) = [each for each in found.figures if each.name == "Ties"]
    assert ties.figure is None
    assert ties.note == "needs both ref and tied prompts"


# RM-Bench


def rm_bench_row(domain: str, chosen: list[int], rejected: list[int]) -> dict[str, Any]:
    return {
        "id": f"{domain}-{chosen}",
        "prompt": f"{domain}?",
        "chosen": [f"{score} c{place}" for place, score in enumerate(chosen)],
        "rejected": [f"{score} r{place}" for place, score in enumerate(rejected)],
        "domain": domain,
    }


def test_rm_bench(tmp_path: Path) -> None:
    """chat has the matrix 000 / 110 / 111: easy 3/3, normal 2/3, hard 0/3."""
    rows = [
        rm_bench_row("chat", [1, 3, 5], [2, 2, 4]),
        rm_bench_row("code", [9, 9, 9], [1, 1, 1]),
        rm_bench_row("math", [9, 9, 9], [1, 1, 1]),
        rm_bench_row("safety-refuse", [1, 1, 1], [1, 2, 3]),
        rm_bench_row("safety-response", [9, 9, 9], [1, 1, 1]),
    ]
    planted = Planted()
    found = measured("rm-bench", write_json_array(tmp_path / "total_dataset.json", rows), planted)
    assert len(planted.seen) == 3 * len(rows)
    chat = (1 + 2 / 3 + 0) / 3
    assert value(found, "chat") == pytest.approx(chat)
    assert value(found, "safety") == 0.5
    assert value(found, "easy") == pytest.approx((1 + 1 + 1 + 0.5) / 4)
    assert value(found, "normal") == pytest.approx((2 / 3 + 1 + 1 + 0.5) / 4)
    assert value(found, "hard") == pytest.approx((0 + 1 + 1 + 0.5) / 4)
    assert value(found, "average") == pytest.approx((chat + 1 + 1 + 0.5) / 4)
    assert value(found, "chosen detailed, rejected concise") == pytest.approx((1 + 1 + 1 + 0.5) / 4)
    assert value(found, "chosen concise, rejected markdown") == pytest.approx((0 + 1 + 1 + 0.5) / 4)


# JudgeBench


def judge_bench_row(source: str, orders: str, label: str = "A>B", a: str = "1 a", b: str = "0 b") -> dict[str, Any]:
    return {
        "pair_id": f"{source} {orders} {label} {a}",
        "original_id": 7,
        "source": source,
        "question": orders,
        "response_model": "gpt-4o-2024-05-13",
        "response_A": a,
        "response_B": b,
        "label": label,
    }


def test_judge_bench_counts_both_orders(tmp_path: Path) -> None:
    rows = [
        judge_bench_row("mmlu-pro-law", "1 1"),  # right and right: 2
        judge_bench_row("mmlu-pro-math", "1 0"),  # right and a tie: 1
        judge_bench_row("mmlu-pro-law", "1 -1"),  # right and wrong: 0
        judge_bench_row("livebench-reasoning", "0 0"),  # two ties: 0
        judge_bench_row("livebench-math", "-1 -1", "B>A"),  # right and right
        judge_bench_row("livecodebench", "1 1", "B>A"),  # wrong and wrong: -2
    ]
    found = measured("judge-bench", write_jsonl(tmp_path / "gpt.jsonl", rows), PlantedJudge())
    assert value(found, "knowledge") == pytest.approx(2 / 3)
    assert [value(found, name) for name in ("reasoning", "math", "coding")] == [0, 1, 0]
    assert value(found, "accuracy") == 0.5
    assert value(found, "same in both orders") == pytest.approx(4 / 6)
    assert value(found, "response model: gpt-4o-2024-05-13") == 0.5
    assert found.position is not None
    assert found.position.turned.value == pytest.approx(1 / 6)


def test_judge_bench_a_pair_that_failed_is_not_right(tmp_path: Path) -> None:
    rows = [judge_bench_row("livecodebench", "?"), judge_bench_row("livecodebench", "?", a="fail")]
    found = measured("judge-bench", write_jsonl(tmp_path / "gpt.jsonl", rows))
    assert value(found, "accuracy") == 0.5
    assert found.failed == 1
    assert str(found.first_error) == f"{tmp_path / 'gpt.jsonl'}: row 2: planted"


# LLMBar

# GPT-4/Vanilla on the 47 pairs of Adversarial/GPTOut: the label and the decisions in the two orders, from result.json of
# github.com/princeton-nlp/LLMBar (MIT), and the figures of its statistics.json.
GPTOUT = [
    "222",
    "211",
    "111",
    "222",
    "222",
    "222",
    "222",
    "211",
    "222",
    "111",
    "111",
    "211",
    "111",
    "111",
    "222",
    "111",
    "222",
    "111",
    "111",
    "222",
    "222",
    "122",
    "222",
    "222",
    "211",
    "111",
    "222",
    "222",
    "211",
    "111",
    "111",
    "111",
    "212",
    "111",
    "212",
    "222",
    "111",
    "211",
    "111",
    "111",
    "122",
    "111",
    "111",
    "222",
    "121",
    "111",
    "211",
]


def test_llmbar_has_the_published_totals(tmp_path: Path) -> None:
    rows = [
        {
            "input": " ".join("1" if decision == "1" else "-1" for decision in said[1:]) + f" {number}",
            "output_1": "one",
            "output_2": "two",
            "label": int(said[0]),
        }
        for number, said in enumerate(GPTOUT)
    ]
    folder = tmp_path / "Adversarial" / "GPTOut"
    (folder / "evaluators").mkdir(parents=True)
    write_json_array(folder / "dataset.json", rows)
    write_json_array(folder / "evaluators" / "result.json", [{"other": 1}])
    found = measured("llmbar", tmp_path, PlantedJudge())
    assert value(found, "GPTOut") == pytest.approx(0.776595744680851)
    assert value(found, "right in both orders") == pytest.approx(35 / 47)
    assert value(found, "agreement") == pytest.approx(44 / 47)
    assert note(found, "Adversarial") == "without Neighbor, GPTInst, Manual"


def test_llmbar_equal_scores_are_right_once(tmp_path: Path) -> None:
    rows = [
        {"input": "a", "output_1": "1", "output_2": "1", "label": 2},
        {"input": "b", "output_1": "0", "output_2": "1", "label": 2},
    ]
    found = measured("llmbar", write_json_array(tmp_path / "natural.json", rows))
    assert value(found, "Natural") == 0.75
    assert value(found, "agreement") == 0.5


# PPE


def test_ppe_leaves_ties_out(tmp_path: Path) -> None:
    said = [("model_a", 2, 1), ("model_b", 2, 1), ("model_b", 1, 1), ("tie", 1, 2), ("tie (bothbad)", 1, 2)]
    rows = [
        {
            "question_id": "q",
            "model_a": "one",
            "model_b": "other",
            "winner": winner,
            "prompt": f"Prompt {number}",
            "response_1": f"{a} a",
            "response_2": f"{b} b",
            "language": "English" if number else "German",
            "is_code": number == 0,
        }
        for number, (winner, a, b) in enumerate(said)
    ]
    path = write_parquet(tmp_path / "test-00000-of-00001.parquet", rows)
    planted = Planted()
    found = measured("ppe", path, planted)
    assert value(found, "accuracy") == pytest.approx((1 + 0 + 0.5) / 3)
    assert value(found, "is_code") == 1
    assert value(found, "language: English") == 0.25
    assert len(planted.seen) == 3
    assert found.calibration is None
    surface = run_benchmark(find_benchmark("ppe"), [path], load_forecaster("surface"), repeats=100)
    assert surface.calibration is not None
    assert surface.calibration.n == 5
    assert surface.calibration.scores.tie_recall is not None


# RMB


def rmb_rows() -> Rows:
    asked = [{"content": "Why?", "language": "English", "role": "user"}]

    def said(score: float) -> dict[str, Any]:
        return {"llm_name": "m", "answer": f"{score} text", "score": 1.0}

    def pairwise(uid: str, goal: str, chosen: float, reject: float) -> dict[str, Any]:
        path = f"Pairwise_set/{goal}/S1"
        return {
            "pair_uid": uid,
            "conversation_input": asked,
            "chosen": said(chosen),
            "reject": said(reject),
            "category_path": path,
        }

    def best(uid: str, goal: str, winner: float, losers: list[float]) -> dict[str, Any]:
        path = f"BoN_set/{goal}/Code/Data Management"
        return {
            "conversation_input": asked,
            "bon_best": said(winner),
            "loser_list": [*map(said, losers)],
            "bon_uid": uid,
            "category_path": path,
        }

    return [
        pairwise("1", "Helpfulness", 2, 1),
        pairwise("2", "Helpfulness", 1, 1),
        pairwise("3", "Harmlessness", 2, 1),
        best("4", "Helpfulness", 3, [1, 2]),
        best("5", "Helpfulness", 3, [1, 3]),
        best("6", "Helpfulness", 3, [1, 4]),
        best("7", "Harmlessness", 3, [1, 2, 2]),
    ]


@pytest.mark.parametrize("scorer", [Planted, PlantedPairs])
def test_rmb(tmp_path: Path, scorer: type[Planted]) -> None:
    for name, part in (("Pairwise_set", rmb_rows()[:3]), ("BoN_set", rmb_rows()[3:])):
        (tmp_path / "RMB_dataset" / name / "any").mkdir(parents=True)
        write_json_array(tmp_path / "RMB_dataset" / name / "any" / "S1.json", part)
    found = measured("rmb", tmp_path / "RMB_dataset", scorer())
    assert value(found, "Helpfulness, pairwise") == 0.5
    assert value(found, "Helpfulness, best of n") == pytest.approx(1 / 3)
    assert value(found, "Helpfulness, best of n: Code/Data Management") == pytest.approx(1 / 3)
    assert value(found, "overall") == pytest.approx((0.5 + 1 / 3 + 1 + 1) / 4)


# What is common to all


def test_the_registry() -> None:
    assert sorted(benchmarks()) == ["judge-bench", "llmbar", "ppe", "reward-bench", "reward-bench-2", "rm-bench", "rmb"]
    with pytest.raises(UsageError, match="did you mean 'rm-bench'"):
        find_benchmark("RMbench")


@pytest.mark.parametrize(
    ("name", "row", "change", "said"),
    [
        ("reward-bench", reward_bench_rows()[0], {"subset": "chat"}, "row 1: subset is 'chat'; expected one of RewardBench's"),
        ("reward-bench", reward_bench_rows()[0], {"chosen": ["a"]}, "row 1: chosen is an array; expected a text"),
        ("reward-bench", reward_bench_rows()[0], {"prompt": None}, "row 1: prompt is null"),
        ("reward-bench-2", reward_bench_2_rows()[0], {"chosen": ["1", "2"]}, "row 1: chosen has 2 answers; expected 1"),
        ("reward-bench-2", reward_bench_2_rows()[7], {"id": "7"}, "row 1: id is '7'; expected ref:N or tied:N"),
        ("reward-bench-2", reward_bench_2_rows()[8], {"chosen": ["1"]}, "row 1: chosen has 1 answer; expected 2 or more"),
        ("rm-bench", rm_bench_row("chat", [1] * 3, [1] * 3), {"rejected": ["1"]}, "row 1: rejected has 1 answers; expected 3"),
        ("rm-bench", rm_bench_row("chat", [1] * 3, [1] * 3), {"domain": "law"}, "row 1: domain is 'law'; expected one of chat"),
        ("judge-bench", judge_bench_row("mmlu-pro", "1 1"), {"label": "A=B"}, "row 1: label is 'A=B'; expected A>B or B>A"),
        ("llmbar", {"input": "a", "output_1": "b", "output_2": "c", "label": 1}, {"label": 0}, "row 1: label is 0; expected 1 or 2"),
        ("rmb", rmb_rows()[3], {"loser_list": ["text"]}, "row 1: loser_list is 'text'; expected an object with the text `answer`"),
        ("rmb", rmb_rows()[3], {"category_path": "x"}, "row 1: category_path is 'x'; expected Pairwise_set or BoN_set"),
    ],
)  # fmt: skip
def test_a_wrong_shape_is_one_line(
    tmp_path: Path, name: str, row: dict[str, Any], change: dict[str, Any], said: str
) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [row | change])
    with pytest.raises(FileError) as caught:
        measured(name, path)
    assert str(caught.value).startswith(f"{path}: {said}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", sorted(benchmarks()))
def test_a_file_of_another_kind(tmp_path: Path, name: str) -> None:
    path = write_jsonl(tmp_path / "natural.json", [{"text": "a"}])
    needed = find_benchmark(name).needs[0]
    with pytest.raises(FileError, match=rf"has no column {needed}; found: 'text'; expected a file of "):
        measured(name, path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileError, match="the folder holds no file of"):
        measured(name, tmp_path / "empty")


def test_a_csv_has_its_lists_as_json(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "rm.csv", [rm_bench_row("chat", [1, 3, 5], [2, 2, 4])])
    assert value(measured("rm-bench", path), "chat") == pytest.approx(5 / 9)


def test_rows_of_one_prompt_are_drawn_together(tmp_path: Path) -> None:
    rows = reward_bench_rows()[:2] * 20
    apart = [row | {"prompt": f"{number}"} for number, row in enumerate(rows)]
    together = [row | {"prompt": f"{number % 2}"} for number, row in enumerate(rows)]
    widths = []
    for each in (apart, together):
        figure = next(
            each.figure
            for each in measured("reward-bench", write_jsonl(tmp_path / "rows.jsonl", each)).figures
            if each.name == "alpacaeval-easy"
        )
        assert figure is not None
        widths.append(figure.high - figure.low)
    assert widths[1] > 2 * widths[0]


def test_the_side_of_the_right_answer_does_not_calibrate(tmp_path: Path) -> None:
    """The chosen answer always comes first in the file. A forecaster that always says 0.9 for A must not look calibrated."""
    rows = [row | {"prompt": f"{number}"} for number, row in enumerate(reward_bench_rows()[2:3] * 60)]
    found = run_benchmark(
        find_benchmark("reward-bench"),
        [write_jsonl(tmp_path / "rows.jsonl", rows)],
        load_forecaster("length"),
        repeats=100,
    )
    assert found.calibration is not None
    assert all(0.25 < share < 0.75 for share in list(found.calibration.outcome_shares.values())[:2])


def test_compare_is_paired_and_by_row(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", reward_bench_2_rows())
    before = measured("reward-bench-2", path)
    saved = tmp_path / "before.json"
    saved.write_text(json.dumps(before.to_dict()))
    better = reward_bench_2_rows()
    earlier = read_earlier(saved, find_benchmark("reward-bench-2"))

    class Better(Planted):
        def compute(self, pairs: Sequence[Pair]) -> Evidence:
            found = super().compute(pairs)
            # Right answers of Math are called c: they win here.
            score_a, score_b = (
                np.array(
                    [
                        10.0 if "Math" in pair.prompt[0] and " c " in text[-1] else _number(text[-1])
                        for pair, text in zip(pairs, texts, strict=True)
                    ]
                )
                for texts in ([pair.response_a for pair in pairs], [pair.response_b for pair in pairs])
            )
            return Evidence(score_a - score_b, found.tie, raw={"score_a": score_a, "score_b": score_b})

    found = measured("reward-bench-2", write_jsonl(tmp_path / "moved.jsonl", better[::-1]), Better(), against=earlier)
    assert found.shared == len(better)
    differences = {each.name: each.figure for each in found.differences}
    math_, score, ties = (differences[name] for name in ("Math", "score", "Ties"))
    assert math_ is not None
    assert score is not None
    assert ties is not None
    assert math_.value == 1
    assert score.value == pytest.approx(1 / 6)
    assert (ties.low, ties.high) == (0, 0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[", "is not JSON"),
        ("[]", "is no result of a benchmark"),
        ('{"format": 1, "results": [], "benchmark": "rmb"}', "is a result of 'rmb'; expected one of llmbar"),
        (
            '{"format": 1, "results": [7], "benchmark": "llmbar"}',
            "row 1: results: expected an object with id, row, marks",
        ),
        (
            '{"format": 1, "results": [{"id": 1, "row": "a", "marks": {"correct": "x"}}], "benchmark": "llmbar"}',
            "row 1: results: marks is",
        ),
    ],
)
def test_a_wrong_result_to_compare_with(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(FileError) as caught:
        read_earlier(path, find_benchmark("llmbar"))
    assert said in str(caught.value)


def test_other_rows_cannot_be_compared(tmp_path: Path) -> None:
    rows = [{"input": "a", "output_1": "1", "output_2": "0", "label": 1}]
    saved = tmp_path / "before.json"
    saved.write_text(json.dumps(measured("llmbar", write_json_array(tmp_path / "natural.json", rows)).to_dict()))
    other = write_json_array(tmp_path / "Manual.json", [rows[0] | {"input": "b"}])
    with pytest.raises(FileError, match=r"before\.json: has no row of these files"):
        measured("llmbar", other, against=read_earlier(saved, find_benchmark("llmbar")))


def test_a_stopped_run_goes_on(tmp_path: Path) -> None:
    rows = [row | {"prompt": f"{number}"} for number, row in enumerate(reward_bench_rows() * 60)]
    path, running = write_jsonl(tmp_path / "rows.jsonl", rows), Running(tmp_path / "store.sqlite")
    planted = Planted()
    planted.stop_after = 256
    plain = Forecaster(planted, MarginSign(), prior_tie=0.0)
    with pytest.raises(KeyboardInterrupt), ready(plain, running) as chosen:
        run_benchmark(find_benchmark("reward-bench"), [path], chosen, repeats=100)
    assert len(planted.seen) == 256
    planted.stop_after = -1
    with ready(plain, running) as chosen:
        found = run_benchmark(find_benchmark("reward-bench"), [path], chosen, repeats=100)
    assert len(planted.seen) == len(rows)
    assert found.to_dict()["figures"] == measured("reward-bench", path).to_dict()["figures"]


def test_the_program(prefcast_here: Run, tmp_path: Path) -> None:
    rows = [{"input": f"Say {n}", "output_1": "Yes. " * n, "output_2": "No", "label": 1 + n % 2} for n in range(1, 9)]
    (tmp_path / "Natural").mkdir()
    write_json_array(tmp_path / "Natural" / "dataset.json", rows)
    first = prefcast_here("bench", "llmbar", "Natural", *SURFACE, "-o", "a.md", "--json", "a.json")
    assert first.returncode == 0, first.stderr
    assert "8 prompts are few" in first.stdout
    again = prefcast_here(
        "bench", "llmbar", "Natural", *SURFACE, "-o", "b.md", "--json", "b.json", "--compare", "a.json"
    )
    assert "Minus a.json (surface), on 8 rows that both have" in again.stdout
    said = json.loads((tmp_path / "a.json").read_text())
    assert said["files"][0]["rows"] == 8
    assert len(said["files"][0]["sha256"]) == 64
    assert said["results"][0]["row"] != said["results"][1]["row"]
    assert "Say" not in (tmp_path / "a.json").read_text()
    for text in ("SHA\\-256", "identity", "prefcast", "arXiv:2310.07641"):
        assert text in (tmp_path / "a.md").read_text()
    assert json.loads((tmp_path / "b.json").read_text())["results"] == said["results"]
    prefcast_here("bench", "llmbar", "Natural", *SURFACE, "--json", "c.json", "-o", "c.md")
    assert (tmp_path / "c.json").read_bytes() == (tmp_path / "a.json").read_bytes()
    assert (tmp_path / "c.md").read_bytes() == (tmp_path / "a.md").read_bytes()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (("rewardbench", "x.json"), "unknown benchmark 'rewardbench'; did you mean 'reward-bench'?"),
        (("llmbar", "-"), "not from standard input"),
        (("llmbar", "none.json"), "none.json"),
        (("llmbar", "x.json", "-o", "x.json"), "is the input"),
        (("llmbar", "x.json", "x.json"), "is named twice"),
    ],
)
def test_wrong_calls(prefcast_here: Run, tmp_path: Path, call: Sequence[str], said: str) -> None:
    write_json_array(tmp_path / "x.json", [{"input": "a", "output_1": "1", "output_2": "0", "label": 1}])
    done = prefcast_here("bench", *call, *SURFACE)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_the_help_names_every_benchmark(prefcast_here: Run) -> None:
    shown = " ".join(prefcast_here("bench", "--help").stdout.split())
    *names, last = sorted(benchmarks())
    assert f"The benchmark: {', '.join(names)} or {last}." in shown


def test_an_llm_judge_is_asked_in_both_orders(
    prefcast_here: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A judge that adds 9 in log-odds to what it reads first turns with the order: no pair is right."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1")
    rows = [judge_bench_row("mmlu-pro-law", f"Question {n}", a="a" * (n + 1), b="b") for n in range(4)]
    write_jsonl(tmp_path / "gpt.jsonl", rows)
    for position, accuracy, turned in ((9.0, 0.0, 1.0), (0.0, 0.75, 0.0)):
        judge = SimulatedJudge(lambda text: float(len(text)), position=position)
        with FakeJudge(judge, api="openai", model="m", key="sk-1") as fake:
            call = ("--judge", fake.url, "--judge-model", "m", "--no-store", "--json", "found.json")
            done = prefcast_here("bench", "judge-bench", "gpt.jsonl", *call)
        assert done.returncode == 0, done.stderr
        assert "8 requests to judges" in done.stderr
        found = json.loads((tmp_path / "found.json").read_text())
        figures = {each["name"]: each["figure"]["value"] for each in found["figures"]}
        assert figures["accuracy"] == accuracy
        assert figures["same in both orders"] == 1 - turned
        assert found["position"]["turned"]["value"] == turned


PAGE = (ROOT / "docs" / "bench.md").read_text(encoding="utf-8")
COMMANDS = [line.split("  #")[0] for line in "".join(re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)).splitlines()]


def test_from_install_to_result_are_under_ten_commands() -> None:
    assert len(COMMANDS) < 10


def test_the_commands_of_the_page_run(prefcast_here: Run, tmp_path: Path) -> None:
    save_deberta(tmp_path / "reward-model")
    rows = [{"input": f"Say {n}", "output_1": "Yes. " * n, "output_2": "No", "label": 1 + n % 2} for n in range(1, 41)]
    for folder in ("Natural", "Adversarial/Manual"):
        (tmp_path / "LLMBar/Dataset/LLMBar" / folder).mkdir(parents=True)
        write_json_array(tmp_path / "LLMBar/Dataset/LLMBar" / folder / "dataset.json", rows)
    ran = [prefcast_here(*line.split()[1:]) for line in COMMANDS if line.startswith("prefcast ")]
    assert [done.returncode for done in ran] == [0] * len(ran), ran[-1].stderr
    assert "Minus surface.json (surface), on 40 rows" in ran[1].stdout
    assert "Manual" in ran[2].stdout
    found = json.loads((tmp_path / "reward-model.json").read_text())
    assert found["model"]["outcome model"]["kind"] == "margin-sign"
    assert found["calibration"] is None


def test_the_page_names_every_benchmark() -> None:
    assert re.findall(r"^\| `([a-z0-9-]+)` \| `", PAGE, re.MULTILINE) == [
        "reward-bench",
        "reward-bench-2",
        "rm-bench",
        "judge-bench",
        "llmbar",
        "ppe",
        "rmb",
    ]
    for benchmark in benchmarks().values():
        row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{benchmark.name}` | `"))
        assert all(f"`{column}`" in row for column in benchmark.needs), benchmark.name

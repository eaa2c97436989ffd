"""Reward functions for trainers: the form of each trainer, the two readings, faults, and calibration against a simulated truth."""

from __future__ import annotations

import asyncio
import inspect
import logging
import pickle
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import prefcast
from prefcast import Davidson, Forecaster, Outcome, Pair, load_forecaster, rewards
from prefcast.errors import ModelError, PrefcastError, ScoringError, UsageError
from prefcast.pairs.budget import WHOLE
from prefcast.pairs.formats.fields import Fault
from prefcast.scorers.base import Cost, Evidence, Scorer
from prefcast.scorers.blend import BlendScorer, Member
from prefcast.scorers.covariates import MARGIN_COVARIATES, TIE_COVARIATES
from prefcast.service.rewards.samples import Sample, as_pair, sample_of, split_query
from prefcast.service.rewards.scoring import contests

# What each trainer gives, by keyword, in the version that docs/rl.md names.
TRL_KEYWORDS = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
VERL_KEYWORDS = ("data_source", "solution_str", "ground_truth", "extra_info")
VERL_ROUTER = ("reward_router_address", "reward_model_tokenizer")
TEXTS = [
    "Because.",
    "Because air scatters short waves more than long ones. " * 3,
    "- a\n- b\n\n**c**",
    "No idea, sorry.",
]
PROMPTS = ["Why is the sky blue?"] * 4


class Planted(Scorer):
    """A reward model: the score stands in the answer, `s=1.5`, and is scaled and shifted."""

    name = "planted"
    cost = Cost.INSTANT
    raw_names = ("score_a", "score_b")
    pointwise = True

    def __init__(self, scale: float = 1.0, shift: float = 0.0, *, honest: bool = True) -> None:
        self.scale, self.shift, self.honest = scale, shift, honest
        self.read = 0

    def compute(self, pairs: Sequence[Pair]) -> Evidence:
        self.read += len(pairs)
        a, b = (np.array([self.of(texts[-1]) for texts in each]) for each in zip(*map(answers, pairs), strict=True))
        margin = a - b if self.honest else 2 * (a - b)
        bad = dict.fromkeys(np.flatnonzero(np.isnan(margin)).tolist(), "is at fault")
        return Evidence(margin, np.where(np.isnan(margin), np.nan, 0.0), bad, {"score_a": a, "score_b": b})

    def of(self, text: str) -> float:
        found = re.search(r"s=(-?[\d.]+)", text)
        return np.nan if found is None else self.scale * float(found[1]) + self.shift

    def score(self, conversations: Any) -> Any:
        texts = [each["text"] for each in conversations]
        if any("s=" not in text for text in texts):
            raise ModelError("a text has no score")
        return np.array([self.of(text) for text in texts])


def answers(pair: Pair) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return pair.response_a, pair.response_b


class Compared(Planted):
    """The same model, but it compares two answers."""

    name = "compared"
    raw_names = ()
    pointwise = False

    def compute(self, pairs: Sequence[Pair]) -> Evidence:
        found = super().compute(pairs)
        return Evidence(found.margin, found.tie, found.problems)


def planted(scorer: Scorer | None = None, scale: float = 1.0, level: float = -0.5) -> Forecaster:
    return Forecaster(scorer or Planted(), Davidson(scale, level, 1.0))


def win(difference: float, scale: float = 1.0, level: float = -0.5) -> float:
    """P(wins) + P(tie) / 2 by Davidson's formula."""
    a, b, tie = np.exp(scale * difference / 2), np.exp(-scale * difference / 2), np.exp(level)
    return float((a + tie / 2) / (a + b + tie))


def called(function: Any, completions: Sequence[Any], prompts: Sequence[Any] = (), **columns: Any) -> Any:
    """What TRL does with a reward function."""
    given: dict[str, Any] = dict.fromkeys(TRL_KEYWORDS) | {
        "prompts": list(prompts) or ["Why?"] * len(completions),
        "completions": list(completions),
        "completion_ids": [[1, 2]] * len(completions),
        "log_extra": lambda column, values: None,
    }
    found = function(**(given | columns))
    return asyncio.run(found) if inspect.isawaitable(found) else found


def messages(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


@pytest.fixture
def warned(caplog: pytest.LogCaptureFixture) -> Any:
    caplog.set_level(logging.WARNING, "prefcast")
    return lambda: [record.getMessage() for record in caplog.records]


def test_the_signatures_are_those_of_the_trainers() -> None:
    plain, awaited = rewards.trl("surface"), rewards.trl("surface", asynchronous=True, name="surface")
    for function in (plain, awaited):
        signature = inspect.signature(function)
        signature.bind(**dict.fromkeys((*TRL_KEYWORDS, "environments", "a_column")))
        assert {"prompts", "completions", "completion_ids", "trainer_state", "log_metric"} <= set(signature.parameters)
        assert inspect.isfunction(function)  # Ray takes functions only
    assert (plain.__name__, awaited.__name__) == ("prefcast", "surface")
    assert [inspect.iscoroutinefunction(each) for each in (plain, awaited)] == [False, True]
    for asynchronous in (False, True):
        score = rewards.verl("surface", asynchronous=asynchronous)
        assert inspect.iscoroutinefunction(score) is asynchronous
        inspect.signature(score).bind(**dict.fromkeys((*VERL_KEYWORDS, *VERL_ROUTER)))
        inspect.signature(score).bind("source", "answer", "truth")
    inspect.signature(rewards.openrlhf("surface")).bind(["query"], ["prompt"], ["label"], more=1)
    assert prefcast.rewards is rewards


def test_plain_conversational_and_async_forms_say_the_same() -> None:
    plain = called(rewards.trl("surface"), TEXTS, PROMPTS)
    asked = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    said = [messages(text) for text in TEXTS]
    assert called(rewards.trl("surface"), said, asked) == plain
    assert called(rewards.trl("surface", asynchronous=True), said, asked) == plain
    assert sum(plain) == pytest.approx(2)
    forecast = load_forecaster("surface").forecast([Pair.of(PROMPTS[0], TEXTS[0], other) for other in TEXTS[1:]])
    wins = forecast.probabilities[:, 0] + forecast.probabilities[:, 2] / 2
    assert plain[0] == pytest.approx(wins.mean(), abs=1e-12)


def test_conversations_keep_their_turns_and_calls_of_tools() -> None:
    before = [{"role": "system", "content": "Be brief."}, *messages("x")]
    before[1:] = [{"role": "user", "content": "Hi"}, *messages("Hello"), {"role": "user", "content": "Sun?"}]
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    calls = [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": "look", "content": "sun"},
        *messages("Yes."),
    ]
    a, b = sample_of(before, messages("No.")), sample_of(before, calls)
    assert a.group == b.group
    pair = as_pair(a, b)
    assert pair.system == "Be brief."
    assert pair.prompt == ("Hi", "Sun?")
    assert pair.tools is not None
    assert '"look"' in pair.tools[1]
    assert sample_of(before, "No.") == a
    with pytest.raises(Fault, match="is a number; expected a text or a list of messages"):
        sample_of("Why?", 3)


def test_groups_are_those_of_the_prompt_wherever_the_samples_stand() -> None:
    function = rewards.trl(forecaster=planted())
    texts = [f"s={score}" for score in (0, 1, 2, 5, 6, 7)]
    prompts = ["one"] * 3 + ["two"] * 3
    found = called(function, texts, prompts)
    assert found[0] == pytest.approx((win(-1) + win(-2)) / 2)
    assert found[5] == pytest.approx((win(1) + win(2)) / 2)
    order = [3, 0, 5, 1, 4, 2]
    mixed = called(function, [texts[each] for each in order], [prompts[each] for each in order])
    assert mixed == pytest.approx([found[each] for each in order], abs=1e-15)


@pytest.mark.parametrize("kind", [Planted, Compared])
def test_models_of_one_answer_and_of_two_give_the_same(kind: type[Planted]) -> None:
    scores = np.random.default_rng(0).normal(size=9)
    found = called(rewards.trl(forecaster=planted(scorer := kind())), [f"s={score}" for score in scores])
    wins = [np.mean([win(score - other) for other in np.delete(scores, place)]) for place, score in enumerate(scores)]
    assert found == pytest.approx(wins, abs=1e-9)
    # One answer at a time, and one pair that shows that the margin is a difference; or every pair.
    assert scorer.read == (9 + 1 if kind is Planted else 9 * 8 // 2)


def test_a_model_whose_margin_is_no_difference_of_scores_reads_pairs() -> None:
    found = called(rewards.trl(forecaster=planted(Planted(honest=False))), ["s=0", "s=1", "s=3"])
    assert found == pytest.approx([(win(-2) + win(-6)) / 2, (win(2) + win(-4)) / 2, (win(6) + win(4)) / 2])


def test_a_member_that_scores_single_answers_reads_each_once() -> None:
    weights = dict.fromkeys((*MARGIN_COVARIATES, *TIE_COVARIATES), 0.0) | {"similarity": 0.5}
    blend = BlendScorer([Member(scorer := Planted(), WHOLE, 0.5, 1.0)], weights)
    forecaster = Forecaster(blend, Davidson(1.0, -0.5, 1.0))
    texts = [f"s={score} {'word ' * score}" for score in range(1, 7)]
    found = called(rewards.trl(forecaster=forecaster), texts)
    assert scorer.read == 6 + 1
    p = forecaster.forecast([Pair.of("Why?", texts[0], other) for other in texts[1:]]).probabilities
    assert found[0] == pytest.approx((p[:, 0] + p[:, 2] / 2).mean(), abs=1e-12)
    assert called(rewards.trl(forecaster=forecaster, reading="score"), texts) == [1, 2, 3, 4, 5, 6]
    both = BlendScorer([Member(Planted(), WHOLE, 0.5, 1.0)] * 2)
    with pytest.raises(UsageError, match="reading='score'"):
        rewards.trl(forecaster=Forecaster(both, Davidson()), reading="score")


def test_large_groups_are_bounded() -> None:
    samples = [sample_of("Why?", f"s={number}") for number in range(20)]
    assert len(contests(samples[:9], 8)) == 9 * 8 // 2
    found = contests(samples, 8)
    assert len(found) == len(set(found)) == 20 * 4
    met = [each for pair in found for each in pair]
    assert {met.count(sample) for sample in samples} == {8}
    assert set(contests(samples[::-1], 8)) == set(found)
    assert contests(samples[:1], 8) == []
    function = rewards.trl(forecaster=planted(scorer := Compared()), opponents=4)
    assert all(0 <= reward <= 1 for reward in called(function, [f"s={number}" for number in range(20)]))
    assert scorer.read == 20 * 2


def test_equal_answers_tie_and_are_compared_once() -> None:
    found = called(rewards.trl(forecaster=planted(scorer := Compared())), ["s=1", "s=1", "s=1", "s=3"])
    assert found == pytest.approx([(0.5 + 0.5 + win(-2)) / 3] * 3 + [win(2)])
    assert scorer.read == 1
    assert called(rewards.trl(forecaster=planted()), ["s=1", "s=1"]) == [0.5, 0.5]


def test_a_group_of_one_has_one_half_and_says_so_once(warned: Any) -> None:
    function = rewards.trl(forecaster=planted())
    assert called(function, ["s=1", "s=2", "s=3"], ["a", "a", "b"])[2] == 0.5
    assert called(function, ["s=1"]) == [0.5]
    (line,) = warned()
    assert "1 of 3 samples are the only ones of their prompts" in line


def test_a_reference_answer_takes_the_place_of_the_group(warned: Any) -> None:
    function = rewards.trl(forecaster=planted(), reference="answer")
    found = called(function, ["s=1", "s=2", "s=2"], answer=["s=0", messages("s=2"), None], other=[1, 2, 3])
    assert found == [pytest.approx(win(1)), 0.5, None]
    assert "the first is sample 3: column answer: has no reference answer" in warned()[0]
    with pytest.raises(UsageError, match="has no column 'answer'; there are other"):
        called(function, ["s=1"], other=[1])
    with pytest.raises(UsageError, match="compared with nothing"):
        rewards.trl(forecaster=planted(), reading="score", reference="answer")


def test_raw_scores() -> None:
    function = rewards.trl(forecaster=planted(Planted(2, 1)), reading="score")
    assert called(function, ["s=1", "s=2", "s=1"], ["a", "b", "c"]) == [3, 5, 3]
    with pytest.raises(
        UsageError, match="surface compares two answers and has no score of one; use reading='preferred'"
    ):
        rewards.trl("surface", reading="score")


def test_a_sample_that_cannot_be_scored_is_none_and_said(warned: Any) -> None:
    for function in (rewards.trl(forecaster=planted()), rewards.trl(forecaster=planted(), reading="score")):
        found = called(function, ["s=1", "no score", [{"role": "user", "content": "s=2"}], "s=4"])
        assert [each is None for each in found] == [False, True, True, False]
    assert len(warned()) == 2
    assert "the first is sample 2: is at fault" in warned()[1]
    assert (
        "prefcast: 2 of 4 samples have no reward (None); the first is sample 2: no comparison was possible: is at fault"
        in warned()[0]
    )
    with pytest.raises(ScoringError, match="is at fault"):
        called(rewards.trl(forecaster=planted(), on_error="raise"), ["s=1", "no score"])
    for wrong in (
        {"on_error": "skip"},
        {"reading": "best"},
        {"opponents": 3},
        {"residualise": "bold"},
        {"name": "a b"},
    ):
        with pytest.raises(UsageError, match=r"expected|there are"):
            rewards.trl("surface", **wrong)
    with pytest.raises(UsageError, match="3 prompts and 1 completions"):
        called(rewards.trl("surface"), ["x"], ["a", "b", "c"])


def test_a_fault_of_the_model_ends_the_step() -> None:
    class Broken(Planted):
        def compute(self, pairs: Sequence[Pair]) -> Evidence:
            raise ModelError("the server is gone")

    with pytest.raises(PrefcastError, match="the server is gone"):
        called(rewards.trl(forecaster=planted(Broken())), ["s=1", "s=2"])


def test_any_model_that_predict_takes_is_taken(tmp_path: Any) -> None:
    load_forecaster("surface").save(tmp_path / "mine")
    named = called(rewards.trl("surface"), TEXTS, PROMPTS)
    assert called(rewards.trl(forecaster=tmp_path / "mine"), TEXTS, PROMPTS) == named
    with pytest.raises(UsageError, match="unknown model"):
        rewards.trl("surfase")
    with pytest.raises(UsageError, match="colour"):
        rewards.trl("surface", options={"colour": "red"})


def test_verl_asks_for_one_sample_and_a_reference(warned: Any) -> None:
    one = rewards.verl(forecaster=planted(), asynchronous=False)
    assert one("source", "s=1", "s=0", {"prompt": "Why?"}) == pytest.approx(win(1))
    asked = np.array([{"role": "user", "content": "Why?"}], dtype=object)
    field = rewards.verl(forecaster=planted(), reference="gold", prompt="question", asynchronous=False)
    assert field("source", "s=3", "42", {"question": asked, "gold": "s=1"}) == pytest.approx(win(2))
    with pytest.raises(ScoringError, match="extra_info has no field 'prompt' with the prompt; it has 'index'"):
        one("source", "s=1", "s=0", {"index": 3})
    assert (
        rewards.verl(forecaster=planted(), failed=-1.0, asynchronous=False)("source", "s=1", None, {"prompt": "Why?"})
        == -1
    )
    assert "no reward (-1.0); the first is sample 1: ground_truth: has no reference answer" in warned()[-1]
    assert (
        rewards.verl(forecaster=planted(), reading="score", asynchronous=False)(
            "source", "s=3", None, {"prompt": "Why?"}
        )
        == 3
    )


def test_verl_samples_that_wait_together_are_scored_together() -> None:
    class Counted(Compared):
        calls = 0

        def compute(self, pairs: Sequence[Pair]) -> Evidence:
            self.calls += 1
            return super().compute(pairs)

    function = rewards.verl(forecaster=planted(scorer := Counted()))

    async def ask() -> Any:
        calls = [function("source", f"s={n}" if n != 5 else "none", "s=0", {"prompt": f"{n}?"}) for n in range(40)]
        return await asyncio.gather(*calls, return_exceptions=True)

    found = asyncio.run(ask())
    assert isinstance(found.pop(5), ScoringError)
    assert found == pytest.approx([win(n) for n in range(40) if n != 5])
    assert scorer.calls < 5
    assert asyncio.run(ask())[0] == 0.5


def test_openrlhf_reads_queries_whose_prompt_was_cut() -> None:
    prompt = "<|im_start|>user\nWhy is the sky blue today?<|im_end|>\n<|im_start|>assistant\n"
    for query in (prompt, f"<s>{prompt}", prompt[20:], f"\ufffd{prompt[25:]}"):
        assert split_query(f"{query}Because.<|im_end|></s>", prompt) == "Because."
    assert split_query(f"{prompt}a prompt: {prompt}x", prompt) == f"a prompt: {prompt}x"
    with pytest.raises(Fault, match="at least 16 characters"):
        split_query("assistant\nBecause.", prompt)
    with pytest.raises(Fault, match="is a number; expected a text"):
        split_query(3, prompt)


def test_openrlhf_gets_tensors(warned: Any) -> None:
    import torch

    function = rewards.openrlhf(forecaster=planted())
    found = function(["Why?s=1", "Why?s=2</s>"], ["Why?", "Why?"], ["s=0", "s=0"])
    assert set(found) == {"rewards", "scores", "extra_logs"}
    assert found["rewards"].tolist() == pytest.approx([win(1), win(2)])
    assert torch.tensor([function(["Why?s=1"], ["Why?"], ["s=0"])["rewards"]]).shape == (1,)
    raw = rewards.openrlhf(forecaster=planted(), reading="score", failed=0.0)
    assert raw(["Why?s=1", "Why?x", "other s=3"], ["Why?"] * 3, [None] * 3)["rewards"].tolist() == [1, 0, 0]
    assert "2 of 3 samples have no reward (0.0); the first is sample 2: a text has no score" in warned()[0]
    with pytest.raises(ScoringError, match="begins neither with the prompt"):
        function(["s=1"], ["Why?"], ["s=0"])
    assert function([], [], [])["rewards"].shape == (0,)
    read = rewards.openrlhf(forecaster=planted(), read_prompt=lambda text: [{"role": "user", "content": text[2:]}])
    assert read(["u:Why?s=1"], ["u:Why?"], ["s=0"])["rewards"].tolist() == pytest.approx([win(1)])


def test_functions_reach_other_processes() -> None:
    cloudpickle = pytest.importorskip("ray.cloudpickle")
    for made in (rewards.trl("surface"), rewards.verl("surface"), rewards.openrlhf("surface")):
        copy = pickle.loads(cloudpickle.dumps(made))
        assert copy.__name__ == "prefcast"
    copy = pickle.loads(cloudpickle.dumps(rewards.trl("surface")))
    assert called(copy, TEXTS, PROMPTS) == called(rewards.trl("surface"), TEXTS, PROMPTS)
    copy.close()


def simulated(rng: np.random.Generator, groups: int, size: int, noise: float) -> tuple[Any, Any]:
    """True strengths (groups, size), and texts with noisy scores."""
    strength = rng.normal(size=(groups, size)) * 1.2
    scores = strength + noise * rng.normal(size=strength.shape)
    return strength, [[f"s={score:.6f}" for score in row] for row in scores]


def outcomes(rng: np.random.Generator, a: Any, b: Any, level: float = -0.5) -> Any:
    """Simulated votes on strengths `a` against `b`, by Davidson's model."""
    weights = np.stack([np.exp((a - b) / 2), np.exp((b - a) / 2), np.full(a.shape, np.exp(level))], axis=-1)
    share = (weights / weights.sum(axis=-1, keepdims=True)).cumsum(axis=-1)
    return (rng.random((*a.shape, 1)) > share).sum(axis=-1)


@pytest.mark.parametrize(("scale", "shift", "noise"), [(1, 0, 0.0), (7, -30, 0.3), (0.02, 5, 0.6)])
def test_group_win_probabilities_are_calibrated_and_robust_to_scale(scale: float, shift: float, noise: float) -> None:
    rng = np.random.default_rng(1)
    strength, texts = simulated(rng, 2000, 2, noise)
    votes = outcomes(rng, strength[:, 0], strength[:, 1])
    pairs = [
        Pair.of(str(n), a, b, outcome=Outcome(int(vote)))
        for n, ((a, b), vote) in enumerate(zip(texts, votes, strict=True))
    ]
    fitted = planted(Planted(scale, shift)).fit(pairs)
    size = 8
    strength, texts = simulated(rng, 250, size, noise)
    flat = [text for row in texts for text in row]
    prompts = [f"group {group}" for group in range(len(texts)) for _ in range(size)]
    found = np.array(called(rewards.trl(forecaster=fitted), flat, prompts))
    vote = outcomes(rng, strength[:, :, None] + np.zeros(size), strength[:, None, :] + np.zeros((size, 1)))
    share = np.where(vote == 0, 1.0, np.where(vote == 2, 0.5, 0.0))
    share[:, range(size), range(size)] = 0
    real = (share.sum(axis=2) / (size - 1)).ravel()
    bins = np.array_split(np.argsort(found), 10)
    error = sum(len(each) * abs(found[each].mean() - real[each].mean()) for each in bins) / len(found)
    assert error <= 0.02
    assert np.ptp(found) > 0.5
    # The same votes and another scale or origin of the scores: the same rewards.
    other = planted(Planted(scale * 50, shift - 11)).fit(pairs)
    assert called(rewards.trl(forecaster=other), flat[:80], prompts[:80]) == pytest.approx(found[:80], abs=1e-5)
    moved = Forecaster(Planted(scale, shift + 100), fitted.outcome)
    assert called(rewards.trl(forecaster=moved), flat[:80], prompts[:80]) == pytest.approx(found[:80], abs=1e-9)


def test_samples_of_a_prompt_have_one_group() -> None:
    assert Sample((("a", "b"), ("c", "d"))).group != Sample((("a", "x"), ("c", "d"))).group
    assert Sample((("a", "b"),)).group == Sample((("a", "c"),), tools="[]").group != Sample((("a", "b"),), "s").group

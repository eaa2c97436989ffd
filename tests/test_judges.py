"""LLM judges against strict fakes of their APIs: evidence, money, faults, and runs that break off."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import Run, Start, labelled, wait_for, write_jsonl
from prefcast import Pair, load_forecaster
from prefcast.errors import ForecasterError, PrefcastError, ResourceError, ServiceError, UsageError
from prefcast.scorers.base import Cost, Meter
from prefcast.scorers.judge import Options, scorer_of
from prefcast.scorers.judge.questions import Rubric
from prefcast.scorers.judge.scorer import JudgeScorer
from prefcast.scorers.judge.verdicts import (
    NoVerdict,
    Verdict,
    evidence_of,
    letter_of_text,
    of_letter,
    of_tokens,
    packed,
    unpacked,
)
from prefcast.scorers.kept import kept
from prefcast.scorers.reward import Options as RewardOptions
from prefcast.scorers.store import EvidenceStore
from prefcast.testing import check_scorer
from prefcast.testing.judges import Asked, FakeJudge, Refusal, SimulatedJudge, Troubles

APIS = ("openai", "anthropic", "gemini")
VARIABLES = {"openai": "OPENAI_API_KEY", "anthropic": "ANTHROPIC_API_KEY", "gemini": "GEMINI_API_KEY"}
KEY = "key-of-the-fake"


def goods(text: str) -> float:
    return float(text.count("good"))


FAIR = SimulatedJudge(goods, position=0.4, tie=-0.3, other=0.02)
PAIRS = [
    Pair.of(f"Question {number}?", "good " * (number % 4), "good " * (number % 3), id=number) for number in range(12)
]


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES.values():
        monkeypatch.setenv(name, KEY)


def judge_at(fake: FakeJudge, api: str = "openai", **options: Any) -> JudgeScorer:
    return scorer_of(f"judge:{fake.url}#{fake.model}", Options(judge_api=api, **options))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """40 labelled pairs; the better answer wins."""
    rows = []
    for number in range(40):
        a, b = number % 4, (number * 7 + number // 4) % 4
        rows.append(
            labelled(
                0 if a > b else 1 if a < b else 2,
                id=number,
                prompt=(f"q{number}",),
                a=("good " * a + "." * number,),
                b=("good " * b,),
            )
            | {"model_a": "judge-1" if number % 2 else "m", "model_b": "m2"}
        )
    return write_jsonl(tmp_path / "pairs.jsonl", rows)


# Evidence


@pytest.mark.parametrize(("api", "repeats"), [("openai", None), ("gemini", None)])
def test_a_judge_keeps_the_contract(api: str, repeats: int | None) -> None:
    with FakeJudge(FAIR, api=api) as fake:
        check_scorer(lambda: judge_at(fake, api, judge_repeats=repeats))


@pytest.mark.parametrize("api", ["openai", "gemini"])
def test_log_probabilities_give_the_judges_own_log_odds(api: str) -> None:
    with FakeJudge(FAIR, api=api) as fake, judge_at(fake, api) as judge:
        found = judge.evidence(PAIRS)
    wanted = [goods(pair.response_a[0]) - goods(pair.response_b[0]) for pair in PAIRS]
    assert found.margin == pytest.approx(wanted)
    assert found.tie == pytest.approx([-0.3] * len(PAIRS))
    assert found.raw["position"] == pytest.approx([0.4] * len(PAIRS))
    assert found.raw["uncovered"] == pytest.approx([0.02] * len(PAIRS))
    assert found.raw["margin_a"] == pytest.approx(np.array(wanted) + 0.4)
    assert found.raw["margin_b"] == pytest.approx(np.array(wanted) - 0.4)


@pytest.mark.parametrize(("api", "repeats"), [("openai", 0), ("openai", 4), ("anthropic", 4), ("gemini", 0)])
def test_a_judge_that_always_says_a_has_margin_0(api: str, repeats: int) -> None:
    with FakeJudge(lambda asked: {"A": 1.0}, api=api) as fake, judge_at(fake, api, judge_repeats=repeats) as judge:
        found = judge.evidence(PAIRS)
    assert (found.margin == 0).all()
    assert (found.raw["position"] > 2).all()


@pytest.mark.parametrize("api", APIS)
def test_counted_verdicts_agree_with_log_probabilities(api: str) -> None:
    n, many, judge = 60, 12, SimulatedJudge(goods, position=0.3, tie=-0.5)
    pairs = [Pair.of(f"q{number}", "good", "") for number in range(many)]
    with FakeJudge(judge, api=api) as fake, judge_at(fake, api, judge_repeats=n) as counting:
        counted = counting.evidence(pairs)
    with FakeJudge(judge) as fake, judge_at(fake) as reading:
        read = reading.evidence(pairs)
    # The standard error of the log-odds of counts, by the delta method.
    weights = [(math.exp(order / 2), math.exp(-order / 2), math.exp(-0.5)) for order in (1.3, 0.7)]
    error = math.sqrt(sum(sum(each) / n / side for each in weights for side in each[:2])) / 2
    for found, wanted in ((counted.margin, read.margin), (counted.raw["position"], read.raw["position"])):
        off = np.abs(found - wanted)
        assert (off < 1.96 * error).sum() >= many - 3
        assert abs((found - wanted).mean()) < 4 * error / math.sqrt(many)


def test_evidence_of_counts_adds_a_half() -> None:
    verdicts = [of_letter("A"), of_letter("A"), of_letter("C")]
    margin, tie, (forth, back, position, uncovered) = evidence_of(verdicts, [of_letter("B")])
    assert forth == pytest.approx(math.log(2.5 / 0.5))
    assert back == pytest.approx(math.log(1.5 / 0.5))
    assert margin == pytest.approx((forth + back) / 2)
    assert position == pytest.approx((forth - back) / 2)
    assert tie == pytest.approx((math.log(1.5 / math.sqrt(2.5 * 0.5)) + math.log(0.5 / math.sqrt(0.5 * 1.5))) / 2)
    assert uncovered == 0


def test_the_probability_of_a_letter_sums_its_spellings() -> None:
    tokens = [("A", math.log(0.3)), (" A", math.log(0.2)), ("**B", math.log(0.1)), ("\u2581C", math.log(0.1))]
    tokens += [("An", math.log(0.2)), ("a", math.log(0.05))]
    found = of_tokens(tokens)
    assert isinstance(found, Verdict)
    assert (found.first, found.second, found.tie) == pytest.approx((0.5, 0.1, 0.1))
    assert found.uncovered == pytest.approx(0.3), "words that only begin with the letter are no verdict"
    assert of_tokens([("The", 0.0), ("A", -30.0)]) == NoVerdict("unreadable")


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("A", "A"),
        (" b.\n", "B"),
        ("**C**", "C"),
        ("Both are fine, but B is wrong.\n\nVerdict: A", "A"),
        ("My answer is clear.\n(B)", "B"),
        ("The final verdict is **a**.", "A"),
        ("A is better than B", None),
        ("Verdict: A\nbecause it is longer", None),
        ("D", None),
        ("AB", None),
        ("", None),
    ],
)
def test_the_verdict_is_the_last_line(text: str, letter: str | None) -> None:
    assert letter_of_text(text) == letter


def test_what_is_kept_of_a_reply_comes_back() -> None:
    for found in (Verdict(0.1, 0.2, 0.3, 0.4), of_letter("C"), NoVerdict("refusal"), NoVerdict("unreadable")):
        assert unpacked(packed(found)) == found
    assert unpacked(b"") is None
    assert unpacked(b"\x07") is None
    assert unpacked(packed(Verdict(float("nan"), 0, 0))) is None


def test_a_judge_reads_the_system_message_the_reference_and_every_turn() -> None:
    seen: list[Asked] = []

    def look(asked: Asked) -> Mapping[str, float]:
        seen.append(asked)
        return {"A": 1.0}

    pair = Pair.of(["one?", "two?"], ["1a", "2a"], ["1b", "2b"], system="Be kind.", reference="Both.")
    with FakeJudge(look) as fake, judge_at(fake) as judge:
        judge.evidence([pair])
    assert len(seen) == 2
    for text in ("Be kind.", "one?", "two?", "1a", "2b", "Both.", "ANSWER B 2"):
        assert all(text in asked.user for asked in seen)
    assert all("system message" in asked.system and "reference" in asked.system for asked in seen)


# Settings


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"judge_api": "anthropic", "judge_choice": True}, "cannot be told which replies are allowed: --judge-choice"),
        ({"price": "1"}, "--price is '1'; expected two numbers like 2.5/10"),
        ({"price": "-1/2"}, "expected two numbers"),
        ({"price": "nan/1"}, "expected two numbers"),
        ({"budget_money": 1.0}, "--budget-money needs the price"),
        ({"judge_api": "anthropic", "judge_repeats": 0}, "the API anthropic has no log probabilities"),
        ({"judge_api": "x"}, "--judge-api is 'x'; there are openai, anthropic, gemini"),
        ({"rubric": "missing.jinja"}, "missing.jinja: the rubric cannot be read: No such file"),
    ],
)
def test_wrong_settings_are_one_line(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        scorer_of("judge:http://127.0.0.1:9/v1#m", Options(**options))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (
            "{{ prompt }}",
            "uses 'prompt', which a rubric does not have; it has turns, system, reference, repeats, nonce",
        ),
        ("{% if %}", 'rubric: "Expected an expression'),
        ("x" * 100_001, "at most 100,000"),
    ],
)
def test_a_rubric_that_cannot_be_used_is_refused(source: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Rubric(source, "rubric")


def test_a_rubric_that_never_ends_is_refused() -> None:
    rubric = Rubric("{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}", "r")
    with pytest.raises(UsageError, match="r: "):
        rubric.ask(PAIRS[0], turned=False, sampled=False)


def test_a_judge_needs_a_model_and_an_address() -> None:
    with pytest.raises(UsageError, match="--judge-model NAME"):
        scorer_of("judge:http://127.0.0.1:9/v1", Options())
    with pytest.raises(UsageError, match="is not the address of a server"):
        scorer_of("judge:nowhere#m", Options())


# What servers say


@pytest.mark.parametrize("api", APIS)
def test_a_strict_api_takes_what_a_judge_sends(api: str) -> None:
    options: dict[str, Any] = {"judge_temperature": 0.5, "judge_seed": 3, "judge_repeats": 2, "judge_tokens": 50}
    options["judge_choice"] = api != "anthropic"
    with FakeJudge(FAIR, api=api) as fake, judge_at(fake, api, **options) as judge:
        assert not judge.evidence(PAIRS[:3]).problems
    assert set(fake.statuses) == {200}


def test_the_fakes_refuse_what_the_apis_refuse() -> None:
    for api, good in (
        ("openai", {"model": "judge-1", "messages": [{"role": "user", "content": "x"}]}),
        ("anthropic", {"model": "judge-1", "max_tokens": 1, "messages": [{"role": "user", "content": "x"}]}),
        (
            "gemini",
            {
                "contents": [{"role": "user", "parts": [{"text": "x"}]}],
                "generationConfig": {"logprobs": 2, "responseLogprobs": True},
            },
        ),
    ):
        strict = FakeJudge(FAIR, api=api).api
        headers = {strict.header: strict.sent, "anthropic-version": "2023-06-01"}
        path = {
            "openai": "/v1/chat/completions",
            "anthropic": "/v1/messages",
            "gemini": "/v1beta/models/judge-1:generateContent",
        }[api]
        assert strict.refuses(path, headers, good) is None
        needed = list(good)[-1] if api != "gemini" else "contents"
        for wrong in (
            {**good, "unknown": 1},
            {name: value for name, value in good.items() if name != needed},
            {**good, needed: 7},
            [],
        ):
            refused = strict.refuses(path, headers, wrong)
            assert refused is not None, (api, wrong)
            assert refused[0] == 400, (api, wrong)
        assert strict.refuses(path, {}, good) is not None
        assert strict.refuses("/elsewhere", headers, good)[0] == 404  # type: ignore[index]
    strict = FakeJudge(FAIR, api="gemini").api
    assert strict.refuses(path, headers, {**good, "generationConfig": {"logprobs": 2}})[0] == 400  # type: ignore[index]
    strict = FakeJudge(FAIR).api
    body = {"model": "judge-1", "messages": [{"role": "user", "content": "x"}], "top_logprobs": 2}
    assert strict.refuses("/v1/chat/completions", {"authorization": strict.sent}, body)[0] == 400  # type: ignore[index]


@pytest.mark.parametrize("api", ["openai", "gemini"])
def test_a_model_without_log_probabilities_is_told_to_count(api: str) -> None:
    with FakeJudge(FAIR, api=api, logprobs=False) as fake, judge_at(fake, api) as judge:
        with pytest.raises(UsageError, match=r"gives no log probabilities \(.*ogprobs.*\).*--judge-repeats N"):
            judge.evidence(PAIRS)
        assert fake.answered == 0


@pytest.mark.parametrize("api", APIS)
def test_a_refusal_is_an_error_of_the_row(api: str) -> None:
    def judge_of(asked: Asked) -> Mapping[str, float]:
        if "Question 3?" in asked.user:
            raise Refusal
        return {"no idea": 1.0} if "Question 5?" in asked.user else FAIR(asked)

    repeats = 2 if api == "anthropic" else 0
    with FakeJudge(judge_of, api=api) as fake, judge_at(fake, api, judge_repeats=repeats) as judge:
        found = judge.evidence(PAIRS)
    assert set(found.problems) == {3, 5}
    assert "the judge refused to give a verdict" in found.problems[3]
    assert "the judge's reply has no verdict that can be read" in found.problems[5]


@pytest.mark.parametrize("api", APIS)
def test_a_wrong_key_and_a_wrong_model_end_the_run(api: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeJudge(FAIR, api=api) as fake:
        with (
            scorer_of(f"judge:{fake.url}#other", Options(judge_api=api)) as judge,
            pytest.raises(ServiceError, match="404"),
        ):
            judge.evidence(PAIRS)
        monkeypatch.setenv(VARIABLES[api], "sk-very-secret")
        with judge_at(fake, api) as judge, pytest.raises(ServiceError, match=r"40[01].*key") as caught:
            judge.evidence(PAIRS)
        assert "very-secret" not in str(caught.value)
        assert fake.answered == 0


def answering(fake: FakeJudge, monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """The fake's replies, changed."""
    reply = fake.api.reply
    monkeypatch.setattr(fake.api, "reply", lambda drawn, body: change(reply(drawn, body)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda said: [said], "the reply has no count of tokens"),
        (lambda said: {**said, "usage": None}, "the reply has no count of tokens in usage.prompt_tokens: found None"),
        (lambda said: {**said, "usage": {"prompt_tokens": -1, "completion_tokens": 0}}, "found -1"),
        (lambda said: {**said, "usage": {"prompt_tokens": 10**30, "completion_tokens": 0}}, "no count of tokens"),
        (lambda said: {**said, "choices": []}, "gives no log probabilities"),
        (
            lambda said: {**said, "choices": [{"logprobs": {"content": [{"top_logprobs": [{"token": 1}]}]}}]},
            "gives no log",
        ),
        (lambda said: "[" * 100_000, "the reply has no count of tokens"),
    ],
)
def test_a_reply_of_another_form_is_one_line(monkeypatch: pytest.MonkeyPatch, change: Any, said: str) -> None:
    with FakeJudge(FAIR) as fake, judge_at(fake) as judge:
        answering(fake, monkeypatch, change)
        with pytest.raises(PrefcastError, match=said):
            judge.evidence(PAIRS[:1])


def test_odd_numbers_and_tokens_in_a_reply_do_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = [
        {"token": "A", "logprob": 5},
        {"token": None, "logprob": -1},
        {"token": "B", "logprob": float("nan")},
        {"token": "C", "logprob": float("-inf")},
        {"token": "B" * 100_000, "logprob": -2.0},
    ]

    def change(said: dict[str, Any]) -> dict[str, Any]:
        said["choices"][0]["logprobs"] = {"content": [{"top_logprobs": tokens}]}
        return said

    with FakeJudge(FAIR) as fake, judge_at(fake) as judge:
        answering(fake, monkeypatch, change)
        found = judge.evidence(PAIRS[1:2])
    assert not found.problems
    assert np.isfinite(found.margin).all()
    assert found.raw["uncovered"][0] == 0


def test_a_request_that_is_too_long_is_an_error_of_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    words = {
        "error": {"message": "This model's maximum context length is 8 tokens.", "code": "context_length_exceeded"}
    }
    with FakeJudge(FAIR) as fake, judge_at(fake) as judge:
        refuses = fake.api.refuses
        monkeypatch.setattr(
            fake.api,
            "refuses",
            lambda path, headers, body: (400, words) if "Question 2?" in str(body) else refuses(path, headers, body),
        )
        found = judge.evidence(PAIRS)
    assert set(found.problems) == {2}
    assert "the judge's server refused the request: 400 This model's maximum context length" in found.problems[2]


def test_a_judge_whose_replies_are_never_verdicts_is_not_paid_for_long() -> None:
    pairs = [Pair.of(f"q{number}", "good", "") for number in range(100)]
    with FakeJudge(lambda asked: {"<think>": 1.0}) as fake, judge_at(fake) as judge:
        with pytest.raises(
            UsageError, match=r"none of the first 20 replies of the judge has a verdict.*--judge-repeats N"
        ):
            judge.evidence(pairs)
        assert fake.answered < 40


def test_settings_that_the_server_refuses_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeJudge(FAIR) as fake, judge_at(fake) as judge:
        monkeypatch.setattr(fake.api, "refuses", lambda path, headers, body: fake.api.error("unknown", "seed"))
        with pytest.raises(ServiceError, match="400 Unknown parameter: 'seed'"):
            judge.evidence(PAIRS)


def test_a_server_that_repeats_the_key_does_not_reveal_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeJudge(FAIR) as fake, judge_at(fake) as judge:
        monkeypatch.setattr(
            fake.api,
            "refuses",
            lambda path, headers, body: (403, {"error": {"message": f"bad {headers['authorization']}"}}),
        )
        with pytest.raises(ServiceError, match=r"403 bad Bearer \*\*\*"):
            judge.evidence(PAIRS)
        assert KEY not in repr(judge.options) + repr(judge.__dict__.get("options")) + judge.identity()


# Money and tokens


@pytest.mark.parametrize("api", APIS)
def test_tokens_are_those_that_the_server_counted(api: str) -> None:
    meter = Meter()
    with FakeJudge(FAIR, api=api) as fake, judge_at(fake, api, price="3/15") as judge:
        judge.evidence(PAIRS, meter)
    spent = meter.spent
    assert (spent.requests, spent.tokens_read, spent.tokens_written) == (fake.answered, fake.read, fake.written)
    assert spent.money == pytest.approx((3 * fake.read + 15 * fake.written) / 1e6)
    assert spent.requests > 0


@pytest.mark.parametrize("limit", [{"budget_tokens": 6_000}, {"budget_money": 0.006, "price": "1/1"}])
def test_a_budget_ends_the_run_before_it_is_exceeded(tmp_path: Path, limit: dict[str, Any]) -> None:
    with FakeJudge(FAIR) as fake, EvidenceStore(tmp_path / "s") as store:
        with (
            judge_at(fake, **limit) as judge,
            pytest.raises(ResourceError, match=r"--budget-.*every verdict is kept: give") as caught,
        ):
            kept(judge, store).evidence(PAIRS)
        assert "the same command with a larger budget" in str(caught.value)
        assert 2_000 < fake.read + fake.written <= 6_000
        before = fake.answered
        with judge_at(fake) as judge:
            assert not kept(judge, store).evidence(PAIRS).problems
        assert set(fake.paid.values()) == {1}, "what was paid for is not asked again"
        assert fake.answered > before


def test_without_a_store_the_budget_says_that_nothing_is_kept() -> None:
    with FakeJudge(FAIR) as fake, judge_at(fake, budget_tokens=100) as judge:
        with pytest.raises(ResourceError, match="nothing is kept without an evidence store"):
            judge.evidence(PAIRS)
        assert fake.requests == 0


def test_refusals_are_paid_for_once(tmp_path: Path) -> None:
    def refuse(asked: Asked) -> Mapping[str, float]:
        raise Refusal

    with FakeJudge(refuse) as fake, EvidenceStore(tmp_path / "s") as store:
        for _ in range(2):
            with judge_at(fake) as judge:
                assert len(kept(judge, store).evidence(PAIRS[:3]).problems) == 3
        assert set(fake.paid.values()) == {1}


def test_more_repeats_pay_only_for_the_new_ones(tmp_path: Path) -> None:
    with FakeJudge(FAIR, api="anthropic") as fake, EvidenceStore(tmp_path / "s") as store:
        pair = [Pair.of("q", "good", "bad")]
        for repeats, answered in ((2, 4), (5, 10), (5, 10)):
            with judge_at(fake, "anthropic", judge_repeats=repeats) as judge:
                kept(judge, store).evidence(pair)
            assert fake.answered == answered


def test_equal_answers_are_asked_about_once() -> None:
    with FakeJudge(FAIR) as fake, judge_at(fake) as judge:
        assert judge.evidence([Pair.of("q", "same", "same")]).margin[0] == 0
        assert fake.answered == 1


# Broken runs

TROUBLES = Troubles(fail=0.1, busy=0.05, close=0.05, cut=0.03, late=0.01, die_at=(25, 70))


@pytest.mark.parametrize("api", APIS)
def test_a_flaky_server_is_asked_until_every_pair_is_judged(tmp_path: Path, api: str) -> None:
    pairs = [Pair.of(f"q{n}", "good" * (n % 3), f"good {n}", id=n) for n in range(60)]
    repeats = 1 if api == "anthropic" else 0
    judge_of = SimulatedJudge(goods)
    with FakeJudge(judge_of, api=api, trouble=TROUBLES) as fake, EvidenceStore(tmp_path / "s") as store:
        options: dict[str, Any] = {"wait": 30.0, "timeout": 5.0, "retries": 8, "judge_repeats": repeats}
        meter = Meter()
        with judge_at(fake, api, **options) as judge:
            found = kept(judge, store).evidence(pairs, meter)
        assert not found.problems
        assert fake.deaths == 2
        assert len(fake.paid) == fake.answered == 120
        assert (meter.spent.tokens_read, meter.spent.tokens_written) == (fake.read, fake.written)


def test_a_killed_run_pays_for_nothing_twice(tmp_path: Path, file: Path, start: Start, prefcast_here: Run) -> None:
    killed = False
    # The requests from the 30th on have no answer before the run is killed.
    with FakeJudge(FAIR, trouble=lambda number: "late" if number >= 30 and not killed else None) as fake:
        command = ("score", file, "--judge", fake.url, "--judge-model", fake.model, "-o", tmp_path / "out.jsonl")
        process = start(*command)
        # Each of the 8 threads waits for an answer, so that each has kept what it got before.
        wait_for(lambda: fake.requests == 38, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert fake.answered == 30
        killed = True
        done = prefcast_here(*command)
        assert done.returncode == 0, done.stderr
        assert set(fake.paid.values()) == {1}
        assert f"{len(fake.paid) - 30} requests to judges" in done.stderr


# Verbs


def test_from_labels_to_forecasts_by_a_judge(tmp_path: Path, file: Path, prefcast_here: Run) -> None:
    with FakeJudge(SimulatedJudge(goods, position=1.0, length=0.5, tie=-0.3, other=0.02)) as fake:
        judge = ("--judge", fake.url, "--judge-model", fake.model)
        done = prefcast_here("score", file, *judge, "--price", "2/8", "-o", "out.jsonl")
        assert done.returncode == 0, done.stderr
        tokens = f"{fake.answered} requests to judges; tokens: {fake.read:,} read, {fake.written:,} written; it cost 0."
        assert tokens in done.stderr
        row = json.loads((tmp_path / "out.jsonl").read_text().splitlines()[1])
        assert row["position"] == pytest.approx(1.0)
        answered = fake.answered
        done = prefcast_here("evaluate", file, *judge, "--json", "e.json")
        bias = json.loads((tmp_path / "e.json").read_text())["judge_bias"]
        assert bias["position"]["value"] == pytest.approx(1.0)
        assert bias["first"]["low"] > 0.5
        assert bias["longer"]["excess"]["low"] <= bias["longer"]["excess"]["value"] <= bias["longer"]["excess"]["high"]
        assert bias["own"]["n"] > 0
        assert "judge: what it reads first  1.0000 [1.0000, 1.0000] in log-odds" in done.stdout
        assert done.stdout.count("judge: ") == 5
        assert prefcast_here("fit", file, *judge, "-o", "mine").returncode == 0
        done = prefcast_here("predict", file, "--forecaster", "mine", "-o", "f.csv")
        assert done.returncode == 0, done.stderr
        done = prefcast_here("report", file, "--forecaster", "mine", "-o", "r.html")
        assert "of its verdicts are for the answer that it reads first" in (tmp_path / "r.html").read_text()
        assert fake.answered == answered, "every further verb finds the evidence"
        saved = "".join(path.read_text(errors="replace") for path in (tmp_path / "mine").iterdir())
        assert KEY not in saved + done.stderr
        done = prefcast_here("predict", file, "--forecaster", "mine", "--judge-repeats", "2", "-o", "f.csv")
        assert (done.returncode, "--judge-repeats: the outcome model was fitted to other verdicts" in done.stderr) == (
            2,
            True,
        )


def test_a_jury_is_an_ensemble_of_judges(tmp_path: Path, file: Path, prefcast_here: Run) -> None:
    with FakeJudge(FAIR, model="m1") as one, FakeJudge(SimulatedJudge(goods, length=0.4), model="m2") as two:
        jury = ("--model", f"judge:{one.url}#m1", "--model", f"judge:{two.url}#m2", "--price", "1/2")
        done = prefcast_here("fit", file, *jury, "-o", "jury")
        assert done.returncode == 0, done.stderr
        assert one.answered
        assert two.answered
        for fake in (one, two):
            tokens = f"tokens: {fake.read:,} read, {fake.written:,} written; it cost 0."
            assert f"{fake.answered} requests to judge:{fake.url}#{fake.model}; {tokens}" in done.stderr


def test_every_verb_tells_what_it_paid_and_pays_once(file: Path, prefcast_here: Run) -> None:
    with FakeJudge(FAIR) as fake:
        assert (
            prefcast_here("fit", file, "--judge", fake.url, "--judge-model", fake.model, "-o", "mine").returncode == 0
        )
        for command in (
            ("explain", file, "--id", "3"),
            ("rank", file),
            ("compare", file.with_name("left.jsonl"), file.with_name("right.jsonl")),
            ("best", file.with_name("best.jsonl")),
        ):
            answers = [{"id": n, "prompt": f"new {command[0]} {n}", "response": "good " * n} for n in range(3)]
            write_jsonl(file.with_name("left.jsonl"), answers)
            write_jsonl(file.with_name("right.jsonl"), [each | {"response": "good"} for each in answers])
            write_jsonl(file.with_name("best.jsonl"), [{"id": 1, "prompt": "pick", "responses": ["good", "good good"]}])
            before = fake.answered
            done = prefcast_here(*command, "--forecaster", "mine")
            assert done.returncode == 0, (command, done.stderr)
            told = fake.answered - before
            assert (f"prefcast: {told} requests to judges" in done.stderr) == bool(told), (command, done.stderr)
            assert prefcast_here(*command, "--forecaster", "mine").returncode == 0
            assert fake.answered - before == told
        assert set(fake.paid.values()) == {1}


def test_errors_of_rows_are_counted_by_kind(tmp_path: Path, file: Path, prefcast_here: Run) -> None:
    def judge_of(asked: Asked) -> Mapping[str, float]:
        if "| q3\n" in asked.user:
            raise Refusal
        return {"I": 1.0} if "| q5\n" in asked.user else FAIR(asked)

    with FakeJudge(judge_of) as fake:
        done = prefcast_here("score", file, "--judge", fake.url, "--judge-model", fake.model, "-o", "o.csv")
    assert done.returncode == 3
    assert "failed: 1 refusal, 1 verdict" in done.stderr
    assert "the judge refused to give a verdict" in done.stderr


def test_the_budget_of_a_run_is_one_line_and_the_same_command_goes_on(
    tmp_path: Path, file: Path, prefcast_here: Run
) -> None:
    with FakeJudge(FAIR) as fake:
        command = ("score", file, "--judge", fake.url, "--judge-model", fake.model, "-o", "o.csv", "--price", "10/30")
        done = prefcast_here(*command, "--budget-money", "0.1")
        assert done.returncode == 2
        assert not (tmp_path / "o.csv").exists()
        assert len(done.stderr.splitlines()) <= 2
        assert "--budget-money 0.1: 0.0" in done.stderr
        assert (10 * fake.read + 30 * fake.written) / 1e6 <= 0.1
        assert prefcast_here(*command, "--budget-money", "1").returncode == 0
        assert set(fake.paid.values()) == {1}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("predict", "--judge", "http://127.0.0.1:9/v1", "--model", "surface"), "name a model or a judge"),
        (("predict", "--judge", "http://127.0.0.1:9/v1"), "--judge-model NAME"),
        (("predict", "--judge", "http://127.0.0.1:9/v1", "--judge-model", "m"), "no outcome model was fitted"),
        (("predict", "--model", "surface", "--price", "1/1"), "--price"),
        (("score", "-o", "x.csv"), "name a model or a judge"),
        (
            ("score", "-o", "x.csv", "--judge", "http://127.0.0.1:9/v1", "--judge-model", "m", "--engine", "ray"),
            "a judge is asked from this machine, which counts what it costs: leave out --engine ray",
        ),
    ],
)
def test_wrong_commands_are_one_line(file: Path, prefcast_here: Run, arguments: tuple[str, ...], said: str) -> None:
    done = prefcast_here(arguments[0], file, *arguments[1:])
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


# Saved judges


@pytest.fixture
def saved(tmp_path: Path, file: Path, prefcast_here: Run) -> Path:
    with FakeJudge(FAIR) as fake:
        assert (
            prefcast_here("fit", file, "--judge", fake.url, "--judge-model", fake.model, "-o", "mine").returncode == 0
        )
    return tmp_path / "mine"


def forged(folder: Path, **change: Any) -> Path:
    """The folder with other settings of the judge, and a card that fits to them."""
    from prefcast.scorers.base import fingerprint

    path = folder / "judge.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    card = json.loads((folder / "forecaster.json").read_text())
    card["scorer_sha256"] = fingerprint(folder, JudgeScorer)
    (folder / "forecaster.json").write_text(json.dumps(card))
    return folder


def test_texts_go_to_an_address_that_a_person_named_alone(saved: Path) -> None:
    folder = forged(saved, address="http://stranger.example/v1")
    scorer = load_forecaster(folder).scorer
    with pytest.raises(
        UsageError, match=r"an address that nobody named on this machine; .* --judge http://stranger\.example/v1"
    ):
        scorer.evidence(PAIRS)
    named = load_forecaster(folder, model="judge:http://stranger.example/v1").scorer
    assert isinstance(named, JudgeScorer)
    named._connected()
    assert named._key == KEY
    named.close()
    # From now on the folder is enough; for another API, whose key is another one, it is not.
    again = load_forecaster(folder).scorer
    assert isinstance(again, JudgeScorer)
    again._connected()
    again.close()
    other = {"judge_model": "m", "judge_api": "gemini"}
    with pytest.raises(UsageError, match="nobody named"):
        load_forecaster(forged(saved, address="http://stranger.example/v1", options=other)).scorer.evidence(PAIRS)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"options": {"judge_model": "m", "key_env": "AWS_SECRET_ACCESS_KEY"}},
            "the option 'key_env' may not be set by a file",
        ),
        ({"options": {"judge_model": "m", "rubric": "/etc/passwd"}}, "the option 'rubric' may not be set by a file"),
        ({"options": {"judge_model": 3}}, "of a wrong type"),
        ({"options": {}}, "it names no judge"),
        ({"options": {"judge_model": "m", "judge_api": "../../x"}}, "--judge-api is"),
        ({"address": "file:///etc/passwd"}, "is not the address of a server"),
        ({"address": None}, "it names no judge"),
        ({"format": 9}, "format 9 is not one that this version reads"),
    ],
)
def test_a_damaged_judge_is_refused(saved: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(ForecasterError, match=said):
        load_forecaster(forged(saved, **change))


def test_a_judge_that_moved_is_the_same_judge(saved: Path) -> None:
    with FakeJudge(FAIR) as fake:
        forecaster = load_forecaster(saved, model=f"judge:{fake.url}")
        assert len(forecaster.forecast(PAIRS)) == len(PAIRS)
        assert fake.answered
        forecaster.scorer.close()
    with pytest.raises(ForecasterError, match="was fitted to the judge judge-1, not to other"):
        load_forecaster(saved, model=f"judge:{fake.url}#other")


def test_a_judge_that_was_closed_can_be_asked_again() -> None:
    with FakeJudge(FAIR) as fake:
        judge = judge_at(fake)
        for _ in range(2):
            assert not judge.evidence(PAIRS).problems
            judge.close()


def test_a_judge_is_paid_for() -> None:
    judge = scorer_of("judge:http://127.0.0.1:9/v1#m", Options())
    assert judge.cost is Cost.PAID
    with pytest.raises(UsageError, match="a judge has no option --dtype"):
        judge.with_options(RewardOptions(dtype="float16"))
    assert judge.with_options(Options(concurrency=2)).options.concurrency == 2

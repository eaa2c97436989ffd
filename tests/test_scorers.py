"""One contract for every scorer, and what is particular to `surface`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import EXAMPLES
from prefcast import Forecaster, Pair, load_forecaster, read_pairs
from prefcast.errors import ForecasterError, UsageError
from prefcast.forecasts.forecaster import built_in
from prefcast.scorers.registry import scorer_class
from prefcast.scorers.surface import SurfaceScorer, feature_arrays
from prefcast.scorers.surface.features import (
    COUNTS,
    GROUPS,
    PAIR_FEATURES,
    PAIR_GROUPS,
    RESPONSE_FEATURES,
    language,
    pair_features,
)
from prefcast.scorers.surface.model import SurfaceModel

PAIRS = list(read_pairs(EXAMPLES))[:16]
FORECASTERS = {name: load_forecaster(name) for name in built_in()}

texts = st.text(max_size=80) | st.sampled_from(
    [
        "",
        " ",
        "I'm sorry, I can't.",
        "```py\nx\n```",
        "| a | b |\n|---|---|",
        "- a\n- b\n",
        "1. x\n2. y",
        "مرحبا",
        "🙂🙂",
        "日本語です",
        "a\x00b",
        "word " * 50,
    ]
)
turns = st.lists(st.tuples(texts, texts, texts), min_size=1, max_size=3)
each_scorer = pytest.mark.parametrize("name", built_in())


@each_scorer
def test_no_pairs_give_no_evidence(name: str) -> None:
    evidence = FORECASTERS[name].scorer.evidence([])
    assert len(evidence) == 0
    assert evidence.margin.shape == evidence.tie.shape == (0,)


@each_scorer
def test_batch_and_order_do_not_matter(name: str) -> None:
    scorer = FORECASTERS[name].scorer
    whole = scorer.evidence(PAIRS)
    order = np.random.default_rng(0).permutation(len(PAIRS))
    shuffled = scorer.evidence([PAIRS[index] for index in order])
    np.testing.assert_array_equal(shuffled.margin, whole.margin[order])
    np.testing.assert_array_equal(shuffled.tie, whole.tie[order])
    for index in (0, 7, 15):
        alone = scorer.evidence([PAIRS[index]])
        assert (alone.margin[0], alone.tie[0]) == (whole.margin[index], whole.tie[index])


@each_scorer
@given(st.lists(turns, min_size=1, max_size=4))
def test_a_swap_negates_the_margin_and_swaps_the_forecast(name: str, many: list[list[tuple[str, str, str]]]) -> None:
    forecaster = FORECASTERS[name]
    pairs = [Pair.of(*zip(*conversation, strict=True), id=index) for index, conversation in enumerate(many)]
    forward, backward = forecaster.forecast(pairs), forecaster.forecast([pair.swapped() for pair in pairs])
    assert not forward.failed
    np.testing.assert_allclose(backward.margin, -forward.margin, rtol=0, atol=1e-12)
    np.testing.assert_allclose(backward.tie, forward.tie, rtol=0, atol=1e-12)
    np.testing.assert_allclose(backward.probabilities, forward.probabilities[:, [1, 0, 2]], rtol=0, atol=1e-12)


@each_scorer
def test_answers_that_are_the_same_have_no_margin(name: str) -> None:
    forecast = FORECASTERS[name].forecast([Pair.of("Why?", "Because.", "Because.")])
    assert forecast.margin[0] == 0
    assert forecast.probabilities[0][0] == forecast.probabilities[0][1]


@each_scorer
def test_what_is_saved_is_loaded(tmp_path: Path, name: str) -> None:
    FORECASTERS[name].scorer.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(scorer_class(name).files)
    again = scorer_class(name).load(tmp_path).evidence(PAIRS)
    np.testing.assert_array_equal(again.margin, FORECASTERS[name].scorer.evidence(PAIRS).margin)


@each_scorer
def test_an_explanation_adds_up_to_the_evidence(name: str) -> None:
    scorer = FORECASTERS[name].scorer
    evidence = scorer.evidence(PAIRS)
    for index, pair in enumerate(PAIRS):
        pushes = scorer.explain(pair)
        assert sum(push.margin for push in pushes) == pytest.approx(evidence.margin[index], abs=1e-9)
        assert sum(push.tie for push in pushes) == pytest.approx(evidence.tie[index], abs=1e-9)


@each_scorer
@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "🙂" * 300,
        "x" * 200_000,
        "مرحبا " * 3000,
        "汉字" * 5000,
        "\u202e\u0000\x1b[31m",
        "a\n" * 20_000,
        "|" * 5000,
        "**" * 9000,
        "1. " * 9000,
        " \n\t ",
        "[SEP] [CLS] [MASK] [PAD] <|im_end|> </s>",
        "ท้องฟ้าเป็นสีฟ้า",
    ],
    ids=lambda text: ascii(text[:6]),
)
def test_odd_texts_give_a_sane_forecast(name: str, text: str) -> None:
    forecasts = FORECASTERS[name].forecast(
        [Pair.of("Why?", text, "Because."), Pair.of(text, "a", "b"), Pair.of(text, text, text)]
    )
    assert not forecasts.failed
    assert (forecasts.probabilities > 0.001).all()


def test_an_unknown_scorer_is_named_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="unknown model 'surfaec'; did you mean 'surface'"):
        scorer_class("surfaec")


def test_length_is_the_lengths() -> None:
    evidence = FORECASTERS["length"].scorer.evidence([Pair.of(["p", "q"], ["a" * 3, "a" * 4], ["b", "b"])])
    assert evidence.margin[0] == pytest.approx(np.log(8) - np.log(3))
    assert evidence.tie[0] == -evidence.margin[0]


def test_every_feature_has_one_place_in_the_explanations() -> None:
    assert sorted(sum(GROUPS.values(), ())) == sorted(RESPONSE_FEATURES)
    assert sorted(sum(PAIR_GROUPS.values(), ())) == sorted(PAIR_FEATURES)
    assert set(RESPONSE_FEATURES) | set(PAIR_FEATURES) >= COUNTS


def test_features_are_what_they_are_called() -> None:
    answer_a = "I'm sorry, I can't do that.\n\n## Plan\n1. one\n2. two\n- three\n\n```py\nx = 1\n```\n| a | b |\n|---|---|\n**bold** 42!"
    answer_b = "Yes yes yes yes yes yes yes yes yes"
    pair = Pair.of("Can you do that?", answer_a, answer_b)
    a, b, both = (
        dict(zip(names, values, strict=True))
        for names, values in zip(
            (RESPONSE_FEATURES, RESPONSE_FEATURES, PAIR_FEATURES), pair_features(pair.turns), strict=True
        )
    )
    counts = {
        name: round(np.expm1(a[name]))
        for name in (
            "list_items",
            "numbered_items",
            "headings",
            "code_blocks",
            "bold",
            "digits",
            "exclamations",
            "paragraphs",
        )
    }
    assert counts == {
        "list_items": 3,
        "numbered_items": 2,
        "headings": 1,
        "code_blocks": 1,
        "bold": 1,
        "digits": 5,
        "exclamations": 1,
        "paragraphs": 2,
    }
    assert (a["refuses"], a["refuses_briefly"], a["table"], a["empty"]) == (1, 1, 1, 0)
    assert (b["refuses"], b["table"], b["list_items"]) == (0, 0, 0)
    assert b["repeated_triples"] == pytest.approx(1 - 1 / 7)
    assert b["distinct_words"] == pytest.approx(1 / 9)
    assert (both["identical"], both["asks_question"], both["addresses_you"], both["several_turns"]) == (0, 1, 1, 0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The cat sat on the mat and it was happy with that.", "en"),
        ("Der Hund ist nicht auf der Straße und das Haus ist alt.", "de"),
        ("Le chat est sur la table et les enfants sont dans le jardin.", "fr"),
        ("El perro de la casa es grande y los gatos son pequeños.", "es"),
        ("Он пошёл домой и лёг спать.", "cyrillic"),
        ("今日は天気がいいですね。", "japanese"),
        ("今天天气很好，我们去公园。", "chinese"),
        ("오늘 날씨가 좋네요.", "korean"),
        ("مرحبا بالعالم", "arabic"),
        ("“Smart quotes” — and the dash is not another language of the world", "en"),
        ("42", ""),
        ("🙂🙂🙂", ""),
        ("", ""),
    ],
)
def test_languages(text: str, expected: str) -> None:
    words = text.lower().replace(".", "").split()
    assert language(text, words) == expected


def test_ascii_words_are_those_of_the_pattern() -> None:
    pair = Pair.of("a_b c-d", "It's 3.5% of X_Y!", "")
    with_accent = Pair.of("a_b c-d", "It's 3.5% of X_Y!…", "")
    one, other = (feature_arrays([each])[0][0][RESPONSE_FEATURES.index("words")] for each in (pair, with_accent))
    assert one == other == pytest.approx(np.sqrt(7) / 10)


def test_the_arithmetic_by_hand() -> None:
    r, p = len(RESPONSE_FEATURES), len(PAIR_FEATURES)
    model = SurfaceModel(
        np.full(r, 2.0),
        np.full(r, 3.0),
        np.full(r, 5.0),
        np.full(r, 7.0),
        np.full(p, 1.0),
        np.full(p, 4.0),
        np.full(p, 11.0),
    )
    a, b, both = np.zeros((1, r)), np.zeros((1, r)), np.ones((1, p))
    a[0, 0], b[0, 1], both[0, 2] = 1.0, 100.0, 9.0
    margin, likeness, pair = (terms.sum() for terms in model.terms(a, b, both))
    assert margin == pytest.approx(3 * 0.5 + 5 * np.tanh(0.5) - 3 * 6 - 5 * np.tanh(6))
    assert likeness == pytest.approx(7 * (np.tanh(0.5) + np.tanh(6)))
    assert pair == pytest.approx(11 * 2)


def test_weights_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "surface.json"
    scorer = FORECASTERS["surface"].scorer
    assert isinstance(scorer, SurfaceScorer)
    for change, message in [
        (lambda text: text[:-40], "not a surface model"),
        (lambda text: text.replace('"format": 1', '"format": 2'), "format 2 is not one that this version reads"),
        (lambda text: text.replace('"closing"', '"clsing"', 1), "made for other features"),
        (lambda text: text.replace('"closing": [', '"closing": [NaN, '), "needs 4 finite numbers|inhomogeneous"),
    ]:
        scorer.model.save(path)
        path.write_text(change(path.read_text()))
        with pytest.raises(ForecasterError, match=message):
            SurfaceModel.load(path)
    with pytest.raises(ForecasterError, match="cannot be read"):
        SurfaceModel.load(tmp_path / "none.json")


def test_a_score_that_is_not_finite_is_an_error_of_its_row() -> None:
    forecaster = FORECASTERS["surface"]
    assert isinstance(forecaster.scorer, SurfaceScorer)
    bent = dataclasses.replace(forecaster.scorer.model, linear=np.full(len(RESPONSE_FEATURES), np.nan))
    forecasts = Forecaster(SurfaceScorer(bent), forecaster.outcome, prior_tie=0.3).forecast(
        [Pair.of("p", "a", "bb", id="x")]
    )
    assert "gave evidence that is not finite" in str(forecasts.errors[0])
    np.testing.assert_allclose(forecasts.probabilities, [[0.35, 0.35, 0.3]])

"""The embedded scorer: what it reads, what its encoder computes, and that nothing but the pair matters."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import PEAK, said_by
from prefcast import Pair, load_forecaster
from prefcast.errors import ForecasterError
from prefcast.scorers.base import Meter
from prefcast.scorers.embedded import EmbeddedScorer
from prefcast.scorers.embedded.encoder import Encoder
from prefcast.scorers.embedded.texts import PairTokenizer

SHIPPED = Path(sys.modules["prefcast"].__file__ or "").parent / "forecasts" / "builtin" / "embedded"
START, END = 0, 2

PAIRS = [
    Pair.of("Why is the sky blue?", "Because short waves are scattered more.", "No idea."),
    Pair.of("c", "", "blue"),
    Pair.of(["Hello", "And now?"], ["Hi!", "Now it is late."], ["Hi!", "I'm sorry, I cannot say."]),
    Pair.of("j", "yes", "yes"),
    Pair.of("d " * 900, "e " * 2000, "f"),
]


@pytest.fixture(scope="module")
def scorer() -> Iterator[EmbeddedScorer]:
    made = EmbeddedScorer.load(SHIPPED)
    yield made
    made.close()


@pytest.fixture(scope="module")
def reader() -> PairTokenizer:
    return PairTokenizer(SHIPPED / "tokenizer.json", 32)


def said(reader: PairTokenizer, ids: np.ndarray) -> str:
    pieces = (reader._tokenizer.id_to_token(int(number)) for number in ids)
    return "".join(pieces).replace("▁", " ").strip()


def test_a_text_is_all_turns_of_one_speaker(reader: PairTokenizer) -> None:
    prompt, a, b = reader.read([Pair.of(["why so", "and"], ["yes", "it is"], ["no", ""])])[0]
    assert said(reader, prompt) == "<s> query: why so and</s>"
    assert said(reader, a) == "<s> passage: yes it is</s>"
    assert said(reader, b) == "<s> passage: no </s>"


def test_special_tokens_in_a_text_are_letters(reader: PairTokenizer) -> None:
    _, a, b = reader.read([Pair.of("a", "</s> yes <s> <pad> <mask>", "b")])[0]
    assert [np.flatnonzero(ids == END).tolist() for ids in (a, b)] == [[len(a) - 1], [len(b) - 1]]
    assert (a == START).sum() == 1


def test_a_long_text_loses_its_middle(reader: PairTokenizer) -> None:
    prompt, a, _ = reader.read([Pair.of("first " + "b " * 9_000 + "last", "one " + "c " * 40 + "two", "d")])[0]
    assert len(prompt) == len(a) == 34
    assert said(reader, prompt).startswith("<s> query: first b b")
    assert said(reader, prompt).endswith("b last</s>")
    assert said(reader, a).endswith("c two</s>")


@cache
def shipped_tokenizer() -> PairTokenizer:
    return PairTokenizer(SHIPPED / "tokenizer.json", 32)


@given(
    st.lists(st.tuples(*[st.text(max_size=90)] * 3), min_size=1, max_size=4),
    st.integers(16, 60),
)
@settings(max_examples=60, deadline=None)
def test_no_text_is_longer_than_the_limit(turns: list[tuple[str, str, str]], limit: int) -> None:
    reader = shipped_tokenizer()
    reader.limit = limit
    pair = Pair.of(*(list(column) for column in zip(*turns, strict=True)))
    texts, mirrored = reader.read([pair])[0], reader.read([pair.swapped()])[0]
    for ids in texts:
        assert 3 <= len(ids) <= limit + 2
        assert (ids[0], ids[-1]) == (START, END)
        assert ((ids >= 0) & (ids < reader.vocabulary)).all()
    assert np.array_equal(texts.a, mirrored.b)
    assert np.array_equal(texts.b, mirrored.a)
    assert np.array_equal(texts.prompt, mirrored.prompt)


def test_swaps_and_threads_change_no_bit(scorer: EmbeddedScorer) -> None:
    together, mirrored = scorer.evidence(PAIRS), scorer.evidence([pair.swapped() for pair in PAIRS])
    np.testing.assert_array_equal(mirrored.margin, -together.margin)
    np.testing.assert_array_equal(mirrored.tie, together.tie)
    texts = scorer.reader.read(PAIRS)
    many, one = (list(Encoder(SHIPPED / "encoder.onnx", threads).vectors(texts)) for threads in (5, 1))
    assert np.array_equal(many, one)
    assert together.margin[3] == 0
    assert abs(together.margin[0]) > 0.1


def test_an_explanation_has_what_is_said(scorer: EmbeddedScorer) -> None:
    found = scorer.evidence(PAIRS)
    np.testing.assert_allclose(found.margin, found.raw["margin:surface"] + found.raw["margin:encoder"])
    np.testing.assert_allclose(found.tie, found.raw["tie:surface"] + found.raw["tie:encoder"])
    for index, pair in enumerate(PAIRS):
        meaning = next(push for push in scorer.explain(pair) if push.name == "what is said")
        assert meaning.margin == pytest.approx(found.raw["margin:encoder"][index])


def test_the_same_surface_counts_differently_by_topic(scorer: EmbeddedScorer) -> None:
    listed, plain = "- one\n- two\n- three", "One, two and three."
    a, b = (
        scorer.evidence([Pair.of(prompt, listed, plain)]).raw["margin:surface"][0]
        for prompt in ("Write a sad poem about love.", "List the steps to install the program.")
    )
    assert abs(a - b) > 0.005


def test_progress_tells_every_pair_and_a_closed_scorer_works_again(scorer: EmbeddedScorer) -> None:
    seen: list[int] = []
    scorer.evidence(PAIRS, Meter(seen.append))
    assert seen == [5]
    scorer.evidence(PAIRS * 20, Meter(seen.append))
    assert seen == [5, 64, 100]
    scorer.close()
    assert len(scorer.evidence(PAIRS)) == 5
    assert len(scorer.evidence([])) == 0


def test_saved_and_loaded(scorer: EmbeddedScorer, tmp_path: Path) -> None:
    scorer.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(EmbeddedScorer.files)
    for name in ("embedded.json", "surface.json"):
        assert (tmp_path / name).read_bytes() == (SHIPPED / name).read_bytes()
    again = EmbeddedScorer.load(tmp_path)
    assert np.array_equal(again.evidence(PAIRS).margin, scorer.evidence(PAIRS).margin)
    whole = json.loads((tmp_path / "embedded.json").read_text())
    for change, message in (
        ({"format": 9}, "format 9 is not one that this version reads$"),
        ({"format": 2}, "train it again"),
        ({"tokens": 9000}, "tokens must be"),
        ({"tokens": "320"}, "tokens must be"),
        ({"vector": [1.0]}, "vector: expected 768 finite numbers"),
        ({"topics": whole["topics"][:3]}, "expected 3 x"),
        ({"prompt": [1e999] * 768}, "finite"),
        ({"spread": [0.0] * 768}, "positive"),
        ({"topics": 5.0}, "topics: expected"),
        ({"directions": [[1.0]]}, "directions: expected 1 x 892 finite numbers"),
        ({"directions": 1.0}, "directions: expected"),
        ({"share": 1.0}, "share: expected 32 finite numbers"),
        ({"share": [-1.0] * 32}, "negative"),
        ({"typical": 0.0}, "positive"),
        ({"penalty": [1.0]}, "penalty: expected a finite number"),
        ({"flattening": -1.0}, "negative"),
        ({"turns": 0.0}, "positive"),
        ({"flattening": 1e999}, "finite"),
        ({"penalty": 1e-200, "typical": 1e-200}, "too large or too small"),
        ({"vector_scale": 1e300}, "too large or too small"),
        ({"share": [2.0] * 32}, "too large or too small"),
        ({"vector": [10**400]}, "OverflowError"),
    ):
        (tmp_path / "embedded.json").write_text(json.dumps({**whole, **change}))
        with pytest.raises(ForecasterError, match=message):
            EmbeddedScorer.load(tmp_path)
    del whole["spread"]
    (tmp_path / "embedded.json").write_text(json.dumps(whole))
    with pytest.raises(ForecasterError, match="damaged: KeyError: 'spread'"):
        EmbeddedScorer.load(tmp_path)


@pytest.mark.parametrize("name", ["encoder.onnx", "tokenizer.json", "surface.json", "embedded.json"])
def test_a_damaged_file_is_named(name: str, tmp_path: Path) -> None:
    for path in SHIPPED.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes()[: 50 if path.name == name else None])
    with pytest.raises(ForecasterError, match=name):
        EmbeddedScorer.load(tmp_path)


def test_another_network_is_refused(tmp_path: Path) -> None:
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "other",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )
    path = tmp_path / "encoder.onnx"
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()
    )
    with pytest.raises(ForecasterError, match="from x to y"):
        Encoder(path)


@pytest.mark.parametrize(
    "text",
    [
        "لماذا السماء زرقاء؟ بسبب تشتت رايلي للضوء في الغلاف الجوي.",
        "天空为什么是蓝色的?因为瑞利散射使短波光散射得更强。",
        "ท้องฟ้าเป็นสีฟ้าเพราะการกระเจิงของแสง",
    ],
    ids=["right to left", "Chinese", "Thai"],
)
def test_scripts_of_the_world_are_read_without_unknown_pieces(reader: PairTokenizer, text: str) -> None:
    unknown = reader._tokenizer.token_to_id("<unk>")
    ids = replace_limit(reader, 510).read([Pair.of("a", text, "b")])[0].a
    assert (ids == unknown).sum() == 0


def replace_limit(reader: PairTokenizer, limit: int) -> PairTokenizer:
    found = PairTokenizer(SHIPPED / "tokenizer.json", limit)
    assert found.vocabulary == reader.vocabulary
    return found


def test_the_shipped_folder_is_small_and_needs_no_torch() -> None:
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) <= 45_000_000
    program = """
import sys
import prefcast
found = prefcast.load_forecaster().forecast([prefcast.Pair.of("Why?", "yes " * 50_000, "no")] * 40)
assert not found.failed
assert not {"torch", "transformers", "onnx"} & set(sys.modules), sys.modules
"""
    assert int(said_by(program + PEAK)) <= 500_000_000


def test_the_card_says_what_the_figures_are() -> None:
    card = load_forecaster("embedded").card
    assert card["figures"]["cross_fitted"]["n"] == sum(card["link_fitted_on"].values())
    assert not set(card["trained_on"]) & set(card["link_fitted_on"])


def test_a_forecaster_with_another_budget_reads_less(scorer: EmbeddedScorer) -> None:
    forecaster = load_forecaster("embedded")
    short = replace(forecaster, budget=type(forecaster.budget)(200))
    pair = Pair.of("Why?", "yes " * 300, "no")
    assert forecaster.forecast([pair]).margin[0] != short.forecast([pair]).margin[0]

"""The embedded scorer: what it reads, what its network computes, and that nothing but the pair matters."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from prefcast import Pair, load_forecaster
from prefcast.errors import ForecasterError, MissingExtraError
from prefcast.forecaster import Forecaster
from prefcast.outcomes import Davidson
from prefcast.scorers.embedded import EmbeddedScorer, Join
from prefcast.scorers.embedded.conversations import ConversationReader
from prefcast.scorers.embedded.encoder import Network

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "[",
    "]",
    "sep",
    "cls",
    *"abcdefghij",
    "yes",
    "no",
    "sky",
    "blue",
]
CLS, SEP, MASK = 2, 3, 4


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    made = Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    made.save(str(path))
    return path


@pytest.fixture(scope="module")
def folder(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network with random weights, as the training leaves it."""
    import torch

    from prefcast.training.embedded.export import export
    from prefcast.training.embedded.network import Encoder, Head

    torch.manual_seed(1)
    room = tmp_path_factory.mktemp("network")
    members = []
    for _ in range(2):
        encoder = Encoder(hidden=32, intermediate=64, layers=3, heads=4, vocabulary=len(WORDS), positions=64)
        head = Head(32)
        for weight in head.parameters():
            torch.nn.init.normal_(weight, std=0.3)
        members.append((encoder, head))
    with pytest.raises(ValueError, match="differ"):
        export(members, room, shared=1)
    own = [name for name in members[0][0].state_dict() if not name.startswith(("layers.1", "layers.2"))]
    first = members[0][0].state_dict()
    members[1][0].load_state_dict({name: first[name] for name in own}, strict=False)
    export(members, room, shared=1)
    whole = room / "float32"
    whole.mkdir()
    export(members, whole, shared=1, quantized=False)
    (room / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    return room


@pytest.fixture(scope="module")
def scorer(folder: Path) -> Iterator[EmbeddedScorer]:
    shipped = load_forecaster("surface").scorer
    made = EmbeddedScorer(shipped.model, folder, Join(0.5, 2.0, 0.25, 1.5), 48)
    yield made
    made.close()


def ids(reader: ConversationReader, pair: Pair) -> tuple[list[int], list[int]]:
    a, b = reader.read([pair])[0]
    return a.ids.tolist(), b.ids.tolist()


def test_a_conversation_is_prompt_and_response_of_each_turn(tokenizer: Path) -> None:
    reader = ConversationReader(tokenizer, 64)
    (a, b) = reader.read([Pair.of(["a b", "c"], ["yes", "d"], ["no", ""])])[0]
    y, n, d = WORDS.index("yes"), WORDS.index("no"), WORDS.index("d")
    first = [WORDS.index("a"), WORDS.index("b")]
    assert a.ids.tolist() == [CLS, *first, SEP, y, SEP, WORDS.index("c"), SEP, d, SEP]
    assert a.types.tolist() == [0, 0, 0, 0, 1, 1, 0, 0, 1, 1]
    assert b.ids.tolist() == [CLS, *first, SEP, n, SEP, WORDS.index("c"), SEP, SEP]
    assert not a.cut
    assert not b.cut


def test_special_tokens_in_a_text_are_letters(tokenizer: Path) -> None:
    a, _ = ids(ConversationReader(tokenizer, 64), Pair.of("a", "[SEP] yes [CLS]", "b"))
    assert a.count(SEP) == 2
    assert a.count(CLS) == 1


def test_a_long_text_loses_its_middle(tokenizer: Path) -> None:
    reader = ConversationReader(tokenizer, 32)
    a, b = reader.read([Pair.of("a", "b " * 100 + "sky", "yes " + "c " * 9_000 + "no")])[0]
    assert a.cut
    assert b.cut
    assert len(a.ids) == len(b.ids) == 32
    assert MASK in a.ids
    assert a.ids[-2] == WORDS.index("sky")
    assert (b.ids[3], b.ids[-2]) == (WORDS.index("yes"), WORDS.index("no"))


def test_a_long_prompt_leaves_room_for_the_response(tokenizer: Path) -> None:
    a, _ = ids(ConversationReader(tokenizer, 448), Pair.of("a " * 900, "b " * 900, "c"))
    assert len(a) == 448
    assert a.count(WORDS.index("a")) == 95
    assert a.count(WORDS.index("b")) > 300


def test_the_newest_turns_are_read(tokenizer: Path) -> None:
    pair = Pair.of(list("abcdef"), ["yes"] * 6, ["no"] * 6)
    a = ConversationReader(tokenizer, 64).read([pair])[0][0]
    assert a.cut
    assert [WORDS[i] for i in a.ids if WORDS[i] in "abcdef"] == list("cdef")


@given(
    st.lists(st.tuples(*[st.text(alphabet="abc\n []SEP", max_size=90)] * 3), min_size=1, max_size=6),
    st.integers(16, 60),
)
@settings(max_examples=60, deadline=None)
def test_no_conversation_is_longer_than_the_limit(
    tokenizer: Path, turns: list[tuple[str, str, str]], limit: int
) -> None:
    reader = ConversationReader(tokenizer, limit)
    pair = Pair.of(*(list(column) for column in zip(*turns, strict=True)))
    a, b = reader.read([pair])[0]
    swapped = reader.read([pair.swapped()])[0]
    for side, other in ((a, swapped[1]), (b, swapped[0])):
        assert len(side.ids) == len(side.types) <= limit
        assert (side.ids[0], side.ids[-1]) == (CLS, SEP)
        assert np.array_equal(side.ids, other.ids)


def test_the_exported_network_computes_what_torch_does(folder: Path, tokenizer: Path) -> None:
    from prefcast.training.embedded.export import Members, load_exported
    from prefcast.training.embedded.loop import evidence

    conversations = ConversationReader(tokenizer, 48).read(PAIRS)
    members, shared = load_exported(folder / "float32")
    assert (len(members), shared) == (2, 1)

    def mean(members: Members) -> NDArray[np.float64]:
        return np.mean([evidence(encoder, head, conversations) for encoder, head in members], axis=0)

    expected = mean(members)
    whole = Network(folder / "float32").evidence(conversations)
    np.testing.assert_allclose(whole, expected, atol=2e-5)
    assert np.ptp(expected[0]) > 0.1
    # int8 moves it, and reading it back gives the weights that were rounded.
    rounded = Network(folder).evidence(conversations)
    np.testing.assert_allclose(rounded, mean(load_exported(folder)[0]), atol=0.1)
    assert np.abs(np.array(rounded) - np.array(whole)).max() > 1e-6


PAIRS = [
    Pair.of("a b", "yes yes sky", "no"),
    Pair.of("c", "", "blue"),
    Pair.of(["a", "b"], ["sky", "yes"], ["sky", "no no no"]),
    Pair.of("j", "yes", "yes"),
    Pair.of("d " * 80, "e " * 90, "f"),
]


def test_a_pair_s_evidence_depends_on_the_pair_alone(scorer: EmbeddedScorer, folder: Path) -> None:
    together = scorer.evidence(PAIRS)
    for index, pair in enumerate(PAIRS):
        alone, mirrored = scorer.evidence([pair]), scorer.evidence([pair.swapped()])
        assert alone.margin[0] == together.margin[index] == -mirrored.margin[0]
        assert alone.tie[0] == together.tie[index] == mirrored.tie[0]
    backwards = scorer.evidence(PAIRS[::-1])
    assert np.array_equal(backwards.margin[::-1], together.margin)
    conversations = scorer.reader.read(PAIRS)
    many, one = (Network(folder, threads).evidence(conversations) for threads in (5, 1))
    assert np.array_equal(many, one)
    assert together.margin[3] == 0


def test_the_parts_are_joined_by_their_weights(scorer: EmbeddedScorer) -> None:
    found = scorer.evidence(PAIRS)
    np.testing.assert_allclose(found.margin, 0.5 * found.raw["margin:surface"] + 2 * found.raw["margin:encoder"])
    np.testing.assert_allclose(found.tie, 0.25 * found.raw["tie:surface"] + 1.5 * found.raw["tie:encoder"])
    pushes = scorer.explain(PAIRS[0])
    assert sum(push.margin for push in pushes) == pytest.approx(found.margin[0])
    assert sum(push.tie for push in pushes) == pytest.approx(found.tie[0])
    assert "what is said" in {push.name for push in pushes}


def test_progress_tells_every_pair_and_a_closed_scorer_works_again(scorer: EmbeddedScorer) -> None:
    seen: list[int] = []
    scorer.on_progress = seen.append
    scorer.evidence(PAIRS)
    scorer.on_progress = None
    assert seen == [1, 2, 3, 4, 5]
    scorer.close()
    assert len(scorer.evidence(PAIRS)) == 5
    assert len(scorer.evidence([])) == 0


def test_saved_and_loaded(scorer: EmbeddedScorer, tmp_path: Path) -> None:
    scorer.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(EmbeddedScorer.files)
    again = EmbeddedScorer.load(tmp_path)
    assert (again.join, again.reader.limit) == (scorer.join, 48)
    assert np.array_equal(again.evidence(PAIRS).margin, scorer.evidence(PAIRS).margin)
    said = json.loads((tmp_path / "embedded.json").read_text())
    for change, message in (
        ({"format": 9}, "format 9"),
        ({"tokens": 9000}, "damaged"),
        ({"join": {}}, "damaged"),
        ({"join": dict.fromkeys(said["join"], 1e999)}, "finite"),
    ):
        (tmp_path / "embedded.json").write_text(json.dumps({**said, **change}))
        with pytest.raises(ForecasterError, match=message):
            EmbeddedScorer.load(tmp_path)
    (tmp_path / "embedded.json").write_text(json.dumps(said))
    for name in ("encoder.onnx", "head.onnx", "tokenizer.json"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[:50])
        with pytest.raises(ForecasterError, match=name):
            EmbeddedScorer.load(tmp_path)
        (tmp_path / name).write_bytes(whole)
    (tmp_path / "head.onnx").write_bytes((tmp_path / "encoder.onnx").read_bytes())
    with pytest.raises(ForecasterError, match="inputs are"):
        EmbeddedScorer.load(tmp_path)


TEXTS = {
    "right to left": "لماذا السماء زرقاء؟ بسبب تشتت رايلي للضوء في الغلاف الجوي.",
    "Chinese": "天空为什么是蓝色的?因为瑞利散射使短波光散射得更强。",
    "Thai": "ท้องฟ้าเป็นสีฟ้าเพราะการกระเจิงของแสง",
    "emoji": "😀🔥👩‍👩‍👧‍👦🏳️‍🌈" * 5,
    "one character": "x",
    "blank": " \n\t ",
    "empty": "",
    "200,000 characters": "word and another, " * 11_112,
    "one long word": "a" * 200_000,
    "special tokens": "[SEP] [CLS] [MASK] [PAD] <|im_end|> </s>",
    "controls": "\x00\x1b[31mred\x07 \u202e\ufeff",
}


def test_every_text_gets_a_forecast(scorer: EmbeddedScorer) -> None:
    forecaster = Forecaster(scorer, Davidson())
    pairs = [
        Pair.of(prompt, answer, other)
        for prompt in ("Why is the sky blue?", "")
        for answer in TEXTS.values()
        for other in ("Because.", answer)
    ]
    found = forecaster.forecast(pairs)
    assert not found.failed
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1)
    mirrored = forecaster.forecast([pair.swapped() for pair in pairs])
    np.testing.assert_array_equal(mirrored.probabilities[:, [1, 0, 2]], found.probabilities)


def test_a_forecaster_s_folder_needs_no_torch(scorer: EmbeddedScorer, tmp_path: Path) -> None:
    Forecaster(scorer, Davidson()).save(tmp_path / "f")
    program = """
import sys
import prefcast
found = prefcast.load_forecaster(sys.argv[1]).forecast([prefcast.Pair.of("Why?", "yes " * 50_000, "no")] * 40)
assert not found.failed
assert not {"torch", "transformers", "onnx"} & set(sys.modules), sys.modules
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program, tmp_path / "f"], check=True)


def test_a_missing_extra_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefcast.scorers.embedded.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install .*prefcast\[train\]"):
        EmbeddedScorer(load_forecaster("surface").scorer.model, folder, Join())

"""One contract for every family of reward models, and each against transformers' own network."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from checkpoints import FAMILIES, LABELS, change_config, save_deberta, save_decoder, save_gemma2_pair, save_tokenizer
from checkpoints import fresh_scorer as load_scorer
from conftest import EXAMPLES
from prefcast import Forecaster, Pair, read_pairs
from prefcast.errors import ForecasterError, ModelError, UsageError
from prefcast.outcomes.models import Davidson
from prefcast.pairs import Outcome, Turn
from prefcast.pairs.budget import WHOLE
from prefcast.scorers.base import fingerprint
from prefcast.scorers.blend import BlendScorer, Member
from prefcast.scorers.length import LengthScorer
from prefcast.scorers.registry import scorer_class
from prefcast.scorers.reward.checkpoint import open_checkpoint
from prefcast.scorers.reward.networks import PACKED_FAMILIES
from prefcast.scorers.reward.scorer import RewardScorer


def short(pair: Pair) -> Pair:
    """The pair with the first 300 characters of each text: attention by hand takes a second for a long one."""
    return replace(pair, turns=tuple(Turn(*(text[:300] for text in turn.texts)) for turn in pair.turns))


PAIRS = [short(pair) for pair in read_pairs(EXAMPLES) if isinstance(pair, Pair)]
Make = Callable[..., RewardScorer]
TOLERANCE = 1e-5


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    room = tmp_path_factory.mktemp("checkpoints")
    return {name: save(room / name) for name, save in FAMILIES.items()}


@pytest.fixture(params=FAMILIES)
def folder(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Path:
    return folders[request.param]


def read(scorer: RewardScorer, pairs: list[Pair]) -> list[Pair]:
    return [Forecaster(scorer, Davidson(1, 0, 0)).read(pair)[0] for pair in pairs]


def test_the_contract(folder: Path) -> None:
    scorer = load_scorer(folder)
    pairs = read(scorer, PAIRS[:8])
    nothing = scorer.evidence([])
    assert nothing.margin.shape == nothing.tie.shape == (0,)
    assert set(nothing.raw) == set(scorer.raw_names)
    whole = scorer.evidence(pairs)
    assert not whole.problems
    assert whole.margin.std() > 0.01
    order = np.random.default_rng(0).permutation(len(pairs))
    shuffled = scorer.evidence([pairs[index] for index in order])
    np.testing.assert_allclose(shuffled.margin, whole.margin[order], rtol=0, atol=TOLERANCE)
    backward = scorer.evidence([pair.swapped() for pair in pairs])
    np.testing.assert_allclose(backward.margin, -whole.margin, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(backward.tie, whole.tie, rtol=0, atol=TOLERANCE)
    same = scorer.evidence([Pair.of("Why?", "Because.", "Because.")])
    assert same.margin[0] == 0


@pytest.mark.parametrize("batch_tokens", [1, 700, pytest.param(100_000, marks=pytest.mark.long)])
def test_scores_do_not_depend_on_the_batch(folder: Path, batch_tokens: int) -> None:
    scorer, other = load_scorer(folder), load_scorer(folder, batch_tokens=batch_tokens)
    pairs = read(scorer, PAIRS[:8])
    one, two = scorer.evidence(pairs), other.evidence(pairs)
    np.testing.assert_allclose(two.margin, one.margin, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(two.tie, one.tie, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("side", ["left", pytest.param("right", marks=pytest.mark.long)])
def test_the_tokenizers_padding_side_does_not_matter(folder: Path, tmp_path: Path, side: str) -> None:
    import shutil

    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    path = copy / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"padding_side": side}))
    pairs = read(load_scorer(folder), PAIRS[:8])
    np.testing.assert_array_equal(load_scorer(copy).evidence(pairs).margin, load_scorer(folder).evidence(pairs).margin)


def test_what_is_saved_is_loaded(folder: Path, tmp_path: Path) -> None:
    forecaster = Forecaster(load_scorer(folder, max_tokens=200), Davidson(0.5, 0.1, 0.2))
    before = forecaster.forecast(PAIRS[:5])
    forecaster.save(tmp_path / "f")
    again = Forecaster.load(tmp_path / "f")
    np.testing.assert_array_equal(again.forecast(PAIRS[:5]).probabilities, before.probabilities)
    assert [each.truncated for each in before.truncations if each] == [
        each.truncated for each in again.forecast(PAIRS[:5]).truncations if each
    ]
    change_config(Path(json.loads((tmp_path / "f" / "reward-model.json").read_text())["model"]), note="changed")
    with pytest.raises(ForecasterError, match="is not the model that the outcome model was fitted for"):
        Forecaster.load(tmp_path / "f")


OWN_CODE = """open({mark!r}, "w").write("ran")
from transformers import LlamaForSequenceClassification
class Own(LlamaForSequenceClassification):
    pass
"""


def refingerprint(folder: Path) -> None:
    """Make every fingerprint of a changed forecaster folder right again, as a stranger would."""
    blend = folder / "blend.json"
    if blend.exists():
        said = json.loads(blend.read_text())
        for number, member in enumerate(said["members"], 1):
            member["sha256"] = fingerprint(folder / f"member-{number}", scorer_class(member["model"]))
        blend.write_text(json.dumps(said))
    card = json.loads((folder / "forecaster.json").read_text())
    card["scorer_sha256"] = fingerprint(folder, scorer_class(card["model"]))
    (folder / "forecaster.json").write_text(json.dumps(card))


@pytest.mark.parametrize("in_an_ensemble", [False, True])
def test_a_saved_folder_cannot_run_code(tmp_path: Path, in_an_ensemble: bool) -> None:
    """A stranger's folder sets `trust_remote_code`; the model's folder holds code. Nobody passed --trust-remote-code."""
    model, mark = save_decoder(tmp_path / "model"), tmp_path / "ran"
    scorer: Any = load_scorer(model)
    if in_an_ensemble:
        scorer = BlendScorer([Member(scorer, WHOLE, 1.0, 1.0), Member(LengthScorer(), WHOLE, 1.0, 1.0)])
    Forecaster(scorer, Davidson(1.0, -1.0, 1.0)).save(tmp_path / "f")
    change_config(model, architectures=["Own"], auto_map={"AutoModelForSequenceClassification": "own.Own"})
    (model / "own.py").write_text(OWN_CODE.format(mark=str(mark)))
    saved = tmp_path / "f" / ("member-1" if in_an_ensemble else "") / "reward-model.json"
    said = json.loads(saved.read_text())
    said["options"]["trust_remote_code"] = True
    fingerprint_of_code = open_checkpoint(model, trust_remote_code=True).fingerprint()
    said["fingerprint"] = hashlib.sha256(fingerprint_of_code.encode()).hexdigest()
    saved.write_text(json.dumps(said))
    refingerprint(tmp_path / "f")
    with pytest.raises(ForecasterError, match="the option 'trust_remote_code' may not be set by a file"):
        Forecaster.load(tmp_path / "f").forecast(PAIRS[:1])
    assert not mark.exists()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("devices", "cpu,cpu", "the option 'devices' may not be set by a file"),
        ("isolate", True, "the option 'isolate' may not be set by a file"),
        ("keep", False, "the option 'keep' may not be set by a file"),
        ("__class__", "x", "the option '__class__' may not be set by a file"),
        ("max_tokens", "200", "the option max_tokens has the value '200'"),
        ("template", ["a"], "the option template has the value"),
        ("labels", [1, 2], "the option labels must list texts"),
    ],
)
def test_what_a_saved_folder_may_say_is_a_closed_list(tmp_path: Path, name: str, value: Any, message: str) -> None:
    Forecaster(load_scorer(save_decoder(tmp_path / "model")), Davidson(1.0, -1.0, 1.0)).save(tmp_path / "f")
    saved = tmp_path / "f" / "reward-model.json"
    said = json.loads(saved.read_text())
    said["options"][name] = value
    saved.write_text(json.dumps(said))
    refingerprint(tmp_path / "f")
    with pytest.raises(ForecasterError, match=message):
        Forecaster.load(tmp_path / "f")


def chats(count: int = 6) -> list[list[dict[str, str]]]:
    return [
        [{"role": "user", "content": pair.turns[0].prompt}, {"role": "assistant", "content": pair.turns[0].response_a}]
        for pair in PAIRS[:count]
    ]


MORE: dict[str, dict[str, Any]] = {
    "gemma2": {"sliding_window": 24, "attn_logit_softcapping": 5.0},
    "mistral": {"sliding_window": 24},
    "gemma3_text": {"sliding_window": 24},
    "phi3": {"sliding_window": 24},
}


@pytest.mark.parametrize("family", sorted(PACKED_FAMILIES))
def test_packed_rows_score_as_the_network_itself(tmp_path: Path, family: str) -> None:
    """Ids of apply_chat_template, logits of the whole network, one conversation at a time, eager attention."""
    folder = save_decoder(tmp_path / "m", family, **MORE.get(family, {}))
    network = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    scorer = load_scorer(folder)
    ids = [tokenizer.apply_chat_template(chat, tokenize=True, return_dict=False) for chat in chats()]
    assert [scorer.encode(chat) for chat in chats()] == ids
    with torch.inference_mode():
        expected = [float(network(input_ids=torch.tensor([each])).logits) for each in ids]
    np.testing.assert_allclose(scorer.score(chats()), expected, rtol=1e-5, atol=2e-5)
    # And with a shared beginning: margins are differences of scores.
    pairs = [
        Pair.of("A question of some length, with many words? " * 4, "Yes, I think so.", "No, certainly not, never.")
    ]
    a, b = (
        [{"role": "user", "content": pairs[0].prompt[0]}, {"role": "assistant", "content": text}]
        for text in ("Yes, I think so.", "No, certainly not, never.")
    )
    np.testing.assert_allclose(scorer.evidence(pairs).margin, np.subtract(*scorer.score([a, b])), rtol=0, atol=2e-5)


def test_a_family_that_is_not_packed_scores_its_last_token(tmp_path: Path) -> None:
    folder = save_decoder(tmp_path / "m", "stablelm")
    network = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    scorer = load_scorer(folder)
    with torch.inference_mode():
        expected = [float(network(input_ids=torch.tensor([scorer.encode(chat)])).logits) for chat in chats()]
    np.testing.assert_allclose(scorer.score(chats()), expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("types", [False, True])
def test_two_texts_are_read_as_the_tokenizer_joins_them(tmp_path: Path, types: bool) -> None:
    folder = save_deberta(tmp_path / "m")
    if types:
        save_tokenizer(
            folder,
            chat=False,
            model_max_length=256,
            model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        )
    network = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [("Why is the sky blue?", "Because of scattering."), ("Hi", "Hello! How can I help you today?")]
    expected = []
    for question, answer in texts:
        with torch.inference_mode():
            expected.append(float(network(**tokenizer(question, answer, return_tensors="pt")).logits))
    asked = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in texts]
    scorer = load_scorer(folder)
    assert scorer.encode(asked[0]) == tokenizer(*texts[0])["input_ids"]
    np.testing.assert_allclose(scorer.score(asked), expected, rtol=0, atol=TOLERANCE)


def test_a_pair_classifier_by_hand(tmp_path: Path) -> None:
    folder = save_gemma2_pair(tmp_path / "m")
    network = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    logits = []
    for a, b in (("Blue.", "Red, I think."), ("Red, I think.", "Blue.")):
        text = f"<s><prompt>: Colour?\n\n<response_a>: {a}\n\n<response_b>: {b}"
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            logits.append(network(input_ids=ids).logits[0].double().numpy())
    first, second = logits
    a, b, tie = (first[0] + second[1]) / 2, (first[1] + second[0]) / 2, (first[2] + second[2]) / 2
    found = load_scorer(folder).evidence([Pair.of("Colour?", "Blue.", "Red, I think.")])
    np.testing.assert_allclose(found.margin, [a - b], rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(found.tie, [tie - (a + b) / 2], rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(
        [found.raw[name][0] for name in ("logit_a", "logit_b", "logit_tie")], [a, b, tie], atol=TOLERANCE
    )


def test_labels_in_another_order(tmp_path: Path) -> None:
    folder = save_gemma2_pair(tmp_path / "m")
    plain = load_scorer(folder).evidence(PAIRS[:3])
    change_config(folder, id2label={"0": "tie", "1": "Model B wins", "2": "A"})
    moved = load_scorer(folder).evidence(PAIRS[:3])
    np.testing.assert_array_equal(
        moved.raw["logit_tie"], load_scorer(folder, labels=["tie", "b", "a"]).evidence(PAIRS[:3]).raw["logit_tie"]
    )
    assert np.abs(moved.margin - plain.margin).max() > 0.01
    change_config(folder, id2label={str(index): f"LABEL_{index}" for index in range(3)})
    with pytest.raises(
        UsageError, match=r"its labels are called 'LABEL_0', .* say it in the order of the outputs: --labels a,b,tie"
    ):
        load_scorer(folder)
    np.testing.assert_array_equal(
        load_scorer(folder, labels=["a", "b", "tie"]).evidence(PAIRS[:3]).margin, plain.margin
    )
    with pytest.raises(UsageError, match="does not order the 3 outputs"):
        load_scorer(folder, labels=["a", "b"])


def test_two_labels_have_no_view_of_ties(tmp_path: Path) -> None:
    folder = save_decoder(tmp_path / "m", "qwen2", labels=2, names={0: "model_a", 1: "model_b"})
    evidence = load_scorer(folder).evidence(PAIRS[:4])
    assert (evidence.tie == 0).all()
    assert evidence.margin.std() > 0
    assert set(evidence.raw) == {"logit_a", "logit_b"}


def test_a_template_in_a_file_and_one_in_the_checkpoint(tmp_path: Path) -> None:
    folder = save_decoder(tmp_path / "m", "llama", labels=2, names={0: "A", 1: "B"})
    template = tmp_path / "mine.jinja"
    template.write_text(
        "{% for turn in turns %}Q: {{ turn.prompt }} 1: {{ turn.response_a }} 2: {{ turn.response_b }}{% endfor %}"
    )
    own = load_scorer(folder, template=template).evidence(PAIRS[:3])
    assert np.abs(own.margin - load_scorer(folder).evidence(PAIRS[:3]).margin).max() > 0.01
    (folder / "pair_template.jinja").write_text(template.read_text())
    np.testing.assert_array_equal(load_scorer(folder).evidence(PAIRS[:3]).margin, own.margin)
    with pytest.raises(UsageError, match="there are lmsys, rlhflow, or name a Jinja file"):
        load_scorer(folder, template="nothing")
    template.write_text("{% for %}")
    with pytest.raises(UsageError, match=r"template .*mine.jinja"):
        load_scorer(folder, template=template)
    for source, message in (
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "recursion"),
        ("{{ prompts[0] }} {{ responses_a[0] }}", "leaves out the prompt or an answer"),
        ("{{ prompts | attr('\x1b[31m') }}{{ none.x.y }}", "is undefined|has no attribute"),
    ):
        template.write_text(source)
        with pytest.raises(UsageError, match=message):
            load_scorer(folder, template=template)
    template.write_text("{{ prompts[0] }} {{ responses_a[0] }} {{ responses_b[0] }} {{ 1 / (5 - turns | length) }}")
    five = Pair.of(["a"] * 5, ["b"] * 5, ["c"] * 5)
    assert "division by zero" in load_scorer(folder, template=template).evidence([five]).problems[0]


def test_an_a_b_model_by_hand(tmp_path: Path) -> None:
    """As RLHFlow's card runs it: the context in a template of its own, the question in the model's chat template
    without the first token, the logits of A and B after it, both orders."""
    folder = save_decoder(tmp_path / "m", "llama", labels=None)
    network = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer, plain = AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    plain.chat_template = (
        "\n{% for message in messages %}{% if loop.index0 % 2 == 0 %}\n\n<turn> user\n {{ message['content'] }}"
        "{% else %}\n\n<turn> assistant\n {{ message['content'] }}{% endif %}{% endfor %}\n\n\n"
    )
    context = plain.apply_chat_template([{"role": "user", "content": "Colour?"}], tokenize=False)
    letters = [tokenizer.encode(letter, add_special_tokens=False)[0] for letter in "AB"]
    logits = []
    for a, b in (("Blue.", "Red."), ("Red.", "Blue.")):
        prompt = f"[CONTEXT] {context} [RESPONSE A] {a} [RESPONSE B] {b} \n"
        message = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True).replace("<s>", "")
        ids = tokenizer.encode(text, return_tensors="pt", add_special_tokens=False)
        with torch.inference_mode():
            logits.append(network(input_ids=ids).logits[0, -1, letters].double().numpy())
    expected = (logits[0][0] - logits[0][1] + logits[1][1] - logits[1][0]) / 2
    found = load_scorer(folder, kind="ab").evidence([Pair.of("Colour?", "Blue.", "Red.")])
    np.testing.assert_allclose(found.margin, [expected], rtol=0, atol=TOLERANCE)
    assert found.tie[0] == 0


def test_an_a_b_model_needs_the_two_tokens(tmp_path: Path) -> None:
    folder = save_decoder(tmp_path / "m", "llama", labels=None)
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text())
    data["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    data["model"]["merges"] = []
    path.write_text(json.dumps(data))
    with pytest.raises(ModelError, match="no single token 'A'"):
        load_scorer(folder, template="rlhflow")


def test_several_turns_reach_every_family(folder: Path) -> None:
    pair = Pair.of(["First?", "Second?"], ["one", "two"], ["one", "other"])
    scorer = load_scorer(folder)
    last, first = scorer.evidence([pair]), scorer.evidence([Pair.of("First?", "one", "one")])
    assert last.margin[0] != 0
    assert first.margin[0] == 0


def test_a_forecaster_is_fitted_to_a_reward_model(tmp_path: Path) -> None:
    scorer = load_scorer(save_decoder(tmp_path / "m", "llama"))
    rows = [
        Pair.of(pair.prompt, pair.response_a, pair.response_b, id=index, outcome=Outcome(index % 3))
        for index, pair in enumerate(PAIRS)
    ]
    fitted = Forecaster(scorer, Davidson(1, 0, 0)).fit(rows)
    assert str(fitted.budget) == "whole"
    forecasts = fitted.forecast(rows)
    assert forecasts.failed == 0
    np.testing.assert_allclose(forecasts.probabilities.sum(1), 1)


@pytest.mark.parametrize(
    ("conversation", "message"),
    [
        ("Hi", "a conversation is a list of messages"),
        ([], "a conversation is a list of messages"),
        ([{"role": "user"}], "a message needs the texts 'role' and 'content'"),
        (["Hi"], "a message needs the texts"),
    ],
)
def test_what_is_no_conversation(tmp_path: Path, conversation: Any, message: str) -> None:
    scorer = load_scorer(save_decoder(tmp_path / "m", "llama"))
    with pytest.raises(UsageError, match=message):
        scorer.score([conversation])


def test_labels_of_the_makers_are_understood() -> None:
    from prefcast.scorers.reward.labels import label_columns

    assert label_columns({"id2label": LABELS}, None, "m") == (0, 1, 2)
    for names in (
        ("A", "B", "tie"),
        ("a wins", "b wins", "draw"),
        ("response_a", "response_b", "Tie (bothbad)"),
        ("first", "second", "equal"),
    ):
        assert label_columns({"id2label": {str(index): name for index, name in enumerate(names)}}, None, "m") == (
            0,
            1,
            2,
        )
    assert label_columns({"num_labels": 2}, ("b", "a"), "m") == (1, 0)

"""Trained heads of every known family are used, others are refused by name; a model that says no kind needs --kind."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from checkpoints import LABELS, change_config, change_weights, save_ab, save_decoder
from checkpoints import fresh_scorer as load_scorer
from conftest import Run
from prefcast import Pair
from prefcast.errors import ModelError, UsageError
from prefcast.scorers.reward.checkpoint import Kind, open_checkpoint

CHATS = [
    [{"role": "user", "content": "Why is the sky blue?"}, {"role": "assistant", "content": answer}]
    for answer in ("Because of Rayleigh scattering.", "No idea.", "x " * 40)
]


def by_hand(folder: Path, head: Callable[[Tensor], Tensor], chats: Sequence[Any] = CHATS) -> Any:
    """Each conversation alone: the body of transformers, then the head on the last token."""
    body = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = []
    with torch.inference_mode():
        for each in chats:
            ids = tokenizer.apply_chat_template(each, tokenize=True, return_dict=False)
            found.append(float(head(body(input_ids=torch.tensor([ids])).last_hidden_state[0, -1])))
    return np.array(found)


def value_head(bias: float = 0.7) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {
        "v_head.summary.weight": torch.randn(1, 64, generator=generator),
        "v_head.summary.bias": torch.tensor([bias]),
    }


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_value_head_is_used(tmp_path: Path, family: str, beside: bool) -> None:
    """Inside the weights as TRL saves it, or in value_head.safetensors beside them as LLaMA-Factory does."""
    folder = save_decoder(tmp_path / "m", family, labels=None)
    head = value_head()
    if beside:
        save_file(head, folder / "value_head.safetensors")
    else:
        change_weights(folder, lambda weights: weights.update(head))
    weight, bias = head.values()
    expected = by_hand(folder, lambda state: weight @ state + bias)
    assert open_checkpoint(folder).kind is Kind.POINTWISE
    np.testing.assert_allclose(load_scorer(folder).score(CHATS), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("quantize", ["int8", "nf4"])
def test_a_value_head_is_never_quantised(tmp_path: Path, prefcast_here: Run, quantize: str) -> None:
    folder = save_decoder(tmp_path / "m", labels=None)
    save_file(value_head(), folder / "value_head.safetensors")
    found = load_scorer(folder, quantize=quantize).score(CHATS)
    done = prefcast_here("quantize", folder, "small", "--quantize", quantize)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(load_scorer(tmp_path / "small").score(CHATS), found, rtol=0, atol=1e-5)
    biased = value_head(10.7)
    save_file(biased, folder / "value_head.safetensors")
    np.testing.assert_allclose(load_scorer(folder, quantize=quantize).score(CHATS), found + 10, rtol=0, atol=1e-4)


def test_a_value_head_reads_the_last_token_whatever_the_padding(tmp_path: Path) -> None:
    folder = save_decoder(tmp_path / "m", labels=None)
    head = value_head()
    change_weights(folder, lambda weights: weights.update(head))
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text() + "{{ eos_token }}")
    expected = by_hand(folder, lambda state: head["v_head.summary.weight"] @ state + head["v_head.summary.bias"])
    np.testing.assert_allclose(load_scorer(folder).score(CHATS), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_a_classifier_whose_config_says_causal(tmp_path: Path, tied: bool) -> None:
    folder = save_decoder(tmp_path / "m", tie_word_embeddings=tied)
    expected = load_scorer(folder).score(CHATS)
    change_config(folder, architectures=["LlamaForCausalLM"])
    np.testing.assert_allclose(load_scorer(folder).score(CHATS), expected, rtol=0, atol=1e-6)
    pairs = save_decoder(tmp_path / "p", labels=3, names=LABELS)
    expected = load_scorer(pairs).evidence([Pair.of("q", "a", "b")]).margin
    change_config(pairs, architectures=["LlamaForCausalLM"])
    np.testing.assert_allclose(load_scorer(pairs).evidence([Pair.of("q", "a", "b")]).margin, expected, atol=1e-6)


@pytest.mark.parametrize("quantize", [None, "int8"])
def test_the_bias_of_a_head_is_not_dropped(tmp_path: Path, quantize: str | None) -> None:
    pair = [Pair.of("q", "yes", "no")]
    folder = save_decoder(tmp_path / "m", labels=3, names=LABELS)
    plain = load_scorer(folder, quantize=quantize).evidence(pair)
    change_weights(folder, lambda weights: weights.update({"score.bias": torch.tensor([5.0, 5.0, 7.0])}))
    found = load_scorer(folder, quantize=quantize).evidence(pair)
    np.testing.assert_allclose(found.tie, plain.tie + 2, rtol=0, atol=1e-5)
    one = save_decoder(tmp_path / "one")
    before = load_scorer(one).score(CHATS)
    change_weights(one, lambda weights: weights.update({"score.bias": torch.tensor([3.0])}))
    np.testing.assert_allclose(load_scorer(one).score(CHATS), before + 3, rtol=0, atol=1e-5)


@pytest.mark.parametrize("architecture", ["INFORMForSequenceClassification", "Qwen2ForRewardModel"])
def test_a_head_of_two_layers(tmp_path: Path, architecture: str) -> None:
    """INF-ORM has no code in its folder; Qwen2.5-Math-RM has, which need not run."""
    folder = save_decoder(tmp_path / "m")
    change_config(folder, architectures=[architecture], auto_map={"AutoModel": "modeling.Missing"})
    head = {
        "score.0.weight": torch.randn(64, 64),
        "score.0.bias": torch.randn(64),
        "score.2.weight": torch.randn(1, 64),
        "score.2.bias": torch.randn(1),
    }
    change_weights(folder, lambda weights: (weights.pop("score.weight"), weights.update(head)))
    first, bias, second, last = head.values()
    expected = by_hand(folder, lambda state: second @ torch.relu(first @ state + bias) + last)
    np.testing.assert_allclose(load_scorer(folder).score(CHATS), expected, rtol=1e-6, atol=1e-5)


UNKNOWN = [
    ("value_head.weight", None, "a head, 'value_head.weight', that no known family"),
    ("reward_head.0.weight", None, "a head, 'reward_head.0.weight', that no known family"),
    ("model.score_layer.weight", None, "a head, 'model.score_layer.weight'"),
    ("classifier.weight", None, "a head, 'classifier.weight'"),
    ("v_head.0.weight", None, "a head, 'v_head.0.weight'"),
    ("regression_head.weight", 1, "a trained head, regression_head.weight, that"),
    ("classifier.weight", 1, "a trained head, classifier.weight, that"),
    ("score.0.weight", 1, "a head, 'score.0.weight', that no known family"),
    ("v_head.summary.weight", 1, "a trained head, v_head.summary.weight, that"),
]


@pytest.mark.parametrize("quantize", [None, "int8"])
@pytest.mark.parametrize("labels", [None, 1])
def test_other_heads_are_refused_by_name(tmp_path: Path, labels: int | None, quantize: str | None) -> None:
    folder = save_decoder(tmp_path / "m", labels=labels)
    for name, where, message in UNKNOWN:
        if where == labels:
            change_weights(folder, lambda weights, name=name: weights.update({name: torch.randn(1, 64)}))
            with pytest.raises(ModelError, match=message):
                load_scorer(folder, kind=None if labels else "ab", quantize=quantize).evidence([Pair.of("q", "a", "b")])
            change_weights(folder, lambda weights, name=name: weights.pop(name))


def test_heads_beside_the_weights_are_refused_by_name(tmp_path: Path) -> None:
    folder = save_decoder(tmp_path / "m", labels=None)
    save_file({"reward_head.weight": torch.randn(1, 64)}, folder / "head.safetensors")
    with pytest.raises(ModelError, match=r"a head, 'reward_head.weight'"):
        load_scorer(folder, kind="ab")
    (folder / "head.safetensors").unlink()
    torch.save(value_head(), folder / "value_head.bin")
    with pytest.raises(
        ModelError, match=r"value_head.bin beside the weights is a pickle, which can run code: convert it"
    ):
        load_scorer(folder, kind="ab")


def test_the_bias_of_a_language_models_head_is_not_dropped(tmp_path: Path) -> None:
    folder = save_ab(tmp_path / "m")
    change_weights(folder, lambda weights: weights.update({"lm_head.bias": torch.randn(700)}))
    with pytest.raises(ModelError, match=r"a trained head, lm_head.bias"):
        load_scorer(folder).evidence([Pair.of("q", "a", "b")])


def test_a_language_model_needs_a_sign_of_how_it_scores(tmp_path: Path, prefcast_here: Run) -> None:
    folder = save_decoder(tmp_path / "m", labels=None)
    (tmp_path / "pairs.jsonl").write_text('{"prompt": ["Why?"], "response_a": ["x"], "response_b": ["y"]}\n')
    done = prefcast_here("score", "pairs.jsonl", "--model", folder, "-o", "out.csv")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "nothing says how it scores: --kind ab" in done.stderr
    assert "--kind first-logit" in done.stderr
    assert not (tmp_path / "out.csv").exists()
    shown = prefcast_here("models", "show", folder)
    assert "language model (--kind says how it scores)" in shown.stdout
    pair = [Pair.of("Why?", "x", "y")]
    said = load_scorer(folder, kind="ab").evidence(pair).margin
    assert load_scorer(folder, template="rlhflow").evidence(pair).margin == said
    assert load_scorer(save_ab(tmp_path / "ab")).evidence(pair).margin == said
    assert load_scorer(folder, kind="first-logit").evidence(pair).margin != said


@pytest.mark.parametrize("family", ["llama", "gemma2", "cohere", "gpt2"])
def test_the_first_logit(tmp_path: Path, family: str) -> None:
    """Llama-3.1-Nemotron-70B-Reward-HF: logit 0 after the conversation. Cohere scales its logits, Gemma caps them."""
    folder = save_decoder(tmp_path / "m", family, labels=None)
    network = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        expected = [
            float(
                network(
                    input_ids=torch.tensor([tokenizer.apply_chat_template(each, tokenize=True, return_dict=False)])
                ).logits[0, -1, 0]
            )
            for each in CHATS
        ]
    scorer = load_scorer(folder, kind="first-logit")
    np.testing.assert_allclose(scorer.score(CHATS), expected, rtol=0, atol=1e-5)
    assert scorer.identity() != load_scorer(folder, kind="ab").identity()


def test_a_kind_that_cannot_be(tmp_path: Path) -> None:
    folder = save_decoder(tmp_path / "m")
    for kind in ("ab", "first-logit", "pair"):
        with pytest.raises(UsageError, match=f"--kind {kind} is not for a model of the kind pointwise reward model"):
            load_scorer(folder, kind=kind)
    assert load_scorer(folder, kind="pointwise").score(CHATS).shape == (3,)
    with pytest.raises(UsageError, match="unknown kind 'best'; there are pointwise, pair, ab, first-logit"):
        load_scorer(folder, kind="best")
    with pytest.raises(UsageError, match="--kind pointwise is not for a model of the kind language model"):
        load_scorer(save_decoder(tmp_path / "c", labels=None), kind="pointwise")


CODE = """
import torch
from torch import nn
from transformers import LlamaConfig, LlamaModel, LlamaPreTrainedModel
class Own(LlamaPreTrainedModel):
    config_class = LlamaConfig
    def __init__(self, config):
        super().__init__(config)
        self.model = LlamaModel(config)
        self.reward_head = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
        self.post_init()
    def forward(self, input_ids=None, attention_mask=None, **more):
        score = self.reward_head(self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state[:, -1])
        return RETURN
"""


@pytest.mark.parametrize(
    ("auto", "gives"),
    [
        ("AutoModel", "score"),
        ("AutoModelForSequenceClassification", "(None, score)"),
        ("AutoModelForTokenClassification", "(score[:, 0],)"),
        ("AutoModel", "type('Out', (), {'logits': score})()"),
    ],
)
def test_code_of_a_checkpoint_under_any_auto_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, auto: str, gives: str
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = save_decoder(tmp_path / f"m{abs(hash((auto, gives)))}")
    (folder / "modeling_own.py").write_text(CODE.replace("RETURN", gives))
    change_config(
        folder, architectures=["Own"], auto_map={"AutoModelForCausalLM": "modeling_own.No", auto: "modeling_own.Own"}
    )
    head = {
        "reward_head.0.weight": torch.randn(64, 64),
        "reward_head.0.bias": torch.zeros(64),
        "reward_head.2.weight": torch.randn(1, 64),
        "reward_head.2.bias": torch.zeros(1),
    }
    change_weights(folder, lambda weights: (weights.pop("score.weight"), weights.update(head)))
    first, _, second, _ = head.values()
    expected = by_hand(folder, lambda state: second @ torch.relu(first @ state))
    with pytest.raises(ModelError, match=r"needs --trust-remote-code|only with --trust-remote-code"):
        load_scorer(folder)
    found = load_scorer(folder, trust_remote_code=True).score(CHATS)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-5)


def test_attention_that_a_config_asks_for_is_not_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel of the hub would be code of a stranger; flash attention may not be installed."""

    def fetched(*args: Any, **more: Any) -> None:
        raise AssertionError("the loader of hub kernels was called")

    for name in ("load_and_register_attn_kernel", "lazy_load_kernel"):
        monkeypatch.setattr(f"transformers.integrations.hub_kernels.{name}", fetched, raising=False)
    for family in ("llama", "stablelm", "mixtral"):
        more = {"num_local_experts": 4, "num_experts_per_tok": 2} if family == "mixtral" else {}
        folder = save_decoder(tmp_path / family, family, **more)
        expected = load_scorer(folder).score(CHATS)
        for key, value in (
            ("_attn_implementation", "owner/kernel"),
            ("attn_implementation", "flash_attention_2"),
            ("_attn_implementation_internal", {"": "owner/kernel"}),
        ):
            change_config(folder, **{key: value})
            np.testing.assert_allclose(load_scorer(folder).score(CHATS), expected, rtol=0, atol=1e-6)
        change_config(folder, use_kernels=True, _experts_implementation="owner/kernel", fusion_config={"patch": True})
        np.testing.assert_allclose(load_scorer(folder).score(CHATS), expected, rtol=0, atol=1e-6)


def test_names_that_peft_wrapped_are_understood(tmp_path: Path) -> None:
    folder = save_decoder(tmp_path / "m")
    expected = load_scorer(folder).score(CHATS)

    def wrap(weights: dict[str, Tensor]) -> None:
        for name in list(weights):
            weights[f"base_model.model.{name}"] = weights.pop(name)

    change_weights(folder, wrap)
    for quantize in (None, "int8"):
        atol = 1e-6 if quantize is None else 1.0
        np.testing.assert_allclose(load_scorer(folder, quantize=quantize).score(CHATS), expected, rtol=0, atol=atol)
    change_weights(
        folder, lambda weights: weights.update({"base_model.model.model.x.lora_A.weight": torch.zeros(2, 64)})
    )
    with pytest.raises(ModelError, match="a LoRA adapter that is not merged"):
        load_scorer(folder)


@pytest.mark.parametrize("special", [True, False])
def test_a_tokenizer_larger_than_the_embedding(tmp_path: Path, special: bool) -> None:
    folder = save_decoder(tmp_path / "m")
    path, message = folder / "tokenizer.json", "has tokens up to number 700, but its embedding has only 700 rows"
    data = json.loads(path.read_text())
    data["added_tokens"].append({**data["added_tokens"][0], "id": 700, "content": "<|new|>", "special": special})
    path.write_text(json.dumps(data))
    if special:
        # As Gemma 3's token for pictures: nothing writes it.
        assert load_scorer(folder).score(CHATS).shape == (3,)
        template = folder / "chat_template.jinja"
        template.write_text(template.read_text() + "<|new|>")
    with pytest.raises(ModelError, match=message):
        load_scorer(folder)
    # A padding token that was added without a row is never read.
    settings = folder / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"pad_token": "<|new|>"}))
    if not special:
        assert load_scorer(folder).score(CHATS).shape == (3,)
    change_config(folder, vocab_size=300)
    with pytest.raises(ModelError, match="has tokens up to number 699, but its embedding has only 300 rows"):
        load_scorer(folder)


def test_an_oracle_of_its_own(tmp_path: Path) -> None:
    """What `by_hand` computes is what transformers' classifier gives."""
    folder = save_decoder(tmp_path / "m")
    weight = AutoModelForSequenceClassification.from_pretrained(folder).score.weight.detach()
    np.testing.assert_allclose(
        load_scorer(folder).score(CHATS), by_hand(folder, lambda state: weight @ state), atol=1e-5
    )

"""InternLM2-reward natively: the original code's own ids and scores, and other members of the family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForSequenceClassification

from checkpoints import INTERNLM2, change_config, change_weights, save_internlm2
from checkpoints import fresh_scorer as load_scorer
from prefcast.errors import ModelError
from prefcast.scorers.reward.internlm2 import InternLM2Config
from prefcast.scorers.reward.sentencepiece import build_tokenizer, read_pieces

CHATS = json.loads((INTERNLM2 / "chats.json").read_text())


def expected(name: str) -> list[dict[str, Any]]:
    """What the published code gave with transformers 4.57.6 (rows of text, input_ids, get_score)."""
    rows: list[dict[str, Any]] = json.loads((INTERNLM2 / f"expected_{name}.json").read_text())["rows"]
    return rows


def scores(name: str) -> np.ndarray:
    return np.array([row["get_score"] for row in expected(name)])


def test_the_ids_are_those_of_the_original() -> None:
    scorer = load_scorer(INTERNLM2, special_tokens="original")
    assert [scorer.encode(chat) for chat in CHATS] == [row["input_ids"] for row in expected("float32")]


def test_the_scores_are_those_of_the_original() -> None:
    scorer = load_scorer(INTERNLM2, special_tokens="original")
    together = scorer.score(CHATS)
    assert together.dtype == np.float64
    assert together.shape == (len(CHATS),)
    np.testing.assert_allclose(together, scores("float32"), rtol=0, atol=1e-5)
    np.testing.assert_allclose([scorer.score([chat])[0] for chat in CHATS], scores("float32"), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_drifts_no_more_than_the_original(dtype: str) -> None:
    found = load_scorer(INTERNLM2, special_tokens="original", dtype=dtype).score(CHATS)
    drift = np.abs(scores(dtype) - scores("float32")).max()
    assert np.abs(found - scores(dtype)).max() <= drift
    assert np.abs(found - scores("float32")).max() <= 1.5 * drift


def test_four_bit_is_that_of_the_original() -> None:
    found = load_scorer(INTERNLM2, special_tokens="original", quantize="nf4").score(CHATS)
    np.testing.assert_allclose(found, scores("nf4dq_dequantized_float32"), rtol=0, atol=1e-4)


def as_llama(folder: Path) -> LlamaForSequenceClassification:
    """The same weights as a Llama: an independent network (spec: view wqkv as (kv, group + 2, head, hidden))."""
    config = json.loads((folder / "config.json").read_text())
    hidden, heads, kv = config["hidden_size"], config["num_attention_heads"], config["num_key_value_heads"]
    rope = {"rope_type": "default", "rope_theta": float(config["rope_theta"])}
    scaling = config.get("rope_scaling") or {}
    if scaling:
        rope |= {"rope_type": scaling["type"], "factor": scaling["factor"]}
    network = LlamaForSequenceClassification(
        LlamaConfig(
            vocab_size=config["vocab_size"],
            hidden_size=hidden,
            intermediate_size=config["intermediate_size"],
            num_hidden_layers=config["num_hidden_layers"],
            num_attention_heads=heads,
            num_key_value_heads=kv,
            max_position_embeddings=config["max_position_embeddings"],
            rms_norm_eps=config["rms_norm_eps"],
            rope_parameters=rope,
            num_labels=1,
            pad_token_id=None,
            attn_implementation="eager",
        )
    )
    weights: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        for name, tensor in load_file(path).items():
            if name.endswith("wqkv.weight"):
                parts = tensor.view(kv, heads // kv + 2, hidden // heads, hidden)
                for own, part in (("q", parts[:, :-2]), ("k", parts[:, -2]), ("v", parts[:, -1])):
                    weights[name.replace("attention.wqkv", f"self_attn.{own}_proj")] = part.reshape(-1, hidden)
                continue
            key = name.replace("v_head", "score").replace("tok_embeddings", "embed_tokens")
            for old, new in (
                ("attention.wo", "self_attn.o_proj"),
                ("w1", "gate_proj"),
                ("w3", "up_proj"),
                ("w2", "down_proj"),
            ):
                key = key.replace(old, new)
            key = key.replace("feed_forward", "mlp").replace("attention_norm", "input_layernorm")
            weights[key.replace("ffn_norm", "post_attention_layernorm")] = tensor
    network.load_state_dict(weights)
    return network.eval()


VARIANTS: dict[str, dict[str, Any]] = {
    "every head its own keys": {"num_key_value_heads": 4},
    "one key head": {"num_key_value_heads": 1},
    "other sizes": {"hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 3, "intermediate_size": 64},
    "linear scaling": {"rope_scaling": {"type": "linear", "factor": 2.0}},
    "dynamic NTK": {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "max_position_embeddings": 64},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shards", [1, 3])
def test_other_members_of_the_family_score_as_a_llama_does(tmp_path: Path, variant: str, shards: int) -> None:
    folder = save_internlm2(tmp_path / "m", changes=VARIANTS[variant], seed=1, shards=shards)
    scorer = load_scorer(folder, special_tokens="original")
    long = [{"role": "user", "content": "word " * 60}, {"role": "assistant", "content": "other " * 60}]
    chats = [*CHATS, long]
    found = []
    for chat in chats:
        # A new network each time: transformers' dynamic scaling remembers longer sequences.
        with torch.inference_mode():
            ids = torch.tensor([scorer.encode(chat)])
            found.append(float(as_llama(folder)(input_ids=ids).logits))
    np.testing.assert_allclose(scorer.score(chats), found, rtol=0, atol=2e-5)
    np.testing.assert_allclose(scorer.score(chats[::-1])[::-1], found, rtol=0, atol=2e-5)


def test_long_sequences_of_a_pair_share_nothing_under_dynamic_scaling(tmp_path: Path) -> None:
    """The base follows the length: the same beginning is another one in a longer sequence."""
    from prefcast import Pair

    changes = VARIANTS["dynamic NTK"] | {"max_position_embeddings": 160}
    scorer = load_scorer(save_internlm2(tmp_path / "m", changes=changes, seed=1))
    assert scorer.max_tokens == 320
    pair = Pair.of("question " * 20, "short answer", "a much longer answer " * 20)
    a, b = (
        [{"role": "user", "content": "question " * 20}, {"role": "assistant", "content": text}]
        for text in ("short answer", "a much longer answer " * 20)
    )
    evidence = scorer.evidence([pair])
    assert len(scorer.encode(b)) > 160
    np.testing.assert_allclose(evidence.margin[0], scorer.score([a])[0] - scorer.score([b])[0], rtol=0, atol=1e-5)


def test_a_reward_token_without_a_name_is_appended_by_its_id(tmp_path: Path) -> None:
    folder = save_internlm2(tmp_path / "m", changes={"reward_token_id": 1010})
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config["chat_template"] = config["chat_template"].replace("{% else %}{{ '<|reward|>' }}", "")
    # Beside another token of that name it would be POLAR.
    config["added_tokens_decoder"]["1007"]["content"] = "[UNUSED_TOKEN_1]"
    path.write_text(json.dumps(config))
    scorer = load_scorer(folder, special_tokens="original")
    original = expected("float32")
    assert [scorer.encode(chat) for chat in CHATS] == [[*row["input_ids"][:-1], 1010] for row in original]


def test_a_checkpoint_without_a_template_has_internlm2s_chat(tmp_path: Path) -> None:
    folder = save_internlm2(tmp_path / "m")
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    del config["chat_template"]
    path.write_text(json.dumps(config))
    scorer = load_scorer(folder, special_tokens="original")
    assert [scorer.encode(chat) for chat in CHATS] == [row["input_ids"] for row in expected("float32")]


def with_dummy_prefix(data: bytes) -> bytes:
    """A SentencePiece model whose normaliser puts a space before the text."""
    from sentencepiece import sentencepiece_model_pb2 as proto

    model = proto.ModelProto()
    model.ParseFromString(data)
    model.normalizer_spec.add_dummy_prefix = True
    return bytes(model.SerializeToString())


TEXTS = [
    "Hello! What's your name?",
    "def f(x):\n    return x  *  2\n",
    "  two  spaces ",
    "你好 🙂 Привет",
    "é\u200b ﬁ",
    "x",
]


@pytest.mark.parametrize("dummy_prefix", [False, True])
def test_texts_are_tokenised_as_sentencepiece_does(tmp_path: Path, dummy_prefix: bool) -> None:
    data = (INTERNLM2 / "tokenizer.model").read_bytes()
    (tmp_path / "tokenizer.model").write_bytes(with_dummy_prefix(data) if dummy_prefix else data)
    (tmp_path / "tokenizer_config.json").write_bytes((INTERNLM2 / "tokenizer_config.json").read_bytes())
    assert read_pieces(tmp_path / "tokenizer.model").normalizer_spec.add_dummy_prefix is dummy_prefix
    tokenizer = build_tokenizer(tmp_path)
    reference = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    for text in TEXTS:
        assert tokenizer.encode(text, add_special_tokens=False).ids == reference.encode(text), text


def test_a_space_goes_before_every_text_between_special_tokens(tmp_path: Path) -> None:
    folder = save_internlm2(tmp_path / "m")
    path = folder / "tokenizer.model"
    path.write_bytes(with_dummy_prefix(path.read_bytes()))
    reference = sentencepiece.SentencePieceProcessor(model_file=str(path))
    ids = load_scorer(folder).encode([{"role": "user", "content": "Hi"}])
    assert ids == [1, 1023, *reference.encode("user\nHi"), 1022, *reference.encode("\n"), 1007]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a SentencePiece model: it has no pieces"),
        (b"\x0a\xff\xff\xff", "not a SentencePiece model"),
        (b"\x0f\x01", "not a SentencePiece model"),
        (None, "cannot be read: No such file"),
    ],
)
def test_a_tokenizer_that_is_none(tmp_path: Path, data: bytes | None, message: str) -> None:
    if data is not None:
        (tmp_path / "tokenizer.model").write_bytes(data)
    with pytest.raises(ModelError, match=message):
        read_pieces(tmp_path / "tokenizer.model")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"rope_scaling": {"type": "yarn", "factor": 2}},
            "rope_scaling 'yarn' is not supported; there are linear and dynamic",
        ),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
        ({"reward_token_id": None}, "config.json: TypeError"),
    ],
)
def test_configs_that_the_network_does_not_have(changes: dict[str, Any], message: str) -> None:
    config = json.loads((INTERNLM2 / "config.json").read_text()) | changes
    with pytest.raises(ModelError, match=message):
        InternLM2Config.of(config)


def test_a_head_that_is_missing_is_refused(tmp_path: Path) -> None:
    folder = save_internlm2(tmp_path / "m")
    change_weights(folder, lambda weights: weights.pop("v_head.weight"))
    with pytest.raises(ModelError, match=r"its weights lack v_head.weight; a model without a trained head"):
        load_scorer(folder).score(CHATS)


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    folder = save_internlm2(tmp_path / "m")
    change_config(folder, intermediate_size=200)
    with pytest.raises(ModelError, match=r"have another shape for model.layers.0.feed_forward"):
        load_scorer(folder).score(CHATS)

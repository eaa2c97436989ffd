"""The families that the oracle sweep compares with plain transformers, one conversation at a time, in float32.

`tools/make_families.py` writes the table of docs/reward-models.md from it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from checkpoints import VOCABULARY, change_config, decoder_config, save_decoder, save_tokenizer
from checkpoints import fresh_scorer as load_scorer
from prefcast.scorers.reward.engine import PackedRunner, SingleRunner

__all__ = ["CASES", "QUICK", "Case", "difference"]

CHATS = [
    [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    for question, answer in (
        ("Why is the sky blue?", "Because of Rayleigh scattering."),
        ("Why?", "No idea."),
        ("x", "y " * 50),
    )
]
LONG = [[{"role": "user", "content": "Why? " * 30}, {"role": "assistant", "content": "Because. " * 30}], *CHATS]


@dataclass(frozen=True)
class Case:
    """A checkpoint of the sweep: `save` makes it, `options` are those of the scorer, and the oracle reads `logit`."""

    save: Callable[[Path], Path]
    chats: tuple[Any, ...] = tuple(CHATS)
    options: tuple[tuple[str, Any], ...] = ()
    logit: int | None = None


def _decoder(family: str, **more: Any) -> Case:
    return Case(lambda folder: save_decoder(folder, family, **more))


def _rope(family: str, **parameters: Any) -> Case:
    more = {"rope_parameters": {"rope_theta": 10_000.0, **parameters}, "max_position_embeddings": 2048}
    if "original_max_position_embeddings" in parameters:
        more["original_max_position_embeddings"] = parameters["original_max_position_embeddings"]
    return Case(lambda folder: save_decoder(folder, family, **more), tuple(LONG))


def encoder_case(family: str, **more: Any) -> Case:
    """An encoder whose texts are made by a chat template, so that both sides read the same ids."""

    def save(folder: Path) -> Path:
        torch.manual_seed(0)
        if "vocab_size" in more:
            config = AutoConfig.for_model(family, num_labels=1, pad_token_id=1, initializer_range=0.2, **more)
        else:
            config = decoder_config(family, num_labels=1, **more)
        AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
        save_tokenizer(folder, model_max_length=500)
        return folder

    # XLNet and Funnel have no last position.
    return Case(save, options=(("max_tokens", 500),) if "vocab_size" in more else ())


def _head(folder: Path) -> Path:
    save_decoder(folder, labels=1)
    weights = load_file(folder / "model.safetensors")
    save_file({"v_head.summary.weight": weights.pop("score.weight")}, folder / "value_head.safetensors")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    change_config(folder, architectures=["LlamaForCausalLM"])
    return folder


_SMALL: dict[str, Any] = {"max_position_embeddings": 514}
CASES: dict[str, Case] = {
    **{
        name: _decoder(name)
        for name in (
            "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "olmo2", "smollm3", "stablelm",
            "gpt2", "gpt_neox", "opt", "phi", "starcoder2", "persimmon", "nemotron", "glm", "glm4", "helium", "ministral",
            "exaone4", "arcee", "seed_oss", "bloom", "biogpt",
        )
    },
    "gptj": _decoder("gptj", rotary_dim=8),
    "mixtral": _decoder("mixtral", num_local_experts=4, num_experts_per_tok=2),
    "qwen2_moe": _decoder("qwen2_moe", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, shared_expert_intermediate_size=32),
    "qwen3_moe": _decoder("qwen3_moe", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32),
    "bert": encoder_case("bert"),
    "roberta": encoder_case("roberta", **_SMALL),
    "xlm-roberta": encoder_case("xlm-roberta", **_SMALL),
    "electra": encoder_case("electra"),
    "distilbert": encoder_case("distilbert", dim=64, n_heads=4, n_layers=2, hidden_dim=96),
    "albert": encoder_case("albert", embedding_size=32),
    "deberta-v2": encoder_case("deberta-v2", relative_attention=True, position_buckets=32, pos_att_type=["p2c", "c2p"]),
    "modernbert": encoder_case("modernbert"),
    "mpnet": encoder_case("mpnet", **_SMALL),
    "xlnet": encoder_case("xlnet", d_model=64, n_layer=2, n_head=4, d_inner=96, vocab_size=VOCABULARY),
    "fnet": encoder_case("fnet"),
    "funnel": encoder_case("funnel", block_sizes=[1, 1], d_model=64, n_head=4, d_head=16, d_inner=96, vocab_size=VOCABULARY),
    "llama, linear rope": _rope("llama", rope_type="linear", factor=2.0),
    "llama, dynamic rope": Case(
        lambda folder: save_decoder(
            folder, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}, max_position_embeddings=128
        ),
        tuple(LONG),
    ),
    "llama, yarn": _rope("llama", rope_type="yarn", factor=4.0, original_max_position_embeddings=64),
    "llama, llama3 rope": _rope(
        "llama", rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64
    ),
    "phi3, longrope": _rope(
        "phi3", rope_type="longrope", long_factor=[2.0] * 8, short_factor=[1.0] * 8, original_max_position_embeddings=64
    ),
    "llama, value head beside": Case(_head),
    "qwen3, nf4": Case(lambda folder: save_decoder(folder, "qwen3"), options=(("quantize", "nf4"),)),
    "llama, first logit": Case(lambda folder: save_decoder(folder, labels=None), options=(("kind", "first-logit"),), logit=0),
    "cohere, first logit": Case(
        lambda folder: save_decoder(folder, "cohere", labels=None), options=(("kind", "first-logit"),), logit=0
    ),
    "gemma2, first logit": Case(
        lambda folder: save_decoder(folder, "gemma2", labels=None), options=(("kind", "first-logit"),), logit=0
    ),
}  # fmt: skip
# Packed, padded with a head of its own, padded encoders, one at a time, and a rope that depends on the length.
QUICK = ("qwen3", "opt", "roberta", "xlnet", "llama, dynamic rope")


def difference(case: Case, folder: Path) -> tuple[str, float]:
    """How a case is run, and the largest difference from the oracle in units of the largest score (at least 1)."""
    case.save(folder)
    scorer = load_scorer(folder, **dict(case.options))
    found = scorer.score(case.chats)
    expected = np.array(_oracle(case, folder))
    runner = scorer.engine._runner
    how = (
        "packed"
        if isinstance(runner, PackedRunner)
        else "one at a time"
        if isinstance(runner, SingleRunner)
        else "padded"
    )
    return how, float(abs(found - expected).max() / max(1.0, abs(expected).max()))


def _through_nf4(body: torch.nn.Module) -> None:
    """Give the matrices of a body the values that they have after a way through NF4."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    for module in body.modules():
        if isinstance(module, torch.nn.Linear):
            packed, state = quantize_4bit(module.weight.data, blocksize=64, compress_statistics=True, quant_type="nf4")
            module.weight.data = dequantize_4bit(packed, state)


def _oracle(case: Case, folder: Path) -> list[float]:
    auto: Any = AutoModelForSequenceClassification if case.logit is None else AutoModelForCausalLM
    network = auto.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    if (folder / "value_head.safetensors").exists():
        network.score.weight.data = load_file(folder / "value_head.safetensors")["v_head.summary.weight"]
    if ("quantize", "nf4") in case.options:
        _through_nf4(network.base_model)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = []
    with torch.inference_mode():
        for chat in case.chats:
            ids = torch.tensor([tokenizer.apply_chat_template(chat, tokenize=True, return_dict=False)])
            # A dynamic rope remembers the longest text: each text has a network as it was loaded.
            if "dynamic" in str(getattr(network.config, "rope_parameters", "")):
                network = auto.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
            logits = network(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
            found.append(float(logits.ravel()[0] if case.logit is None else logits[0, -1, case.logit]))
    return found

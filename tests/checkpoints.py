"""Small checkpoints with random weights, saved as people's are: by `save_pretrained`."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    DebertaV2Config,
    Gemma2Config,
    PreTrainedTokenizerFast,
)

from prefcast import load_scorer, read_pairs

# Not from conftest: `make check-gpu` uses this module where pytest is not installed.
ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples" / "pairs.csv"
INTERNLM2 = ROOT / "tests" / "fixtures" / "internlm2_tiny"
VOCABULARY = 700
# The template writes the first token itself, and the tokenizer would add another.
CHAT = (
    "{{ bos_token }}{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LABELS = {0: "winner_model_a", 1: "winner_model_b", 2: "winner_tie"}


def fresh_scorer(model: Path, **options: Any) -> Any:
    """A scorer that keeps nothing: for tests of what is computed."""
    return load_scorer(model, **options)


@cache
def backend() -> Tokenizer:
    """A byte-level BPE of the example pairs, which adds a first token and, to two texts, separators."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "[SEP]"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [
        text
        for pair in read_pairs(EXAMPLES)
        for turn in pair.turns
        for text in (turn.prompt, turn.response_a, turn.response_b)
    ]
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A",
        pair="<s> $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("<s>", tokenizer.token_to_id("<s>")), ("[SEP]", tokenizer.token_to_id("[SEP]"))],
    )
    return tokenizer


def save_tokenizer(
    folder: Path, *, chat: bool = True, pad: str | None = "</s>", **more: Any
) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(backend().to_str()),
        bos_token="<s>",
        eos_token="</s>",
        pad_token=pad,
        additional_special_tokens=["<|im_start|>", "<|im_end|>", "[SEP]"],
        chat_template=CHAT if chat else None,
        **more,
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def decoder_config(model_type: str, **more: Any) -> Any:
    """A small config of a causal family."""
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 2048,
        "initializer_range": 0.2,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    return AutoConfig.for_model(model_type, **{**sizes, **more})


def save_decoder(
    folder: Path,
    model_type: str = "llama",
    *,
    labels: int | None = 1,
    seed: int = 0,
    chat: bool = True,
    names: Any = None,
    **more: Any,
) -> Path:
    """A causal family as a classifier with `labels` outputs, or (None) as a language model."""
    torch.manual_seed(seed)
    config = decoder_config(model_type, **more)
    if labels is None:
        network = AutoModelForCausalLM.from_config(config)
    else:
        config.num_labels = labels
        if names:
            config.id2label = names
        network = AutoModelForSequenceClassification.from_config(config)
        torch.nn.init.normal_(network.score.weight)
    network.save_pretrained(folder)
    save_tokenizer(folder, chat=chat)
    return folder


def save_ab(folder: Path, **more: Any) -> Path:
    """A language model that names the better answer. The template for both answers in its folder is the sign of that."""
    save_decoder(folder, labels=None, **more)
    shutil.copy(ROOT / "src/prefcast/scorers/reward/templates/rlhflow.jinja", folder / "pair_template.jinja")
    return folder


def save_gemma2_pair(folder: Path) -> Path:
    """Gemma-2 with its soft caps and a sliding window shorter than the texts."""
    more = {"sliding_window": 48, "query_pre_attn_scalar": 16, "attn_logit_softcapping": 5.0}
    assert Gemma2Config.model_type == "gemma2"
    return save_decoder(folder, "gemma2", labels=3, names=LABELS, **more)


def save_deberta(folder: Path) -> Path:
    """DeBERTa-v2 with one label and no chat template, as OpenAssistant's reward model is."""
    torch.manual_seed(0)
    config = DebertaV2Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=256,
        relative_attention=True,
        position_buckets=32,
        pos_att_type=["p2c", "c2p"],
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        position_biased_input=False,
        type_vocab_size=2,
        initializer_range=0.2,
        num_labels=1,
        pad_token_id=1,
    )
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    save_tokenizer(folder, chat=False, model_max_length=256)
    return folder


def save_internlm2(folder: Path, *, changes: dict[str, Any] | None = None, seed: int = 0, shards: int = 1) -> Path:
    """The fixture's family with other sizes: random weights under the published names."""
    shutil.copytree(INTERNLM2, folder)
    config = json.loads((folder / "config.json").read_text()) | (changes or {})
    (folder / "config.json").write_text(json.dumps(config))
    hidden, heads, kv = config["hidden_size"], config["num_attention_heads"], config["num_key_value_heads"]
    generator = torch.Generator().manual_seed(seed)

    def matrix(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 0.2

    weights = {
        "model.tok_embeddings.weight": matrix(config["vocab_size"], hidden),
        "model.norm.weight": 1 + matrix(hidden),
        "v_head.weight": matrix(1, hidden),
    }
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        weights |= {
            f"{prefix}attention.wqkv.weight": matrix((heads + 2 * kv) * hidden // heads, hidden),
            f"{prefix}attention.wo.weight": matrix(hidden, hidden),
            f"{prefix}feed_forward.w1.weight": matrix(config["intermediate_size"], hidden),
            f"{prefix}feed_forward.w3.weight": matrix(config["intermediate_size"], hidden),
            f"{prefix}feed_forward.w2.weight": matrix(hidden, config["intermediate_size"]),
            f"{prefix}attention_norm.weight": 1 + matrix(hidden),
            f"{prefix}ffn_norm.weight": 1 + matrix(hidden),
        }
    store(folder, weights, shards)
    return folder


def store(folder: Path, weights: dict[str, torch.Tensor], shards: int = 1) -> None:
    """Write weights, in several files with an index where asked for."""
    (folder / "model.safetensors").unlink(missing_ok=True)
    if shards == 1:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = sorted(weights)
    where = {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = {name: weights[name] for name in names[number::shards]}
        save_file(part, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def change_weights(folder: Path, change: Any) -> None:
    """Let `change` alter the weights of a one-file checkpoint."""
    weights = load_file(folder / "model.safetensors")
    change(weights)
    store(folder, weights)


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


FAMILIES = {
    "internlm2": lambda folder: save_internlm2(folder, changes={"max_position_embeddings": 2048}),
    "llama": lambda folder: save_decoder(folder, "llama"),
    "qwen3": lambda folder: save_decoder(folder, "qwen3"),
    "deberta": save_deberta,
    "gemma2-pair": save_gemma2_pair,
    "causal": save_ab,
}

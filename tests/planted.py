"""Planted pairs: the words of an answer decide its quality, and the qualities decide what people say, ties among them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import BertConfig, BertModel

from checkpoints import VOCABULARY, save_deberta, save_decoder, save_internlm2, save_tokenizer

__all__ = ["BASES", "best_log_loss", "planted", "write_planted"]

GOOD, BAD = ["alpha", "bravo", "charlie", "delta", "echo"], ["mike", "november", "oscar", "papa", "quebec"]
# A difference of quality within the band, after logistic noise, is a tie: the model of Rao and Kupper.
WORDS, BAND = 4, 1.0


def planted(n: int, seed: int = 0) -> tuple[list[dict[str, Any]], np.ndarray]:
    """n rows, and the true probabilities (n, 3): the difference in the number of good words decides, with ties inside a band."""
    rng, rows, truth = np.random.default_rng(seed), [], []
    for number in range(n):
        texts, good = [], []
        for _ in range(2):
            count = int(rng.integers(0, WORDS + 1))
            words = [str(rng.choice(GOOD)) for _ in range(count)] + [str(rng.choice(BAD)) for _ in range(WORDS - count)]
            rng.shuffle(words)
            texts.append(" ".join(words))
            good.append(count)
        won = [1 / (1 + np.exp(BAND - sign * (good[0] - good[1]))) for sign in (1, -1)]
        p = np.array([*won, 1 - sum(won)])
        outcome = int(rng.choice(3, p=p))
        truth.append(p)
        rows.append(
            {
                "id": f"r{seed}-{number}",
                "prompt": json.dumps([f"question {rng.integers(0, 10**6)} please"]),
                "response_a": json.dumps([texts[0]]),
                "response_b": json.dumps([texts[1]]),
                "winner_model_a": int(outcome == 0),
                "winner_model_b": int(outcome == 1),
                "winner_tie": int(outcome == 2),
            }
        )
    return rows, np.array(truth)


def write_planted(path: Path, n: int, seed: int = 0, **more: Any) -> Path:
    """n rows as JSON lines; `more` are further columns, each the same in every row."""
    path.write_text("".join(json.dumps(row | more) + "\n" for row in planted(n, seed)[0]), encoding="utf-8")
    return path


def best_log_loss(truth: np.ndarray) -> float:
    """The expected log loss of the true probabilities."""
    return float(-(truth * np.log(truth)).sum(axis=1).mean())


def save_bare_bert(folder: Path) -> Path:
    """An encoder without a head, as sentence-transformers saves it."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
    }
    config = BertConfig(
        vocab_size=VOCABULARY, pad_token_id=1, max_position_embeddings=128, initializer_range=0.2, **sizes
    )
    BertModel(config).save_pretrained(folder)
    save_tokenizer(folder, chat=False, model_max_length=128)
    return folder


_SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_hidden_layers": 1,
}
BASES = {
    "llama": lambda folder: save_decoder(folder, labels=None, **_SMALL),
    # To know which answer a word of a pair is in takes a second layer.
    "two layers": lambda folder: save_decoder(folder, labels=None, num_hidden_layers=2, initializer_range=0.05),
    "qwen3": lambda folder: save_decoder(folder, "qwen3", **_SMALL),
    "gemma2": lambda folder: save_decoder(
        folder, "gemma2", labels=None, sliding_window=16, attn_logit_softcapping=5.0, **_SMALL
    ),
    "internlm2": lambda folder: save_internlm2(folder, changes={"max_position_embeddings": 2048}),
    "deberta": save_deberta,
    "bert": save_bare_bert,
}

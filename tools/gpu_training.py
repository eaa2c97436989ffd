"""What `check_gpu.py` trains: adapters of a random reward model, for some steps."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from checkpoint import Shape, make_checkpoint
from gpu_speed import VOCABULARY
from prefcast import Recipe, train_reward
from prefcast.training.reward.loop import Progress

__all__ = ["STEPS", "Training", "train_some"]

STEPS = 50
# 100 pairs to learn from, which is the least that there must be: five steps an epoch.
_BATCH, _LEARNED, _HELD = 20, 100, 20
# Each word is one token of the fixture's tokenizer, or a few.
_GOOD, _BAD = ["good", "right", "yes"], ["bad", "wrong", "no"]


class _TimeIsUpError(Exception):
    """No time is left for more steps."""


@dataclass(frozen=True)
class Training:
    """The losses of the steps that were taken, tokens a second, and the largest memory in bytes."""

    losses: list[float]
    rate: float
    memory: int

    def level(self, last: bool) -> float:
        """The mean loss of the first or the last ten steps."""
        return float(np.mean(self.losses[-10:] if last else self.losses[:10]))


def _pairs(path: Path, count: int, words: int, seed: int) -> Path:
    """Pairs in which the share of good words decides; as many of them are a tie."""
    rng, rows = np.random.default_rng(seed), []
    for number in range(count):
        good = rng.choice([0.1, 0.5, 0.9], 2)
        texts = [
            " ".join(str(rng.choice(_GOOD if rng.random() < share else _BAD)) for _ in range(words)) for share in good
        ]
        rows.append(
            {
                "id": f"{seed}-{number}",
                "prompt": json.dumps([f"question {seed} {number}"]),
                "response_a": json.dumps([texts[0]]),
                "response_b": json.dumps([texts[1]]),
                "winner_model_a": int(good[0] > good[1]),
                "winner_model_b": int(good[0] < good[1]),
                "winner_tie": int(good[0] == good[1]),
            }
        )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def train_some(room: Path, shape: Shape, device: torch.device, words: int, left: Callable[[], float]) -> Training:
    """Train adapters of a random InternLM2-reward for `STEPS` steps, or until `left` gives fewer than 60 seconds.

    Everything that is written is in `room`.
    """
    base, said = room / "base", list[Progress]()
    base.mkdir(parents=True)
    # A model of the hub has half precision too, and takes half of the disk.
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    make_checkpoint(base, shape, vocabulary=VOCABULARY if device.type == "cuda" else None, dtype=dtype)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)

    def follow(progress: Progress) -> None:
        said.append(progress)
        if left() < 60:
            raise _TimeIsUpError

    recipe = Recipe(
        epochs=STEPS * _BATCH // _LEARNED, batch=_BATCH, rate=1e-3, evaluations=1, patience=STEPS, lora=16, seed=0
    )
    with suppress(_TimeIsUpError):
        train_reward(
            _pairs(room / "learned.jsonl", _LEARNED, words, 1),
            room / "out",
            base=str(base),
            recipe=recipe,
            validation_pairs=[_pairs(room / "held.jsonl", _HELD, words, 2)],
            device=str(device),
            progress=follow,
        )
    return Training([each.loss for each in said], said[-1].rate, said[-1].memory)

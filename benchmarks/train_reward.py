"""Trains reward models on a planted task whose best possible log loss is known: make bench-train

The words of an answer decide its hidden quality; a difference of quality inside a band, after logistic noise, is a tie. A Llama of
one or two layers with random weights is trained on it in each way, and then forecasts pairs that nobody trained on. Their true probabilities
are known, so the log loss is expected over the labels, not drawn. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from planted import BASES, best_log_loss, planted, write_planted
from prefcast import Recipe, load_forecaster, read_pairs, train_reward
from prefcast.outcomes.statistics.bootstrap import Figure, weighted_mean

# Name, recipe, and the share of the pairs that it gets.
WAYS: tuple[tuple[str, dict[str, Any], float], ...] = (
    ("one score an answer, Davidson", {}, 1.0),
    ("both answers, both orders", {"kind": "pair"}, 1.0),
    ("one score an answer, Bradley-Terry without ties", {"likelihood": "bradley-terry"}, 1.0),
    ("both answers, both orders, half of the pairs", {"kind": "pair"}, 0.5),
    ("one score an answer, Rao-Kupper", {"likelihood": "rao-kupper"}, 1.0),
)
_HELD, _TESTED = 200, 400


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2000, help="pairs to learn from")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--rate", type=float, default=2e-3, help="the largest learning rate")
    parser.add_argument("--layers", type=int, default=2, choices=(1, 2))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", help="run only the ways with this text in their name")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as room:
        _measured(Path(room), given)


def _measured(room: Path, given: argparse.Namespace) -> None:
    base = BASES["llama" if given.layers == 1 else "two layers"](room / "base")
    held = write_planted(room / "held.jsonl", _HELD, seed=1)
    test = write_planted(room / "test.jsonl", _TESTED, seed=2)
    truth = planted(_TESTED, seed=2)[1]
    ties = truth[:, 2].mean()
    print(
        f"{given.rows:,} pairs to learn from ({ties:.0%} ties), {_HELD} held out, {_TESTED:,} to measure; best possible log loss "
        f"{best_log_loss(truth):.4f}; class prior {_prior(truth):.4f}\n"
    )
    print("| trained as | log loss | above the best possible | worse than the first, paired | seconds |")
    print("| --- | --- | --- | --- | --- |", flush=True)
    first: Any = None
    for name, recipe, share in WAYS:
        if given.only and given.only not in name:
            continue
        losses, seconds = [], 0.0
        for seed in range(given.seeds):
            pairs = write_planted(room / "pairs.jsonl", round(share * given.rows), seed=10 + seed)
            out = room / f"{name}-{seed}"
            began = time.monotonic()
            train_reward(
                pairs,
                out,
                base=str(base),
                recipe=Recipe(
                    lora=None, epochs=given.epochs, rate=given.rate, patience=100, evaluations=1, seed=seed, **recipe
                ),
                validation_pairs=[held],
            )
            seconds += time.monotonic() - began
            p = load_forecaster(out).forecast(read_pairs(test)).probabilities
            losses.append(-(truth * np.log(p)).sum(axis=1))
        loss = np.mean(losses, axis=0)
        first = loss if first is None else first
        keys = np.arange(_TESTED, dtype=np.uint64)
        gap, worse = (
            weighted_mean(each, np.ones(_TESTED), keys)
            for each in (loss + (truth * np.log(truth)).sum(axis=1), loss - first)
        )
        print(
            f"| {name} | {loss.mean():.4f} | {_shown(gap)} | {_shown(worse)} | {seconds / given.seeds:.0f} |",
            flush=True,
        )


def _prior(truth: np.ndarray) -> float:
    share = truth.mean(axis=0)
    return float(-(share * np.log(share)).sum())


def _shown(figure: Figure) -> str:
    return f"{figure.value:.4f} [{figure.low:.4f}, {figure.high:.4f}]"


if __name__ == "__main__":
    main()

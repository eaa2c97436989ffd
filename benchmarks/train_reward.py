"""Trains reward models on a planted task whose best possible log loss is known: make bench-train

The words of an answer decide its hidden quality; a difference of quality inside a band, after logistic noise, is a tie. A Llama of
two layers with random weights is trained on it in each way, and then forecasts pairs that nobody trained on. Their true probabilities
are known, so the log loss is expected over the labels, not drawn. Prints a Markdown table.

"Softmax over three labels" is a classifier of A, B and tie as people often train it: it reads each pair once, with the answers in the
order that the file has, in training and in forecasts. All else is as for the classifier that reads both orders.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from planted import BASES, best_log_loss, planted, write_planted
from prefcast import Recipe, load_forecaster, read_pairs, train_reward
from prefcast.outcomes.statistics.bootstrap import Figure, weighted_mean
from prefcast.scorers.base import Evidence
from prefcast.scorers.reward.kinds import PairScorer
from prefcast.training.reward import task
from prefcast.training.reward.network import Trainee

_HELD, _TESTED = 200, 1000


@dataclass(frozen=True)
class Way:
    """A way to train: its recipe, the share of the pairs that it gets, and the numbers of the ways that it is compared with."""

    name: str
    recipe: dict[str, Any] = field(default_factory=dict)
    share: float = 1.0
    than: tuple[int, ...] = ()
    one_order: bool = False


_PAIR = {"kind": "pair"}
WAYS = (
    Way("one score an answer, Davidson"),
    Way("one score an answer, Rao-Kupper", {"likelihood": "rao-kupper"}, than=(1,)),
    Way("one score an answer, Bradley-Terry without ties", {"likelihood": "bradley-terry"}, than=(1,)),
    Way("both answers, both orders", _PAIR, than=(1,)),
    Way("softmax over three labels, one order", _PAIR, than=(4,), one_order=True),
    Way("both answers, both orders, half the data", _PAIR, 0.5, than=(4,)),
    Way("softmax over three labels, one order, half the data", _PAIR, 0.5, than=(4, 6), one_order=True),
)


class _OneOrder(Trainee):
    """A network in training that learns from the first order of each pair alone."""

    def evidence(self, groups: Sequence[Any]) -> tuple[Tensor, Tensor]:
        a, b, tie = self.runner.outputs(groups).double().view(len(groups), 2, -1)[:, 0, list(self.columns)].unbind(1)
        return a - b, tie - (a + b) / 2


def _first_order(scorer: PairScorer, outputs: Sequence[Any]) -> Evidence:
    """The evidence of the first order of each pair alone."""
    logits = np.array(outputs, dtype=np.float64).reshape(len(outputs), 2, -1)[:, 0, list(scorer.columns)]
    a, b, tie = logits.T
    return Evidence(a - b, tie - (a + b) / 2, raw=dict(zip(scorer.raw_names, logits.T, strict=True)))


@contextmanager
def _one_order() -> Iterator[None]:
    with patch.object(task, "Trainee", _OneOrder), patch.object(PairScorer, "reduced", _first_order):
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1200, help="pairs to learn from")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--rate", type=float, default=2e-3, help="the largest learning rate")
    parser.add_argument("--layers", type=int, default=2, choices=(1, 2))
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as room:
        _measured(Path(room), given)


def _measured(room: Path, given: argparse.Namespace) -> None:
    base = BASES["llama" if given.layers == 1 else "two layers"](room / "base")
    held = write_planted(room / "held.jsonl", _HELD, seed=1)
    test = write_planted(room / "test.jsonl", _TESTED, seed=2)
    truth = planted(_TESTED, seed=2)[1]
    print(
        f"{given.rows:,} pairs to learn from, {_HELD} held out, {_TESTED:,} to measure ({truth[:, 2].mean():.0%} ties), "
        f"{given.seeds} seeds (weights, order and pairs differ), {given.threads} threads, load {os.getloadavg()[0]:.1f}; "
        f"best possible log loss {best_log_loss(truth):.4f}; class prior {_prior(truth):.4f}\n"
    )
    print("| | trained as | log loss | above the best possible | of single seeds | worse, paired | seconds |")
    print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    best = -(truth * np.log(truth)).sum(axis=1)
    found: list[np.ndarray] = []
    for number, way in enumerate(WAYS, 1):
        losses, seconds = [], []
        for seed in range(given.seeds):
            pairs = write_planted(room / "pairs.jsonl", round(way.share * given.rows), seed=10 + seed)
            out = room / f"{number}-{seed}"
            recipe = Recipe(
                lora=None,
                epochs=given.epochs,
                rate=given.rate,
                patience=100,
                evaluations=1,
                seed=seed,
                **way.recipe,
            )
            with _one_order() if way.one_order else nullcontext():
                began = time.monotonic()
                train_reward(pairs, out, base=str(base), recipe=recipe, validation_pairs=[held])
                seconds.append(time.monotonic() - began)
                p = load_forecaster(out).forecast(read_pairs(test)).probabilities
            losses.append(-(truth * np.log(p)).sum(axis=1))
        found.append(np.mean(losses, axis=0))
        gaps = [float((each - best).mean()) for each in losses]
        worse = "; ".join(f"than {each}: {_shown(found[-1] - found[each - 1])}" for each in way.than)
        print(
            f"| {number} | {way.name} | {found[-1].mean():.4f} | {_shown(found[-1] - best)} | {min(gaps):.4f} to {max(gaps):.4f} | "
            f"{worse} | {max(seconds):.0f} |",
            flush=True,
        )


def _prior(truth: np.ndarray) -> float:
    share = truth.mean(axis=0)
    return float(-(share * np.log(share)).sum())


def _shown(differences: np.ndarray) -> str:
    """The mean (n,) with its interval over the pairs."""
    figure: Figure = weighted_mean(differences, np.ones(_TESTED), np.arange(_TESTED, dtype=np.uint64))
    return f"{figure.value:.4f} [{figure.low:.4f}, {figure.high:.4f}]"


if __name__ == "__main__":
    main()

"""The training loop: seeded, so that the same call ends at the same weights, wherever it was interrupted.

Batches are planned up front; what a step draws depends on the seed and the step's number alone. The network learns what
the surface of the texts leaves unexplained: the surface's margin and tie enter as offsets, each with a weight a source.
The likelihood is Davidson's; sources without ties teach A against B alone. This module knows nothing of files.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from prefcast.errors import FitError
from prefcast.scorers.embedded.conversations import Conversation
from prefcast.training.embedded.network import Encoder, Head, SourceLevels

__all__ = ["Examples", "Settings", "Step", "Training", "evidence", "keep_memory"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Conversations = Sequence[tuple[Conversation, Conversation]]

# Batches of like length are formed within so many batches' rows, and their order drawn anew.
_BUCKET = 50
# exp of it is nothing: what sources without ties have for a tie.
_NEVER = -30.0
# Lengths are padded to multiples of this, so that there are few shapes.
_MULTIPLE = 8
_LEAST_RATE = 0.02
# M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of glibc.
_KEEP = (-1, -3)


@dataclass(frozen=True)
class Settings:
    """How the network is trained; rates are AdamW's (Loshchilov and Hutter, 2019), linearly up over `warm_up` of the
    steps and down to the end. `average` is the decay of the exponential average of the weights, which is what is
    kept in the end. The first `frozen` layers stay as they are: `members` encoders with seeds of their own share them."""

    seed: int = 0
    members: int = 2
    frozen: int = 3
    epochs: float = 1.5
    tokens: int = 448
    batch: int = 16
    encoder_rate: float = 8e-5
    head_rate: float = 1e-3
    level_rate: float = 3e-3
    encoder_decay: float = 0.02
    head_decay: float = 0.05
    dropout: float = 0.1
    average: float = 0.99
    warm_up: float = 0.06
    clip: float = 1.0
    votes: bool = True
    # How much of a target the strengths of the two models give.
    strength: float = 0.4


@dataclass(frozen=True)
class Examples:
    """Rows to learn from: conversations, targets (n, 3), sources (n,), their chance to be in an epoch (n,), the
    surface's evidence (n,) each; `tieless` (k,) marks the sources that hold no tie."""

    conversations: Conversations
    target: Floats
    source: Ints
    probability: Floats
    margin: Floats
    tie: Floats
    tieless: NDArray[np.bool_]


@dataclass(frozen=True)
class Step:
    """How far it is: steps `done` of `of`, the loss of this one, pairs a second so far, seconds left."""

    done: int
    of: int
    loss: float
    rate: float
    left: float


class Training:
    """A training of `encoder` and `head`, in place; `steps_done` says how far it is."""

    def __init__(self, encoder: Encoder, head: Head, examples: Examples, settings: Settings) -> None:
        self.encoder, self.head, self.examples, self.settings = encoder, head, examples, settings
        self.levels = SourceLevels(len(examples.tieless))
        self.batches = _plan(examples, settings)
        self.steps_done = 0
        # Half of all weights, and rare words are seen a few times: they are better left as they are. So are the layers that
        # members share.
        encoder.word.requires_grad_(False)
        if settings.frozen:
            for part in (encoder.pos, encoder.typ, encoder.ln, *encoder.layers[: settings.frozen]):
                part.requires_grad_(False)
        modules: dict[str, nn.Module] = {"encoder": encoder, "head": head, "levels": self.levels}
        self._weights = {
            f"{of}.{name}": weight
            for of, module in modules.items()
            for name, weight in module.named_parameters()
            if weight.requires_grad
        }
        self._averages = {name: weight.detach().clone() for name, weight in self._weights.items()}
        self._optimizer = torch.optim.AdamW(self._groups(), betas=(0.9, 0.98), fused=True)
        self._rates = [group["lr"] for group in self._optimizer.param_groups]
        self._tieless = torch.from_numpy(examples.tieless)

    def _groups(self) -> list[dict[str, object]]:
        """Matrices decay, the rest does not; what is new learns faster than what is known."""
        s = self.settings

        def of(module: str, matrix: bool) -> list[Tensor]:
            return [w for name, w in self._weights.items() if name.startswith(module) and (w.ndim > 1) == matrix]

        return [
            {"params": of("encoder", True), "lr": s.encoder_rate, "weight_decay": s.encoder_decay},
            {"params": of("encoder", False), "lr": s.encoder_rate, "weight_decay": 0.0},
            {"params": of("head", True), "lr": s.head_rate, "weight_decay": s.head_decay},
            {"params": of("head", False) + of("levels", False), "lr": s.level_rate, "weight_decay": 0.0},
        ]

    def run(self, after: Callable[[Step], None] | None = None, until: int | None = None) -> None:
        """The steps that are left (up to `until`); `after` is called when one is done, and may keep `tensors()`.

        Raises FitError if the loss is no number.
        """
        began, pairs = time.monotonic(), 0
        end = len(self.batches) if until is None else until
        rest = sum(map(len, self.batches[self.steps_done : end]))
        self.encoder.train()
        # Torch's random numbers go on afterwards as if nothing had drawn any.
        with torch.random.fork_rng(devices=[]):
            while self.steps_done < end:
                rows = self.batches[self.steps_done]
                loss = self._step(rows)
                pairs += len(rows)
                rate = pairs / max(time.monotonic() - began, 1e-9)
                if after is not None:
                    after(Step(self.steps_done, len(self.batches), loss, rate, (rest - pairs) / rate))
        self.encoder.eval()

    def _step(self, rows: Ints) -> float:
        number, s, of = self.steps_done, self.settings, len(self.batches)
        torch.manual_seed(s.seed * 1_000_003 + number)
        share = min(1.0, (number + 1) / (s.warm_up * of + 1)) * max(_LEAST_RATE, 1 - number / of)
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * share
        loss = self._loss(rows)
        value = loss.item()
        if not np.isfinite(value):
            raise FitError(f"the training diverged: step {number + 1} has the loss {value}")
        loss.backward()
        nn.utils.clip_grad_norm_([w for w in self.encoder.parameters() if w.requires_grad], s.clip)
        self._optimizer.step()
        self._optimizer.zero_grad()
        # The average of the first steps would else be that of the start.
        decay = min(s.average, (number + 1) / (number + 10))
        with torch.no_grad():
            for name, weight in self._weights.items():
                self._averages[name].lerp_(weight, 1 - decay)
        self.steps_done += 1
        return value

    def _loss(self, rows: Ints) -> Tensor:
        """Cross-entropy of the targets under Davidson's model, averaged over the rows."""
        examples = self.examples
        pairs = [examples.conversations[row] for row in rows.tolist()]
        with torch.autocast("cpu", torch.bfloat16):
            vectors = _vectors(self.encoder, pairs, self.settings.dropout)
        margin, tie = self.head(*vectors)
        source = torch.from_numpy(examples.source[rows])
        of_surface = (torch.from_numpy(each[rows]).float() for each in (examples.margin, examples.tie))
        s, t = self.levels(source, margin, tie, *of_surface)
        t = torch.where(self._tieless[source], torch.tensor(_NEVER), t)
        log_p = functional.log_softmax(torch.stack([s / 2, -s / 2, t], 1), 1)
        return -(torch.from_numpy(examples.target[rows]).float() * log_p).sum(1).mean()

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a step changes, but the step's number."""
        found = {f"weight.{name}": weight.detach() for name, weight in self._weights.items()}
        found |= {f"average.{name}": average for name, average in self._averages.items()}
        for index, moments in self._optimizer.state_dict()["state"].items():
            found |= {f"optimizer.{index}.{what}": value for what, value in moments.items()}
        return found

    def restore(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Go on after `step` steps with what `tensors()` gave then."""
        moments: dict[int, dict[str, Tensor]] = {}
        with torch.no_grad():
            for name, weight in self._weights.items():
                weight.copy_(tensors[f"weight.{name}"])
                self._averages[name].copy_(tensors[f"average.{name}"])
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, index, what = name.split(".")
                moments.setdefault(int(index), {})[what] = value
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.steps_done = step

    def finish(self) -> None:
        """Put the averages into the network."""
        with torch.no_grad():
            for name, weight in self._weights.items():
                weight.copy_(self._averages[name])


def keep_memory() -> None:
    """Let the C library keep what a step gives back: glibc hands large blocks to the kernel and fetches them again at
    every step, which made training on long texts almost three times slower. Elsewhere, nothing."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    for option in _KEEP:
        mallopt(option, 2**31 - 1)


def evidence(encoder: Encoder, head: Head, pairs: Conversations, batch: int = 32) -> tuple[Floats, Floats]:
    """Margin and tie (n,) of pairs of conversations, in float32."""
    margin, tie = np.zeros(len(pairs)), np.zeros(len(pairs))
    order = np.argsort([_length(pair) for pair in pairs], kind="stable")
    encoder.eval()
    with torch.no_grad():
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            found = head(*_vectors(encoder, [pairs[row] for row in rows.tolist()], 0.0))
            margin[rows], tie[rows] = (each.numpy() for each in found)
    return margin, tie


def _plan(examples: Examples, settings: Settings) -> list[Ints]:
    """The rows of every batch of every epoch."""
    rng, size = np.random.default_rng(settings.seed), settings.batch
    lengths = np.array([_length(pair) for pair in examples.conversations])
    batches: list[Ints] = []
    left = settings.epochs
    while left > 1e-9:
        rows = np.flatnonzero(rng.random(len(lengths)) < examples.probability * min(1.0, left))
        rng.shuffle(rows)
        epoch = []
        for start in range(0, len(rows), size * _BUCKET):
            part = rows[start : start + size * _BUCKET]
            part = part[np.argsort(lengths[part], kind="stable")]
            epoch += [part[first : first + size] for first in range(0, len(part), size)]
        batches += [epoch[index] for index in rng.permutation(len(epoch))]
        left -= 1
    return batches


def _length(pair: tuple[Conversation, Conversation]) -> int:
    return max(len(side.ids) for side in pair)


def _vectors(encoder: Encoder, pairs: Conversations, dropout: float) -> tuple[Tensor, Tensor]:
    """The vectors (n, hidden) of the conversations with A and of those with B, as one batch."""
    sides = [pair[0] for pair in pairs] + [pair[1] for pair in pairs]
    lengths = torch.tensor([len(side.ids) for side in sides])
    width = -(-int(lengths.max()) // _MULTIPLE) * _MULTIPLE
    ids, types = torch.zeros(2, len(sides), min(width, encoder.pos.num_embeddings), dtype=torch.long)
    for row, side in enumerate(sides):
        ids[row, : len(side.ids)] = torch.from_numpy(side.ids)
        types[row, : len(side.types)] = torch.from_numpy(side.types)
    found: Tensor = encoder(ids, types, lengths, dropout)
    return found[: len(pairs)], found[len(pairs) :]

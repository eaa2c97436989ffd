"""Scores batches of token ids with one network, on one device or spread over several."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import linear

from prefcast.errors import ModelError, PrefcastError
from prefcast.scorers.reward.checkpoint import Checkpoint, Kind
from prefcast.scorers.reward.loading import body_of, load_network, one_line, packs
from prefcast.scorers.reward.packing import Ids, pack

__all__ = ["Engine", "Group", "Runner", "Scores", "free_memory", "load_engine"]

Scores = NDArray[np.float64]


def load_engine(
    checkpoint: Checkpoint,
    devices: Sequence[torch.device],
    dtype: torch.dtype,
    quantization: str | None,
    columns: Sequence[int] | None,
) -> Engine:
    """An engine with the network of a checkpoint.

    `columns` are the tokens whose logits a causal language model gives; None for a model with a head of its own. Raises
    ModelError and UsageError.
    """
    try:
        network = load_network(checkpoint, devices, dtype, quantization)
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"{checkpoint.name}: its weights do not fit {', '.join(map(str, devices))}: {one_line(error)}; --quantize "
            "nf4 takes a quarter of the memory, --spread spreads one model over all devices"
        ) from None
    except PrefcastError:
        raise
    except Exception as error:
        raise ModelError(f"{checkpoint.name}: cannot be loaded: {one_line(error)}") from error
    if checkpoint.kind is Kind.CUSTOM:
        return Engine(CustomRunner(network, devices[0]))
    if checkpoint.kind is Kind.INTERNLM2:
        return Engine(NativeRunner(network, devices[0], longest_shared=checkpoint.unscaled_length))
    if packs(checkpoint):
        return Engine(PackedRunner(network, devices[0], columns, checkpoint.unscaled_length))
    return Engine(PaddedRunner(network, devices[0], columns))


@dataclass(frozen=True)
class Group:
    """The sequences of one pair: the token ids of each, and token types for a model that reads two texts in a
    sequence."""

    ids: tuple[Ids, ...]
    types: tuple[Ids, ...] | None = None

    @property
    def tokens(self) -> int:
        return sum(map(len, self.ids))

    def unique(self) -> tuple[Group, list[int]]:
        """The group without repeated sequences, and the new position of each old sequence.

        The sequences are sorted: a pair and the swapped pair give the same group.
        """
        keys = [
            ids.tobytes() + (self.types[index].tobytes() if self.types else b"") for index, ids in enumerate(self.ids)
        ]
        order = sorted(set(keys))
        keep = [keys.index(key) for key in order]
        types = tuple(self.types[index] for index in keep) if self.types else None
        return Group(tuple(self.ids[index] for index in keep), types), [order.index(key) for key in keys]


class Runner(ABC):
    """Runs a network over groups."""

    def __init__(
        self,
        network: nn.Module,
        device: torch.device,
        columns: Sequence[int] | None = None,
        longest_shared: int | None = None,
    ) -> None:
        self.network, self.device, self.columns, self.longest_shared = network, device, columns, longest_shared

    @abstractmethod
    def outputs(self, groups: Sequence[Group]) -> Tensor:
        """The outputs (sequences of all groups, outputs)."""


class NativeRunner(Runner):
    """InternLM2's own network over packed rows.

    Sequences longer than `longest_shared` share no beginning: each has its own rotary base.
    """

    def outputs(self, groups: Sequence[Group]) -> Tensor:
        layout = pack([group.ids for group in groups], self.device, self.longest_shared)
        return _head(self.network, self.network(layout), None)


class PackedRunner(Runner):
    """Causal models of transformers over packed rows.

    Sequences longer than `longest_shared` run alone: each has its own rotary base.
    """

    def outputs(self, groups: Sequence[Group]) -> Tensor:
        limit = self.longest_shared
        if limit is None or all(len(ids) <= limit for group in groups for ids in group.ids):
            return self._packed([group.ids for group in groups])
        return torch.cat([self._packed([[ids]]) for group in groups for ids in group.ids])

    def _packed(self, groups: Sequence[Sequence[Ids]]) -> Tensor:
        for module, name, value in self._rotary:
            setattr(module, name, value.clone() if isinstance(value, Tensor) else value)
        layout = pack(groups, self.device)
        hidden = body_of(self.network)(
            input_ids=layout.ids[None], position_ids=layout.positions[None], use_cache=False, layout=layout
        ).last_hidden_state[0]
        return _head(self.network, hidden[layout.last.to(hidden.device)], self.columns)

    @cached_property
    def _rotary(self) -> list[tuple[nn.Module, str, Any]]:
        return _rotary_state(self.network)


def _rotary_state(network: nn.Module) -> list[tuple[nn.Module, str, Any]]:
    """The attributes that dynamic rotary embeddings change as they run: (module, name, value before the first run)."""
    state = []
    for module in network.modules():
        for name in vars(module):
            if name.endswith("max_seq_len_cached"):
                state.append((module, name, getattr(module, name)))
        if any(name.endswith("max_seq_len_cached") for name in vars(module)):
            state += [(module, name, buffer.clone()) for name, buffer in module.named_buffers(recurse=False)]
    return state


def _head(network: nn.Module, hidden: Tensor, columns: Sequence[int] | None) -> Tensor:
    """What the head gives for hidden states (n, hidden): the classifier's outputs, or the logits of the tokens `columns`.

    It computes in float64 (float32 on devices without it), because float32 sums would depend on the batch's size n.
    """
    wide = torch.float32 if hidden.device.type == "mps" else torch.float64
    head: Any = network.score if columns is None else network.get_output_embeddings()  # type: ignore[operator]
    weight, bias = head.weight, getattr(head, "bias", None)
    if columns is not None:
        rows = torch.tensor(list(columns), device=weight.device)
        weight, bias = weight[rows], None if bias is None else bias[rows]
    logits = linear(hidden.to(weight.device, wide), weight.to(wide), None if bias is None else bias.to(wide))
    if columns is None:
        return logits
    softcap = getattr(network.config, "final_logit_softcapping", None)
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    return logits / getattr(network.config, "logits_scaling", 1)


class PaddedRunner(Runner):
    """Any other model of transformers. Sequences are padded at their end, and the padding is masked."""

    def outputs(self, groups: Sequence[Group]) -> Tensor:
        ids, lengths = _padded([ids for group in groups for ids in group.ids])
        mask = (torch.arange(ids.shape[1])[None, :] < lengths[:, None]).to(torch.int64)
        inputs = {"input_ids": ids.to(self.device), "attention_mask": mask.to(self.device)}
        if groups[0].types is not None:
            inputs["token_type_ids"] = _padded([types for group in groups for types in group.types or ()])[0].to(
                self.device
            )
        if self.columns is None and not isinstance(getattr(self.network, "score", None), nn.Linear):
            logits: Tensor = self.network(**inputs).logits
            return logits
        # The last token of a sequence is scored, whatever the model's padding token is.
        rows, last = torch.arange(len(ids)), lengths - 1
        if self.columns is not None:
            logits = self.network(**inputs, use_cache=False).logits
            return logits[rows.to(logits.device), last.to(logits.device)][:, list(self.columns)].float()
        hidden = body_of(self.network)(**inputs, use_cache=False).last_hidden_state
        return _head(self.network, hidden[rows.to(hidden.device), last.to(hidden.device)], None)


def _padded(sequences: Sequence[Ids]) -> tuple[Tensor, Tensor]:
    """The sequences as rows of a matrix whose width is a multiple of 8 (see packing.py), and their lengths."""
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    rows = torch.zeros((len(sequences), int(lengths.max()) + -int(lengths.max()) % 8), dtype=torch.int64)
    for row, sequence in enumerate(sequences):
        rows[row, : len(sequence)] = torch.from_numpy(sequence.astype(np.int64))
    return rows, lengths


class CustomRunner(Runner):
    """A network with code of its own. It gets one sequence at a time, because its padding is not known."""

    def outputs(self, groups: Sequence[Group]) -> Tensor:
        found = []
        for ids in (ids for group in groups for ids in group.ids):
            row = torch.from_numpy(ids.astype(np.int64))[None].to(self.device)
            out = self.network(input_ids=row, attention_mask=torch.ones_like(row))
            score = getattr(out, "score", None)
            outputs = (out.logits if score is None else score).reshape(1, -1).float()
            if outputs.shape[1] != 1:
                raise ModelError(
                    f"a model with code of its own must give one score, it gave {outputs.shape[1]} numbers"
                )
            found.append(outputs)
        return torch.cat(found)


class Engine:
    """Runs batches. A batch that does not fit the memory is halved, and later batches are no larger."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.most_tokens: int | None = None

    def run(self, groups: Sequence[Group]) -> list[Scores | None]:
        """The outputs (sequences, outputs), float64, of each group; None for a group that alone does not fit the
        memory."""
        if not groups:
            return []
        tokens = sum(group.tokens for group in groups)
        if self.most_tokens is not None and tokens > self.most_tokens and len(groups) > 1:
            return self._halves(groups)
        try:
            with torch.inference_mode():
                outputs = self._runner.outputs(groups).cpu().double().numpy()
        except PrefcastError:
            raise
        except Exception as error:
            # Networks raise exceptions of many types.
            if not _out_of_memory(error):
                raise ModelError(f"scoring failed: {one_line(error)}") from error
            outputs = None
        if outputs is None:
            # The error's traceback held the batch's tensors until the handler ended.
            free_memory()
            self.most_tokens = min(self.most_tokens or tokens, max(1, tokens // 2))
            return [None] if len(groups) == 1 else self._halves(groups)
        return list(np.split(outputs, np.cumsum([len(group.ids) for group in groups])[:-1]))

    def _halves(self, groups: Sequence[Group]) -> list[Scores | None]:
        middle = len(groups) // 2
        return [*self.run(groups[:middle]), *self.run(groups[middle:])]


def free_memory() -> None:
    """Give back the memory of devices that nothing uses any more."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _out_of_memory(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    signs = ("ALLOC_FAILED", "not enough memory", "out of memory", "can't allocate memory")
    return any(sign in str(error) for sign in signs)

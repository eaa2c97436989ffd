"""Scores batches of token ids with one network on one device (or spread over several)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import linear

from prefcast.errors import ModelError, PrefcastError
from prefcast.scorers.reward.checkpoint import Checkpoint, Kind, open_checkpoint
from prefcast.scorers.reward.loading import body_of, load_network, one_line, packs
from prefcast.scorers.reward.packing import Ids, pack
from prefcast.scorers.reward.precision import compute_dtype

__all__ = ["Engine", "EngineSpec", "Group", "Scores"]

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class EngineSpec:
    """All that a process needs to build an engine.

    `folder` holds the checkpoint; `devices` are one replica's; `columns` are the tokens whose logits a causal model is
    asked for.
    """

    folder: str
    devices: tuple[str, ...] = ("cpu",)
    dtype: str | None = None
    quantization: str | None = None
    columns: tuple[int, ...] | None = None
    threads: int | None = None
    trust_remote_code: bool = False

    def precision(self, checkpoint: Checkpoint) -> tuple[torch.dtype, str | None]:
        """What is computed in, and how the weights are quantised."""
        quantization = checkpoint.quantization or self.quantization
        device = torch.device(self.devices[0])
        return compute_dtype(self.dtype, device, checkpoint.stored_dtype, quantization), quantization

    def build(self) -> Engine:
        """Load the network.

        Raises ModelError and UsageError.
        """
        checkpoint = open_checkpoint(self.folder, trust_remote_code=self.trust_remote_code)
        devices = [torch.device(name) for name in self.devices]
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        dtype, _ = self.precision(checkpoint)
        try:
            network = load_network(checkpoint, devices, dtype, self.quantization)
        except torch.OutOfMemoryError as error:
            raise ModelError(
                f"{checkpoint.name}: its weights do not fit {', '.join(self.devices)}: {one_line(error)}; --quantize nf4 "
                "takes a quarter of the memory, --spread spreads one model over all devices"
            ) from None
        except PrefcastError:
            raise
        except Exception as error:
            raise ModelError(f"{checkpoint.name}: cannot be loaded: {one_line(error)}") from error
        return Engine(_runner(checkpoint, network, devices[0], self.columns))


def _runner(checkpoint: Checkpoint, network: nn.Module, device: torch.device, columns: Sequence[int] | None) -> Runner:
    if checkpoint.kind is Kind.CUSTOM:
        return CustomRunner(network, device)
    native = checkpoint.kind is Kind.INTERNLM2
    if packs(checkpoint):
        return PackedRunner(network, device, columns=columns, native=native, longest_shared=checkpoint.unscaled_length)
    return PaddedRunner(
        network,
        device,
        columns=columns,
        pool_last=columns is not None or isinstance(getattr(network, "score", None), nn.Linear),
    )


@dataclass(frozen=True)
class Group:
    """The sequences of one pair: token ids each, and token types where the model has two texts in a sequence."""

    ids: tuple[Ids, ...]
    types: tuple[Ids, ...] | None = None

    @property
    def tokens(self) -> int:
        return sum(map(len, self.ids))

    def unique(self) -> tuple[Group, list[int]]:
        """The group without repeated sequences, in an order that follows from them alone (a pair and the same pair
        swapped give one group), and where each of the old ones is now."""
        keys = [
            ids.tobytes() + (self.types[index].tobytes() if self.types else b"") for index, ids in enumerate(self.ids)
        ]
        order = sorted(set(keys))
        keep = [keys.index(key) for key in order]
        types = tuple(self.types[index] for index in keep) if self.types else None
        return Group(tuple(self.ids[index] for index in keep), types), [order.index(key) for key in keys]


class Runner(ABC):
    """Runs a network over groups: float64 (sequences of all groups, outputs)."""

    @abstractmethod
    def outputs(self, groups: Sequence[Group]) -> Tensor: ...


class PackedRunner(Runner):
    """Causal models: no padding, shared beginnings computed once.

    Sequences longer than `longest_shared` have a rotary base of their own: each runs alone.
    """

    def __init__(
        self,
        network: nn.Module,
        device: torch.device,
        *,
        columns: Sequence[int] | None,
        native: bool,
        longest_shared: int | None,
    ) -> None:
        self._network, self._device, self._columns = network, device, columns
        self._native, self._longest_shared = native, longest_shared
        self._rotary = [] if native else _rotary_state(network)

    def outputs(self, groups: Sequence[Group]) -> Tensor:
        if self._native:
            layout = pack([group.ids for group in groups], self._device, self._longest_shared)
            return _head(self._network, self._network(layout), None)
        limit = self._longest_shared
        if limit is None or all(len(ids) <= limit for group in groups for ids in group.ids):
            return self._packed([group.ids for group in groups])
        return torch.cat([self._packed([[ids]]) for group in groups for ids in group.ids])

    def _packed(self, groups: Sequence[Sequence[Ids]]) -> Tensor:
        for module, name, value in self._rotary:
            setattr(module, name, value.clone() if isinstance(value, Tensor) else value)
        layout = pack(groups, self._device)
        hidden = body_of(self._network)(
            input_ids=layout.ids[None], position_ids=layout.positions[None], use_cache=False, layout=layout
        ).last_hidden_state[0]
        return _head(self._network, hidden[layout.last.to(hidden.device)], self._columns)


def _rotary_state(network: nn.Module) -> list[tuple[nn.Module, str, Any]]:
    """What dynamic rotary embeddings change as they run: (module, name, value at rest)."""
    state = []
    for module in network.modules():
        for name in vars(module):
            if name.endswith("max_seq_len_cached"):
                state.append((module, name, getattr(module, name)))
        if any(name.endswith("max_seq_len_cached") for name in vars(module)):
            state += [(module, name, buffer.clone()) for name, buffer in module.named_buffers(recurse=False)]
    return state


def _head(network: nn.Module, hidden: Tensor, columns: Sequence[int] | None) -> Tensor:
    """The head over (n, hidden): the classifier, or the logits of the tokens `columns`.

    In float64 (float32 on devices without it): n differs from batch to batch, and a sum of so few terms should not.
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
    """Any other model: sequences padded at the end, masked. `pool_last` scores the last real token, whatever the
    padding token is."""

    def __init__(
        self, network: nn.Module, device: torch.device, *, columns: Sequence[int] | None, pool_last: bool, pad: int = 0
    ) -> None:
        self._network, self._device, self._columns = network, device, columns
        self._pool_last, self._pad = pool_last, pad

    def outputs(self, groups: Sequence[Group]) -> Tensor:
        sequences = [ids for group in groups for ids in group.ids]
        lengths = torch.tensor([len(ids) for ids in sequences])
        # Whole eights, as in packing.py.
        shape = (len(sequences), int(lengths.max()) + -int(lengths.max()) % 8)
        ids = torch.full(shape, self._pad, dtype=torch.int64)
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence)] = torch.from_numpy(sequence.astype(np.int64))
        mask = (torch.arange(shape[1])[None, :] < lengths[:, None]).to(torch.int64)
        inputs = {"input_ids": ids.to(self._device), "attention_mask": mask.to(self._device)}
        if groups[0].types is not None:
            types = torch.zeros(shape, dtype=torch.int64)
            for row, each in enumerate(part for group in groups for part in group.types or ()):
                types[row, : len(each)] = torch.from_numpy(each.astype(np.int64))
            inputs["token_type_ids"] = types.to(self._device)
        if not self._pool_last:
            logits: Tensor = self._network(**inputs).logits
            return logits
        rows, last = torch.arange(shape[0]), lengths - 1
        if self._columns is not None:
            logits = self._network(**inputs, use_cache=False).logits
            return logits[rows.to(logits.device), last.to(logits.device)][:, list(self._columns)].float()
        hidden = body_of(self._network)(**inputs, use_cache=False).last_hidden_state
        return _head(self._network, hidden[rows.to(hidden.device), last.to(hidden.device)], None)


class CustomRunner(Runner):
    """A network with code of its own: one sequence a call, nothing assumed of its padding."""

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        self._network, self._device = network, device

    def outputs(self, groups: Sequence[Group]) -> Tensor:
        found = []
        for ids in (ids for group in groups for ids in group.ids):
            row = torch.from_numpy(ids.astype(np.int64))[None].to(self._device)
            out = self._network(input_ids=row, attention_mask=torch.ones_like(row))
            score = getattr(out, "score", None)
            outputs = (out.logits if score is None else score).reshape(1, -1).float()
            if outputs.shape[1] != 1:
                raise ModelError(
                    f"a model with code of its own must give one score, it gave {outputs.shape[1]} numbers"
                )
            found.append(outputs)
        return torch.cat(found)


class Engine:
    """Runs batches; one that does not fit the memory is halved, and the smaller size is remembered."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.most_tokens: int | None = None

    def run(self, groups: Sequence[Group]) -> list[Scores | None]:
        """The outputs (sequences, outputs) of each group, float64; None where a single group is too large for the
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
            # A network may fail in any way.
            if not _out_of_memory(error):
                raise ModelError(f"scoring failed: {one_line(error)}") from error
            self.most_tokens = min(self.most_tokens or tokens, max(1, tokens // 2))
            failed = True
        else:
            failed = False
        if failed:
            # Outside the handler the error's traceback, and with it the batch's tensors, is gone.
            free_memory()
            return [None] if len(groups) == 1 else self._halves(groups)
        parts = np.split(outputs, np.cumsum([len(group.ids) for group in groups])[:-1])
        return list(parts)

    def _halves(self, groups: Sequence[Group]) -> list[Scores | None]:
        middle = len(groups) // 2
        return [*self.run(groups[:middle]), *self.run(groups[middle:])]


def free_memory() -> None:
    """Give the memory of devices that nothing uses back."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _out_of_memory(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return (
        "ALLOC_FAILED" in text
        or "not enough memory" in text
        or "out of memory" in text
        or "can't allocate memory" in text
    )

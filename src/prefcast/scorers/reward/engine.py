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
from prefcast.scorers.reward.loading import load_network
from prefcast.scorers.reward.networks import body_of, head_layers, one_line, packs, trained_padding
from prefcast.scorers.reward.packing import Ids, pack

__all__ = [
    "PADDED_ENCODERS",
    "TOO_LARGE",
    "Engine",
    "Group",
    "Runner",
    "Scores",
    "free_memory",
    "load_engine",
    "runner_of",
]

Scores = NDArray[np.float64]
TOO_LARGE = "needs more memory than the device has; --max-tokens reads less of it"


def load_engine(
    checkpoint: Checkpoint,
    devices: Sequence[torch.device],
    dtype: torch.dtype,
    quantization: str | None,
    columns: Sequence[int] | None,
    position: str = "trained",
) -> Engine:
    """An engine with the network of a checkpoint.

    `columns` are the tokens whose logits a causal language model gives; None for a model with a head of its own.
    `position` says which token is scored: the one that the model was trained through, or the `last`. Raises ModelError and
    UsageError.
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
    return Engine(runner_of(checkpoint, network, devices[0], columns, position))


def runner_of(
    checkpoint: Checkpoint,
    network: nn.Module,
    device: torch.device,
    columns: Sequence[int] | None = None,
    position: str = "trained",
) -> Runner:
    """What runs the network of a checkpoint over groups of sequences, on the device of its first layer."""
    if checkpoint.kind is Kind.CUSTOM:
        return CustomRunner(network, device)
    if checkpoint.kind is Kind.INTERNLM2:
        return NativeRunner(network, device, longest=checkpoint.unscaled_length)
    padding = trained_padding(checkpoint) if position == "trained" else None
    if packs(checkpoint):
        return PackedRunner(network, device, columns, checkpoint.unscaled_length, padding)
    runner = PaddedRunner if _may_be_padded(checkpoint, network) else SingleRunner
    return runner(network, device, columns, checkpoint.positions, padding)


# Encoders that pool at the first token, and whose attention keeps the padding out.
PADDED_ENCODERS = frozenset(
    {
        "albert", "bert", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "ernie", "mobilebert", "modernbert",
        "mpnet", "roberta", "xlm-roberta", "xlm-roberta-xl", "roberta-prelayernorm", "data2vec-text",
    }
)  # fmt: skip


def _may_be_padded(checkpoint: Checkpoint, network: nn.Module) -> bool:
    """Whether padding at the end of a sequence cannot change its score.

    A causal network does not see it, and its token is chosen here. Others may pool by position or read no mask.
    """
    family = checkpoint.text_config.get("model_type")
    if family in PADDED_ENCODERS:
        return bool(checkpoint.text_config.get("classifier_pooling", "cls") == "cls")
    two_sided = checkpoint.text_config.get("use_bidirectional_attention") or not checkpoint.text_config.get(
        "is_causal", True
    )
    return (
        not two_sided and family not in _NOT_CAUSAL and (head_layers(network) is not None or checkpoint.kind in _LOGITS)
    )


_NOT_CAUSAL = frozenset({"xlnet", "xlm", "flaubert", "t5gemma", "t5gemma2"})
_LOGITS = (Kind.CAUSAL, Kind.LOGIT)


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
        longest: int | None = None,
        padding: int | None = None,
    ) -> None:
        self.network, self.device, self.columns, self.longest = network, device, columns, longest
        self.padding = padding

    @abstractmethod
    def outputs(self, groups: Sequence[Group]) -> Tensor:
        """The outputs (sequences of all groups, outputs)."""

    def before_end(self, ids: Ids) -> int:
        """How many tokens before the last one is the token that is scored."""
        if self.padding is None:
            return 0
        other = np.flatnonzero(ids != self.padding)
        # Where all are padding, transformers scores the first.
        return len(ids) - 1 - (int(other[-1]) if len(other) else 0)


class NativeRunner(Runner):
    """InternLM2's own network over packed rows.

    Sequences longer than `longest` share no beginning: each has its own rotary base.
    """

    def outputs(self, groups: Sequence[Group]) -> Tensor:
        layout = pack([group.ids for group in groups], self.device, self.longest)
        return _head(self.network, self.network(layout), None)


class PackedRunner(Runner):
    """Causal models of transformers over packed rows.

    Sequences longer than `longest` run alone: each has its own rotary base.
    """

    def outputs(self, groups: Sequence[Group]) -> Tensor:
        limit = self.longest
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
        scored = layout.last
        if self.padding is not None:
            back = [self.before_end(ids) for sequences in groups for ids in sequences]
            scored = torch.tensor([layout.place(index, steps) for index, steps in enumerate(back)])
        return _head(self.network, hidden[scored.to(hidden.device)], self.columns)

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
    if columns is None:
        states = hidden
        for number, layer in enumerate(head_layers(network) or ()):
            states = states.relu() if number else states
            shift = None if layer.bias is None else layer.bias.to(wide)
            states = linear(states.to(layer.weight.device, wide), layer.weight.to(wide), shift)
        return states
    head: Any = network.get_output_embeddings()  # type: ignore[operator]
    weight, bias = head.weight, getattr(head, "bias", None)
    rows = torch.tensor(list(columns), device=weight.device)
    weight, bias = weight[rows], None if bias is None else bias[rows]
    logits = linear(hidden.to(weight.device, wide), weight.to(wide), None if bias is None else bias.to(wide))
    softcap = getattr(network.config, "final_logit_softcapping", None)
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    return logits / getattr(network.config, "logits_scaling", 1)


class PaddedRunner(Runner):
    """Any other model of transformers. Sequences are padded at their end, and the padding is masked."""

    def outputs(self, groups: Sequence[Group]) -> Tensor:
        sequences = [ids for group in groups for ids in group.ids]
        lengths = torch.tensor([len(ids) for ids in sequences])
        ids = self._rows(sequences, self._filler)
        mask = (torch.arange(ids.shape[1])[None, :] < lengths[:, None]).to(torch.int64)
        inputs = {"input_ids": ids.to(self.device), "attention_mask": mask.to(self.device)}
        if groups[0].types is not None:
            types = [each for group in groups for each in group.types or ()]
            inputs["token_type_ids"] = self._rows(types, 0).to(self.device)
        if self.columns is None and head_layers(self.network) is None:
            logits: Tensor = self.network(**inputs).logits
            return logits
        rows = torch.arange(len(ids))
        at = lengths - 1 - torch.tensor([self.before_end(each) for each in sequences])
        if self.columns is not None:
            # The network's own logits: some families scale them.
            told: Tensor = self.network(**inputs, use_cache=False).logits
            return told[rows.to(told.device), at.to(told.device)][:, list(self.columns)].float()
        hidden = body_of(self.network)(**inputs, use_cache=False).last_hidden_state
        return _head(self.network, hidden[rows.to(hidden.device), at.to(hidden.device)], None)

    @cached_property
    def _filler(self) -> int:
        """The padding token: some networks count their positions from its id on."""
        found = getattr(getattr(self.network, "config", None), "pad_token_id", None)
        return found if isinstance(found, int) and found >= 0 else 0

    def _rows(self, sequences: Sequence[Ids], filler: int) -> Tensor:
        """The sequences as rows of a matrix whose width is a multiple of 8 (see packing.py), where that many positions
        exist."""
        longest = max(map(len, sequences))
        width = longest + -longest % 8
        if self.longest is not None:
            width = max(longest, min(width, self.longest))
        rows = torch.full((len(sequences), width), filler, dtype=torch.int64)
        for row, sequence in enumerate(sequences):
            rows[row, : len(sequence)] = torch.from_numpy(sequence.astype(np.int64))
        return rows


class SingleRunner(PaddedRunner):
    """A network whose scores padding may change: it gets one sequence at a time."""

    def outputs(self, groups: Sequence[Group]) -> Tensor:
        alone = [
            Group((ids,), None if group.types is None else (group.types[index],))
            for group in groups
            for index, ids in enumerate(group.ids)
        ]
        return torch.cat([super(SingleRunner, self).outputs([each]) for each in alone])

    def _rows(self, sequences: Sequence[Ids], filler: int) -> Tensor:
        return torch.from_numpy(sequences[0].astype(np.int64))[None]


class CustomRunner(Runner):
    """A network with code of its own. It gets one sequence at a time, because its padding is not known."""

    def outputs(self, groups: Sequence[Group]) -> Tensor:
        found = []
        for ids in (ids for group in groups for ids in group.ids):
            row = torch.from_numpy(ids.astype(np.int64))[None].to(self.device)
            found.append(_one_score(self.network(input_ids=row, attention_mask=torch.ones_like(row))))
        return torch.cat(found)


def _one_score(out: Any) -> Tensor:
    """The score in what a network with code of its own gives: a tensor, a tuple, or an object with score or logits."""
    named = [getattr(out, name, None) for name in ("score", "logits", "rewards", "reward")]
    parts = [out] if isinstance(out, Tensor) else [*out] if isinstance(out, tuple | list) else named
    tensors = [part for part in parts if isinstance(part, Tensor)]
    for part in tensors:
        if part.numel() == 1:
            return part.reshape(1, 1).float()
    gave = f"{tensors[0].numel()} numbers" if tensors else f"a {type(out).__name__}"
    raise ModelError(f"a model with code of its own must give one score, it gave {gave}")


class Engine:
    """Runs batches. A batch that fails is halved down to the pair that fails; after one that does not fit the memory, later
    batches are no larger."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.most_tokens: int | None = None

    def run(self, groups: Sequence[Group]) -> list[Scores | str]:
        """The outputs (sequences, outputs), float64, of each group; a text with what is wrong for a group that alone does
        not fit the memory, or that the network rejects."""
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
            full, problem = _out_of_memory(error), f"the network rejects it: {one_line(error)}"
            if not full and "CUDA error" in str(error):
                # Nothing can run on the device any more.
                raise ModelError(f"scoring failed: {one_line(error)}") from error
        else:
            return list(np.split(outputs, np.cumsum([len(group.ids) for group in groups])[:-1]))
        if full:
            # The error's traceback held the batch's tensors until the handler ended.
            free_memory()
            self.most_tokens = min(self.most_tokens or tokens, max(1, tokens // 2))
        return [TOO_LARGE if full else problem] if len(groups) == 1 else self._halves(groups)

    def _halves(self, groups: Sequence[Group]) -> list[Scores | str]:
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

"""Weights that are shared out over the processes: each holds a part of every layer, and a layer is whole only while it computes.

This is PyTorch's `fully_shard` (FSDP2; Zhao and others, "PyTorch FSDP", 2023). The layers, the embedding and the last norm of the body
are sharded. Adapters and heads are small: every process holds them whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from prefcast.errors import UsageError
from prefcast.scorers.reward.engine import NativeRunner, PackedRunner, Runner
from prefcast.scorers.reward.networks import PACKED_FAMILIES, body_of
from prefcast.scorers.reward.scorer import RewardScorer
from prefcast.training.reward.processes import Processes

__all__ = ["check_model", "clipped", "gathered", "is_sharded", "placed", "shard", "summed"]


def shard(
    network: nn.Module,
    layers: Sequence[nn.Module],
    whole: Iterable[nn.Parameter],
    mesh: DeviceMesh,
    device: torch.device,
    computed: torch.dtype | None,
) -> None:
    """Share out the weights of a network that lies on the CPU; each process moves a layer to `device` only to cut its part.

    The parameters in `whole`, and all outside the body, go to the device as they are. `computed` is what the layers' weights are
    rounded to when they compute, None for what they are held in; gradients are summed in float32.
    """
    body, kept = body_of(network), set(whole)
    plain = MixedPrecisionPolicy()
    # The states between layers stay as wide as they are without sharding.
    of_layers = MixedPrecisionPolicy(computed, torch.float32, cast_forward_inputs=False) if computed else plain
    for module in (*layers, body):
        policy = plain if module is body else of_layers
        fully_shard(module, mesh=mesh, reshard_after_forward=True, mp_policy=policy, ignored_params=kept)
    for tensor in (*network.parameters(), *network.buffers()):
        if not isinstance(tensor, DTensor):
            tensor.data = tensor.data.to(device)


def check_model(scorer: RewardScorer, runner: Runner, layers: Sequence[nn.Module]) -> None:
    """UsageError for a model whose weights cannot be sharded here: each batch must be one pass through the layers."""
    name = scorer.checkpoint.name
    if not isinstance(runner, PackedRunner | NativeRunner) or not layers:
        known = ", ".join(sorted({*PACKED_FAMILIES, "internlm2"}))
        raise UsageError(f"{name}: --shard does not know this family of models; it can shard {known}")
    longest = runner.longest if isinstance(runner, PackedRunner) else None
    if longest is not None and scorer.max_tokens > longest:
        raise UsageError(
            f"{name}: reads conversations of more than {longest} tokens one by one; --shard takes it with --max-tokens {longest}"
        )


def is_sharded(tensor: Tensor | None) -> bool:
    """Whether this process holds only a part of a tensor."""
    return isinstance(tensor, DTensor)


def gathered(tensor: Tensor, keep: bool = True) -> Tensor:
    """A copy of a whole tensor on the CPU. All processes take part for a sharded one; without `keep` the copy is left out (empty)."""
    found = tensor.detach()
    if isinstance(found, DTensor):
        found = found.full_tensor()
    return found.to("cpu", copy=True).contiguous() if keep else torch.empty(0)


def placed(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor where another one lies, in the same parts. Every process has the whole."""
    found = value.to(like.device)
    if isinstance(like, DTensor):
        return distribute_tensor(found, like.device_mesh, like.placements, src_data_rank=None)
    return found


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def summed(parameters: Sequence[nn.Parameter], processes: Processes) -> None:
    """Make the gradients those of all processes: their sums."""
    whole = [each.grad for each in parameters if each.grad is not None and not is_sharded(each)]
    processes.add(whole)
    for each in parameters:
        if each.grad is not None and is_sharded(each):
            # FSDP has added them up already, and taken the mean.
            _local(each.grad).mul_(processes.count)


def clipped(parameters: Sequence[nn.Parameter], longest: float, processes: Processes) -> float:
    """Shorten the gradient to at most `longest`, as `clip_grad_norm_` does; its length before."""
    if not processes.sharded:
        return float(nn.utils.clip_grad_norm_(parameters, longest))
    squares = torch.zeros(2, dtype=torch.float64)
    for each in parameters:
        if each.grad is not None:
            squares[int(is_sharded(each))] += _local(each.grad).double().square().sum().cpu()
    parts = squares[1:]
    processes.add([parts])
    size = float(squares.sum().sqrt())
    for each in parameters:
        if each.grad is not None:
            _local(each.grad).mul_(min(1.0, longest / (size + 1e-6)))
    return size

"""The processes of one training, as torchrun and `accelerate launch` start them. Alone, a process is rank 0 of 1."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from prefcast.errors import UsageError
from prefcast.scorers.reward.devices import parse_devices
from prefcast.training.reward.recipe import Recipe

__all__ = ["Processes", "check_shard", "joined"]


@dataclass(frozen=True)
class Processes:
    """This process is number `rank` of `count`; it computes on `device`. They share out the weights over `mesh`, if there is one."""

    rank: int
    count: int
    device: str
    mesh: DeviceMesh | None = None

    @property
    def first(self) -> bool:
        """Whether this process writes the files and speaks."""
        return self.rank == 0

    @property
    def sharded(self) -> bool:
        """Whether each process holds only a part of the weights. Then a pass through the network needs all of them."""
        return self.mesh is not None

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its sum over all processes."""
        if self.count == 1:
            return
        parts = list(tensors)
        # One message for all: many small ones cost more than their bytes.
        flat = torch.cat([part.reshape(-1).to(self.device, torch.float64) for part in parts])
        dist.all_reduce(flat)
        for part, summed in zip(parts, flat.split([part.numel() for part in parts]), strict=True):
            part.copy_(summed.view_as(part))

    def any(self, here: bool) -> bool:
        """Whether it is so in any process."""
        found = torch.tensor([float(here)], dtype=torch.float64)
        self.add([found])
        return bool(found > 0)

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.count > 1:
            dist.barrier()


def check_shard(recipe: Recipe) -> None:
    """UsageError if weights cannot be sharded: in one process, or in 4 bit."""
    if recipe.quantize is not None:
        raise UsageError(f"--shard cannot share out weights in 4 bit; leave --quantize {recipe.quantize} out")
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        raise UsageError(
            "--shard shares out the weights over several processes; start them with "
            "torchrun --nproc-per-node N -m prefcast.cli train reward ... --shard"
        )


@contextmanager
def joined(device: str | None, shard: bool = False) -> Iterator[Processes]:
    """The processes that were started together; `device` is one for all, or by default the GPU of the process's number, or the CPU.
    With `shard` they share out the weights.

    Raises UsageError.
    """
    count, rank, local = (int(os.environ.get(name, default)) for name, default in _FROM)
    if device is None or device == "auto":
        found = parse_devices("auto")
        chosen = str(found[local % len(found)])
    else:
        every = parse_devices(device)
        if len(every) > 1:
            raise UsageError(
                "--device names one device; several are used with torchrun --nproc-per-node N -m prefcast.cli train ..."
            )
        chosen = str(every[0])
    if count == 1:
        yield Processes(0, 1, chosen)
        return
    if chosen.startswith("cuda"):
        torch.cuda.set_device(chosen)
    dist.init_process_group("nccl" if chosen.startswith("cuda") else "gloo")
    try:
        mesh = init_device_mesh(chosen.partition(":")[0], (count,)) if shard else None
        yield Processes(rank, count, chosen, mesh)
    finally:
        dist.destroy_process_group()


_FROM = (("WORLD_SIZE", 1), ("RANK", 0), ("LOCAL_RANK", 0))

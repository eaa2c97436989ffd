"""Which devices a reward model computes on."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from prefcast.errors import UsageError, excerpt
from prefcast.scorers.embedded.encoder import processors

__all__ = ["parse_devices", "threads_each"]


def parse_devices(devices: str | Sequence[str] | None = None) -> tuple[torch.device, ...]:
    """The devices that `auto`, `cpu,cpu`, `cuda:0,cuda:1` or a sequence of such names stands for.

    One replica of the model runs on each. `auto` (and None) means every CUDA device, or Apple's, or the CPU once. Raises
    UsageError for a device that this machine does not have.
    """
    names = devices.split(",") if isinstance(devices, str) else list(devices or ["auto"])
    names = [str(name).strip() for name in names]
    if names == ["auto"]:
        if torch.cuda.is_available():
            return tuple(torch.device("cuda", index) for index in range(torch.cuda.device_count()))
        return (torch.device("mps" if torch.backends.mps.is_available() else "cpu"),)
    found = tuple(map(_device, names))
    if len({device.type for device in found}) > 1:
        raise UsageError("devices of several types cannot share a run: their scores would differ by rounding")
    return found


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except (RuntimeError, ValueError):
        raise UsageError(f"unknown device {excerpt(name)}; write for example cpu, auto or cuda:0,cuda:1") from None
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise UsageError(f"device {name}: this machine has {count or 'no'} CUDA device{'s' if count != 1 else ''}")
        return torch.device("cuda", device.index or 0)
    if device.type == "mps" and torch.backends.mps.is_available():
        return torch.device("mps")
    if device.type != "cpu" or device.index:
        raise UsageError(f"device {excerpt(name)} is not supported here; write for example cpu, auto or cuda:0,cuda:1")
    return torch.device("cpu")


def threads_each(devices: Sequence[torch.device]) -> int | None:
    """How many threads each of several replicas on the CPU gets: its share of the processors.

    None leaves the number to torch: for one replica, for other devices, and where OMP_NUM_THREADS is set.
    """
    if "OMP_NUM_THREADS" in os.environ or devices[0].type != "cpu" or len(devices) < 2:
        return None
    return max(1, processors() // len(devices))

"""A training that was begun: everything it takes to go on as if nothing had happened, in one file.

`.training/state.safetensors` in the output's folder holds the weights, their averages and the optimizer's moments; its
header says, as JSON, at which step, with what settings and with what data. It is written whole or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefcast.errors import UsageError, shown_path
from prefcast.files import atomic_file

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ROOM", "Begun", "check_same", "read_state", "write_state"]

# Where, within the output's folder, an unfinished training lies.
ROOM = ".training"
_FILE = "state.safetensors"
_FORMAT = 1


@dataclass(frozen=True)
class Begun:
    """A training after `step` steps and `seconds`: `plan` says what it is a training of (settings, start, data),
    `machine` on what it ran, `tensors` holds its numbers."""

    step: int
    seconds: float
    plan: Mapping[str, Any]
    machine: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


def write_state(room: Path, state: Begun) -> None:
    """Replace what `room` holds."""
    from safetensors.torch import save

    said = {
        "format": _FORMAT,
        "step": state.step,
        "seconds": state.seconds,
        "plan": state.plan,
        "machine": state.machine,
    }
    with atomic_file(room / _FILE) as file:
        file.write(save(dict(state.tensors), {"training": json.dumps(said)}))


def read_state(room: Path) -> Begun | None:
    """What `room` holds; None if there is nothing. Raises UsageError if it is damaged."""
    from safetensors import SafetensorError, safe_open

    path = room / _FILE
    for torn in room.glob(".prefcast-*.part"):
        torn.unlink()  # a kill in mid-writing left it
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            said = json.loads(file.metadata()["training"])
            if said["format"] != _FORMAT:
                raise UsageError(f"{shown_path(path)}: was begun with another version; --fresh starts over")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        return Begun(said["step"], said["seconds"], said["plan"], said["machine"], tensors)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{shown_path(path)}: cannot be read ({type(error).__name__}: {error}); --fresh starts over"
        ) from None


def check_same(begun: Begun, plan: Mapping[str, Any], room: Path) -> None:
    """UsageError, naming the first difference, unless `plan` is that of the training that was begun."""
    for name, then, now in _differences(json.loads(json.dumps(begun.plan)), json.loads(json.dumps(plan)), ""):
        raise UsageError(
            f"{shown_path(room)}: holds a training begun with {name} {_shown(then)}, now {_shown(now)}; give the same again, "
            "or --fresh to start over"
        )


def _differences(then: Any, now: Any, name: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(then, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*then, *now]):
            yield from _differences(then.get(key), now.get(key), f"{name} {key}".strip())
    elif then != now:
        yield name, then, now


def _shown(value: Any) -> str:
    return "absent" if value is None else json.dumps(value)

"""What a training keeps so that it can go on after a kill: settings, weights, moments and step, in JSON and safetensors.

Each file is written whole or not at all. There is no pickle. What is drawn at random depends on the seed and the number of the step
alone, so no state of a generator is kept.
"""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from prefcast.base.files import atomic_file
from prefcast.errors import RunError, UsageError, excerpt, shown_path

__all__ = ["Reached", "State"]

# 2: the rows that are held out follow from groups of near-duplicates.
_FORMAT = 2
_SETTINGS, _STATE, _BEST = "settings.json", "state.safetensors", "best.safetensors"
_BASE, _LOCK = "base.sha256", "lock"
_FIRST, _SECOND = "exp_avg", "exp_avg_sq"


@dataclass(frozen=True)
class Reached:
    """How far a training is: `step` steps are done. `best` is the lowest validation log loss, after step `best_step`; since then
    there were `worse` evaluations."""

    step: int = 0
    best: float | None = None
    best_step: int = 0
    worse: int = 0


class State:
    """The folder of a training's state."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._held: IO[str] | None = None

    def claim(self, settings: Mapping[str, Any]) -> None:
        """Write the settings of a new training, or check that those of an earlier start are the same. Until the process ends, no other
        one can claim the folder.

        An earlier start that kept nothing is forgotten. Raises UsageError.
        """
        path = self.folder / _SETTINGS
        said = json.loads(json.dumps({"format": _FORMAT, **settings}))
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock()
        kept = any((self.folder / name).exists() for name in (_STATE, _BEST, "folds"))
        done = (self.folder.parent / "forecaster.json").exists()
        if not path.exists() or not (kept or done):
            for left in self.folder.iterdir():
                if left.is_dir():
                    shutil.rmtree(left)
                elif left.name != _LOCK:
                    left.unlink()
            with atomic_file(path) as file:
                file.write((json.dumps(said, indent=1) + "\n").encode())
            return
        try:
            there = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunError(f"{shown_path(path)}: cannot be read: {error}; remove the folder to train anew") from None
        if there == said:
            return
        names = [name for name in {**there, **said} if there.get(name) != said.get(name)]
        old, new = (excerpt(each.get(names[0])) for each in (there, said))
        raise UsageError(
            f"{shown_path(self.folder.parent)}: holds a training with another {names[0]}: {old}, not {new}; give the command that "
            "began it, or name another folder"
        )

    def _lock(self) -> None:
        """Hold the folder; the kernel frees it when the process ends. Raises UsageError if another process holds it."""
        if self._held is not None:
            return
        file = (self.folder / _LOCK).open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise UsageError(f"{shown_path(self.folder.parent)}: another process trains in it") from None
        except OSError:
            pass  # a disk without locks
        self._held = file

    def release(self) -> None:
        """Let other processes claim the folder."""
        if self._held is not None:
            self._held.close()
            self._held = None

    def claim_base(self, sha256: str) -> None:
        """Note the fingerprint of the base model, or check that it is the one of an earlier start. Raises UsageError."""
        path = self.folder / _BASE
        if not path.exists():
            with atomic_file(path) as file:
                file.write(f"{sha256}\n".encode())
        elif path.read_text(encoding="utf-8", errors="replace").strip() != sha256:
            raise UsageError(
                f"{shown_path(self.folder.parent)}: its training began from other weights of the base model; name another folder"
            )

    def save(
        self, reached: Reached, weights: Mapping[str, Tensor], moments: Mapping[str, Mapping[str, Tensor]]
    ) -> None:
        """Write where the training is. `moments` are those of AdamW, by the name of the weight."""
        tensors = {f"weight.{name}": value for name, value in weights.items()}
        for name, each in moments.items():
            for moment in (_FIRST, _SECOND):
                tensors[f"{moment}.{name}"] = each[moment].detach().cpu().contiguous()
        self._write(_STATE, tensors, reached)

    def save_best(self, reached: Reached, weights: Mapping[str, Tensor]) -> None:
        """Write the best weights so far."""
        self._write(_BEST, dict(weights), reached)

    def _write(self, name: str, tensors: dict[str, Tensor], reached: Reached) -> None:
        data = save(tensors, {"reached": json.dumps(asdict(reached))})
        with atomic_file(self.folder / name) as file:
            file.write(data)

    def load(self) -> tuple[Reached, dict[str, Tensor], dict[str, dict[str, Tensor]]] | None:
        """Where the training is, its weights, and the moments of AdamW by weight; None for one that has no state yet.

        Raises RunError for a damaged file.
        """
        if not (self.folder / _STATE).exists():
            return None
        reached, tensors = self._read(_STATE)
        parts: dict[str, dict[str, Tensor]] = {"weight": {}, _FIRST: {}, _SECOND: {}}
        for key, value in tensors.items():
            kind, _, name = key.partition(".")
            parts[kind][name] = value
        moments = {
            name: {
                _FIRST: parts[_FIRST][name],
                _SECOND: parts[_SECOND][name],
                "step": torch.tensor(float(reached.step)),
            }
            for name in parts[_FIRST]
        }
        return reached, parts["weight"], moments

    def best(self) -> dict[str, Tensor]:
        """The best weights. Raises RunError."""
        return self._read(_BEST)[1]

    def _read(self, name: str) -> tuple[Reached, dict[str, Tensor]]:
        path = self.folder / name
        try:
            with safe_open(str(path), framework="pt", device="cpu") as file:
                reached = Reached(**json.loads(file.metadata()["reached"]))
                return reached, {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
            raise RunError(
                f"{shown_path(path)}: cannot be read ({type(error).__name__}); remove {shown_path(self.folder)} to train anew"
            ) from None

"""The training loop: steps of so many pairs, the schedule of the learning rate, evaluations, early stopping, checkpoints.

A step's pairs, batches and random numbers follow from the seed and the number of the step. So a training that goes on after a kill
takes the same steps as one that was never killed, and several processes take the steps of one.
"""

from __future__ import annotations

import json
import math
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prefcast.base.files import atomic_file
from prefcast.errors import FitError, UsageError
from prefcast.pairs import Outcome
from prefcast.runs.stopping import Interrupted, Stopping
from prefcast.scorers.reward.engine import Group
from prefcast.training.reward.likelihood import cross_entropy, softened
from prefcast.training.reward.network import Trainee
from prefcast.training.reward.processes import Processes
from prefcast.training.reward.recipe import Recipe
from prefcast.training.reward.rows import LabelledRows
from prefcast.training.reward.sharding import clipped, gathered, is_sharded, placed, summed
from prefcast.training.reward.state import Reached, State

__all__ = ["CURVES", "Examples", "Progress", "Trained", "train"]

CURVES = "curves.jsonl"
# The link has few numbers, on the scale of log-odds whatever the model.
_LINK_RATE = 0.02
_LEAST_RATE = 0.1
_LONGEST_GRADIENT = 1.0
_SAVED_SECONDS = 300.0

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Progress:
    """The progress: steps `done` of `of`, the loss of the last step, the last validation log loss (nan before the first), tokens a
    second of this call, seconds left, and the largest memory in bytes: that of the GPU, or of the process."""

    done: int
    of: int
    loss: float
    validation: float
    rate: float
    left: float
    memory: int


@dataclass(frozen=True)
class Trained:
    """How a training ended: where it was, and its speed in this call."""

    reached: Reached
    steps: int
    early: bool
    tokens_per_second: float
    memory: int


class Examples:
    """The rows as tensors on a device: their sequences, and what is learned of each."""

    def __init__(self, rows: LabelledRows, groups: Sequence[Group], recipe: Recipe, device: torch.device) -> None:
        self.groups = list(groups)
        target, labelled = rows.target, rows.labelled
        weight = rows.weight.copy()
        strong = np.isfinite(rows.strength)
        demanded = np.zeros(len(rows))
        if recipe.strength == "weight":
            weight[strong] *= rows.strength[strong]
        else:
            signs = target[:, Outcome.A] - target[:, Outcome.B]
            demanded[strong] = (rows.strength * signs)[strong]
        taught = rows.taught
        level = np.full(len(Outcome), 1 / len(Outcome))
        if recipe.likelihood == "bradley-terry":
            if taught.any():
                raise UsageError("--teacher tells the chance of ties; --likelihood bradley-terry has none")
            # A tie says nothing there: its share of the row is left out.
            decided = 1 - target[:, Outcome.TIE]
            weight = weight * decided
            target = np.divide(target, decided[:, None], out=np.zeros_like(target), where=decided[:, None] > 0)
            target[:, Outcome.TIE] = 0.0
            level = np.array([0.5, 0.5, 0.0])
        share = np.where(taught, np.where(labelled, recipe.mixing, 1.0), 0.0)
        softer = np.where(taught[:, None], rows.teacher, 1 / 3) ** (1 / recipe.temperature)
        softer /= softer.sum(axis=1, keepdims=True)

        def on(values: NDArray[Any]) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(values)).to(device)

        self.plain, self.target = on(target), on((1 - recipe.smoothing) * target + recipe.smoothing * level)
        self.weight, self.source, self.demanded = on(weight), on(rows.source), on(demanded)
        self.share, self.teacher = on(share), on(softer)
        self.taught = bool(taught.any())
        self.temperature = recipe.temperature

    def __len__(self) -> int:
        return len(self.groups)

    @cached_property
    def shortest(self) -> int:
        """The row with the fewest tokens."""
        return min(range(len(self)), key=lambda row: self.groups[row].tokens)

    def loss(self, trainee: Trainee, rows: Sequence[int]) -> Tensor:
        """The sum of weight times loss over the rows."""
        margin, tie = trainee.evidence([self.groups[row] for row in rows])
        at = torch.tensor(list(rows), device=margin.device)
        log_p = trainee.link(margin, tie, self.source[at], self.demanded[at])
        found = cross_entropy(self.target[at], log_p)
        if self.taught:
            # Times T^2, so that the teacher's part keeps its size at any temperature (Hinton and others, 2015, section 2).
            heat = self.temperature
            learned = heat**2 * cross_entropy(self.teacher[at], softened(log_p, heat))
            found = (1 - self.share[at]) * found + self.share[at] * learned
        return (self.weight[at] * found).sum()


def train(
    trainee: Trainee,
    learned: Examples,
    held: Examples,
    state: State,
    processes: Processes,
    *,
    rate: float,
    saved_seconds: float = _SAVED_SECONDS,
    progress: Callable[[Progress], None] | None = None,
    tracking: Callable[[int], AbstractContextManager[Callable[[Mapping[str, Any]], None]]] | None = None,
) -> Trained:
    """Train until the recipe's epochs are done or the validation log loss rises. Then the best weights are in `state` and in
    `trainee`. A training whose state is there goes on from it. `tracking`, given the first step, makes what takes each line of the
    curves as well. Raises FitError if a loss is not finite, and RunError."""
    loop = _Loop(trainee, learned, held, state, processes, rate)
    if tracking is None or not processes.first:
        return loop.run(loop.resumed(), saved_seconds, progress)
    reached = loop.resumed()
    with tracking(reached.step + 1) as loop.tracked:
        return loop.run(reached, saved_seconds, progress)


class _Loop:
    def __init__(
        self, trainee: Trainee, learned: Examples, held: Examples, state: State, processes: Processes, rate: float
    ) -> None:
        self.trainee, self.learned, self.held = trainee, learned, held
        self.state, self.processes = state, processes
        recipe = self.recipe = trainee.recipe
        self.each = math.ceil(len(learned) / recipe.batch)
        self.total = self.each * recipe.epochs
        self.every = max(1, self.each // recipe.evaluations)
        of_link = [each for name, each in trainee.parameters.items() if name.startswith("link.")]
        rest = list(trainee.learned.values())
        # Sharded weights have a group of their own: AdamW cannot step them together with others.
        parts = [[each for each in rest if is_sharded(each) is sharded] for sharded in (False, True)]
        self.optimiser = torch.optim.AdamW(
            [
                *({"params": part, "most": rate} for part in parts if part),
                {"params": of_link, "most": _LINK_RATE, "weight_decay": 0.0},
            ],
            lr=rate,
            weight_decay=recipe.decay,
        )
        self.curves = state.folder.parent / CURVES
        self.tokens = 0
        self.validation = math.nan
        self.tracked: Callable[[Mapping[str, Any]], None] | None = None

    def run(self, reached: Reached, saved_seconds: float, progress: Callable[[Progress], None] | None) -> Trained:
        first, began, saved = reached.step, time.monotonic(), time.monotonic()
        if not reached.step and self.processes.first:
            _rewritten(self.curves, 0)
        whole = True
        with self._stopping() as busy:
            try:
                while reached.step < self.total and reached.worse < self.recipe.patience:
                    with busy():
                        whole = False
                        loss = self._step(reached.step)
                        reached = replace(reached, step=reached.step + 1)
                        if reached.step % self.every == 0 or reached.step == self.total:
                            reached = self._evaluated(reached)
                        due = self.processes.first and time.monotonic() - saved >= saved_seconds
                        if self.processes.any(due) if self.processes.sharded else due:
                            self._save(reached)
                            saved = time.monotonic()
                        whole = True
                    if progress is not None:
                        rate = self.tokens / max(time.monotonic() - began, 1e-9)
                        each = (time.monotonic() - began) / (reached.step - first)
                        left = each * (self.total - reached.step)
                        progress(Progress(reached.step, self.total, loss, self.validation, rate, left, _memory()))
            except Interrupted:
                # A second signal ends a step in its middle: then the last state that was saved counts.
                if whole:
                    self._save(reached)
                raise
        if self._keeps:
            self._save(reached)
        self.processes.wait()
        self.trainee.take(self.state.best())
        rate = self.tokens / max(time.monotonic() - began, 1e-9)
        return Trained(reached, self.total, reached.step < self.total, rate, _memory())

    def resumed(self) -> Reached:
        """Take the state that is there, and say where it is."""
        found = self.state.load()
        if found is None:
            return Reached()
        reached, weights, moments = found
        self.trainee.take(weights)
        parameters = self.trainee.parameters
        for name, each in moments.items():
            self.optimiser.state[parameters[name]] = {
                key: value if key == "step" else placed(value, parameters[name]) for key, value in each.items()
            }
        if self.processes.first:
            _rewritten(self.curves, reached.step)
        return reached

    @property
    def _keeps(self) -> bool:
        """Whether this process takes part when weights are kept. The first one writes them."""
        return self.processes.first or self.processes.sharded

    def _save(self, reached: Reached) -> None:
        first = self.processes.first
        moments = {
            name: {key: gathered(value, first) for key, value in self.optimiser.state[each].items()}
            for name, each in self.trainee.parameters.items()
            if each in self.optimiser.state
        }
        weights = self.trainee.weights(first)
        if first:
            self.state.save(reached, weights, moments)

    @contextmanager
    def _stopping(self) -> Iterator[Callable[[], AbstractContextManager[None]]]:
        """With one process, a signal ends the training after the step; with several, whoever started them ends them."""
        if self.processes.count > 1 or threading.current_thread() is not threading.main_thread():
            yield nullcontext
            return
        with Stopping() as stopping:
            yield stopping.busy

    def _rows(self, step: int) -> Ints:
        """The rows of a step: each epoch has an order of its own."""
        epoch, place = divmod(step, self.each)
        order = np.random.default_rng([self.recipe.seed, 3, epoch]).permutation(len(self.learned))
        return order[place * self.recipe.batch : (place + 1) * self.recipe.batch].astype(np.int64)

    def _mine(self, rows: Ints, examples: Examples) -> list[tuple[list[int], float]]:
        """The batches of this process: rows of similar length together, and as many tokens as the memory allows. Beside each stands
        what it counts, 1 or 0."""
        groups = [examples.groups[row] for row in rows.tolist()]
        most = self.trainee.scorer.batch_tokens
        if self.processes.count > 1:
            # Every process gets a part, even of a small step.
            most = min(most, max(1, sum(group.tokens for group in groups) // self.processes.count))
        batches = self.trainee.scorer.planned(groups, most)
        rank, count = self.processes.rank, self.processes.count
        mine = [([int(rows[place]) for place in batch], 1.0) for batch in batches[rank::count]]
        if self.processes.sharded:
            # A pass needs all processes: one that has a batch less takes part in it with a row that does not count.
            mine += [([examples.shortest], 0.0)] * (math.ceil(len(batches) / count) - len(mine))
        return mine

    def _step(self, step: int) -> float:
        recipe, began = self.recipe, time.monotonic()
        # For dropout, where a network has it.
        torch.manual_seed(((recipe.seed * 2**20 + step) * 2**12 + self.processes.rank) % 2**63)
        self.trainee.train(True)
        factor = self._factor(step)
        for group in self.optimiser.param_groups:
            group["lr"] = group["most"] * factor
        rows = self._rows(step)
        weight = float(self.learned.weight[torch.from_numpy(rows).to(self.learned.weight.device)].sum())
        parameters = list(self.trainee.parameters.values())
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        total = torch.zeros(1, dtype=torch.float64)
        for batch, counts in self._mine(rows, self.learned):
            loss = counts * self.learned.loss(self.trainee, batch) / max(weight, 1e-12)
            loss.backward()
            total += loss.detach().cpu()
        self.processes.add([total])
        summed(parameters, self.processes)
        if not math.isfinite(found := float(total)):
            raise FitError(
                f"the loss of step {step + 1} is {found}; a smaller --rate, or --dtype float32, may help (the state before it is kept)"
            )
        size = clipped(parameters, _LONGEST_GRADIENT, self.processes)
        self.optimiser.step()
        tokens = sum(self.learned.groups[row].tokens for row in rows.tolist())
        self.tokens += tokens
        seconds = max(time.monotonic() - began, 1e-9)
        said = {"rate": self.optimiser.param_groups[0]["lr"], "gradient": size, "tokens_per_second": tokens / seconds}
        self._note({"step": step + 1, "epoch": (step + 1) / self.each, "loss": found, **said})
        return found

    def _factor(self, step: int) -> float:
        """Linear warm-up, then a cosine down to a tenth."""
        warm = max(1, round(self.recipe.warmup * self.total))
        if step < warm:
            return (step + 1) / warm
        part = (step - warm) / max(1, self.total - warm)
        return _LEAST_RATE + (1 - _LEAST_RATE) * (1 + math.cos(math.pi * part)) / 2

    def _evaluated(self, reached: Reached) -> Reached:
        """The validation log loss after a step; the best weights are kept."""
        self.validation = self._log_loss()
        self._note({"step": reached.step, "validation": self.validation, **self.trainee.link.figures()})
        if reached.best is not None and self.validation >= reached.best:
            return replace(reached, worse=reached.worse + 1)
        reached = replace(reached, best=self.validation, best_step=reached.step, worse=0)
        if self._keeps:
            weights = self.trainee.weights(self.processes.first)
            if self.processes.first:
                self.state.save_best(reached, weights)
        return reached

    def _log_loss(self) -> float:
        """The weighted mean of the log loss of the rows held out, under the link as it is."""
        self.trainee.train(False)
        sums = torch.zeros(2, dtype=torch.float64)
        with torch.no_grad():
            for batch, counts in self._mine(np.arange(len(self.held)), self.held):
                margin, tie = self.trainee.evidence([self.held.groups[row] for row in batch])
                at = torch.tensor(batch, device=margin.device)
                log_p = self.trainee.link(margin, tie, self.held.source[at])
                each = cross_entropy(self.held.plain[at], log_p)
                sums += counts * torch.stack(((self.held.weight[at] * each).sum(), self.held.weight[at].sum())).cpu()
        self.processes.add([sums])
        return float(sums[0] / sums[1].clamp(min=1e-12))

    def _note(self, line: dict[str, Any]) -> None:
        if self.processes.first:
            with self.curves.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            if self.tracked is not None:
                self.tracked(line)


def _rewritten(path: Path, step: int) -> None:
    """Keep the lines of a file of curves up to a step: what was noted after the last state is noted again."""
    kept = []
    if path.exists() and step:
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                said = json.loads(line)
            except ValueError:
                break  # the kill came while the line was written
            if said["step"] <= step:
                kept.append(line + "\n")
    with atomic_file(path) as file:
        file.write("".join(kept).encode())


def _memory() -> int:
    """The largest memory so far in bytes: that of the GPU, or of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


def plain(trained: Trained) -> dict[str, Any]:
    """How a training ended, for a card."""
    return {**asdict(trained.reached), "steps": trained.steps, "stopped_early": trained.early}

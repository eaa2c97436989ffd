"""The network in training: from sequences to evidence, and which of its weights are learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.utils.checkpoint import checkpoint as recomputed

from prefcast.scorers.reward.engine import Group, runner_of
from prefcast.scorers.reward.internlm2 import Layer
from prefcast.scorers.reward.loading import load_network
from prefcast.scorers.reward.networks import body_of
from prefcast.scorers.reward.precision import DTYPES
from prefcast.scorers.reward.scorer import RewardScorer
from prefcast.training.reward.likelihood import Link
from prefcast.training.reward.lora import PREFIX, attach, tensors_of
from prefcast.training.reward.recipe import Recipe
from prefcast.training.reward.sharding import check_model, gathered, placed, shard
from prefcast.training.reward.start import head_names

__all__ = ["Trainee"]

Floats = NDArray[np.float64]


class Trainee:
    """A reward model in training.

    It runs the very network, batches and heads that score later. `learned` are the weights that are trained, by the names that
    the files of the product have; `link` turns evidence into log-probabilities. With `mesh` its processes share out the weights.
    """

    def __init__(
        self, scorer: RewardScorer, recipe: Recipe, shares: Sequence[float], mesh: DeviceMesh | None = None
    ) -> None:
        self.scorer, self.recipe = scorer, recipe
        self.device = scorer.devices[0]
        self.columns: tuple[int, ...] = getattr(scorer, "columns", ())
        # All weights are learned in float32; a GPU then multiplies in bfloat16.
        computed = DTYPES[recipe.dtype or ("float32" if self.device.type == "cpu" else "bfloat16")]
        self._autocast = computed if recipe.lora is None and computed is not torch.float32 else None
        dtype = torch.float32 if recipe.lora is None else computed
        where = self.device if mesh is None else torch.device("cpu")
        self.network = load_network(scorer.checkpoint, [where], dtype, recipe.quantize, trainable=True)
        self.network.requires_grad_(recipe.lora is None)
        heads = head_names(self.network)
        self.adapters = (
            {} if recipe.lora is None else attach(self.network, recipe.lora, 2.0, recipe.seed, scorer.checkpoint.name)
        )
        self.runner = runner_of(scorer.checkpoint, self.network, self.device)
        if mesh is not None:
            check_model(scorer, self.runner, self._layers)
            adapters = tensors_of(self.adapters).values()
            shard(self.network, self._layers, adapters, mesh, self.device, self._autocast)
        parameters = dict(self.network.named_parameters())
        self.learned: dict[str, nn.Parameter] = {}
        if recipe.lora is None:
            self.learned |= parameters
        else:
            self.learned |= tensors_of(self.adapters)
            for name in heads:
                # A head is small: it is learned in float32, whatever the body computes in.
                parameters[name].data = parameters[name].data.float()
                self.learned[f"{PREFIX}{name}"] = parameters[name]
        for parameter in self.learned.values():
            parameter.requires_grad_(True)
        self.link = Link(recipe.likelihood, shares).to(self.device)

    def recompute(self) -> None:
        """Compute the layers again for the gradient from now on, instead of keeping what they computed."""
        for layer in self._layers:
            setattr(layer, "forward", partial(recomputed, layer.forward, use_reentrant=False))  # noqa: B010

    @property
    def _layers(self) -> list[nn.Module]:
        from transformers.modeling_layers import GradientCheckpointingLayer

        return [
            each for each in body_of(self.network).modules() if isinstance(each, GradientCheckpointingLayer | Layer)
        ]

    def train(self, training: bool) -> None:
        """Switch dropout, where a network has it, and recomputing."""
        self.network.train(training)

    @property
    def _in_type(self) -> AbstractContextManager[Any]:
        if self._autocast is None:
            return nullcontext()
        return torch.autocast(self.device.type, self._autocast)

    def evidence(self, groups: Sequence[Group]) -> tuple[Tensor, Tensor]:
        """Margin and tie evidence (n,), float64, of n pairs, as the scorer reduces its outputs."""
        with self._in_type:
            outputs = self.runner.outputs(groups)
        outputs = outputs.double().view(len(groups), 2, -1)
        if not self.columns:
            margin = outputs[:, 0, 0] - outputs[:, 1, 0]
            return margin, torch.zeros_like(margin)
        first, second = outputs[:, 0], outputs[:, 1]
        a, b = self.columns[:2]
        of_a, of_b = (first[:, a] + second[:, b]) / 2, (first[:, b] + second[:, a]) / 2
        if len(self.columns) < 3:
            return of_a - of_b, torch.zeros_like(of_a)
        tie = (first[:, self.columns[2]] + second[:, self.columns[2]]) / 2
        return of_a - of_b, tie - (of_a + of_b) / 2

    def weights(self, keep: bool = True) -> dict[str, Tensor]:
        """A copy of everything that is learned, on the CPU; see `gathered`."""
        return {name: gathered(parameter, keep) for name, parameter in self.parameters.items()}

    def take(self, weights: Mapping[str, Tensor]) -> None:
        """Set everything that is learned. Raises KeyError and RuntimeError for weights of another network."""
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(placed(weights[name], parameter))

    @property
    def _of_link(self) -> dict[str, nn.Parameter]:
        return dict(self.link.named_parameters())

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Everything that is learned, by name; the link's names begin with `link.`."""
        return self.learned | {f"link.{name}": each for name, each in self._of_link.items()}

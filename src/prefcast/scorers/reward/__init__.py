"""Reward models, natively (extra `transformers`): InternLM2-reward, sequence and pair classifiers, A/B models.

Importing this package loads none of torch and transformers; loading a scorer does.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from prefcast.errors import MissingExtraError

if TYPE_CHECKING:
    import torch

    from prefcast.scorers.reward.scorer import RewardScorer

__all__ = ["Options", "load_scorer", "require_extra", "scorer_of"]


@dataclass(frozen=True)
class Options:
    """How a model is loaded and read; what a forecaster remembers of it."""

    dtype: str | None = None
    quantize: str | None = None
    devices: str | tuple[str, ...] | None = None
    shard: bool = False
    special_tokens: str | None = None
    max_tokens: int | None = None
    policy: str = "keep-last"
    template: str | None = None
    labels: tuple[str, ...] | None = None
    batch_tokens: int | None = None
    trust_remote_code: bool = False
    keep: bool = True
    isolate: bool = False
    time_limit: float | None = None


def require_extra() -> None:
    """MissingExtraError if what reward models need is not installed."""
    for module in ("torch", "transformers", "safetensors", "tokenizers", "jinja2", "accelerate"):
        if find_spec(module) is None:
            raise MissingExtraError(module, "transformers")


def scorer_of(model: str | os.PathLike[str], options: Options) -> RewardScorer:
    """`load_scorer` with its options in one object."""
    require_extra()
    from prefcast.scorers.reward.kinds import build_scorer

    return build_scorer(model, options)


def load_scorer(
    model: str | os.PathLike[str],
    *,
    dtype: str | torch.dtype | None = None,
    quantize: str | None = None,
    devices: str | Sequence[str] | None = None,
    special_tokens: str = "literal",
    max_tokens: int | None = None,
    policy: str = "keep-last",
    template: str | os.PathLike[str] | None = None,
    labels: Sequence[str] | None = None,
    shard: bool = False,
    batch_tokens: int | None = None,
    trust_remote_code: bool = False,
    keep: bool = True,
) -> Any:
    """The scorer of a reward model in a folder, or of a hub id such as `owner/name`.

    `dtype` is what is computed in (`float32`, `float16`, `bfloat16`; by default float32 on a CPU, elsewhere the
    checkpoint's own), `quantize` (`nf4`, `int8`) how the weights lie in memory, `devices` where (`auto`, `cpu,cpu`,
    `cuda:0,cuda:1`: a replica on each, or with `shard` one model over all). `special_tokens` says how special tokens
    inside a text are read: `literal` (letter by letter) or `original` (parsed). Pairs longer than `max_tokens` (default:
    the model's limit) are cut by `policy`. `template` and `labels` are for pair classifiers. With `keep`, scores are kept in a
    file (docs/reward-models.md) and what was scored before is not scored again.

    A pointwise model gives a PointwiseScorer with `score(conversations)` and `encode(conversation)`; every one has
    `evidence(pairs)`. Raises ModelError, UsageError and MissingExtraError.
    """
    if dtype is not None and not isinstance(dtype, str):
        dtype = str(dtype).removeprefix("torch.")
    options = Options(
        dtype=dtype,
        quantize=quantize,
        devices=devices if devices is None or isinstance(devices, str) else tuple(map(str, devices)),
        shard=shard,
        special_tokens=special_tokens,
        max_tokens=max_tokens,
        policy=policy,
        template=None if template is None else os.fspath(template),
        labels=None if labels is None else tuple(labels),
        batch_tokens=batch_tokens,
        trust_remote_code=trust_remote_code,
        keep=keep,
    )
    return scorer_of(model, options)

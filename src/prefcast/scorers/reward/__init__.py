"""Reward models (extra `transformers`): InternLM2-reward, sequence and pair classifiers, A/B models.

Importing this package imports neither torch nor transformers; loading a scorer does.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from prefcast.errors import MissingExtraError
from prefcast.scorers.info import ScorerInfo
from prefcast.scorers.options import Option, option

if TYPE_CHECKING:
    import torch

    from prefcast.scorers.reward.scorer import RewardScorer

__all__ = ["Options", "load_scorer", "require_extra", "scorer_of"]

# The function with which a template asks for today's date, and the day that it is told: the one that Llama's templates
# fall back to.
CLOCK, DEFAULT_DAY = "strftime_now", "2024-07-26"


@dataclass(frozen=True)
class Options:
    """How a reward model is loaded and used. A saved forecaster keeps the options that the scores depend on."""

    dtype: str | None = option(
        None,
        Option(
            "What a reward model computes in.  [default: float32 on a CPU]",
            saved=True,
            choices=("float32", "float16", "bfloat16"),
        ),
    )
    quantize: str | None = option(
        None, Option("Hold the weights of a reward model in 4 or 8 bit.", saved=True, choices=("nf4", "int8"))
    )
    devices: str | tuple[str, ...] | None = option(
        None,
        Option("Where: auto, cpu, cuda:0,cuda:1; one replica on each.  [default: auto]", metavar="LIST"),
    )
    spread: bool = option(False, Option("Spread one model over the devices instead."))
    special_tokens: str | None = option(
        None,
        Option(
            "Special tokens inside a text: read letter by letter, or parsed.  [default: literal]",
            saved=True,
            choices=("literal", "original"),
        ),
    )
    max_tokens: int | None = option(
        None,
        Option("The most tokens of a conversation that are read.  [default: the model's limit]", saved=True, least=1),
    )
    policy: str = option("keep-last", Option(saved=True))
    template: str | None = option(
        None,
        Option(
            "The prompt of the model: a Jinja file, chatml or human-assistant, or for models of pairs lmsys or rlhflow.",
            saved=True,
            metavar="NAME|FILE",
        ),
    )
    template_date: str | None = option(
        None,
        Option(
            "The date for a template that writes today's date.  [default: 2024-07-26]",
            saved=True,
            metavar="YYYY-MM-DD",
        ),
    )
    labels: tuple[str, ...] | None = option(
        None, Option("The outputs of a pair classifier, in order.", saved=True, metavar="a,b,tie")
    )
    kind: str | None = option(
        None,
        Option(
            "How a model scores, if its files do not tell: ab (a language model's tokens A and B), first-logit (its logit 0 after the chat), pointwise, pair.",
            saved=True,
            choices=("pointwise", "pair", "ab", "first-logit"),
        ),
    )
    base: str | None = option(
        None,
        Option(
            "The base model of a LoRA adapter.  [default: the one in adapter_config.json]",
            saved=True,
            metavar="FOLDER|ID",
        ),
    )
    score_position: str = option(
        "trained",
        Option(
            "The token that a classifier scores, where texts end with the padding token: trained (as transformers, the one before it), or last.  [default: trained]",
            saved=True,
            choices=("trained", "last"),
        ),
    )
    batch_tokens: int | None = option(None, Option("Tokens in a batch.", least=1))
    threads: int | None = option(None, Option())
    trust_remote_code: bool = option(
        False, Option("Run Python code that comes with the checkpoint. It can do anything.")
    )


def require_extra() -> None:
    """Raise MissingExtraError if a package that reward models need is not installed."""
    for module in ("torch", "transformers", "safetensors", "tokenizers", "jinja2", "accelerate"):
        if find_spec(module) is None:
            raise MissingExtraError(module, "transformers")


def scorer_of(model: str | os.PathLike[str], options: Options) -> RewardScorer:
    """`load_scorer` with an options object."""
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
    template_date: str | None = None,
    labels: Sequence[str] | None = None,
    kind: str | None = None,
    base: str | os.PathLike[str] | None = None,
    score_position: str = "trained",
    spread: bool = False,
    batch_tokens: int | None = None,
    trust_remote_code: bool = False,
    keep: bool | None = None,
) -> RewardScorer:
    """The scorer of a reward model in a folder, or of a hub id such as `owner/name`.

    `dtype` is the type that the model computes in (`float32`, `float16`, `bfloat16`; by default float32 on a CPU, elsewhere
    the checkpoint's own). `quantize` (`nf4`, `int8`) quantises the weights. `devices` (`auto`, `cpu,cpu`,
    `cuda:0,cuda:1`) get one replica each, or with `spread` one model together. `special_tokens` says how special tokens
    inside a text are read: `literal` (letter by letter) or `original` (parsed). Pairs longer than `max_tokens` (default:
    the model's limit) are cut by `policy`. `template` is a Jinja file or the name of a built-in template, and takes the
    place of the model's own. `template_date` (`2024-07-26`) is the date for a template that writes today's date. `labels` are for pair
    classifiers. `kind` (`pointwise`, `pair`, `ab`, `first-logit`) says how a model scores, if its files do not tell. `base` names
    the base model of a LoRA adapter. `score_position` (`trained`, `last`) says which token is scored where a text ends with
    the padding token. `keep` has no effect and is accepted for scripts of earlier versions: a scorer that is used alone
    keeps nothing.

    Every scorer has `evidence(pairs)`. The scorer of a pointwise model also has `score(conversations)` and
    `encode(conversation)`. Raises ModelError, UsageError and MissingExtraError.
    """
    if keep is not None:
        warnings.warn("load_scorer: keep has no effect; leave it out", DeprecationWarning, stacklevel=2)
    if dtype is not None and not isinstance(dtype, str):
        dtype = str(dtype).removeprefix("torch.")
    options = Options(
        dtype=dtype,
        quantize=quantize,
        devices=devices if devices is None or isinstance(devices, str) else tuple(map(str, devices)),
        spread=spread,
        special_tokens=special_tokens,
        max_tokens=max_tokens,
        policy=policy,
        template=None if template is None else os.fspath(template),
        template_date=template_date,
        labels=None if labels is None else tuple(labels),
        kind=kind,
        base=None if base is None else os.fspath(base),
        score_position=score_position,
        batch_tokens=batch_tokens,
        trust_remote_code=trust_remote_code,
    )
    return scorer_of(model, options)


def check_model(model: str, options: Options) -> None:
    """Raise ModelError for a folder that is no checkpoint. Hub ids are not checked."""
    from prefcast.scorers.reward.checkpoint import open_checkpoint
    from prefcast.scorers.reward.folders import is_hub_id

    if Path(model).is_dir() or not is_hub_id(model):
        open_checkpoint(model, trust_remote_code=options.trust_remote_code, base=options.base)


def notebook_options(model: str, options: Options) -> Options:
    """The options with the Kaggle notebook's settings: NF4, and special tokens inside texts parsed."""
    from prefcast.scorers.reward.checkpoint import Kind, open_checkpoint

    checkpoint = open_checkpoint(model, trust_remote_code=options.trust_remote_code, base=options.base)
    plain = checkpoint.quantization is None and checkpoint.kind is not Kind.CUSTOM
    quantize = options.quantize or ("nf4" if plain else None)
    return replace(options, quantize=quantize, special_tokens=options.special_tokens or "original")


def _is_checkpoint(model: str) -> bool:
    """Whether a model's name is a folder or has the form of a hub id, and is no address."""
    try:
        return "://" not in model and ("/" in model or os.sep in model or Path(model).is_dir())
    except (OSError, ValueError):
        return False


SCORER = ScorerInfo(
    "reward-model",
    f"{__name__}.scorer:RewardScorer",
    "any reward model in a folder, or by its hub id",
    "pip install 'prefcast[transformers]'",
    options=Options,
    claims=_is_checkpoint,
    make=f"{__name__}:scorer_of",
    looks=f"{__name__}:check_model",
    presets={"notebook": f"{__name__}:notebook_options"},
    files=("reward-model.json",),
    listed=False,
)

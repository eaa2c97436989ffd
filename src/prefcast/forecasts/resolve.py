"""From what a person names to the forecaster that is meant: built-in ones, folders, reward models."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import replace

from prefcast.errors import UsageError, excerpt, shown_path
from prefcast.forecasts.forecaster import Forecaster, is_folder, load_forecaster
from prefcast.forecasts.scores import read_scores
from prefcast.pairs.budget import WHOLE, Budget, parse_budget
from prefcast.scorers import DEFAULT, SCORERS, Scorer
from prefcast.scorers.blend import BlendScorer
from prefcast.scorers.given import GivenScorer
from prefcast.scorers.reward import Options, scorer_of
from prefcast.scorers.reward.checkpoint import Kind, is_hub_id, open_checkpoint

__all__ = ["PRESETS", "for_scores", "is_reward_model", "resolve", "resolve_scorer"]

PRESETS = ("notebook",)
_log = logging.getLogger("prefcast")
TOKEN_POLICIES = ("keep-last", "proportional")


def resolve(
    model: str | None = None,
    forecaster: Forecaster | str | os.PathLike[str] | None = None,
    budget: Budget | str | None = None,
    preset: str | None = None,
    options: Options | None = None,
    scores: str | os.PathLike[str] | None = None,
) -> Forecaster:
    """The forecaster that is meant: a built-in one by `model`, an object or a folder, or a reward model with the
    notebook's rule (`preset="notebook"`).

    `budget` replaces its own; `options` are for reward models; `scores` is a file of scores for a forecaster that was
    fitted to such. Raises UsageError for a reward model without a rule:
    what its scores mean for people is not assumed.
    """
    if model is not None and forecaster is not None:
        if isinstance(forecaster, Forecaster) or not is_reward_model(model):
            raise UsageError("name a model or a forecaster, not both")
        # The forecaster's reward model has moved: here it is.
        forecaster, model = load_forecaster(forecaster, model=model), None
    if preset not in (None, *PRESETS):
        raise UsageError(f"unknown preset {excerpt(preset)}; there is {', '.join(PRESETS)}")
    if model is not None and is_reward_model(model):
        if preset is None:
            if is_folder(model) or not is_hub_id(model):
                open_checkpoint(model, trust_remote_code=options is not None and options.trust_remote_code)
            raise UsageError(
                f"{shown_path(model)}: no outcome model was fitted for it, and the scale of a reward is arbitrary: fit one "
                f"with prefcast fit LABELLED --model {shown_path(model)} -o DIR and use --forecaster DIR, or take the "
                "Kaggle notebook's rule with --preset notebook (in Python: Forecaster.fit; prefcast score keeps the raw scores)"
            )
        return _notebook(model, budget, options or Options())
    if preset is not None:
        raise UsageError(f"--preset {preset} needs a reward model: --model PATH_OR_ID")
    found = (
        forecaster
        if isinstance(forecaster, Forecaster)
        else load_forecaster(forecaster if forecaster is not None else model or DEFAULT)
    )
    if options is not None and options != Options():
        found = _elsewhere(found, options)
    if scores is not None:
        found = _with_scores(found, scores)
    if budget is None:
        return found
    read = parse_budget(budget) if isinstance(budget, str) else budget
    if found.link is not None and str(read) != str(found.budget):
        _log.warning(
            "the forecaster was fitted with the budget %s; its probabilities were not checked with %s",
            found.budget,
            read,
        )
    return found.with_budget(read)


def for_scores(forecaster: Forecaster) -> Forecaster:
    """The forecaster; UsageError if it was not fitted to scores that a person brings."""
    scorer = forecaster.scorer
    parts = [member.scorer for member in scorer.members] if isinstance(scorer, BlendScorer) else [scorer]
    if not any(isinstance(part, GivenScorer) for part in parts):
        raise UsageError(
            f"--scores: the forecaster was fitted to the model {scorer.name}, not to scores that are brought; fit one "
            "with prefcast fit --scores FILE -o DIR and use --forecaster DIR"
        )
    return forecaster


def _with_scores(forecaster: Forecaster, scores: str | os.PathLike[str]) -> Forecaster:
    scorer, given = for_scores(forecaster).scorer, read_scores(scores)
    check_columns(scorer, given.columns, scores)
    return replace(forecaster, scorer=scorer.with_scores(given) if isinstance(scorer, BlendScorer) else given)


def check_columns(scorer: Scorer, columns: Sequence[str], path: str | os.PathLike[str]) -> None:
    """UsageError if a forecaster was fitted to scores of another kind than these."""
    parts = [member.scorer for member in scorer.members] if isinstance(scorer, BlendScorer) else [scorer]
    for part in parts:
        if isinstance(part, GivenScorer) and tuple(columns) != part.columns:
            raise UsageError(
                f"{shown_path(path)}: holds {', '.join(columns)}, but the forecaster was fitted to {', '.join(part.columns)}"
            )


def is_reward_model(model: str) -> bool:
    """Whether a model's name is a folder's or a hub id's, not a built-in one's."""
    return model not in SCORERS and (is_folder(model) or "/" in model or os.sep in model)


def _notebook(model: str, budget: Budget | str | None, options: Options) -> Forecaster:
    """The Kaggle notebook as a forecaster: NF4 and special tokens as the original reads them, unless told otherwise."""
    checkpoint = open_checkpoint(model, trust_remote_code=options.trust_remote_code)
    plain = checkpoint.quantization is None and checkpoint.kind is not Kind.CUSTOM
    quantize = options.quantize or ("nf4" if plain else None)
    policy, characters = token_policy(budget) if isinstance(budget, str) else ("keep-last", budget)
    scorer = scorer_of(
        model, replace(options, quantize=quantize, special_tokens=options.special_tokens or "original", policy=policy)
    )
    if scorer.raw_names != ("score_a", "score_b"):
        raise UsageError(
            f"{shown_path(model)}: the notebook's rule is for scores of single conversations, not for a {scorer.checkpoint.kind}"
        )
    made = Forecaster.notebook(scorer)
    return made if characters is None or budget in TOKEN_POLICIES else made.with_budget(characters)


def _elsewhere(forecaster: Forecaster, options: Options) -> Forecaster:
    elsewhere = getattr(forecaster.scorer, "elsewhere", None)
    if elsewhere is None:
        raise UsageError(
            f"the model {forecaster.scorer.name} has no such options; they are for reward models (--model PATH_OR_ID)"
        )
    return replace(forecaster, scorer=elsewhere(options))


def resolve_scorer(model: str, budget: str | None, options: Options) -> tuple[Scorer, Budget]:
    """The scorer of a model, built in or not, and the budget that it reads with.

    For a reward model a budget without a limit names the policy that cuts to the model's tokens.
    """
    if not is_reward_model(model):
        found = resolve(model, budget=budget, options=options)
        return found.scorer, found.budget
    policy, characters = token_policy(budget)
    scorer = scorer_of(model, replace(options, policy=policy))
    return scorer, characters


def token_policy(budget: str | None) -> tuple[str, Budget]:
    """What a budget means to a model that counts tokens: the policy that cuts to its limit, and what is cut before, in
    characters."""
    if budget is None:
        return "keep-last", WHOLE
    if budget in TOKEN_POLICIES:
        return budget, WHOLE
    parsed = parse_budget(budget)
    return parsed.name if parsed.name in TOKEN_POLICIES else "keep-last", parsed

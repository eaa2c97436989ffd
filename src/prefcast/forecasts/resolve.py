"""From names to a forecaster: a built-in forecaster, a folder, or a model with a preset."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from prefcast.errors import UsageError, excerpt, shown_path
from prefcast.forecasts.forecaster import Forecaster, built_in, load_forecaster
from prefcast.forecasts.scores import read_scores
from prefcast.outcomes.models import MarginSign
from prefcast.pairs.budget import WHOLE, Budget, parse_budget
from prefcast.scorers.base import Scorer
from prefcast.scorers.options import given, given_values, options_for, options_of_text, which
from prefcast.scorers.registry import DEFAULT, ScorerInfo, find_scorer, scorer_for

__all__ = ["PRESETS", "Choice", "for_scores", "is_named_model", "resolve", "resolve_fitted", "resolve_scorer"]

PRESETS = ("notebook",)
TOKEN_POLICIES = ("keep-last", "proportional")
_log = logging.getLogger("prefcast")


@dataclass(frozen=True)
class Choice:
    """A person's choice of a forecaster.

    `model` is the name of a built-in forecaster, a folder with a reward model, or a hub id. `forecaster` is a Forecaster or its
    folder; with it, `model` is the present path of its reward model. `scores` is a file of scores for a forecaster that was fitted
    to such scores. `budget` replaces the budget of the forecaster. `preset` names a set of settings. `options` are options of the
    model as a dataclass, or several such dataclasses; `more` are options as texts NAME=VALUE.
    """

    model: str | None = None
    forecaster: Forecaster | str | os.PathLike[str] | None = None
    scores: str | os.PathLike[str] | None = None
    budget: Budget | str | None = None
    preset: str | None = None
    options: Any = None
    more: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """The name of the forecasts in a table."""
        if self.model is not None:
            named = self.model.partition("#")[2] if "://" in self.model else ""
            last = os.path.basename((named or self.model).rstrip("/"))  # noqa: PTH119 - a hub id is no path
            return last or self.model
        if isinstance(self.forecaster, str | os.PathLike):
            return os.path.basename(os.fspath(self.forecaster).rstrip("/"))  # noqa: PTH119
        if self.scores is not None and self.forecaster is None:
            return os.path.basename(os.fspath(self.scores))  # noqa: PTH119
        return DEFAULT

    @property
    def empty(self) -> bool:
        """Whether the person named nothing."""
        named = (self.model, self.forecaster, self.budget, self.preset)
        return named == (None,) * 4 and not self.more and not given_values(self.options)


def resolve(choice: Choice | None = None, *, by_margin: bool = False) -> Forecaster:
    """The forecaster of a choice, or the default forecaster.

    Raises UsageError for a model without an outcome model, because its scores alone do not give probabilities; with
    `by_margin` the sign of its margin says which answer it prefers, and so does that of scores without a forecaster.
    """
    choice = choice or Choice()
    model, forecaster = choice.model, choice.forecaster
    if model is not None and forecaster is not None:
        if isinstance(forecaster, Forecaster) or not is_named_model(model):
            raise UsageError("name a model or a forecaster, not both")
        # `model` is the present path of the forecaster's reward model.
        forecaster, model = load_forecaster(forecaster, model=model), None
    if choice.preset not in (None, *PRESETS):
        raise UsageError(f"unknown preset {excerpt(choice.preset)}; there is {', '.join(PRESETS)}")
    if model is not None and is_named_model(model):
        info = _info(model)
        if choice.preset is not None:
            return _by_preset(model, info, choice)
        if by_margin and choice.scores is not None:
            raise UsageError("--scores brings the scores of the pairs, --model computes them; give one of them")
        if by_margin:
            return _by_margin(*resolve_scorer(choice))
        info.check(model, _options(info, choice))
        rule = ", or take the Kaggle notebook's rule with --preset notebook" if info.presets else ""
        raise UsageError(
            f"{shown_path(model)}: no outcome model was fitted for it, and the scale of a reward is arbitrary: fit one "
            f"with prefcast fit LABELLED --model {shown_path(model)} -o DIR and use --forecaster DIR{rule} (in Python: "
            "Forecaster.fit; prefcast score keeps the raw scores)"
        )
    if choice.preset is not None:
        raise UsageError(f"--preset {choice.preset} needs a reward model: --model PATH_OR_ID")
    if by_margin and choice.scores is not None and model is None and forecaster is None:
        return _by_margin(read_scores(choice.scores), _parsed(choice.budget or WHOLE))
    found = forecaster if isinstance(forecaster, Forecaster) else load_forecaster(forecaster or model or DEFAULT)
    loaded = found
    if choice.more:
        found = replace(
            found, scorer=found.scorer.with_options(options_of_text(type(found.scorer.options), choice.more))
        )
    kind, asked = type(found.scorer.options), given_values(choice.options)
    if asked and asked.keys() <= which(kind).keys():
        found = replace(found, scorer=found.scorer.with_options(options_for(kind, choice.options)))
    else:
        for options in choice.options if isinstance(choice.options, tuple) else [choice.options]:
            if options is not None and given(options):
                found = replace(found, scorer=found.scorer.with_options(options))
    if choice.budget is not None:
        found = _with_budget(found, _parsed(choice.budget))
    if found.agreement is not None and _differs(found, loaded):
        _log.warning("the promise of agreement was tested with other settings; it does not hold for these")
        found = replace(found, agreement=None)
    return found if choice.scores is None else _with_scores(found, choice.scores)


def _differs(found: Forecaster, loaded: Forecaster) -> bool:
    """Whether a forecast may differ from that of the forecaster as it was loaded."""
    if str(found.budget) != str(loaded.budget):
        return True
    return found.scorer is not loaded.scorer and found.scorer.identity() != loaded.scorer.identity()


def _with_budget(found: Forecaster, read: Budget) -> Forecaster:
    if found.link is not None and str(read) != str(found.budget):
        _log.warning(
            "the forecaster was fitted with the budget %s; its probabilities were not checked with %s",
            found.budget,
            read,
        )
    return found.with_budget(read)


def _by_margin(scorer: Scorer, budget: Budget) -> Forecaster:
    # Without an outcome model nothing is known of ties.
    return Forecaster(scorer, MarginSign(), budget, prior_tie=0.0)


def for_scores(forecaster: Forecaster) -> Forecaster:
    """The forecaster. Raises UsageError if it was not fitted to a file of scores."""
    if not forecaster.scorer.brought:
        raise UsageError(
            f"--scores: the forecaster was fitted to the model {forecaster.scorer.name}, not to a file of scores; "
            "fit one with prefcast fit --scores FILE -o DIR and use --forecaster DIR"
        )
    return forecaster


def _with_scores(forecaster: Forecaster, scores: str | os.PathLike[str]) -> Forecaster:
    scorer, brought = for_scores(forecaster).scorer, read_scores(scores)
    check_columns(scorer, brought.brought, scores)
    return replace(forecaster, scorer=scorer.with_scores(brought))


def check_columns(scorer: Scorer, columns: Sequence[str], path: str | os.PathLike[str]) -> None:
    """Raises UsageError if a forecaster was fitted to scores with other columns."""
    if scorer.brought and tuple(columns) != scorer.brought:
        raise UsageError(
            f"{shown_path(path)}: has {', '.join(columns)}, but the forecaster was fitted to {', '.join(scorer.brought)}"
        )


def is_named_model(model: str) -> bool:
    """Whether a scorer takes the model of this name, and the name is not that of a built-in forecaster."""
    return model not in built_in() and scorer_for(model) is not None


def _info(model: str) -> ScorerInfo:
    """The scorer that takes a model. Raises UsageError if none does."""
    return scorer_for(model) or find_scorer(model)


def _options(info: ScorerInfo, choice: Choice) -> Any:
    for name in given_values(choice.options):
        if name not in which(info.options):
            raise UsageError(f"--{name.replace('_', '-')} is not an option of {info.title}")
    if choice.more:
        return options_of_text(info.options, choice.more)
    return options_for(info.options, choice.options)


def _by_preset(model: str, info: ScorerInfo, choice: Choice) -> Forecaster:
    """The Kaggle notebook as a forecaster: its rule, and its settings unless the choice names others."""
    options = info.preset(str(choice.preset), model, _options(info, choice))
    budget = choice.budget
    policy, characters = token_policy(budget) if isinstance(budget, str) else ("keep-last", budget)
    scorer = info.open(model, replace(options, policy=policy))
    if not scorer.pointwise:
        scorer.close()
        raise UsageError(
            f"{shown_path(model)}: the notebook's rule is for scores of single conversations; this model reads both answers at once"
        )
    made = Forecaster.notebook(scorer)
    return made if characters is None or budget in TOKEN_POLICIES else made.with_budget(characters)


def resolve_scorer(choice: Choice) -> tuple[Scorer, Budget]:
    """The scorer of a model, built in or not, and its budget.

    For a model that counts tokens, a budget without a limit is the policy that cuts to the limit of the model.
    """
    scorer, budget, _ = resolve_fitted(choice)
    return scorer, budget


def resolve_fitted(choice: Choice) -> tuple[Scorer, Budget, Forecaster | None]:
    """The scorer of a model and its budget, as `resolve_scorer`, and the forecaster they are from, None for a model without an
    outcome model."""
    model = choice.model or DEFAULT
    if not is_named_model(model):
        found = resolve(choice)
        return found.scorer, found.budget, found
    info = _info(model)
    options = _options(info, choice)
    if "policy" not in which(info.options):
        scorer = info.open(model, options)
        return scorer, Forecaster.default_budget(scorer) if choice.budget is None else _parsed(choice.budget), None
    policy, characters = token_policy(choice.budget)
    return info.open(model, replace(options, policy=policy)), characters, None


def _parsed(budget: Budget | str) -> Budget:
    return parse_budget(budget) if isinstance(budget, str) else budget


def token_policy(budget: Budget | str | None) -> tuple[str, Budget]:
    """A budget for a model that counts tokens: the policy that cuts to the limit of the model, and the budget in characters that is
    applied before."""
    if budget is None:
        return "keep-last", WHOLE
    if isinstance(budget, str) and budget in TOKEN_POLICIES:
        return budget, WHOLE
    parsed = _parsed(budget)
    return parsed.name if parsed.name in TOKEN_POLICIES else "keep-last", parsed

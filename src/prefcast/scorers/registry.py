"""The scorers by name. Each module or package of `prefcast.scorers` with a `SCORER` is one. Another package adds a scorer in
the entry point group `prefcast.scorers`. A scorer's class is imported when it is first used."""

from __future__ import annotations

import difflib
import pkgutil
import re
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import prefcast.scorers
from prefcast.errors import UsageError, excerpt, printable
from prefcast.scorers.base import Scorer
from prefcast.scorers.info import ScorerInfo
from prefcast.scorers.options import NoOptions

__all__ = [
    "DEFAULT",
    "ScorerInfo",
    "find_scorer",
    "is_scorer_file",
    "scorer_class",
    "scorer_for",
    "scorer_infos",
]

# The model that is used if none is named.
DEFAULT = "embedded"
_GROUP = "prefcast.scorers"


@cache
def scorer_infos() -> dict[str, ScorerInfo]:
    """Every scorer by its name: those of prefcast, then those of other packages."""
    infos: dict[str, ScorerInfo] = {}
    for module in pkgutil.iter_modules(prefcast.scorers.__path__):
        if (info := getattr(import_module(f"prefcast.scorers.{module.name}"), "SCORER", None)) is not None:
            infos[info.name] = info
    for point in entry_points(group=_GROUP):
        if point.name not in infos:
            infos[point.name] = _of_entry_point(point)
    return infos


def _of_entry_point(point: EntryPoint) -> ScorerInfo:
    """An entry point names a ScorerInfo, or a Scorer whose class makes it: `Scorer(options)`, without arguments where it has
    none."""
    try:
        found = point.load()
    except Exception as error:  # another package may fail in any way
        raise UsageError(
            f"the scorer {point.name} of another package cannot be loaded: {printable(str(error))}"
        ) from None
    if isinstance(found, ScorerInfo):
        return found
    if not (isinstance(found, type) and issubclass(found, Scorer)) or found.name != point.name:
        raise UsageError(
            f"the entry point {point.name} of {_GROUP} must name a ScorerInfo, or a Scorer whose name is {point.name!r}"
        )
    summary = (found.__doc__ or "").strip().split("\n", 1)[0]
    needs = point.dist.name if point.dist is not None else "another package"
    kind: type[Any] = getattr(found, "Options", NoOptions)
    return ScorerInfo(
        point.name,
        point.value,
        summary,
        needs,
        kind,
        lambda model: model == point.name,
        f"{__name__}:_made_by_class",
        files=found.files,
    )


def _made_by_class(model: str, options: Any) -> Scorer:
    kind: Any = scorer_class(model)
    return kind() if isinstance(options, NoOptions) else kind(options)  # type: ignore[no-any-return]


def scorer_class(name: str) -> type[Scorer]:
    """The class of the scorer that a forecaster folder calls `name`; UsageError for an unknown one."""
    return find_scorer(name).load()


def find_scorer(name: str) -> ScorerInfo:
    """What is known of the scorer called `name`; UsageError for an unknown one."""
    infos = scorer_infos()
    if name in infos:
        return infos[name]
    listed = [each.name for each in infos.values() if each.listed]
    near = difflib.get_close_matches(name, listed, n=1)
    raise UsageError(
        f"unknown model {excerpt(name)}{f'; did you mean {near[0]!r}?' if near else ';'} there are {', '.join(listed)}, folders with a model, and hub ids like owner/name"
    )


def scorer_for(model: str) -> ScorerInfo | None:
    """The scorer that takes what a person named as a model; None where no scorer does, and for a built-in forecaster."""
    return next((info for info in scorer_infos().values() if info.claims(model)), None)


def is_scorer_file(name: str) -> bool:
    """Whether a scorer writes a file or folder of that name into a forecaster's folder."""
    return any(name in info.files for info in scorer_infos().values()) or bool(re.fullmatch(r"member-\d+", name))

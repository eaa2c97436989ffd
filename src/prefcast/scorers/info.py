"""What is known of a scorer before its class is imported."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from prefcast.errors import UsageError
from prefcast.scorers.options import NoOptions

if TYPE_CHECKING:
    from prefcast.scorers.base import Scorer

__all__ = ["ScorerInfo"]


def _nothing(model: str) -> bool:
    return False


@dataclass(frozen=True)
class ScorerInfo:
    """What is known of a scorer before it is loaded.

    `name` is what a forecaster folder calls it; `summary` and `needs` are for people; `options` is its options dataclass;
    `where` is `module:Class`. `claims` says whether the scorer takes what a person named as a model: a path, a hub id, a
    URL. `files` are those that it writes into a forecaster's folder. `make` is `module:function` from (model, options) to the
    scorer; a scorer without `make` is only loaded from a forecaster's folder. `looks` is `module:function` that raises for a model that cannot be used, before anything is loaded;
    `presets` give by name `module:function` from (model, options) to ready-made options. `listed`: people choose it by name.
    """

    name: str
    where: str
    summary: str = ""
    needs: str = "nothing more"
    options: type[Any] = NoOptions
    claims: Callable[[str], bool] = _nothing
    make: str | None = None
    looks: str | None = None
    presets: Mapping[str, str] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    listed: bool = True

    @property
    def title(self) -> str:
        """What messages call it."""
        return f"the model {self.name}" if self.listed else self.summary or self.name

    def load(self) -> type[Scorer]:
        """The scorer's class. Raises MissingExtraError where what it needs is not installed."""
        found: type[Scorer] = _fetched(self.where)
        return found

    def check(self, model: str, options: Any) -> None:
        """Raise PrefcastError for a model that cannot be used; nothing is loaded or downloaded."""
        if self.looks is not None:
            _fetched(self.looks)(model, options)

    def preset(self, name: str, model: str, options: Any) -> Any:
        """`options` with the settings of a preset, where they do not say otherwise. Raises UsageError."""
        if name not in self.presets:
            raise UsageError(f"--preset {name} is not for the scorer {self.name}")
        return _fetched(self.presets[name])(model, options)

    def open(self, model: str, options: Any = None) -> Scorer:
        """The scorer of `model`. Raises PrefcastError."""
        if self.make is None:
            raise UsageError(f"the scorer {self.name} is made by a fit; it cannot be named as a model")
        made: Scorer = _fetched(self.make)(model, self.options() if options is None else options)
        return made


def _fetched(where: str) -> Any:
    module, _, attribute = where.partition(":")
    return getattr(import_module(module), attribute)

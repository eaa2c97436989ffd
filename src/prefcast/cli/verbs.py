"""How a function becomes a verb. A verb's parameters are its own arguments and options, and requests: frozen dataclasses
whose fields are options too. `--help` shows the options in panels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import StrEnum
from inspect import Parameter, Signature, signature
from typing import Any, TypeVar, get_type_hints

import typer
from typer.core import TyperCommand

__all__ = ["verb"]

F = TypeVar("F", bound=Callable[..., None])
_PANELS = ("Options", "Reward models", "Evidence and workers", "Long runs", "Cluster")


class _Command(TyperCommand):
    """A command whose help shows its options by panel: what everybody needs first."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        panels: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                panel = "Arguments" if param.param_type_name == "argument" else getattr(param, "rich_help_panel", None)
                panels.setdefault(panel or "Options", []).append(record)
        for panel in ("Arguments", *_PANELS):
            if panel in panels:
                with formatter.section(panel):
                    formatter.write_dl(panels[panel])


def verb(app: typer.Typer, name: str | None = None) -> Callable[[F], F]:
    """Add a function to a program as a verb. A parameter whose type is a dataclass stands for its fields."""

    def add(function: F) -> F:
        hints = get_type_hints(function, include_extras=True)
        own: list[Parameter] = []
        requests: dict[str, type[Any]] = {}
        for parameter in signature(function).parameters.values():
            hint = hints[parameter.name]
            if is_dataclass(hint):
                requests[parameter.name] = hint  # type: ignore[assignment]
                own += _parameters(hint)  # type: ignore[arg-type]
            else:
                own.append(parameter.replace(annotation=hint, kind=Parameter.KEYWORD_ONLY))

        def command(**given: Any) -> None:
            given = {each: value.value if isinstance(value, StrEnum) else value for each, value in given.items()}
            made = {
                request: kind(**{each.name: given.pop(each.name) for each in fields(kind)})
                for request, kind in requests.items()
            }
            function(**given, **made)

        command.__name__, command.__doc__ = function.__name__, function.__doc__
        command.__signature__ = Signature(own)  # type: ignore[attr-defined]
        command.__annotations__ = {each.name: each.annotation for each in own}
        app.command(name, cls=_Command)(command)
        return function

    return add


def _parameters(kind: type[Any]) -> Iterator[Parameter]:
    hints = get_type_hints(kind, include_extras=True)
    for each in fields(kind):
        yield Parameter(each.name, Parameter.KEYWORD_ONLY, default=_default(each), annotation=hints[each.name])


def _default(each: Field[Any]) -> Any:
    return Parameter.empty if each.default is MISSING else each.default

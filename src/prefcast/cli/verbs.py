"""How a function becomes a verb: `argument` and `option` describe its parameters, and the fields of its requests.

A request is a frozen dataclass that several verbs share. A request may hold another request. `panel` names the section of
`--help` that shows the options of a request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import MISSING, field, fields, is_dataclass
from enum import StrEnum
from functools import cache
from inspect import Parameter, Signature, signature
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand

from prefcast.scorers.options import Option

__all__ = ["MISSING", "argument", "option", "verb"]

F = TypeVar("F", bound=Callable[..., None])
_PANELS = (
    "Options",
    "Voting page",
    "Reward models",
    "Servers",
    "Judges",
    "Cascades",
    "Evidence and workers",
    "Long runs",
    "Cluster",
)
# Options of earlier versions and what they are called now; None for one whose effect is the default.
_RENAMED = {"--no-keep-scores": "--no-store", "--no-journal": "--no-store", "--keep-scores": None, "--journal": None}
# Made from a list of names, which a type checker cannot follow.
_ENUM: Any = StrEnum
# Name, type and default of a parameter or a field. Of an option the default is a dataclass field.
Member = tuple[str, Any, Any]


def option(
    help: str,
    metavar: str | None = None,
    *flags: str,
    default: Any = None,
    choices: tuple[str, ...] = (),
    least: float | None = None,
    most: float | None = None,
) -> Any:
    """An option of the command line. Its flag is its name, unless `flags` has another. MISSING as the default makes it
    required."""
    about = Option(help, metavar=metavar, choices=choices, least=least)
    return field(default=default, metadata={"option": about, "flags": flags, "most": most})


def argument(help: str, metavar: str, *, default: Any = MISSING) -> Any:
    """An argument of the command line."""
    return field(default=default, metadata={"option": Option(help, metavar=metavar), "argument": True})


class _Command(TyperCommand):
    """A command whose help shows its options by panel, the most needed panel first. It accepts the names that options had
    in earlier versions. An option with one value may be given once: the first of two would be dropped without a word."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        known = {flag for param in self.params for flag in param.opts}
        if "--no-store" in known:
            # What stands behind `--` is no option.
            end = args.index("--") if "--" in args else len(args)
            for old in [arg for arg in args[:end] if arg in _RENAMED]:
                new = _RENAMED[old]
                typer.echo(f"{old} is {f'now {new}' if new else 'the default now'}", err=True)
            renamed = [_RENAMED.get(arg, arg) for arg in args[:end]]
            args = [arg for arg in renamed if arg is not None] + args[end:]
        given: list[Any] = list(self.make_parser(ctx).parse_args(args=list(args))[2])
        options = [each for each in given if each.param_type_name == "option" and not (each.multiple or each.is_flag)]
        for number, option in enumerate(options):
            if option in options[:number]:
                ctx.fail(f"{max(option.opts, key=len)} is given twice; it takes one value")
        return super().parse_args(ctx, args)

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
    """Add a function to a program as a verb."""

    def add(function: F) -> F:
        hints = get_type_hints(function)
        members = [(each.name, hints[each.name], each.default) for each in signature(function).parameters.values()]
        own = list(_parameters(members))

        def command(**given: Any) -> None:
            function(**_made(members, given))

        command.__name__, command.__doc__ = function.__name__, function.__doc__
        command.__signature__ = Signature(own)  # type: ignore[attr-defined]
        command.__annotations__ = {each.name: each.annotation for each in own}
        app.command(name, cls=_Command)(command)
        return function

    return add


@cache
def _members(kind: Any) -> list[Member]:
    hints = get_type_hints(kind)
    return [(each.name, hints[each.name], each) for each in fields(kind)]


def _parameters(members: Iterable[Member], panel: str = "Options") -> Iterator[Parameter]:
    """What Typer reads. A field without a help text is no option."""
    for name, hint, said in members:
        if is_dataclass(hint):
            kind: Any = hint
            yield from _of_request(kind, getattr(hint, "panel", panel))
        elif said.metadata["option"].help:
            taken, about = _kind(name, hint, said), _described(name, said, panel)
            default = Parameter.empty if said.default is MISSING else said.default
            yield Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[taken, about])


@cache
def _of_request(kind: Any, panel: str) -> tuple[Parameter, ...]:
    """The parameters of a request: many verbs share one, and the program starts faster if they are made once."""
    return tuple(_parameters(_members(kind), panel))


def _kind(name: str, hint: Any, said: Any) -> Any:
    """The type of a parameter as Typer knows it: a tuple of texts is one text with commas."""
    if choices := said.metadata["option"].choices:
        kind = _ENUM(name, {choice: choice for choice in choices})
        return kind | None if said.default is None else kind
    return str | None if any(get_origin(kind) is tuple for kind in get_args(hint)) else hint


def _described(name: str, said: Any, panel: str) -> Any:
    about, flags = said.metadata["option"], said.metadata.get("flags", ())
    if said.metadata.get("argument"):
        return typer.Argument(metavar=about.metavar, help=about.help)
    if not any(flag.startswith("--") for flag in flags):
        flags = (*flags, f"--{name.replace('_', '-')}")
    most = said.metadata.get("most")
    return typer.Option(
        *flags, help=about.help, metavar=about.metavar, min=about.least, max=most, rich_help_panel=panel
    )


def _made(members: Iterable[Member], given: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a verb or of a request, from what the command line gave."""
    made: dict[str, Any] = {}
    for name, hint, _ in members:
        if is_dataclass(hint):
            kind: Any = hint
            made[name] = kind(**_made(_members(kind), given))
        elif name in given:
            made[name] = _value(hint, given[name])
    return made


def _value(hint: Any, value: Any) -> Any:
    if isinstance(value, StrEnum):
        return value.value
    kinds = get_args(hint)
    if isinstance(value, str) and str not in kinds and any(get_origin(kind) is tuple for kind in kinds):
        return tuple(part.strip() for part in value.split(","))
    return value

"""The options of scorers: frozen dataclasses whose fields say what the command line, cards and saved folders need to know.

A field made by `option` has its help text, and whether a saved forecaster may set it. What a saved folder may set is a
closed list: such a folder may come from a stranger.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar, get_args, get_type_hints

from prefcast.errors import ForecasterError, UsageError, excerpt

__all__ = [
    "NoOptions",
    "Option",
    "given",
    "given_values",
    "option",
    "options_for",
    "options_of_text",
    "saved_options",
    "to_save",
    "which",
]

T = TypeVar("T")


@dataclass(frozen=True)
class Option:
    """What is known of an option: `help` for people, `saved` where it belongs to the forecaster and not to the machine,
    `metavar`, `choices` and the `least` value where it has such.
    Without a help text the command line does not have it."""

    help: str = ""
    saved: bool = False
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    least: float | None = None


def option(default: Any, about: Option) -> Any:
    """A field of an options dataclass."""
    return field(default=default, metadata={"option": about})


@dataclass(frozen=True)
class NoOptions:
    """For a scorer that has none."""


def which(kind: type[Any]) -> dict[str, Option]:
    """The options of a dataclass by name."""
    return {each.name: each.metadata.get("option", Option()) for each in fields(kind)}


def given(options: Any) -> list[str]:
    """The names of the options that are not as they are by default."""
    return [each.name for each in fields(options) if getattr(options, each.name) != each.default]


def given_values(options: Any) -> dict[str, Any]:
    """What a person set: name -> value. `options` is an options object, several in a tuple, or None."""
    every = options if isinstance(options, tuple) else () if options is None else (options,)
    return {name: getattr(each, name) for each in every for name in given(each)}


def options_for(kind: type[T], options: Any) -> T:
    """An options object of `kind` with those of the `options` (as `given_values` takes them) that it has."""
    own = next((each for each in (options if isinstance(options, tuple) else [options]) if type(each) is kind), None)
    said = {name: value for name, value in given_values(options).items() if name in which(kind)}
    return kind(**said) if own is None else replace(own, **said)  # type: ignore[type-var]


def to_save(options: Any) -> dict[str, Any]:
    """The options that a saved forecaster keeps."""
    return {name: getattr(options, name) for name, about in which(type(options)).items() if about.saved}


def saved_options(kind: type[T], said: Any, shown: str) -> T:
    """The options in a saved file, called `shown` in messages.

    Raises ForecasterError for an option that a file may not set, and for a value of a wrong type.
    """
    if not isinstance(said, dict):
        raise ForecasterError(f"{shown}: options must be an object, found {excerpt(said)}")
    known, hints = which(kind), get_type_hints(kind)
    allowed = [name for name, about in known.items() if about.saved]
    values = {}
    for name, value in said.items():
        if name not in allowed:
            raise ForecasterError(
                f"{shown}: the option {excerpt(name)} may not be set by a file; a file may set {', '.join(allowed) or 'none'}"
            )
        values[name] = _typed(value, hints[name], f"{shown}: the option {name}")
    return kind(**values)


def _typed(value: Any, hint: Any, shown: str) -> Any:
    kinds = get_args(hint) or (hint,)
    if value is None and type(None) in kinds:
        return None
    for kind in kinds:
        if isinstance(value, list) and getattr(kind, "__origin__", None) is tuple:
            if all(isinstance(item, str) for item in value):
                return tuple(value)
            raise ForecasterError(f"{shown} must list texts, found {excerpt(value)}")
        if isinstance(kind, type) and isinstance(value, kind) and isinstance(value, bool) == (kind is bool):
            return value
    raise ForecasterError(f"{shown} has the value {excerpt(value)}, which is of a wrong type")


def options_of_text(kind: type[T], said: Sequence[str]) -> T:
    """The options of texts NAME=VALUE, as the command line has them. Raises UsageError."""
    known, hints, values = which(kind), get_type_hints(kind), dict[str, Any]()
    for text in said:
        name, equals, value = text.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or name not in known:
            raise UsageError(
                f"--option: {excerpt(text)} is not NAME=VALUE with a name of this model's options ({', '.join(known) or 'it has none'})"
            )
        values[name] = _of_text(value, hints[name], name)
    return kind(**values)


_TRUTHS: Mapping[str, bool] = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def _of_text(value: str, hint: Any, name: str) -> Any:
    kinds = [kind for kind in get_args(hint) or (hint,) if kind is not type(None)]
    try:
        if bool in kinds:
            return _TRUTHS[value.lower()]
        number = next((kind for kind in kinds if kind in (int, float)), None)
        return value if number is None else number(value)
    except (KeyError, ValueError):
        raise UsageError(
            f"--option: {name} is {excerpt(value)}; expected {getattr(kinds[0], '__name__', kinds[0])}"
        ) from None

"""The Jinja environment in which a stranger's template runs: no clock, no chance, and bounds on steps and sizes.

A template is a program. Jinja's sandbox keeps it from the machine, but not from looping for ever or from making texts
that fill the memory. Here each repetition takes a step, each operation is paid for by the size of its values before it is
done, and a template that has used up its steps is refused. The bounds do not depend on the speed of the machine.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sized
from contextlib import contextmanager
from datetime import date, datetime, time
from typing import Any

from jinja2 import Template, TemplateError, Undefined, nodes
from jinja2.ext import Extension
from jinja2.ext import loopcontrols as _loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from prefcast.errors import UsageError, excerpt
from prefcast.scorers.reward import CLOCK, DEFAULT_DAY
from prefcast.scorers.reward.instrument import CHARACTERS, Generator, Instrumented

__all__ = ["Sandbox", "Steps"]

# A template and its text have at most so many characters, the text this much more for each character of the input.
_SOURCE, _RENDERED, _RENDERED_EACH = 1_000_000, 2_000_000, 20
_STEPS, _STEPS_EACH = 1_000_000, 20
_WIDEST, _LONGEST_NUMBER = 10_000, 512
# Filters that use chance, or that take time out of proportion to their input. No chat needs them.
_REFUSED = ("random", "urlize", "pprint", "xmlattr", "striptags", "wordwrap", "filesizeformat")


class _TooMuch(Exception):  # noqa: N818 - it never leaves this package
    pass


class Steps(threading.local):
    """The steps that are left of a rendering, None outside of one. A template that calls another one shares them with it."""

    left: int | None = None


class _Generation(Extension):
    """`{% generation %}`, with which templates mark what an assistant writes; transformers uses it in training alone."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own form

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Dict:
    """`dict` without its attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    def __init__(*args: Any, **kwargs: Any) -> None:
        self, args = args[0], args[1:]
        attributes = dict(*args, **kwargs)
        for name in attributes:
            _check_name(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        Namespace.__setitem__(self, name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise TemplateError(f"a namespace may not have the name {name!r}")


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment of one template. `day` is the day that the template believes it is. With `chat` it has what
    transformers gives to chat templates: their treatment of blank lines, and the functions that they call."""

    code_generator_class = Generator
    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self, day: date | None = None, *, chat: bool = True, steps: Steps | None = None) -> None:
        super().__init__(
            trim_blocks=chat,
            lstrip_blocks=chat,
            keep_trailing_newline=not chat,
            extensions=[_Generation, _loopcontrols] if chat else [],
            finalize=self.paid,
            cache_size=0,
        )
        self._day = datetime.combine(
            day or date.fromisoformat(DEFAULT_DAY), time()
        )  # without a zone, as a template expects
        self.steps = steps or Steps()
        self.globals |= {"raise_exception": _raise, CLOCK: self._date, "dict": _Dict(), "namespace": _Namespace}
        self.globals.pop("lipsum", None)
        for name in _REFUSED:
            self.filters.pop(name, None)
        self.filters["tojson"] = _json
        self.filters = {name: self._metered(name, each) for name, each in self.filters.items()}
        tests: Any = self.tests
        self.tests = {name: self._metered(name, each) for name, each in tests.items()}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        # The one place that every template passes between reading and compiling.
        parsed: nodes.Template = Instrumented().visit(super()._parse(source, name, filename))
        return parsed

    def _date(self, form: str) -> str:
        return self._day.strftime(form)

    # Rendering

    def template(self, source: str) -> Template:
        """The template. Raises UsageError."""
        if len(source) > _SOURCE:
            raise UsageError(f"has {len(source):,} characters; at most {_SOURCE:,} are read")
        with self._bounded(len(source)):
            return self.from_string(source)

    def render(self, template: Template, variables: Mapping[str, Any]) -> str:
        """The text that the template makes. Raises UsageError if it fails or takes too much."""
        size = _size_of(variables)
        most = _RENDERED + _RENDERED_EACH * size
        parts, written = list[str](), 0
        with self._bounded(size):
            for part in template.generate(variables):
                parts.append(part)
                written += len(part)
                if written > most:
                    raise _TooMuch(f"makes more than {most:,} characters of {size:,}")
                self.spend(1)
        return "".join(parts)

    @contextmanager
    def _bounded(self, size: int) -> Iterator[None]:
        outermost = self.steps.left is None
        if outermost:
            self.steps.left = _STEPS + _STEPS_EACH * size
        try:
            yield
        except UsageError:
            raise
        except (_TooMuch, OverflowError) as error:
            raise UsageError(f"{error}; a template has bounds, so that it always ends") from None
        except RecursionError:
            raise UsageError("its recursion is too deep") from None
        except Exception as error:
            # A template is a program of the checkpoint: it may raise any exception.
            raise UsageError(excerpt(" ".join(str(error).split()) or type(error).__name__, 200)) from None
        finally:
            if outermost:
                self.steps.left = None

    # Payment

    def spend(self, steps: int) -> None:
        left = self.steps.left
        if left is None:
            return
        self.steps.left = left - steps
        if left < steps:
            raise _TooMuch("takes too many steps")

    step = spend

    def paid(self, value: Any) -> Any:
        """`value`, once it is paid for that it is looked through."""
        if type(value) is str:
            self.spend(len(value) // CHARACTERS)
        elif value is not None and not isinstance(value, bool | int | float | Undefined):
            self._look_through(value)
        return value

    def _look_through(self, value: Any) -> None:
        # A list may hold itself many times over: its size may be far beyond its memory.
        waiting = [value]
        while waiting:
            each = waiting.pop()
            self.spend(1)
            if isinstance(each, str):
                self.spend(len(each) // CHARACTERS)
            elif isinstance(each, Mapping):
                waiting += [*each.keys(), *each.values()]
            elif isinstance(each, list | tuple | set | frozenset):
                waiting += each
            elif isinstance(each, Sized):
                self.spend(len(each))

    def concatenated(self, *values: Any) -> str:
        """The operator `~`."""
        texts = [str(self.paid(value)) for value in values]
        self.spend(sum(map(len, texts)) // CHARACTERS)
        return "".join(texts)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        self.paid(left)
        self.paid(right)
        numbers = [each for each in (left, right) if isinstance(each, int)]
        if len(numbers) == 2 and operator in ("*", "**"):
            bits = left.bit_length() * (abs(right) if operator == "**" else 1) + right.bit_length()
            if bits > _LONGEST_NUMBER:
                raise _TooMuch("computes with a number that is too long")
        elif operator == "*" and numbers:
            self.spend(_length(left if numbers[0] is right else right) * max(0, numbers[0]) // 8)
        elif operator == "%" and isinstance(left, str):
            self._pay_format(left, right if isinstance(right, tuple) else (right,))
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 - Jinja's own form
        if __self is not getattr(__obj, "__self__", None):
            __self._pay_call(__obj, args, kwargs)
        return super().call(__context, __obj, *args, **kwargs)

    def getitem(self, obj: Any, argument: Any) -> Any:
        self.paid(argument)
        return super().getitem(obj, argument)

    def _pay_call(self, called: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        # `str.format` comes in a wrapper of the sandbox.
        self.spend(5)
        method = getattr(called, "__wrapped__", called)
        owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        for value in (*args, *kwargs.values()):
            self.paid(value)
        if not isinstance(owner, str | bytes | list | tuple | dict):
            return
        self.paid(owner)
        self._pay(name, (owner, *args), kwargs)

    def _metered(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter or a test that is paid for."""
        passed = getattr(function, "jinja_pass_arg", None)

        def metered(*args: Any, **kwargs: Any) -> Any:
            self.spend(2)
            values = args[1:] if passed is not None else args
            for value in (*values, *kwargs.values()):
                self.paid(value)
            self._pay(name, values, kwargs)
            return function(*args, **kwargs)

        if passed is not None:
            metered.jinja_pass_arg = passed  # type: ignore[attr-defined]
        return metered

    def _pay(self, name: str, values: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Pay for what makes much of little. `values` begins with what the function is applied to."""
        first, rest = values[0] if values else None, (*values[1:], *kwargs.values())
        for value in rest:
            if isinstance(value, int) and abs(value) > _WIDEST and name not in ("default", "d", "add"):
                raise _TooMuch(f"uses the number {excerpt(value)} with {name}")
        if name in ("replace", "join") and rest:
            if name == "replace":
                old, new = str(rest[0]), str(rest[1]) if len(rest) > 1 else ""
                count = str(first).count(old) if isinstance(first, str) else 0
                self.spend(count * len(new) // CHARACTERS)
            else:
                # The filter gets the list first, the method the text between.
                between, listed = (
                    (first, rest[0]) if isinstance(first, str) and not isinstance(rest[0], str) else (rest[0], first)
                )
                self.spend(_length(between) * _length(listed) // CHARACTERS)
        elif name == "translate":
            raise _TooMuch("calls translate, which is not in this sandbox")
        elif name in ("format", "format_map"):
            self._pay_format(str(first), rest)
        elif name in ("indent", "expandtabs", "center", "ljust", "rjust", "zfill", "batch", "slice", "tojson"):
            widest = max((_width(value) for value in rest), default=0)
            self.spend((1 + _count(first)) * widest // 8)
        elif name == "sum" and any(not isinstance(value, int | float | str | None) for value in rest):
            raise _TooMuch("sums up what are no numbers")

    def _pay_format(self, form: str, values: tuple[Any, ...]) -> None:
        digits = "".join(character if character.isdigit() else " " for character in form).split()
        if any(len(each) > 4 for each in digits) or ("*" in form and any(_width(each) >= _WIDEST for each in values)):
            raise _TooMuch("formats a text with a width that is too large")
        widths = [*map(int, digits), *map(_width, values), 1]
        self.spend((form.count("%") + form.count("{") + 1) * max(widths) // CHARACTERS)


def _raise(message: str) -> str:
    raise TemplateError(message)


def _json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _length(value: Any) -> int:
    return len(value) if hasattr(value, "__len__") else _WIDEST


def _width(value: Any) -> int:
    """How many characters a value may stand for in a formatted text."""
    if isinstance(value, bool) or value is None:
        return 1
    if isinstance(value, int):
        return min(abs(value), _WIDEST)
    if isinstance(value, str):
        return len(value)
    return sum(map(_width, value)) if isinstance(value, list | tuple) else 1


def _count(value: Any) -> int:
    """How often a width may be written for a value."""
    if isinstance(value, str):
        return value.count("\n") + value.count("\t") + 1
    found, waiting = 0, [value]
    while waiting:
        each = waiting.pop()
        found += 1
        if isinstance(each, Mapping):
            waiting += each.values()
        elif isinstance(each, list | tuple):
            waiting += each
    return found


def _size_of(value: Any) -> int:
    """The characters of the texts in what a template is given."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(_size_of, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(_size_of, value))
    return 0

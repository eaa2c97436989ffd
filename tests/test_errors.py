"""Every exception of the package, found by asking the classes."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Iterator

import pytest

from prefcast import errors
from prefcast.errors import PrefcastError

ARGUMENTS = {"file": "f.csv", "row": 3, "field": "prompt", "id": "x", "status": 503, "kind": "busy"}


def tree(kind: type[PrefcastError] = PrefcastError) -> Iterator[type[PrefcastError]]:
    """Every public exception of the package."""
    yield kind
    for below in kind.__subclasses__():
        # A test that ran before may have loaded a module with one of its own.
        if not below.__name__.startswith("_"):
            yield from tree(below)


KINDS = list(tree())


def made(kind: type[PrefcastError]) -> PrefcastError:
    """An exception with a value for each of its own arguments."""
    if kind.__init__ is PrefcastError.__init__:
        return kind("what is wrong")
    names = list(inspect.signature(kind).parameters)
    return kind(*(ARGUMENTS.get(name, f"the {name}") for name in names))


@pytest.mark.parametrize("kind", KINDS)
def test_every_exception_survives_the_way_between_processes(kind: type[PrefcastError]) -> None:
    error = made(kind)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert (str(again), again.args, vars(again)) == (str(error), error.args, vars(error))
    assert len(str(error)) > 5
    assert str(error).isprintable()


def test_every_exception_is_exported() -> None:
    assert {kind.__name__ for kind in KINDS} == {name for name in errors.__all__ if name.endswith("Error")}
    assert {kind.__module__ for kind in KINDS} == {errors.__name__}


def test_a_row_error_says_where_and_what() -> None:
    assert str(errors.RowError("f.csv", 3, "prompt", "is empty")) == "f.csv: row 3, prompt: is empty"
    assert errors.RowError("f.csv", 3, "prompt", "is empty").id == 3


def test_a_missing_extra_names_the_command() -> None:
    assert "pip install 'prefcast[serve]'" in str(errors.MissingExtraError("starlette", "serve"))


def test_text_in_messages_cannot_drive_a_terminal() -> None:
    hostile = "\x1b[31mred\x07\r\n\u202egnp.exe\ud83d"
    for shown in (errors.excerpt(hostile), errors.printable(hostile), errors.shown_path(hostile)):
        assert shown.isprintable()
    assert errors.excerpt("x" * 100).endswith("...'")
    assert len(errors.excerpt(["x" * 1000])) < 80

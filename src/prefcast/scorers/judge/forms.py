"""The forms in which judges are asked: what a request says, and what a reply means. One file an API.

A form knows one API's words and nothing else; `scorer.py` sends, retries, keeps and counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from math import isnan
from typing import Any, Protocol

from prefcast.errors import ServiceError, excerpt, printable
from prefcast.scorers.judge.questions import Question
from prefcast.scorers.judge.verdicts import NoVerdict, Verdict, letter_of_text, of_letter

# More is no count of tokens.
_MOST_TOKENS = 10**12
__all__ = ["Ask", "Form", "Reply", "dig", "form_of", "listed", "of_text", "text_of", "tokens_of"]


@dataclass(frozen=True)
class Ask:
    """One request: the question, the judge's model, and how it answers. With `sampled` one verdict is drawn, otherwise log
    probabilities are read. `most` is the most tokens of the reply. `seed` is for this request."""

    question: Question
    model: str
    sampled: bool
    most: int
    temperature: float | None = None
    seed: int | None = None
    choice: bool = False


@dataclass(frozen=True)
class Reply:
    """What a reply means: its verdict or why there is none, and the tokens that the API counted."""

    found: Verdict | NoVerdict
    read: int
    written: int


class Form(Protocol):
    """One API. `repeats` is how many verdicts are asked for in each order if nobody says (0: log probabilities), `key`
    the variable that holds its key."""

    repeats: int
    key: str
    # Whether replies can be limited to the three letters.
    choice: bool
    # Raise it when a request changes in a way that may change verdicts.
    version: int

    def headers(self, key: str | None) -> dict[str, str]:
        """The headers with the key."""

    def path(self, model: str) -> str:
        """Where requests go, relative to the address."""

    def body(self, ask: Ask) -> dict[str, Any]:
        """The request."""

    def read(self, said: Any, ask: Ask) -> Reply:
        """The meaning of a reply with status 200. Raises ServiceError for one that is not of the API's form, and
        NoLogprobsError where it has no log probabilities."""

    def problem(self, said: Any) -> str:
        """The words of an error."""


class NoLogprobsError(Exception):
    """The server does not give log probabilities."""


def form_of(api: str) -> Form:
    """The form of an API."""
    made: Callable[[], Form] = import_module(f"prefcast.scorers.judge.{api}").FORM
    return made()


def dig(said: Any, *path: str | int) -> Any:
    """What stands in a reply at a path of names and places; None if it is not there."""
    for step in path:
        if isinstance(step, str):
            said = said.get(step) if isinstance(said, Mapping) else None
        else:
            said = said[step] if isinstance(said, Sequence) and not isinstance(said, str) and step < len(said) else None
    return said


def text_of(said: Any, *path: str | int) -> str:
    """The text at a path; empty if there is none."""
    found = dig(said, *path)
    return found if isinstance(found, str) else ""


def listed(said: Any, *path: str | int) -> Sequence[Any]:
    """The list at a path; empty if there is none."""
    found = dig(said, *path)
    return found if isinstance(found, list) else ()


def tokens_of(said: Any, *path: str | int, needed: bool = True) -> int:
    """The count of tokens at a path. Raises ServiceError if it is needed and not there."""
    found = dig(said, *path)
    if isinstance(found, int) and not isinstance(found, bool) and 0 <= found <= _MOST_TOKENS:
        return found
    if needed:
        name = ".".join(map(str, path))
        raise ServiceError(f"the reply has no count of tokens in {name}: found {excerpt(found)}", 200)
    return 0


def likeliest(entries: Sequence[Any], token: str, logprob: str) -> list[tuple[str, float]]:
    """The tokens of a list with their log probabilities. Raises NoLogprobsError for an empty list."""
    found = []
    for each in entries:
        value = dig(each, logprob)
        if isinstance(value, int | float) and not isinstance(value, bool) and not isnan(value):
            found.append((text_of(each, token), float(value)))
    if not found:
        raise NoLogprobsError
    return found


def of_text(text: str) -> Verdict | NoVerdict:
    """The verdict of a drawn reply."""
    letter = letter_of_text(text)
    return NoVerdict("unreadable") if letter is None else of_letter(letter)


def words(text: str) -> str:
    """Untrusted words of a server for a message."""
    return printable(text[:200])

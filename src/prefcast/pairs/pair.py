"""A pair of conversations with the same prompts, and what people said of it."""

from __future__ import annotations

import hashlib
import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

from prefcast.errors import UsageError, excerpt

__all__ = ["KEY_LENGTH", "Outcome", "Pair", "Turn", "clean", "group_key", "pair_key", "prompt_key", "words_of"]

_SURROGATE = re.compile("[\ud800-\udfff]")
_NO_WORD = re.compile(r"\W+")
# So many characters of a first prompt's words are its key.
KEY_LENGTH = 300


def clean(text: str) -> str:
    """`text` as it can be written in UTF-8: a lone surrogate, half a character, becomes U+FFFD, one for one."""
    try:
        text.isascii() or text.encode()
    except UnicodeEncodeError:
        return _SURROGATE.sub("\ufffd", text)
    return text


class Outcome(IntEnum):
    """What a person said.

    The value is the column of that outcome's probability.
    """

    A = 0
    B = 1
    TIE = 2

    @property
    def swapped(self) -> Outcome:
        """The outcome once A and B have changed places."""
        return _SWAPPED[self]


_SWAPPED = {Outcome.A: Outcome.B, Outcome.B: Outcome.A, Outcome.TIE: Outcome.TIE}


@dataclass(frozen=True, slots=True)
class Turn:
    """One prompt and the two responses to it."""

    prompt: str
    response_a: str
    response_b: str

    @property
    def texts(self) -> tuple[str, str, str]:
        return self.prompt, self.response_a, self.response_b

    @property
    def characters(self) -> int:
        return len(self.prompt) + len(self.response_a) + len(self.response_b)


def _plain_id(id: object) -> str | int:
    """An id of a kindred type (NumPy's, an enum's) as a text or a number."""
    if isinstance(id, str):
        return str(id)
    if isinstance(id, bool) or not hasattr(id, "__index__"):
        raise UsageError(f"a pair's id must be a text or a whole number, found {excerpt(id)}")
    return operator.index(id)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two conversations with the same prompts; `outcome` is the label where there is one.

    `row` is the position in the file, counted from 1 (0: not from a file). `system` is the system message before the
    first prompt; empty where there is none. `reference` is a known good answer to the last prompt, for the models that
    compare with one. `tools` has the messages of both conversations as JSON, where answers call tools: their texts in `turns`
    are then what the assistant said. `own` has the names and values of the columns that a reader was asked to keep.
    """

    turns: tuple[Turn, ...]
    id: str | int = 0
    outcome: Outcome | None = None
    model_a: str | None = None
    model_b: str | None = None
    row: int = 0
    system: str = ""
    reference: str | None = None
    tools: tuple[str, str] | None = None
    own: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if not self.turns:
            raise UsageError("a pair needs at least one turn")
        if type(self.id) is not str and type(self.id) is not int:
            object.__setattr__(self, "id", _plain_id(self.id))

    @classmethod
    def of(
        cls,
        prompt: str | Sequence[str],
        response_a: str | Sequence[str],
        response_b: str | Sequence[str],
        *,
        id: str | int = 0,
        outcome: Outcome | None = None,
        system: str = "",
        reference: str | None = None,
    ) -> Pair:
        """A pair from three strings (one turn) or three equally long sequences of strings, perhaps with a system message
        and a reference answer.

        Raises UsageError if the numbers of turns differ or a turn is not a string.
        """
        columns = [(text,) if isinstance(text, str) else tuple(text) for text in (prompt, response_a, response_b)]
        if len({len(column) for column in columns}) != 1 or not columns[0]:
            counts = ", ".join(str(len(column)) for column in columns)
            raise UsageError(
                f"prompt, response_a and response_b must have the same number of turns, at least one; found {counts}"
            )
        if not all(isinstance(text, str) for column in columns for text in column):
            raise UsageError("every turn must be a string")
        if not isinstance(system, str) or not isinstance(reference, str | None):
            raise UsageError("system and reference must be strings")
        return cls(
            tuple(map(Turn, *(map(clean, column) for column in columns))),
            id=id,
            outcome=outcome,
            system=clean(system),
            reference=None if reference is None else clean(reference),
        )

    @property
    def prompt(self) -> tuple[str, ...]:
        return tuple(turn.prompt for turn in self.turns)

    @property
    def response_a(self) -> tuple[str, ...]:
        return tuple(turn.response_a for turn in self.turns)

    @property
    def response_b(self) -> tuple[str, ...]:
        return tuple(turn.response_b for turn in self.turns)

    @property
    def characters(self) -> int:
        return len(self.system) + sum(turn.characters for turn in self.turns)

    def joined(self) -> Pair:
        """The same pair with its system message at the beginning of the first prompt, for scorers that take none."""
        if not self.system:
            return self
        first = self.turns[0]
        turn = Turn(f"{self.system}\n\n{first.prompt}", first.response_a, first.response_b)
        return replace(self, turns=(turn, *self.turns[1:]), system="")

    def swapped(self) -> Pair:
        """The same pair with A and B exchanged: texts, models and label."""
        return replace(
            self,
            turns=tuple(Turn(turn.prompt, turn.response_b, turn.response_a) for turn in self.turns),
            outcome=None if self.outcome is None else self.outcome.swapped,
            model_a=self.model_b,
            model_b=self.model_a,
            tools=None if self.tools is None else self.tools[::-1],
        )


def group_key(text: str) -> int:
    """The key of the group that is called `text`: 64 bits of its hash, the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def prompt_key(pair: Pair) -> str:
    """A text that is equal for two first prompts with the same words. Of a long prompt it has the beginning."""
    return words_of(pair.prompt[0])[:KEY_LENGTH]


def words_of(text: str) -> str:
    """The words of a text in small letters, with a space between two."""
    return _NO_WORD.sub(" ", text.lower()).strip()


def pair_key(pair: Pair) -> tuple[int, bool]:
    """64 bits of a hash of the pair's texts, which are the same if A and B are exchanged, and whether this pair is the one of the
    two whose A has the greater hash."""
    a, b = (_digest(texts) for texts in (pair.response_a, pair.response_b))
    both = _digest((pair.system, *pair.prompt)) + min(a, b) + max(a, b)
    return int.from_bytes(hashlib.blake2b(both, digest_size=8).digest(), "little"), a > b


def _digest(texts: tuple[str, ...]) -> bytes:
    found = hashlib.blake2b(digest_size=16)
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        found.update(len(data).to_bytes(8, "little") + data)
    return found.digest()

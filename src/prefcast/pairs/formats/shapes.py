"""A record -> the turns of a pair: one function for each shape of records.

Nothing here opens a file. A function raises `Fault` for what is wrong with the record; the reader adds file and row.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, takewhile
from os.path import commonprefix
from typing import Any, NamedTuple

from prefcast.errors import excerpt
from prefcast.pairs import Turn, clean
from prefcast.pairs.formats.fields import Fault, Record, absent, cell, kind, present, text_list
from prefcast.pairs.formats.labels import LABEL_FIELDS
from prefcast.pairs.formats.messages import (
    TRANSCRIPT,
    Conversation,
    are_messages,
    content,
    conversation,
    role_of,
    transcript,
)

__all__ = ["BESIDE", "CELLS_HINT", "SHAPES", "SINGLE", "Shape", "all_columns", "swapped_by", "texts_beside"]


class Texts(NamedTuple):
    """The turns, the system message, and the messages of both sides as JSON where answers call tools."""

    turns: tuple[Turn, ...]
    system: str = ""
    tools: tuple[str, str] | None = None


# Columns that every shape may have.
BESIDE = ("system", "reference")

# The beginning of a message list, in JSON or in Python's notation (which pandas writes into a CSV, and nobody can read).
_MESSAGE_LIST = re.compile(r"""\s*\[\s*\{\s*['"](?:role|content|from|value)['"]\s*:""")
# A cell of a CSV that may hold a JSON list.
_LIST_OF_ONE = re.compile(r"""\s*\[\s*["{].*\]\s*""", re.DOTALL)
CELLS_HINT = " (if the cells are plain text: --cells text)"
_ORDER_SEED = b"prefcast 0"


@dataclass(frozen=True)
class Shape:
    """A shape of records: the columns `needs` tell it, and `read` makes the turns. In a `labelled` shape the label stands
    in columns of its own; in the others response A is the preferred one, and the order is drawn anew."""

    name: str
    title: str
    needs: tuple[str, ...]
    read: Callable[[Record, bool], Texts]
    optional: tuple[str, ...] = LABEL_FIELDS
    models: tuple[str, str] = ("model_a", "model_b")
    labelled: bool = True
    note: str = ""


def swapped_by(id: str | int) -> bool:
    """Whether A and B change places, drawn from the id: the same every time."""
    text = str(id).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(text, digest_size=1, key=_ORDER_SEED).digest()[0] & 1 == 1


def _read_kaggle(record: Record, plain: bool) -> Texts:
    if any(are_messages(_structured(record, field)) for field in ("prompt", "response_a", "response_b")):
        return _read_two(_completion, "response_a", "response_b")(record, plain)
    columns = [_turns(record, field, plain) for field in ("prompt", "response_a", "response_b")]
    prompt, a, b = map(len, columns)
    if not prompt == a == b:
        raise Fault(
            "response_a" if a != prompt else "response_b",
            f"the numbers of turns differ: prompt {prompt}, response_a {a}, response_b {b}; they must be equal",
        )
    if not prompt:
        raise Fault("prompt", "has no turn; expected at least one")
    return Texts(tuple(map(Turn, *columns)))


def texts_beside(record: Record, system: str, plain: bool) -> tuple[str, str | None]:
    """The system message of a record, whose conversation has `system`, and its reference answer."""
    column = _one_text(record, "system", plain) or ""
    if column and system and column != system:
        raise Fault("system", "is another text than the system message of the conversation; expected one of them")
    return system or column, _one_text(record, "reference", plain)


def _one_text(record: Record, field: str, plain: bool) -> str | None:
    """The text of an optional column; a list or a message list of one text is that text."""
    value = record.get(field)
    if absent(value):
        return None
    if isinstance(value, str) and not plain and _LIST_OF_ONE.fullmatch(value):
        with suppress(ValueError, RecursionError):
            value = json.loads(value)
    if isinstance(value, list) and len(value) == 1:
        value = value[0].get("content") if isinstance(value[0], dict) else value[0]
    if not isinstance(value, str):
        raise Fault(field, f"is {kind(value)}; expected one text")
    return clean(value)


def _read_two(of: Callable[[Record, str], Conversation], *names: str) -> Callable[[Record, bool], Texts]:
    """A reader of two columns that each hold a whole conversation."""

    def read(record: Record, plain: bool) -> Texts:
        name_a, name_b = names
        a, b = of(record, name_a), of(record, name_b)
        if len(a.turns) != len(b.turns):
            counts = f"{name_a} {len(a.turns)}, {name_b} {len(b.turns)}"
            raise Fault(name_b, f"the numbers of turns differ: {counts}; they must be equal")
        if a.system != b.system:
            raise Fault(name_b, f"the system message differs between {name_a} and {name_b}; a pair has the same one")
        for number, ((left, _), (right, _)) in enumerate(zip(a.turns, b.turns, strict=True), 1):
            if left != right:
                differs = f"the prompt of turn {number} differs between {name_a} and {name_b}"
                raise Fault(name_b, f"{differs}; a pair has the same prompts")
        turns = zip(a.turns, b.turns, strict=True)
        return Texts(tuple(Turn(prompt, left, right) for (prompt, left), (_, right) in turns), a.system, _tools(a, b))

    return read


def _tools(a: Conversation, b: Conversation) -> tuple[str, str] | None:
    """The messages of two conversations as JSON, where one of them calls tools."""
    if not a.tools and not b.tools:
        return None
    return tuple(each.tools or json.dumps(_as_messages(each), ensure_ascii=False) for each in (a, b))  # type: ignore[return-value]


def _as_messages(said: Conversation) -> list[dict[str, str]]:
    turns = [
        {"role": role, "content": text}
        for turn in said.turns
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    return [{"role": "system", "content": said.system}, *turns] if said.system else turns


def _read_preference(record: Record, plain: bool) -> Texts:
    """The turns of `chosen` and `rejected`. Where they part before the last answer, as some of HH-RLHF do, what both
    begin with is the prompt, and all that follows is the answer."""
    a, b = (_completion(record, field) for field in ("chosen", "rejected"))
    chosen, rejected, system = a.turns, b.turns, a.system
    if system != b.system:
        problem = "the system message differs between chosen and rejected; a pair has the same one"
        raise Fault("rejected", problem)
    same = sum(1 for _ in takewhile(lambda two: two[0][0] == two[1][0], zip(chosen, rejected, strict=False)))
    if not same:
        raise Fault("rejected", "the prompt of turn 1 differs between chosen and rejected; a pair has the same prompts")
    if not same == len(chosen) == len(rejected):
        if a.tools or b.tools:
            raise Fault("rejected", "parts from chosen before the last answer, and an answer calls tools")
        parted = next((turn for turn in range(same) if chosen[turn][1] != rejected[turn][1]), same - 1)
        chosen, rejected = _parting(chosen, parted), _parting(rejected, parted)
    turns = zip(chosen, rejected, strict=True)
    return Texts(tuple(Turn(prompt, left, right) for (prompt, left), (_, right) in turns), system, _tools(a, b))


def _parting(turns: list[tuple[str, str]], last: int) -> list[tuple[str, str]]:
    """The turns up to `last`, and the later ones as a part of its answer."""
    prompt, answer = turns[last]
    later = (f"\n\nHuman: {said}\n\nAssistant: {reply}" for said, reply in turns[last + 1 :])
    return [*turns[:last], (prompt, "".join((answer, *later)))]


def _read_single(record: Record, plain: bool) -> Texts:
    """The turns of one answer, which stands in the places of both."""
    system = ""
    if are_messages(_structured(record, "prompt")) or isinstance(record.get("response"), dict):
        turns, system, tools = _completion(record, "response")
        if tools:
            raise Fault("response", "calls tools; such answers can be read in pairs only")
    else:
        prompts, responses = (_turns(record, field, plain) for field in ("prompt", "response"))
        if len(prompts) != len(responses) or not prompts:
            problem = f"has {len(responses)} turns where prompt has {len(prompts)}; they must be equal, at least one"
            raise Fault("response", problem)
        turns = list(zip(prompts, responses, strict=True))
    return Texts(tuple(Turn(prompt, response, response) for prompt, response in turns), system)


def _messages(record: Record, field: str) -> Conversation:
    return conversation(cell(record, field), field, tools=True)


def _turns(record: Record, field: str, plain: bool) -> list[str]:
    value = present(record, field)
    if isinstance(value, str) and not plain:
        if not value.lstrip().startswith("["):
            expected = f"expected a JSON array of strings, one a turn{CELLS_HINT}"
            raise Fault(field, f"is {excerpt(value) if value.strip() else 'empty'}; {expected}")
        value = cell(record, field)
    return text_list(value, field)


def _completion(record: Record, field: str) -> Conversation:
    """The whole conversation of an answer, such as `chosen` or `rejected`: its prompt explicit, in the message list, or
    the prefix that both share."""
    present(record, field)
    value, prompt = _structured(record, field), _structured(record, "prompt")
    if isinstance(value, dict):
        value = [value]
    if isinstance(value, list) and value and all(isinstance(text, str) for text in value):
        if len(value) > 1:
            problem = (
                f"is a list of {len(value)} answers; expected one answer (prefcast best reads several to a prompt)"
            )
            raise Fault(field, problem)
        value = value[0]
    if isinstance(value, list):
        return conversation(_with_prompt(value, prompt, field), field, tools=True)
    if not isinstance(value, str):
        raise Fault(field, f"is {kind(value)}; expected a text or a list of messages")
    value = clean(value)
    if isinstance(prompt, list):
        return conversation([*prompt, {"role": "assistant", "content": value}], field, tools=True)
    if prompt and not isinstance(prompt, str):
        raise Fault("prompt", f"is {kind(prompt)}; expected a text or a list of messages")
    if prompt:
        prompt = clean(prompt)
        if TRANSCRIPT.match(prompt):
            return conversation(_answered(transcript(prompt), value.removeprefix(prompt)), field)
        return Conversation([(prompt, value)])
    if TRANSCRIPT.match(value):
        return conversation(transcript(value), field)
    other = present(record, "rejected" if field == "chosen" else "chosen")
    shared = _shared_prefix(value, clean(other) if isinstance(other, str) else "")
    if not shared.strip():
        raise Fault(field, "chosen and rejected share no beginning that could be the prompt; expected a prompt column")
    return Conversation([(shared.rstrip(), value[len(shared) :])])


def _answered(messages: list[Any], answer: str) -> list[Any]:
    """A transcript's messages with `answer` at their end; it may repeat the mark "Assistant:" that is there already."""
    marked = answer.lstrip()
    said = marked.removeprefix("Assistant:") if marked.startswith("Assistant:") else answer
    if messages[-1]["role"] == "assistant":
        return [*messages[:-1], {"role": "assistant", "content": (messages[-1]["content"] + said).strip()}]
    return [*messages, {"role": "assistant", "content": said.strip()}]


def _structured(record: Record, field: str) -> Any:
    """A field's value; what a CSV holds as the text of a message list is parsed, any other text stays text."""
    value = record.get(field)
    return cell(record, field) if isinstance(value, str) and _MESSAGE_LIST.match(value) else value


def _role_and_text(message: Any, field: str) -> tuple[Any, str]:
    if not isinstance(message, dict):
        return None, ""
    return role_of(message), content(message.get("content", message.get("value")), field, 1)


def _with_prompt(messages: list[Any], prompt: Any, field: str) -> list[Any]:
    """The messages with their prompt before them, unless they begin with it themselves."""
    begins = next((role for role in map(role_of, messages) if role != "system"), None)
    if begins == "user":
        plain = [_role_and_text(message, field) for message in messages]
        if (isinstance(prompt, str) and prompt and ("user", clean(prompt)) not in plain) or (
            isinstance(prompt, list)
            and plain[: len(prompt)] != [_role_and_text(message, "prompt") for message in prompt]
        ):
            raise Fault(
                "prompt",
                f"is not what {field} begins with; expected the same prompt in both, or only the answer in {field}",
            )
        return messages
    if isinstance(prompt, str) and prompt:
        return [{"role": "user", "content": prompt}, *messages]
    if isinstance(prompt, list):
        return [*prompt, *messages]
    raise Fault(field, "has no user message, and there is no prompt column; expected the prompt in one of them")


def _shared_prefix(left: str, right: str) -> str:
    """The longest common beginning, back to the last white space: a prompt does not end inside a word."""
    shared = commonprefix((left, right))  # noqa: RUF071 - characters are meant
    return shared[: len(shared) - len(re.split(r"\s", shared)[-1])]


SHAPES: dict[str, Shape] = {
    shape.name: shape
    for shape in (
        Shape(
            "kaggle",
            "Kaggle pairs (prompt, response_a, response_b)",
            ("prompt", "response_a", "response_b"),
            _read_kaggle,
        ),
        Shape(
            "arena",
            "Arena export (conversation_a, conversation_b)",
            ("conversation_a", "conversation_b"),
            _read_two(_messages, "conversation_a", "conversation_b"),
        ),
        Shape(
            "preference",
            "preference data (chosen, rejected)",
            ("chosen", "rejected"),
            _read_preference,
            ("prompt",),
            ("chosen_model", "rejected_model"),
            labelled=False,
            note="which of chosen and rejected is A was drawn from each id with a fixed seed",
        ),
    )
}


# Only `prefcast score` reads it: it gives each answer a score.
SINGLE = Shape("single", "single answers (prompt, response)", ("prompt", "response"), _read_single, ())


def all_columns(*, single: bool = False) -> Sequence[str]:
    """Every column name that some shape knows."""
    shapes = [*SHAPES.values(), *([SINGLE] if single else [])]
    return list(dict.fromkeys(chain(["id"], *((*each.needs, *each.optional, *each.models) for each in shapes), BESIDE)))

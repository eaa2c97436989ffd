"""Bodies -> requests -> pairs. A body is read, or a Refusal says what is wrong with it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

from prefcast.errors import excerpt
from prefcast.pairs import Pair, Turn
from prefcast.pairs.formats.fields import Fault, kind
from prefcast.pairs.formats.messages import conversation
from prefcast.pairs.formats.shapes import SHAPES
from prefcast.service import schema
from prefcast.service.limits import Limits
from prefcast.service.refusals import Refusal

__all__ = ["Asked", "asked_of", "conversation_of", "conversations_of", "parsed", "ranked_of", "validated"]

M = TypeVar("M", bound=BaseModel)
_MOST_OBJECTS = 300_000
# Values of a body, and fields of one object. Small values take 50 times the memory of their bytes.
_MOST_VALUES, _MOST_FIELDS = 1_000_000, 100
# Pydantic's types of errors in our words.
_PROBLEMS = {
    "bool_type": "expected true or false",
    "list_type": "expected a list",
    "missing": "is missing",
    "model_type": "expected an object",
    "string_type": "expected a text",
    "string_unicode": "has half a character (a lone surrogate)",
}
_TEXT_OR_SEPARATOR = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[,\[]', re.DOTALL)


@dataclass(frozen=True)
class Asked:
    """One pair to forecast, or the reason why it cannot be forecast. `id` is the client's."""

    id: str | int | None
    pair: Pair | None
    explain: bool
    both_orders: bool
    refusal: Refusal | None = None


def parsed(body: bytes) -> dict[str, Any]:
    """The JSON object in a body."""
    if _has_too_many(body):
        raise Refusal("bad_json", f"the body has more than {_MOST_VALUES} values")
    objects = count(1)

    def made(members: list[tuple[str, Any]]) -> dict[str, Any]:
        # Objects take the most time: a body of many small ones would keep a processor busy.
        if next(objects) > _MOST_OBJECTS:
            raise _UnsoundError(f"the body has more than {_MOST_OBJECTS} objects")
        return _object(members)

    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_constant, object_pairs_hook=made)
    except UnicodeDecodeError:
        raise Refusal("bad_json", "the body is not UTF-8") from None
    except RecursionError:
        raise Refusal("bad_json", "the body is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise Refusal("bad_json", f"the body is not JSON: {error.msg} at character {error.pos}") from None
    except ValueError as error:
        raise Refusal(
            "bad_json", str(error) if isinstance(error, _UnsoundError) else "a number is too long to read"
        ) from None
    if not isinstance(value, dict):
        raise Refusal("invalid", f"the body is {kind(value)}; expected a JSON object")
    return value


def _has_too_many(body: bytes) -> bool:
    """Whether a body has too many values. It is not parsed for that; commas within texts do not count."""
    if body.count(b",") + body.count(b"[") <= _MOST_VALUES:
        return False
    found = count(1)
    return any(
        match.end() - match.start() == 1 and next(found) > _MOST_VALUES for match in _TEXT_OR_SEPARATOR.finditer(body)
    )


class _UnsoundError(ValueError):
    pass


def _constant(name: str) -> NoReturn:
    raise _UnsoundError(f"{name} is not JSON")


def _object(members: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(members) > _MOST_FIELDS:
        raise _UnsoundError(f"an object has more than {_MOST_FIELDS} fields")
    found = dict(members)
    if len(found) < len(members):
        names = [name for name, _ in members]
        twice = next(name for name in names if names.count(name) > 1)
        raise _UnsoundError(f"an object has the field {excerpt(twice)} twice")
    return found


def asked_of(document: dict[str, Any], limits: Limits) -> tuple[list[Asked], bool]:
    """The pairs of a forecast request, and whether they came as a list. The fault of a single pair is raised. The fault of a
    pair in a list is kept as the `refusal` of that pair."""
    if "pairs" not in document:
        return [_asked(document, limits)], False
    many = validated(schema.ForecastMany, document, limits)
    found = []
    for number, item in enumerate(many.pairs):
        try:
            one = _asked(item, limits)
        except Refusal as refusal:
            found.append(Asked(_id(item, limits), None, False, False, refusal.within(f"pairs.{number}")))
        else:
            found.append(Asked(one.id, one.pair, one.explain or many.explain, one.both_orders or many.both_orders))
    return found, True


def _asked(item: Any, limits: Limits) -> Asked:
    if isinstance(item, dict) and ("conversation_a" in item or "conversation_b" in item):
        said = validated(schema.ConversationPair, item, limits)
        try:
            # The messages as they came: `formats` reads their contents.
            turns, system, tools = SHAPES["arena"].read(
                {name: item[name] for name in ("conversation_a", "conversation_b")}, True
            )
        except Fault as fault:
            raise Refusal("invalid", fault.problem, fault.field) from None
        pair = Pair(turns, system=system, reference=said.reference, tools=tools)
        return Asked(said.id, pair, said.explain, said.both_orders)
    texts = validated(schema.TextPair, item, limits)
    _same_turns(texts.prompt, {"response_a": texts.response_a, "response_b": texts.response_b})
    turns = tuple(map(Turn, texts.prompt, texts.response_a, texts.response_b))
    pair = Pair(turns, system=texts.system or "", reference=texts.reference)
    return Asked(texts.id, pair, texts.explain, texts.both_orders)


def _id(item: Any, limits: Limits) -> str | int | None:
    """The id of a pair that has another fault."""
    try:
        return validated(schema.Named, item, limits).id
    except Refusal:
        return None


def conversations_of(document: dict[str, Any], limits: Limits) -> list[list[dict[str, str]] | Refusal]:
    """The conversations of a score request as plain messages, or why one cannot be read."""
    many = validated(schema.ScoreRequest, document, limits)
    found: list[list[dict[str, str]] | Refusal] = []
    for item in many.conversations:
        try:
            found.append(_conversation(item, limits))
        except Refusal as refusal:
            found.append(refusal)
    return found


def _conversation(item: Any, limits: Limits) -> list[dict[str, str]]:
    if isinstance(item, dict):
        texts = validated(schema.Exchange, item, limits)
        _same_turns(texts.prompt, {"response": texts.response})
        turns, system = list(zip(texts.prompt, texts.response, strict=True)), texts.system or ""
        return _messages(turns, system)
    return conversation_of(item, limits)


def conversation_of(item: Any, limits: Limits, field: str = "") -> list[dict[str, str]]:
    """A list of messages as plain messages. Raises Refusal."""
    validated(schema.Messages, item, limits)
    try:
        turns, system, _ = conversation(item, "")
    except Fault as fault:
        raise Refusal("invalid", fault.problem, field) from None
    return _messages(turns, system)


def _messages(turns: Sequence[tuple[str, str]], system: str) -> list[dict[str, str]]:
    said = [
        {"role": role, "content": content}
        for turn in turns
        for role, content in zip(("user", "assistant"), turn, strict=True)
    ]
    return [{"role": "system", "content": system}, *said] if system else said


def ranked_of(document: dict[str, Any], limits: Limits) -> schema.RankRequest:
    """The prompt and the responses to rank."""
    said = validated(schema.RankRequest, document, limits)
    _same_turns(said.prompt, {f"responses.{number}": turns for number, turns in enumerate(said.responses)})
    return said


def _same_turns(prompt: Sequence[str], responses: Mapping[str, Sequence[str]]) -> None:
    for field, turns in responses.items():
        if len(turns) != len(prompt):
            problem = f"has {len(turns)} turns and the prompt has {len(prompt)}; the numbers must be equal"
            raise Refusal("invalid", problem, field)


def validated(model: type[M], value: Any, limits: Limits) -> M:
    try:
        return model.model_validate(value, context=limits)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        field = ".".join(excerpt(str(part))[1:-1] for part in first["loc"] if not str(part).startswith("("))
        problem = _PROBLEMS.get(first["type"], first["msg"])
        if first["type"] == "extra_forbidden":
            problem = f"is not a field here; the fields are {', '.join(model.model_fields)}"
        elif problem.startswith(("expected", "Input should be")):
            problem = f"{problem}, found {kind(first['input'])}"
        raise Refusal("too_long" if first["type"] == "too_long" else "invalid", problem, field) from None

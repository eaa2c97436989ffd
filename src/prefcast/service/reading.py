"""Bodies -> requests -> pairs. Whatever a body holds, it is read or a Refusal says what is wrong with it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

from prefcast.errors import excerpt
from prefcast.pairs import Pair, clean
from prefcast.pairs.formats.fields import Fault, kind
from prefcast.pairs.formats.messages import conversation
from prefcast.pairs.formats.shapes import SHAPES
from prefcast.service import schema
from prefcast.service.limits import Limits
from prefcast.service.refusals import Refusal

__all__ = ["Asked", "Ranked", "asked_of", "conversations_of", "parsed", "ranked_of"]

M = TypeVar("M", bound=BaseModel)
_LONGEST_ID = 1000
_MOST_OBJECTS = 300_000
# Values of a body, fields of one object: small ones take 50 times the memory of what was sent.
_MOST_VALUES, _MOST_FIELDS = 1_000_000, 100
_TEXT_OR_SEPARATOR = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[,\[]', re.DOTALL)


@dataclass(frozen=True)
class Asked:
    """One pair to forecast, or why it cannot be; `id` is the client's."""

    id: str | int | None
    pair: Pair | None
    explain: bool
    both_orders: bool
    refusal: Refusal | None = None


@dataclass(frozen=True)
class Ranked:
    """A prompt's turns and the turns of n answers."""

    id: str | int | None
    prompt: list[str]
    responses: list[list[str]]


def parsed(body: bytes) -> dict[str, Any]:
    """The JSON object in a body."""
    if _has_too_many(body):
        raise Refusal("bad_json", f"the body has more than {_MOST_VALUES} values")
    objects = count(1)

    def made(members: list[tuple[str, Any]]) -> dict[str, Any]:
        # Objects are what costs: a body of nothing but them would keep a processor busy for long.
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
    """Whether a body has too many values, without parsing them; commas within texts count for nothing."""
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
    """The pairs of a forecast request, and whether they came as a list. The fault of a single pair is raised, one of a list
    stands in its place."""
    if "pairs" not in document:
        return [_asked(document, limits)], False
    many = _model(schema.ForecastMany, document)
    _count(many.pairs, 1, limits.pairs, "pairs")
    found = []
    for number, item in enumerate(many.pairs):
        try:
            one = _asked(item, limits)
        except Refusal as refusal:
            id = item.get("id") if isinstance(item, dict) else None
            id = id if _is_id(id) else None
            place = f"pairs.{number}.{refusal.field}" if refusal.field else f"pairs.{number}"
            found.append(
                Asked(
                    clean(id) if isinstance(id, str) else id,
                    None,
                    False,
                    False,
                    Refusal(refusal.type, refusal.message, place),
                )
            )
        else:
            found.append(Asked(one.id, one.pair, one.explain or many.explain, one.both_orders or many.both_orders))
    return found, True


def _asked(item: Any, limits: Limits) -> Asked:
    if not isinstance(item, dict):
        raise Refusal("invalid", f"a pair is {kind(item)}; expected an object")
    if "conversation_a" in item or "conversation_b" in item:
        said: schema.ConversationPair | schema.TextPair = _model(schema.ConversationPair, item)
        fields: tuple[str, ...] = ("conversation_a", "conversation_b")
        shape = SHAPES["arena"]
        for field in fields:
            _messages(item[field], field, limits)
    else:
        said = _model(schema.TextPair, item)
        fields, shape = ("prompt", "response_a", "response_b"), SHAPES["kaggle"]
        for field in fields:
            _texts(item[field], field, limits)
    id = _id(said.id)
    try:
        turns, _, _ = shape.read({field: item[field] for field in fields}, "", True)
    except Fault as fault:
        raise Refusal("invalid", fault.problem, fault.field) from None
    return Asked(id, Pair(turns), said.explain, said.both_orders)


def conversations_of(document: dict[str, Any], limits: Limits) -> list[list[dict[str, str]] | Refusal]:
    """The conversations of a score request as plain messages; the fault of one stands in its place."""
    many = _model(schema.ScoreRequest, document)
    _count(many.conversations, 1, limits.pairs, "conversations")
    found: list[list[dict[str, str]] | Refusal] = []
    for number, item in enumerate(many.conversations):
        try:
            found.append(_conversation(item, limits))
        except Refusal as refusal:
            place = f"conversations.{number}"
            found.append(Refusal(refusal.type, refusal.message, f"{place}.{refusal.field}" if refusal.field else place))
    return found


def _conversation(item: Any, limits: Limits) -> list[dict[str, str]]:
    if isinstance(item, dict):
        if set(item) != {"prompt", "response"}:
            raise Refusal("invalid", "expected prompt and response, or a list of messages")
        texts = [_turns(item[field], field, limits) for field in ("prompt", "response")]
        if len(texts[0]) != len(texts[1]):
            raise Refusal(
                "invalid", f"has {len(texts[1])} turns, the prompt {len(texts[0])}; they must be equal", "response"
            )
        said = list(zip(*texts, strict=True))
    else:
        _messages(item, "", limits)
        try:
            said = conversation(item, "")
        except Fault as fault:
            raise Refusal("invalid", fault.problem) from None
    return [
        {"role": role, "content": content}
        for turn in said
        for role, content in zip(("user", "assistant"), turn, strict=True)
    ]


def ranked_of(document: dict[str, Any], limits: Limits) -> Ranked:
    """A ranking's prompt and answers."""
    said = _model(schema.RankRequest, document)
    _count(said.responses, 2, limits.responses, "responses")
    prompt = _turns(said.prompt, "prompt", limits)
    responses = [_turns(text, f"responses.{number}", limits) for number, text in enumerate(said.responses)]
    for number, turns in enumerate(responses):
        if len(turns) != len(prompt):
            problem = f"has {len(turns)} turns, the prompt {len(prompt)}; they must be equal"
            raise Refusal("invalid", problem, f"responses.{number}")
    return Ranked(_id(said.id), prompt, responses)


def _model(model: type[M], document: Mapping[str, Any]) -> M:
    try:
        return model.model_validate(document)
    except ValidationError as error:
        # Pydantic's own sentence, but for what it would show of the input.
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        field = ".".join(excerpt(str(part))[1:-1] for part in first["loc"])
        expected = ", ".join(model.model_fields)
        problem = {
            "missing": "is missing",
            "extra_forbidden": f"is not a field here; there are {expected}",
            "bool_type": "expected true or false",
        }.get(first["type"], first["msg"])
        raise Refusal("invalid", problem, field) from None


def _turns(value: Any, field: str, limits: Limits) -> list[str]:
    _texts(value, field, limits)
    turns = [value] if isinstance(value, str) else value
    return [clean(turn or "") for turn in turns]


def _texts(value: Any, field: str, limits: Limits) -> None:
    if isinstance(value, str):
        _length(value, field, limits)
        return
    if not isinstance(value, list):
        raise Refusal("invalid", f"is {kind(value)}; expected a text, or an array of texts, one a turn", field)
    _count(value, 1, limits.turns, field)
    for number, turn in enumerate(value):
        if turn is None:
            continue
        if not isinstance(turn, str):
            raise Refusal("invalid", f"is {kind(turn)}; expected a text or null", f"{field}.{number}")
        _length(turn, f"{field}.{number}", limits)


def _messages(value: Any, field: str, limits: Limits) -> None:
    """Bounds of a list of messages; what else is wrong with it `formats` says."""
    if not isinstance(value, list):
        raise Refusal("invalid", f"is {kind(value)}; expected a list of messages with role and content", field)
    _count(value, 1, 2 * limits.turns + 1, field)
    for number, message in enumerate(value):
        content = message.get("content") if isinstance(message, dict) else None
        parts = content if isinstance(content, list) else [content]
        texts = [part.get("text") if isinstance(part, dict) else part for part in parts]
        whole = sum(len(text) for text in texts if isinstance(text, str))
        if whole > limits.text_characters:
            raise _too_long(whole, f"{field}.{number}.content" if field else f"{number}.content", limits)


def _length(text: str, field: str, limits: Limits) -> None:
    if len(text) > limits.text_characters:
        raise _too_long(len(text), field, limits)


def _too_long(length: int, field: str, limits: Limits) -> Refusal:
    return Refusal("too_long", f"has {length} characters; at most {limits.text_characters} are taken", field)


def _count(values: list[Any], least: int, most: int, field: str) -> None:
    if len(values) < least:
        raise Refusal("invalid", f"has {len(values)} items; expected at least {least}", field)
    if len(values) > most:
        raise Refusal("too_long", f"has {len(values)} items; at most {most} are taken", field)


def _is_id(id: Any) -> bool:
    if isinstance(id, str):
        return len(id) <= _LONGEST_ID
    return id is None or (isinstance(id, int) and not isinstance(id, bool) and -(2**63) <= id < 2**63)


def _id(id: Any) -> str | int | None:
    if not _is_id(id):
        raise Refusal(
            "invalid", f"expected a text of at most {_LONGEST_ID} characters or a whole number of 64 bits", "id"
        )
    return clean(id) if isinstance(id, str) else id

"""A record -> a Pair: one function a shape, one table.

Nothing here opens a file. A function raises `Fault(field, problem)` for what is wrong with the record; the reader
adds file and row.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefcast.errors import excerpt
from prefcast.pairs import Outcome, Turn

__all__ = ["SHAPES", "Fault", "Shape", "clean"]

Record = Mapping[str, Any]
Texts = tuple[Turn, ...]

_LABELS = ("winner_model_a", "winner_model_b", "winner_tie")
_WINNERS = {"model_a": Outcome.A, "model_b": Outcome.B} | dict.fromkeys(
    ("tie", "tie (bothbad)", "both_bad", "bothbad"), Outcome.TIE
)
_SURROGATE = re.compile("[\ud800-\udfff]")
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
_TRANSCRIPT = re.compile(r"\n\n(Human|Assistant):")
_ORDER_SEED = b"prefcast 0"


class Fault(Exception):  # noqa: N818 - it never leaves this package
    """What is wrong with a record: the field and one clause that says what was found and what would be right."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(field, problem)
        self.field = field
        self.problem = problem


@dataclass(frozen=True)
class Shape:
    """A shape of records: `needs` tells it; `read` makes the turns and, where the record has one, the label."""

    name: str
    title: str
    needs: tuple[str, ...]
    optional: tuple[str, ...]
    read: Callable[[Record, str | int, bool], tuple[Texts, Outcome | None, bool]]
    note: str = ""


def _read_kaggle(record: Record, id: str | int, plain: bool) -> tuple[Texts, Outcome | None, bool]:
    columns = [_turns(record, field, plain) for field in ("prompt", "response_a", "response_b")]
    prompt, a, b = map(len, columns)
    if not prompt == a == b:
        raise Fault(
            "response_a" if a != prompt else "response_b",
            f"the numbers of turns differ: prompt {prompt}, response_a {a}, response_b {b}; they must be equal",
        )
    if not prompt:
        raise Fault("prompt", "has no turn; expected at least one")
    return tuple(map(Turn, *columns)), _label(record), False


def _read_arena(record: Record, id: str | int, plain: bool) -> tuple[Texts, Outcome | None, bool]:
    a = _conversation(_cell(record, "conversation_a"), "conversation_a")
    b = _conversation(_cell(record, "conversation_b"), "conversation_b")
    return _joined(a, b, "conversation_a", "conversation_b"), _label(record), False


def _read_preference(record: Record, id: str | int, plain: bool) -> tuple[Texts, Outcome | None, bool]:
    chosen, rejected = _completion(record, "chosen"), _completion(record, "rejected")
    turns = _joined(chosen, rejected, "chosen", "rejected")
    # The order in the file gives the label away, so it is drawn anew: from the id, the same every time.
    text = str(id).encode("utf-8", "surrogatepass")
    swap = hashlib.blake2b(text, digest_size=1, key=_ORDER_SEED).digest()[0] & 1 == 1
    if swap:
        turns = tuple(Turn(turn.prompt, turn.response_b, turn.response_a) for turn in turns)
    return turns, Outcome.B if swap else Outcome.A, swap


def clean(text: str) -> str:
    """A lone surrogate is half a character and cannot be written as UTF-8: U+FFFD takes its place, one for one."""
    return _SURROGATE.sub("\ufffd", text)


def _cell(record: Record, field: str) -> Any:
    """The value of a field; a text that should hold JSON is parsed."""
    value = _present(record, field)
    if not isinstance(value, str):
        return value
    if not value.strip():
        raise Fault(field, "is empty; expected a JSON array")
    try:
        parsed = json.loads(value)
    except RecursionError:
        raise Fault(field, "is not usable JSON: nested too deeply") from None
    except ValueError as error:
        where = (
            f"{error.msg} at character {error.pos}"
            if isinstance(error, json.JSONDecodeError)
            else "a number too long to read"
        )
        raise Fault(field, f"is not valid JSON: {where}, found {excerpt(value)}; expected a JSON array") from None
    return parsed


def _present(record: Record, field: str) -> Any:
    if field not in record:
        raise Fault(field, "is missing from this row")
    if record[field] is None:
        raise Fault(field, "is null")
    return record[field]


def _turns(record: Record, field: str, plain: bool) -> list[str]:
    value = _present(record, field)
    if plain and isinstance(value, str):
        return [clean(value)]
    surrogates = True
    if isinstance(value, str):
        surrogates = bool(_SURROGATE_ESCAPE.search(value))
        if not value.lstrip().startswith("["):
            what = "is empty" if not value.strip() else f"is {excerpt(value)}"
            raise Fault(
                field,
                f"{what}; expected a JSON array of strings, one a turn (if the cells are plain text: --cells text)",
            )
        value = _cell(record, field)
    if not isinstance(value, list):
        raise Fault(field, f"is {_kind(value)}; expected an array of strings, one a turn")
    texts = []
    for number, turn in enumerate(value, 1):
        item = "" if turn is None else turn
        if not isinstance(item, str):
            raise Fault(field, f"turn {number} is {_kind(item)}; expected a string or null")
        texts.append(clean(item) if surrogates else item)
    return texts


def _label(record: Record) -> Outcome | None:
    present = [field for field in _LABELS if field in record]
    values = [record[field] for field in present]
    if any(value is not None and value != "" for value in values):
        if len(present) < len(_LABELS):
            missing = next(field for field in _LABELS if field not in record)
            raise Fault(missing, "is missing from this row; the three winner columns go together")
        numbers = [_bit(value) for value in values]
        if None in numbers or sum(number or 0 for number in numbers) != 1:
            raise Fault(
                ",".join(_LABELS),
                f"are {', '.join(excerpt(value, 20) for value in values)}; expected exactly one 1 and two 0",
            )
        return Outcome(numbers.index(1))
    winner = record.get("winner")
    if winner is None or winner == "":
        return None
    outcome = _WINNERS.get(winner.strip().lower()) if isinstance(winner, str) else None
    if outcome is None:
        raise Fault("winner", f"is {excerpt(winner)}; expected one of model_a, model_b, tie, tie (bothbad), both_bad")
    return outcome


def _bit(value: Any) -> int | None:
    if isinstance(value, str):
        return {"0": 0, "1": 1, "0.0": 0, "1.0": 1}.get(value.strip())
    if isinstance(value, bool | int | float) and value in (0, 1):
        return int(value)
    return None


def _kind(value: Any) -> str:
    names = {
        dict: "an object",
        list: "an array",
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "a string",
        type(None): "null",
        bytes: "bytes",
    }
    return names.get(type(value), f"of type {type(value).__name__}")


# Message lists: (user, assistant) text pairs. The system message belongs to the first prompt.
Conversation = list[tuple[str, str]]


def _conversation(value: Any, field: str) -> Conversation:
    if not isinstance(value, list):
        raise Fault(field, f"is {_kind(value)}; expected a list of messages with role and content")
    if not value:
        raise Fault(field, "is an empty list of messages; expected at least one user and one assistant message")
    system: str | None = None
    prompts: list[str] = []
    answers: list[str] = []
    for number, message in enumerate(value, 1):
        if not isinstance(message, dict) or "role" not in message or "content" not in message:
            raise Fault(
                field,
                f"message {number} is {excerpt(message) if not isinstance(message, dict) else 'without role or content'}; expected an object with role and content",
            )
        role, text = message["role"], _content(message["content"], field, number)
        if role == "system":
            if number > 1:
                raise Fault(field, f"message {number} is a system message; only the first message may be one")
            system = text
        elif role == "user":
            if len(prompts) > len(answers):
                raise Fault(
                    field, f"message {number} is a second user message in a row; user and assistant must alternate"
                )
            prompts.append(text)
        elif role == "assistant":
            if len(prompts) == len(answers):
                raise Fault(
                    field,
                    f"message {number} is an assistant message with no user message before it; user and assistant must alternate",
                )
            answers.append(text)
        elif role in ("tool", "function"):
            raise Fault(
                field, f"message {number} is a {role} message; only system, user and assistant messages can be compared"
            )
        else:
            raise Fault(field, f"message {number} has the role {excerpt(role)}; expected system, user or assistant")
    if len(prompts) != len(answers) or not prompts:
        raise Fault(
            field, "ends without an assistant message; expected user and assistant to alternate, the assistant last"
        )
    if system:
        prompts[0] = f"{system}\n\n{prompts[0]}"
    return list(zip(prompts, answers, strict=True))


def _content(content: Any, field: str, number: int) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return clean(content)
    if not isinstance(content, list):
        raise Fault(field, f"message {number}: content is {_kind(content)}; expected a text or a list of text parts")
    texts = []
    for part in content:
        kind = part.get("type", "text") if isinstance(part, dict) else None
        if isinstance(part, str):
            texts.append(part)
        elif kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        else:
            raise Fault(
                field, f"message {number} has a content part of type {excerpt(kind)}; only text can be compared"
            )
    return clean("\n".join(texts))


def _joined(a: Conversation, b: Conversation, name_a: str, name_b: str) -> Texts:
    if len(a) != len(b):
        raise Fault(name_b, f"the numbers of turns differ: {name_a} {len(a)}, {name_b} {len(b)}; they must be equal")
    for number, ((left, _), (right, _)) in enumerate(zip(a, b, strict=True), 1):
        if left != right:
            raise Fault(
                name_b,
                f"the prompt of turn {number} differs between {name_a} and {name_b}; a pair has the same prompts",
            )
    return tuple(Turn(prompt, left, right) for (prompt, left), (_, right) in zip(a, b, strict=True))


def _completion(record: Record, field: str) -> Conversation:
    """The whole conversation of `chosen` or `rejected`, its prompt explicit, in the message list, or the prefix that
    both share."""
    value, prompt = _structured(_present(record, field)), _structured(record.get("prompt"))
    if isinstance(value, list):
        return _conversation(_with_prompt(value, prompt, field), field)
    if not isinstance(value, str):
        raise Fault(field, f"is {_kind(value)}; expected a text or a list of messages")
    value = clean(value)
    if isinstance(prompt, list):
        return _conversation([*prompt, {"role": "assistant", "content": value}], field)
    if isinstance(prompt, str):
        prompt = clean(prompt)
        if _TRANSCRIPT.match(prompt):
            return _transcript(
                prompt.removesuffix("\n\nAssistant:") + "\n\nAssistant:" + value.removeprefix(prompt), field
            )
        return [(prompt, value.removeprefix(prompt))]
    if prompt is not None:
        raise Fault("prompt", f"is {_kind(prompt)}; expected a text or a list of messages")
    if _TRANSCRIPT.match(value):
        return _transcript(value, field)
    other = _present(record, "rejected" if field == "chosen" else "chosen")
    shared = _shared_prefix(value, clean(other) if isinstance(other, str) else "")
    if not shared.strip():
        raise Fault(field, "chosen and rejected share no beginning that could be the prompt; expected a prompt column")
    return [(shared.rstrip(), value[len(shared) :])]


def _structured(value: Any) -> Any:
    """A message list that a CSV holds as JSON text; any other text stays text."""
    if isinstance(value, str) and value.lstrip()[:2].replace(" ", "") in ("[{", "[\n"):
        try:
            parsed = json.loads(value)
        except (ValueError, RecursionError):
            return value
        return (
            parsed
            if isinstance(parsed, list) and all(isinstance(item, dict) and "role" in item for item in parsed)
            else value
        )
    return value


def _with_prompt(messages: list[Any], prompt: Any, field: str) -> list[Any]:
    """The messages with their prompt before them, unless they begin with it themselves."""
    roles = [message.get("role") if isinstance(message, dict) else None for message in messages]
    begins = next((role for role in roles if role != "system"), None)
    if begins == "user":
        said = [
            message.get("content")
            for message in messages
            if isinstance(message, dict) and message.get("role") == "user"
        ]
        if (isinstance(prompt, str) and prompt not in said) or (
            isinstance(prompt, list) and messages[: len(prompt)] != prompt
        ):
            raise Fault(
                "prompt",
                f"is not what {field} begins with; expected the same prompt in both, or only the answer in {field}",
            )
        return messages
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}, *messages]
    if isinstance(prompt, list):
        return [*prompt, *messages]
    raise Fault(field, "has no user message, and there is no prompt column; expected the prompt in one of them")


def _transcript(text: str, field: str) -> Conversation:
    """A conversation as HH-RLHF writes it: paragraphs that begin with "Human:" and "Assistant:"."""
    parts = _TRANSCRIPT.split(text)
    messages = [
        {"role": {"Human": "user", "Assistant": "assistant"}[who], "content": said.strip()}
        for who, said in zip(parts[1::2], parts[2::2], strict=True)
    ]
    return _conversation(messages, field)


def _shared_prefix(left: str, right: str) -> str:
    """The longest common beginning, back to the last white space: a prompt does not end inside a word."""
    length = 0
    for one, other in zip(left, right, strict=False):
        if one != other:
            break
        length += 1
    while length and not left[length - 1].isspace():
        length -= 1
    return left[:length]


SHAPES: dict[str, Shape] = {
    shape.name: shape
    for shape in (
        Shape(
            "kaggle",
            "Kaggle pairs (prompt, response_a, response_b)",
            ("prompt", "response_a", "response_b"),
            ("winner", *_LABELS),
            _read_kaggle,
        ),
        Shape(
            "arena",
            "Arena export (conversation_a, conversation_b)",
            ("conversation_a", "conversation_b"),
            ("winner", *_LABELS),
            _read_arena,
        ),
        Shape(
            "preference",
            "preference data (chosen, rejected)",
            ("chosen", "rejected"),
            ("prompt",),
            _read_preference,
            "which of chosen and rejected is A was drawn from each id with a fixed seed",
        ),
    )
}


def all_columns(shapes: Iterable[Shape] = SHAPES.values()) -> Sequence[str]:
    """Every column name that some shape knows."""
    names = ["id", "model_a", "model_b"]
    for shape in shapes:
        names.extend(name for name in (*shape.needs, *shape.optional) if name not in names)
    return names

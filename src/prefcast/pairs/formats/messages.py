"""Message lists and transcripts -> conversations of text pairs."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from prefcast.errors import excerpt
from prefcast.pairs import clean
from prefcast.pairs.formats.fields import Fault, kind

__all__ = ["TRANSCRIPT", "Conversation", "are_messages", "content", "conversation", "role_of", "transcript"]

TRANSCRIPT = re.compile(r"(?:^|\n\n)(Human|Assistant):")
# The names that files have for the roles, in small letters.
_ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "bot"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
}
_TOOL_FIELDS = ("tool_calls", "tool_call_id", "name")
_TOOLS = ("tool", "function", "function_call", "tool_call", "tool_response", "observation", "ipython")


class Conversation(NamedTuple):
    """The (prompt, answer) of each turn, and the system message before them. Where an answer calls tools, `tools` has all messages
    as JSON, and the answer is the texts of the assistant."""

    turns: list[tuple[str, str]]
    system: str = ""
    tools: str = ""


def conversation(value: Any, field: str, *, tools: bool = False) -> Conversation:
    """The conversation in a list of messages. With `tools` an answer may call tools and have their results."""
    if tools and isinstance(value, list) and any(map(_of_tool, value)):
        return _with_tools(value, field)
    if not isinstance(value, list):
        raise Fault(field, f"is {kind(value)}; expected a list of messages with role and content")
    system, said = "", list[str]()
    for number, message in enumerate(value, 1):
        role, text = _said(message, field, number)
        expected = "assistant" if len(said) % 2 else "user"
        if role == "system" and number == 1:
            system = text
        elif role == expected:
            said.append(text)
        else:
            problem = f"message {number} has the role {excerpt(role)}; expected {expected}"
            raise Fault(
                field, f"{problem} (user and assistant alternate; only the first message may be a system message)"
            )
    if not said or len(said) % 2:
        raise Fault(
            field, "ends without an assistant message; expected user and assistant to alternate, the assistant last"
        )
    return Conversation(list(zip(said[::2], said[1::2], strict=True)), system)


def _of_tool(message: Any) -> bool:
    """Whether a message calls a tool, or is what a tool gave."""
    if not isinstance(message, dict):
        return False
    role = role_of(message)
    return bool(message.get("tool_calls")) or (isinstance(role, str) and role.lower() in _TOOLS)


def _with_tools(value: list[Any], field: str) -> Conversation:
    """As `conversation`, where the messages between a prompt and the next are one answer."""
    plain, said = list[Any](), list[dict[str, Any]]()
    for number, message in enumerate(value, 1):
        if not _of_tool(message):
            role, text = _said(message, field, number)
            said.append({"role": role, "content": text})
        else:
            role = role_of(message)
            text = content(message.get("content"), field, number)
            kept = {name: message[name] for name in _TOOL_FIELDS if message.get(name)}
            if role not in ("assistant", "tool"):
                problem = f"message {number} has the role {excerpt(role)}; expected tool, or assistant with tool_calls"
                raise Fault(field, problem)
            calls = kept.get("tool_calls", [])
            if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
                raise Fault(field, f"message {number}: tool_calls is {kind(calls)}; expected a list of objects")
            said.append({"role": role, "content": text, **kept})
            if not plain or plain[-1]["role"] == "system":
                raise Fault(field, f"message {number} is of a tool, and no prompt stands before it")
        if plain and plain[-1]["role"] == "assistant" and role in ("assistant", "tool"):
            texts = [plain[-1]["content"], *([text] if role == "assistant" else [])]
            plain[-1] = {"role": "assistant", "content": "\n\n".join(filter(None, texts))}
        else:
            plain.append({"role": "assistant" if role == "tool" else role, "content": "" if role == "tool" else text})
    if said[-1]["role"] == "tool":
        raise Fault(field, "ends with the result of a tool; expected an assistant message at the end")
    found = conversation(plain, field)
    try:
        return Conversation(found.turns, found.system, clean(json.dumps(said, ensure_ascii=False, allow_nan=False)))
    except (TypeError, ValueError, RecursionError):
        raise Fault(field, "has a call of a tool that is no JSON") from None


def are_messages(value: Any) -> bool:
    """Whether a value is a list of messages, and not of texts."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def role_of(message: Any) -> Any:
    """The role of a message under our name: user, assistant or system. ShareGPT calls it `from`."""
    role = message.get("role", message.get("from")) if isinstance(message, dict) else None
    return _ROLES.get(role.strip().lower(), role) if isinstance(role, str) else role


def _said(message: Any, field: str, number: int) -> tuple[Any, str]:
    """The role and the text of a message: role and content, or from and value as ShareGPT has it."""
    if isinstance(message, dict):
        role = role_of(message)
        if message.get("tool_calls") or (isinstance(role, str) and role.lower() in _TOOLS):
            what = "calls a tool" if role == "assistant" else f"is of a tool (role {excerpt(role)})"
            problem = f"message {number} {what}; only messages of user, assistant and system can be read"
            raise Fault(field, problem)
        for ours, theirs in (("role", "content"), ("from", "value")):
            if ours in message and theirs in message:
                return role, content(message[theirs], field, number)
    raise Fault(field, f"message {number} is {excerpt(message)}; expected an object with role and content")


def content(content: Any, field: str, number: int) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return clean(content)
    if not isinstance(content, list):
        raise Fault(field, f"message {number}: content is {kind(content)}; expected a text or a list of text parts")
    texts = []
    for part in content:
        part_kind = part.get("type", "text") if isinstance(part, dict) else None
        if isinstance(part, str):
            texts.append(part)
        elif part_kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        else:
            raise Fault(
                field, f"message {number} has a content part of type {excerpt(part_kind)}; only text can be compared"
            )
    return clean("\n".join(texts))


def transcript(text: str) -> list[dict[str, str]]:
    """The messages of a conversation as HH-RLHF writes it: paragraphs that begin with "Human:" and "Assistant:"."""
    parts = TRANSCRIPT.split(text)
    roles = {"Human": "user", "Assistant": "assistant"}
    return [{"role": roles[who], "content": said.strip()} for who, said in zip(parts[1::2], parts[2::2], strict=True)]

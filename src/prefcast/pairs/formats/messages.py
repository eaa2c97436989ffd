"""Message lists and transcripts -> conversations of text pairs."""

from __future__ import annotations

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
_TOOLS = ("tool", "function", "function_call", "tool_call", "tool_response", "observation", "ipython")


class Conversation(NamedTuple):
    """The (prompt, answer) of each turn, and the system message before them."""

    turns: list[tuple[str, str]]
    system: str = ""


def conversation(value: Any, field: str) -> Conversation:
    """The conversation in a list of messages."""
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

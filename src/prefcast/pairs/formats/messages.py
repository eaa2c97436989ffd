"""Message lists and transcripts -> conversations of text pairs."""

from __future__ import annotations

import re
from typing import Any

from prefcast.errors import excerpt
from prefcast.pairs import clean
from prefcast.pairs.formats.fields import Fault, kind

__all__ = ["TRANSCRIPT", "Conversation", "content", "conversation", "transcript"]

TRANSCRIPT = re.compile(r"(?:^|\n\n)(Human|Assistant):")


# Message lists: (user, assistant) text pairs. The system message belongs to the first prompt.
Conversation = list[tuple[str, str]]


def conversation(value: Any, field: str) -> Conversation:
    if not isinstance(value, list):
        raise Fault(field, f"is {kind(value)}; expected a list of messages with role and content")
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
        role, text = message["role"], content(message["content"], field, number)
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

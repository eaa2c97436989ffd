"""The Messages of Anthropic. They have no log probabilities: verdicts are drawn and counted.

https://platform.claude.com/docs/en/api/messages
"""

from __future__ import annotations

from typing import Any

from prefcast.scorers.judge.forms import Ask, Form, NoLogprobsError, Reply, listed, of_text, text_of, tokens_of, words
from prefcast.scorers.judge.verdicts import NoVerdict


class Anthropic(Form):
    """`POST messages`."""

    repeats = 3
    key = "ANTHROPIC_API_KEY"
    choice = False
    version = 1

    def headers(self, key: str | None) -> dict[str, str]:
        version = {"anthropic-version": "2023-06-01"}
        return version if key is None else {"x-api-key": key, **version}

    def path(self, model: str) -> str:
        return "messages"

    def body(self, ask: Ask) -> dict[str, Any]:
        if not ask.sampled:
            raise NoLogprobsError
        made: dict[str, Any] = {
            "model": ask.model,
            "max_tokens": ask.most,
            "system": ask.question.system,
            "messages": [{"role": "user", "content": ask.question.user}],
        }
        if ask.temperature is not None:
            made["temperature"] = ask.temperature
        return made

    def read(self, said: Any, ask: Ask) -> Reply:
        read = tokens_of(said, "usage", "input_tokens")
        for name in ("cache_creation_input_tokens", "cache_read_input_tokens"):
            read += tokens_of(said, "usage", name, needed=False)
        written = tokens_of(said, "usage", "output_tokens")
        if text_of(said, "stop_reason") == "refusal":
            return Reply(NoVerdict("refusal"), read, written)
        blocks = [text_of(block, "text") for block in listed(said, "content") if text_of(block, "type") == "text"]
        return Reply(of_text("".join(blocks)), read, written)

    def problem(self, said: Any) -> str:
        return words(text_of(said, "error", "message"))


FORM = Anthropic

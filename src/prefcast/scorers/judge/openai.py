"""The chat completions of OpenAI, and of the many servers that speak the same: vLLM, SGLang, Ollama, llama.cpp.

https://developers.openai.com/api/reference/resources/chat/subresources/completions/methods/create
"""

from __future__ import annotations

from typing import Any

from prefcast.scorers.judge.forms import Ask, Form, Reply, dig, likeliest, listed, of_text, text_of, tokens_of, words
from prefcast.scorers.judge.verdicts import LETTERS, NoVerdict, of_tokens

# The most that OpenAI and vLLM allow.
_TOP = 20


class OpenAI(Form):
    """`POST chat/completions`."""

    repeats = 0
    key = "OPENAI_API_KEY"
    choice = True
    version = 1

    def headers(self, key: str | None) -> dict[str, str]:
        return {} if key is None else {"Authorization": f"Bearer {key}"}

    def path(self, model: str) -> str:
        return "chat/completions"

    def body(self, ask: Ask) -> dict[str, Any]:
        made: dict[str, Any] = {
            "model": ask.model,
            "messages": [
                {"role": "system", "content": ask.question.system},
                {"role": "user", "content": ask.question.user},
            ],
            "max_completion_tokens": ask.most,
        }
        if not ask.sampled:
            made |= {"logprobs": True, "top_logprobs": _TOP}
        if ask.temperature is not None:
            made["temperature"] = ask.temperature
        if ask.seed is not None:
            made["seed"] = ask.seed
        if ask.choice:
            made["structured_outputs"] = {"choice": list(LETTERS)}
        return made

    def read(self, said: Any, ask: Ask) -> Reply:
        read, written = (tokens_of(said, "usage", name) for name in ("prompt_tokens", "completion_tokens"))
        choice = dig(said, "choices", 0)
        if text_of(choice, "message", "refusal") or text_of(choice, "finish_reason") == "content_filter":
            return Reply(NoVerdict("refusal"), read, written)
        if ask.sampled:
            return Reply(of_text(text_of(choice, "message", "content")), read, written)
        top = likeliest(listed(choice, "logprobs", "content", 0, "top_logprobs"), "token", "logprob")
        return Reply(of_tokens(top), read, written)

    def problem(self, said: Any) -> str:
        # vLLM and others put the words at the top.
        error = text_of(said, "error", "message") or text_of(said, "message") or text_of(said, "error")
        return words(error or text_of(said, "detail"))


FORM = OpenAI

"""The generateContent of Google's Gemini API. Some of its models give log probabilities, others refuse them.

https://ai.google.dev/api/generate-content
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from prefcast.scorers.judge.forms import Ask, Form, Reply, dig, likeliest, listed, of_text, text_of, tokens_of, words
from prefcast.scorers.judge.verdicts import LETTERS, NoVerdict, of_tokens

_TOP = 20
# Why a candidate ends that its API does not want to be read.
_REFUSED = ("SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "LANGUAGE")


class Gemini(Form):
    """`POST models/MODEL:generateContent`."""

    repeats = 0
    key = "GEMINI_API_KEY"
    choice = True
    version = 1

    def headers(self, key: str | None) -> dict[str, str]:
        return {} if key is None else {"x-goog-api-key": key}

    def path(self, model: str) -> str:
        return f"models/{quote(model.removeprefix('models/'), safe='')}:generateContent"

    def body(self, ask: Ask) -> dict[str, Any]:
        how: dict[str, Any] = {"maxOutputTokens": ask.most}
        if not ask.sampled:
            how |= {"responseLogprobs": True, "logprobs": _TOP}
        if ask.choice:
            how |= {"responseMimeType": "text/x.enum", "responseSchema": {"type": "STRING", "enum": list(LETTERS)}}
        if ask.temperature is not None:
            how["temperature"] = ask.temperature
        if ask.seed is not None:
            how["seed"] = ask.seed
        return {
            "systemInstruction": {"parts": [{"text": ask.question.system}]},
            "contents": [{"role": "user", "parts": [{"text": ask.question.user}]}],
            "generationConfig": how,
        }

    def read(self, said: Any, ask: Ask) -> Reply:
        read = tokens_of(said, "usageMetadata", "promptTokenCount")
        # Thoughts are paid for as what is written.
        written = sum(
            tokens_of(said, "usageMetadata", name, needed=False)
            for name in ("candidatesTokenCount", "thoughtsTokenCount")
        )
        candidate = dig(said, "candidates", 0)
        if text_of(said, "promptFeedback", "blockReason") or text_of(candidate, "finishReason") in _REFUSED:
            return Reply(NoVerdict("refusal"), read, written)
        if ask.sampled:
            parts = [
                text_of(part, "text") for part in listed(candidate, "content", "parts") if not dig(part, "thought")
            ]
            return Reply(of_text("".join(parts)), read, written)
        top = listed(candidate, "logprobsResult", "topCandidates", 0, "candidates")
        return Reply(of_tokens(likeliest(top, "token", "logProbability")), read, written)

    def problem(self, said: Any) -> str:
        return words(text_of(said, "error", "message"))


FORM = Gemini

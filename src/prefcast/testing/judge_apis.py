"""The APIs of judges as strict fakes have them: what they refuse and with which words, and the form of their replies.

Written from the published references of OpenAI's chat completions, Anthropic's Messages and Google's generateContent, as of
November 2026. A field that the API does not know, a value of a wrong type and a missing key are refused as the API does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["API_KINDS", "Api", "Drawn"]

Refused = tuple[int, dict[str, Any]]
# A check of a value, and what it expects.
Rule = tuple[Callable[[Any], bool], str]


def _number(low: float, high: float) -> Rule:
    return lambda v: isinstance(v, int | float) and not isinstance(v, bool) and low <= v <= high, "a number"


def _whole(low: int, high: int = 2**31) -> Rule:
    return lambda v: isinstance(v, int) and not isinstance(v, bool) and low <= v <= high, "an integer"


_TEXT: Rule = (lambda v: isinstance(v, str), "a string")
_TRUTH: Rule = (lambda v: isinstance(v, bool), "a boolean")
_OBJECT: Rule = (lambda v: isinstance(v, dict), "an object")
_LIST: Rule = (lambda v: isinstance(v, list) and bool(v), "an array that is not empty")


@dataclass(frozen=True)
class Drawn:
    """What the fake's model says: the `text` of its reply, the `likeliest` first tokens with their probabilities, whether
    it refuses, and the tokens that it read and wrote."""

    text: str
    likeliest: Sequence[tuple[str, float]]
    refused: bool
    read: int
    written: int


class Api:
    """One API. `key` is the one key that it accepts, `model` its one model; without `logprobs` the model refuses them."""

    # Where the address ends.
    root = "/v1"
    header = ""
    known: Mapping[str, Rule]
    needed: tuple[str, ...]

    def __init__(self, key: str, model: str, logprobs: bool) -> None:
        self.key, self.model, self.logprobs = key, model, logprobs

    def refuses(self, path: str, headers: Mapping[str, str], body: Any) -> Refused | None:
        """The answer to a request that the API refuses; None for one that it takes."""
        if headers.get(self.header) != self.sent:
            return self.error("key")
        if not isinstance(body, dict):
            return self.error("type", "", "an object")
        for name in self.needed:
            if name not in body:
                return self.error("missing", name)
        for name, value in body.items():
            if name not in self.known:
                return self.error("unknown", name)
            check, expected = self.known[name]
            if not check(value):
                return self.error("type", name, expected)
        return self.more(path, headers, body)

    @property
    def sent(self) -> str:
        """What the header with the key holds."""
        return self.key

    def more(self, path: str, headers: Mapping[str, str], body: dict[str, Any]) -> Refused | None:
        """What else is refused."""
        raise NotImplementedError

    def error(self, kind: str, name: str = "", expected: str = "") -> Refused:
        """A refusal in the words of the API. `kind` is key, missing, unknown, type, model, logprobs, busy or fault."""
        raise NotImplementedError

    def asked(self, body: dict[str, Any]) -> tuple[str, str, int, int]:
        """The system's text, the user's, how many likeliest tokens are asked for, and the most tokens of the reply."""
        raise NotImplementedError

    def reply(self, drawn: Drawn, body: dict[str, Any]) -> dict[str, Any]:
        """The answer with a reply."""
        raise NotImplementedError


class OpenAIApi(Api):
    """Chat completions, with vLLM's `structured_outputs`."""

    header = "authorization"
    needed = ("model", "messages")
    known: Mapping[str, Rule] = {
        "model": _TEXT,
        "messages": _LIST,
        "max_completion_tokens": _whole(1),
        "max_tokens": _whole(1),
        "logprobs": _TRUTH,
        "top_logprobs": _whole(0, 20),
        "temperature": _number(0, 2),
        "top_p": _number(0, 1),
        "seed": _whole(0),
        "n": _whole(1, 128),
        "stop": _LIST,
        "stream": _TRUTH,
        "structured_outputs": _OBJECT,
    }

    @property
    def sent(self) -> str:
        return f"Bearer {self.key}"

    def more(self, path: str, headers: Mapping[str, str], body: dict[str, Any]) -> Refused | None:
        if path != "/v1/chat/completions":
            return 404, {"error": {"message": f"Invalid URL (POST {path})", "type": "invalid_request_error"}}
        if body["model"] != self.model:
            return self.error("model", body["model"])
        for number, message in enumerate(body["messages"]):
            role = message.get("role") if isinstance(message, dict) else None
            if role not in ("system", "developer", "user", "assistant") or set(message) != {"role", "content"}:
                return self.error("type", f"messages[{number}]", "a message")
            if not isinstance(message["content"], str):
                return self.error("type", f"messages[{number}].content", "a string")
        if body.get("logprobs") and not self.logprobs:
            return self.error("logprobs")
        if "top_logprobs" in body and not body.get("logprobs"):
            return self.error("type", "top_logprobs", "'logprobs' set to true")
        return None

    def error(self, kind: str, name: str = "", expected: str = "") -> Refused:
        status, code, words = {
            "key": (401, "invalid_api_key", "Incorrect API key provided."),
            "missing": (400, "missing_required_parameter", f"Missing required parameter: '{name}'."),
            "unknown": (400, "unknown_parameter", f"Unknown parameter: '{name}'."),
            "type": (400, "invalid_type", f"Invalid type for '{name}': expected {expected}."),
            "model": (404, "model_not_found", f"The model `{name}` does not exist or you do not have access to it."),
            "logprobs": (400, "unsupported_parameter", "'logprobs' is not supported with this model."),
            "busy": (429, "rate_limit_exceeded", "Rate limit reached for requests."),
            "fault": (500, "server_error", "The server had an error while processing your request."),
        }[kind]
        return status, {
            "error": {"message": words, "type": "invalid_request_error", "param": name or None, "code": code}
        }

    def asked(self, body: dict[str, Any]) -> tuple[str, str, int, int]:
        system = "\n".join(each["content"] for each in body["messages"] if each["role"] in ("system", "developer"))
        user = "\n".join(each["content"] for each in body["messages"] if each["role"] == "user")
        most = body.get("max_completion_tokens", body.get("max_tokens", 4096))
        return system, user, body.get("top_logprobs", 0) if body.get("logprobs") else 0, most

    def reply(self, drawn: Drawn, body: dict[str, Any]) -> dict[str, Any]:
        logprobs = None
        if body.get("logprobs") and not drawn.refused:
            top = [{"token": text, "logprob": _log(p), "bytes": list(text.encode())} for text, p in drawn.likeliest]
            logprobs = {"content": [{**top[0], "top_logprobs": top}], "refusal": None}
        message: dict[str, Any] = {
            "role": "assistant",
            "content": None if drawn.refused else drawn.text,
            "refusal": drawn.text if drawn.refused else None,
            "annotations": [],
        }
        usage = {
            "prompt_tokens": drawn.read,
            "completion_tokens": drawn.written,
            "total_tokens": drawn.read + drawn.written,
        }
        choice = {"index": 0, "message": message, "logprobs": logprobs, "finish_reason": "stop"}
        made = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": self.model}
        return {**made, "choices": [choice], "usage": usage}


class AnthropicApi(Api):
    """Messages."""

    header = "x-api-key"
    needed = ("model", "max_tokens", "messages")
    known: Mapping[str, Rule] = {
        "model": _TEXT,
        "max_tokens": _whole(1),
        "messages": _LIST,
        "system": _TEXT,
        "temperature": _number(0, 1),
        "top_k": _whole(0),
        "top_p": _number(0, 1),
        "stop_sequences": _LIST,
        "stream": _TRUTH,
        "metadata": _OBJECT,
        "thinking": _OBJECT,
    }

    def more(self, path: str, headers: Mapping[str, str], body: dict[str, Any]) -> Refused | None:
        if path != "/v1/messages":
            return 404, {"type": "error", "error": {"type": "not_found_error", "message": "Not found"}}
        if headers.get("anthropic-version") != "2023-06-01":
            return self.error("type", "anthropic-version", "a valid version")
        if body["model"] != self.model:
            return self.error("model", body["model"])
        for number, message in enumerate(body["messages"]):
            if not isinstance(message, dict) or set(message) != {"role", "content"}:
                return self.error("type", f"messages.{number}", "a message")
            if message["role"] not in ("user", "assistant") or not isinstance(message["content"], str):
                return self.error("type", f"messages.{number}.role", "'user' or 'assistant'")
            if not message["content"].strip():
                return self.error("type", f"messages.{number}.content", "text that is not empty")
        return None

    def error(self, kind: str, name: str = "", expected: str = "") -> Refused:
        status, code, words = {
            "key": (401, "authentication_error", "invalid x-api-key"),
            "missing": (400, "invalid_request_error", f"{name}: Field required"),
            "unknown": (400, "invalid_request_error", f"{name}: Extra inputs are not permitted"),
            "type": (400, "invalid_request_error", f"{name}: Input should be {expected}"),
            "model": (404, "not_found_error", f"model: {name}"),
            "busy": (429, "rate_limit_error", "This request would exceed your organization's rate limit."),
            "fault": (529, "overloaded_error", "Overloaded"),
        }[kind]
        return status, {"type": "error", "error": {"type": code, "message": words}, "request_id": "req_1"}

    def asked(self, body: dict[str, Any]) -> tuple[str, str, int, int]:
        user = "\n".join(each["content"] for each in body["messages"])
        return body.get("system", ""), user, 0, body["max_tokens"]

    def reply(self, drawn: Drawn, body: dict[str, Any]) -> dict[str, Any]:
        made = {"id": "msg_1", "type": "message", "role": "assistant", "model": self.model, "stop_sequence": None}
        usage = {
            "input_tokens": drawn.read,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": drawn.written,
        }
        content = [] if drawn.refused else [{"type": "text", "text": drawn.text}]
        return {**made, "content": content, "stop_reason": "refusal" if drawn.refused else "end_turn", "usage": usage}


class GeminiApi(Api):
    """generateContent."""

    root = "/v1beta"
    header = "x-goog-api-key"
    needed = ("contents",)
    known: Mapping[str, Rule] = {
        "contents": _LIST,
        "systemInstruction": _OBJECT,
        "generationConfig": _OBJECT,
        "safetySettings": _LIST,
        "tools": _LIST,
        "toolConfig": _OBJECT,
        "cachedContent": _TEXT,
    }
    configured: Mapping[str, Rule] = {
        "maxOutputTokens": _whole(1),
        "responseLogprobs": _TRUTH,
        "logprobs": _whole(0, 20),
        "temperature": _number(0, 2),
        "topP": _number(0, 1),
        "topK": _whole(1),
        "seed": _whole(0),
        "candidateCount": _whole(1, 8),
        "stopSequences": _LIST,
        "responseMimeType": _TEXT,
        "responseSchema": _OBJECT,
        "thinkingConfig": _OBJECT,
    }

    def more(self, path: str, headers: Mapping[str, str], body: dict[str, Any]) -> Refused | None:
        if path != f"/v1beta/models/{self.model}:generateContent":
            return self.error("model", path.rpartition("/")[2].partition(":")[0])
        config = body.get("generationConfig", {})
        for name, value in config.items():
            if name not in self.configured:
                return self.error("unknown", name)
            check, expected = self.configured[name]
            if not check(value):
                return self.error("type", name, expected)
        if "logprobs" in config and not config.get("responseLogprobs"):
            return self.error("type", "logprobs", "responseLogprobs to be true")
        if config.get("responseLogprobs") and not self.logprobs:
            return self.error("logprobs")
        for content in [*body["contents"], body.get("systemInstruction", {"parts": [{"text": ""}]})]:
            parts = content.get("parts") if isinstance(content, dict) else None
            if not isinstance(parts, list) or not all(isinstance(p, dict) and _TEXT[0](p.get("text")) for p in parts):
                return self.error("type", "contents.parts", "parts with text")
        return None

    def error(self, kind: str, name: str = "", expected: str = "") -> Refused:
        status, code, words = {
            "key": (400, "INVALID_ARGUMENT", "API key not valid. Please pass a valid API key."),
            "missing": (400, "INVALID_ARGUMENT", f"* GenerateContentRequest.{name}: {name} is not specified"),
            "unknown": (
                400,
                "INVALID_ARGUMENT",
                f'Invalid JSON payload received. Unknown name "{name}": Cannot find field.',
            ),
            "type": (400, "INVALID_ARGUMENT", f"Invalid value at '{name}': expected {expected}"),
            "model": (404, "NOT_FOUND", f"models/{name} is not found for API version v1beta."),
            "logprobs": (400, "INVALID_ARGUMENT", f"Logprobs is not enabled for models/{self.model}"),
            "busy": (429, "RESOURCE_EXHAUSTED", "You exceeded your current quota."),
            "fault": (503, "UNAVAILABLE", "The model is overloaded. Please try again later."),
        }[kind]
        return status, {"error": {"code": status, "message": words, "status": code}}

    def asked(self, body: dict[str, Any]) -> tuple[str, str, int, int]:
        system = "".join(part["text"] for part in body.get("systemInstruction", {}).get("parts", []))
        user = "\n".join(part["text"] for content in body["contents"] for part in content["parts"])
        config = body.get("generationConfig", {})
        return system, user, config.get("logprobs", 0), config.get("maxOutputTokens", 8192)

    def reply(self, drawn: Drawn, body: dict[str, Any]) -> dict[str, Any]:
        usage = {
            "promptTokenCount": drawn.read,
            "candidatesTokenCount": drawn.written,
            "totalTokenCount": drawn.read + drawn.written,
        }
        if drawn.refused:
            return {"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": usage, "modelVersion": self.model}
        content = {"role": "model", "parts": [{"text": drawn.text}]}
        candidate: dict[str, Any] = {"index": 0, "content": content, "finishReason": "STOP"}
        if body.get("generationConfig", {}).get("responseLogprobs"):
            top = [{"token": text, "tokenId": 1, "logProbability": _log(p)} for text, p in drawn.likeliest]
            candidate["logprobsResult"] = {"topCandidates": [{"candidates": top}], "chosenCandidates": top[:1]}
        return {"candidates": [candidate], "usageMetadata": usage, "modelVersion": self.model}


def _log(p: float) -> float:
    # APIs write a large negative number for what is impossible.
    return math.log(p) if p > 0 else -9999.0


API_KINDS: Mapping[str, type[Api]] = {"openai": OpenAIApi, "anthropic": AnthropicApi, "gemini": GeminiApi}

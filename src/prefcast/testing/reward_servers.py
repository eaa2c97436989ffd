"""Strict fakes of the servers that serve reward models: vLLM, SGLang, Text Embeddings Inference (TEI) and OpenRLHF.

    with FakeVllm(compute, tokenizer) as server:
        scorer = ScorerInfo.open(server.url, Options(protocol="vllm", tokenizer=folder))

A fake is a real HTTP server on this machine. It takes and gives what the real server's published schema says: a missing field
or a value of a wrong type is refused with the real one's status. The real servers ignore fields that they do not know; a fake
ignores them too, and lists them in `ignored`. `compute` gives the raw outputs of token sequences, for example those of a tiny
network. `faults` can be changed at any time. The fake counts what it answered.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from prefcast.testing.serving import Compute, Encodes, Refusal, RewardServer

__all__ = ["FakeOpenRlhf", "FakeSglang", "FakeTei", "FakeVllm"]


class FakeVllm(RewardServer):
    """vLLM, started with `--runner pooling`. With `tokenwise` the model has a score for each token: it has /pooling and no
    /classify. Unknown fields are ignored, as the real one does, so that an old client's `activation` changes nothing."""

    def __init__(self, compute: Compute, tokenizer: Encodes, *, tokenwise: bool = False, **more: Any) -> None:
        self.tokenwise = tokenwise
        super().__init__(compute, tokenizer, **more)

    def route(self, method: str, path: str, data: Any, scored: list[tuple[int, ...]]) -> tuple[Any, dict[str, str]]:
        if (method, path) == ("GET", "/v1/models"):
            entry = {"id": self.model, "object": "model", "root": self.root, "max_model_len": self.limit}
            return {"object": "list", "data": [entry]}, {}
        if (method, path) == ("POST", "/tokenize"):
            said = self._fields(data)
            ids = self._sequences(said)[0][0]
            return {"count": len(ids), "max_model_len": self.limit, "tokens": ids}, {}
        if (method, path) != ("POST", "/pooling" if self.tokenwise else "/classify"):
            raise self.refuse(404, "Not Found", "NotFoundError")
        said = self._fields(data)
        sequences = self._sequences(said)
        known = ("use_activation",) if self.faults.knows is None else self.faults.knows
        activated = not any(said.get(name) is False for name in known)
        found, tokens = self.outputs(sequences, activated=activated, scored=scored)
        rows = [
            self._row(index, each, len(ids))
            for index, (each, (ids, _)) in enumerate(zip(found, sequences, strict=True))
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0, "prompt_tokens_details": None}
        return {"id": "fake", "object": "list", "created": 0, "model": self.model, "data": rows, "usage": usage}, {}

    def _row(self, index: int, outputs: list[float], tokens: int) -> dict[str, Any]:
        if self.tokenwise:
            return {"index": index, "object": "pooling", "data": [[0.5]] * (tokens - 1) + [outputs]}
        label = self.names[outputs.index(max(outputs))]
        return {"index": index, "label": label, "probs": outputs, "num_classes": len(outputs)}

    def _fields(self, data: Any) -> dict[str, Any]:
        flags = ("add_special_tokens", "add_generation_prompt", "continue_final_message")
        known: dict[str, Callable[[Any], bool]] = {
            "model": lambda value: value is None or isinstance(value, str),
            "input": _is_input,
            "messages": _are_messages,
            "user": _is_text,
            "request_id": _is_text,
            "task": _is_text,
            "chat_template": _is_text,
            "priority": _is_int,
            "truncate_prompt_tokens": lambda value: value is None or (_is_int(value) and value >= -1),
            "truncation_side": lambda value: value in (None, "left", "right"),
            **dict.fromkeys(flags, lambda value: isinstance(value, bool)),
        }
        switches = ("use_activation",) if self.faults.knows is None else self.faults.knows
        known |= dict.fromkeys(switches, lambda value: value is None or isinstance(value, bool))
        said = self.fields(data, known)
        if ("input" in said) == ("messages" in said):
            raise self.wrong("give input or messages")
        if said.get("model") not in (None, self.model):
            raise self.refuse(404, f"The model `{said['model']}` does not exist.", "NotFoundError")
        if self.faults.refuses is not None and self.faults.refuses in json.dumps(data):
            raise self.wrong("this text is refused")
        return said

    def _sequences(self, said: Mapping[str, Any]) -> list[tuple[list[int], list[int]]]:
        if "messages" in said:
            if self.render is None:
                raise self.wrong("the tokenizer has no chat template")
            text = self.render(said["messages"])
            sequences = [self.encoded([text], special=said.get("add_special_tokens", False))]
        else:
            given = said["input"]
            rows = [given] if isinstance(given, str) or isinstance(given[0], int) else given
            special = said.get("add_special_tokens", True)
            sequences = [
                self.encoded([row], special=special) if isinstance(row, str) else (list(row), [0] * len(row))
                for row in rows
            ]
        cut = said.get("truncate_prompt_tokens")
        return [(ids[-cut:], types[-cut:]) if cut else (ids, types) for ids, types in sequences]


class FakeSglang(RewardServer):
    """SGLang, started with `--is-embedding`: its native /classify gives raw rewards. Its /v1/classify, which makes
    probabilities, is there too: of one label that is always 1."""

    def route(self, method: str, path: str, data: Any, scored: list[tuple[int, ...]]) -> tuple[Any, dict[str, str]]:
        if (method, path) == ("GET", "/get_model_info"):
            return {"model_path": self.root, "tokenizer_path": self.root, "is_generation": False}, {}
        if method not in ("POST", "PUT") or path not in ("/classify", "/v1/classify"):
            raise Refusal(404, {"detail": "Not Found"})
        if path == "/v1/classify":
            said = self.fields(data, {"model": _is_text, "input": _is_input}, ("model", "input"))
            found, tokens = self.outputs([self.encoded([said["input"]], special=True)], activated=True, scored=scored)
            return {"object": "list", "data": [{"index": 0, "probs": found[0], "num_classes": len(found[0])}]}, {}
        said = self.fields(data, {"text": _is_input, "input_ids": _is_input, "rid": lambda value: True})
        if ("text" in said) == ("input_ids" in said):
            raise self.wrong("Either text or input_ids should be provided.")
        given: Any = said.get("text", said.get("input_ids"))
        single = isinstance(given, str) or isinstance(given[0], int)
        rows = [given] if single else given
        sequences = [
            self.encoded([row], special=True) if isinstance(row, str) else (list(row), [0] * len(row)) for row in rows
        ]
        found, tokens = self.outputs(sequences, activated=False, scored=scored)
        more = tokens - sum(len(ids) for ids, _ in sequences)
        listed = [
            {
                "embedding": each,
                "meta_info": {
                    "id": str(place),
                    "prompt_tokens": len(ids) + more // len(sequences),
                    "finish_reason": {"type": "length", "length": 0},
                },
            }
            for place, (each, (ids, _)) in enumerate(zip(found, sequences, strict=True))
        ]
        return listed[0] if single else listed, {}

    def activation(self) -> str:
        return "softmax"

    def too_long(self, tokens: int) -> Refusal:
        return self.refuse(
            400, f"The input ({tokens} tokens) is longer than the model's context length ({self.limit} tokens)."
        )

    @staticmethod
    def error(status: int, message: str, kind: str) -> Any:
        return {"error": {"message": message}}


class FakeTei(RewardServer):
    """Text Embeddings Inference 1.9: two texts in a list are one pair, answers of several labels come largest first, and
    requests hold 32 inputs at most."""

    most: ClassVar[int] = 32
    most_bytes: ClassVar[int] = 2_000_000

    def route(self, method: str, path: str, data: Any, scored: list[tuple[int, ...]]) -> tuple[Any, dict[str, str]]:
        if (method, path) == ("GET", "/info"):
            names = {str(index): name for index, name in enumerate(self.names)}
            kind = "reranker" if len(names) == 1 else "classifier"
            about = {"id2label": names, "label2id": {name: int(index) for index, name in names.items()}}
            return {
                "model_id": self.root,
                "model_sha": None,
                "model_dtype": "float32",
                "model_type": {kind: about},
                "max_concurrent_requests": 512,
                "max_input_length": self.limit,
                "max_batch_tokens": 16384,
                "max_client_batch_size": self.most,
                "auto_truncate": True,
                "version": "1.9.3",
            }, {}
        if (method, path) == ("POST", "/tokenize"):
            said = self.fields(
                data, {"inputs": _is_input, "add_special_tokens": lambda value: isinstance(value, bool)}, ["inputs"]
            )
            ids = self.encoded([said["inputs"]], special=said.get("add_special_tokens", True))[0]
            ids = self.first_token() + ids if self.faults.adds_first else ids
            return [[{"id": each, "text": "", "special": False, "start": None, "stop": None} for each in ids]], {}
        if (method, path) != ("POST", "/predict"):
            raise Refusal(404, None)
        if len(json.dumps(data)) > self.most_bytes:
            raise self.refuse(413, "length limit exceeded", "Validation")
        flags: Callable[[Any], bool] = lambda value: value is None or isinstance(value, bool)  # noqa: E731
        said = self.fields(data, {"inputs": lambda value: True, "truncate": flags, "raw_scores": flags}, ["inputs"])
        single, rows = self._inputs(said["inputs"])
        if len(rows) > self.most:
            raise self.refuse(413, f"batch size {len(rows)} > maximum allowed batch size {self.most}", "Validation")
        if self.faults.refuses is not None and any(self.faults.refuses in text for row in rows for text in row):
            raise self.refuse(422, "this text is refused", "Tokenizer")
        sequences = [self.encoded(row, special=True) for row in rows]
        if said.get("truncate") is not False:
            sequences = [(ids[: self.limit], types[: self.limit]) for ids, types in sequences]
        known = ("raw_scores",) if self.faults.knows is None else self.faults.knows
        activated = not any(said.get(name) is True for name in known)
        found, tokens = self.outputs(sequences, activated=activated, scored=scored)
        listed: list[list[dict[str, Any]]] = [
            sorted(
                ({"score": score, "label": label} for score, label in zip(row, self.names, strict=True)),
                key=lambda each: float(each["score"]),
                reverse=True,
            )
            for row in found
        ]
        return listed[0] if single else listed, {"x-compute-type": "cpu", "x-compute-tokens": str(tokens)}

    def _inputs(self, given: Any) -> tuple[bool, list[list[str]]]:
        if isinstance(given, str):
            return True, [[given]]
        if not isinstance(given, list) or not given:
            raise self.wrong("a string, a pair of strings or a batch of mixed strings and pairs")
        if isinstance(given[0], str):
            if len(given) > 2 or not all(isinstance(each, str) for each in given):
                raise self.wrong("invalid length, expected a pair")
            return True, [given]
        if not all(isinstance(row, list) and len(row) in (1, 2) and all(map(_is_text, row)) for row in given):
            raise self.wrong("a sequence is a list of one string or two")
        return False, given

    def wrong(self, message: str) -> Refusal:
        return Refusal(422, f"Failed to deserialize the JSON body into the target type: {message}")

    def too_long(self, tokens: int) -> Refusal:
        return self.refuse(413, f"`inputs` must have less than {self.limit} tokens. Given: {tokens}", "Validation")

    @staticmethod
    def error(status: int, message: str, kind: str) -> Any:
        return {"error": message, "error_type": kind}


class FakeOpenRlhf(RewardServer):
    """OpenRLHF's reward server: texts are read as they are, and cut at `limit` tokens without a word. A body that it cannot use
    is a 500."""

    def route(self, method: str, path: str, data: Any, scored: list[tuple[int, ...]]) -> tuple[Any, dict[str, str]]:
        if (method, path) != ("POST", "/get_reward"):
            raise Refusal(404, {"detail": "Not Found"})
        texts: Callable[[Any], bool] = lambda value: isinstance(value, list) and all(map(_is_text, value))  # noqa: E731
        lists: Callable[[Any], bool] = lambda value: isinstance(value, list)  # noqa: E731
        said = self.fields(data, {"query": texts, "prompts": lists, "labels": lists}, ["query"])
        if self.faults.refuses is not None and any(self.faults.refuses in text for text in said["query"]):
            raise self.refuse(400, "this text is refused")
        rows = [
            f"{text}</s>" if self.faults.ends_texts and not text.endswith("</s>") else text for text in said["query"]
        ]
        sequences = [self.encoded([text], special=False) for text in rows]
        sequences = [(ids[: self.limit], types[: self.limit]) for ids, types in sequences]
        found, _ = self.outputs(sequences, activated=False, scored=scored)
        rewards = [row[0] for row in found]
        return {"rewards": rewards, "scores": rewards, "extra_logs": {"dummy_scores": rewards}}, {}

    def wrong(self, message: str) -> Refusal:
        return Refusal(500, "Internal Server Error")

    @staticmethod
    def error(status: int, message: str, kind: str) -> Any:
        return {"detail": message}


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_input(value: Any) -> bool:
    """A text, texts, token ids, or lists of them; none of them empty."""
    if isinstance(value, str):
        return True
    if not isinstance(value, list) or not value:
        return False
    if all(map(_is_text, value)) or all(map(_is_int, value)):
        return True
    return all(isinstance(row, list) and row and all(map(_is_int, row)) for row in value)


def _are_messages(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(each, dict) and _is_text(each.get("role")) and _is_text(each.get("content")) for each in value
        )
    )

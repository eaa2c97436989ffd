"""What the servers understand: the body of a request for each protocol, and the reading of its answer.

The forms are those of the projects' own sources: vLLM 0.22 (`/classify`, `/pooling`), SGLang (native `/classify`), Text
Embeddings Inference 1.9 (`/predict`), and OpenRLHF 0.11 (`/get_reward`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from prefcast.errors import UsageError, excerpt
from prefcast.scorers.remote import PROTOCOLS

__all__ = ["About", "Item", "Protocol", "Reply", "UnreadableError", "Vllm", "protocol_of"]

Numbers = NDArray[np.float64]
# Asks the server: (method, path, body) to the JSON of its answer, or None where it has no such path.
Get = Callable[[str, str], Any]
# A token-wise model gives one row a token; more than that is no score.
_MOST_ROWS, _MOST_LABELS = 2_000_000, 64


class UnreadableError(ValueError):
    """An answer that does not have the form of the protocol."""


@dataclass(frozen=True)
class Item:
    """One sequence that is scored: its token ids, the text or the two texts that they stand for, or messages. `ids` may be
    known although the protocol takes texts."""

    ids: tuple[int, ...] | None = None
    texts: tuple[str, ...] = ()
    messages: tuple[Mapping[str, str], ...] = ()

    @property
    def key(self) -> str:
        """Equal for equal items only."""
        return repr((self.ids, self.texts, [sorted(each.items()) for each in self.messages]))

    @property
    def bytes(self) -> int:
        """About how many bytes it takes in a request."""
        texts = (*self.texts, *(message["content"] for message in self.messages))
        return 7 * len(self.ids or ()) + sum(map(len, texts)) * 6 + 64 * len(self.messages)


@dataclass(frozen=True)
class About:
    """What a server says of its model: its name, where it was loaded from, its revision, how many tokens it reads at most, and
    the names of its outputs."""

    model: str = ""
    root: str = ""
    revision: str = ""
    limit: int | None = None
    labels: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Reply:
    """The outputs (n, width) of n sequences; how many tokens the server read of all or of each, where it says so; and the name
    of each sequence's largest output."""

    outputs: list[Numbers]
    tokens: int | None = None
    labels: list[str | None] = field(default_factory=list)


class Protocol(ABC):
    """One kind of server."""

    name: ClassVar[str]
    # Whether it takes token ids; otherwise it takes texts.
    takes_ids: ClassVar[bool] = False
    # Whether it takes two texts that its tokenizer joins.
    takes_two: ClassVar[bool] = False
    takes_messages: ClassVar[bool] = False
    # How many sequences a request may hold, and about how many bytes.
    most: int = 256
    most_bytes: int = 8_000_000
    # The fields of a request that ask for raw scores, by version; the probe finds the one that works.
    switches: ClassVar[tuple[str, ...]] = ()
    # What starts the server so that its scores are raw.
    start: ClassVar[str] = ""

    def __init__(self, served: str | None = None) -> None:
        self.served = served
        self.switch: str | None = self.switches[0] if self.switches else None
        self.about = About(model=served or "")

    @abstractmethod
    def request(self, items: Sequence[Item], raw: bool = True) -> tuple[str, dict[str, Any]]:
        """The path and the body that ask for the scores of `items`; without `raw`, as the server gives them by itself."""

    @abstractmethod
    def read(self, data: Any, headers: Mapping[str, str], items: Sequence[Item]) -> Reply:
        """The scores in an answer. Raises UnreadableError."""

    def introduce(self, get: Get) -> About:
        """What the server says of itself; `get` fetches a path. Raises UsageError where `served` must be named."""
        return self.about


def protocol_of(name: str | None, served: str | None = None) -> Protocol:
    """The protocol of that name. Raises UsageError."""
    kinds: dict[str, type[Protocol]] = {kind.name: kind for kind in (Vllm, Sglang, Tei, OpenRlhf)}
    if name is None:
        raise UsageError(f"say what kind of server it is: --protocol {'|'.join(PROTOCOLS)}")
    if name not in kinds:
        raise UsageError(f"unknown protocol {excerpt(name)}; there are {', '.join(PROTOCOLS)}")
    return kinds[name](served)


def _object(data: Any, *names: str) -> Mapping[str, Any]:
    if not isinstance(data, Mapping) or any(name not in data for name in names):
        raise UnreadableError(f"expected an object with {', '.join(names)}, found {excerpt(data)}")
    return data


def _list(data: Any, n: int | None = None) -> list[Any]:
    if not isinstance(data, list) or (n is not None and len(data) != n):
        count = "" if n is None else f" of {n}"
        raise UnreadableError(f"expected a list{count}, found {excerpt(data)}")
    return data


def _text(data: Any) -> str:
    return data[:500] if isinstance(data, str) else ""


def _count(data: Any) -> int | None:
    return data if isinstance(data, int) and not isinstance(data, bool) and data >= 0 else None


def _numbers(data: Any) -> Numbers:
    """Scores of one sequence; null is nan, as JSON has no other word for it."""
    values = [data] if isinstance(data, int | float) or data is None else data
    if not isinstance(values, list) or not values or len(values) > _MOST_ROWS:
        raise UnreadableError(f"expected scores, found {excerpt(data)}")
    if isinstance(values[-1], list):
        # A row for each token: the last one is the score.
        values = values[-1]
    if not all(each is None or (isinstance(each, int | float) and not isinstance(each, bool)) for each in values):
        raise UnreadableError(f"expected scores, found {excerpt(data)}")
    try:
        return np.array([math.nan if each is None else float(each) for each in values])
    except OverflowError:
        raise UnreadableError(f"expected scores, found {excerpt(data)}") from None


def _listed_models(get: Get, served: str | None) -> Mapping[str, Any]:
    """The entry of /v1/models that is meant."""
    data = get("GET", "/v1/models")
    listed = [
        each for each in _list(_object(data, "data")["data"]) if isinstance(each, Mapping) and _text(each.get("id"))
    ]
    names = [_text(each["id"]) for each in listed]
    if served is not None:
        if served not in names:
            raise UsageError(f"--served-name: the server has no model {excerpt(served)}; it has {_named(names)}")
        return listed[names.index(served)]
    if len(listed) != 1:
        raise UsageError(f"the server has {len(names)} models; say which with --served-name: {_named(names)}")
    return listed[0]


def _named(names: Sequence[str]) -> str:
    return ", ".join(map(excerpt, names[:8])) or "none"


class Vllm(Protocol):
    """vLLM, started with `--runner pooling --convert classify`. It takes token ids or messages."""

    name = "vllm"
    takes_ids = takes_messages = True
    # Fields that a version does not know are ignored without a word.
    switches = ("use_activation", "activation", "softmax")
    start = "vllm serve MODEL --runner pooling --convert classify"

    def __init__(self, served: str | None = None) -> None:
        super().__init__(served)
        # Models with a score for each token have /pooling, and no /classify.
        self.tokenwise = False

    def request(self, items: Sequence[Item], raw: bool = True) -> tuple[str, dict[str, Any]]:
        body: dict[str, Any] = {"model": self.about.model}
        if items[0].messages:
            body |= {"messages": [dict(each) for each in items[0].messages], "add_special_tokens": False}
        else:
            body |= {"input": [list(item.ids or ()) for item in items], "add_special_tokens": False}
        if raw and self.switch is not None:
            body[self.switch] = False
        if self.tokenwise:
            return "/pooling", {**body, "task": "token_classify"}
        return "/classify", body

    def read(self, data: Any, headers: Mapping[str, str], items: Sequence[Item]) -> Reply:
        rows = _list(_object(data, "data")["data"], len(items))
        placed: dict[int, tuple[Numbers, str | None]] = {}
        for place, row in enumerate(rows):
            said = _object(row, "data" if self.tokenwise else "probs")
            index = _count(said.get("index", place))
            if index is None or index >= len(rows) or index in placed:
                raise UnreadableError(f"the answers are numbered {excerpt(said.get('index'))}")
            label = said.get("label")
            placed[index] = _numbers(said["data" if self.tokenwise else "probs"]), _text(label) or None
        usage = data.get("usage")
        tokens = _count(usage.get("prompt_tokens")) if isinstance(usage, Mapping) else None
        ordered = [placed[index] for index in range(len(rows))]
        return Reply([numbers for numbers, _ in ordered], tokens, [label for _, label in ordered])

    def introduce(self, get: Get) -> About:
        said = _listed_models(get, self.served)
        self.about = About(_text(said["id"]), _text(said.get("root")), limit=_count(said.get("max_model_len")))
        return self.about


class Sglang(Protocol):
    """SGLang, started with `--is-embedding`. Its native /classify gives raw rewards; its /v1/classify, which makes
    probabilities of them, is never asked."""

    name = "sglang"
    takes_ids = True
    start = "python -m sglang.launch_server --model-path MODEL --is-embedding"

    def request(self, items: Sequence[Item], raw: bool = True) -> tuple[str, dict[str, Any]]:
        return "/classify", {"input_ids": [list(item.ids or ()) for item in items]}

    def read(self, data: Any, headers: Mapping[str, str], items: Sequence[Item]) -> Reply:
        rows = [_object(row, "embedding") for row in _list([data] if isinstance(data, Mapping) else data, len(items))]
        metas = [row.get("meta_info") for row in rows]
        counts = [_count(meta.get("prompt_tokens")) if isinstance(meta, Mapping) else None for meta in metas]
        known = [count for count in counts if count is not None]
        return Reply([_numbers(row["embedding"]) for row in rows], sum(known) if len(known) == len(rows) else None)

    def introduce(self, get: Get) -> About:
        said = get("GET", "/get_model_info")
        if said is None:
            said = get("GET", "/model_info")
        if not isinstance(said, Mapping):
            return self.about
        if said.get("is_generation") is True:
            raise UsageError(f"the server generates texts; for rewards start it with {self.start}")
        root = _text(said.get("model_path"))
        self.about = About(self.served or root, root, _text(said.get("weight_version")))
        return self.about


class Tei(Protocol):
    """Text Embeddings Inference. It takes texts, and its tokenizer puts the first and last tokens around them."""

    name = "tei"
    takes_two = True
    # Its own defaults: 32 inputs and 2,000,000 bytes.
    most, most_bytes = 32, 1_500_000
    switches = ("raw_scores",)
    start = "text-embeddings-router --model-id MODEL --auto-truncate false"

    def request(self, items: Sequence[Item], raw: bool = True) -> tuple[str, dict[str, Any]]:
        # A list in a list also for one text: two texts in a plain list would be one pair.
        return "/predict", {"inputs": [list(item.texts) for item in items], "truncate": False, "raw_scores": raw}

    def read(self, data: Any, headers: Mapping[str, str], items: Sequence[Item]) -> Reply:
        outputs: list[Numbers] = []
        labels: list[str | None] = []
        for row in _list(data, len(items)):
            said = [_object(each, "score", "label") for each in _list(row)]
            # The largest score comes first, whatever its label.
            names = [_text(each["label"]) for each in said]
            order = self.about.labels or (tuple(names) if len(names) == 1 else ())
            if sorted(names) != sorted(order):
                raise UnreadableError(f"the labels are {excerpt(names)}, but /info names {excerpt(list(order))}")
            by_name = {name: _numbers(each["score"])[0] for name, each in zip(names, said, strict=True)}
            outputs.append(np.array([by_name[name] for name in order]))
            labels.append(names[0])
        told = headers.get("x-compute-tokens", "")
        return Reply(outputs, int(told) if told.isascii() and told.isdigit() and len(told) < 12 else None, labels)

    def introduce(self, get: Get) -> About:
        said = _object(get("GET", "/info"), "model_id")
        kind = said.get("model_type")
        inner = next(iter(kind.values()), None) if isinstance(kind, Mapping) else None
        names = inner.get("id2label") if isinstance(inner, Mapping) else None
        if not isinstance(names, Mapping) or not 0 < len(names) <= _MOST_LABELS:
            raise UsageError(f"the server's model is no classifier ({excerpt(kind)}); it gives no scores")
        labels = tuple(_text(names.get(str(index))) for index in range(len(names)))
        if len(set(labels)) != len(labels) or not all(labels):
            raise UsageError(f"the server's /info does not name each output once: {excerpt(dict(names))}")
        model, limit = _text(said["model_id"]), _count(said.get("max_input_length"))
        self.about = About(self.served or model, model, _text(said.get("model_sha")), limit, labels)
        batch = _count(said.get("max_client_batch_size"))
        if batch:
            self.most = min(self.most, batch)
        return self.about


class OpenRlhf(Protocol):
    """OpenRLHF's reward server, or any server of its form. It takes texts with special tokens and says nothing of itself."""

    name = "openrlhf"
    start = "python -m openrlhf.cli.serve_rm --reward_pretrain MODEL"

    def request(self, items: Sequence[Item], raw: bool = True) -> tuple[str, dict[str, Any]]:
        texts = [item.texts[0] for item in items]
        # Servers of this form may read the prompts and labels, and some fail without them.
        return "/get_reward", {"query": texts, "prompts": [""] * len(texts), "labels": [None] * len(texts)}

    def read(self, data: Any, headers: Mapping[str, str], items: Sequence[Item]) -> Reply:
        return Reply([_numbers(each) for each in _list(_object(data, "rewards")["rewards"], len(items))])

"""The requests of other reward servers: `/get_reward` as OpenRLHF sends it, `/classify` and `/score` as vLLM takes them.

Texts of these requests are in the model's template already. These forms have no place for the error of one text: a text
that cannot be scored refuses the whole request.
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, Field, Tag

from prefcast.scorers.base import Conversation
from prefcast.service.limits import Limits
from prefcast.service.reading import conversation_of, validated
from prefcast.service.refusals import Refusal
from prefcast.service.schema import In, Messages, Size, Text, by_type

__all__ = ["FORMS", "Form"]

_Many = Annotated[list[Text], Size("pairs")]
_Texts = Annotated[
    Annotated[Text, Tag("(text)")] | Annotated[_Many, Tag("(texts)")],
    by_type("expected a text or a list of texts", {str: "(text)", list: "(texts)"}),
]
_Ids = Annotated[list[int], Size("text_characters", 1)]
_OneInput = Annotated[
    Annotated[Text, Tag("(text)")] | Annotated[int, Tag("(id)")] | Annotated[_Ids, Tag("(ids)")],
    by_type("expected a text, a token id or a list of token ids", {str: "(text)", int: "(id)", list: "(ids)"}),
]
_Ignored = Annotated[Any, Field(default=None, description="Has no effect.")]


class RewardRequest(In):
    """Texts to score, as OpenRLHF sends them."""

    query: Annotated[_Many, Field(description="Prompt and answer of each, in the model's template.")]
    prompts: _Ignored = None
    labels: _Ignored = None


class Rewards(BaseModel):
    """One reward for each text."""

    rewards: list[float]
    scores: list[float]
    extra_logs: dict[str, list[float]] = {}


class _OfVllm(In):
    model: str | None = Field(default=None, description="Is repeated in the answer. The server has one model.")
    use_activation: bool | None = Field(
        default=None, description="false: the score as it is. Otherwise the sigmoid of the score, as vLLM gives it."
    )
    user: _Ignored = None
    priority: _Ignored = None
    request_id: _Ignored = None
    encoding_format: _Ignored = None


class ClassifyRequest(_OfVllm):
    """Texts, token ids, or one conversation."""

    input: Annotated[
        Annotated[Text, Tag("(text)")]
        | Annotated[
            Annotated[list[_OneInput], Size("text_characters", 1)],
            Tag("(list)"),
        ]
        | Annotated[None, Tag("(none)")],
        by_type(
            "expected a text, token ids, or a list of one of them",
            {str: "(text)", list: "(list)", type(None): "(none)"},
        ),
        Field(description="A text or token ids, or a list of texts or of lists of token ids; in the model's template."),
    ] = None
    messages: Messages | None = Field(
        default=None, description="One conversation. The server applies the model's template."
    )
    add_special_tokens: bool | None = Field(
        default=None, description="Whether the tokenizer adds its own special tokens to a text. The default is true."
    )


class Class(BaseModel):
    index: int
    label: str
    probs: list[float]
    num_classes: int


class _Listed(BaseModel):
    id: str
    object: str = "list"
    created: int
    model: str


class Classes(_Listed):
    """One score for each text, in the place of a probability."""

    data: list[Class]


class ScoreTextsRequest(_OfVllm):
    """Prompts with their answers. One prompt may have several answers."""

    text_1: _Texts = Field(description="The prompt, or one prompt for each answer.")
    text_2: _Texts = Field(description="The answers.")


class TextScore(BaseModel):
    index: int
    object: str = "score"
    score: float


class TextScores(_Listed):
    """One score for each answer."""

    data: list[TextScore]


@dataclass(frozen=True)
class Form:
    """How a request is read and answered. `items` gives what is scored; `reply` makes the answer of the scores."""

    takes: type[BaseModel]
    gives: type[BaseModel]
    field: str
    items: Callable[[Any, dict[str, Any], Limits], list[Conversation]]
    reply: Callable[[Any, Sequence[float], str], BaseModel]

    def read(self, document: dict[str, Any], limits: Limits) -> tuple[Any, list[Conversation]]:
        """The request, and what is scored. Raises Refusal."""
        asked = validated(self.takes, document, limits)
        return asked, self.items(asked, document, limits)


def _queries(asked: RewardRequest, document: dict[str, Any], limits: Limits) -> list[Conversation]:
    return [{"text": text} for text in asked.query]


def _rewards(asked: RewardRequest, scores: Sequence[float], model: str) -> Rewards:
    return Rewards(rewards=list(scores), scores=list(scores))


def _inputs(asked: ClassifyRequest, document: dict[str, Any], limits: Limits) -> list[Conversation]:
    if (asked.input is None) == (asked.messages is None):
        raise Refusal("invalid", "expected either input or messages", "input")
    if asked.messages is not None:
        return [conversation_of(document["messages"], limits, "messages")]
    given = [asked.input] if isinstance(asked.input, str) else asked.input or []
    if all(isinstance(each, int) for each in given):
        return [{"ids": given}]
    if len({type(each) for each in given}) > 1:
        raise Refusal("invalid", "mixes texts and token ids; expected one kind", "input")
    if len(given) > limits.pairs:
        raise Refusal("too_long", f"has {len(given)} items; at most {limits.pairs} are taken", "input")
    frame = asked.add_special_tokens is not False
    return [{"text": each, "frame": frame} if isinstance(each, str) else {"ids": each} for each in given]


def _classes(asked: ClassifyRequest, scores: Sequence[float], model: str) -> Classes:
    data = [
        Class(index=number, label="LABEL_0", probs=[score], num_classes=1)
        for number, score in enumerate(_activated(asked, scores))
    ]
    return Classes(data=data, **_head("classify", asked, model))


def _exchanges(asked: ScoreTextsRequest, document: dict[str, Any], limits: Limits) -> list[Conversation]:
    first, second = ([each] if isinstance(each, str) else each for each in (asked.text_1, asked.text_2))
    if len(first) not in (1, len(second)):
        raise Refusal(
            "invalid", f"has {len(first)} texts and text_2 has {len(second)}; expected one, or as many", "text_1"
        )
    prompts = first * len(second) if len(first) == 1 else first
    return [
        [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        for prompt, answer in zip(prompts, second, strict=True)
    ]


def _text_scores(asked: ScoreTextsRequest, scores: Sequence[float], model: str) -> TextScores:
    data = [TextScore(index=number, score=score) for number, score in enumerate(_activated(asked, scores))]
    return TextScores(data=data, **_head("score", asked, model))


def _activated(asked: _OfVllm, scores: Sequence[float]) -> list[float]:
    if asked.use_activation is False:
        return list(scores)
    return [1 / (1 + math.exp(-score)) if score > 0 else math.exp(score) / (1 + math.exp(score)) for score in scores]


def _head(kind: str, asked: _OfVllm, model: str) -> dict[str, Any]:
    return {"id": f"{kind}-{uuid.uuid4().hex}", "created": int(time.time()), "model": asked.model or model}


FORMS = {
    "/get_reward": Form(RewardRequest, Rewards, "query", _queries, _rewards),
    "/classify": Form(ClassifyRequest, Classes, "input", _inputs, _classes),
    "/score": Form(ScoreTextsRequest, TextScores, "text_2", _exchanges, _text_scores),
}

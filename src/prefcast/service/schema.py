"""The documents that go in and out, as pydantic models: the OpenAPI document is made of them.

What a text or a list of messages holds is read as files are (`formats`); the models here say its form.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictBool, WithJsonSchema

from prefcast.service.limits import Limits

__all__ = [
    "ConversationPair",
    "Error",
    "ErrorDetail",
    "Forecast",
    "ForecastMany",
    "Forecasts",
    "Health",
    "Models",
    "RankRequest",
    "Ranking",
    "ScoreRequest",
    "Scores",
    "TextPair",
]

_LIMITS = Limits()
_TEXT = {"type": "string", "maxLength": _LIMITS.text_characters}
_TURNS = {"type": "array", "items": {"anyOf": [_TEXT, {"type": "null"}]}, "minItems": 1, "maxItems": _LIMITS.turns}
_CONTENT = {
    "anyOf": [
        _TEXT,
        {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"type": {"type": "string", "const": "text"}, "text": _TEXT},
                "required": ["type", "text"],
            },
        },
        {"type": "null"},
    ]
}
_MESSAGES = {
    "type": "array",
    "minItems": 2,
    "maxItems": 2 * _LIMITS.turns + 1,
    "items": {
        "type": "object",
        "properties": {"role": {"type": "string", "enum": ["system", "user", "assistant"]}, "content": _CONTENT},
        "required": ["role", "content"],
    },
}

Texts = Annotated[Any, WithJsonSchema({"anyOf": [_TEXT, _TURNS], "description": "A text, or one text a turn."})]
Messages = Annotated[
    Any,
    WithJsonSchema(
        {**_MESSAGES, "description": "User and assistant in turn, the assistant last; a system message may begin."}
    ),
]
# 64 bits: what every reader of JSON keeps exactly.
Id = Annotated[
    Any,
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "maxLength": 1000},
                {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1},
                {"type": "null"},
            ],
            "description": "Yours; it comes back with the answer.",
        }
    ),
]


class _In(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Asked(_In):
    id: Id = None
    explain: StrictBool = Field(False, description="Say what moved the forecast.")
    both_orders: StrictBool = Field(False, description="Forecast the pair a second time with A and B exchanged.")


class TextPair(_Asked):
    """Two responses to the same prompts."""

    prompt: Texts
    response_a: Texts
    response_b: Texts


class ConversationPair(_Asked):
    """Two conversations with the same prompts, as lists of messages."""

    conversation_a: Messages
    conversation_b: Messages


_ITEM = {
    "anyOf": [
        {"$ref": "#/components/schemas/TextPair"},
        {"$ref": "#/components/schemas/ConversationPair"},
        {"description": "Anything else gets an error in its place."},
    ]
}


class ForecastMany(_In):
    """Several pairs; `explain` and `both_orders` hold for all of them."""

    pairs: Annotated[
        list[Any], WithJsonSchema({"type": "array", "items": _ITEM, "minItems": 1, "maxItems": _LIMITS.pairs})
    ]
    explain: StrictBool = False
    both_orders: StrictBool = False


class ScoreRequest(_In):
    """Conversations to score, each a list of messages or a prompt with its response."""

    conversations: Annotated[
        list[Any],
        WithJsonSchema(
            {
                "type": "array",
                "minItems": 1,
                "maxItems": _LIMITS.pairs,
                "items": {
                    "anyOf": [
                        _MESSAGES,
                        {
                            "type": "object",
                            "properties": {
                                "prompt": {"anyOf": [_TEXT, _TURNS]},
                                "response": {"anyOf": [_TEXT, _TURNS]},
                            },
                            "required": ["prompt", "response"],
                            "additionalProperties": False,
                        },
                        {"description": "Anything else gets an error in its place."},
                    ]
                },
            }
        ),
    ]


class RankRequest(_In):
    """One prompt (or several turns) and n answers to it; each answer has as many turns as the prompt."""

    id: Id = None
    prompt: Texts
    responses: Annotated[
        list[Any],
        WithJsonSchema(
            {
                "type": "array",
                "minItems": 2,
                "maxItems": _LIMITS.responses,
                "items": {"anyOf": [_TEXT, _TURNS], "description": "A text, or one text a turn."},
            }
        ),
    ]


class ErrorDetail(BaseModel):
    type: str = Field(description="A word that programs can compare: invalid, too_long, too_busy, ...")
    field: str = Field(description="The field at fault, such as pairs.3.response_a; empty where it is none's.")
    message: str


class Error(BaseModel):
    """What every refusal looks like."""

    error: ErrorDetail


class Probabilities(BaseModel):
    """That people prefer A, prefer B, call it a tie; they sum to 1."""

    a: float
    b: float
    tie: float


class Interval(BaseModel):
    """Low and high of each probability: how far more labels could move this forecast."""

    level: float
    a: tuple[float, float]
    b: tuple[float, float]
    tie: tuple[float, float]


class Swapped(BaseModel):
    """The forecast of the exchanged pair, exchanged back; exact forecasters differ by rounding at most."""

    probabilities: Probabilities
    largest_difference: float


class CutText(BaseModel):
    """A text that was not read whole: only its first `head` and last `tail` characters (code points) were."""

    turn: int = Field(description="Counted from 0.")
    field: str = Field(json_schema_extra={"enum": ["prompt", "response_a", "response_b"]})
    characters: int
    head: int
    tail: int


class Truncation(BaseModel):
    """What was read of the pair: characters of prompts and responses together, and turns."""

    truncated: bool
    characters_kept: int
    characters: int
    turns_kept: int
    turns: int
    texts: list[CutText]


class FeatureValue(BaseModel):
    name: str
    a: float
    b: float


class Influence(BaseModel):
    """What one kind of feature did: the change of the probabilities against the same forecast without it."""

    name: str
    change: Probabilities
    margin: float
    tie: float
    values: list[FeatureValue]


class Forecast(BaseModel):
    """One pair's forecast; where `error` is set, the numbers are null."""

    id: str | int | None
    probabilities: Probabilities | None
    interval: Interval | None = Field(description="null where the forecaster has none.")
    margin: float | None = Field(description="Evidence for A over B; exchanging A and B negates it.")
    tie: float | None = Field(description="Evidence for a tie.")
    swapped: Swapped | None = Field(description="null unless both_orders was asked.")
    truncation: Truncation | None
    influences: list[Influence] | None = Field(
        description="The largest first; null unless explain was asked, empty where the forecaster cannot say."
    )
    error: ErrorDetail | None


class ForecasterSaid(BaseModel):
    """What answered."""

    name: str
    version: str = Field(description="Of prefcast.")
    budget: str = Field(description="What is read of a pair.")
    outcome_model: str
    interval_level: float | None
    explains: bool
    pointwise: bool = Field(description="Whether /v1/score can be asked.")


class Forecasts(BaseModel):
    forecasts: list[Forecast]
    forecaster: ForecasterSaid


class Score(BaseModel):
    score: float | None
    error: ErrorDetail | None


class Scores(BaseModel):
    scores: list[Score]
    forecaster: ForecasterSaid


class Compared(BaseModel):
    """Response number `a` against number `b`, counted from 0."""

    a: int
    b: int
    probabilities: Probabilities
    margin: float
    tie: float
    truncated: bool


class Ranking(BaseModel):
    """`order` has the positions of the responses, the best first; `strengths` is in the order of the request: the mean of
    P(wins) + P(tie) / 2 over the others."""

    id: str | int | None
    best: int
    order: list[int]
    strengths: list[float]
    pairwise: list[Compared]
    forecaster: ForecasterSaid


class BuiltIn(BaseModel):
    name: str
    title: str
    served: bool


class LimitsSaid(BaseModel):
    body_bytes: int
    text_characters: int
    turns: int
    pairs: int
    responses: int
    seconds: float


class Models(BaseModel):
    forecaster: ForecasterSaid
    models: list[BuiltIn]
    limits: LimitsSaid


class Health(BaseModel):
    status: str

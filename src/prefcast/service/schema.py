"""The documents that go in and out, as pydantic models: pydantic validates by them, and the OpenAPI document is made of them.

Their bounds are those of one server: validation takes its `Limits` as the context.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    GetPydanticSchema,
    RootModel,
    Tag,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError
from pydantic_core.core_schema import with_info_before_validator_function

from prefcast.pairs import clean


@dataclass(frozen=True)
class Size:
    """At least `least` items, and at most as many items or characters as the field `limit` of Limits allows. It is checked
    before the items are, so that a long list costs nothing."""

    limit: str
    least: int = 0

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return with_info_before_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        # openapi.py puts the number of its server in the place of the name.
        found = handler(core)
        bound = "Length" if found["type"] == "string" else "Items"
        return found | {f"max{bound}": self.limit} | ({f"min{bound}": self.least} if self.least else {})

    def _check(self, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, str | list):
            size, unit = len(value), "characters" if isinstance(value, str) else "items"
            if size < self.least:
                raise PydanticCustomError("invalid", f"has {size} {unit}; expected at least {self.least}")
            _at_most(getattr(info.context, self.limit), size, unit)
        return value


def _at_most(most: int, size: int, unit: str) -> None:
    if size > most:
        raise PydanticCustomError("too_long", f"has {size} {unit}; at most {most} are taken")


def by_type(expected: str, tags: Mapping[type, str]) -> Discriminator:
    """Which part of a union a value is validated by, so that there is one error and not one for each part."""
    return Discriminator(
        lambda value: tags.get(type(value)), custom_error_type="invalid", custom_error_message=expected
    )


def _turns(value: str | list[str | None]) -> list[str]:
    return [clean(turn or "") for turn in ([value] if isinstance(value, str) else value)]


def _bounded_parts(parts: list[Any], info: ValidationInfo) -> list[Any]:
    texts = [part.get("text") if isinstance(part, dict) else part for part in parts]
    limits: Any = info.context
    _at_most(limits.text_characters, sum(len(text) for text in texts if isinstance(text, str)), "characters")
    return parts


# Tags are in brackets, so that reading.py can tell them from the names of fields.
Text = Annotated[str, Size("text_characters")]
_TextOrTurns = Annotated[
    Annotated[Text, Tag("(text)")] | Annotated[list[Text | None], Size("turns", 1), Tag("(turns)")],
    by_type("expected a text, or a list of texts, one for each turn", {str: "(text)", list: "(turns)"}),
    AfterValidator(_turns),
]
# Either becomes a list of texts.
Texts = Annotated[
    list[str],
    GetPydanticSchema(lambda source, handler: handler(_TextOrTurns)),
    Field(description="A text, or a list of texts, one for each turn."),
]
# A text, or null.
OneText = Annotated[
    Annotated[Text, AfterValidator(clean), Tag("(text)")] | Annotated[None, Tag("(none)")],
    by_type("expected a text or null", {str: "(text)", type(None): "(none)"}),
]
# 64 bits: what every reader of JSON keeps exactly.
Id = Annotated[
    Annotated[str, Field(max_length=1000), BeforeValidator(clean), Tag("(text)")]
    | Annotated[int, Field(ge=-(2**63), le=2**63 - 1), Tag("(number)")]
    | Annotated[None, Tag("(none)")],
    by_type(
        "expected a text of at most 1000 characters, a whole number of 64 bits or null",
        {str: "(text)", int: "(number)", type(None): "(none)"},
    ),
    Field(description="Your name for the pair. The answer repeats it."),
]
# A part is read by `pairs.formats`, which also takes a plain text.
_Part = Annotated[
    Any,
    WithJsonSchema(
        {
            "type": "object",
            "properties": {"type": {"type": "string", "const": "text"}, "text": {"type": "string"}},
            "required": ["type", "text"],
        }
    ),
]


class Message(BaseModel):
    """One message of a conversation."""

    model_config = ConfigDict(strict=True)

    role: Literal["system", "user", "assistant"]
    content: (
        Annotated[
            Annotated[Text, Tag("(text)")] | Annotated[list[_Part], AfterValidator(_bounded_parts), Tag("(parts)")],
            by_type("expected a text or a list of text parts", {str: "(text)", list: "(parts)"}),
        ]
        | None
    )


class Messages(RootModel[Annotated[list[Message], Size("messages", 2)]]):
    """A conversation: user and assistant messages in turn, the assistant's last. A system message may come first."""

    model_config = ConfigDict(strict=True)


class In(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Named(BaseModel):
    id: Id = None


class _Asked(Named, In):
    explain: bool = Field(default=False, description="Whether to say which features moved the forecast.")
    both_orders: bool = Field(
        default=False, description="Whether to forecast the pair a second time with A and B exchanged."
    )


class _WithReference(In):
    reference: OneText = Field(
        default=None, description="A known good answer to the last prompt, for models that compare with one."
    )


class _WithSystem(In):
    system: OneText = Field(default=None, description="The system message before the first prompt.")


class TextPair(_Asked, _WithSystem, _WithReference):
    """Two responses to the same prompts."""

    prompt: Texts
    response_a: Texts
    response_b: Texts


class ConversationPair(_Asked, _WithReference):
    """Two conversations with the same prompts, as lists of messages."""

    conversation_a: Messages
    conversation_b: Messages


class Exchange(_WithSystem):
    """A prompt and a response to score."""

    prompt: Texts
    response: Texts


_ANYTHING = {"description": "For anything else, the answer has an error in the same place."}


def _items(*models: str) -> dict[str, Any]:
    return {"anyOf": [*({"$ref": f"#/components/schemas/{name}"} for name in models), _ANYTHING]}


class ForecastMany(In):
    """Several pairs. `explain` and `both_orders` apply to all of them."""

    pairs: Annotated[
        list[Annotated[Any, WithJsonSchema(_items("TextPair", "ConversationPair"))]],
        Size("pairs", 1),
    ]
    explain: bool = False
    both_orders: bool = False


class ScoreRequest(In):
    """Conversations to score. Each is a list of messages, or a prompt with its response."""

    conversations: Annotated[list[Annotated[Any, WithJsonSchema(_items("Messages", "Exchange"))]], Size("pairs", 1)]


class RankRequest(Named, _WithSystem, _WithReference):
    """One prompt and several responses to it. Each response has as many turns as the prompt."""

    prompt: Texts
    responses: Annotated[list[Texts], Size("responses", 2)]


class Out(BaseModel):
    """A part of an answer. It is made of an object that has its fields, or of a tuple of their values."""

    model_config = ConfigDict(from_attributes=True)

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return dict(zip(cls.model_fields, value, strict=True)) if isinstance(value, tuple) else value


class ErrorDetail(Out):
    type: str = Field(description="A word for programs: invalid, too_long, too_busy, ...")
    field: str = Field(description="The field at fault, such as pairs.3.response_a. Empty if no field is at fault.")
    message: str


class Error(BaseModel):
    """The body of every answer that is not 200."""

    error: ErrorDetail


class Probabilities(Out):
    """The probabilities that people prefer A, prefer B, or call it a tie. They sum to 1."""

    a: float
    b: float
    tie: float


class Interval(Out):
    """The lower and upper end for each probability: how far more labels could move this forecast."""

    level: float
    a: tuple[float, float]
    b: tuple[float, float]
    tie: tuple[float, float]


class Swapped(Out):
    """The forecast of the pair with A and B exchanged, exchanged back. For an exact forecaster the difference is rounding."""

    probabilities: Probabilities
    largest_difference: float


class CutText(Out):
    """A text of which only the first `head` and the last `tail` characters (code points) were read."""

    turn: int = Field(description="Counted from 0.")
    field: str = Field(json_schema_extra={"enum": ["prompt", "response_a", "response_b"]})
    characters: int
    head: int
    tail: int


class Truncation(Out):
    """How much of the pair was read, in characters of prompts and responses together and in turns."""

    truncated: bool
    characters_kept: int
    characters: int
    turns_kept: int
    turns: int
    texts: list[CutText]


class FeatureValue(Out):
    name: str
    a: float
    b: float


class Influence(Out):
    """The effect of one kind of feature: the forecast minus the forecast without that kind."""

    name: str
    change: Probabilities
    margin: float
    tie: float
    values: list[FeatureValue]


class Forecast(BaseModel):
    """The forecast of one pair. If `error` is set, the other fields but `id` are null."""

    id: str | int | None
    probabilities: Probabilities | None = None
    interval: Interval | None = Field(default=None, description="null if the forecaster has no intervals.")
    margin: float | None = Field(default=None, description="Evidence for A over B. Exchanging A and B negates it.")
    tie: float | None = Field(default=None, description="Evidence for a tie.")
    swapped: Swapped | None = Field(default=None, description="null unless the request had both_orders.")
    truncation: Truncation | None = None
    influences: list[Influence] | None = Field(
        default=None, description="The largest first. null without `explain`; empty if the forecaster cannot explain."
    )
    escalated: bool | None = Field(default=None, description="Whether the second tier of a cascade scored the pair.")
    handed_over: bool | None = Field(default=None, description="Whether the promise of agreement leaves it to people.")
    unlike: float | None = Field(
        default=None, description="How little the training data tell about such a pair: 1 for a typical one."
    )
    error: ErrorDetail | None = None


class ForecasterSaid(BaseModel):
    """The forecaster that answered."""

    name: str
    version: str = Field(description="The version of prefcast.")
    budget: str = Field(description="How much of a pair is read.")
    outcome_model: str
    interval_level: float | None
    explains: bool
    pointwise: bool = Field(description="Whether /v1/score gives scores.")


class Forecasts(BaseModel):
    forecasts: list[Forecast]
    forecaster: ForecasterSaid


class Score(BaseModel):
    """The score of one conversation, or why there is none."""

    score: float | None = None
    error: ErrorDetail | None = None


class Scores(BaseModel):
    scores: list[Score]
    forecaster: ForecasterSaid


class Compared(Out):
    """Response `a` against response `b`, counted from 0."""

    a: int
    b: int
    probabilities: Probabilities
    margin: float
    tie: float
    truncated: bool


class Ranking(BaseModel):
    """`order` has the positions of the responses, the best first. `strengths` has, for each response of the request in turn, the
    mean of P(wins) + P(tie) / 2 over the other responses."""

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


class LimitsSaid(Out):
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
    object: str = "list"
    data: list[dict[str, str]] = Field(description="The served model in the form of OpenAI's list of models.")


class Health(BaseModel):
    status: str

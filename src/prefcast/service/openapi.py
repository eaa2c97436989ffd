"""The OpenAPI document: the routes of the API, and the documents of their bodies and answers."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from prefcast.service import rows, schema
from prefcast.service.forms import FORMS
from prefcast.service.guard import is_secured
from prefcast.service.limits import Limits

__all__ = ["EXAMPLES", "ROUTES", "document"]

_REFUSED = {
    400: "The body is not JSON, or the request is not HTTP.",
    401: "The token is missing or wrong.",
    408: "The body did not arrive in time.",
    409: "The forecaster has no scores of single conversations.",
    413: "The body is larger than the server allows.",
    415: "The body is not of the type that the route takes.",
    421: "The Host header names another machine.",
    422: "A field is at fault, or could not be scored. The answer has the field and the reason.",
    429: "The queue is full. Retry-After has the seconds to wait before the next attempt.",
    500: "The server failed.",
    503: "The server is stopping, or is not ready.",
    504: "The request took too long.",
}
_ALWAYS = (401, 421, 500)
_BODY = (400, 408, 413, 415, 422, 429, 503, 504)


@dataclass(frozen=True)
class _Route:
    """What the document says of a route: what it takes and gives, and its refusals beyond those of all routes. A route with
    `parameters` takes a file."""

    summary: str
    description: str
    gives: tuple[type[BaseModel], ...] = ()
    takes: tuple[type[BaseModel], ...] = ()
    refused: tuple[int, ...] = ()
    parameters: tuple[tuple[str, str, dict[str, Any]], ...] = ()


ROUTES = {
    "/v1/forecast": _Route(
        "Forecast pairs",
        'Forecasts which of two responses people prefer. The answer to one pair is a Forecast, the answer to {"pairs": [...]} '
        "is Forecasts, with the error of a pair in its place. Concurrent requests do not affect the result.",
        (schema.Forecast, schema.Forecasts),
        (schema.TextPair, schema.ConversationPair, schema.ForecastMany),
        _BODY,
    ),
    "/v1/score": _Route(
        "Score conversations",
        "Gives the raw scores of single conversations, if the forecaster is a pointwise reward model.",
        (schema.Scores,),
        (schema.ScoreRequest,),
        (*_BODY, 409),
    ),
    "/v1/rank": _Route(
        "Rank responses",
        "Orders several responses to one prompt by the forecasts of every two of them: by the mean of P(wins) + P(tie) / 2.",
        (schema.Ranking,),
        (schema.RankRequest,),
        _BODY,
    ),
    "/v1/rows": _Route(
        "Read a file",
        f"Gives the rows of a file of pairs or forecasts, at most {rows.MOST_ROWS:,} and {rows.MOST_CHARACTERS:,} characters at a "
        "time. A fault of a row stands in that row; a fault of the file is a refusal. The file is read as prefcast check "
        "reads it, and is not kept. To get the rest, send the file again with first = next.",
        (rows.FileRows,),
        (),
        _BODY,
        (
            (
                "ending",
                "The end of the file's name. Without it, the first bytes tell what the file is.",
                {"type": "string", "pattern": r"^(\.[A-Za-z0-9]{1,12}){0,2}$"},
            ),
            ("first", "The first row of the answer.", {"type": "integer", "minimum": 1, "maximum": 999_999_999}),
            (
                "cells",
                "What a text cell holds: a JSON array (json), or one turn as it is (text). Without it, the first rows tell.",
                {"type": "string", "enum": ["json", "text"]},
            ),
        ),
    ),
    **{
        path: _Route(summary, text, (FORMS[path].gives,), (FORMS[path].takes,), (*_BODY, 409))
        for path, summary, text in (
            (
                "/get_reward",
                "Rewards in OpenRLHF's form",
                "Gives the raw scores of texts, as a reward server of OpenRLHF does.",
            ),
            (
                "/classify",
                "Scores in vLLM's form",
                "Gives the scores of texts, token ids or a conversation, as vLLM does.",
            ),
            ("/score", "Scores of answers in vLLM's form", "Gives the scores of answers to prompts, as vLLM does."),
        )
    },
    "/v1/models": _Route(
        "Models",
        "Names the forecaster of this server, the built-in models and the limits of a request.",
        (schema.Models,),
    ),
    "/health": _Route("Health", "Answers while the process runs.", (schema.Health,)),
    "/ready": _Route(
        "Ready",
        "Answers 200 while the forecaster is loaded and the server is not stopping.",
        (schema.Health,),
        (),
        (503,),
    ),
    "/metrics": _Route("Metrics", "Gives the counters in the text format of Prometheus."),
}
EXAMPLES = {
    "/v1/forecast": """curl -s http://127.0.0.1:8000/v1/forecast -H 'Content-Type: application/json' \\
  -d '{"prompt": "Why is the sky blue?", "response_a": "Rayleigh scattering.", "response_b": "No idea."}'""",
    "/v1/score": """curl -s http://127.0.0.1:8000/v1/score -H 'Content-Type: application/json' \\
  -d '{"conversations": [{"prompt": "Why?", "response": "Because."}]}'""",
    "/v1/rank": """curl -s http://127.0.0.1:8000/v1/rank -H 'Content-Type: application/json' \\
  -d '{"prompt": "Why is the sky blue?", "responses": ["Rayleigh scattering.", "No idea.", "It is not."]}'""",
    "/v1/rows": """curl -s 'http://127.0.0.1:8000/v1/rows?ending=.csv' -H 'Content-Type: application/octet-stream' \\
  --data-binary @examples/pairs.csv""",
    "/v1/models": "curl -s http://127.0.0.1:8000/v1/models",
}


def document(limits: Limits, *, secured: bool) -> dict[str, Any]:
    """The OpenAPI document of a server with these limits; `secured` servers want a token."""
    models: list[tuple[type[BaseModel], JsonSchemaMode]] = [
        (schema.Error, "serialization"),
        (schema.Exchange, "validation"),
    ]
    for route in ROUTES.values():
        models += [(each, "validation") for each in route.takes] + [(each, "serialization") for each in route.gives]
    _, schemas = models_json_schema(models, ref_template=_reference("{model}")["$ref"])
    components = {"schemas": _bounded(schemas["$defs"], limits)}
    if secured:
        components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "prefcast",
            "version": version("prefcast"),
            "description": "Forecasts which of two chatbot answers people will prefer: A, B or a tie.",
        },
        "paths": {
            path: {"post" if route.takes or route.parameters else "get": _operation(path, route, secured)}
            for path, route in ROUTES.items()
        },
        "components": components,
    }


def _operation(path: str, route: _Route, secured: bool) -> dict[str, Any]:
    kind = "application/json" if route.gives else "text/plain"
    said: dict[str, Any] = {
        # /score and /v1/score are two operations.
        "operationId": "score_texts" if path == "/score" else path.rpartition("/")[2],
        "summary": route.summary,
        "description": route.description,
        "responses": {"200": {"description": "The answer.", **_content(kind, route.gives)}},
    }
    for status in sorted({*_ALWAYS, *route.refused}):
        refused: dict[str, Any] = {"description": _REFUSED[status], **_content("application/json", (schema.Error,))}
        if status == 429:
            refused["headers"] = {"Retry-After": {"schema": {"type": "string"}}}
        said["responses"][str(status)] = refused
    if route.takes:
        said["requestBody"] = {"required": True, **_content("application/json", route.takes)}
    if route.parameters:
        said["parameters"] = [
            {"name": name, "in": "query", "description": description, "schema": kind}
            for name, description, kind in route.parameters
        ]
        # Bytes of any kind: OpenAPI 3.1 has no schema for them.
        said["requestBody"] = {"required": True, "content": {"application/octet-stream": {"schema": {}}}}
    if secured and is_secured(path):
        said["security"] = [{"token": []}]
    return said


def _content(kind: str, models: tuple[type[BaseModel], ...]) -> dict[str, Any]:
    references = [_reference(each.__name__) for each in models] or [{"type": "string"}]
    return {"content": {kind: {"schema": references[0] if len(references) == 1 else {"anyOf": references}}}}


def _reference(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _bounded(value: Any, limits: Limits) -> Any:
    """The schemas with the numbers of a server in the place of the names of its limits."""
    if isinstance(value, list):
        return [_bounded(each, limits) for each in value]
    if not isinstance(value, dict):
        return value
    return {
        name: getattr(limits, each)
        if name in ("maxItems", "maxLength") and isinstance(each, str)
        else _bounded(each, limits)
        for name, each in value.items()
    }

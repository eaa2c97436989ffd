"""The OpenAPI document: what each route says of itself, and the documents of its bodies."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from prefcast.service import schema
from prefcast.service.limits import Limits

__all__ = ["EXAMPLES", "document", "said"]

_REFUSED = {
    400: "The body is not JSON, or the request not HTTP.",
    401: "The token is missing or wrong.",
    408: "The body did not come in time.",
    409: "The forecaster has no scores of single conversations.",
    413: "The body is larger than the server takes.",
    415: "The body is not application/json.",
    421: "The Host header names another machine.",
    422: "A field is at fault, or could not be scored; field and message say which and why.",
    429: "No room: Retry-After says in how many seconds to ask again.",
    500: "The server failed.",
    503: "The server is stopping, or not ready.",
    504: "The request took too long.",
}
_ALWAYS = (401, 421, 500)
_BODY = (400, 408, 413, 415, 422, 429, 503, 504)
_BODIES: dict[str, tuple[type, ...]] = {
    "forecast": (schema.TextPair, schema.ConversationPair, schema.ForecastMany),
    "score": (schema.ScoreRequest,),
    "rank": (schema.RankRequest,),
}
# route -> summary, description, what it answers, the refusals beyond those of all
_ROUTES: dict[str, tuple[str, str, Any, tuple[int, ...]]] = {
    "forecast": (
        "Forecast pairs",
        'Forecast which of two responses people prefer. One pair answers a Forecast; {"pairs": [...]} answers Forecasts, the '
        "fault of a pair in its place. Who else asks at the same time changes nothing.",
        schema.Forecast | schema.Forecasts,
        _BODY,
    ),
    "score": (
        "Score conversations",
        "The raw scores of single conversations, where the forecaster is a pointwise reward model.",
        schema.Scores,
        (*_BODY, 409),
    ),
    "rank": (
        "Rank answers",
        "The order of n answers to one prompt, from the forecasts of every two of them: by the mean of P(wins) + P(tie) / 2.",
        schema.Ranking,
        _BODY,
    ),
    "models": ("Models", "What answers here, what else there is, and what a request may hold.", schema.Models, ()),
    "health": ("Health", "Whether the process lives.", schema.Health, ()),
    "ready": (
        "Ready",
        "Whether it answers: the forecaster is loaded and nobody told it to stop.",
        schema.Health,
        (503,),
    ),
    "metrics": ("Metrics", "What was counted, in Prometheus' text form.", None, ()),
}
EXAMPLES = {
    "/v1/forecast": """curl -s http://127.0.0.1:8000/v1/forecast -H 'Content-Type: application/json' \\
  -d '{"prompt": "Why is the sky blue?", "response_a": "Rayleigh scattering.", "response_b": "No idea."}'""",
    "/v1/score": """curl -s http://127.0.0.1:8000/v1/score -H 'Content-Type: application/json' \\
  -d '{"conversations": [{"prompt": "Why?", "response": "Because."}]}'""",
    "/v1/rank": """curl -s http://127.0.0.1:8000/v1/rank -H 'Content-Type: application/json' \\
  -d '{"prompt": "Why is the sky blue?", "responses": ["Rayleigh scattering.", "No idea.", "It is not."]}'""",
    "/v1/models": "curl -s http://127.0.0.1:8000/v1/models",
}


def said(route: str) -> dict[str, Any]:
    """What a route says of itself, as FastAPI takes it."""
    summary, description, model, more = _ROUTES[route]
    refused = sorted({*_ALWAYS, *more})
    responses: dict[int, dict[str, Any]] = {
        status: {
            "model": schema.Error,
            "description": _REFUSED[status],
            **({"headers": {"Retry-After": {"schema": {"type": "string"}}}} if status == 429 else {}),
        }
        for status in refused
    }
    if model is None:
        responses[200] = {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "The counters."}
    found: dict[str, Any] = {
        "operation_id": route,
        "summary": summary,
        "description": description,
        "response_model": model,
        "responses": responses,
    }
    if route in _BODIES:
        references = [{"$ref": f"#/components/schemas/{each.__name__}"} for each in _BODIES[route]]
        body = references[0] if len(references) == 1 else {"anyOf": references}
        found["openapi_extra"] = {"requestBody": {"required": True, "content": {"application/json": {"schema": body}}}}
    return found


def document(api: FastAPI, limits: Limits, *, secured: bool) -> dict[str, Any]:
    """The OpenAPI document of a server with these limits."""
    made = get_openapi(
        title="prefcast",
        version=_version(),
        description="Forecasts which of two chatbot answers people will prefer: A, B or a tie.",
        routes=api.routes,
    )
    models = [(each, "validation") for bodies in _BODIES.values() for each in bodies]
    _, found = models_json_schema(models, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]
    made["components"]["schemas"] |= found["$defs"]
    _limit(made["components"]["schemas"], limits)
    text = made["paths"]["/metrics"]["get"]["responses"]["200"]
    text["content"] = {"text/plain": {"schema": {"type": "string"}}}
    if secured:
        made["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        for path, methods in made["paths"].items():
            if path.startswith("/v1/") or path == "/metrics":
                for operation in methods.values():
                    operation["security"] = [{"token": []}]
    return made


def _limit(value: Any, limits: Limits) -> None:
    """Put a server's own limits in the place of the usual ones."""
    usual = Limits()
    own = {
        ("maxLength", usual.text_characters): limits.text_characters,
        ("maxItems", usual.turns): limits.turns,
        ("maxItems", 2 * usual.turns + 1): 2 * limits.turns + 1,
    }
    if isinstance(value, dict):
        for name, inner in value.items():
            if isinstance(inner, int) and (name, inner) in own:
                value[name] = own[name, inner]
            _limit(inner, limits)
        for field, most in (("pairs", limits.pairs), ("conversations", limits.pairs), ("responses", limits.responses)):
            if isinstance(value.get(field), dict) and "maxItems" in value[field]:
                value[field]["maxItems"] = most
    elif isinstance(value, list):
        for inner in value:
            _limit(inner, limits)


def _version() -> str:
    from importlib.metadata import version

    return version("prefcast")

"""A client of `prefcast serve` (extra `remote`).

It takes and gives the types of the library: pairs, forecasts, explanations. A request can be repeated without harm. So the
client sends it again if the queue of the server is full or the connection breaks, after the time that Retry-After names.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefcast.base.http import Connection, RequestError, Retrying, Transport
from prefcast.errors import (
    RowError,
    ScoringError,
    ServiceError,
    UsageError,
    excerpt,
    printable,
)
from prefcast.forecasts.best import AnswerRanking, answer_pairs, ranked_answers
from prefcast.forecasts.forecaster import Explanation, Influence
from prefcast.forecasts.predictions import Forecast
from prefcast.pairs import Pair, clean
from prefcast.pairs.budget import Truncation

__all__ = ["Client"]

# The call is at fault, not the server.
_USAGE = (400, 404, 405, 409, 413, 415, 422)
# Larger requests would not be cheaper for each pair.
_PAIRS, _CHARACTERS = 64, 2_000_000
_SHOWN = 300
# The place among the pairs of one request. The row of an error is the place among all pairs.
_PLACE = re.compile(r"pairs\.\d+\.?")
_TRUNCATION = ("characters_kept", "characters", "turns_kept", "turns")


class Client:
    """Sends requests to the server at `url`, with `token` if the server wants one. `timeout` is how many seconds the server may
    be silent.

    A request is sent again up to `retries` times if the server has no room for it or if no whole answer comes. The client
    waits a minute at most before each attempt. It follows no redirects and uses no proxy. Raises UsageError if the call is
    wrong, ServiceError if the server refuses, fails or cannot be reached. `transport` replaces the connection in tests.
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        timeout: float = 90.0,
        retries: int = 4,
        transport: Transport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if token is not None and not (token.isascii() and token.isprintable() and token.strip() == token and token):
            raise UsageError("the token must be printable ASCII without spaces at its ends")
        self._pairs: int | None = None
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        retrying = Retrying(retries, timeout=timeout)
        # The largest answer of a prefcast server, many short turns with a truncation of each, has a few million bytes.
        self._connection = Connection(url, headers, retrying, transport=transport, sleep=sleep)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._connection.close()

    def forecast(self, pairs: Iterable[Pair]) -> list[Forecast]:
        """The forecasts of `pairs`, in their order, as `Forecaster.forecast` gives them. If one failed, its `error` says why and
        its numbers are nan. The client sends as many requests as are needed."""
        found: list[Forecast] = []
        for chunk in self._chunks(pairs):
            document = self._post("/v1/forecast", {"pairs": [_as_document(pair) for pair in chunk]})
            answers = _field(document, "forecasts", list, len(chunk))
            for pair, answer in zip(chunk, answers, strict=True):
                found.append(_forecast(pair, answer, len(found) + 1))
        return found

    def _chunks(self, pairs: Iterable[Pair]) -> Iterator[list[Pair]]:
        """The pairs of each request."""
        chunk: list[Pair] = []
        size = 0
        for pair in pairs:
            length = pair.characters if isinstance(pair, Pair) else 0
            if chunk and (len(chunk) == self._most() or size + length > _CHARACTERS):
                yield chunk
                chunk, size = [], 0
            chunk.append(pair)
            size += length
        if chunk:
            yield chunk

    def _most(self) -> int:
        """The most pairs of one request, from the limits of the server."""
        if self._pairs is None:
            limits = _field(self.models(), "limits", dict)
            self._pairs = max(1, min(_PAIRS, _field(limits, "pairs", int)))
        return self._pairs

    def explain(self, pair: Pair) -> Explanation:
        """The forecast of `pair` and its influences, the largest first."""
        answer = self._post("/v1/forecast", {**_as_document(pair), "explain": True})
        with _expected():
            return Explanation(_forecast(pair, answer, 1), list(map(_influence, answer["influences"] or [])))

    def score(self, conversations: Iterable[Sequence[Mapping[str, str]]]) -> NDArray[np.float64]:
        """The scores (n,) of n conversations (lists of messages with `role` and `content`), if the server has a pointwise model.

        Raises UsageError for the first conversation without a score.
        """
        waiting, found = iter(conversations), []
        while chunk := [[dict(message) for message in each] for each in islice(waiting, self._most())]:
            answers = _field(self._post("/v1/score", {"conversations": chunk}), "scores", list, len(chunk))
            with _expected():
                for each in answers:
                    if each["error"] is not None:
                        raise UsageError(_said(each["error"]))
                    found.append(float(each["score"]))
        return np.array(found, dtype=np.float64)

    def rank(self, prompt: str | Sequence[str], responses: Sequence[str | Sequence[str]]) -> AnswerRanking:
        """The order of n responses to one prompt, from the forecasts of every two of them."""
        answer_pairs(prompt, responses)
        plain = [text if isinstance(text, str) else list(text) for text in (prompt, *responses)]
        answer = self._post("/v1/rank", {"prompt": plain[0], "responses": plain[1:]})
        n = len(responses)
        with _expected():
            forecasts = [
                Forecast(
                    number, _three(each["probabilities"]), float(each["margin"]), float(each["tie"]), None, None, None
                )
                for number, each in enumerate(_field(answer, "pairwise", list, n * (n - 1) // 2))
            ]
        return ranked_answers(n, forecasts)

    def models(self) -> dict[str, Any]:
        """The forecaster of the server, the built-in models and the limits of the server."""
        return self._asked("GET", "/v1/models", None)

    def ready(self) -> bool:
        """Whether the server is ready. False if no server answers."""
        try:
            return self._connection.send("GET", "/ready").status == 200
        except (RequestError, ServiceError):
            return False

    def _post(self, path: str, document: Mapping[str, Any]) -> dict[str, Any]:
        return self._asked("POST", path, clean(json.dumps(document, ensure_ascii=False)).encode())

    def _asked(self, method: str, path: str, body: bytes | None) -> dict[str, Any]:
        answer = self._connection.ask(method, path, body)
        return _document(answer.status, answer.body)


def _as_document(pair: Pair) -> dict[str, Any]:
    if not isinstance(pair, Pair):
        raise UsageError(
            f"expected pairs, found {excerpt(pair)}; prefcast.Pair.of(prompt, response_a, response_b) makes one"
        )
    document: dict[str, Any] = {name: list(getattr(pair, name)) for name in ("prompt", "response_a", "response_b")}
    beside = {"system": pair.system or None, "reference": pair.reference}
    return document | {name: text for name, text in beside.items() if text is not None}


def _document(status: int, answer: bytes) -> dict[str, Any]:
    try:
        document = json.loads(answer)
    except (ValueError, RecursionError):
        document = None
    if status == 200:
        if not isinstance(document, dict):
            raise _nonsense("it is not a JSON object")
        return document
    error = document.get("error") if isinstance(document, dict) else None
    if not isinstance(error, dict):
        raise ServiceError(f"the server answered {status} without a reason", status)
    if status in _USAGE:
        raise UsageError(_said(error))
    raise ServiceError(_said(error), status, printable(str(error.get("type", "")))[:_SHOWN])


def _said(error: Mapping[str, Any]) -> str:
    field, message = (printable(str(error.get(name, "")))[:_SHOWN] for name in ("field", "message"))
    return f"{field}: {message}" if field else message


def _field(document: Mapping[str, Any], name: str, kind: type, count: int | None = None) -> Any:
    value = document.get(name)
    if not isinstance(value, kind):
        raise _nonsense(f"it has no {name}")
    found: Any = value
    if count is not None and len(found) != count:
        raise _nonsense(f"it has {len(found)} {name}, expected {count}")
    return found


def _nonsense(problem: str) -> ServiceError:
    return ServiceError(f"the answer is not that of a prefcast server: {problem}", 200)


def _three(said: Mapping[str, Any]) -> tuple[float, float, float]:
    return float(said["a"]), float(said["b"]), float(said["tie"])


@contextmanager
def _expected() -> Iterator[None]:
    """A block that reads an answer. If the answer has another form, it is not that of a prefcast server."""
    try:
        yield
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise _nonsense(f"{type(error).__name__} {printable(str(error))[:_SHOWN]}") from None


def _influence(said: Mapping[str, Any]) -> Influence:
    values = tuple((str(value["name"]), float(value["a"]), float(value["b"])) for value in said["values"])
    return Influence(str(said["name"]), _three(said["change"]), float(said["margin"]), float(said["tie"]), values)


def _forecast(pair: Pair, said: Mapping[str, Any], row: int) -> Forecast:
    with _expected():
        if (fault := said["error"]) is not None:
            kind = ScoringError if fault["type"] == "scoring" else RowError
            field, message = (printable(str(fault[name])) for name in ("field", "message"))
            error = kind("server", pair.row or row, _PLACE.sub("", field), message, pair.id)
            nan = math.nan
            return Forecast(pair.id, (nan, nan, nan), nan, nan, None, error, pair.outcome)
        interval, cut = said["interval"], said["truncation"]
        ends = (
            None
            if interval is None
            else [(float(low), float(high)) for low, high in map(interval.get, ("a", "b", "tie"))]
        )
        kept, total, turns_kept, turns = (0 if cut is None else int(cut[name]) for name in _TRUNCATION)
        return Forecast(
            pair.id,
            _three(said["probabilities"]),
            float(said["margin"]),
            float(said["tie"]),
            None if cut is None else Truncation(kept, total, turns_kept, turns),
            None,
            pair.outcome,
            None if ends is None else tuple(ends),
            escalated=said.get("escalated"),
            handed_over=said.get("handed_over"),
            unlike=None if said.get("unlike") is None else float(said["unlike"]),
        )

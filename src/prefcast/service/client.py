"""A client of `prefcast serve` (extra `remote`).

It takes and gives the types of the library: pairs, forecasts, explanations. A request can be repeated without harm. So the
client sends it again if the queue of the server is full or the connection breaks, after the time that Retry-After names.
"""

from __future__ import annotations

import json
import math
import random
import re
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefcast.errors import (
    MissingExtraError,
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

try:
    import httpx2
except ImportError:
    raise MissingExtraError("httpx2", "remote") from None

__all__ = ["Client"]

# The call is at fault, not the server.
_USAGE = (400, 404, 405, 409, 413, 415, 422)
_AGAIN = (429, 503)
_FIRST_WAIT, _LONGEST_WAIT = 0.25, 60.0
# Larger requests would not be cheaper for each pair.
_PAIRS, _CHARACTERS = 64, 2_000_000
# The largest answer of a prefcast server, many short turns with a truncation of each, has a few million bytes.
_ANSWER_BYTES = 64_000_000
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
        transport: httpx2.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if token is not None and not (token.isascii() and token.isprintable() and token.strip() == token and token):
            raise UsageError("the token must be printable ASCII without spaces at its ends")
        if not 0 < timeout < math.inf:
            raise UsageError(f"timeout must be a positive number of seconds, found {timeout}")
        self._url, self._retries, self._sleep = url, retries, sleep
        self._pairs: int | None = None
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        self._http = httpx2.Client(
            base_url=_address(url),
            headers=headers,
            timeout=timeout,
            transport=transport,
            verify=ssl.create_default_context(),
            trust_env=False,
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

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
            return self._sent("GET", "/ready", None)[0].status_code == 200
        except (httpx2.RequestError, ServiceError):
            return False

    def _post(self, path: str, document: Mapping[str, Any]) -> dict[str, Any]:
        return self._asked("POST", path, clean(json.dumps(document, ensure_ascii=False)).encode())

    def _asked(self, method: str, path: str, body: bytes | None) -> dict[str, Any]:
        for attempt in range(self._retries + 1):
            last = attempt == self._retries
            try:
                response, answer = self._sent(method, path, body)
            except httpx2.RequestError as error:
                if last:
                    problem = str(error) or type(error).__name__
                    raise ServiceError(f"{printable(self._url)}: no answer: {printable(problem)}") from None
                self._sleep(_backoff(attempt))
                continue
            if response.status_code not in _AGAIN or last:
                return _document(response.status_code, answer)
            self._sleep(_retry_after(response.headers.get("retry-after"), attempt))
        raise UsageError(f"retries must be 0 or more, found {self._retries}")

    def _sent(self, method: str, path: str, body: bytes | None) -> tuple[httpx2.Response, bytes]:
        """One request, its response and the body of that. Raises httpx2.RequestError if no whole answer comes."""
        headers = {} if body is None else {"Content-Type": "application/json"}
        answer = bytearray()
        with self._http.stream(method, path, content=body, headers=headers) as response:
            if response.headers.get("content-encoding", "identity") != "identity":
                # A few bytes could become gigabytes.
                raise _nonsense("it is compressed")
            for part in response.iter_bytes():
                answer += part
                if len(answer) > _ANSWER_BYTES:
                    raise _nonsense(f"it has more than {_ANSWER_BYTES} bytes")
        return response, bytes(answer)


def _address(url: str) -> httpx2.URL:
    """The address of a server. Raises UsageError for anything else."""
    try:
        found = httpx2.URL(url)
        # A label that is too long would fail only when the name is looked up.
        found.host.encode("idna")
    except (httpx2.InvalidURL, ValueError) as error:
        raise UsageError(f"{excerpt(url)} is not the address of a server: {printable(str(error))}") from None
    if found.scheme not in ("http", "https") or not found.host or found.query or found.fragment or found.userinfo:
        raise UsageError(f"{excerpt(url)} is not the address of a server; expected one like http://127.0.0.1:8000")
    return found


def _as_document(pair: Pair) -> dict[str, Any]:
    if not isinstance(pair, Pair):
        raise UsageError(
            f"expected pairs, found {excerpt(pair)}; prefcast.Pair.of(prompt, response_a, response_b) makes one"
        )
    document: dict[str, Any] = {name: list(getattr(pair, name)) for name in ("prompt", "response_a", "response_b")}
    beside = {"system": pair.system or None, "reference": pair.reference}
    return document | {name: text for name, text in beside.items() if text is not None}


def _backoff(attempt: int) -> float:
    # A random part, so that many clients do not return together.
    return min(_LONGEST_WAIT, _FIRST_WAIT * 2.0**attempt) * random.uniform(0.5, 1.5)  # noqa: S311


def _retry_after(value: str | None, attempt: int) -> float:
    """Seconds to wait: the value of Retry-After, in seconds or as a date, but a minute at most."""
    seconds = math.nan
    if value is not None:
        try:
            seconds = float(value)
        except ValueError:
            try:
                seconds = parsedate_to_datetime(value).timestamp() - time.time()
            except (ValueError, TypeError):
                seconds = math.nan
    return min(_LONGEST_WAIT, max(0.0, seconds)) if math.isfinite(seconds) else _backoff(attempt)


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
        )

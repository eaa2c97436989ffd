"""A client of `prefcast serve`, with the standard library alone.

The library's own types go in and come out: pairs, forecasts, explanations. Asking twice does no harm, so what a server
refuses for lack of room, or a connection that broke, is tried again; for how long, the server says (Retry-After).
"""

from __future__ import annotations

import http.client
import json
import math
import random
import re
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from itertools import islice
from typing import Any, Protocol
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from prefcast.errors import RowError, ScoringError, ServiceError, UsageError, excerpt, printable
from prefcast.forecasts.best import AnswerRanking, answer_pairs, ranked_answers
from prefcast.forecasts.forecaster import Explanation, Influence
from prefcast.forecasts.predictions import Forecast
from prefcast.pairs import Pair, clean
from prefcast.pairs.budget import Truncation

__all__ = ["Answer", "Client", "HttpTransport", "Transport"]

# What the call is to blame for, not the server.
_USAGE = (400, 404, 405, 409, 413, 415, 422)
_AGAIN = (429, 503)
_FIRST_WAIT, _LONGEST_WAIT = 0.25, 60.0
# A request of so many pairs, and so many characters, is large enough to cost little.
_PAIRS, _CHARACTERS = 64, 2_000_000
_SHOWN = 300
# Where among the pairs of one request; the row says where among all.
_PLACE = re.compile(r"pairs\.\d+\.?")
_TRUNCATION = ("characters_kept", "characters", "turns_kept", "turns")


@dataclass(frozen=True)
class Answer:
    """What came back: `headers` by their names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Transport(Protocol):
    """Sends one request. Raises OSError or http.client.HTTPException where no whole answer came."""

    def send(self, method: str, path: str, headers: Mapping[str, str], body: bytes | None) -> Answer: ...

    def close(self) -> None: ...


class HttpTransport:
    """One connection at a time to `url`, kept open between requests. Follows no redirects and knows no proxies.

    Raises UsageError for what is no http or https address, or no time.
    """

    def __init__(self, url: str, timeout: float) -> None:
        try:
            parts = urlsplit(url)
            port = parts.port
            # What http.client would fail on later, with an error of its own.
            (parts.hostname or "").encode("idna")
            parts.path.encode("ascii")
        except ValueError as error:
            raise UsageError(f"{excerpt(url)} is no address of a server: {error}") from None
        if (
            parts.scheme not in ("http", "https")
            or not parts.hostname
            or parts.query
            or parts.fragment
            or parts.username
            or not f"{parts.hostname}{parts.path}".isprintable()
            or " " in parts.path
        ):
            raise UsageError(f"{excerpt(url)} is no address of a server; expected one like http://127.0.0.1:8000")
        if not 0 < timeout < math.inf:
            raise UsageError(f"timeout must be a positive number of seconds, found {timeout}")
        self._prefix = parts.path.rstrip("/")
        self._connection: http.client.HTTPConnection = (
            http.client.HTTPSConnection(parts.hostname, port, timeout=timeout, context=ssl.create_default_context())
            if parts.scheme == "https"
            else http.client.HTTPConnection(parts.hostname, port, timeout=timeout)
        )

    def send(self, method: str, path: str, headers: Mapping[str, str], body: bytes | None) -> Answer:
        try:
            self._connection.request(method, self._prefix + path, body, dict(headers))
            found = self._connection.getresponse()
            return Answer(found.status, {name.lower(): value for name, value in found.getheaders()}, found.read())
        except BaseException:
            # Half an answer may still come on this connection: it is of no more use.
            self._connection.close()
            raise

    def close(self) -> None:
        self._connection.close()


class Client:
    """Asks the server at `url`; `token` is what it wants shown, `timeout` the seconds that it may be silent.

    A request that has no room, or no whole answer, is sent again up to `retries` times; no wait is longer than a
    minute. Raises UsageError where the call is wrong, ServiceError where the server refuses, fails or is not there.
    One thread at a time may use a client.
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
            raise UsageError("the token must be of printable ASCII signs")
        self._url, self._retries, self._sleep = url, retries, sleep
        self._transport = HttpTransport(url, timeout) if transport is None else transport
        self._pairs: int | None = None
        self._headers = {"Accept": "application/json"}
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()

    def forecast(self, pairs: Iterable[Pair]) -> list[Forecast]:
        """The forecasts of `pairs`, in their order, as `Forecaster.forecast` gives them: where one failed, its `error` says
        why and its numbers are nan. As many requests as are needed."""
        found: list[Forecast] = []
        for chunk in self._chunks(pairs):
            document = self._post("/v1/forecast", {"pairs": [_as_document(pair) for pair in chunk]})
            answers = _field(document, "forecasts", list, len(chunk))
            for pair, answer in zip(chunk, answers, strict=True):
                found.append(_forecast(pair, answer, len(found) + 1))
        return found

    def _chunks(self, pairs: Iterable[Pair]) -> Iterator[list[Pair]]:
        """What one request may hold of `pairs`."""
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
        """The most pairs of one request, as the server says."""
        if self._pairs is None:
            limits = _field(self.models(), "limits", dict)
            self._pairs = max(1, min(_PAIRS, _field(limits, "pairs", int)))
        return self._pairs

    def explain(self, pair: Pair) -> Explanation:
        """The forecast of `pair` and what moved it, the largest change first."""
        answer = self._post("/v1/forecast", {**_as_document(pair), "explain": True})
        with _expected():
            return Explanation(_forecast(pair, answer, 1), list(map(_influence, answer["influences"] or [])))

    def score(self, conversations: Iterable[Sequence[Mapping[str, str]]]) -> NDArray[np.float64]:
        """The scores (n,) of n conversations (lists of messages with `role` and `content`), where the server's model has such.

        Raises UsageError for the first conversation that has none.
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
        """What the server says of its forecaster, of other models and of its limits."""
        return self._asked("GET", "/v1/models", None)

    def ready(self) -> bool:
        """Whether the server answers now; no server there is no."""
        try:
            return self._transport.send("GET", "/ready", self._headers, None).status == 200
        except (OSError, http.client.HTTPException):
            return False

    def _post(self, path: str, document: Mapping[str, Any]) -> dict[str, Any]:
        return self._asked("POST", path, clean(json.dumps(document, ensure_ascii=False)).encode())

    def _asked(self, method: str, path: str, body: bytes | None) -> dict[str, Any]:
        headers = self._headers if body is None else {**self._headers, "Content-Type": "application/json"}
        for attempt in range(self._retries + 1):
            last = attempt == self._retries
            try:
                answer = self._transport.send(method, path, headers, body)
            except (OSError, http.client.HTTPException) as error:
                if last:
                    problem = str(error) or type(error).__name__
                    raise ServiceError(f"{printable(self._url)}: no answer: {printable(problem)}") from None
                self._sleep(_backoff(attempt))
                continue
            if answer.status not in _AGAIN or last:
                return _document(answer)
            self._sleep(_retry_after(answer.headers.get("retry-after"), attempt))
        raise UsageError(f"retries must be 0 or more, found {self._retries}")


def _as_document(pair: Pair) -> dict[str, Any]:
    if not isinstance(pair, Pair):
        raise UsageError(
            f"expected pairs, found {excerpt(pair)}; prefcast.Pair.of(prompt, response_a, response_b) makes one"
        )
    return {name: list(getattr(pair, name)) for name in ("prompt", "response_a", "response_b")}


def _backoff(attempt: int) -> float:
    # Many clients of one server should not come back together.
    return min(_LONGEST_WAIT, _FIRST_WAIT * 2.0**attempt) * random.uniform(0.5, 1.5)  # noqa: S311


def _retry_after(value: str | None, attempt: int) -> float:
    """Seconds to wait: what the server says, in seconds or as a date, but a minute at most."""
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


def _document(answer: Answer) -> dict[str, Any]:
    try:
        document = json.loads(answer.body)
    except (ValueError, RecursionError):
        document = None
    if answer.status == 200:
        if not isinstance(document, dict):
            raise _nonsense("it is no JSON object")
        return document
    error = document.get("error") if isinstance(document, dict) else None
    if not isinstance(error, dict):
        raise ServiceError(f"the server answered {answer.status} without saying why", answer.status)
    if answer.status in _USAGE:
        raise UsageError(_said(error))
    raise ServiceError(_said(error), answer.status, printable(str(error.get("type", "")))[:_SHOWN])


def _said(error: Mapping[str, Any]) -> str:
    field, message = (printable(str(error.get(name, "")))[:_SHOWN] for name in ("field", "message"))
    return f"{field}: {message}" if field else message


def _field(document: Mapping[str, Any], name: str, kind: type, count: int | None = None) -> Any:
    value = document.get(name)
    if not isinstance(value, kind):
        raise _nonsense(f"it has no {name}")
    found: Any = value
    if count is not None and len(found) != count:
        raise _nonsense(f"it has {len(found)} {name} where {count} were asked")
    return found


def _nonsense(problem: str) -> ServiceError:
    return ServiceError(f"the answer is not one of a prefcast server: {problem}", 200)


def _three(said: Mapping[str, Any]) -> tuple[float, float, float]:
    return float(said["a"]), float(said["b"]), float(said["tie"])


@contextmanager
def _expected() -> Iterator[None]:
    """A block that reads an answer: where it is of another form, no prefcast server gave it."""
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
        return Forecast(
            pair.id,
            _three(said["probabilities"]),
            float(said["margin"]),
            float(said["tie"]),
            None if cut is None else Truncation(*(int(cut[name]) for name in _TRUNCATION)),
            None,
            pair.outcome,
            None if ends is None else tuple(ends),
        )

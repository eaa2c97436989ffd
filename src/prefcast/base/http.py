"""Requests to a server over HTTP (extra `remote`): one connection pool, retries, and bounds on what an answer may take.

A request is sent again only if no whole answer came, or if the server said that it has no room now.
"""

from __future__ import annotations

import math
import os
import random
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from pathlib import Path

from prefcast.errors import MissingExtraError, ServiceError, UsageError, excerpt, printable, shown_path

try:
    import httpx2
except ImportError:
    raise MissingExtraError("httpx2", "remote") from None

__all__ = ["Answer", "Connection", "RequestError", "Retrying", "Transport", "read_key"]

RequestError = httpx2.RequestError
Transport = httpx2.BaseTransport

FIRST_WAIT, LONGEST_WAIT = 0.25, 60.0
# A server that starts again is asked so often, in seconds.
_POLL = 2.0
_MOST_BYTES = 64_000_000
_LONGEST_KEY = 4096


@dataclass(frozen=True)
class Retrying:
    """When a request is sent again: up to `times` times after the first, where no whole answer came or the status is one of
    `again`. A server that cannot be reached is waited for at least `wait` seconds. `timeout` is how many seconds the
    server may be silent."""

    times: int = 4
    wait: float = 0.0
    timeout: float = 90.0
    again: tuple[int, ...] = (429, 503)

    def __post_init__(self) -> None:
        if self.times < 0:
            raise UsageError(f"retries must be 0 or more, found {self.times}")
        if not 0 < self.timeout < math.inf:
            raise UsageError(f"timeout must be a positive number of seconds, found {self.timeout}")


@dataclass(frozen=True)
class Answer:
    """What a server answered."""

    status: int
    body: bytes
    headers: Mapping[str, str]


class Connection:
    """Sends requests to the server at `url`. Several threads may use it.

    It follows no redirects. Proxies of the environment are used if `proxies` is set, except for this machine. Raises
    ServiceError if no answer comes, and UsageError for what is no address. `transport` replaces the network in tests.
    """

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str],
        retrying: Retrying,
        *,
        most_bytes: int = _MOST_BYTES,
        connections: int = 100,
        proxies: bool = False,
        transport: Transport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.url, self._retrying, self._most, self._sleep = url, retrying, most_bytes, sleep
        address = _address(url)
        self._http = httpx2.Client(
            base_url=address,
            headers={"Accept": "application/json", "Accept-Encoding": "identity", **headers},
            timeout=retrying.timeout,
            limits=httpx2.Limits(max_connections=connections, max_keepalive_connections=connections),
            transport=transport,
            verify=ssl.create_default_context(),
            trust_env=proxies and not _is_here(address.host),
        )

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def ask(self, method: str, path: str, body: bytes | None = None) -> Answer:
        """The answer to a request. `path` is relative to the address. Raises ServiceError if no whole answer comes."""
        # Tries without an answer since the last answer, and answers that asked to come back.
        attempt, refused, since = 0, 0, 0.0
        while True:
            try:
                answer = self.send(method, path, body)
            except RequestError as error:
                now = time.monotonic()
                since = since or now
                if attempt >= self._retrying.times and now - since >= self._retrying.wait:
                    problem = str(error) or type(error).__name__
                    raise ServiceError(f"{printable(self.url)}: no answer: {printable(problem)}") from None
                wait = _backoff(attempt + refused)
                self._sleep(min(wait, _POLL) if self._retrying.wait else wait)
                attempt += 1
            else:
                if answer.status not in self._retrying.again or refused >= self._retrying.times:
                    return answer
                attempt, since = 0, 0.0
                self._sleep(_retry_after(answer.headers.get("retry-after"), refused))
                refused += 1

    def send(self, method: str, path: str, body: bytes | None = None) -> Answer:
        """One attempt. Raises httpx2.RequestError if no whole answer comes, ServiceError for one that is too large."""
        headers = {} if body is None else {"Content-Type": "application/json"}
        found = bytearray()
        with self._http.stream(method, path, content=body, headers=headers) as response:
            if response.headers.get("content-encoding", "identity") != "identity":
                # A few bytes could become gigabytes.
                raise ServiceError(f"{printable(self.url)}: the answer is compressed, which nobody asked for", 200)
            for part in response.iter_bytes():
                found += part
                if len(found) > self._most:
                    raise ServiceError(f"{printable(self.url)}: the answer has more than {self._most:,} bytes", 200)
        return Answer(
            response.status_code, bytes(found), {key.lower(): value for key, value in response.headers.items()}
        )


def read_key(variable: str | None, file: str | os.PathLike[str] | None, default: str | None = None) -> str | None:
    """A secret key from an environment variable or a file; without both, from the variable `default` if it is set.

    Raises UsageError, whose message never shows the key.
    """
    if variable is not None and file is not None:
        raise UsageError("name an environment variable or a file for the key, not both")
    if file is not None:
        try:
            with Path(file).open("rb") as opened:
                key = opened.read(_LONGEST_KEY + 1).decode().strip()
        except (OSError, UnicodeDecodeError):
            raise UsageError(f"{shown_path(file)}: the key cannot be read") from None
        where = shown_path(file)
    else:
        name = variable or default
        if name is None or (variable is None and name not in os.environ):
            return None
        if name not in os.environ:
            raise UsageError(f"the environment variable {excerpt(name)} is not set; it should hold the key")
        key, where = os.environ[name].strip(), f"the environment variable {name}"
    if not (key and len(key) <= _LONGEST_KEY and key.isascii() and key.isprintable() and " " not in key):
        raise UsageError(f"{where}: holds no key; expected printable ASCII without spaces")
    return key


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


def _is_here(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _backoff(attempt: int) -> float:
    # A random part, so that many clients do not return together.
    return min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** min(attempt, 30)) * random.uniform(0.5, 1.5)  # noqa: S311


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
    return min(LONGEST_WAIT, max(0.0, seconds)) if math.isfinite(seconds) else _backoff(attempt)

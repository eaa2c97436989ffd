"""The client: the library's types through a server and back, and what it does when the server cannot."""

from __future__ import annotations

import gzip
import json
import math
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from email.utils import formatdate
from time import time
from typing import Any

import httpx2
import numpy as np
import pytest

from conftest import EXAMPLES
from prefcast import Client, Pair, load_forecaster, open_pairs
from prefcast.errors import ServiceError, UsageError
from prefcast.forecasts.best import answer_pairs, ranked_answers
from prefcast.service.client import _TRUNCATION
from servers import Server, serving

TOKEN = "a-token-of-the-tests"  # noqa: S105
PAIR = Pair.of("Why?", "Because.", "No idea.")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving("--model", "surface", "--max-pairs", "10", PREFCAST_TOKEN=TOKEN) as found:
        yield found


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(server.url, TOKEN) as found:
        yield found


def examples() -> list[Pair]:
    with open_pairs(EXAMPLES) as file:
        return [pair for pair in file if isinstance(pair, Pair)]


def test_forecasts_are_those_of_the_library(client: Client) -> None:
    pairs = examples()
    found = client.forecast(iter(pairs))
    expected = load_forecaster("surface").forecast(pairs)
    assert len(found) == len(pairs) > 10  # more than one request
    for one, other in zip(found, expected, strict=True):
        assert one == other


def test_an_explanation_is_that_of_the_library(client: Client) -> None:
    pair = examples()[0]
    assert client.explain(pair) == load_forecaster("surface").explain(pair)


def test_a_ranking_is_that_of_the_library(client: Client) -> None:
    responses = ["No.", "Because air scatters short waves more.", "- a\n- b"]
    found = client.rank("Why?", responses)
    expected = ranked_answers(3, list(load_forecaster("surface").forecast(answer_pairs("Why?", responses))))
    assert found.order == expected.order
    assert np.array_equal(found.strengths, expected.strengths)
    assert np.array_equal(found.probabilities, expected.probabilities, equal_nan=True)


def test_models_and_readiness(client: Client, server: Server) -> None:
    assert client.models()["forecaster"]["name"] == "surface"
    assert client.ready()
    assert not Client("http://127.0.0.1:1", retries=0).ready()
    assert client.forecast([]) == []
    with Client(server.url + "/", TOKEN) as other:
        assert other.ready()


def test_what_is_wrong_is_said(client: Client, server: Server) -> None:
    with Client(server.url, "another-token") as other, pytest.raises(ServiceError, match="Authorization") as refused:
        other.models()
    assert (refused.value.status, refused.value.kind) == (401, "unauthorized")
    with pytest.raises(UsageError, match="reads pairs"):
        client.score([[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]])
    with pytest.raises(UsageError, match="expected pairs"):
        client.forecast(["no pair"])  # type: ignore[list-item]
    with pytest.raises(UsageError, match="at least two"):
        client.rank("Why?", ["one"])
    long = client.forecast([PAIR, Pair.of("x" * 200_001, "a", "b", id="long")])
    assert long[0].error is None
    assert long[1].error is not None
    assert (long[1].error.id, long[1].error.field, long[1].error.row) == ("long", "prompt.0", 2)
    assert math.isnan(long[1].margin)
    with pytest.raises(ServiceError, match=r"http://127\.0\.0\.1:1: no answer"):
        Client("http://127.0.0.1:1", retries=1, sleep=lambda seconds: None).models()


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:8000",
        "ftp://host",
        "http://",
        "http://u:p@host",
        "http://host:x",
        "http://h/?q",
        "http://h/#f",
        "http://h\x00/",
        "http://" + "a" * 70,
    ],
)
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(UsageError, match="is not the address of a server"):
        Client(url)


def test_times_that_are_none() -> None:
    for timeout in (0, -1, math.nan, math.inf):
        with pytest.raises(UsageError, match="timeout"):
            Client("http://127.0.0.1:1", timeout=timeout)


def test_tokens_that_are_none() -> None:
    for token in ("", "a\nb", "ü", " a"):
        with pytest.raises(UsageError, match="token"):
            Client("http://127.0.0.1:1", token)


class Fake(httpx2.BaseTransport):
    """A transport that gives these answers in turn."""

    def __init__(self, *answers: httpx2.Response | Exception) -> None:
        self.answers = list(answers)
        self.sent: list[httpx2.Request] = []

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        self.sent.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def answer(status: int, document: Any, **headers: str) -> httpx2.Response:
    return httpx2.Response(
        status,
        headers={name.replace("_", "-"): value for name, value in headers.items()},
        content=json.dumps(document).encode(),
    )


RESET = httpx2.ReadError("reset")
FORECAST = {
    "id": None,
    "error": None,
    "probabilities": {"a": 0.3, "b": 0.3, "tie": 0.4},
    "margin": 0,
    "tie": 0,
    "interval": None,
    "truncation": None,
}
BUSY = {"error": {"type": "too_busy", "field": "", "message": "later"}}


def asked(*answers: httpx2.Response | Exception, retries: int = 4) -> tuple[dict[str, Any], list[float], Fake]:
    waits: list[float] = []
    fake = Fake(*answers)
    return Client("http://h", transport=fake, sleep=waits.append, retries=retries).models(), waits, fake


def test_it_waits_as_long_as_the_server_says() -> None:
    found, waits, fake = asked(
        answer(429, BUSY, retry_after="3"),
        answer(503, BUSY, retry_after="0"),
        answer(429, BUSY, retry_after="100000"),
        answer(429, BUSY, retry_after=formatdate(time() + 20, usegmt=True)),
        answer(200, {"fine": 1}),
    )
    assert found == {"fine": 1}
    assert waits[:3] == [3, 0, 60]
    assert 15 < waits[3] <= 20
    assert len(fake.sent) == 5


def test_without_a_word_it_waits_longer_each_time() -> None:
    for silent in ({}, {"retry_after": "soon"}, {"retry_after": "nan"}):
        _, waits, _ = asked(*[answer(429, BUSY, **silent)] * 3, RESET, answer(200, {}))
        assert len(waits) == 4
        for attempt, seconds in enumerate(waits):
            assert 0.125 * 2**attempt <= seconds <= 0.375 * 2**attempt


def test_it_gives_up_in_the_end() -> None:
    with pytest.raises(ServiceError, match="later") as refused:
        asked(*[answer(429, BUSY)] * 3, retries=2)
    assert (refused.value.status, refused.value.kind) == (429, "too_busy")
    with pytest.raises(ServiceError, match="no answer: reset"):
        asked(RESET, RESET, retries=1)


@pytest.mark.parametrize("status", [400, 401, 404, 413, 422, 500, 504, 302])
def test_what_asking_again_would_not_mend_is_not_asked_again(status: int) -> None:
    with pytest.raises((ServiceError, UsageError)):
        asked(answer(status, BUSY))


@pytest.mark.parametrize(
    "reply",
    [
        httpx2.Response(200, content=b"<html>"),
        httpx2.Response(200, content=b"[]"),
        httpx2.Response(200, content=b"\xff"),
        httpx2.Response(500, content=b""),
        httpx2.Response(502, content=b'{"error": 3}'),
        httpx2.Response(200, headers={"Content-Encoding": "gzip"}, content=gzip.compress(b"{}")),
    ],
)
def test_other_servers_are_told_from_ours(reply: httpx2.Response) -> None:
    with pytest.raises(ServiceError):
        asked(reply)


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"forecasts": 3},
        {"forecasts": []},
        {"forecasts": [{}]},
        {"forecasts": [None]},
        {"forecasts": [{"error": None, "probabilities": {"a": "x"}, "interval": None, "truncation": None}]},
        {"forecasts": [{"error": 7}]},
        {"forecasts": [{**FORECAST, "margin": 10**400}]},
        {"forecasts": [{**FORECAST, "truncation": dict.fromkeys(_TRUNCATION, 1e999)}]},
        {"forecasts": [{"error": None, "interval": {"a": 1}, "truncation": None}]},
    ],
)
def test_answers_of_another_form_are_service_errors(document: Any) -> None:
    fake = Fake(answer(200, {"limits": {"pairs": 5}}), answer(200, document))
    with pytest.raises(ServiceError, match="not that of a prefcast server"):
        Client("http://h", transport=fake).forecast([PAIR])


def test_what_a_server_says_is_printable() -> None:
    fault = {"error": {"type": "x\x1b", "field": "\x1b[31m", "message": "y\x1b" * 9_000}}
    with pytest.raises(ServiceError) as refused:
        asked(answer(500, fault))
    assert "\x1b" not in str(refused.value) + refused.value.kind
    assert len(str(refused.value)) < 1000


def test_the_token_goes_nowhere_else() -> None:
    fake = Fake(httpx2.Response(302, headers={"location": "http://evil.example"}))
    with pytest.raises(ServiceError):
        Client("http://h", TOKEN, transport=fake).models()
    assert [(str(sent.url), sent.headers["Authorization"]) for sent in fake.sent] == [
        ("http://h/v1/models", f"Bearer {TOKEN}")
    ]


def test_no_proxy_of_the_environment_is_used(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with Client(server.url, TOKEN, retries=0) as client:
        assert client.ready()


def test_an_answer_without_an_end_is_given_up() -> None:
    part = b" " * 1_000_000
    sent = 0

    def parts() -> Iterator[bytes]:
        nonlocal sent
        while True:
            sent += 1
            yield part

    with pytest.raises(ServiceError, match="more than 64,000,000 bytes"):
        asked(httpx2.Response(200, content=parts()))
    assert sent == 65


def test_a_connection_that_breaks_is_opened_again() -> None:
    def answers(listening: socket.socket) -> None:
        # The first connection ends after half an answer, the second at once after a whole one.
        for sent in (
            b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{",
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        ):
            connection, _ = listening.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(sent)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=answers, args=(listening,))
        thread.start()
        waits: list[float] = []
        with Client(f"http://127.0.0.1:{listening.getsockname()[1]}", sleep=waits.append) as client:
            assert client.models() == {}
        thread.join(60)
    assert len(waits) == 1


def test_the_client_needs_its_own_extra_alone() -> None:
    code = (
        "import sys\n"
        "for name in ('uvicorn', 'pydantic', 'prometheus_client', 'starlette'): sys.modules[name] = None\n"
        "import prefcast; prefcast.Client('http://127.0.0.1:1')\n"
        "print([name for name in ('torch', 'pandas', 'pyarrow', 'onnxruntime') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_client_without_its_extra_names_it() -> None:
    code = (
        "import sys\n"
        "sys.modules['httpx2'] = None\n"
        "import prefcast\n"
        "try: prefcast.Client\n"
        "except prefcast.PrefcastError as error: print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "MissingExtraError httpx2 is not installed: pip install 'prefcast[remote]'"


def test_serving_without_the_extra_names_it() -> None:
    code = (
        "import sys, importlib.util as util\n"
        "real = util.find_spec\n"
        "util.find_spec = lambda name, *more: None if name == 'starlette' else real(name, *more)\n"
        "sys.argv = ['prefcast', 'serve']\n"
        "import prefcast.cli; prefcast.cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert "pip install 'prefcast[serve]'" in done.stderr

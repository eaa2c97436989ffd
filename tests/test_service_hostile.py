"""The service among strangers: no body, no header, no slowness makes it fail, block others or tell what it should not."""

from __future__ import annotations

import asyncio
import hmac
import json
import random
import re
import socket
import stat
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from conftest import Run
from prefcast import Pair, load_forecaster
from prefcast.cli.listening import _token
from prefcast.errors import ModelError, UsageError
from prefcast.scorers.base import Evidence
from prefcast.service.app import Service
from prefcast.service.forecasting import BatchForecaster, Found, ToForecast
from prefcast.service.guard import Guard
from prefcast.service.limits import Limits
from prefcast.service.openapi import document
from prefcast.service.reading import parsed
from prefcast.service.refusals import Refusal
from prefcast.service.server import bind
from servers import PAIR, Server, in_process, serving

TOKEN = "a-token-of-the-tests"  # noqa: S105
JSON = {"Content-Type": "application/json"}
HIDDEN = "planted-text-7391"
SECURED = (
    ("POST", "/v1/forecast"),
    ("POST", "/v1/score"),
    ("POST", "/v1/rank"),
    ("POST", "/v1/rows"),
    ("POST", "/get_reward"),
    ("POST", "/classify"),
    ("POST", "/score"),
    ("GET", "/v1/models"),
    ("GET", "/metrics"),
    ("GET", "/v1/nothing"),
    ("PUT", "/v1/forecast"),
    ("HEAD", "/metrics"),
)
OPEN = ("/", "/health", "/ready", "/docs", "/docs.css", "/openapi.json")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(
        "--model", "surface", "--max-pairs", "20", "--max-characters", "5000", "--max-body", "100000"
    ) as found:
        yield found


@pytest.fixture(scope="module")
def secured() -> Iterator[Server]:
    with serving("--model", "surface", PREFCAST_TOKEN=TOKEN) as found:
        yield found


@pytest.mark.parametrize(("method", "path"), SECURED)
def test_every_route_wants_the_token(secured: Server, method: str, path: str) -> None:
    wrong = [{}, {"Authorization": f"Bearer {TOKEN}x"}, {"Authorization": "Bearer "}, {"Authorization": TOKEN}]
    wrong += [
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": f"Bearer {TOKEN[:-1]}"},
        {"Authorization": "Bearer ü"},
    ]
    for headers in wrong:
        reply = secured.ask(method, path, b"{}" if method == "POST" else None, headers)
        assert reply.status == 401, (path, headers)
        assert reply.headers["www-authenticate"] == "Bearer"
        if method != "HEAD":
            assert reply.error["type"] == "unauthorized"
    right = secured.ask(method, path, b"{}" if method == "POST" else None, {"Authorization": f"bearer {TOKEN}"})
    assert right.status not in (401, 500)


@pytest.mark.parametrize("path", OPEN)
def test_the_page_and_the_probes_load_without_one(secured: Server, path: str) -> None:
    assert secured.ask("GET", path).status == 200
    # What a load balancer or `curl -I` asks.
    head = secured.ask("HEAD", path)
    assert (head.status, head.body) == (200, b"")


def test_the_token_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []
    real = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append((a, b)) or real(a, b))
    guard = Guard(None, token=TOKEN, hosts=None, routes=(), seen=lambda *a: None, failed=lambda what: None)  # type: ignore[arg-type]
    for token, refused in ((TOKEN, False), ("", True), (TOKEN * 20, True)):
        scope = {"path": "/metrics", "headers": [(b"authorization", b"Bearer " + token.encode())]}
        assert (guard._refusal(scope) is not None) is refused
    # Always whole and of one length, whatever was sent.
    assert [(len(a), len(b)) for a, b in compared] == [(32, 32)] * 3


def test_where_the_token_comes_from(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\nanything\n")
    file.chmod(stat.S_IRUSR)
    with serving("--model", "surface", "--token-file", str(file), token=TOKEN) as found:
        assert found.ask("GET", "/v1/models").status == 200
        assert not any(TOKEN in line for line in found.lines)
    for token, path, problem in (
        ("short", None, "at least 8"),
        ("with a space in it", None, "without spaces"),
        (None, tmp_path / "none", "No such file"),
        (TOKEN, file, "given twice"),
    ):
        with pytest.raises(UsageError, match=problem):
            _token(token, path)


def test_nobody_listens_to_the_world_by_accident(prefcast: Run) -> None:
    for host in ("0.0.0.0", "::", ""):  # noqa: S104
        with pytest.raises(UsageError, match="--no-token"):
            bind(host, 0, beyond_loopback=False)
    with pytest.raises(UsageError, match="--host"):
        bind("no.such.name.invalid", 0, beyond_loopback=False)
    for host in ("a" * 70, "a..b"):
        with pytest.raises(UsageError, match="is not the name of a machine"):
            bind(host, 0, beyond_loopback=False)
    with pytest.raises(UsageError, match="queue"):
        Limits(queue=3)
    for options, problem in (
        (("--host", "0.0.0.0"), "--no-token"),  # noqa: S104
        (("--token", TOKEN, "--no-token"), "give one of them"),
    ):
        done = prefcast("serve", "--model", "surface", "--port", "0", *options)
        assert done.returncode == 2, options
        assert problem in done.stderr, done.stderr
        assert len(done.stderr.splitlines()) == 1
    with serving("--model", "surface", "--host", "0.0.0.0", "--no-token") as found:  # noqa: S104
        for host in ("any.example", "[::1"):
            assert found.ask("GET", "/", headers={"Host": host}).status == 200


def test_a_port_that_is_taken_is_named(prefcast: Run, server: Server) -> None:
    done = prefcast("serve", "--model", "surface", "--port", str(server.port))
    assert done.returncode == 2
    assert f"--port {server.port}" in done.stderr


def test_strange_names_are_not_answered(server: Server) -> None:
    for host in (
        "evil.example",
        "evil.example:80",
        "127.0.0.1.evil.example",
        "[::1",
        "",
        "localhost.evil.example:8000",
    ):
        reply = server.ask("GET", "/health", headers={"Host": host})
        assert (reply.status, reply.error["type"]) == (421, "wrong_host"), host
    for host in ("localhost", f"LOCALHOST:{server.port}", "127.0.0.1:1", "[::1]:80", "[::1]", "127.8.8.8"):
        assert server.ask("GET", "/health", headers={"Host": host}).status == 200, host
    with serving("--model", "surface", "--allow-host", "prefcast.example") as proxied:
        assert proxied.ask("GET", "/health", headers={"Host": "prefcast.example"}).status == 200
        assert proxied.ask("GET", "/health", headers={"Host": "other.example"}).status == 421


def test_a_body_with_two_lengths_ends_the_connection(server: Server) -> None:
    body = b"0\r\n\r\nGET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"
    head = "POST /v1/forecast HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=120) as connection:
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        answers = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answers.startswith(b"HTTP/1.1 400")
    assert answers.count(b"HTTP/1.1 ") == 1


def test_every_answer_has_the_security_headers(server: Server) -> None:
    replies = [server.ask("GET", path) for path in (*OPEN, "/metrics", "/nothing", "/static/nothing")]
    replies += [
        server.ask("POST", "/v1/forecast", b"{"),
        server.ask("DELETE", "/health"),
        server.ask("POST", "/v1/forecast", PAIR),
    ]
    replies += [server.ask("OPTIONS", "/v1/forecast", headers={"Origin": "http://evil.example"})]
    replies += [server.ask("GET", "/health", headers={"Host": "evil.example"})]
    for reply in replies:
        policy = dict(each.strip().split(" ", 1) for each in reply.headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == "'self'"
        assert policy["frame-ancestors"] == "'none'"
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in reply.headers
        assert "server" not in reply.headers


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        (b"", 400, "bad_json"),
        (b"\xff\xfe{", 400, "bad_json"),
        (b'{"prompt": NaN}', 400, "bad_json"),
        (b'{"prompt": -Infinity}', 400, "bad_json"),
        (b'{"a": 1, "a": 2}', 400, "bad_json"),
        (b"[" * 50_000, 400, "bad_json"),
        (b'{"a":' * 15_000, 400, "bad_json"),
        (b'{"id": ' + b"9" * 10_000 + b"}", 400, "bad_json"),
        (b"[]", 422, "invalid"),
        (b"null", 422, "invalid"),
        (b"{}", 422, "invalid"),
        (json.dumps({**PAIR, "id": 2**63}).encode(), 422, "invalid"),
        (json.dumps({**PAIR, "id": True}).encode(), 422, "invalid"),
        (json.dumps({**PAIR, "id": 1.5}).encode(), 422, "invalid"),
        (json.dumps({**PAIR, "explain": 1}).encode(), 422, "invalid"),
        (json.dumps({**PAIR, "more": 1}).encode(), 422, "invalid"),
        (json.dumps({**PAIR, "prompt": []}).encode(), 422, "invalid"),
        (json.dumps({**PAIR, "prompt": [1]}).encode(), 422, "invalid"),
        (json.dumps({**PAIR, "prompt": "x" * 5001}).encode(), 422, "too_long"),
        (json.dumps({**PAIR, "prompt": ["x"] * 300}).encode(), 422, "too_long"),
        (json.dumps({"pairs": []}).encode(), 422, "invalid"),
        (json.dumps({"pairs": [PAIR] * 21}).encode(), 422, "too_long"),
        (json.dumps({"pairs": {}}).encode(), 422, "invalid"),
        (json.dumps({"pairs": [PAIR], "prompt": "x"}).encode(), 422, "invalid"),
        (json.dumps({"conversation_a": [], "conversation_b": []}).encode(), 422, "invalid"),
        (json.dumps({"conversation_a": "[]", "conversation_b": []}).encode(), 422, "invalid"),
        (json.dumps({"conversation_a": [{"role": [], "content": {}}], "conversation_b": [1]}).encode(), 422, "invalid"),
        (b'{"prompt": "' + b"x" * 200_000 + b'"}', 413, "too_large"),
    ],
)
def test_bodies_that_are_refused(server: Server, body: bytes, status: int, kind: str) -> None:
    reply = server.ask("POST", "/v1/forecast", body)
    assert (reply.status, reply.error["type"]) == (status, kind), reply.body


@pytest.mark.parametrize("text", ["", "\ud800", "\x00\x1b[31m", "\u202e", "x" * 5000, " \n" * 2000, "𝕏" * 1500])
def test_strange_texts_are_texts(server: Server, text: str) -> None:
    body = json.dumps({"prompt": text, "response_a": [text], "response_b": "b", "id": text[:900], "explain": True})
    reply = server.ask("POST", "/v1/forecast", body.encode())
    assert reply.status == 200, reply.body
    assert reply.json["id"] == text[:900].replace("\ud800", "\ufffd")


def test_a_body_of_nothing_but_objects_is_given_up_early() -> None:
    assert parsed(b'{"pairs": [' + b",".join([b"{}"] * 200_000) + b"]}")
    with pytest.raises(Refusal, match="more than 300000 objects"):
        parsed(b'{"pairs": [' + b",".join([b"{}"] * 300_000) + b"]}")


@pytest.mark.parametrize("value", [b"[]", b"1.5", b'"a"', b'"\\""', b'"\\\\"'])
def test_a_body_of_small_values_is_given_up_before_it_takes_memory(value: bytes) -> None:
    with pytest.raises(Refusal, match="more than 1000000 values"):
        parsed(b'{"pairs": [' + b",".join([value] * 1_000_001) + b"]}")


def test_an_object_of_many_fields_is_given_up() -> None:
    fields = b",".join(b'"%d": 1' % number for number in range(101))
    with pytest.raises(Refusal, match="more than 100 fields"):
        parsed(b"{" + fields + b"}")


def test_commas_within_texts_are_no_values() -> None:
    text = ',["\\[' * 400_000
    assert parsed(json.dumps({"prompt": text}).encode()) == {"prompt": text}


def test_what_is_not_json_by_its_header_is_refused(server: Server) -> None:
    body = json.dumps(PAIR).encode()
    for kind in ("text/plain", "", "application/x-www-form-urlencoded", "multipart/form-data"):
        assert (
            server.ask("POST", "/v1/forecast", body, {"Content-Type": kind}).error["type"] == "unsupported_media_type"
        )
    assert server.ask("POST", "/v1/forecast", body, {**JSON, "Content-Encoding": "gzip"}).status == 415
    assert server.ask("POST", "/v1/forecast", body, {"Content-Type": "Application/JSON; charset=utf-8"}).status == 200


def test_what_a_route_does_not_know_is_refused(server: Server) -> None:
    assert server.ask("GET", "/nothing").error["type"] == "not_found"
    reply = server.ask("GET", "/v1/forecast")
    assert (reply.status, reply.error["type"], reply.headers["allow"]) == (405, "method_not_allowed", "POST")
    assert server.ask("POST", "/v1/rank", {"prompt": "a", "responses": ["b"] * 17}).error["field"] == "responses"
    assert (
        server.ask("POST", "/v1/rank", {"prompt": ["a", "b"], "responses": ["b", "c"]}).error["field"] == "responses.0"
    )


def raw(server: Server, data: bytes, *, close: bool = True) -> bytes:
    """What comes back for these bytes, until the server closes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=120) as connection:
        connection.sendall(data)
        if close:
            connection.shutdown(socket.SHUT_WR)
        parts = []
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 64,
        b"GET / FTP/1.1\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"POST /v1/forecast HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/forecast HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcde",
        b"GET / HTTP/1.1\r\n\r\n",
    ],
)
def test_what_is_not_http_gets_a_400(server: Server, data: bytes) -> None:
    answer = raw(server, data)
    assert answer.startswith(b"HTTP/1.1 400 "), answer
    assert b"content-security-policy" in answer
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["type"] == "bad_request"


def test_sizes_are_counted_and_not_believed(server: Server) -> None:
    head = b"POST /v1/forecast HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    huge = raw(server, head + b"Content-Length: 99999999999\r\n\r\n{", close=False)
    assert huge.startswith(b"HTTP/1.1 413 ")
    chunk = b"1000\r\n" + b" " * 4096 + b"\r\n"
    chunked = raw(server, head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 30 + b"0\r\n\r\n")
    assert chunked.startswith(b"HTTP/1.1 413 ")
    endless = raw(server, head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 100, close=False)
    assert endless.startswith(b"HTTP/1.1 413 ")


def test_slow_and_half_open_connections_do_not_block_others() -> None:
    body = json.dumps(PAIR).encode()
    head = (
        b"POST /v1/forecast HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
        % len(body)
    )
    with serving("--model", "surface") as server:
        connections = []
        # More than the server keeps open (512): the oldest that ask nothing make room.
        for number in range(600):
            connection = socket.create_connection(("127.0.0.1", server.port), timeout=300)
            connection.sendall((b"", head[:20], head, head + b"\r\n" + body[:5])[number % 4])
            connections.append(connection)
        slow = socket.create_connection(("127.0.0.1", server.port), timeout=300)
        slow.sendall(head + b"\r\n" + body[:10])
        for _ in range(20):
            assert server.ask("POST", "/v1/forecast", PAIR).status == 200
        # The slow one is answered once it has said all.
        for byte in body[10:40]:
            slow.sendall(bytes([byte]))
            time.sleep(0.001)
        slow.sendall(body[40:])
        assert slow.recv(15) == b"HTTP/1.1 200 OK"
        closed = 0
        for connection in connections:
            connection.setblocking(False)
            try:
                closed += connection.recv(1) == b""
            except BlockingIOError:
                pass
            except ConnectionError:
                closed += 1
            connection.close()
        slow.close()
        assert closed >= 600 - 512


def test_heads_and_bodies_that_do_not_come_are_given_up() -> None:
    limits = Limits(header_seconds=0.2, body_seconds=0.2, idle_seconds=1)
    with in_process(Service(load_forecaster("surface"), limits=limits)) as server:
        assert raw(server, b"", close=False) == b""
        assert raw(server, b"GET / HTTP/1.1\r\nHost: 127.0", close=False) == b""
        head = b"POST /v1/forecast HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        late = raw(server, head + b"Content-Length: 50\r\n\r\n{", close=False)
        assert late.startswith(b"HTTP/1.1 408 ")
        # After an answer, too, the connection is not kept for ever.
        kept = raw(server, b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", close=False)
        assert kept.startswith(b"HTTP/1.1 200 ")


def test_bodies_together_have_a_bound() -> None:
    service = Service(load_forecaster("surface"), limits=Limits(buffered_bytes=2_000))
    with in_process(service) as server, socket.create_connection(("127.0.0.1", server.port)) as other:
        other.sendall(
            b"POST /v1/forecast HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            b"Content-Length: 1900\r\n\r\n" + b" " * 1800
        )
        while service.bodies.held < 1800:
            time.sleep(0.01)
        refused = server.ask("POST", "/v1/forecast", PAIR | {"prompt": "x" * 300})
        assert (refused.status, refused.error["type"], refused.headers["retry-after"]) == (429, "too_busy", "1")
        other.close()
        while service.bodies.held:
            time.sleep(0.01)
        assert server.ask("POST", "/v1/forecast", PAIR | {"prompt": "x" * 300}).status == 200
        assert service.bodies.held == 0


def test_a_forecaster_that_cannot_work_ends_the_server() -> None:
    surface = load_forecaster("surface")

    class Broken(type(surface.scorer)):  # type: ignore[misc]
        def compute(self, pairs: Any) -> Evidence:
            raise ModelError("its weights are missing")

    service = Service(replace(surface, scorer=Broken(surface.scorer.model)))
    with in_process(service):
        pass
    assert service.broken == "its weights are missing"
    assert not service.ready


def test_nothing_of_the_texts_is_logged(tmp_path: Path) -> None:
    for log in ("text", "json"):
        with serving("--model", "surface", "--log", log) as server:
            server.forecast(prompt=HIDDEN, response_a=HIDDEN, response_b="b")
            server.ask("POST", "/v1/forecast", {"pairs": [{HIDDEN: HIDDEN}], HIDDEN: 1})
            server.ask("POST", "/v1/forecast", f'{{"{HIDDEN}'.encode())
            server.ask("GET", f"/{HIDDEN}?{HIDDEN}", headers={"User-Agent": HIDDEN, "Authorization": HIDDEN})
            server.ask("GET", "/%1b%5b31m%0aforged", headers={"Host": HIDDEN})
            raw(server, f"{HIDDEN} / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        text = "".join(server.lines)
        assert HIDDEN not in text
        assert "\x1b" not in text
        assert "forged" not in text
        lines = [line for line in server.lines if "/v1/forecast" in line]
        assert len(lines) == 3
        if log == "json":
            assert set(json.loads(lines[0])) == {"event", "time", "method", "route", "status", "ms"}
            assert json.loads(server.lines[-1])["event"] == "stopped"
        else:
            assert re.fullmatch(r"prefcast: POST /v1/forecast 200 [\d.]+ ms\n", lines[0])


def test_a_scorer_that_fails_on_one_pair_fails_for_it_alone() -> None:
    surface = load_forecaster("surface")

    class Scorer(type(surface.scorer)):  # type: ignore[misc]
        def compute(self, pairs: Any) -> Evidence:
            if any(pair.prompt == (HIDDEN,) for pair in pairs):
                raise RuntimeError(HIDDEN)
            found = super().compute(pairs)
            bad = np.array([pair.prompt == ("nan",) for pair in pairs])
            return Evidence(np.where(bad, np.nan, found.margin), found.tie, raw=found.raw)

    reports: list[str] = []
    forecaster = BatchForecaster(replace(surface, scorer=Scorer(surface.scorer.model)), reports.append)
    items = [ToForecast(Pair.of(prompt, "a", "b")) for prompt in ("Why?", HIDDEN, "nan", "Who?")]
    found = forecaster.run(list(items))
    assert [type(each) for each in found] == [Found, Refusal, Refusal, Found]
    assert found[1].args == ("internal", "the forecaster failed on this item", "")
    assert found[2].type == "scoring"
    assert "not finite" in found[2].message
    assert reports == ["RuntimeError"]


def test_an_unforeseen_fault_has_the_form_of_every_refusal() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError(HIDDEN)

    failed: list[str] = []
    seen: list[tuple[str, str, int]] = []
    guard = Guard(
        app, token=None, hosts=None, routes=("/",), seen=lambda *said: seen.append(said[:3]), failed=failed.append
    )
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(guard({"type": "http", "method": "GET", "path": "/", "headers": []}, None, send))  # type: ignore[arg-type]
    assert (sent[0]["status"], json.loads(sent[1]["body"])["error"]["type"]) == (500, "internal")
    assert HIDDEN.encode() not in sent[1]["body"]
    assert (failed, seen) == (["RuntimeError"], [("GET", "/", 500)])


def test_the_openapi_document_has_the_limits_of_its_server() -> None:
    limits = Limits(text_characters=11, turns=12, pairs=13, responses=14)
    found = document(limits, secured=True)
    bounds = set(re.findall(r'"(max\w+)": ("?\w+"?)', json.dumps(found["components"]["schemas"])))
    # The ends of an interval are two.
    said = {
        ("maxItems", "2"),
        ("maxLength", "11"),
        ("maxItems", "11"),
        ("maxItems", "12"),
        ("maxItems", "13"),
        ("maxItems", "14"),
        ("maxItems", "25"),
    }
    assert said | {("maxLength", "1000"), ("maximum", str(2**63 - 1))} == bounds
    wanted = {path for path, methods in found["paths"].items() for each in methods.values() if "security" in each}
    assert wanted == {
        *("/v1/forecast", "/v1/score", "/v1/rank", "/v1/rows", "/v1/models", "/metrics"),
        *("/get_reward", "/classify", "/score"),
    }


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
FIELDS = st.sampled_from(
    [
        "prompt",
        "response_a",
        "response_b",
        "id",
        "explain",
        "both_orders",
        "pairs",
        "conversation_a",
        "conversation_b",
        "conversations",
        "responses",
        "query",
        "input",
        "messages",
        "text_1",
        "text_2",
        "use_activation",
    ]
)
ALMOST = st.dictionaries(
    FIELDS, JSON_VALUES | st.just([PAIR]) | st.just([{"role": "user", "content": "x"}]), max_size=7
)
ROUTES = ("/v1/forecast", "/v1/score", "/v1/rank", "/get_reward", "/classify", "/score")


def mangled(generator: random.Random) -> bytes:
    """A sound body with some of its bytes changed."""
    body = bytearray(
        json.dumps(generator.choice([PAIR, {"pairs": [PAIR, PAIR]}, {"prompt": "a", "responses": ["b", "c"]}])).encode()
    )
    for _ in range(generator.randrange(1, 6)):
        at = generator.randrange(len(body))
        choice = generator.randrange(3)
        if choice == 0:
            body[at] = generator.randrange(256)
        elif choice == 1:
            del body[at : at + generator.randrange(1, 9)]
        else:
            body[at:at] = generator.choice([b'"', b"\\ud800", b"[[", b"}", b"1e999", b"NaN", b"\x00", b"null", b"\\"])
        if not body:
            body = bytearray(b" ")
    return bytes(body)


def check_malformed(server: Server, count: int) -> None:
    generator = random.Random(count)
    statuses = set()
    for number in range(count // 2):
        reply = server.ask("POST", ROUTES[number % 3], mangled(generator))
        assert reply.status < 500
        if reply.status != 200:
            assert reply.error["type"]
        statuses.add(reply.status)
    assert statuses >= {200, 400, 422}

    @settings(
        max_examples=count // 2,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
        database=None,
    )
    @given(ALMOST | JSON_VALUES, st.sampled_from(ROUTES))
    def almost(document: Any, route: str) -> None:
        reply = server.ask("POST", route, document)
        assert reply.status < 500, reply.body
        if reply.status != 200:
            assert reply.error["type"]

    almost()
    assert server.ask("POST", "/v1/forecast", PAIR).status == 200


def check_schema(server: Server, count: int) -> None:
    """What schemathesis makes of the server's own OpenAPI document: no 5xx, and every answer as the document says."""
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        negative_data_rejection,
        response_headers_conformance,
        response_schema_conformance,
        status_code_conformance,
        unsupported_method,
    )

    checks = [
        not_a_server_error,
        status_code_conformance,
        content_type_conformance,
        response_schema_conformance,
        response_headers_conformance,
        negative_data_rejection,
        unsupported_method,
    ]
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    asked = 0
    operations = [operation.ok() for operation in schema.get_all_operations()]
    share = count // (2 * sum(bool(operation.body) for operation in operations) - 2) + 1
    for operation in operations:
        for mode in schemathesis.GenerationMode:
            if not operation.body and mode is schemathesis.GenerationMode.NEGATIVE:
                continue
            # What has no body and no parameters has nothing to vary. A file starts a process, so fewer of these.
            most = 1 if not operation.body else share if operation.path != "/v1/rows" else share // 25 + 1

            @settings(
                max_examples=most,
                deadline=None,
                suppress_health_check=list(HealthCheck),
                phases=[Phase.generate],
                database=None,
            )
            @given(operation.as_strategy(generation_mode=mode))
            def one(case: Any) -> None:
                nonlocal asked
                asked += 1
                case.call_and_validate(checks=checks, timeout=120)

            one()
    assert asked >= count


def test_malformed_bodies(server: Server) -> None:
    check_malformed(server, 200)


@pytest.mark.long
def test_2_000_malformed_bodies(server: Server) -> None:
    check_malformed(server, 2_000)


@pytest.fixture(scope="module")
def described() -> Iterator[Server]:
    """Its document says every bound that a generated body may meet."""
    with serving(
        "--model", "surface", "--max-pairs", "20", "--max-characters", "1000", "--max-responses", "5"
    ) as found:
        yield found


def test_answers_are_as_the_openapi_document_says(described: Server) -> None:
    check_schema(described, 30)


@pytest.mark.long
def test_5_000_answers_are_as_the_openapi_document_says(described: Server) -> None:
    check_schema(described, 5_000)

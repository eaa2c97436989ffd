"""Requests to servers: retries, waiting for a server, keys, bounds."""

from __future__ import annotations

import time
from pathlib import Path

import httpx2
import pytest

from prefcast.base.http import Connection, Retrying, read_key
from prefcast.errors import ServiceError, UsageError


class Fake(httpx2.BaseTransport):
    """Gives the answers one after the other, and the last one again and again."""

    def __init__(self, *answers: httpx2.Response | Exception) -> None:
        self.answers = list(answers)
        self.asked = 0

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        self.asked += 1
        found = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(found, Exception):
            raise found
        return found


def connection(fake: Fake, waits: list[float], **options: float) -> Connection:
    return Connection("http://h", {}, Retrying(**options), transport=fake, sleep=waits.append)


DOWN = httpx2.ConnectError("refused")


def test_a_server_that_is_down_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now.__setitem__(0, now[0] + 1) or now[0])
    waits: list[float] = []
    fake = Fake(*[DOWN] * 20, httpx2.Response(200, content=b"{}"))
    assert connection(fake, waits, times=2, wait=30).ask("GET", "/").status == 200
    assert len(waits) == 20
    assert max(waits) <= 3, "a server that starts again is asked soon"
    with pytest.raises(ServiceError, match=r"http://h: no answer: refused"):
        connection(Fake(DOWN), waits, times=2, wait=30).ask("GET", "/")


def test_a_status_that_is_no_reason_to_ask_again_is_given_at_once() -> None:
    fake = Fake(httpx2.Response(500, content=b"no"))
    assert connection(fake, []).ask("GET", "/").body == b"no"
    assert fake.asked == 1


def test_keys_come_from_the_environment_or_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONE", " sk-1 \n")
    monkeypatch.delenv("NONE", raising=False)
    (tmp_path / "key").write_text("sk-2\n")
    assert read_key("ONE", None) == "sk-1"
    assert read_key(None, tmp_path / "key") == "sk-2"
    assert read_key(None, None) is None
    assert read_key(None, None, "NONE") is None
    assert read_key(None, None, "ONE") == "sk-1"
    for variable, file, said in (
        ("NONE", None, "'NONE' is not set"),
        ("ONE", tmp_path / "key", "not both"),
        (None, tmp_path / "missing", "cannot be read"),
    ):
        with pytest.raises(UsageError, match=said):
            read_key(variable, file)
    for text in ("", "two words", "sk-\x01", "x" * 5000):
        (tmp_path / "key").write_text(text)
        with pytest.raises(UsageError, match="holds no key") as caught:
            read_key(None, tmp_path / "key")
        assert not text or text not in str(caught.value)


def test_a_server_that_was_waited_for_may_still_ask_to_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now.__setitem__(0, now[0] + 1) or now[0])
    busy = httpx2.Response(429, headers={"Retry-After": "0"}, content=b"")
    fake = Fake(*[DOWN] * 9, busy, DOWN, busy, httpx2.Response(200, content=b"{}"))
    assert connection(fake, [], times=2, wait=30).ask("GET", "/").status == 200
    assert connection(Fake(busy), [], times=2, wait=30).ask("GET", "/").status == 429

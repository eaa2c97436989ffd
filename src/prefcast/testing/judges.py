"""Judges for tests: strict fakes of their APIs, real servers on this machine, and simulated judges with known habits.

with FakeJudge(SimulatedJudge(quality), api="anthropic") as fake:
    prefcast score pairs.csv --judge {fake.url} --judge-model {fake.model} ...
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import re
import select
import socket
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from prefcast.testing.judge_apis import API_KINDS, Drawn

__all__ = ["Asked", "FakeJudge", "Judge", "Refusal", "SimulatedJudge", "Troubles", "read_texts"]

_BEGIN = re.compile(r"^\[([0-9a-f]{16}) BEGIN ([A-Z ]+?)(?: \d+)?\]$")


@dataclass(frozen=True)
class Asked:
    """What a judge is asked: the texts of a request."""

    system: str
    user: str


class Refusal(Exception):  # noqa: N818 - the judge's word
    """The judge refuses to answer."""


# The probability of each reply, by its text.
Judge = Callable[[Asked], Mapping[str, float]]
# What happens to the request with this number: None, or fail, busy, close, cut, late, die.
Trouble = Callable[[int], str | None]


def read_texts(user: str) -> dict[str, str]:
    """The texts in the blocks of a question of prefcast, by the names of the blocks; turns are joined."""
    found: dict[str, list[str]] = {}
    nonce, lines = None, list[str]()
    for line in user.split("\n"):
        if nonce is None:
            if begin := _BEGIN.match(line):
                nonce, lines = begin[1], found.setdefault(begin[2], [])
        elif line.startswith(f"[{nonce} END "):
            nonce = None
        else:
            lines.append(line.removeprefix("| "))
    return {name: "\n".join(lines) for name, lines in found.items()}


@dataclass(frozen=True)
class SimulatedJudge:
    """A judge with known habits.

    The log-odds for the first answer are `scale` times the difference of `quality`, plus `length` times the log of the
    ratio of the lengths, plus `position`. A tie has the weight exp(`tie` - `tie_slope` times the absolute log-odds without
    the position) beside the geometric mean of both. `other` is the probability of replies that are no verdict.
    """

    quality: Callable[[str], float]
    scale: float = 1.0
    position: float = 0.0
    length: float = 0.0
    tie: float = -0.5
    tie_slope: float = 0.0
    other: float = 0.0

    def __call__(self, asked: Asked) -> Mapping[str, float]:
        texts = read_texts(asked.user)
        one, two = texts["ANSWER A"], texts["ANSWER B"]
        fair = self.scale * (self.quality(one) - self.quality(two))
        fair += self.length * math.log((1 + len(one)) / (1 + len(two)))
        first = fair + self.position
        weights = {
            "A": math.exp(first / 2),
            "B": math.exp(-first / 2),
            "C": math.exp(self.tie - self.tie_slope * abs(fair)),
        }
        total = sum(weights.values()) / (1 - self.other)
        return {**{letter: weight / total for letter, weight in weights.items()}, "I": self.other}


@dataclass(frozen=True)
class Troubles:
    """Chance troubles: the probability of each kind, the same for equal numbers and seeds. `die_at` are the numbers of
    requests at which the server dies."""

    fail: float = 0.0
    busy: float = 0.0
    close: float = 0.0
    cut: float = 0.0
    late: float = 0.0
    die_at: tuple[int, ...] = ()
    seed: int = 0

    def __call__(self, number: int) -> str | None:
        if number in self.die_at:
            return "die"
        kinds = ("fail", "busy", "close", "cut", "late")
        chance = random.Random(f"{self.seed}-{number}").random()  # noqa: S311 - a test's chance
        for kind in kinds:
            chance -= getattr(self, kind)
            if chance < 0:
                return kind
        return None


class FakeJudge:
    """A strict fake of an API with the `judge` behind it, at `url`. Use it as a context manager.

    `requests` were received; `answered` of them got a whole reply, which `read` and `written` tokens are counted for;
    `paid` counts the replies by the digest of the request. `hold` is called before each reply, with its number.
    """

    def __init__(
        self,
        judge: Judge,
        *,
        api: str = "openai",
        key: str = "key-of-the-fake",
        model: str = "judge-1",
        logprobs: bool = True,
        trouble: Trouble = lambda number: None,
        dead_seconds: float = 0.2,
    ) -> None:
        self.judge, self.key, self.model = judge, key, model
        self.api = API_KINDS[api](key, model, logprobs)
        self.requests = self.answered = self.read = self.written = self.deaths = 0
        self.paid: Counter[str] = Counter()
        self.statuses: Counter[int] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.hold: Callable[[int], object] | None = None
        self._trouble, self._dead_seconds, self._seen = trouble, dead_seconds, Counter[str]()
        self._lock, self._open = threading.Lock(), set[socket.socket]()
        self._port = 0
        self._server: ThreadingHTTPServer | None = None
        self._back: threading.Timer | None = None

    @property
    def url(self) -> str:
        """The address for --judge."""
        return f"http://127.0.0.1:{self._port}{self.api.root}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._back is not None:
            self._back.cancel()
            self._back.join()
        self.stop()

    def start(self) -> None:
        """Listen; at the same port as before."""
        fake = self

        class Handler(_Handler):
            owner = fake

        self._server = _Server(("127.0.0.1", self._port), Handler)
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True, name="fake-judge").start()

    def stop(self) -> None:
        """Die: listen no more, and close every connection."""
        server, self._server = self._server, None
        if server is None:
            return
        server.shutdown()
        server.server_close()
        with self._lock:
            opened, self._open = list(self._open), set()
        for each in opened:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _die(self) -> None:
        self.deaths += 1
        self.stop()
        self._back = threading.Timer(self._dead_seconds, self.start)
        self._back.start()

    def _received(self, connection: socket.socket | None = None) -> tuple[int, str | None]:
        with self._lock:
            number = self.requests
            self.requests += 1
        return number, self._trouble(number)

    def _drawn(self, body: dict[str, Any], digest: str) -> Drawn:
        system, user, top, most = self.api.asked(body)
        read = (len(system) + len(user)) // 4 + 7
        with self._lock:
            draw = self._seen[digest]
            self._seen[digest] += 1
        try:
            said = dict(self.judge(Asked(system, user)))
        except Refusal:
            return Drawn("I can't help with that.", [], True, read, min(most, 8))
        # Equal requests draw anew, and the whole is the same in every run.
        chance = random.Random(f"{digest}-{draw}")  # noqa: S311 - a test's chance
        (text,) = chance.choices(list(said), weights=list(said.values()))
        likeliest = sorted(said.items(), key=lambda each: -each[1])[:top]
        return Drawn(text, likeliest, False, read, min(most, max(1, len(text.split()))))

    def _count(self, drawn: Drawn, digest: str, times: int) -> None:
        with self._lock:
            self.answered += times
            self.read += times * drawn.read
            self.written += times * drawn.written
            self.paid[digest] += times
            if not self.paid[digest]:
                del self.paid[digest]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no news."""


class _Handler(BaseHTTPRequestHandler):
    owner: FakeJudge
    protocol_version = "HTTP/1.1"
    # One write an answer: a second one would wait for the acknowledgement of the first.
    wbufsize = 1 << 20

    def setup(self) -> None:
        super().setup()
        with self.owner._lock:
            self.owner._open.add(self.connection)

    def finish(self) -> None:
        with self.owner._lock:
            self.owner._open.discard(self.connection)
        with suppress(OSError, ValueError):
            super().finish()

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers.get("content-length", "0")))
        fake = self.owner
        number, trouble = fake._received()
        headers = {name.lower(): value for name, value in self.headers.items()}
        if trouble == "die":
            self.close_connection = True
            threading.Thread(target=fake._die, daemon=True).start()
        elif trouble == "close":
            self.close_connection = True
        elif trouble == "late":
            self.close_connection = True
            # It never comes: the client has given up when it hangs up.
            select.select([self.connection], [], [])
        elif trouble in ("fail", "busy"):
            self._answer(fake.api.error("fault" if trouble == "fail" else "busy"), {"Retry-After": "0"})
        else:
            self._reply(number, headers, data, cut=trouble == "cut")

    def _reply(self, number: int, headers: Mapping[str, str], data: bytes, *, cut: bool) -> None:
        fake = self.owner
        try:
            body = json.loads(data)
        except ValueError:
            body = None
        if refused := fake.api.refuses(self.path, headers, body):
            self._answer(refused)
            return
        digest = hashlib.sha256(data).hexdigest()
        if fake.hold is not None:
            fake.hold(number)
        drawn = fake._drawn(body, digest)
        fake.bodies.append(body)
        # Counted before it is sent: whoever has the answer finds it counted.
        if not cut:
            fake._count(drawn, digest, 1)
        if not self._answer((200, fake.api.reply(drawn, body)), cut=cut) and not cut:
            fake._count(drawn, digest, -1)

    def _answer(self, answer: tuple[int, Any], more: Mapping[str, str] | None = None, *, cut: bool = False) -> bool:
        """Whether the whole answer was sent."""
        status, said = answer
        self.owner.statuses[status] += 1
        data = json.dumps(said).encode()
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(data)),
            **(more or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if cut else data)
        try:
            self.wfile.flush()
        except OSError:
            return False
        self.close_connection = self.close_connection or cut
        return not cut

    def log_message(self, format: str, *args: Any) -> None:
        """Nobody reads it."""

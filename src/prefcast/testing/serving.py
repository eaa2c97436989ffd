"""What the fakes of servers share: a real HTTP server on this machine, with faults that can be switched and counts of what it
answered."""

from __future__ import annotations

import hashlib
import json
import math
import random
import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import SHUT_RDWR, socket
from typing import Any, Protocol, Self

__all__ = ["Compute", "Encodes", "Faults", "Refusal", "RewardServer"]

# The raw outputs (n, labels) of n sequences of token ids, each with its token types.
Compute = Callable[[Sequence[tuple[list[int], list[int]]]], Sequence[Sequence[float]]]
Render = Callable[[Sequence[Mapping[str, str]]], str]
_CLOSE = -1


class Encodes(Protocol):
    """What a fake needs of a tokenizer: `tokenizers.Tokenizer` has it."""

    def encode(self, sequence: Any, pair: Any = None, *, add_special_tokens: bool = True) -> Any: ...


@dataclass
class Faults:
    """What is wrong with a server.

    `squash`: an activation that no switch turns off, sigmoid or softmax. `knows`: the fields for raw scores that this version of
    the server knows; None is all that the present one knows. `adds_first`: a first token is put before what was sent.
    `cuts_at`: longer sequences lose their end without a word. `sorts`: the answers of a request come largest first.
    `labels`: other names of the outputs. `batch_noise`: how far the batch moves a score. `ends_texts`: the end token is put
    behind every text.

    `fails`, `busy`, `closes`, `loses`: the shares of requests that get a 500, a 429 with Retry-After, no answer, and no answer
    after the scores were computed. `late`: the most seconds that an answer waits. `key`: what clients must send as a bearer.
    `refuses`: a text for which single requests with it are refused with 400.
    """

    squash: str | None = None
    knows: tuple[str, ...] | None = None
    adds_first: bool = False
    cuts_at: int | None = None
    sorts: bool = False
    labels: tuple[str, ...] | None = None
    batch_noise: float = 0.0
    ends_texts: bool = False
    fails: float = 0.0
    busy: float = 0.0
    retry_after: str = "0"
    closes: float = 0.0
    loses: float = 0.0
    late: float = 0.0
    key: str | None = None
    refuses: str | None = None


class Refusal(Exception):  # noqa: N818 - it is an answer
    """An answer that refuses a request."""

    def __init__(self, status: int, body: Any) -> None:
        super().__init__(status)
        self.status, self.body = status, body


class RewardServer(ABC):
    """What the fakes share. `url` is the address, `asked` how many requests came, `scored` how often each sequence was scored
    in an answer that was sent, `ignored` the unknown fields that clients sent."""

    def __init__(
        self,
        compute: Compute,
        tokenizer: Encodes,
        *,
        labels: Sequence[str] = ("LABEL_0",),
        model: str = "served",
        root: str = "",
        limit: int = 2048,
        faults: Faults | None = None,
        render: Render | None = None,
        seed: int = 0,
    ) -> None:
        self.compute, self.tokenizer, self.labels = compute, tokenizer, tuple(labels)
        self.model, self.root, self.limit, self.render = model, root or model, limit, render
        self.faults = faults or Faults()
        self.asked = 0
        self.scored: Counter[tuple[int, ...]] = Counter()
        self.ignored: list[str] = []
        self.seen: list[str] = []
        self._random, self._lock = random.Random(seed), threading.Lock()  # noqa: S311
        self._port = 0
        self._server: _Listening | None = None
        self.rise()

    # Its life

    @property
    def url(self) -> str:
        """The address, which stays the same when the server dies and comes back."""
        return f"http://127.0.0.1:{self._port}"

    def rise(self) -> None:
        """Listen, at the port that it had before."""
        if self._server is None:
            self._server = _Listening(("127.0.0.1", self._port), self)
            self._port = self._server.server_address[1]
            threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def die(self) -> None:
        """Stop listening and cut every connection, in the middle of an answer too."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.cut()
            server.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.die()

    # Answers

    def answer(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes
    ) -> tuple[int, dict[str, str], Any]:
        """Status, headers and JSON of an answer; the status -1 closes the connection."""
        faults = self.faults
        with self._lock:
            self.asked += 1
            dice = [self._random.random() for _ in range(5)]
        if faults.late:
            threading.Event().wait(dice[0] * faults.late)
        if dice[1] < faults.closes:
            return _CLOSE, {}, None
        if dice[2] < faults.busy:
            return 429, {"Retry-After": faults.retry_after}, self.error(429, "busy", "overloaded")
        if dice[3] < faults.fails:
            return 500, {}, self.error(500, "something broke", "internal")
        if faults.key is not None and headers.get("authorization") != f"Bearer {faults.key}":
            return 401, {}, self.error(401, f"the key {headers.get('authorization')} is not known", "auth")
        scored: list[tuple[int, ...]] = []
        try:
            data = json.loads(body) if body else None
            if body:
                with self._lock:
                    self.seen.append(body.decode())
            found, more = self.route(method, path, data, scored)
        except json.JSONDecodeError as error:
            return 400, {}, self.error(400, f"no JSON: {error}", "BadRequestError")
        except Refusal as refusal:
            return refusal.status, {}, refusal.body
        if dice[4] < faults.loses:
            return _CLOSE, {}, None
        with self._lock:
            self.scored.update(scored)
        return 200, more, found

    @abstractmethod
    def route(self, method: str, path: str, data: Any, scored: list[tuple[int, ...]]) -> tuple[Any, dict[str, str]]:
        """The JSON and the headers for a request. The sequences that were scored are added to `scored`."""

    @staticmethod
    def error(status: int, message: str, kind: str) -> Any:
        """The body of a refusal."""
        return {"error": {"message": message, "type": kind, "param": None, "code": status}}

    def refuse(self, status: int, message: str, kind: str = "BadRequestError") -> Refusal:
        """The exception that refuses a request."""
        return Refusal(status, self.error(status, message, kind))

    def fields(
        self, data: Any, known: Mapping[str, Callable[[Any], bool]], needed: Sequence[str] = ()
    ) -> dict[str, Any]:
        """The known fields of a body. A wrong type or a missing field is refused; unknown ones are ignored, and noted."""
        if not isinstance(data, dict):
            raise self.wrong("the body must be an object")
        for name in needed:
            if name not in data:
                raise self.wrong(f"missing field `{name}`")
        for name, value in data.items():
            if name not in known:
                self.ignored.append(name)
            elif not known[name](value):
                raise self.wrong(f"{name}: invalid value {value!r:.60}")
        return {name: value for name, value in data.items() if name in known}

    def wrong(self, message: str) -> Refusal:
        """The refusal of a body that does not have the schema's form."""
        return self.refuse(400, message)

    # Scores

    def encoded(self, texts: Sequence[str], *, special: bool) -> tuple[list[int], list[int]]:
        """Ids and token types of one text or two."""
        found = self.tokenizer.encode(*texts, add_special_tokens=special)
        return list(found.ids), list(found.type_ids)

    def first_token(self) -> list[int]:
        """The token that the tokenizer puts first."""
        return list(self.tokenizer.encode("a", add_special_tokens=True).ids)[:1]

    def outputs(
        self, sequences: Sequence[tuple[list[int], list[int]]], *, activated: bool, scored: list[tuple[int, ...]]
    ) -> tuple[list[list[float]], int]:
        """The outputs of each sequence as this server gives them, and how many tokens it read."""
        faults, read = self.faults, []
        for sent, sent_types in sequences:
            first = self.first_token() if faults.adds_first else []
            ids, types = (first + sent)[: faults.cuts_at], ([0] * len(first) + sent_types)[: faults.cuts_at]
            if len(ids) > self.limit:
                raise self.too_long(len(ids))
            if not ids:
                raise self.refuse(500, "cannot score an empty sequence", "internal")
            read.append((ids, types))
        found = [[float(each) for each in row] for row in self.compute(read)]
        if faults.batch_noise and len(read) > 1:
            together = hashlib.sha256(repr([ids for ids, _ in read]).encode()).digest()
            noise = random.Random(together)  # noqa: S311
            found = [[each + faults.batch_noise * noise.uniform(0.5, 1.0) for each in row] for row in found]
        kind = faults.squash or (self.activation() if activated else None)
        found = [_squashed(row, kind) for row in found]
        if faults.sorts:
            found.sort(key=lambda row: -row[0])
        scored += [tuple(ids) for ids, _ in sequences]
        return found, sum(len(ids) for ids, _ in read)

    def activation(self) -> str:
        """What the server puts behind the model by itself: a sigmoid for one label, a softmax for several."""
        return "sigmoid" if len(self.labels) == 1 else "softmax"

    def too_long(self, tokens: int) -> Refusal:
        """The refusal of a sequence that is too long."""
        return self.refuse(
            400,
            f"This model's maximum context length is {self.limit} tokens. However, your request has {tokens} input tokens.",
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the outputs as the server tells them."""
        return self.faults.labels or self.labels


def _squashed(row: list[float], kind: str | None) -> list[float]:
    if kind == "sigmoid":
        return [1 / (1 + math.exp(-each)) if each > 0 else math.exp(each) / (1 + math.exp(each)) for each in row]
    if kind == "softmax":
        high = max(row)
        powers = [math.exp(each - high) for each in row]
        return [each / sum(powers) for each in powers]
    return row


class _Listening(ThreadingHTTPServer):
    """Listens for one fake, and can cut its connections."""

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    # Many clients come at once.
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], fake: RewardServer) -> None:
        self.fake = fake
        self._held: set[socket] = set()
        self._lock = threading.Lock()
        super().__init__(address, _Handler)

    def get_request(self) -> tuple[socket, Any]:
        connection, address = super().get_request()
        with self._lock:
            self._held.add(connection)
        return connection, address

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._held.discard(request)
        super().shutdown_request(request)

    def cut(self) -> None:
        """End every connection."""
        with self._lock:
            held = list(self._held)
        for connection in held:
            with suppress(OSError):
                connection.shutdown(SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no event."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Listening
    # Without it each answer would wait for the client's acknowledgement.
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self._do()

    def do_POST(self) -> None:
        self._do()

    def _do(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        status, more, found = self.server.fake.answer(self.command, self.path, headers, body)
        if status == _CLOSE:
            self.close_connection = True
            return
        said = found.encode() if isinstance(found, str) else b"" if found is None else json.dumps(found).encode()
        self.send_response(status)
        for name, value in {**more, "Content-Type": "application/json", "Content-Length": str(len(said))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is logged."""

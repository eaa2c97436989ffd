"""The bounds of a server. Everything that a client could make large has one."""

from __future__ import annotations

from dataclasses import dataclass

from prefcast.errors import UsageError

__all__ = ["Limits"]


@dataclass(frozen=True)
class Limits:
    """The bounds of one server. Each is the largest value that is allowed.

    body_bytes       bytes of the body of a request
    text_characters  characters of one text
    turns            turns of a conversation
    pairs            pairs, or conversations, of a request
    responses        responses of a ranking
    seconds          seconds until a request is answered, without the time of its body
    body_seconds     seconds for the body of a request
    header_seconds   seconds for the head of a request
    answer_seconds   seconds that a client may leave an answer unread
    idle_seconds     seconds between two requests of a connection
    queue            pairs that wait or are being scored
    buffered_bytes   bytes of the bodies of all requests together; a connection's own share of it is never refused
    batch            pairs scored at once
    company_seconds  seconds that the first pair of a batch waits for others
    connections      open connections; above that the oldest one is closed that waits for its client
    """

    body_bytes: int = 16_000_000
    text_characters: int = 200_000
    turns: int = 256
    pairs: int = 256
    responses: int = 16
    seconds: float = 60.0
    body_seconds: float = 30.0
    header_seconds: float = 10.0
    answer_seconds: float = 15.0
    idle_seconds: float = 15.0
    queue: int = 512
    buffered_bytes: int = 256_000_000
    batch: int = 32
    company_seconds: float = 0.003
    connections: int = 512

    @property
    def messages(self) -> int:
        """Messages of a conversation: two for each turn, and a system message."""
        return 2 * self.turns + 1

    def __post_init__(self) -> None:
        # A pair may be forecast in both orders.
        most = max(2 * self.pairs, self.responses * (self.responses - 1) // 2)
        if self.queue < most:
            raise UsageError(f"--queue must hold the pairs of one request in both orders, {most}; found {self.queue}")

"""What a server takes, in numbers: everything that a client could make large has a bound."""

from __future__ import annotations

from dataclasses import dataclass

from prefcast.errors import UsageError

__all__ = ["Limits"]


@dataclass(frozen=True)
class Limits:
    """Bounds of one server.

    `body_bytes` of a request, `text_characters` of one text, `turns` of a conversation, `pairs` of a request (and
    conversations), `responses` of a ranking. `seconds` is the most that a request may take, its body not counted, which has
    `body_seconds`. `queue` is the most pairs that wait or are scored at a time, `buffered_bytes` the most that bodies of
    all requests hold together. `batch` is the most pairs scored at once, `company_seconds` how long the first of them waits for
    others. `connections` is the most that are open; of those that ask nothing, the oldest then goes.
    """

    body_bytes: int = 16_000_000
    text_characters: int = 200_000
    turns: int = 256
    pairs: int = 256
    responses: int = 16
    seconds: float = 60.0
    body_seconds: float = 30.0
    header_seconds: float = 10.0
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
        # A pair may be asked in both orders.
        most = max(2 * self.pairs, self.responses * (self.responses - 1) // 2)
        if self.queue < most:
            raise UsageError(f"--queue must hold the pairs of one request in both orders, {most}; found {self.queue}")

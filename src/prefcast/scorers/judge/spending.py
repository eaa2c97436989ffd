"""What a judge's run spends: tokens and money, and the budget that a run stops before."""

from __future__ import annotations

import math
from dataclasses import dataclass
from threading import Condition

from prefcast.errors import ResourceError, UsageError, excerpt

__all__ = ["Price", "Purse", "parse_price"]

# Tokens that a server adds to the texts of a request.
_FRAME = 64


@dataclass(frozen=True)
class Price:
    """What a million tokens cost that the judge reads, and that it writes."""

    read: float = 0.0
    written: float = 0.0

    def of(self, read: int, written: int) -> float:
        """The money that so many tokens cost."""
        return (read * self.read + written * self.written) / 1e6


def parse_price(text: str | None) -> Price | None:
    """The price that `IN/OUT` says. Raises UsageError."""
    if text is None:
        return None
    try:
        read, written = map(float, text.split("/"))
        if read >= 0 and written >= 0 and math.isfinite(read + written):
            return Price(read, written)
    except ValueError:
        pass
    raise UsageError(f"--price is {excerpt(text)}; expected two numbers like 2.5/10, for a million tokens")


class Purse:
    """The budget of a run. What a request may take at most is reserved before it is sent, so that the budget holds
    whatever the answers are."""

    def __init__(self, price: Price | None, money: float | None, tokens: int | None) -> None:
        if money is not None and price is None:
            raise UsageError("--budget-money needs the price of the tokens: --price IN/OUT")
        self.price = price or Price()
        self._money, self._tokens = money, tokens
        self.tokens, self.money = 0, 0.0
        self._reserved_tokens, self._reserved_money, self._under_way = 0, 0.0, 0
        self._changed = Condition()

    def reserve(self, texts: int, most: int) -> tuple[int, float]:
        """Reserve a request of so many bytes of text and at most so many tokens of answer; returns what to give to
        `settle`. It waits while other requests may leave something over. Raises ResourceError."""
        # No token has less than one byte.
        tokens, money = texts + _FRAME + most, self.price.of(texts + _FRAME, most)
        with self._changed:
            while not self._fits(tokens, money):
                if not self._under_way:
                    raise ResourceError(self._spent(tokens))
                self._changed.wait()
            self._reserved_tokens += tokens
            self._reserved_money += money
            self._under_way += 1
        return tokens, money

    def settle(self, reserved: tuple[int, float], read: int, written: int) -> float:
        """What was reserved became a request that took so many tokens; returns its money."""
        money = self.price.of(read, written)
        with self._changed:
            self._reserved_tokens -= reserved[0]
            self._reserved_money -= reserved[1]
            self._under_way -= 1
            self.tokens += read + written
            self.money += money
            self._changed.notify_all()
        return money

    def _fits(self, tokens: int, money: float) -> bool:
        fits = self._tokens is None or self.tokens + self._reserved_tokens + tokens <= self._tokens
        return fits and (self._money is None or self.money + self._reserved_money + money <= self._money)

    def _spent(self, tokens: int) -> str:
        if self._tokens is not None and self.tokens + tokens > self._tokens:
            what = f"--budget-tokens {self._tokens:,}: {self.tokens:,} tokens were read and written"
        else:
            what = f"--budget-money {self._money:g}: {self.money:.6g} was spent, for {self.tokens:,} tokens"
        return f"{what}, and the next request could take more than is left"

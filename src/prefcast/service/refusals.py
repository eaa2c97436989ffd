"""Refusal: the one exception, and the one form of answer, for a request that is not answered with 200."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["STATUS", "Refusal"]

# type -> status
STATUS = {
    "bad_request": 400,
    "bad_json": 400,
    "unauthorized": 401,
    "no_key": 403,
    "not_found": 404,
    "method_not_allowed": 405,
    "slow_body": 408,
    "not_pointwise": 409,
    "voted_already": 409,
    "too_large": 413,
    "unsupported_media_type": 415,
    "wrong_host": 421,
    "invalid": 422,
    "too_long": 422,
    "scoring": 422,
    "too_busy": 429,
    # For the log alone: the client has left.
    "gone": 499,
    "internal": 500,
    "not_kept": 503,
    "stopping": 503,
    "time_limit": 504,
}


class Refusal(Exception):  # noqa: N818 - it is an answer
    """The type of the error, the field at fault ("" if no field is), and what was found and what would be right."""

    def __init__(self, type: str, message: str, field: str = "", headers: Mapping[str, str] | None = None) -> None:
        super().__init__(type, message, field)
        self.type = type
        self.message = message
        self.field = field
        self.headers = dict(headers or {})

    @property
    def status(self) -> int:
        return STATUS[self.type]

    def within(self, place: str) -> Refusal:
        """The same for an item of a list, which stands at `place`."""
        return Refusal(self.type, self.message, f"{place}.{self.field}" if self.field else place)

    def document(self) -> dict[str, dict[str, str]]:
        return {"error": {"type": self.type, "field": self.field, "message": self.message}}

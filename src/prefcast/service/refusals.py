"""Why a request is not answered as it asks: one exception, one form."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["STATUS", "Refusal"]

# type -> status
STATUS = {
    "bad_request": 400,
    "bad_json": 400,
    "unauthorized": 401,
    "not_found": 404,
    "method_not_allowed": 405,
    "slow_body": 408,
    "not_pointwise": 409,
    "too_large": 413,
    "unsupported_media_type": 415,
    "wrong_host": 421,
    "invalid": 422,
    "too_long": 422,
    "scoring": 422,
    "too_busy": 429,
    # Nobody sees it but the log.
    "gone": 499,
    "internal": 500,
    "stopping": 503,
    "time_limit": 504,
}


class Refusal(Exception):  # noqa: N818 - it is an answer
    """The type of the error, the field at fault ("" where it is none's) and one clause that says what would be right."""

    def __init__(self, type: str, message: str, field: str = "", headers: Mapping[str, str] | None = None) -> None:
        super().__init__(type, message, field)
        self.type = type
        self.message = message
        self.field = field
        self.headers = dict(headers or {})

    @property
    def status(self) -> int:
        return STATUS[self.type]

    def document(self) -> dict[str, dict[str, str]]:
        return {"error": {"type": self.type, "field": self.field, "message": self.message}}

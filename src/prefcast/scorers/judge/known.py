"""The addresses of judges that a person named on this machine, as hashes in a file beside the evidence store.

A forecaster's folder names its judge's address, and such a folder may come from a stranger. Texts go to that address only if
a person has named it.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

from prefcast.scorers.store import default_path

__all__ = ["is_known", "remember"]

_MOST_BYTES = 1_000_000


def _file() -> Path:
    return default_path().with_name("judges")


def _line(address: str, api: str) -> str:
    return hashlib.sha256(f"{api} {address}".encode("utf-8", "surrogatepass")).hexdigest()


def is_known(address: str, api: str) -> bool:
    """Whether a person named this address before, for a judge of this API: another API has another key. False where the file cannot be read."""
    with suppress(OSError, RuntimeError), _file().open("rb") as file:
        return _line(address, api).encode() in file.read(_MOST_BYTES).split()
    return False


def remember(address: str, api: str) -> None:
    """A person named this address. Where the file cannot be written, the address must be named again next time."""
    with suppress(OSError, RuntimeError):
        if not is_known(address, api):
            _file().parent.mkdir(parents=True, exist_ok=True)
            with _file().open("a", encoding="ascii") as file:
                file.write(f"{_line(address, api)}\n")

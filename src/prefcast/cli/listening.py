"""Where a server listens, and for whom: the options that serve and label have in common."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prefcast.cli.verbs import option
from prefcast.errors import UsageError, shown_path

if TYPE_CHECKING:
    import socket

__all__ = ["Listening", "Open", "need_serve"]

_LEAST_TOKEN, _VARIABLE = 8, "PREFCAST_TOKEN"


@dataclass(frozen=True)
class Open:
    """A socket that listens, its address, the token (None: none is wanted), and the names that clients may call it by besides
    loopback's (None: any)."""

    socket: socket.socket
    url: str
    token: str | None
    hosts: tuple[str, ...] | None


@dataclass(frozen=True)
class Listening:
    """Where a server listens, and for whom."""

    host: str = option("Where to listen. Beyond loopback a token is needed.", default="127.0.0.1")
    port: int = option("The port; 0 takes a free port and prints its number.", default=8000, least=0, most=65535)
    token: str | None = option(
        f"The token that clients must send. Other users of this machine can read it here; {_VARIABLE} and --token-file are safer.",
        "TOKEN",
    )
    token_file: Path | None = option("A file whose first line is the token.", "FILE")
    no_token: bool = option(
        "Listen beyond loopback without a token: everybody who reaches the server may ask.", default=False
    )
    allow_host: list[str] | None = option(
        "A host name under which clients reach a server on loopback, for example through a proxy.", "NAME"
    )

    @contextmanager
    def opened(self) -> Iterator[Open]:
        """The socket, during the block. Raises UsageError."""
        from prefcast.service.guard import is_loopback
        from prefcast.service.server import bind

        secret = _token(self.token, self.token_file)
        if self.no_token and secret is not None:
            raise UsageError("--no-token and a token exclude each other; give one of them")
        with bind(self.host, self.port, beyond_loopback=secret is not None or self.no_token) as listening:
            address, number = listening.getsockname()[:2]
            shown = f"[{address}]" if ":" in address else address
            # Beyond loopback the machine's names are unknown; there the token keeps strange pages out.
            hosts = tuple(self.allow_host or ()) if is_loopback(address) or self.allow_host else None
            yield Open(listening, f"http://{shown}:{number}", secret, hosts)


def need_serve() -> None:
    """Raise MissingExtraError if the extra `serve` is not installed."""
    from importlib.util import find_spec

    from prefcast.errors import MissingExtraError

    for module in ("starlette", "pydantic", "uvicorn", "prometheus_client"):
        if find_spec(module) is None:
            raise MissingExtraError(module, "serve")


def _token(said: str | None, file: Path | None) -> str | None:
    """The token from the one place that has it. Raises UsageError."""
    given = {"--token": said, _VARIABLE: os.environ.get(_VARIABLE)}
    if file is not None:
        try:
            given["--token-file"] = file.read_text(encoding="utf-8").partition("\n")[0].strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(
                f"--token-file {shown_path(file)}: {getattr(error, 'strerror', None) or 'is not text'}"
            ) from None
    places = [place for place, value in given.items() if value is not None]
    if len(places) > 1:
        raise UsageError(f"the token is given twice: {' and '.join(places)}")
    if not places:
        return None
    token = given[places[0]] or ""
    if len(token) < _LEAST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise UsageError(
            f"{places[0]}: expected a token of at least {_LEAST_TOKEN} letters, digits or signs, without spaces"
        )
    return token

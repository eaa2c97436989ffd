"""The verb that serves: serve."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

from prefcast.cli.requests import LOG_KIND, Choosing, Storing
from prefcast.cli.shared import LOG, app
from prefcast.cli.verbs import option, verb
from prefcast.errors import ModelError, UsageError, shown_path

_LEAST_TOKEN, _VARIABLE = 8, "PREFCAST_TOKEN"


@verb(app)
def serve(
    *,
    host: str = option("Where to listen. Beyond loopback a token is needed.", default="127.0.0.1"),
    port: int = option("The port; 0 takes a free port and prints its number.", default=8000, least=0, most=65535),
    token: str | None = option(
        f"The token that clients must send. Other users of this machine can read it here; {_VARIABLE} and --token-file are safer.",
        "TOKEN",
    ),
    token_file: Path | None = option("A file whose first line is the token.", "FILE"),
    no_token: bool = option(
        "Listen beyond loopback without a token: everybody who reaches the server may ask.", default=False
    ),
    allow_host: list[str] | None = option(
        "A host name under which clients reach a server on loopback, for example through a proxy.", "NAME"
    ),
    max_body: int = option("The most bytes of a request.", default=16_000_000, least=1000),
    max_characters: int = option("The most characters of one text.", default=200_000, least=1),
    max_pairs: int = option("The most pairs of a request.", default=256, least=1),
    max_responses: int = option("The most answers of a ranking.", default=16, least=2),
    time_limit: float = option("The most seconds that a request may take.", "SECONDS", default=60.0, least=0.1),
    isolate: bool = option(
        "Score in worker processes: if a pair ends its process, only that pair fails.", default=False
    ),
    queue: int = option("The most pairs that wait; beyond that, the answer is 429.", default=512, least=1),
    batch: int = option("The most pairs that are scored at once.", default=32, least=1),
    batch_wait: float = option("The most milliseconds that a pair waits for others.", "MS", default=3.0, least=0),
    log: str = LOG_KIND,
    choosing: Choosing,
    storing: Storing,
) -> None:
    """Serve forecasts over HTTP, with a page at / and the API's documents at /docs (extra `serve`).

    On SIGTERM or Ctrl-C the server answers the requests that it has, and ends with exit status 0.

    \b
    Examples:
      prefcast serve
      prefcast serve --forecaster mine --host 0.0.0.0 --token-file token
    """
    from importlib.util import find_spec

    from prefcast.errors import MissingExtraError

    for module in ("starlette", "pydantic", "uvicorn", "prometheus_client"):
        if find_spec(module) is None:
            raise MissingExtraError(module, "serve")
    from prefcast.forecasts.resolve import resolve
    from prefcast.runs.ready import Running, ready
    from prefcast.service.app import Service
    from prefcast.service.limits import Limits
    from prefcast.service.server import bind, fitted
    from prefcast.service.server import serve as run

    LOG.as_json = log == "json"
    secret = _token(token, token_file)
    if no_token and secret is not None:
        raise UsageError("--no-token and a token exclude each other; give one of them")
    limits = Limits(
        body_bytes=max_body,
        text_characters=max_characters,
        pairs=max_pairs,
        responses=max_responses,
        seconds=time_limit,
        queue=queue,
        batch=batch,
        company_seconds=batch_wait / 1000,
    )
    running = Running(storing.store, not storing.no_store, storing.fresh, isolate, time_limit if isolate else None)
    listening = bind(host, port, beyond_loopback=secret is not None or no_token)
    with listening, ExitStack() as stack:
        chosen = stack.enter_context(ready(resolve(choosing.choice()), running))
        address, number = listening.getsockname()[:2]
        from prefcast.service.guard import is_loopback

        shown = f"[{address}]" if ":" in address else address
        local = is_loopback(address)
        # Beyond loopback the machine's names are unknown; there the token keeps strange pages out.
        service = Service(
            chosen,
            limits=fitted(limits),
            token=secret,
            hosts=(allow_host or ()) if local or allow_host else None,
            log=LOG,
        )
        url = f"http://{shown}:{number}"
        run(
            service,
            listening,
            lambda: LOG.tell("serving", f"{chosen.scorer.name} at {url} (documents: {url}/docs)", url=url),
        )
        if service.broken is not None:
            raise ModelError(service.broken)
        LOG.tell("stopped", f"stopped; {service.answered} requests were answered", answered=service.answered)


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

"""The verb that serves: serve."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from prefcast.cli.requests import Choosing, LogKind, Storing
from prefcast.cli.shared import LOG, app
from prefcast.cli.verbs import verb
from prefcast.errors import ModelError, UsageError, shown_path

_LEAST_TOKEN, _VARIABLE = 8, "PREFCAST_TOKEN"


@verb(app)
def serve(
    host: Annotated[str, typer.Option(help="Where to listen; beyond loopback a token is needed.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one, and says which.", min=0, max=65535)] = 8000,
    token: Annotated[
        str | None,
        typer.Option(
            help=f"What clients must show. Other users of the machine can read it here; {_VARIABLE} and --token-file are better.",
            metavar="TOKEN",
        ),
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="A file whose first line is the token.", metavar="FILE")
    ] = None,
    no_token: Annotated[
        bool, typer.Option("--no-token", help="Listen beyond loopback without a token: everybody may ask.")
    ] = False,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            help="A name under which clients reach a server on loopback, say through a proxy.", metavar="NAME"
        ),
    ] = None,
    max_body: Annotated[int, typer.Option(help="The most bytes of a request.", min=1000)] = 16_000_000,
    max_characters: Annotated[int, typer.Option(help="The most characters of one text.", min=1)] = 200_000,
    max_pairs: Annotated[int, typer.Option(help="The most pairs of a request.", min=1)] = 256,
    max_responses: Annotated[int, typer.Option(help="The most answers of a ranking.", min=2)] = 16,
    time_limit: Annotated[
        float, typer.Option(help="The most seconds that a request may take.", min=0.1, metavar="SECONDS")
    ] = 60.0,
    isolate: Annotated[
        bool,
        typer.Option(
            "--isolate", help="Score in worker processes: a pair that ends its process becomes an error of that pair."
        ),
    ] = False,
    queue: Annotated[int, typer.Option(help="The most pairs that wait; above that, 429.", min=1)] = 512,
    batch: Annotated[int, typer.Option(help="The most pairs that are scored at once.", min=1)] = 32,
    wait: Annotated[
        float, typer.Option(help="The most milliseconds that a pair waits for others.", min=0, metavar="MS")
    ] = 3.0,
    log: Annotated[
        LogKind, typer.Option(help="What standard error gets: text for people, or a JSON object an event.")
    ] = LogKind.text,
    *,
    choosing: Choosing,
    storing: Storing,
) -> None:
    """Serve forecasts over HTTP, with a page at / and the API's documents at /docs (extra `serve`).

    A signal (SIGTERM, Ctrl-C) stops it once everything that was asked is answered, with exit status 0.

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

    LOG.as_json = log == LogKind.json
    secret = _token(token, token_file)
    if no_token and secret is not None:
        raise UsageError("--no-token, and there is a token; say one")
    limits = Limits(
        body_bytes=max_body,
        text_characters=max_characters,
        pairs=max_pairs,
        responses=max_responses,
        seconds=time_limit,
        queue=queue,
        batch=batch,
        company_seconds=wait / 1000,
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
        raise UsageError(f"the token is said twice: {' and '.join(places)}")
    if not places:
        return None
    token = given[places[0]] or ""
    if len(token) < _LEAST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise UsageError(
            f"{places[0]}: expected a token of at least {_LEAST_TOKEN} letters, digits or signs, without spaces"
        )
    return token

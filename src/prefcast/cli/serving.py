"""The verb that serves: serve."""

from __future__ import annotations

from contextlib import ExitStack

from prefcast.cli.listening import Listening, need_serve
from prefcast.cli.requests import LOG_KIND, Choosing, Storing
from prefcast.cli.shared import LOG, app
from prefcast.cli.verbs import option, verb
from prefcast.errors import ModelError


@verb(app)
def serve(
    *,
    listening: Listening,
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
    need_serve()
    from prefcast.forecasts.resolve import resolve
    from prefcast.runs.ready import Running, ready
    from prefcast.service.app import Service
    from prefcast.service.limits import Limits
    from prefcast.service.server import fitted
    from prefcast.service.server import serve as run

    LOG.as_json = log == "json"
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
    with ExitStack() as stack:
        at = stack.enter_context(listening.opened())
        chosen = stack.enter_context(ready(resolve(choosing.choice()), running))
        service = Service(chosen, limits=fitted(limits), token=at.token, hosts=at.hosts, log=LOG)
        run(
            service,
            at.socket,
            lambda: LOG.tell("serving", f"{chosen.scorer.name} at {at.url} (documents: {at.url}/docs)", url=at.url),
        )
        if service.broken is not None:
            raise ModelError(service.broken)
        LOG.tell("stopped", f"stopped; {service.answered} requests were answered", answered=service.answered)

"""The routes: each reads a body, has its items worked on, and answers. Everything else is elsewhere."""

from __future__ import annotations

import asyncio
import json
import mimetypes
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from prefcast.errors import PrefcastError
from prefcast.forecasts.best import answer_pairs
from prefcast.forecasts.forecaster import Forecaster
from prefcast.runs.log import Log
from prefcast.scorers.registry import scorer_infos
from prefcast.service import answers, docs, openapi, schema
from prefcast.service.batching import Batcher, Full, Stopped
from prefcast.service.engine import Conversation, Engine, Failed, Found, Item, Result, ToForecast
from prefcast.service.guard import Bodies, Guard, refusal_response
from prefcast.service.limits import Limits
from prefcast.service.metrics import CONTENT_TYPE, Metrics
from prefcast.service.reading import Asked, asked_of, conversations_of, parsed, ranked_of
from prefcast.service.refusals import Refusal

__all__ = ["Service", "create_service"]

_PAGE = Path(__file__).parent / "page"
# A body above this is parsed on another thread, so that others are read meanwhile.
_LARGE = 64_000
_STATUS = {404: "not_found", 405: "method_not_allowed"}
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
}

T = TypeVar("T")


@dataclass
class Service:
    """One server's application and what it is made of; `app` is what a server runs."""

    forecaster: Forecaster
    limits: Limits
    log: Log
    ready: bool = False
    # Why it can never be ready.
    broken: str | None = None
    answered: int = 0
    bodies: Bodies = field(init=False)
    engine: Engine = field(init=False)
    metrics: Metrics = field(init=False)
    batcher: Batcher[Item, Result] | None = None
    api: FastAPI = field(init=False)
    app: Guard = field(init=False)

    def __post_init__(self) -> None:
        self.bodies = Bodies(self.limits)
        self.engine = Engine(self.forecaster, self._failed)
        self.metrics = Metrics(lambda: 0 if self.batcher is None else self.batcher.waiting)
        self._parsing = asyncio.Lock()
        self.said = answers.said(self.forecaster, pointwise=self.engine.pointwise)

    @asynccontextmanager
    async def lifespan(self, api: FastAPI) -> AsyncIterator[None]:
        limits = self.limits
        self.batcher = Batcher(
            self.engine.run,
            most=limits.batch,
            company=limits.company_seconds,
            room=limits.queue,
            seen=self.metrics.batch,
        )
        self.batcher.start()
        warming = asyncio.create_task(self._warm_up())
        try:
            yield
        finally:
            self.ready = False
            await warming
            await self.batcher.stop()

    async def _warm_up(self) -> None:
        # On the scoring thread, before what is asked: some libraries want to be used where they were loaded.
        assert self.batcher is not None  # noqa: S101
        try:
            await self.batcher.alone(self.engine.warm_up)
        except PrefcastError as error:
            self.broken = str(error)
        else:
            self.ready = not self.app.stopping

    def stop(self) -> None:
        """A signal came: say that no more should be asked."""
        self.ready = False
        self.app.stopping = True
        self.bodies.stop()

    @asynccontextmanager
    async def document(self, request: Request, read: Callable[[dict[str, Any]], T]) -> AsyncIterator[T]:
        """What `read` makes of the JSON object in a request's body, whose room is held for the block. Raises Refusal."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise Refusal("unsupported_media_type", "expected the header Content-Type: application/json")
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise Refusal("unsupported_media_type", "expected a body without Content-Encoding")
        body, release = await self.bodies.read(request.receive, request.headers.get("content-length"))
        try:
            if len(body) <= _LARGE:
                yield read(parsed(body))
            else:
                # One at a time: what JSON becomes before it is read may be many times as large.
                async with self._parsing:
                    found = await asyncio.to_thread(lambda: read(parsed(body)))
                del body
                yield found
        finally:
            release()

    async def work(self, request: Request, items: Sequence[Item]) -> list[Result]:
        """The result of each item, in the time that a request may take. Raises Refusal."""
        assert self.batcher is not None  # noqa: S101
        left = asyncio.ensure_future(_left(request))
        done = asyncio.ensure_future(self.batcher.submit(items))
        try:
            await asyncio.wait((left, done), timeout=self.limits.seconds, return_when=asyncio.FIRST_COMPLETED)
            if done.done():
                return done.result()
            if left.done():
                raise Refusal("gone", "the client left")
            raise Refusal(
                "time_limit", f"took longer than {self.limits.seconds:g} seconds; ask for fewer pairs at a time"
            )
        except Full as full:
            problem = f"{self.batcher.waiting} pairs wait already; ask again in {full.seconds} s"
            raise Refusal("too_busy", problem, headers={"Retry-After": str(full.seconds)}) from None
        except Stopped:
            raise Refusal("stopping", "the server is stopping", headers={"Retry-After": "5"}) from None
        finally:
            left.cancel()
            done.cancel()

    def forecast_of(self, asked: Asked, number: int, results: Iterator[Result], several: bool) -> schema.Forecast:
        """The answer to pair `number` of a request from the next of its results. The fault of a single pair is raised."""
        refusal, found, swapped = asked.refusal, None, None
        if asked.pair is not None:
            found, swapped = next(results), next(results) if asked.both_orders else None
            failed = next((each for each in (found, swapped) if isinstance(each, Failed)), None)
            refusal = None if failed is None else answers.refusal_of(failed, f"pairs.{number}" if several else "")
        if refusal is not None:
            if not several:
                raise refusal
            self.metrics.item("failed")
            return answers.failed_forecast(asked.id, refusal)
        assert isinstance(found, Found)  # noqa: S101
        cut = found.forecast.truncation
        self.metrics.item("truncated" if cut is not None and cut.truncated else "forecast")
        return answers.forecast_document(asked, found, swapped if isinstance(swapped, Found) else None)

    def _failed(self, what: str) -> None:
        self.log.tell("failed", f"a request met an unforeseen {what}", exception=what)

    def seen(self, method: str, route: str, status: int, seconds: float) -> None:
        self.answered += 1
        self.metrics.request(route, status, seconds)
        ms = round(1000 * seconds, 1)
        self.log.tell("request", f"{method} {route} {status} {ms} ms", method=method, route=route, status=status, ms=ms)


async def _left(request: Request) -> None:
    """Returns once the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def create_service(
    forecaster: Forecaster,
    *,
    limits: Limits | None = None,
    token: str | None = None,
    hosts: Sequence[str] | None = (),
    log: Log | None = None,
) -> Service:
    """The service of one forecaster. `token` is asked for on /v1 and /metrics; `hosts` are names that a Host header may have
    besides loopback's, None any."""
    service = Service(forecaster, limits or Limits(), log or Log())
    api = FastAPI(
        title="prefcast",
        lifespan=service.lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
    )
    service.api = api
    api.exception_handler(Refusal)(_refused)
    api.exception_handler(HTTPException)(_http_exception)
    _add_v1(api, service)
    _add_probes(api, service)
    document = openapi.document(api, service.limits, secured=token is not None)
    _add_files(api, document)
    routes = {route.path for route in api.routes}  # type: ignore[attr-defined]
    service.app = Guard(api, token=token, hosts=hosts, routes=routes, seen=service.seen, failed=service._failed)
    return service


def _add_v1(api: FastAPI, service: Service) -> None:
    @api.post("/v1/forecast", **openapi.said("forecast"))
    async def forecast(request: Request) -> Response:
        async with service.document(request, lambda document: asked_of(document, service.limits)) as (asked, several):
            items: list[Item] = []
            for one in asked:
                if one.pair is not None:
                    items.append(ToForecast(one.pair, one.explain))
                    items += [ToForecast(one.pair.swapped())] if one.both_orders else []
            results = iter(await service.work(request, items))
            forecasts = [service.forecast_of(one, number, results, several) for number, one in enumerate(asked)]
            if several:
                return _json(schema.Forecasts(forecasts=forecasts, forecaster=service.said))
            return _json(forecasts[0])

    @api.post("/v1/score", **openapi.said("score"))
    async def score(request: Request) -> Response:
        if not service.engine.pointwise:
            problem = (
                f"{service.said.name} reads pairs and has no score of a single conversation; "
                "reward models have one (prefcast serve --forecaster DIR, fitted to such)"
            )
            raise Refusal("not_pointwise", problem)
        async with service.document(request, lambda document: conversations_of(document, service.limits)) as found:
            items: list[Item] = [Conversation(each) for each in found if not isinstance(each, Refusal)]
            results = iter(await service.work(request, items))
            scores = [
                answers.score_document(number, each if isinstance(each, Refusal) else next(results))
                for number, each in enumerate(found)
            ]
            for one in scores:
                service.metrics.item("scored" if one.error is None else "failed")
            return _json(schema.Scores(scores=scores, forecaster=service.said))

    @api.post("/v1/rank", **openapi.said("rank"))
    async def rank(request: Request) -> Response:
        async with service.document(request, lambda document: ranked_of(document, service.limits)) as ranked:
            pairs = answer_pairs(ranked.prompt, ranked.responses)
            results = await service.work(request, [ToForecast(pair) for pair in pairs])
            ranking = answers.ranking_document(ranked, results, service.said)
            service.metrics.item("forecast", len(pairs))
            return _json(ranking)

    @api.get("/v1/models", **openapi.said("models"))
    async def models() -> Response:
        limits, name = service.limits, service.said.name
        return _json(
            schema.Models(
                forecaster=service.said,
                models=[
                    schema.BuiltIn(name=each, title=title, served=each == name)
                    for each, title in ((info.name, info.summary) for info in scorer_infos().values() if info.listed)
                ],
                limits=schema.LimitsSaid(**{field: getattr(limits, field) for field in schema.LimitsSaid.model_fields}),
            )
        )


def _add_probes(api: FastAPI, service: Service) -> None:
    @api.get("/health", **openapi.said("health"))
    async def health() -> Response:
        return _json(schema.Health(status="ok"))

    @api.get("/ready", **openapi.said("ready"))
    async def ready() -> Response:
        if not service.ready or service.batcher is None or not service.batcher.alive:
            raise Refusal("stopping", "not ready: the forecaster is being loaded, or the server is stopping")
        return _json(schema.Health(status="ready"))

    @api.get("/metrics", **openapi.said("metrics"))
    async def metrics() -> Response:
        return Response(service.metrics.text(), headers={"content-type": CONTENT_TYPE})


def _add_files(api: FastAPI, document: dict[str, Any]) -> None:
    """The OpenAPI document, its page, and the page of the service: all of it in memory, from fixed names."""
    described = json.dumps(document).encode()
    shown = docs.page(document, openapi.EXAMPLES).encode()
    files = {
        path.name: _file(path) for path in sorted(_PAGE.iterdir()) if path.suffix in (*_TYPES, ".svg", ".png", ".woff2")
    }

    @api.get("/openapi.json", include_in_schema=False)
    async def openapi_json() -> Response:
        return Response(described, media_type="application/json")

    @api.get("/docs", include_in_schema=False)
    async def docs_page() -> Response:
        return Response(shown, media_type="text/html; charset=utf-8")

    @api.get("/docs.css", include_in_schema=False)
    async def docs_style() -> Response:
        return Response(docs.STYLE, headers={"content-type": _TYPES[".css"]})

    @api.get("/", include_in_schema=False)
    async def index(request: Request) -> Response:
        return _served(files["index.html"], request)

    @api.get("/static/{name}", include_in_schema=False)
    async def static(name: str, request: Request) -> Response:
        if name not in files:
            raise Refusal("not_found", "there is no such file")
        return _served(files[name], request)


def _file(path: Path) -> tuple[bytes, str, str]:
    """A file's bytes, type and tag."""
    data = path.read_bytes()
    kind = _TYPES.get(path.suffix) or mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return data, kind, f'"{sha256(data).hexdigest()[:32]}"'


def _served(file: tuple[bytes, str, str], request: Request) -> Response:
    data, kind, tag = file
    headers = {"etag": tag, "cache-control": "no-cache"}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(data, headers={**headers, "content-type": kind})


def _json(model: Any) -> Response:
    return Response(model.model_dump_json(), media_type="application/json")


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)  # noqa: S101
    status, headers, body = refusal_response(error)
    return Response(body, status, {name.decode(): value.decode() for name, value in headers})


async def _http_exception(request: Request, error: Exception) -> Response:
    """What the framework refuses, in the form of everything else."""
    assert isinstance(error, HTTPException)  # noqa: S101
    kind = _STATUS.get(error.status_code, "bad_request")
    problems = {
        "not_found": "there is no such route; /docs lists them",
        "method_not_allowed": "the route has another method",
    }
    return await _refused(
        request, Refusal(kind, problems.get(kind, "the request is not understood"), headers=error.headers)
    )

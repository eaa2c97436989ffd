"""The routes: each reads a body, submits its items to the batcher, and answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from jinja2 import Environment
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from prefcast.errors import PrefcastError
from prefcast.forecasts.best import answer_pairs
from prefcast.forecasts.forecaster import Forecaster
from prefcast.runs.log import Log
from prefcast.scorers.registry import scorer_infos
from prefcast.service import openapi, replies, schema
from prefcast.service.apart import Apart, rows_asked
from prefcast.service.application import Application, as_json
from prefcast.service.batching import Batcher
from prefcast.service.files import file_routes
from prefcast.service.forecasting import BatchForecaster, Found, Item, Result, ToForecast
from prefcast.service.forms import FORMS
from prefcast.service.limits import Limits
from prefcast.service.metrics import CONTENT_TYPE, Metrics
from prefcast.service.reading import Asked, asked_of, conversations_of, ranked_of
from prefcast.service.refusals import Refusal

__all__ = ["Service"]

_DOCS = Path(__file__).parent / "docs.html.jinja"

T = TypeVar("T")


class Service(Application):
    """The application that forecasts."""

    def __init__(
        self,
        forecaster: Forecaster,
        *,
        limits: Limits | None = None,
        token: str | None = None,
        hosts: Sequence[str] | None = (),
        log: Log | None = None,
    ) -> None:
        super().__init__(limits, log)
        self.said = replies.said(forecaster)
        self.metrics = Metrics(lambda: self.batcher.waiting)
        self._forecasting = BatchForecaster(forecaster, self.failed)
        self.batcher: Batcher[Item, Result] = Batcher(
            self._forecasting.run,
            most=self.limits.batch,
            company=self.limits.company_seconds,
            room=self.limits.queue,
            seen=self.metrics.batch,
        )
        self.apart = Apart(self.limits.seconds)
        routes = [
            Route("/v1/forecast", self.forecast, methods=["POST"]),
            Route("/v1/score", self.score, methods=["POST"]),
            Route("/v1/rank", self.rank, methods=["POST"]),
            Route("/v1/rows", self.rows, methods=["POST"]),
            Route("/v1/models", self.models),
            Route("/health", self.health),
            Route("/ready", self.is_ready),
            Route("/metrics", self.counters),
            *(Route(path, self.form, methods=["POST"]) for path in FORMS),
            *_pages(openapi.document(self.limits, secured=token is not None)),
        ]
        self.app = self.guarded(routes, token=token, hosts=hosts)

    @asynccontextmanager
    async def lifespan(self, app: object) -> AsyncIterator[None]:
        self.batcher.start()
        warming = asyncio.create_task(self._warm_up())
        try:
            yield
        finally:
            self.ready = False
            await warming
            await self.batcher.stop()

    async def _warm_up(self) -> None:
        # On the scoring thread and before any request: some libraries must be used on the thread that loaded them.
        try:
            await self.batcher.alone(self._forecasting.warm_up)
        except PrefcastError as error:
            self.broken = str(error)
        else:
            self.ready = not self.app.stopping

    async def work(self, request: Request, items: Sequence[Item]) -> list[Result]:
        """The result of each item. Raises Refusal."""
        return await self.in_time(request, self.batcher.submit(items), "ask for fewer pairs at a time")

    async def in_time(self, request: Request, work: Awaitable[T], otherwise: str) -> T:
        """The result of `work`, within the time limit of a request. Raises Refusal."""
        left = asyncio.ensure_future(_left(request))
        done = asyncio.ensure_future(work)
        try:
            await asyncio.wait((left, done), timeout=self.limits.seconds, return_when=asyncio.FIRST_COMPLETED)
            if done.done():
                return done.result()
            if left.done():
                raise Refusal("gone", "the client left")
            raise Refusal("time_limit", f"took longer than {self.limits.seconds:g} seconds; {otherwise}")
        finally:
            left.cancel()
            done.cancel()

    def forecast_of(self, asked: Asked, place: str, results: Iterator[Result]) -> schema.Forecast:
        """The answer to a pair, from the next results. `place` is that of the pair in a list; without it a fault is raised."""
        refusal, found, swapped = asked.refusal, None, None
        if asked.pair is not None:
            found, swapped = next(results), next(results) if asked.both_orders else None
            refusal = next((each.within(place) for each in (found, swapped) if isinstance(each, Refusal)), None)
        if refusal is not None:
            if not place:
                raise refusal
            self.metrics.item("failed")
            return schema.Forecast(id=asked.id, error=schema.ErrorDetail.model_validate(refusal))
        assert isinstance(found, Found)  # noqa: S101
        if found.forecast.escalated:
            self.metrics.escalated()
        cut = found.forecast.truncation
        self.metrics.item("truncated" if cut is not None and cut.truncated else "forecast")
        return replies.forecast_document(asked, found, swapped if isinstance(swapped, Found) else None)

    def seen(self, method: str, route: str, status: int, seconds: float) -> None:
        self.metrics.request(route, status, seconds)
        super().seen(method, route, status, seconds)

    async def forecast(self, request: Request) -> Response:
        async with self.document(request, lambda document: asked_of(document, self.limits)) as (asked, several):
            items: list[Item] = []
            for one in asked:
                if one.pair is not None:
                    items.append(ToForecast(one.pair, one.explain))
                    items += [ToForecast(one.pair.swapped())] if one.both_orders else []
            results = iter(await self.work(request, items))
            places = (f"pairs.{number}" if several else "" for number in range(len(asked)))
            forecasts = [self.forecast_of(one, place, results) for one, place in zip(asked, places, strict=True)]
            if several:
                return as_json(schema.Forecasts(forecasts=forecasts, forecaster=self.said))
            return as_json(forecasts[0])

    def check_pointwise(self) -> None:
        """Raise Refusal if single conversations have no scores."""
        if not self.said.pointwise:
            problem = (
                f"{self.said.name} reads pairs and has no score of a single conversation; "
                "pointwise reward models have one (prefcast serve --forecaster DIR, a forecaster of such a model)"
            )
            raise Refusal("not_pointwise", problem)

    async def form(self, request: Request) -> Response:
        self.check_pointwise()
        form = FORMS[request.scope["path"]]
        async with self.document(request, lambda document: form.read(document, self.limits)) as (asked, items):
            scores: list[float] = []
            for number, result in enumerate(await self.work(request, items)):
                if isinstance(result, Refusal):
                    raise result.within(f"{form.field}.{number}")
                assert isinstance(result, float)  # noqa: S101
                scores.append(result)
            self.metrics.item("scored", len(scores))
            return as_json(form.reply(asked, scores, self.said.name))

    async def score(self, request: Request) -> Response:
        self.check_pointwise()
        async with self.document(request, lambda document: conversations_of(document, self.limits)) as found:
            items: list[Item] = [each for each in found if not isinstance(each, Refusal)]
            results = iter(await self.work(request, items))
            scores = [
                replies.score_document(number, each if isinstance(each, Refusal) else next(results))
                for number, each in enumerate(found)
            ]
            for one in scores:
                self.metrics.item("scored" if one.error is None else "failed")
            return as_json(schema.Scores(scores=scores, forecaster=self.said))

    async def rank(self, request: Request) -> Response:
        async with self.document(request, lambda document: ranked_of(document, self.limits)) as ranked:
            pairs = answer_pairs(
                ranked.prompt, ranked.responses, system=ranked.system or "", reference=ranked.reference
            )
            results = await self.work(request, [ToForecast(pair) for pair in pairs])
            ranking = replies.ranking_document(ranked, results, self.said)
            self.metrics.item("forecast", len(pairs))
            return as_json(ranking)

    async def rows(self, request: Request) -> Response:
        asked = rows_asked(request.query_params)
        async with self.body(request, "application/octet-stream") as body:
            answer = await self.in_time(request, self.apart.read(body, asked), "send a smaller file")
        return Response(answer, media_type="application/json")

    async def models(self, request: Request) -> Response:
        models = [
            schema.BuiltIn(name=info.name, title=info.summary, served=info.name == self.said.name)
            for info in scorer_infos().values()
            if info.listed
        ]
        limits = schema.LimitsSaid.model_validate(self.limits)
        data = [{"id": self.said.name, "object": "model", "owned_by": "prefcast"}]
        return as_json(schema.Models(forecaster=self.said, models=models, limits=limits, data=data))

    async def health(self, request: Request) -> Response:
        return as_json(schema.Health(status="ok"))

    async def is_ready(self, request: Request) -> Response:
        if not self.ready or not self.batcher.alive:
            raise Refusal("stopping", "not ready: the forecaster is being loaded, or the server is stopping")
        return as_json(schema.Health(status="ready"))

    async def counters(self, request: Request) -> Response:
        return Response(self.metrics.text(), headers={"content-type": CONTENT_TYPE})


async def _left(request: Request) -> None:
    """Returns when the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _pages(document: dict[str, Any]) -> list[Route]:
    """The page of the service, the OpenAPI document and its page."""
    template = Environment(autoescape=True, trim_blocks=True).from_string(_DOCS.read_text("utf-8"))
    shown = template.render(document, examples=openapi.EXAMPLES)
    made = {"/docs": (".html", shown), "/openapi.json": (".json", json.dumps(document))}
    return file_routes({"/": "index.html", "/docs.css": "docs.css"}, made)

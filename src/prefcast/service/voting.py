"""The application of a voting page: people vote on the pairs that were drawn, and whoever started it sees the result."""

from __future__ import annotations

import asyncio
import hmac
import json
import secrets
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from prefcast.errors import FileError, PrefcastError
from prefcast.measuring.interim import Underway
from prefcast.runs.log import Log
from prefcast.service.application import Application, as_json
from prefcast.service.desk import Desk, rater_of
from prefcast.service.files import file_routes
from prefcast.service.limits import Limits
from prefcast.service.reading import validated
from prefcast.service.refusals import Refusal
from prefcast.service.schema import Health

__all__ = ["KEY_HEADER", "VotingService"]

# A request holds a name and a ballot.
_BODY_BYTES = 10_000
KEY_HEADER = "results-key"


class Spoken(BaseModel):
    """What a rater sends: a name alone to get a pair, or what they say of one. `undo` takes their vote back."""

    model_config = ConfigDict(extra="forbid", strict=True)

    rater: Annotated[str, Field(max_length=200)]
    ballot: Annotated[str, Field(max_length=100)] = ""
    vote: Literal["", "1", "2", "tie", "skip", "undo"] = ""


class VotingService(Application):
    """The application in which raters vote at `desk`. `key` opens the results, which raters must not see while they vote."""

    def __init__(
        self,
        desk: Desk,
        underway: Underway,
        names: Sequence[str],
        *,
        limits: Limits | None = None,
        token: str | None = None,
        hosts: Sequence[str] | None = (),
        log: Log | None = None,
    ) -> None:
        super().__init__(replace(limits or Limits(), body_bytes=_BODY_BYTES), log)
        self.desk, self._underway, self._names = desk, underway, names
        desk.report = self._not_kept
        self.key = secrets.token_urlsafe(12)
        # The results of one state of the file.
        self._found: tuple[int, bytes] | None = None
        self._computing = asyncio.Lock()
        routes = [
            Route("/v1/votes", self.vote, methods=["POST"]),
            Route("/v1/results", self.results),
            Route("/v1/votes/file", self.file),
            Route("/health", self.is_ready),
            Route("/ready", self.is_ready),
            *file_routes({"/": "label.html", "/results": "decision.html"}),
        ]
        self.app = self.guarded(routes, token=token, hosts=hosts)

    async def vote(self, request: Request) -> Response:
        async with self.document(request, lambda document: validated(Spoken, document, self.limits)) as said:
            rater = rater_of(said.rater)
            if not said.vote:
                standing = await asyncio.to_thread(self.desk.standing, rater)
            elif said.vote == "undo":
                standing = await asyncio.to_thread(self.desk.take_back, rater, said.ballot)
            else:
                standing = await asyncio.to_thread(self.desk.say, rater, said.ballot, said.vote)
        return Response(json.dumps(asdict(standing)), media_type="application/json")

    async def results(self, request: Request) -> Response:
        self._check_key(request)
        async with self._computing:
            changed, given = await asyncio.to_thread(self.desk.votes)
            if self._found is None or self._found[0] != changed:
                self._found = changed, await asyncio.to_thread(self._document, given)
        return Response(self._found[1], media_type="application/json")

    async def file(self, request: Request) -> Response:
        self._check_key(request)
        data = await asyncio.to_thread(self.desk.file_bytes)
        return Response(data, media_type="application/octet-stream")

    async def is_ready(self, request: Request) -> Response:
        return as_json(Health(status="ok"))

    def _not_kept(self, error: PrefcastError) -> None:
        """A disk may have room again. What another program wrote must not be lost: there the server ends."""
        if isinstance(error, FileError):
            self.broken = str(error)
        else:
            self.log.say(str(error))

    def _document(self, given: Any) -> bytes:
        found = self._underway.interim(given)
        return json.dumps({"names": list(self._names), "file": self.desk.file_name, **found.to_dict()}).encode()

    def _check_key(self, request: Request) -> None:
        given = request.headers.get(KEY_HEADER, "")
        if not hmac.compare_digest(given.encode(), self.key.encode()):
            raise Refusal(
                "no_key",
                "the results open with the address that prefcast printed when it started this page the last time",
            )

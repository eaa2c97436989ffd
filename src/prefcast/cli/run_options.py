"""The options of long runs, and what they say together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import typer

from prefcast.cli.shared import LOG, with_options

__all__ = ["Engine", "LogKind", "Running", "run_options"]


class LogKind(StrEnum):
    text = "text"
    json = "json"


class Engine(StrEnum):
    local = "local"
    ray = "ray"


@dataclass(frozen=True)
class Running:
    """How a run is carried out."""

    fresh: bool = False
    journal: bool = True
    part: str | None = None
    isolate: bool = False
    time_limit: float | None = None
    log: str = LogKind.text
    engine: str = Engine.local
    ray_address: str | None = None
    actors: int | None = None
    cpus_per_actor: int | None = None
    gpus_per_actor: float | None = None

    @property
    def isolated(self) -> bool:
        return self.isolate or self.time_limit is not None


RUN_OPTIONS: dict[str, tuple[Any, Any]] = {
    "fresh": (
        bool,
        typer.Option("--fresh", help="Start over: throw away what an earlier attempt at this output kept."),
    ),
    "journal": (
        bool,
        typer.Option(
            "--journal/--no-journal", help="Keep what is scored in OUTPUT.journal, so that the same command goes on."
        ),
    ),
    "part": (
        str | None,
        typer.Option(
            "--shard",
            help="Do one part of N, into OUTPUT.shard-I-of-N; prefcast merge joins them.",
            metavar="I/N",
        ),
    ),
    "isolate": (
        bool,
        typer.Option(
            "--isolate", help="Score in a process of its own: a row that ends it is found and becomes an error."
        ),
    ),
    "time_limit": (
        float | None,
        typer.Option(
            help="The most seconds that a batch may take; with --isolate, which it implies.", metavar="SECONDS", min=0.1
        ),
    ),
    "log": (LogKind, typer.Option(help="What standard error gets: text for people, or a JSON object an event.")),
    "engine": (
        Engine,
        typer.Option(help="local: this process. ray: Ray Data actors (pip install 'prefcast[ray]'; docs/runs.md)."),
    ),
    "ray_address": (
        str | None,
        typer.Option(
            help="A Ray cluster that runs: HOST:PORT, or auto.  [default: one of its own on this machine]",
            metavar="ADDRESS",
        ),
    ),
    "actors": (
        int | None,
        typer.Option(help="How many Ray actors.  [default: as many as there is room for]", min=1, metavar="N"),
    ),
    "cpus_per_actor": (
        int | None,
        typer.Option(help="Processors, and threads, of each Ray actor.  [default: 1]", min=1, metavar="C"),
    ),
    "gpus_per_actor": (
        float | None,
        typer.Option(help="GPUs of each Ray actor; 0.5: two share one.  [default: 0]", min=0.0, metavar="G"),
    ),
}


def run_options(verb: Callable[..., None]) -> Callable[..., None]:
    """Give a verb the options of long runs; it receives them as one `running`."""

    def made(said: dict[str, Any]) -> Running:
        running = Running(**said)
        LOG.as_json = running.log == LogKind.json
        return running

    return with_options(verb, "running", RUN_OPTIONS, made)

"""How the verbs with long runs use a Ray cluster: what the options mean together, and one run on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefcast.cli.shared import LOG, progress
from prefcast.errors import UsageError
from prefcast.scorers.reward import Options

if TYPE_CHECKING:
    from prefcast.budget import Budget
    from prefcast.cli.running import Running
    from prefcast.cluster import Cluster
    from prefcast.cluster.actors import Recipe
    from prefcast.forecaster import Forecaster
    from prefcast.formats import PairFile
    from prefcast.runs.attempt import Gather
    from prefcast.runs.loop import Job
    from prefcast.scorers import Scorer

__all__ = ["Remote", "check_engine", "on_cluster", "remote_forecasts", "remote_scores"]

_RAY = "ray"


@dataclass(frozen=True)
class Remote:
    """What is done on a cluster, and where the file is that its reader opens."""

    cluster: Cluster
    recipe: Recipe
    pairs: str
    columns: dict[str, str]
    cells: str


def check_engine(running: Running, pairs: str, output: str | Path | None, **excluded: object) -> bool:
    """Whether Ray is asked for. Raises UsageError for options that do not go together; `excluded` are others that Ray has
    no part in, by their names."""
    of_ray = {
        "ray-address": running.ray_address,
        "actors": running.actors,
        "cpus-per-actor": running.cpus_per_actor,
        "gpus-per-actor": running.gpus_per_actor,
    }
    if running.engine != _RAY:
        if named := next((name for name, value in of_ray.items() if value is not None), None):
            raise UsageError(f"--{named} is for --engine ray")
        return False
    if output is None:
        raise UsageError("--engine ray needs an output (-o FILE, or a folder of Parquet parts)")
    if pairs == "-":
        raise UsageError("--engine ray reads its input twice; standard input can be read only once: give a file")
    if not running.journal:
        raise UsageError("--engine ray gathers the pieces in the journal: --no-journal excludes it")
    excluded = {"shard": running.part, **excluded}
    if named := next((name for name, value in excluded.items() if value is not None), None):
        why = "looks numbers up" if named == "scores" else "is one small run" if named == "rehearse" else "is a part"
        raise UsageError(f"--{named} {why}, which the local engine does; leave out --engine ray")
    return True


def remote_forecasts(forecaster: Forecaster, options: Options, running: Running) -> tuple[Cluster, Recipe]:
    from prefcast.cluster.actors import Recipe

    cluster = _cluster(running)
    return cluster, Recipe.of("predict", forecaster, options, **_how(cluster, running))


def remote_scores(scorer: Scorer, budget: Budget, options: Options, running: Running) -> tuple[Cluster, Recipe]:
    from prefcast.cluster.actors import Recipe

    cluster = _cluster(running)
    return cluster, Recipe.of_scorer(scorer, budget, options, **_how(cluster, running))


def _cluster(running: Running) -> Cluster:
    from prefcast.cluster import Cluster

    return Cluster(running.ray_address, running.actors, running.cpus_per_actor or 1, running.gpus_per_actor or 0.0)


def _how(cluster: Cluster, running: Running) -> dict[str, Any]:
    return {"threads": cluster.cpus, "isolate": running.isolated, "time_limit": running.time_limit}


@contextmanager
def on_cluster(remote: Remote, job: Job, file: PairFile, on_error: str) -> Iterator[tuple[Job, Any, Gather]]:
    """The job as it is on the cluster, what tells how far its reader is, and how to gather its pieces."""
    from functools import partial

    from prefcast.cluster import connected
    from prefcast.cluster.actors import Source
    from prefcast.cluster.pieces import Arrivals, gather, header_of_actors

    with connected(remote.cluster) as pool:
        header = header_of_actors(pool, remote.recipe)
        recipe = replace(remote.recipe, header=header)
        source = Source(str(Path.cwd()), remote.pairs, remote.columns, remote.cells)
        arrivals = Arrivals(file.progress[1])
        LOG.event("cluster", actors=pool.actors, cpus=remote.cluster.cpus, gpus=remote.cluster.gpus)
        yield (
            replace(job, header=header),
            arrivals,
            partial(gather, pool, recipe, source, arrivals, on_error),
        )

"""How the verbs with long runs use a Ray cluster: what the options mean together, and one run on it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefcast.cli.shared import LOG, columns_of
from prefcast.errors import UsageError
from prefcast.scorers.reward import Options

if TYPE_CHECKING:
    from prefcast.cli.run_options import Running
    from prefcast.forecasts.forecaster import Forecaster
    from prefcast.pairs.budget import Budget
    from prefcast.pairs.formats import PairFile
    from prefcast.runs.attempt import Gather
    from prefcast.runs.cluster import Cluster
    from prefcast.runs.cluster.actors import Recipe
    from prefcast.runs.loop import Job, RunReport
    from prefcast.scorers import Scorer

__all__ = ["Remote", "check_engine", "on_cluster", "parts_asked", "parts_run", "remote_forecasts", "remote_scores"]

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
        reasons = {"scores": "looks numbers up", "rehearse": "is one small run", "label-values": "reads labels"}
        why = reasons.get(named, "is a part")
        raise UsageError(f"--{named} {why}, which the local engine does; leave out --engine ray")
    return True


def remote_forecasts(forecaster: Forecaster, options: Options, running: Running) -> tuple[Cluster, Recipe]:
    from prefcast.runs.cluster.actors import Recipe

    cluster = _cluster(running)
    return cluster, Recipe.of("predict", forecaster, options, **_how(cluster, running))


def remote_scores(scorer: Scorer, budget: Budget, options: Options, running: Running) -> tuple[Cluster, Recipe]:
    from prefcast.runs.cluster.actors import Recipe

    cluster = _cluster(running)
    return cluster, Recipe.of_scorer(scorer, budget, options, **_how(cluster, running))


def _cluster(running: Running) -> Cluster:
    from prefcast.runs.cluster import Cluster

    return Cluster(running.ray_address, running.actors, running.cpus_per_actor or 1, running.gpus_per_actor or 0.0)


def _how(cluster: Cluster, running: Running) -> dict[str, Any]:
    return {"threads": cluster.cpus, "isolate": running.isolated, "time_limit": running.time_limit}


@contextmanager
def on_cluster(remote: Remote, job: Job, file: PairFile, on_error: str) -> Iterator[tuple[Job, Any, Gather]]:
    """The job as it is on the cluster, what tells how far its reader is, and how to gather its pieces."""
    from functools import partial

    from prefcast.runs.cluster import connected
    from prefcast.runs.cluster.actors import Source
    from prefcast.runs.cluster.pieces import Arrivals, gather, header_of_actors

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


def parts_asked(by_ray: bool, pairs: str, output: str | Path | None) -> bool:
    """Whether a folder of parts is to be written. Raises UsageError where input and output do not go together."""
    from prefcast.runs.cluster.parts import are_parts

    remote = "://" in pairs
    many = remote or Path(pairs).is_dir()
    parts = output is not None and are_parts(str(output))
    if not by_ray:
        if remote:
            raise UsageError(f"{pairs}: URIs are read by --engine ray, into a folder (-o DIR)")
        return False
    if many and not parts:
        raise UsageError(f"{output}: the parts of a folder or a URI go into a folder: -o DIR, or a URI")
    if parts and not many and not pairs.endswith(".parquet"):
        raise UsageError(
            f"{pairs}: only Parquet is read in parts; write to one file (-o OUT.csv, OUT.jsonl or OUT.parquet), or convert it"
        )
    return parts


def parts_run(
    cluster: Cluster,
    recipe: Recipe,
    pairs: str,
    output: str,
    columns: str | None,
    cells: str,
    running: Running,
    *,
    on_error: str,
    with_text: bool = False,
) -> RunReport:
    """A run from Parquet parts to Parquet parts, with a bar where people look."""
    from prefcast.runs.cluster import connected
    from prefcast.runs.cluster.parts import Folder, Parts, score_parts
    from prefcast.runs.cluster.pieces import header_of_actors
    from prefcast.runs.stopping import Interrupted, Stopping

    source, target = Folder.of(pairs), Folder.of(output)
    if f"{target.shown}/".startswith(f"{source.shown}/"):
        raise UsageError(f"{target.shown}: lies in the input; write the parts to another folder")
    parts = Parts(source, target, columns_of(columns), cells, on_error, with_text)
    with connected(cluster) as pool, _bar() as show, Stopping():
        try:
            recipe = replace(recipe, header=header_of_actors(pool, recipe))
            LOG.event("cluster", actors=pool.actors, cpus=cluster.cpus, gpus=cluster.gpus)
            return score_parts(pool, recipe, parts, fresh=running.fresh, log=LOG, progress=show)
        except Interrupted as stopped:
            said = f"stopped by {stopped.name}; parts that are there are whole; the same command goes on from there"
            LOG.tell("interrupted", said, signal=stopped.name)
            raise


@contextmanager
def _bar() -> Iterator[Callable[[int, int, int], None]]:
    if LOG.as_json or not sys.stderr.isatty():
        yield lambda rows, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("")
        yield lambda rows, done, total: bar.update(
            task, description=f"{rows} rows, {done} of {total} parts", completed=done, total=total
        )

"""A long run on a Ray cluster: which options go together, and where the scorer and the parts are placed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from prefcast.cli.requests import Asked
from prefcast.cli.shared import LOG, bar, one_file
from prefcast.errors import UsageError

if TYPE_CHECKING:
    from prefcast.forecasts.forecaster import Forecaster
    from prefcast.runs.cluster import Pool
    from prefcast.runs.cluster.actors import JobSpec
    from prefcast.runs.loop import RunReport
    from prefcast.scorers.base import Scorer
    from prefcast.scorers.store import EvidenceStore

__all__ = ["check_engine", "parts_asked", "parts_run", "placed"]


def check_engine(asked: Asked, **local: object) -> None:
    """Raise UsageError for options that exclude each other. `local` are the values of options of the local engine alone."""
    cluster = asked.long.cluster
    if cluster.engine == "local":
        of_ray = ("ray_address", "actors", "cpus_per_actor", "gpus_per_actor")
        if named := next((name for name in of_ray if getattr(cluster, name) is not None), None):
            raise UsageError(f"--{named.replace('_', '-')} is for --engine ray")
        return
    if asked.output is None:
        raise UsageError("--engine ray needs an output (-o FILE, or a folder of Parquet parts)")
    if named := next((name for name, value in local.items() if value is not None), None):
        raise UsageError(f"--{named.replace('_', '-')} is for the local engine; leave out --engine ray")


def parts_asked(asked: Asked) -> bool:
    """Whether the output is a folder of parts. Raises UsageError where input and output do not go together."""
    from prefcast.runs.cluster.parts import are_parts

    output = asked.output
    if asked.long.cluster.engine == "local":
        if address := next((each for each in asked.pairs if "://" in each), None):
            raise UsageError(f"{address}: URIs are read by --engine ray, into a folder (-o DIR)")
        return False
    parts = output is not None and are_parts(output)
    if len(asked.pairs) > 1 and not parts:
        return False
    pairs = one_file(asked.pairs, "only one folder or file is read in parts")
    many = "://" in pairs or Path(pairs).is_dir()
    if many and not parts:
        raise UsageError(f"{output}: the parts of a folder or a URI go into a folder: -o DIR, or a URI")
    if parts and not many and not pairs.endswith(".parquet"):
        raise UsageError(
            f"{pairs}: only Parquet is read in parts; write to one file (-o OUT.csv, OUT.jsonl or OUT.parquet), or convert it"
        )
    return parts


@contextmanager
def placed(asked: Asked, forecaster: Forecaster) -> Iterator[tuple[Scorer, EvidenceStore | None]]:
    """The scorer where the options place it, here or on a cluster, and the store of its evidence."""
    from prefcast.runs.ready import ready_scorer

    running = asked.keeping.running()
    if asked.long.cluster.engine == "local":
        with ready_scorer(forecaster.scorer, running) as found:
            yield found
        return
    from prefcast.runs.cluster.driver import ClusterScorer

    with _cluster(asked, forecaster) as (pool, spec):
        there = ClusterScorer(forecaster.scorer, pool, spec)
        with ready_scorer(there, replace(running, isolate=False, time_limit=None)) as found:
            yield found


@contextmanager
def _cluster(asked: Asked, forecaster: Forecaster) -> Iterator[tuple[Pool, JobSpec]]:
    """The cluster, and what its actors do. Raises UsageError where the scorer cannot be sent to other processes."""
    from prefcast.runs.cluster import Cluster, connected
    from prefcast.runs.cluster.actors import JobSpec
    from prefcast.runs.cluster.driver import header_of_actors
    from prefcast.scorers.base import costs_money

    if costs_money(forecaster.scorer):
        raise UsageError("a judge is asked from this machine, which counts what it costs: leave out --engine ray")
    said, running = asked.long.cluster, asked.keeping.running()
    cluster = Cluster(said.ray_address, said.actors, said.cpus_per_actor or 1, said.gpus_per_actor or 0.0)
    isolate = running.isolate or running.time_limit is not None
    spec = JobSpec.of(asked.verb, forecaster, threads=cluster.cpus, isolate=isolate, time_limit=running.time_limit)
    with connected(cluster) as pool:
        header = header_of_actors(pool, spec)
        LOG.event("cluster", actors=pool.actors, cpus=cluster.cpus, gpus=cluster.gpus)
        yield pool, replace(spec, header=header)


def parts_run(asked: Asked, forecaster: Forecaster) -> RunReport:
    """A run from Parquet parts to Parquet parts, with a bar on a terminal."""
    from prefcast.runs.cluster.parts import Folder, Parts, score_parts
    from prefcast.runs.stopping import Interrupted, Stopping

    source, target = Folder.of(asked.pairs[0]), Folder.of(str(asked.output))
    reading = asked.reading
    parts = Parts(
        source, target, reading.mapping, reading.cells, asked.on_error, asked.with_text, max_row=reading.max_row
    )
    if f"{target.shown}/".startswith(f"{source.shown}/"):
        raise UsageError(f"{target.shown}: lies in the input; write the parts to another folder")
    with _cluster(asked, forecaster) as (pool, spec), bar() as draw, Stopping():

        def show(rows: int, done: int, total: int) -> None:
            if draw is not None:
                draw(f"{rows} rows, {done} of {total} parts", done, total)

        try:
            return score_parts(pool, spec, parts, fresh=asked.keeping.fresh, log=LOG, progress=show)
        except Interrupted as stopped:
            said = f"stopped by {stopped.name}; parts that are there are whole; the same command continues"
            LOG.tell("interrupted", said, signal=stopped.name)
            raise

"""How the verbs with long runs use a Ray cluster: what the options mean together, and a run on it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefcast.cli.requests import Keeping, LongRun, Reading
from prefcast.cli.shared import LOG
from prefcast.errors import UsageError

if TYPE_CHECKING:
    from prefcast.pairs.budget import Budget
    from prefcast.runs.cluster import Cluster
    from prefcast.runs.cluster.actors import JobSpec
    from prefcast.runs.loop import RunReport
    from prefcast.scorers.base import Scorer
    from prefcast.scorers.store import EvidenceStore

__all__ = ["Remote", "check_engine", "parts_asked", "parts_run", "placed"]


@dataclass(frozen=True)
class Remote:
    """What is done on a cluster, and on which one."""

    cluster: Cluster
    spec: JobSpec

    @classmethod
    def of(cls, verb: str, scorer: Scorer, made: Any, keeping: Keeping, long: LongRun) -> Remote:
        """For a forecaster `made` (predict), or the budget (score). Raises UsageError where the scorer cannot travel."""
        from prefcast.runs.cluster import Cluster
        from prefcast.runs.cluster.actors import JobSpec

        cluster = Cluster(long.ray_address, long.actors, long.cpus_per_actor or 1, long.gpus_per_actor or 0.0)
        running = keeping.running()
        how = {
            "threads": cluster.cpus,
            "isolate": running.isolate or running.time_limit is not None,
            "time_limit": running.time_limit,
        }
        options = scorer.options
        if verb == "predict":
            return cls(cluster, JobSpec.of(verb, made, options, **how))
        budget: Budget = made
        return cls(cluster, JobSpec.of_scorer(scorer, budget, options, **how))


def check_engine(long: LongRun, pairs: str, output: str | None, **excluded: object) -> None:
    """Raise UsageError for options that do not go together; `excluded` are others in which Ray has no part, by name."""
    if not long.by_ray:
        of_ray = ("ray_address", "actors", "cpus_per_actor", "gpus_per_actor")
        if named := next((name for name in of_ray if getattr(long, name) is not None), None):
            raise UsageError(f"--{named.replace('_', '-')} is for --engine ray")
        return
    if output is None:
        raise UsageError("--engine ray needs an output (-o FILE, or a folder of Parquet parts)")
    excluded = {"shard": long.shard, **excluded}
    if named := next((name for name, value in excluded.items() if value is not None), None):
        why = "looks numbers up" if named == "scores" else "is one small run" if named == "rehearse" else "is a part"
        raise UsageError(f"--{named} {why}, which the local engine does; leave out --engine ray")


@contextmanager
def placed(
    verb: str, scorer: Scorer, made: Any, keeping: Keeping, long: LongRun
) -> Iterator[tuple[Scorer, EvidenceStore | None]]:
    """The scorer where the options put it, here or on a cluster, and the store of its evidence; `made` is as for `Remote`."""
    from prefcast.runs.ready import ready_scorer

    where = (
        _on_cluster(Remote.of(verb, scorer, made, keeping, long), scorer, keeping)
        if long.by_ray
        else ready_scorer(scorer, keeping.running())
    )
    with where as found:
        yield found


@contextmanager
def _on_cluster(remote: Remote, scorer: Scorer, keeping: Keeping) -> Iterator[tuple[Scorer, EvidenceStore | None]]:
    """The scorer in the actors of the cluster, its evidence in the store."""
    from prefcast.runs.cluster import connected
    from prefcast.runs.cluster.driver import ClusterScorer, header_of_actors
    from prefcast.runs.ready import Running, ready_scorer

    running = keeping.running()
    with connected(remote.cluster) as pool:
        header = header_of_actors(pool, remote.spec)
        LOG.event("cluster", actors=pool.actors, cpus=remote.cluster.cpus, gpus=remote.cluster.gpus)
        there = ClusterScorer(scorer, pool, replace(remote.spec, header=header), header)
        with ready_scorer(there, Running(running.store, running.keep, running.fresh)) as found:
            yield found


def parts_asked(long: LongRun, pairs: str, output: str | None) -> bool:
    """Whether a folder of parts is to be written. Raises UsageError where input and output do not go together."""
    from prefcast.runs.cluster.parts import are_parts

    parts = output is not None and are_parts(output)
    if not long.by_ray:
        if "://" in pairs:
            raise UsageError(f"{pairs}: URIs are read by --engine ray, into a folder (-o DIR)")
        return False
    many = "://" in pairs or Path(pairs).is_dir()
    if many and not parts:
        raise UsageError(f"{output}: the parts of a folder or a URI go into a folder: -o DIR, or a URI")
    if parts and not many and not pairs.endswith(".parquet"):
        raise UsageError(
            f"{pairs}: only Parquet is read in parts; write to one file (-o OUT.csv, OUT.jsonl or OUT.parquet), or convert it"
        )
    return parts


def parts_run(
    remote: Remote, pairs: str, output: str, reading: Reading, *, fresh: bool, on_error: str, with_text: bool = False
) -> RunReport:
    """A run from Parquet parts to Parquet parts, with a bar where people look."""
    from prefcast.runs.cluster import connected
    from prefcast.runs.cluster.driver import header_of_actors
    from prefcast.runs.cluster.parts import Folder, Parts, score_parts
    from prefcast.runs.stopping import Interrupted, Stopping

    source, target = Folder.of(pairs), Folder.of(output)
    if f"{target.shown}/".startswith(f"{source.shown}/"):
        raise UsageError(f"{target.shown}: lies in the input; write the parts to another folder")
    parts = Parts(source, target, reading.mapping, str(reading.cells), on_error, with_text)
    with connected(remote.cluster) as pool, _bar() as show, Stopping():
        try:
            spec = replace(remote.spec, header=header_of_actors(pool, remote.spec))
            LOG.event("cluster", actors=pool.actors, cpus=remote.cluster.cpus, gpus=remote.cluster.gpus)
            return score_parts(pool, spec, parts, fresh=fresh, log=LOG, progress=show)
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

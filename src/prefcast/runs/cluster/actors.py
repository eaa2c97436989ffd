"""What runs on the cluster: actors that score batches, or whole parts. This module does not load Ray.

An actor returns a fault as data, so that the driver raises our own exception, not Ray's.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prefcast import errors
from prefcast.errors import PrefcastError, ResourceError, RunError, WorkerError, printable
from prefcast.forecasts.forecaster import Forecaster
from prefcast.runs.jobs import job_of
from prefcast.runs.loop import Job
from prefcast.runs.pool import pooled
from prefcast.runs.shards import differences
from prefcast.runs.worker import pairs_of, problems_of
from prefcast.scorers.base import Scorer
from prefcast.scorers.options import given, to_save, which

__all__ = ["EvidenceActor", "JobSpec", "fault_of", "header_there", "raise_fault"]

# A batch or a part that ends so many actors is at fault itself.
TRIES = 3
_MOST = 200

# Called with the name of a part before it is scored; returns how often it was called with this name.
Count = Callable[[str], int]


@dataclass(frozen=True)
class JobSpec:
    """All that an actor needs to score as this process would: the files of a forecaster, and how it is used.

    `verb` is predict or score. `header` is the header that the job must have on every machine, once it is known.
    """

    verb: str
    files: Mapping[str, bytes]
    threads: int = 1
    where: Mapping[str, Any] | None = None
    isolate: bool = False
    time_limit: float | None = None
    header: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, verb: str, forecaster: Forecaster, **more: Any) -> JobSpec:
        """Raises UsageError if the scorer cannot be saved."""
        options = forecaster.scorer.options
        with tempfile.TemporaryDirectory(prefix="prefcast-") as room:
            forecaster.save(Path(room) / "forecaster")
            folder = Path(room) / "forecaster"
            files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        saved = to_save(options)
        where = {name: getattr(options, name) for name in given(options) if name not in saved}
        return cls(verb, files, where=where or None, **more)

    def made(self) -> tuple[Forecaster, Job]:
        """The forecaster as this machine has it, and what is done with each piece.

        Raises PrefcastError: RunError if the job's header is not `header`.
        """
        # Libraries read these when they are first used, which is below.
        for name in ("OMP_NUM_THREADS", "RAYON_NUM_THREADS"):
            os.environ[name] = str(self.threads)
        with tempfile.TemporaryDirectory(prefix="prefcast-") as room:
            for name, data in self.files.items():
                path = Path(room) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
            forecaster = Forecaster.load(room)
            scorer = forecaster.scorer
            if self.where is not None:
                scorer = _with_options(scorer, self.where)
            scorer = pooled(scorer, isolate=self.isolate, time_limit=self.time_limit)
            # Worker processes compute on so many threads too.
            scorer.use_threads(self.threads)
            forecaster = replace(forecaster, scorer=scorer)
            # The header needs the scorer's files, which are gone afterwards.
            job = job_of(self.verb, forecaster)
        if self.header is not None and (differ := differences(self.header, job.header)):
            raise RunError(
                f"{os.uname().nodename}: differs from the other machines of the cluster: {'; '.join(differ)}"
            )
        return forecaster, job


def _with_options(scorer: Scorer, where: Mapping[str, Any]) -> Scorer:
    """The scorer, or those of its members that have such options, with the options in `where`."""
    if members := scorer.members():
        return scorer.with_members([_with_options(member, where) for member in members])
    known = {name: value for name, value in where.items() if name in which(type(scorer.options))}
    return scorer.with_options(type(scorer.options)(**known)) if known else scorer


def header_there(spec: JobSpec) -> dict[str, Any]:
    """The job's header on a machine of the cluster, which may have other devices than the driver's machine."""
    try:
        return {"header": dict(spec.made()[1].header)}
    except PrefcastError as error:
        return {"fault": fault_of(error)}


class EvidenceActor:
    """An actor with the scorer of a job; it returns the evidence of a batch."""

    def __init__(self, spec: JobSpec) -> None:
        self._fault = ""
        try:
            self._scorer = spec.made()[0].scorer
        except PrefcastError as error:
            self._fault = fault_of(error)

    def evidence(self, pairs: list[list[Any]]) -> dict[str, Any]:
        """The evidence of pairs in the form of `plain_pair`, or the `fault` that ends the run."""
        said: dict[str, Any] = {"fault": self._fault}
        if not self._fault:
            with faults(f"a batch of {len(pairs)} pairs", said):
                found = self._scorer.evidence(pairs_of(pairs))
                said |= {"margin": found.margin, "tie": found.tie, "raw": dict(found.raw)}
                said["problems"] = problems_of(found)
        return said


@contextmanager
def faults(where: str, row: dict[str, Any]) -> Iterator[None]:
    """An exception that is raised within becomes `row["fault"]`."""
    here = os.uname().nodename
    try:
        yield
    except PrefcastError as error:
        row["fault"] = fault_of(error)
    except MemoryError:
        said = f"{where}: out of memory on {here}; a smaller --budget reads less of a pair, and --isolate finds a row that "
        row["fault"] = fault_of(ResourceError(f"{said}alone needs too much"))
    except Exception as error:
        said = f"{type(error).__name__}: {printable(str(error))[:_MOST]}"
        row["fault"] = fault_of(WorkerError(f"{where} cannot be scored on {here}: {said}"))


def died(where: str) -> str:
    """The message about a batch or a part that ends every actor that scores it."""
    return f"{where} ended its actor {TRIES} times; if a row causes that, --isolate finds it"


def fault_of(error: PrefcastError) -> str:
    """An exception of ours as JSON text."""
    return json.dumps([type(error).__name__, list(error.args)])


def raise_fault(said: str) -> None:
    """Raise the exception that `fault_of` wrote as text."""
    name, arguments = json.loads(said)
    kind = getattr(errors, name) if name in errors.__all__ else None
    if not (isinstance(kind, type) and issubclass(kind, PrefcastError)):
        raise WorkerError(f"an actor reported an error that this version does not know: {printable(said)[:_MOST]}")
    raise kind(*arguments)

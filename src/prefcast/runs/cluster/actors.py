"""What runs on the cluster: the reader of one file, and the actors that score its pieces. No process but Ray's imports it
for its work, and none of it loads Ray.

Faults travel as rows of data, so that the one who asked gets our own exception, not Ray's account of it.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefcast import errors
from prefcast.errors import JournalError, PrefcastError, ResourceError, WorkerError, printable
from prefcast.forecasts.forecaster import Forecaster
from prefcast.outcomes.models import NotebookRule
from prefcast.pairs.formats import open_pairs
from prefcast.pairs.pieces import pieces
from prefcast.runs.isolated import isolated
from prefcast.runs.jobs import forecasting, scoring
from prefcast.runs.journal import differences
from prefcast.runs.loop import Job
from prefcast.runs.packed import digest_of, pack, pack_items, unpack_items
from prefcast.scorers import Scorer
from prefcast.scorers.reward import Options

if TYPE_CHECKING:
    import pyarrow

__all__ = ["PieceScorer", "Recipe", "Source", "fault_of", "header_there", "raise_fault", "read_pieces"]

# What Ray starts an actor anew for, until it is clear that it is the piece that ends it.
TRIES = 3
_MOST = 200
# What of a reward model's options is the machine's affair, and therefore not in the forecaster's files.
_WHERE = ("devices", "shard", "batch_tokens", "keep")

# Called before a piece is scored, with what it is called: how often that has been so.
Count = Callable[[str], int]


@dataclass(frozen=True)
class Recipe:
    """All that an actor needs to be what this process would be: the files of a forecaster, and how it is used.

    `verb` is predict or score. `header` is what the job must say of itself on every machine, once that is known.
    """

    verb: str
    files: Mapping[str, bytes]
    threads: int = 1
    where: Mapping[str, Any] | None = None
    isolate: bool = False
    time_limit: float | None = None
    header: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, verb: str, forecaster: Forecaster, options: Options, **more: Any) -> Recipe:
        """Raises UsageError where its scorer cannot be saved."""
        with tempfile.TemporaryDirectory(prefix="prefcast-") as room:
            forecaster.save(Path(room) / "forecaster")
            folder = Path(room) / "forecaster"
            files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        where = {name: getattr(options, name) for name in _WHERE}
        changed = any(where[name] != getattr(Options(), name) for name in _WHERE)
        return cls(verb, files, where=where if changed else None, **more)

    @classmethod
    def of_scorer(cls, scorer: Scorer, budget: Any, options: Options, **more: Any) -> Recipe:
        """For raw scores, which know no outcome model."""
        return cls.of("score", Forecaster(scorer, NotebookRule(), budget), options, **more)

    def job(self) -> Job:
        """What is done with each piece. Raises PrefcastError: JournalError where it is not what `header` says."""
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
                scorer = scorer.elsewhere(Options(**self.where))  # type: ignore[attr-defined]
            if self.isolate:
                scorer = isolated(scorer, self.time_limit)
            scorer.use_threads(self.threads)
            forecaster = replace(forecaster, scorer=scorer)
            job = forecasting(forecaster) if self.verb == "predict" else scoring(scorer, forecaster.budget)
        if self.header is not None and (differ := differences(self.header, job.header)):
            raise JournalError(
                f"{os.uname().nodename}: is not like the other machines of the cluster: {'; '.join(differ)}"
            )
        return job


def header_there(recipe: Recipe) -> dict[str, Any]:
    """The job's header on a machine of the cluster, whose devices may be others than those of the one who asks."""
    try:
        return {"header": dict(recipe.job().header)}
    except PrefcastError as error:
        return {"fault": fault_of(error)}


@dataclass(frozen=True)
class Source:
    """A file as this process would read it: in `folder`, as `path`, called `name` in messages."""

    folder: str
    path: str
    columns: Mapping[str, str]
    cells: str


def read_pieces(table: pyarrow.Table, source: Source, known: Mapping[int, bytes]) -> Iterator[pyarrow.Table]:
    """The pieces of a file but those that are `known`, by number and digest; a fault is the last row."""
    import pyarrow

    def row(number: int, **fields: Any) -> pyarrow.Table:
        blank = {"first": 0, "rows": 0, "digest": b"", "items": b"", "position": 0, "reading": 0.0, "fault": ""}
        return pyarrow.table({name: [value] for name, value in {"number": number, **blank, **fields}.items()})

    number, first = -1, 1
    try:
        os.chdir(source.folder)
        start = time.perf_counter()
        with open_pairs(source.path, columns=source.columns, cells=source.cells) as file:
            for number, items in enumerate(pieces(file)):
                digest = digest_of(items)
                there = known.get(number)
                if there is None:
                    yield row(
                        number,
                        first=first,
                        rows=len(items),
                        digest=digest,
                        items=pack_items(items),
                        position=file.progress[0],
                        reading=time.perf_counter() - start,
                    )
                elif there != digest:
                    last = first + len(items) - 1
                    raise JournalError(
                        f"{file.name}: rows {first} to {last} changed since the run began; --fresh starts over"
                    )
                first += len(items)
                start = time.perf_counter()
    except PrefcastError as error:
        yield row(number + 1, fault=fault_of(error))


class PieceScorer:
    """An actor: scores pieces, one a call."""

    def __init__(self, recipe: Recipe, count: Count) -> None:
        self._count, self._fault = count, ""
        try:
            self._job = recipe.job()
        except PrefcastError as error:
            self._fault = fault_of(error)

    def __call__(self, table: pyarrow.Table) -> pyarrow.Table:
        import pyarrow

        (row,) = table.to_pylist()
        items = row.pop("items")
        done = {"payload": b"", "failed": 0, "seconds": 0.0, "tokenising": 0.0}
        row["fault"] = row["fault"] or self._fault
        if not row["fault"]:
            last = row["first"] + row["rows"] - 1
            where = f"rows {row['first']} to {last}"
            with faults(where, row):
                if self._count(where) > TRIES:
                    raise WorkerError(died(where))
                scorer, start = self._job.scorer, time.perf_counter()
                told = scorer.tokenising
                piece = self._job.score(unpack_items(items))
                tokenising = scorer.tokenising - told
                seconds = time.perf_counter() - start
                done = {"payload": pack(piece), "failed": piece.failed, "seconds": seconds, "tokenising": tokenising}
        return pyarrow.table({name: [value] for name, value in {**row, **done}.items()})


class faults:  # noqa: N801 - a context manager, used like a function
    """What is raised within becomes `row["fault"]`."""

    def __init__(self, where: str, row: dict[str, Any]) -> None:
        self._where, self._row = where, row

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if error is None:
            return False
        if isinstance(error, PrefcastError):
            fault: PrefcastError = error
        elif isinstance(error, MemoryError):
            fault = ResourceError(
                f"{self._where}: out of memory on {os.uname().nodename}; a smaller --budget reads less of a pair, and "
                "--isolate finds a row that alone needs too much"
            )
        elif isinstance(error, Exception):
            said = printable(str(error))[:_MOST]
            fault = WorkerError(f"{self._where} cannot be scored on {os.uname().nodename}: {kind.__name__}: {said}")  # type: ignore[union-attr]
        else:
            return False
        self._row["fault"] = fault_of(fault)
        return True


def died(where: str) -> str:
    """What is said of a piece that ends whoever scores it."""
    return f"{where} ended their actor {TRIES} times; where a row does that, --isolate finds it"


def fault_of(error: PrefcastError) -> str:
    """An exception of ours as text."""
    return json.dumps([type(error).__name__, list(error.args)])


def raise_fault(said: str) -> None:
    """Raise the exception that `fault_of` put into text."""
    name, arguments = json.loads(said)
    kind = getattr(errors, name) if name in errors.__all__ else None
    if not (isinstance(kind, type) and issubclass(kind, PrefcastError)):
        raise WorkerError(f"an actor reported what this version does not know: {printable(said)[:_MOST]}")
    raise kind(*arguments)

"""Parquet parts in, Parquet parts out, on any filesystem that Arrow knows. One actor reads, scores and writes each part; no
row passes through the driver.

A part of the output has the name of its part of the input, and holds what the local engine writes for that file alone. It
appears whole or not at all. The file `_prefcast.json` beside the parts says which run they belong to.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from uuid import uuid4

from prefcast.base.limits import MAX_ROW
from prefcast.errors import (
    FileError,
    PrefcastError,
    RowError,
    RunError,
    UsageError,
    WorkerError,
    shown_path,
)
from prefcast.forecasts.predictions import ENDINGS
from prefcast.pairs.formats import open_parquet
from prefcast.runs.cluster import Pool
from prefcast.runs.cluster.actors import TRIES, Count, JobSpec, died, fault_of, faults, raise_fault
from prefcast.runs.cluster.driver import counting, remote_faults
from prefcast.runs.jobs import open_output
from prefcast.runs.log import Log, Watch
from prefcast.runs.loop import RunReport, Tally, run_to
from prefcast.runs.shards import differences

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.fs

__all__ = ["Folder", "Parts", "are_parts", "score_parts"]

_MARK, _ENDING, _ROOM = "_prefcast.json", ".parquet", ".prefcast-"
# In these a file appears only when it is complete, and a move is a copy.
_OBJECT_STORES = ("s3", "gcs", "abfs")
_FORMAT = 1


def are_parts(output: str) -> bool:
    """Whether an output names a folder of parts: a URI, or a path without the ending of a file that we write."""
    return "://" in output or PurePosixPath(output).suffix.lower() not in ENDINGS


@dataclass(frozen=True)
class Folder:
    """A folder, or one file, on a filesystem; `shown` is its name without passwords."""

    where: str
    shown: str

    @classmethod
    def of(cls, path: str) -> Folder:
        """From a path or a URI. Raises UsageError."""
        if "://" not in path:
            return cls(Path(path).absolute().as_uri(), shown_path(path.rstrip("/")))
        parts = urlsplit(path)
        host = parts.netloc.rpartition("@")[2]
        return cls(path, shown_path(f"{parts.scheme}://{host}{parts.path}".rstrip("/")))

    def open(self) -> tuple[pyarrow.fs.FileSystem, str]:
        """The filesystem, and the path there. Raises UsageError."""
        import pyarrow.fs

        try:
            files, path = pyarrow.fs.FileSystem.from_uri(self.where)
        except (ValueError, OSError, NotImplementedError) as error:
            said = str(error).splitlines()[0][:200] if self.where.startswith("file:") else type(error).__name__
            raise UsageError(
                f"{self.shown}: no filesystem that Arrow can open (a path, or file, s3, gs, abfs or hdfs://): {said}"
            ) from None
        return files, path.rstrip("/")


@dataclass(frozen=True)
class Parts:
    """What is read, where the output goes, and how rows are read."""

    source: Folder
    target: Folder
    columns: Mapping[str, str]
    cells: str
    on_error: str = "keep"
    with_text: bool = False
    max_row: int = MAX_ROW


@contextmanager
def _of_files(folder: Folder) -> Iterator[None]:
    """An error of the filesystem becomes a FileError."""
    try:
        yield
    except OSError as error:
        raise FileError(folder.shown, f"{error.strerror or str(error).splitlines()[0][:200]}") from None


def listed(folder: Folder, *, output: bool = False) -> dict[str, list[int]]:
    """The Parquet files in a folder, or one file itself, by name: [bytes, time of the last change in ns]. Raises
    FileError."""
    import pyarrow.fs

    files, path = folder.open()
    with _of_files(folder):
        info = files.get_file_info(path)
        if info.type == pyarrow.fs.FileType.NotFound:
            if output:
                return {}
            raise FileError(folder.shown, "cannot be read: there is no such file or folder")
        if info.type == pyarrow.fs.FileType.File:
            if output:
                raise UsageError(f"{folder.shown}: is a file; the parts are written into a folder")
            if not path.endswith(_ENDING):
                raise UsageError(
                    f"{folder.shown}: only Parquet ({_ENDING}) is read in parts; convert it, or write to one file (-o "
                    "OUT.csv, OUT.jsonl or OUT.parquet) from a file on this machine"
                )
            found, base = [info], str(PurePosixPath(path).parent)
        else:
            found, base = files.get_file_info(pyarrow.fs.FileSelector(path, recursive=True)), path
    parts = {}
    for each in found:
        name = each.path[len(base) :].lstrip("/")
        hidden = any(step.startswith(("_", ".")) for step in name.split("/"))
        if each.type == pyarrow.fs.FileType.File and not hidden and (output or name.endswith(_ENDING)):
            parts[name] = [int(each.size), int(each.mtime_ns or 0)]
    if not parts and not output:
        raise FileError(folder.shown, f"holds no Parquet files (*{_ENDING})")
    return dict(sorted(parts.items()))


def score_parts(
    pool: Pool, spec: JobSpec, parts: Parts, *, fresh: bool, log: Log, progress: Callable[[int, int, int], None]
) -> RunReport:
    """Score every part that the target lacks; `progress` is told of rows, parts done, and parts in all.

    A part that cannot be read does not stop the others: at the end FileError names the first such part. With
    `on_error="stop"` such a part, or the first row that fails, stops the run. Raises PrefcastError: RunError if the target
    belongs to another run.
    """
    import ray

    start, tally, watch, firsts = time.perf_counter(), Tally(), Watch(log), dict[str, str]()
    todo = listed(parts.source)
    there = _prepare(parts, spec.header or {}, todo, fresh)
    if there:
        log.event("resumed", parts=len(there))
    faulty: list[str] = []
    data = ray.data.from_items(
        [{"part": name, "there": name in there, "fault": ""} for name in todo], override_num_blocks=len(todo)
    )
    with remote_faults(), counting(pool) as count:
        data = pool.map(data, PartScorer, spec, parts, count)
        done = 0
        for table in data.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for row in table.to_pylist():
                done += 1
                if row["fault"]:
                    if parts.on_error == "stop" or json.loads(row["fault"])[0] != FileError.__name__:
                        raise_fault(row["fault"])
                    faulty.append(row["fault"])
                    continue
                said = json.loads(row["done"])
                tally.rows += said["rows"]
                tally.failed += said["failed"]
                tally.truncated += said["truncated"]
                tally.literal += said.get("literal", 0)
                tally.restored += said["rows"] if row["there"] else 0
                if said["first"] is not None:
                    firsts[row["part"]] = said["first"]
                for name, seconds in said["seconds"].items():
                    watch.spent(name, seconds)
                watch.errors.update(said["errors"])
                log.event("part", part=row["part"], rows=said["rows"], failed=said["failed"], there=row["there"])
                progress(tally.rows, done, len(todo))
    if firsts:
        tally.first = _ReportedError(firsts[min(firsts)])
    if faulty:
        try:
            raise_fault(sorted(faulty)[0])
        except PrefcastError as error:
            more = f"{len(todo) - len(faulty):,} of {len(todo):,} parts are written, and are kept"
            error.add_note(more)
            raise
    return tally.report(time.perf_counter() - start, watch)


class _ReportedError(RowError):
    """An error of a row, as the part's actor reports it."""

    def __init__(self, text: str) -> None:
        super().__init__("", 0, "", text)

    def __str__(self) -> str:
        return self.problem


def _prepare(parts: Parts, header: Mapping[str, Any], todo: Mapping[str, list[int]], fresh: bool) -> set[str]:
    """Check that the target belongs to this run, note the run there, and return the parts that it already holds."""
    files, path = parts.target.open()
    said = json.loads(
        json.dumps(
            {
                **header,
                "input": parts.source.shown,
                "columns": dict(parts.columns) or None,
                "cells": parts.cells,
                "texts": parts.with_text,
                "megabytes of a row": parts.max_row,
            }
        )
    )
    there = listed(parts.target, output=True)
    with _of_files(parts.target):
        mark = _read_mark(files, f"{path}/{_MARK}", parts.target.shown)
        if mark is None and there:
            raise UsageError(f"{parts.target.shown}: holds other things than a run's parts; choose another folder")
        if mark is not None and not fresh:
            if differ := differences(mark["header"], said):
                raise RunError(
                    f"{parts.target.shown}: belongs to another run: {'; '.join(differ)}; --fresh starts over, "
                    "the same options as before go on"
                )
            # New parts may come. A part that was scored must be unchanged.
            for name, stamp in mark["parts"].items():
                if name in there and todo.get(name) != stamp:
                    what = "is no longer there" if name not in todo else "changed since the run began"
                    raise RunError(f"{parts.source.shown}/{name}: {what}; --fresh starts over")
        files.create_dir(path, recursive=True)
        if fresh and mark is not None:
            for name in {*mark["parts"], *todo} & set(there):
                files.delete_file(f"{path}/{name}")
            there = {}
        _put(files, f"{path}/{_MARK}", json.dumps({"format": _FORMAT, "header": said, "parts": todo}).encode())
    return set(there) & set(todo)


def _read_mark(files: pyarrow.fs.FileSystem, path: str, shown: str) -> dict[str, Any] | None:
    import pyarrow.fs

    if files.get_file_info(path).type == pyarrow.fs.FileType.NotFound:
        return None
    with files.open_input_stream(path) as stream:
        try:
            mark: dict[str, Any] = json.loads(stream.read())
            if mark["format"] != _FORMAT:
                raise ValueError
            return {"header": dict(mark["header"]), "parts": dict(mark["parts"])}
        except (ValueError, KeyError, TypeError, RecursionError):
            raise RunError(f"{shown}/{_MARK}: is damaged, or of another version; choose another folder") from None


def _put(files: pyarrow.fs.FileSystem, path: str, data: bytes | Path) -> None:
    """Write a file that appears whole or not at all."""
    direct = files.type_name in _OBJECT_STORES
    folder, _, name = path.rpartition("/")
    room = path if direct else f"{folder}/{_ROOM}{name}-{uuid4().hex}"
    if not direct:
        files.create_dir(folder, recursive=True)
    try:
        with files.open_output_stream(room) as stream:
            if isinstance(data, bytes):
                stream.write(data)
            else:
                with data.open("rb") as file:
                    shutil.copyfileobj(file, stream, 1 << 20)
        if not direct:
            files.move(room, path)
    except BaseException:
        if not direct:
            files.delete_file(room)
        raise


class PartScorer:
    """An actor that reads, scores and writes whole parts."""

    def __init__(self, spec: JobSpec, parts: Parts, count: Count) -> None:
        self._parts, self._count, self._fault = parts, count, ""
        try:
            self._job = spec.made()[1]
            self._source, self._target = parts.source.open(), parts.target.open()
        except PrefcastError as error:
            self._fault = fault_of(error)

    def __call__(self, table: pyarrow.Table) -> pyarrow.Table:
        import pyarrow

        (row,) = table.to_pylist()
        row["fault"], done = self._fault, ""
        if not row["fault"]:
            shown = f"{self._parts.source.shown}/{row['part']}"
            with faults(shown, row):
                if row["there"]:
                    done = json.dumps(self._recount(row["part"]))
                elif self._count(shown) > TRIES:
                    raise WorkerError(died(shown))
                else:
                    done = json.dumps(self._score(row["part"]))
        return pyarrow.table({name: [value] for name, value in {**row, "done": done}.items()})

    def _score(self, part: str) -> dict[str, Any]:
        (files, base), parts, job = self._source, self._parts, self._job
        path, shown = f"{base}/{part}", f"{parts.source.shown}/{part}"
        if base.endswith(f"/{part}") and base.endswith(_ENDING):  # one file, not a folder
            path, shown = base, parts.source.shown
        watch = Watch()
        with tempfile.TemporaryDirectory(prefix="prefcast-") as room, _of_files(replace(parts.source, shown=shown)):
            out = Path(room) / "part.parquet"
            writer = open_output(out, job.header, with_text=parts.with_text)
            with files.open_input_file(path) as raw, writer as sink:
                file = open_parquet(raw, shown, columns=parts.columns, cells=parts.cells, max_row=parts.max_row)
                with closing(file):
                    report = run_to(sink, file, job, on_error=parts.on_error, watch=watch)
            target, folder = self._target
            with _of_files(parts.target):
                _put(target, f"{folder}/{part}", out)
        return {
            "rows": report.rows,
            "failed": report.failed,
            "truncated": report.truncated,
            "literal": report.literal,
            "first": None if report.first_error is None else str(report.first_error),
            "errors": dict(report.errors),
            "seconds": watch.seconds,
        }

    def _recount(self, part: str) -> dict[str, Any]:
        """The counts of a part that is already there."""
        import pyarrow.parquet

        files, folder = self._target
        names = ["error", "characters_kept", "characters", "turns_kept", "turns"]
        with _of_files(replace(self._parts.target, shown=f"{self._parts.target.shown}/{part}")):
            rows = pyarrow.parquet.read_table(f"{folder}/{part}", columns=names, filesystem=files).to_pylist()
        failed = [row["error"] for row in rows if row["error"] is not None]
        cut = sum(
            row["characters"] is not None
            and (row["characters_kept"] < row["characters"] or row["turns_kept"] < row["turns"])
            for row in rows
        )
        first = failed[0] if failed else None
        return {"rows": len(rows), "failed": len(failed), "truncated": cut, "first": first, "errors": {}, "seconds": {}}

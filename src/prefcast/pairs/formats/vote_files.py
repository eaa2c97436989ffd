"""The file into which a voting page writes votes as they are given. `compare --votes` reads it.

The file is written whole for each vote and takes its name only when it is on the disk. So a reader never sees half a vote, and
a process that is killed at any moment leaves the file as it was before or after the vote.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from prefcast.base.files import atomic_file, checked_ending
from prefcast.errors import FileError, RowError, UsageError, excerpt, shown_path
from prefcast.pairs.formats.fields import Record, absent
from prefcast.pairs.formats.separated import csv_line
from prefcast.pairs.formats.table import Table

__all__ = ["COLUMNS", "SIDES", "Key", "Vote", "VoteFile"]

COLUMNS = ("id", "winner", "rater", "inclusion_probability", "voted_at")
SIDES = ("left", "right", "tie")
# The id of a pair, and a rater.
Key = tuple[str, str]


@dataclass(frozen=True)
class Vote:
    """What a rater said of a pair: left, right, tie, or nothing where the rater skipped the pair. `at` is the time, as text that sorts."""

    winner: str
    at: str


class VoteFile:
    """The votes of a file, `votes`, by pair and rater. Where there is no file yet, `begin` makes it.

    While this is open, no other VoteFile opens the file: its lock goes with each new file that takes the name. Raises
    UsageError for a file that is in use, that holds something else, or that cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._kind = checked_ending(path, "a file of votes", ".csv", ".jsonl")
        self._inclusion: Mapping[str, float] = {}
        self._place: dict[str, int] = {}
        self._held = self._lock()
        try:
            self.votes: dict[Key, Vote] = {} if self._held is None else _read(path)
            self._seen = self._signature()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> VoteFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let others open the file."""
        if self._held is not None:
            os.close(self._held)
            self._held = None

    def begin(self, inclusion: Mapping[str, float]) -> None:
        """Write the file for a draw: the inclusion probability of each pair, in the order of the draw. That is the order of the
        file. Raises UsageError if there are votes on a pair that was not drawn."""
        if lost := dict.fromkeys(id for id, _ in self.votes if id not in inclusion):
            raise UsageError(
                f"{shown_path(self.path)}: has votes on {len(lost)} pairs that this draw does not have (the first: "
                f"{excerpt(next(iter(lost)))}); give the same files, model and --seed and no fewer --votes, or another output"
            )
        self._inclusion = inclusion
        self._place = {id: place for place, id in enumerate(inclusion)}
        self._write(self.votes)

    def put(self, key: Key, vote: Vote | None) -> None:
        """Keep a vote, or with None take it back. When this returns, the disk has it. Raises UsageError if it cannot be written
        now, and FileError if another program changed the file; then nothing has changed."""
        changed = {**self.votes}
        if vote is None:
            changed.pop(key, None)
        else:
            changed[key] = vote
        self._write(changed)

    def _lock(self) -> int | None:
        """The file, open and locked; None if there is none."""
        while True:
            try:
                held = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
            except FileNotFoundError:
                return None
            except OSError as error:
                raise UsageError(f"{shown_path(self.path)}: cannot be read: {error.strerror}") from None
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(held)
                raise UsageError(f"{shown_path(self.path)}: another voting page writes its votes there") from None
            except OSError:  # a disk without locks
                return held
            # Before the lock was taken, a new file may have taken the name.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(held), self.path.stat()):
                    return held
            os.close(held)

    def _signature(self) -> tuple[int, int, int] | None:
        """What changes when another program writes to the file."""
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns

    def _write(self, votes: dict[Key, Vote]) -> None:
        if self._signature() != self._seen:
            raise FileError(
                shown_path(self.path),
                "another program changed it while a page wrote votes there; nothing was written over it",
            )
        votes = dict(sorted(votes.items(), key=lambda item: (self._place[item[0][0]], item[1].at, item[0][1])))
        data = self._text(votes).encode("utf-8", "backslashreplace")
        held = -1
        try:
            with atomic_file(self.path) as file:
                file.write(data)
                held = _kept_open(file)
        except BaseException:
            if held >= 0:
                os.close(held)
            raise
        self.close()
        self._held, self._seen, self.votes = held, self._signature(), votes
        # So that the name too is on the disk. Not every disk can do that for a folder.
        with suppress(OSError):
            folder = os.open(self.path.resolve().parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def _text(self, votes: Mapping[Key, Vote]) -> str:
        rows = [
            (id, vote.winner, rater, float(f"{self._inclusion[id]:.12g}"), vote.at)
            for (id, rater), vote in votes.items()
        ]
        if self._kind == ".jsonl":
            return "".join(json.dumps(dict(zip(COLUMNS, row, strict=True)), ensure_ascii=False) + "\n" for row in rows)
        return "".join(map(csv_line, [COLUMNS, *rows]))


def _kept_open(file: BinaryIO) -> int:
    """The same open file under another number: its lock lasts until both are closed."""
    return os.dup(file.fileno())


def _read(path: Path) -> dict[Key, Vote]:
    found: dict[Key, Vote] = {}
    if not path.stat().st_size:
        return found
    try:
        with Table(str(path), fields=COLUMNS) as table:
            table.need(*COLUMNS)
            if unknown := next((name for name in table.columns if name not in COLUMNS), None):
                raise FileError(table.name, f"has a column that is not of such a file: {excerpt(unknown)}")
            for row, record in table.rows():
                if isinstance(record, RowError):
                    raise FileError(record.file, record.problem, record.row)
                key = str(table.id_of(record, row)), _text(record, "rater")
                vote = Vote(_text(record, "winner"), _text(record, "voted_at"))
                if vote.winner not in ("", *SIDES):
                    raise table.fault(row, f"winner is {excerpt(vote.winner)}; expected left, right, tie or nothing")
                if not key[1]:
                    raise table.fault(row, "has no rater")
                if key in found:
                    raise table.fault(row, "is a second vote of one rater on one pair")
                found[key] = vote
    except FileError as error:
        where = "" if error.row is None else f"row {error.row}: "
        raise UsageError(
            f"{shown_path(path)}: exists and is not a file of votes that a voting page wrote; name another one ({where}{error.problem})"
        ) from None
    return found


def _text(record: Record, name: str) -> str:
    return "" if absent(record.get(name)) else str(record.get(name))

"""What a run has done so far: one SQLite file, a row for every piece. Knows nothing of forecasts: a piece is bytes.

In WAL mode a commit costs no wait for the disk. A killed process loses nothing that was committed; a power cut may lose
the last pieces, never the file.
"""

from __future__ import annotations

import json
import os
import sqlite3
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefcast.errors import JournalError, PrefcastError, ResourceError, UsageError, excerpt, shown_path
from prefcast.runs.lock import Lock

__all__ = ["FORMAT", "Entry", "Journal", "differences", "entry_of", "header_of"]

# Raise it when the file's content changes: what an older version began is then refused by name.
FORMAT = 1
_FILE, _LOCK = "journal.sqlite", "lock"
_PART = ".prefcast-"
_APPLICATION = 0x70726663
_CHECK_BYTES = 4


@dataclass(frozen=True)
class Entry:
    """A piece: its number, the first of its rows (from 1), how many, the digest of what they held, and its result."""

    number: int
    first: int
    rows: int
    digest: bytes
    payload: bytes


class Journal:
    """The journal of the run that writes `output`, in the folder `output`.journal; held by this process alone.

    `header` says what the run is; a journal with another one is refused, each difference named. With `fresh` what is
    there is thrown away. Raises JournalError, and UsageError where the folder cannot be written.
    """

    def __init__(self, output: Path, header: Mapping[str, Any], *, fresh: bool = False) -> None:
        # As it will be read again: tuples are lists.
        header = json.loads(json.dumps(dict(header)))
        target = Path(os.path.realpath(output))
        self.folder = target.with_name(target.name + ".journal")
        self.shown = shown_path(self.folder if output.is_symlink() else output.with_name(output.name + ".journal"))
        try:
            self._check_folder()
            self.folder.mkdir(exist_ok=True)
            self._lock = Lock(self.folder / _LOCK)
        except (OSError, ValueError) as error:
            raise UsageError(
                f"{shown_path(output)}: cannot be written: {getattr(error, 'strerror', None) or error}"
            ) from None
        try:
            self._check_folder()
            # What a killed process left of its output.
            for left in self.folder.glob(f"{_PART}*"):
                left.unlink()
            if fresh:
                for name in (f"{_FILE}-wal", f"{_FILE}-shm", _FILE):
                    (self.folder / name).unlink(missing_ok=True)
            self._db = self._opened(header)
        except sqlite3.Error as error:
            self._lock.release()
            raise self._fault(error) from None
        except BaseException:
            self._lock.release()
            raise

    def _check_folder(self) -> None:
        if not self.folder.exists():
            return
        known = {_FILE, f"{_FILE}-wal", f"{_FILE}-shm", _LOCK}
        if not self.folder.is_dir() or any(
            path.name not in known and not path.name.startswith(_PART) for path in self.folder.iterdir()
        ):
            raise JournalError(f"{self.shown}: is not a journal of ours; move it away, or write to another file")

    def _opened(self, header: Mapping[str, Any]) -> sqlite3.Connection:
        # No other process is let in (the lock), so SQLite needs no shared memory, which network disks do not have.
        db = sqlite3.connect(self.folder / _FILE, isolation_level=None, timeout=0, check_same_thread=False)
        try:
            db.execute("PRAGMA locking_mode = EXCLUSIVE")
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
            db.execute("BEGIN IMMEDIATE")
            if not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                db.execute("CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL)")
                db.execute(
                    "CREATE TABLE pieces (number INTEGER PRIMARY KEY, first INTEGER NOT NULL, rows INTEGER NOT NULL, "
                    "digest BLOB NOT NULL, payload BLOB NOT NULL)"
                )
                db.execute(f"PRAGMA application_id = {_APPLICATION}")
                db.execute(f"PRAGMA user_version = {FORMAT}")
                db.execute("INSERT INTO facts VALUES ('header', ?)", (json.dumps(header),))
            db.execute("COMMIT")
            there = header_of(db, self.shown)
            if differ := differences(there, header):
                raise JournalError(
                    f"{self.shown}: belongs to another run: {'; '.join(differ)}; --fresh starts over, "
                    "the same as before goes on"
                )
            self.rows, self.count = db.execute("SELECT coalesce(sum(rows), 0), count(*) FROM pieces").fetchone()
        except BaseException:
            db.close()
            raise
        return db

    def get(self, number: int) -> Entry | None:
        """The piece of that number, if it is there."""
        try:
            row = self._db.execute("SELECT * FROM pieces WHERE number = ?", (number,)).fetchone()
        except sqlite3.Error as error:
            raise self._fault(error) from None
        return None if row is None else entry_of(row, self.shown)

    def digests(self) -> dict[int, bytes]:
        """The digest of each piece that is there, by its number."""
        try:
            return dict(self._db.execute("SELECT number, digest FROM pieces"))
        except sqlite3.Error as error:
            raise self._fault(error) from None

    def put(self, entry: Entry) -> None:
        """Keep a piece: afterwards it is there, whatever happens to this process."""
        payload = entry.payload + _check(entry.payload)
        try:
            self._db.execute(
                "INSERT INTO pieces VALUES (?, ?, ?, ?, ?)",
                (entry.number, entry.first, entry.rows, entry.digest, payload),
            )
        except sqlite3.Error as error:
            raise self._fault(error) from None
        self.rows += entry.rows
        self.count += 1

    def after(self, number: int) -> Entry | None:
        """The first piece from `number` on, if there is one."""
        query = "SELECT * FROM pieces WHERE number >= ? ORDER BY number LIMIT 1"
        try:
            row = self._db.execute(query, (number,)).fetchone()
        except sqlite3.Error as error:
            raise self._fault(error) from None
        return None if row is None else entry_of(row, self.shown)

    def note(self, **facts: Any) -> None:
        """Keep facts of the run by name; earlier ones of the same names go."""
        try:
            self._db.executemany(
                "INSERT OR REPLACE INTO facts VALUES (?, ?)",
                [(name, json.dumps(value)) for name, value in facts.items()],
            )
        except sqlite3.Error as error:
            raise self._fault(error) from None

    def noted(self, name: str) -> Any:
        """A fact that `note` kept, or None."""
        try:
            row = self._db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
            return None if row is None else json.loads(row[0])
        except sqlite3.Error as error:
            raise self._fault(error) from None
        except (ValueError, TypeError):
            raise JournalError(f"{self.shown}: is damaged in its facts; --fresh starts over") from None

    def become(self, path: Path) -> None:
        """The file itself is the result: it moves to `path`, the folder goes."""
        try:
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._db.execute("PRAGMA journal_mode = DELETE")
            self._db.close()
        except sqlite3.Error as error:
            raise self._fault(error) from None
        file = os.open(self.folder / _FILE, os.O_RDONLY)
        os.fsync(file)
        os.close(file)
        (self.folder / _FILE).replace(os.path.realpath(path))
        self._remove()

    def remove(self) -> None:
        """The run is done: nothing of the journal stays."""
        self._db.close()
        self._remove()

    def close(self) -> None:
        """Let go of it; a journal without a piece is removed."""
        if self.count == 0:
            self.remove()
            return
        self._db.close()
        self._lock.release()

    def _remove(self) -> None:
        for path in self.folder.iterdir():
            if path.name != _LOCK:
                path.unlink()
        # The lock last: until then nobody else begins here.
        self._lock.remove()
        # Who has begun here in the meantime keeps what is theirs: only an empty folder goes.
        with suppress(OSError):
            self.folder.rmdir()

    def _fault(self, error: sqlite3.Error) -> PrefcastError:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN):
            return ResourceError(f"{self.shown}: cannot be written: {error}")
        return JournalError(f"{self.shown}: is damaged: {error}; --fresh starts over")


def differences(there: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two headers, in words."""
    names = [*there, *(name for name in now if name not in there)]
    return [
        f"its {name} is {_short(there.get(name))}, here it is {_short(now.get(name))}"
        for name in names
        if there.get(name) != now.get(name)
    ]


def _short(value: Any) -> str:
    return "none" if value is None else excerpt(value if isinstance(value, str) else json.dumps(value), 80)


def _check(payload: bytes) -> bytes:
    return zlib.crc32(payload).to_bytes(_CHECK_BYTES, "little")


def entry_of(row: tuple[Any, ...], shown: str) -> Entry:
    """A row of the table as a piece; JournalError if it is not as it was written."""
    number, first, rows, digest, kept = row
    payload = bytes(kept[:-_CHECK_BYTES])
    if kept[-_CHECK_BYTES:] != _check(payload):
        raise JournalError(f"{shown}: is damaged at rows {first} to {first + rows - 1}; --fresh starts over")
    return Entry(number, first, rows, digest, payload)


def header_of(db: sqlite3.Connection, shown: str) -> dict[str, Any]:
    """The header of a journal; JournalError if the file is none."""
    application, version = (db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version"))
    if application != _APPLICATION:
        raise JournalError(f"{shown}: is not a journal of ours")
    if version != FORMAT:
        raise JournalError(f"{shown}: is of format {version}, this version keeps {FORMAT}; --fresh starts over")
    try:
        return dict(json.loads(db.execute("SELECT value FROM facts WHERE name = 'header'").fetchone()[0]))
    except (ValueError, TypeError):
        raise JournalError(f"{shown}: is damaged in its header; --fresh starts over") from None

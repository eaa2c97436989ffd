"""The evidence store: one SQLite file that keeps evidence by a hash of the scorer and the pair. It holds hashes and
numbers, never texts.

This module knows keys and bytes; `kept.py` says what a key stands for. In WAL mode a commit does not wait for the disk. A
killed process loses nothing that was committed; a power cut may lose the last commits, never the file.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
import weakref
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from prefcast.base.processes import runs
from prefcast.errors import UsageError, printable, shown_path

__all__ = ["LIMIT", "EvidenceStore", "Held", "default_path"]

_log = logging.getLogger("prefcast")
# Raise it when the tables change: files of another format are refused.
_FORMAT = 1
_TABLES = {
    "attempts": "(key BLOB PRIMARY KEY, scored INTEGER NOT NULL, process INTEGER NOT NULL) WITHOUT ROWID",
    "evidence": "(key BLOB PRIMARY KEY, stamp INTEGER NOT NULL, value BLOB NOT NULL) WITHOUT ROWID",
    "facts": "(name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID",
}
_APPLICATION = 0x70726665
LIMIT = 2_000_000_000
# A trim goes below the limit by so much, so that not every write is followed by a trim.
_LOW = 0.9
# Keys are hashes: each of so many ranges of them holds its share, and is trimmed in a transaction of its own.
_RANGES = 64
_PATIENCE = 15.0
_AT_ONCE = 256
_CHECK_BYTES = 4
_KEY_BYTES = 16
_MINUTES = 3_700_000_000  # a later stamp, in the year 9000, is damage


class _UnusableError(Exception):
    """The file is not an evidence store, or is damaged."""


T = TypeVar("T")
# What SQLite, and numbers read from a damaged file, may raise.
_FAULTS = (sqlite3.Error, OSError, ValueError, OverflowError, MemoryError, _UnusableError)


@dataclass(frozen=True)
class Held:
    """What a store holds: its file, entries, the bytes that they take, the bound, and when the oldest and the newest were
    added (seconds since 1970; None in an empty store)."""

    path: str
    entries: int
    bytes: int
    limit: int
    oldest: int | None
    newest: int | None


def default_path() -> Path:
    """`evidence.sqlite` in `$PREFCAST_CACHE`, else in `$XDG_CACHE_HOME/prefcast`, else in `~/.cache/prefcast`.

    Raises RuntimeError where there is no home folder.
    """
    if own := os.environ.get("PREFCAST_CACHE"):
        folder = Path(own)
    elif shared := os.environ.get("XDG_CACHE_HOME"):
        folder = Path(shared) / "prefcast"
    else:
        folder = Path.home() / ".cache" / "prefcast"
    return folder / "evidence.sqlite"


class EvidenceStore:
    """Values by key, in a file (default: `default_path`) of at most about `limit` bytes; the oldest entries go first.

    Several threads and processes may use one file; every `put` is a transaction. A file that cannot be used is told once
    through the logger, and from then on nothing is found or kept: reading and writing never raise. With `strict` that is
    a UsageError instead.
    """

    def __init__(
        self, path: str | os.PathLike[str] | None = None, *, limit: int | None = None, strict: bool = False
    ) -> None:
        self._lock = threading.Lock()
        self._db: sqlite3.Connection | None = None
        self._strict = strict
        self.limit = limit or LIMIT
        self.shown = "evidence.sqlite"
        try:
            self.path = default_path() if path is None else Path(path)
            self.shown = shown_path(self.path)
            self._db = _opened(self.path)
            # The write-ahead log of a reader that was killed is taken in; whoever forgets to close leaves nothing open.
            weakref.finalize(self, self._db.close)
            self.limit = limit or _fact(self._db, "limit") or LIMIT
        except (*_FAULTS, RuntimeError) as error:
            self._give_up(error)

    @property
    def usable(self) -> bool:
        """Whether the file can be used."""
        return self._db is not None

    def get(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """The values of those `keys` that are there."""
        return self._tried(lambda db: _found(db, keys)) or {}

    def put(self, values: Iterable[tuple[bytes, bytes]]) -> None:
        """Keep the values of keys of 16 bytes, all or none; an older value of the same key is replaced."""
        now = int(time.time()) // 60
        rows = [(key, now, value + _check(key, value)) for key, value in values]

        def do(db: sqlite3.Connection) -> None:
            with _transaction(db):
                db.executemany("INSERT OR REPLACE INTO evidence VALUES (?, ?, ?)", rows)
                db.execute("UPDATE facts SET value = value - ? WHERE name = 'room'", (len(rows),))
            if _used(db) > self.limit and (_fact(db, "room") or 0) <= 0:
                _trim(db, self.limit)

        if rows:
            self._tried(do)

    def begin(self, key: bytes) -> bool:
        """Note that a run begins. True if the last run with that key ended before it had scored anything, without `end`."""

        def do(db: sqlite3.Connection) -> tuple[int, int] | None:
            with _transaction(db):
                row = db.execute("SELECT scored, process FROM attempts WHERE key = ?", (key,)).fetchone()
                db.execute("INSERT OR REPLACE INTO attempts VALUES (?, 0, ?)", (key, os.getpid()))
            return row  # type: ignore[no-any-return]

        row = self._tried(do)
        return row is not None and row[0] == 0 and not runs(row[1])

    def scored(self, key: bytes) -> None:
        """Note that the run with that key has scored something."""
        self._tried(lambda db: db.execute("UPDATE attempts SET scored = 1 WHERE key = ?", (key,)))

    def end(self, key: bytes) -> None:
        """Note that the run with that key ended in order."""
        mine = key, os.getpid()
        self._tried(lambda db: db.execute("DELETE FROM attempts WHERE key = ? AND process = ?", mine))

    def held(self) -> Held:
        """What the store holds. Raises UsageError where the file cannot be used."""
        with self._asked() as db:
            entries, *stamps = db.execute("SELECT count(*), min(stamp), max(stamp) FROM evidence").fetchone()
            times = [None if each is None else _number(each, _MINUTES) * 60 for each in stamps]
            return Held(self.shown, entries, _used(db), self.limit, *times)

    def bound(self, limit: int) -> None:
        """From now on the file takes at most about `limit` bytes. Raises UsageError where the file cannot be used."""
        with self._asked() as db:
            db.execute("INSERT OR REPLACE INTO facts VALUES ('limit', ?)", (limit,))
            self.limit = limit
            if _used(db) > limit:
                _trim(db, limit)
                _shrink(db)

    def empty(self) -> None:
        """Delete everything. Raises UsageError where the file cannot be used."""
        with self._asked() as db:
            db.execute("DELETE FROM evidence")
            db.execute("DELETE FROM attempts")
            _shrink(db)

    def copy(self, path: str | os.PathLike[str]) -> None:
        """Copy everything into a new file at `path`. Raises UsageError where that is not possible."""
        with self._asked() as db:
            try:
                # SQLite fills an empty file: only its owner can read it, and no other file is replaced.
                os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
            except FileExistsError:
                raise UsageError(f"{shown_path(path)}: is there already; name a new file") from None
            except (OSError, ValueError) as error:
                raise UsageError(f"{shown_path(path)}: cannot be written: {_reason(error)}") from None
            try:
                db.execute("VACUUM INTO ?", (os.fspath(path),))
            except BaseException as error:
                with suppress(OSError):
                    Path(path).unlink()
                if isinstance(error, _FAULTS):
                    raise UsageError(f"{shown_path(path)}: cannot be written: {_reason(error)}") from None
                raise

    def close(self) -> None:
        """Give the file back; afterwards nothing is found or kept."""
        with self._lock:
            if self._db is not None:
                self._db.close()
                self._db = None

    def __enter__(self) -> EvidenceStore:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _tried(self, do: Callable[[sqlite3.Connection], T]) -> T | None:
        """What `do` returns; None where the file cannot be used, now or from now on."""
        with self._lock:
            if self._db is None:
                return None
            try:
                return do(self._db)
            except _FAULTS as error:
                self._give_up(error)
                return None

    @contextmanager
    def _asked(self) -> Iterator[sqlite3.Connection]:
        """The database, for what a person asked for: a fault is a UsageError."""
        with self._lock:
            if self._db is None:
                raise UsageError(f"{self.shown}: cannot be used; --store FILE names another file")
            try:
                yield self._db
            except _FAULTS as error:
                raise UsageError(f"{self.shown}: {_reason(error)}") from None

    def _give_up(self, error: BaseException) -> None:
        if self._db is not None:
            with suppress(sqlite3.Error):
                self._db.close()
            self._db = None
        if self._strict:
            raise UsageError(f"{self.shown}: {_reason(error)}") from None
        _log.warning(
            "%s: %s: evidence is neither kept nor found there (--store FILE names another file, --no-store uses none)",
            self.shown,
            _reason(error),
        )


def _number(value: object, most: int = 2**63) -> int:
    """A number as it stands in the file."""
    if isinstance(value, int) and value <= most:
        return value
    raise _UnusableError(_DAMAGED)


def _reason(error: BaseException) -> str:
    if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_CORRUPT:
        return _DAMAGED
    return printable(str(getattr(error, "strerror", None) or error))


_DAMAGED = "the file is damaged; delete it"
_FOREIGN = "the file belongs to another program"


@contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        if db.in_transaction:  # on a full disk SQLite may have rolled back already
            db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")


def _check(key: bytes, value: bytes) -> bytes:
    """A checksum: SQLite notices a damaged page only where its structure is hit."""
    return zlib.crc32(key + value).to_bytes(_CHECK_BYTES, "little")


def _unpacked(key: object, packed: object) -> bytes:
    if isinstance(key, bytes) and isinstance(packed, bytes) and len(key) == _KEY_BYTES and len(packed) >= _CHECK_BYTES:
        value = packed[:-_CHECK_BYTES]
        if packed[-_CHECK_BYTES:] == _check(key, value):
            return value
    raise _UnusableError(_DAMAGED)


def _found(db: sqlite3.Connection, keys: Sequence[bytes]) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    for start in range(0, len(keys), _AT_ONCE):
        part = keys[start : start + _AT_ONCE]
        query = f"SELECT key, value FROM evidence WHERE key IN ({','.join('?' * len(part))})"  # noqa: S608
        for key, packed in db.execute(query, part):
            found[key] = _unpacked(key, packed)
    if not found.keys() <= set(keys):
        raise _UnusableError(_DAMAGED)
    return found


def _fact(db: sqlite3.Connection, name: str) -> int | None:
    row = db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
    return None if row is None else _number(row[0])


def _trim(db: sqlite3.Connection, limit: int) -> None:
    """Delete the oldest entries of a file that is over its limit.

    Pages that were full become emptier and take new entries: the file does not shrink. So the next trim waits until
    half as many entries were added as were deleted now.
    """
    found = db.execute("SELECT stamp, count(*) FROM evidence GROUP BY stamp ORDER BY stamp")
    ages = [(_number(stamp, _MINUTES), count) for stamp, count in found]
    surplus = left = int(sum(count for _, count in ages) * (1 - _LOW * limit / _used(db))) + 1
    older, border, share = -1, -1, 0.0
    for stamp, count in ages:
        if count > left:
            border, share = stamp, left / count
            break
        older, left = stamp, left - count
    step = 256 // _RANGES
    for first in range(0, 256, step):
        low, high = bytes([first]), bytes([first + step]) if first + step < 256 else b"\xff" * (_KEY_BYTES + 1)
        # All entries of one minute have the same age: some of them are deleted, evenly, so that each range gets room.
        db.execute(
            "DELETE FROM evidence WHERE key >= ? AND key < ? AND (stamp <= ? OR stamp = ? AND abs(random() % 10000) < ?)",
            (low, high, older, border, share * 10_000),
        )
    db.execute("INSERT OR REPLACE INTO facts VALUES ('room', ?)", (surplus // 2,))


def _shrink(db: sqlite3.Connection) -> None:
    db.execute("DELETE FROM facts WHERE name = 'room'")
    db.execute("VACUUM")
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _pragma(db: sqlite3.Connection, name: str) -> int:
    found: int = db.execute(f"PRAGMA {name}").fetchone()[0]
    return found


def _used(db: sqlite3.Connection) -> int:
    return (_pragma(db, "page_count") - _pragma(db, "freelist_count")) * _pragma(db, "page_size")


def _opened(path: Path) -> sqlite3.Connection:
    if path.exists() and not path.is_file():
        raise _UnusableError("is not a regular file")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Nobody else reads what was scored; SQLite gives its other files the same mode.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    # The lock of EvidenceStore keeps threads apart.
    db = sqlite3.connect(path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False)
    try:
        _set_up(db)
    except BaseException:
        db.close()
        raise
    return db


def _set_up(db: sqlite3.Connection) -> None:
    """Make the tables if the file is new; _UnusableError if it is another version's or another program's."""
    # The file may come from a stranger: its tables alone are used, and nothing in it is run.
    db.execute("PRAGMA trusted_schema = OFF")
    if not _pragma(db, "application_id"):
        with _transaction(db):
            # Another process may have been faster.
            if not _pragma(db, "application_id"):
                if db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                    raise _UnusableError(_FOREIGN)
                for name, columns in _TABLES.items():
                    db.execute(f"CREATE TABLE {name} {columns}")
                db.execute(f"PRAGMA user_version = {_FORMAT}")
                db.execute(f"PRAGMA application_id = {_APPLICATION}")
    if _pragma(db, "application_id") != _APPLICATION:
        raise _UnusableError(_FOREIGN)
    if (found := _pragma(db, "user_version")) != _FORMAT:
        raise _UnusableError(f"the file has format {found}, this version uses format {_FORMAT}; delete it")
    there = db.execute("SELECT type, name, sql FROM sqlite_master ORDER BY name").fetchall()
    if there != [("table", name, f"CREATE TABLE {name} {columns}") for name, columns in _TABLES.items()]:
        raise _UnusableError(_FOREIGN)
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
            break
        except sqlite3.OperationalError as error:
            # SQLite does not wait for other processes here.
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
    db.execute("PRAGMA synchronous = NORMAL")

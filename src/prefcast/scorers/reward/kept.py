"""Scores that are kept from run to run: one file, a row for what was scored, hashes and numbers only."""

from __future__ import annotations

import hashlib
import logging
import os
import sqlite3
import threading
import time
import weakref
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prefcast.errors import printable, shown_path

__all__ = ["KeptScores", "kept_file"]

_log = logging.getLogger("prefcast")
# Raise the first when the file changes, the second when scores change: what a version before computed is not served.
_FORMAT = 1
_COMPUTATION = 1
_PATIENCE = 15.0
_AT_ONCE = 500
_CHECK_BYTES = 4

Numbers = NDArray[np.float64]


class _UnusableError(Exception):
    """The file is not one of ours, or is damaged."""


def kept_file() -> Path:
    """Where scores are kept: `scores.sqlite` in `$PREFCAST_CACHE`, else in `$XDG_CACHE_HOME/prefcast`, else in
    `~/.cache/prefcast`.

    Raises RuntimeError where there is no home folder.
    """
    if own := os.environ.get("PREFCAST_CACHE"):
        folder = Path(own)
    elif shared := os.environ.get("XDG_CACHE_HOME"):
        folder = Path(shared) / "prefcast"
    else:
        folder = Path.home() / ".cache" / "prefcast"
    return folder / "scores.sqlite"


class KeptScores:
    """The numbers of what was scored before, by its content.

    `namespace` names all else that the numbers depend on. Several threads and processes may use one file; every `put` is
    a transaction. A file that cannot be used is told once through the logger, and from then on nothing is found or kept:
    no method raises for it.
    """

    def __init__(self, namespace: str) -> None:
        self._salt = hashlib.sha256(f"{_COMPUTATION}\0{namespace}".encode()).digest()
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._where = "scores.sqlite"
        try:
            path = kept_file()
            self._where = shown_path(path)
            self._connection = _opened(path)
        except (sqlite3.Error, OSError, RuntimeError, ValueError, _UnusableError) as error:
            self._give_up(error)
        else:
            # Whoever forgets to close leaves nothing open.
            weakref.finalize(self, self._connection.close)

    def get(self, contents: Sequence[bytes]) -> dict[bytes, Numbers]:
        """The numbers (k,), float64, of those `contents` that were kept."""
        keys = {self._key(content): content for content in contents}
        found: dict[bytes, Numbers] = {}
        with self._lock:
            if self._connection is None:
                return {}
            try:
                asked = list(keys)
                for start in range(0, len(asked), _AT_ONCE):
                    part = asked[start : start + _AT_ONCE]
                    rows = self._connection.execute(
                        f"SELECT key, numbers FROM scores WHERE key IN ({','.join('?' * len(part))})",  # noqa: S608
                        part,
                    )
                    found |= {keys[key]: _unpacked(key, packed) for key, packed in rows}
            except (sqlite3.Error, _UnusableError) as error:
                self._give_up(error)
                return {}
        return found

    def put(self, scores: Mapping[bytes, Numbers]) -> None:
        """Keep the numbers (k,) of these contents, all or none; what is there already stays."""
        rows = [(key, _packed(key, numbers)) for key, numbers in ((self._key(c), n) for c, n in scores.items())]
        with self._lock:
            if self._connection is None or not rows:
                return
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    self._connection.executemany("INSERT OR IGNORE INTO scores VALUES (?, ?)", rows)
                except BaseException:
                    # A full disk may have rolled back already.
                    if self._connection.in_transaction:
                        self._connection.execute("ROLLBACK")
                    raise
                self._connection.execute("COMMIT")
            except sqlite3.Error as error:
                self._give_up(error)

    def close(self) -> None:
        """Give the file back; afterwards nothing is found or kept."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _key(self, content: bytes) -> bytes:
        return hashlib.sha256(self._salt + content).digest()

    def _give_up(self, error: Exception) -> None:
        reason = getattr(error, "strerror", None) or error
        _log.warning(
            "scores are not kept: %s: %s (PREFCAST_CACHE names another folder)", self._where, printable(str(reason))
        )
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _packed(key: bytes, numbers: Numbers) -> bytes:
    """The numbers with a checksum: SQLite notices a damaged page only where its structure is hit."""
    data = np.asarray(numbers, dtype="<f8").tobytes()
    return data + zlib.crc32(key + data).to_bytes(_CHECK_BYTES, "little")


def _unpacked(key: bytes, packed: object) -> Numbers:
    if isinstance(packed, bytes) and len(packed) % 8 == _CHECK_BYTES:
        data, check = packed[:-_CHECK_BYTES], packed[-_CHECK_BYTES:]
        if zlib.crc32(key + data) == int.from_bytes(check, "little"):
            return np.frombuffer(data, dtype="<f8").astype(np.float64)
    raise _UnusableError("the file is damaged; delete it")


def _opened(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Nobody else reads which texts were scored; SQLite gives its other files the same mode.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    # The lock of KeptScores keeps threads apart.
    connection = sqlite3.connect(path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False)
    try:
        _set_up(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _set_up(connection: sqlite3.Connection) -> None:
    """Make the table if the file is new; _UnusableError if it is another version's or another program's."""
    if _version(connection) == 0:
        connection.execute("BEGIN IMMEDIATE")
        # Another process may have been faster.
        if _version(connection) == 0:
            if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                raise _UnusableError("the file belongs to another program")
            connection.execute("CREATE TABLE scores (key BLOB PRIMARY KEY, numbers BLOB NOT NULL) WITHOUT ROWID")
            connection.execute(f"PRAGMA user_version = {_FORMAT}")
        connection.execute("COMMIT")
    if _version(connection) != _FORMAT:
        raise _UnusableError(f"the file is of format {_version(connection)}, this version keeps {_FORMAT}; delete it")
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            break
        except sqlite3.OperationalError as error:
            # Here SQLite itself does not wait for the others.
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
    # A killed process loses nothing; a power cut may lose the last scores, never the file.
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("SELECT key, numbers FROM scores LIMIT 0")


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])

"""A run in parts, for people with a batch scheduler: every n-th piece a shard, and the shards as one output again."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefcast.errors import JournalError, UsageError, excerpt, shown_path
from prefcast.outcomes.models import Link
from prefcast.runs.journal import Entry, differences, entry_of, header_of
from prefcast.runs.packed import Piece, link_of_json, unpack

__all__ = ["Shard", "ShardOf", "open_shards", "pieces_of"]

# What may differ between the shards of one run.
_OWN = ("shard",)


@dataclass(frozen=True)
class ShardOf:
    """Shard `index` (from 1) of `count`: the pieces index - 1, index - 1 + count, ..."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> ShardOf:
        """`3/7`; UsageError if it is not of that form."""
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise UsageError(f"--shard: {excerpt(text)} is not of the form I/N, like 3/7, with I from 1 to N")
        return cls(int(found[1]), int(found[2]))

    def __contains__(self, number: int) -> bool:
        return number % self.count == self.index - 1

    def __str__(self) -> str:
        return f"{self.index} of {self.count}"

    def path(self, output: Path) -> Path:
        """What the shard of `output` is called."""
        return output.with_name(f"{output.name}.shard-{self.index}-of-{self.count}")


@dataclass(frozen=True)
class Shard:
    """A shard's file: which one it is, its run's header, how many pieces the run has, and the input's digest."""

    path: str
    of: ShardOf
    header: dict[str, Any]
    pieces: int
    digest: str
    link: Link | None
    _db: sqlite3.Connection

    @classmethod
    def open(cls, path: Path) -> Shard:
        """Raises JournalError if it is not a whole shard."""
        shown = shown_path(path)
        if path.is_dir() and (path / "journal.sqlite").exists():
            raise JournalError(f"{shown}: is a run that is not finished; its own command goes on with it")
        if not path.is_file():
            raise JournalError(f"{shown}: cannot be read: there is no such file")
        db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True, isolation_level=None)
        try:
            header = header_of(db, shown)
            facts = {name: json.loads(value) for name, value in db.execute("SELECT name, value FROM facts")}
            if "shard" not in header:
                raise JournalError(f"{shown}: is the journal of a whole run, not a shard")
            if "pieces" not in facts:
                raise JournalError(f"{shown}: is a shard that is not finished; its own command goes on with it")
            index, count = map(int, header["shard"].split(" of "))
            link = link_of_json(facts["link"])
            return cls(shown, ShardOf(index, count), header, int(facts["pieces"]), str(facts["digest"]), link, db)
        except (sqlite3.Error, ValueError, KeyError, TypeError, AttributeError):
            db.close()
            raise JournalError(
                f"{shown}: is not a shard (prefcast predict --shard I/N makes them), or is damaged"
            ) from None
        except BaseException:
            db.close()
            raise

    def get(self, number: int) -> Entry:
        """A piece of it; JournalError if it is missing or damaged."""
        try:
            row = self._db.execute("SELECT * FROM pieces WHERE number = ?", (number,)).fetchone()
        except sqlite3.Error as error:
            raise JournalError(f"{self.path}: is damaged: {error}; make the shard anew") from None
        if row is None:
            raise JournalError(f"{self.path}: lacks piece {number} of its run; make the shard anew")
        return entry_of(row, self.path)

    def close(self) -> None:
        self._db.close()


def open_shards(paths: Sequence[Path]) -> list[Shard]:
    """The shards of one run, in order. Raises JournalError naming those that are missing, double or of another run."""
    shards: dict[int, Shard] = {}
    first: Shard | None = None
    try:
        for path in paths:
            shard = Shard.open(path)
            first = first or shard
            twin = shards.setdefault(shard.of.index, shard)
            if shard is not twin and shard.of == twin.of:
                shard.close()
                raise JournalError(f"shard {shard.of} is there twice: {twin.path} and {shard.path}")
            _check_same(first, shard)
        if first is None:
            raise UsageError("name the shards to merge")
        missing = [number for number in range(1, first.of.count + 1) if number not in shards]
        if missing:
            named = ", ".join(map(str, missing[:20])) + (", ..." if len(missing) > 20 else "")
            raise JournalError(
                f"shard{'s' if len(missing) > 1 else ''} {named} of {first.of.count} {'are' if len(missing) > 1 else 'is'} missing"
            )
    except BaseException:
        for shard in shards.values():
            shard.close()
        raise
    return [shards[index] for index in sorted(shards)]


def _check_same(first: Shard, shard: Shard) -> None:
    def common(header: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in header.items() if name not in _OWN}

    differ = differences(common(first.header), common(shard.header))
    if first.of.count != shard.of.count:
        differ.insert(0, f"it is shard {shard.of}, the other {first.of}")
    if not differ and (first.digest, first.pieces) != (shard.digest, shard.pieces):
        differ = ["its input held other rows"]
    if differ:
        raise JournalError(
            f"{first.path} and {shard.path} are not of one run: {'; '.join(differ)}".replace(
                ", here it is", ", in the second"
            )
        )


def pieces_of(shards: Sequence[Shard]) -> Iterator[Piece]:
    """The results of the whole run, in the order of its input."""
    for number in range(shards[0].pieces):
        shard = shards[number % len(shards)]
        entry = shard.get(number)
        try:
            yield unpack(entry.payload, None, shards[0].link)
        except (ValueError, KeyError, TypeError, IndexError):
            raise JournalError(f"{shard.path}: is damaged in piece {number}; make the shard anew") from None

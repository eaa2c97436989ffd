"""A run in shards, for a batch scheduler: each shard has every n-th piece, and `merge` joins the shards into one output.

A shard is a text file: a line about the run, a line for each piece with its number and its rows as the output holds them,
a line of totals, and a line with the SHA-256 of all that stands before. Merging needs neither model nor input.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from prefcast.errors import RunError, UsageError, excerpt, shown_path

__all__ = ["Shard", "ShardOf", "ShardRows", "ShardWriter", "differences", "open_shards", "rows_of"]

_FORMAT = 2
_MARK = "prefcast shard"
# What may differ between the shards of one run.
_OWN = {"shard": None}


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

    def __contains__(self, number: object) -> bool:
        return isinstance(number, int) and number % self.count == self.index - 1

    def __str__(self) -> str:
        return f"{self.index} of {self.count}"

    def path(self, output: Path) -> Path:
        """What the shard of `output` is called."""
        return output.with_name(f"{output.name}.shard-{self.index}-of-{self.count}")


class ShardWriter:
    """Writes the pieces of one shard; `finish` says which input they are from."""

    def __init__(self, file: BinaryIO, of: ShardOf, header: Mapping[str, Any], *, with_text: bool) -> None:
        self._file, self._with_text = file, with_text
        self._digest, self._numbers = hashlib.sha256(), itertools.count(of.index - 1, of.count)
        self._line({_MARK: _FORMAT, "header": dict(header)})

    def write(self, piece: Any) -> None:
        """The next of the shard's pieces: forecasts or scores."""
        self._line({"piece": next(self._numbers), "rows": list(piece.records(with_text=self._with_text))})

    def finish(self, pieces: int, digest: str) -> None:
        """The input has so many pieces, and its rows have this digest."""
        self._line({"pieces": pieces, "digest": digest})
        self._file.write(f"{self._digest.hexdigest()}\n".encode())

    def _line(self, said: Mapping[str, Any]) -> None:
        line = json.dumps(said, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        self._digest.update(line)
        self._file.write(line)


@dataclass(frozen=True)
class ShardRows:
    """The rows of a piece as the shard holds them, for the writers of outputs."""

    ids: list[str | int]
    rows: list[dict[str, Any]]

    def __len__(self) -> int:
        return len(self.ids)

    def records(self, *, with_text: bool = False) -> Iterator[dict[str, Any]]:
        yield from self.rows


@dataclass(frozen=True)
class Shard:
    """A whole shard: which one it is, its run's header, how many pieces the run has, and the digest of the input."""

    path: str
    of: ShardOf
    header: dict[str, Any]
    pieces: int
    digest: str
    _file: BinaryIO = field(repr=False)

    @classmethod
    def open(cls, path: Path) -> Shard:
        """Raises RunError for a file that is not a whole and undamaged shard."""
        shown = shown_path(path)
        try:
            file = path.open("rb")
        except (OSError, ValueError) as error:
            raise RunError(f"{shown}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
        try:
            header, total = _checked(file)
            of = ShardOf.parse(header["shard"].replace(" of ", "/"))
            if total["pieces"] < 0:
                raise ValueError
            file.seek(0)
            file.readline()
            return cls(shown, of, header, int(total["pieces"]), str(total["digest"]), file)
        except (ValueError, ArithmeticError, KeyError, TypeError, AttributeError, RecursionError, UsageError):
            file.close()
            raise RunError(
                f"{shown}: is not a shard (prefcast predict --shard I/N makes them), or is damaged; make the shard anew"
            ) from None
        except BaseException:
            file.close()
            raise

    def next(self) -> tuple[int, ShardRows]:
        """The next piece: its number and its rows. Raises RunError if there is none."""
        try:
            said = json.loads(self._file.readline())
            rows = [dict(row) for row in said["rows"]]
            if not {type(row["id"]) for row in rows} <= {str, int}:
                raise ValueError
            return int(said["piece"]), ShardRows([row["id"] for row in rows], rows)
        except (ValueError, ArithmeticError, KeyError, TypeError, RecursionError):
            raise RunError(f"{self.path}: holds a piece that is damaged; make the shard anew") from None

    def close(self) -> None:
        self._file.close()


def _checked(file: BinaryIO) -> tuple[dict[str, Any], dict[str, Any]]:
    """The header and the totals of a shard whose every byte is as it was written; ValueError otherwise."""
    digest, first, total, last = hashlib.sha256(), b"", b"", b""
    for line in file:
        if last:
            digest.update(last)
            total = last
        first, last = first or line, line
    if last != f"{digest.hexdigest()}\n".encode():
        raise ValueError
    said = json.loads(first)
    if said[_MARK] != _FORMAT:
        raise ValueError
    return dict(said["header"]), dict(json.loads(total))


def open_shards(paths: Sequence[Path]) -> list[Shard]:
    """The shards of one run, in order. Raises RunError naming those that are missing, double or of another run."""
    shards: dict[int, Shard] = {}
    first: Shard | None = None
    try:
        for path in paths:
            shard = Shard.open(path)
            first = first or shard
            twin = shards.setdefault(shard.of.index, shard)
            if shard is not twin and shard.of == twin.of:
                shard.close()
                raise RunError(f"shard {shard.of} is there twice: {twin.path} and {shard.path}")
            _check_same(first, shard)
        if first is None:
            raise UsageError("name the shards to merge")
        missing = [number for number in range(1, first.of.count + 1) if number not in shards]
        if missing:
            named = ", ".join(map(str, missing[:20])) + (", ..." if len(missing) > 20 else "")
            raise RunError(
                f"shard{'s' if len(missing) > 1 else ''} {named} of {first.of.count} {'are' if len(missing) > 1 else 'is'} missing"
            )
    except BaseException:
        for shard in shards.values():
            shard.close()
        raise
    return [shards[index] for index in sorted(shards)]


def _check_same(first: Shard, shard: Shard) -> None:
    differ = differences({**first.header, **_OWN}, {**shard.header, **_OWN}, ("in the first", "in the second"))
    if first.of.count != shard.of.count:
        differ.insert(0, f"they are shard {first.of} and shard {shard.of}")
    if not differ and (first.digest, first.pieces) != (shard.digest, shard.pieces):
        differ = ["their inputs held different rows"]
    if differ:
        raise RunError(f"{first.path} and {shard.path} are not of one run: {'; '.join(differ)}")


def differences(
    one: Mapping[str, Any], other: Mapping[str, Any], places: tuple[str, str] = ("there", "here")
) -> list[str]:
    """The differences between two headers of runs, in words."""
    return [
        f"the {name} is {_short(one.get(name))} {places[0]} and {_short(other.get(name))} {places[1]}"
        for name in {**one, **other}
        if one.get(name) != other.get(name)
    ]


def _short(value: Any) -> str:
    return "none" if value is None else excerpt(value if isinstance(value, str) else json.dumps(value), 80)


def rows_of(shards: Sequence[Shard]) -> Iterator[ShardRows]:
    """The rows of the whole run, in the order of its input."""
    for number in range(shards[0].pieces):
        shard = shards[number % len(shards)]
        found, rows = shard.next()
        if found != number:
            raise RunError(f"{shard.path}: lacks piece {number} of its run; make the shard anew")
        yield rows

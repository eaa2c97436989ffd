"""Files of several answers to each prompt: a row a prompt (`responses`), or a row an answer (`response`), those of one
prompt after one another."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from prefcast.errors import FileError, RowError, UsageError, excerpt
from prefcast.pairs import clean
from prefcast.pairs.formats.containers import Records, open_records
from prefcast.pairs.formats.fields import Fault, cell, kind, present
from prefcast.pairs.formats.ids import SeenIds

__all__ = ["CandidateFile", "Candidates"]

_FIELDS = ("id", "prompt", "responses", "response")
_MOST = 256


@dataclass(frozen=True)
class Candidates:
    """A prompt's turns and the turns of n answers to it; `row` is the first row that has them."""

    id: str | int
    prompt: tuple[str, ...]
    responses: tuple[tuple[str, ...], ...]
    row: int


class CandidateFile:
    """The candidates of one file: iterate, once, for Candidates or, where a row is at fault, RowError.

    `columns` maps our names to the file's. In a CSV a text cell holds a JSON array unless `cells` is `text`; `responses`
    always does. Raises FileError.
    """

    def __init__(
        self, path: str | os.PathLike[str], columns: Mapping[str, str] | None = None, cells: str = "json"
    ) -> None:
        self._records: Records = open_records(path)
        self.name = self._records.name
        self._mapping = dict(columns or {})
        # JSON and Parquet say what a value is; a CSV's cell is a text, whatever it holds.
        self._separated = self._records.kind in ("csv", "tsv")
        self._parse = self._separated and cells == "json"
        try:
            self._find_fields()
        except BaseException:
            self._records.close()
            raise

    def _find_fields(self) -> None:
        if unknown := next((ours for ours in self._mapping if ours not in _FIELDS), None):
            raise UsageError(f"--columns: there is no field {unknown!r} (fields: {', '.join(_FIELDS)})")
        names = self._records.columns
        if missing := next((theirs for theirs in self._mapping.values() if theirs not in names), None):
            raise FileError(self.name, f"column {excerpt(missing)} is missing")
        has = {field for field in _FIELDS if self._mapping.get(field, field) in names}
        self._has_id, self._wide = "id" in has, "responses" in has
        if "prompt" not in has or not has & {"responses", "response"}:
            raise FileError(
                self.name,
                "holds no answers; expected prompt and responses (a list), or a row an answer with prompt and response, and "
                "perhaps id (--columns maps your own names)",
            )

    def __enter__(self) -> CandidateFile:
        return self

    def __exit__(self, *exc: object) -> None:
        self._records.close()

    @property
    def progress(self) -> tuple[int, int]:
        """Bytes read, of how many."""
        return self._records.position, self._records.size

    def __iter__(self) -> Iterator[Candidates | RowError]:
        seen = SeenIds()
        for item in self._rows() if self._wide else self._groups():
            if self._has_id and isinstance(item.id, str) and (first := seen.add(item.id, item.row)) is not None:
                raise self._again(item.row, first)
            if seen.full and (found := seen.settle()):
                raise self._again(*found)
            yield item
        if found := seen.settle():
            raise self._again(*found)

    def _again(self, row: int, first: int) -> FileError:
        what = "every row needs its own" if self._wide else "the answers to one prompt must follow one another"
        return FileError(self.name, f"id is the same as in row {first}; {what}", row)

    def _rows(self) -> Iterator[Candidates | RowError]:
        for row, record in self._records:
            if isinstance(record, RowError):
                yield record
                continue
            fields = self._renamed(record)
            id = self._id(fields, row)
            try:
                prompt = self._texts(fields, "prompt")
                yield self._candidates(id, prompt, self._list(fields), row)
            except Fault as fault:
                yield self._error(row, fault, id)

    def _groups(self) -> Iterator[Candidates | RowError]:
        def key(item: tuple[int, dict[str, Any] | RowError]) -> object:
            row, fields = item
            if isinstance(fields, RowError):
                return ("row", row)
            return ("id", self._id(fields, row)) if self._has_id else ("prompt", repr(fields.get("prompt")))

        read = (
            (row, record if isinstance(record, RowError) else self._renamed(record)) for row, record in self._records
        )
        for _, group in groupby(read, key):
            yield self._gathered(iter(group))

    def _gathered(self, rows: Iterator[tuple[int, dict[str, Any] | RowError]]) -> Candidates | RowError:
        """The answers of rows that follow one another; what is wrong with one is wrong with the choice between them."""
        row, first = next(rows)
        if isinstance(first, RowError):
            return first
        id, at = self._id(first, row), row
        try:
            prompt = self._texts(first, "prompt")
            responses = [self._texts(first, "response")]
            for number, fields in rows:
                at = number
                assert not isinstance(fields, RowError)  # noqa: S101
                if self._texts(fields, "prompt") != prompt:
                    raise Fault("prompt", f"is another than in row {row}, which has the same id")
                if len(responses) <= _MOST:
                    responses.append(self._texts(fields, "response"))
            at = row
            return self._candidates(id, prompt, responses, row)
        except Fault as fault:
            return self._error(at, fault, id)

    def _candidates(
        self, id: str | int, prompt: tuple[str, ...], responses: list[tuple[str, ...]], row: int
    ) -> Candidates:
        field = "responses" if self._wide else "response"
        if not 2 <= len(responses) <= _MOST:
            found = f"{len(responses)}" if len(responses) <= _MOST else f"more than {_MOST}"
            raise Fault(field, f"has {found} answers to its prompt; expected 2 to {_MOST}")
        for number, turns in enumerate(responses, 1):
            if len(turns) != len(prompt):
                raise Fault(
                    field, f"answer {number} has {len(turns)} turns where prompt has {len(prompt)}; they must be equal"
                )
        return Candidates(id, prompt, tuple(responses), row)

    def _list(self, fields: Mapping[str, Any]) -> list[tuple[str, ...]]:
        value = cell(fields, "responses") if self._separated else present(fields, "responses")
        if not isinstance(value, list):
            raise Fault("responses", f"is {kind(value)}; expected a list of answers")
        return [self._turns(each, "responses") for each in value]

    def _texts(self, fields: Mapping[str, Any], field: str) -> tuple[str, ...]:
        return self._turns(cell(fields, field) if self._parse else present(fields, field), field)

    @staticmethod
    def _turns(value: Any, field: str) -> tuple[str, ...]:
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list) or not texts or not all(text is None or isinstance(text, str) for text in texts):
            raise Fault(field, f"is {kind(value)}; expected a text, or a list of texts, one a turn")
        return tuple(clean(text or "") for text in texts)

    def _renamed(self, record: Mapping[str, Any]) -> dict[str, Any]:
        names = ((field, self._mapping.get(field, field)) for field in _FIELDS)
        return {field: record[name] for field, name in names if name in record}

    def _id(self, fields: Mapping[str, Any], row: int) -> str | int:
        if not self._has_id:
            return row
        id = fields.get("id")
        if id in (None, "") or isinstance(id, list | dict | bool):
            raise FileError(self.name, f"id is {excerpt(id)}; expected a text or a number in every row", row)
        return clean(str(id))

    def _error(self, row: int, fault: Fault, id: str | int) -> RowError:
        return RowError(self.name, row, self._mapping.get(fault.field, fault.field), fault.problem, id)

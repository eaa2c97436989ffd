"""Files of several answers to each prompt: a row a prompt (`responses`), or a row an answer (`response`), those of one
prompt after one another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from prefcast.errors import FileError, RowError
from prefcast.pairs import clean
from prefcast.pairs.formats.fields import Fault, Record, cell, kind, present
from prefcast.pairs.formats.table import Table, UniqueIds

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


class CandidateFile(Table):
    """The candidates of one file: iterate, once, for Candidates or, where a row is at fault, RowError.

    `columns` maps our names to the file's. In a CSV a text cell holds a JSON array unless `cells` is `text`; `responses`
    always does. Raises FileError.
    """

    def __init__(self, source: Any, columns: Mapping[str, str] | None = None, cells: str = "json") -> None:
        super().__init__(source, _FIELDS, columns)
        # JSON and Parquet say what a value is; a CSV's cell is a text, whatever it holds.
        self._parse = self.textual and cells == "json"

    def _find(self) -> None:
        self._wide = "responses" in self.names
        if "prompt" not in self.names or not self.names & {"responses", "response"}:
            raise FileError(
                self.name,
                "holds no answers; expected prompt and responses (a list), or a row an answer with prompt and response, and "
                "perhaps id (--columns maps your own names)",
            )

    def __iter__(self) -> Iterator[Candidates | RowError]:
        return self._rows() if self._wide else self._groups()

    def _rows(self) -> Iterator[Candidates | RowError]:
        for row, id, record in self.identified():
            if isinstance(record, RowError):
                yield record
                continue
            id = str(id) if self.has_id else id  # noqa: PLW2901
            try:
                yield self._candidates(id, self._texts(record, "prompt"), self._list(record), row)
            except Fault as fault:
                yield self.row_error(row, fault, id)

    def _groups(self) -> Iterator[Candidates | RowError]:
        def key(item: tuple[int, Record | RowError]) -> object:
            row, record = item
            if isinstance(record, RowError):
                return ("row", row)
            return ("id", self._text_id(record, row)) if self.has_id else ("prompt", repr(record.get("prompt")))

        ids = UniqueIds(self, "the answers to one prompt must follow one another")
        for _, group in groupby(self.rows(), key):
            row, record = next(group)
            if isinstance(record, RowError):
                yield record
                continue
            id = self._text_id(record, row)
            if self.has_id:
                ids.add(id, row)
            yield self._gathered(row, id, record, group)  # noqa: B031 - the first row was taken from it
        ids.settle()

    def _text_id(self, record: Record, row: int) -> str | int:
        id = self.id_of(record, row)
        return str(id) if self.has_id else id

    def _gathered(
        self, row: int, id: str | int, first: Record, others: Iterator[tuple[int, Record | RowError]]
    ) -> Candidates | RowError:
        """The answers of rows that follow one another; what is wrong with one is wrong with the choice between them."""
        at = row
        try:
            prompt = self._texts(first, "prompt")
            responses = [self._texts(first, "response")]
            for number, record in others:
                at = number
                assert not isinstance(record, RowError)  # noqa: S101
                if self._texts(record, "prompt") != prompt:
                    raise Fault("prompt", f"is another than in row {row}, which has the same id")
                if len(responses) <= _MOST:
                    responses.append(self._texts(record, "response"))
            at = row
            return self._candidates(id, prompt, responses, row)
        except Fault as fault:
            return self.row_error(at, fault, id)

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

    def _list(self, fields: Record) -> list[tuple[str, ...]]:
        value = cell(fields, "responses") if self.textual else present(fields, "responses")
        if not isinstance(value, list):
            raise Fault("responses", f"is {kind(value)}; expected a list of answers")
        return [self._turns(each, "responses") for each in value]

    def _texts(self, fields: Record, field: str) -> tuple[str, ...]:
        return self._turns(cell(fields, field) if self._parse else present(fields, field), field)

    @staticmethod
    def _turns(value: Any, field: str) -> tuple[str, ...]:
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list) or not texts or not all(text is None or isinstance(text, str) for text in texts):
            raise Fault(field, f"is {kind(value)}; expected a text, or a list of texts, one a turn")
        return tuple(clean(text or "") for text in texts)
